//! Frames (SPDY Protocol - Draft 3.1, section 2.2).
//!
//! ```text
//! control := 1:1 version:15 type:16 flags:8 length:24 payload
//! data    := 0:1 stream:31  flags:8 length:24 payload
//! ```

use bytes::{BufMut as _, BytesMut};

/// Bytes of a frame without its payload.
pub const HEADER: usize = 8;

/// The sender sends no more on this stream.
pub const FLAG_FIN: u8 = 1;

const VERSION: u16 = 3;
const CONTROL: u32 = 0x8000_0000;

/// Types of control frames.
mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const PING: u16 = 6;
    pub const HEADERS: u16 = 8;
}

/// Status of RST_STREAM: the stream is no longer needed. It says no more than that to the clients.
const CANCEL: u32 = 5;

/// What a frame is about, before its payload is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of a stream.
    Data(u32),
    /// A stream is opened.
    SynStream,
    /// A stream is given up.
    RstStream,
    /// To be answered.
    Ping,
    /// Headers that nobody asked for: read only because compression depends on all that came before.
    Headers,
    /// SETTINGS, GOAWAY, WINDOW_UPDATE and what later versions may have.
    Other,
}

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Flags.
    pub flags: u8,
    /// Bytes of the payload.
    pub length: usize,
}

impl Header {
    /// The header in the first bytes of a frame; `None` for another version of SPDY, or none.
    #[must_use]
    pub fn decode(bytes: [u8; HEADER]) -> Option<Self> {
        let [a, b, c, d, flags, length @ ..] = bytes;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        let first = u32::from_be_bytes([a, b, c, d]);
        let kind = if first & CONTROL == 0 {
            Kind::Data(first)
        } else if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return None;
        } else {
            match u16::from_be_bytes([c, d]) {
                kind::SYN_STREAM => Kind::SynStream,
                kind::RST_STREAM => Kind::RstStream,
                kind::PING => Kind::Ping,
                kind::SYN_REPLY | kind::HEADERS => Kind::Headers,
                _ => Kind::Other,
            }
        };
        Some(Self { kind, flags, length })
    }
}

/// The number at the beginning of a payload: a stream, or the id of a ping.
#[must_use]
pub fn number(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*payload.first_chunk()?) & !CONTROL)
}

fn control(out: &mut BytesMut, kind: u16, length: usize) {
    out.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    put_length(out, 0, length);
}

fn put_length(out: &mut BytesMut, flags: u8, length: usize) {
    debug_assert!(length < 1 << 24);
    out.put_u8(flags);
    out.put_uint(length as u64, 3);
}

/// Appends SYN_REPLY with a block of compressed headers.
pub fn syn_reply(out: &mut BytesMut, stream: u32, block: &[u8]) {
    control(out, kind::SYN_REPLY, 4 + block.len());
    out.put_u32(stream);
    out.put_slice(block);
}

/// Appends the beginning of a data frame; `length` bytes have to follow.
pub fn data(out: &mut BytesMut, stream: u32, length: usize, flags: u8) {
    out.put_u32(stream);
    put_length(out, flags, length);
}

/// Appends RST_STREAM.
pub fn rst_stream(out: &mut BytesMut, stream: u32) {
    control(out, kind::RST_STREAM, 8);
    out.put_u32(stream);
    out.put_u32(CANCEL);
}

/// Appends PING.
pub fn ping(out: &mut BytesMut, id: u32) {
    control(out, kind::PING, 4);
    out.put_u32(id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_bytes_of_the_draft() {
        let mut out = BytesMut::new();
        data(&mut out, 5, 2, FLAG_FIN);
        out.put_slice(b"hi");
        ping(&mut out, 7);
        rst_stream(&mut out, 9);
        syn_reply(&mut out, 11, b"x");
        let expected: &[u8] = &[
            0, 0, 0, 5, 1, 0, 0, 2, b'h', b'i', // data
            0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7, // ping
            0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 5, // reset
            0x80, 3, 0, 2, 0, 0, 0, 5, 0, 0, 0, 11, b'x', // reply
        ];
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn headers_are_decoded() {
        let header = |bytes| Header::decode(bytes);
        let syn = Header {
            kind: Kind::SynStream,
            flags: 1,
            length: 0x01_0203,
        };
        assert_eq!(header([0x80, 3, 0, 1, 1, 1, 2, 3]), Some(syn));
        assert_eq!(header([0x80, 2, 0, 1, 0, 0, 0, 0]), None);
        assert_eq!(
            header([0x80, 3, 0, 99, 0, 0, 0, 0]).map(|h| h.kind),
            Some(Kind::Other)
        );
        assert_eq!(
            header([0, 0, 1, 0, 0, 0, 0, 9]).map(|h| h.kind),
            Some(Kind::Data(256))
        );
        assert_eq!(number(&[0x80, 0, 0, 3, 1]), Some(3));
        assert_eq!(number(&[0, 0, 3]), None);
    }
}
