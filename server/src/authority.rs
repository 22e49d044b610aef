//! Clients whose `:authority` is the path of the socket.
//!
//! A gRPC client on a unix socket has no host to name. The kubelet and crictl say `localhost`; the C family, Java, and
//! Go with a dialer of its own say the path, `%2Frun%2Fpodd%2Fpodd.sock` or as it is. That is no authority of a URI,
//! so h2 resets the request before anybody can look at it. podd does not care what the authority is, so [`Lenient`]
//! puts another character for each that may not be there, on its way to h2.
//!
//! A request's header block is HPACK (RFC 7541), with a table that both sides keep. What is put there has the length of
//! what was there, in the block as in the table: a dot for a percent sign, which in Huffman's code is one bit, and a 3
//! for a slash, which is another. Bytes that are no HTTP/2 pass as they are; h2 tells the client.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// A connection whose requests have an `:authority` that h2 takes.
#[derive(Debug)]
pub struct Lenient {
    stream: UnixStream,
    frames: Frames,
}

impl Lenient {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            frames: Frames::default(),
        }
    }
}

impl Connected for Lenient {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Lenient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.frames.pass(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Lenient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Bytes of the preface that a client begins with (RFC 9113, 3.4).
const PREFACE: usize = 24;
/// Bytes of a frame's head (RFC 9113, 4.1).
const HEAD: usize = 9;
/// Types of the frames that carry header blocks.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Flags of HEADERS: a byte says how much padding there is; five bytes of priority precede the block.
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// Where a connection's bytes are among its frames. What was read may end anywhere.
#[derive(Debug)]
struct Frames {
    /// Bytes to pass before anything else.
    skip: usize,
    head: [u8; HEAD],
    /// How many bytes of the head are known.
    known: usize,
    /// HEADERS is padded, and the byte that says by how much comes next.
    padded: bool,
    /// Bytes left of the header block in this frame.
    fragment: usize,
    /// Bytes of padding behind it.
    padding: usize,
    block: Block,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE,
            head: [0; HEAD],
            known: 0,
            padded: false,
            fragment: 0,
            padding: 0,
            block: Block::Field,
        }
    }
}

impl Frames {
    /// Looks at the next bytes of the connection, and changes those of an authority that h2 would not take.
    fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = if self.skip > 0 {
                let taken = self.skip.min(bytes.len());
                self.skip -= taken;
                taken
            } else if self.padded {
                self.padded = false;
                self.padding = usize::from(bytes[0]);
                self.begin(1 + self.padding);
                1
            } else if self.fragment > 0 {
                let taken = self.fragment.min(bytes.len());
                bytes[..taken].iter_mut().for_each(|byte| self.block.pass(byte));
                self.fragment -= taken;
                if self.fragment == 0 {
                    self.skip = std::mem::take(&mut self.padding);
                }
                taken
            } else {
                self.head[self.known] = bytes[0];
                self.known += 1;
                if self.known == HEAD {
                    self.known = 0;
                    self.frame();
                }
                1
            };
            bytes = &mut bytes[taken..];
        }
    }

    fn length(&self) -> usize {
        self.head[..3]
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte))
    }

    /// A frame's head is known.
    fn frame(&mut self) {
        let flags = self.head[4];
        match self.head[3] {
            HEADERS if flags & PADDED != 0 && self.length() > 0 => self.padded = true,
            HEADERS => self.begin(0),
            CONTINUATION => self.fragment = self.length(),
            _ => self.skip = self.length(),
        }
    }

    /// A header block begins, in a frame of which `around` bytes are padding and its length.
    fn begin(&mut self, around: usize) {
        let priority = if self.head[4] & PRIORITY != 0 { 5 } else { 0 };
        self.block = Block::Field;
        match self.length().checked_sub(around + priority) {
            Some(fragment) if fragment > 0 => (self.skip, self.fragment) = (priority, fragment),
            _ => {
                let said = usize::from(around > 0);
                (self.skip, self.padding) = (self.length() - said, 0);
            }
        }
    }
}

/// What a text in a header block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// A field's name, which as far as it was looked at may be that of the authority; its value follows.
    Name { authority: bool },
    /// The value of `:authority`.
    Authority,
    /// Another value.
    Value,
}

/// Where a header block is (RFC 7541, 6).
#[derive(Debug, Clone, Copy)]
enum Block {
    /// A field begins.
    Field,
    /// The rest of an integer that nobody needs, and what follows it.
    Integer { then: Option<Text> },
    /// A text begins.
    Text(Text),
    /// The rest of a text's length.
    Length {
        text: Text,
        huffman: bool,
        value: usize,
        shift: u32,
    },
    /// Inside a text of which `left` bytes are to come.
    Inside { text: Text, left: usize, code: Code },
    /// It is no header block; the rest of it is h2's to refuse.
    Lost,
}

/// Index of `:authority` in the static table.
const AUTHORITY: u8 = 1;
/// Its name, for those who write it out, as it is and in Huffman's code.
const NAME: &[u8] = b":authority";
const NAME_CODE: &[u8] = b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f";

impl Block {
    fn pass(&mut self, byte: &mut u8) {
        *self = match *self {
            Self::Field => Self::field(*byte),
            Self::Integer { .. } if *byte & 0x80 != 0 => *self,
            Self::Integer { then: None } => Self::Field,
            Self::Integer { then: Some(text) } => Self::Text(text),
            Self::Text(text) => {
                let (huffman, length) = (*byte & 0x80 != 0, *byte & 0x7f);
                if length == 0x7f {
                    let (value, shift) = (0x7f, 0);
                    Self::Length {
                        text,
                        huffman,
                        value,
                        shift,
                    }
                } else {
                    Self::begin(text, length.into(), huffman)
                }
            }
            Self::Length { shift, .. } if shift > 21 => Self::Lost,
            Self::Length {
                text,
                huffman,
                value,
                shift,
            } => {
                let value = value + (usize::from(*byte & 0x7f) << shift);
                if *byte & 0x80 == 0 {
                    Self::begin(text, value, huffman)
                } else {
                    let shift = shift + 7;
                    Self::Length {
                        text,
                        huffman,
                        value,
                        shift,
                    }
                }
            }
            Self::Inside {
                mut text,
                left,
                mut code,
            } => {
                match &mut text {
                    Text::Authority => code.pass(byte),
                    Text::Name { authority } => {
                        *authority &= code.name().iter().rev().nth(left - 1) == Some(byte)
                    }
                    Text::Value => {}
                }
                Self::inside(text, left - 1, code)
            }
            Self::Lost => Self::Lost,
        };
    }

    /// What follows the first byte of a field.
    fn field(byte: u8) -> Self {
        // The value of what is in a table is in the table; the size of the table has none.
        let (mask, literal) = match byte {
            0x80.. => (0x7f, false),
            0x40.. => (0x3f, true),
            0x20.. => (0x1f, false),
            _ => (0x0f, true),
        };
        let index = byte & mask;
        let then = match index {
            0 => Text::Name { authority: true },
            AUTHORITY => Text::Authority,
            _ => Text::Value,
        };
        match (index == mask, literal) {
            (true, _) => Self::Integer {
                then: literal.then_some(Text::Value),
            },
            (false, true) => Self::Text(then),
            (false, false) => Self::Field,
        }
    }

    /// A text of `length` bytes begins.
    fn begin(text: Text, length: usize, huffman: bool) -> Self {
        let code = Code::new(huffman);
        let text = match text {
            Text::Name { .. } => Text::Name {
                authority: length == code.name().len(),
            },
            text => text,
        };
        Self::inside(text, length, code)
    }

    /// Inside a text of which `left` bytes are to come.
    fn inside(text: Text, left: usize, code: Code) -> Self {
        match (left, text) {
            (0, Text::Name { authority: true }) => Self::Text(Text::Authority),
            (0, Text::Name { authority: false }) => Self::Text(Text::Value),
            (0, _) => Self::Field,
            _ => Self::Inside { text, left, code },
        }
    }
}

/// How a text is written.
#[derive(Debug, Clone, Copy)]
enum Code {
    Plain,
    /// In Huffman's code (RFC 7541, appendix B), `bits` of the next symbol are `code`.
    Huffman {
        code: u8,
        bits: u8,
    },
    /// A symbol that no path has; the rest stays as it is.
    Unknown,
}

impl Code {
    fn new(huffman: bool) -> Self {
        if huffman {
            Self::Huffman { code: 0, bits: 0 }
        } else {
            Self::Plain
        }
    }

    /// The name of the authority in this code.
    fn name(self) -> &'static [u8] {
        match self {
            Self::Plain => NAME,
            Self::Huffman { .. } | Self::Unknown => NAME_CODE,
        }
    }

    /// Changes a byte of an authority.
    fn pass(&mut self, byte: &mut u8) {
        match self {
            Self::Plain => match *byte {
                b'%' | b' ' => *byte = b'.',
                b'/' => *byte = b'3',
                _ => {}
            },
            Self::Huffman { .. } => {
                for at in (0..8).rev() {
                    *byte ^= self.bit(*byte >> at & 1) << at;
                }
            }
            Self::Unknown => {}
        }
    }

    /// Takes a bit, and says whether it is to be the other one.
    ///
    /// The first five bits of a symbol tell its length, as far as eight bits. Those of the space and the percent sign
    /// with the fifth bit changed are those of `-` and `.`; the slash with the sixth changed is `3`.
    fn bit(&mut self, bit: u8) -> u8 {
        let Self::Huffman { code, bits } = self else {
            return 0;
        };
        (*code, *bits) = (*code << 1 | bit, *bits + 1);
        let changed = u8::from(matches!((*bits, *code), (5, 0b01010) | (6, 0b011000)));
        *code ^= changed;
        let done = match (*bits, *code) {
            (5, ..0x0a) => true,
            (6, ..0x2e) => true,
            (7, ..0x7c) => true,
            (8, 0xfe..) => {
                *self = Self::Unknown;
                return 0;
            }
            (8, _) => true,
            _ => false,
        };
        if done {
            (*code, *bits) = (0, 0);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &[u8] = b"%2Frun%2Fpodd%2Fpodd.sock";
    const TAKEN: &[u8] = b".2Frun.2Fpodd.2Fpodd.sock";
    const PATH_CODE: [u8; 19] = [
        0x54, 0x58, 0x6c, 0xb6, 0xa5, 0x45, 0x86, 0xb3, 0xc9, 0x22, 0xa2, 0xc3, 0x59, 0xe4, 0x91, 0x74, 0x1c,
        0x9d, 0x7f,
    ];
    const TAKEN_CODE: [u8; 19] = [
        0x5c, 0x58, 0x6c, 0xb6, 0xa5, 0xc5, 0x86, 0xb3, 0xc9, 0x22, 0xe2, 0xc3, 0x59, 0xe4, 0x91, 0x74, 0x1c,
        0x9d, 0x7f,
    ];

    /// A text as HPACK has it; `huffman` is 0x80 where it is in that code.
    fn text(huffman: u8, text: &[u8]) -> Vec<u8> {
        [&[huffman | u8::try_from(text.len()).unwrap()], text].concat()
    }

    /// The header block of a request, whose `:path` and last fields have what only an authority may not have.
    fn block(authority: &[u8]) -> Vec<u8> {
        // POST, http, the path with its index, the authority, a new name and its value, one that is as long as the
        // authority's.
        let parts: [&[u8]; 7] = [
            &[0x83, 0x86],
            &[&[0x44][..], &text(0, b"/runtime.v1.RuntimeService/Version")].concat(),
            authority,
            &[&[0x40][..], &text(0, b"user-agent"), &text(0, b"a/b %2F")].concat(),
            &[&[0][..], &text(0, b":authoritx"), &text(0, b"a/b %2F")].concat(),
            &[&[0x0f, 0x2b][..], &text(0x80, &PATH_CODE)].concat(),
            &[0x3f, 0xe1, 0x1f, 0xbf],
        ];
        parts.concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A connection: preface, settings, then two requests, one of them in pieces.
    fn connection(authority: &[u8]) -> Vec<u8> {
        let block = block(authority);
        let (one, two) = block.split_at(block.len() / 2);
        let padded = [&[3][..], &[0, 0, 0, 0, 16], one, b"%/%"].concat();
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[0; 6]),
            frame(HEADERS, 4, &block),
            frame(0, 1, b"%2F/ data"),
            frame(HEADERS, PADDED | PRIORITY, &padded),
            frame(CONTINUATION, 4, two),
            frame(HEADERS, PADDED, &[200, 0x41]),
            frame(6, 0, b"%%%%%%%%"),
        ]
        .concat()
    }

    fn passed(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut bytes, mut frames) = (bytes.to_vec(), Frames::default());
        bytes.chunks_mut(piece).for_each(|chunk| frames.pass(chunk));
        bytes
    }

    #[test]
    fn a_path_becomes_an_authority_however_it_is_written_and_cut() {
        let cases = [
            (text(0, PATH), text(0, TAKEN)),
            (text(0x80, &PATH_CODE), text(0x80, &TAKEN_CODE)),
            (text(0, b"/run/podd.sock"), text(0, b"3run3podd.sock")),
            // "/run/X/podd.sock", where X has eight bits.
            (
                text(0x80, b"\x62\xcb\x6a\x63\xf1\x8a\xcf\x24\x8b\xa0\xe4\xeb"),
                text(0x80, b"\x66\xcb\x6a\x67\xf1\x9a\xcf\x24\x8b\xa0\xe4\xeb"),
            ),
        ];
        // By its index, and by its name as it is, not to be remembered, and in code.
        let names = [
            vec![0x41],
            [&[0x40][..], &text(0, NAME)].concat(),
            [&[0x10][..], &text(0, NAME)].concat(),
            [&[0x40][..], &text(0x80, NAME_CODE)].concat(),
        ];
        for (sent, taken) in cases {
            for name in &names {
                let field = |value: &[u8]| connection(&[name, value].concat());
                let (sent, taken) = (field(&sent), field(&taken));
                for piece in [1, 2, 3, 7, 64, sent.len()] {
                    assert_eq!(passed(&sent, piece), taken, "in pieces of {piece}");
                }
            }
        }
    }

    #[test]
    fn what_h2_takes_stays_as_it_is() {
        let long = [&[0x7f, 0x80, 0x01][..], &[b'a'; 255]].concat();
        for authority in [text(0, b"localhost"), text(0, b"[::1]:80"), text(0, b""), long] {
            let sent = connection(&[&[0x41][..], &authority].concat());
            assert_eq!(passed(&sent, 5), sent);
        }
    }

    #[test]
    fn a_symbol_beyond_paths_ends_the_changes() {
        // `|` has eleven bits: nothing behind it is looked at.
        let strange = [&[0x41][..], &text(0x80, b"\xff\x95\x45\x45")].concat();
        let sent = connection(&strange);
        assert_eq!(passed(&sent, 9), sent);
    }

    #[test]
    fn any_bytes_pass() {
        let mut seed = 7_u64;
        let mut noise = PATH.repeat(40);
        for byte in &mut noise {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = seed.to_be_bytes()[0] & 0x7f;
        }
        for kind in 0..=9 {
            for flags in [0, 4, PADDED, PRIORITY, PADDED | PRIORITY] {
                let mut bytes = connection(&[&[0x41][..], &text(0, PATH)].concat());
                bytes.extend(frame(kind, flags, &noise));
                bytes.extend(frame(kind, flags, b""));
                bytes.extend(&noise);
                assert_eq!(passed(&bytes, 11).len(), bytes.len());
            }
        }
    }
}
