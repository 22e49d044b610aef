//! Sessions: SPDY/3.1 and WebSocket as far as a client needs them, blocking.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};

/// Most bytes of one message to the server.
const CHUNK: usize = 32 * 1024;

/// Most bytes of one message that is accepted; podd's have at most 32 KiB.
const LARGEST: u64 = 1 << 20;

/// Most bytes of the server's answer before the session.
const MAX_HEAD: usize = 16 * 1024;

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// SPDY/3.1.
    Spdy,
    /// WebSocket with a channel protocol.
    WebSocket,
}

/// What the server sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Bytes of a stream.
    Data(u32, Vec<u8>),
    /// The end of a stream.
    End(u32),
    /// A stream is given up.
    Reset(u32),
    /// The end of everything; for WebSocket with its code.
    Closed(Option<u16>),
}

/// Why a session could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The URL is not one that can be used here.
    #[error("{0:?} is no absolute URL of http")]
    Url(String),
    /// The server cannot be reached.
    #[error("cannot connect to {host}")]
    Connect {
        /// Address and port.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server does not switch the protocol; its status code.
    #[error("status {0}")]
    Status(String),
    /// The connection broke.
    #[error("the connection is lost")]
    Lost(#[from] io::Error),
    /// The server sends what this client does not know.
    #[error("the server sends {0}")]
    Protocol(String),
}

/// The sending side; clones may be used by other threads than the receiving side.
#[derive(Debug, Clone)]
pub struct Pen {
    socket: Arc<Mutex<TcpStream>>,
    dialect: Dialect,
}

impl Pen {
    /// Sends bytes on a stream.
    ///
    /// # Errors
    /// The server is gone.
    pub fn data(&self, stream: u32, bytes: &[u8]) -> Result<(), SessionError> {
        for chunk in bytes.chunks(CHUNK) {
            match self.dialect {
                Dialect::Spdy => self.spdy(stream.to_be_bytes(), 0, chunk)?,
                Dialect::WebSocket => self.websocket(BINARY, &[&[channel(stream)?], chunk].concat())?,
            }
        }
        Ok(())
    }

    /// Ends a stream.
    ///
    /// # Errors
    /// The server is gone.
    pub fn end(&self, stream: u32) -> Result<(), SessionError> {
        match self.dialect {
            Dialect::Spdy => self.spdy(stream.to_be_bytes(), 1, b""),
            Dialect::WebSocket => self.websocket(BINARY, &[255, channel(stream)?]),
        }
    }

    /// Gives a SPDY stream up.
    ///
    /// # Errors
    /// The server is gone.
    pub fn reset(&self, stream: u32) -> Result<(), SessionError> {
        let payload = [stream.to_be_bytes(), 5u32.to_be_bytes()].concat();
        self.spdy([0x80, 3, 0, 3], 0, &payload)
    }

    /// Ends the connection, whoever waits on it.
    pub fn close(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // It is closed already where this fails.
        let _ = socket.shutdown(Shutdown::Both);
    }

    fn spdy(&self, first: [u8; 4], flags: u8, payload: &[u8]) -> Result<(), SessionError> {
        let length = (payload.len() as u64).to_be_bytes();
        self.send(&[first.as_slice(), &[flags], &length[5..], payload].concat())
    }

    /// One masked message (RFC 6455, 5.2). The mask protects proxies from what a browser is made to send; between a
    /// node and itself there is none, and it may be the same each time.
    fn websocket(&self, opcode: u8, payload: &[u8]) -> Result<(), SessionError> {
        const MASK: [u8; 4] = [0x5a, 1, 2, 3];
        let mut frame = vec![opcode];
        match u8::try_from(payload.len()) {
            Ok(short @ 0..126) => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&MASK);
        let masked = payload.iter().zip(MASK.iter().cycle());
        frame.extend(masked.map(|(byte, mask)| byte ^ mask));
        self.send(&frame)
    }

    /// Frames are written whole, whoever else writes.
    fn send(&self, frame: &[u8]) -> Result<(), SessionError> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(socket.write_all(frame)?)
    }
}

/// First bytes of WebSocket frames that are the whole message: opcodes of RFC 6455, 5.2.
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

fn channel(stream: u32) -> Result<u8, SessionError> {
    u8::try_from(stream).map_err(|_| SessionError::Protocol(format!("a channel {stream}")))
}

/// A connection whose protocol was agreed on.
#[derive(Debug)]
pub struct Session {
    from: BufReader<TcpStream>,
    /// The sending side.
    pub pen: Pen,
    headers: Compress,
    next_stream: u32,
}

impl Session {
    /// Connects to `url` and asks for one of `protocols`. With `patience` a server that is silent for that long
    /// is lost.
    ///
    /// # Errors
    /// `status 404` and the like, where the server refuses.
    pub fn open(
        url: &str,
        dialect: Dialect,
        protocols: &str,
        patience: Option<Duration>,
    ) -> Result<Self, SessionError> {
        let rest = url.strip_prefix("http://").and_then(|rest| rest.split_once('/'));
        let (host, path) = rest.ok_or_else(|| SessionError::Url(url.to_owned()))?;
        let mut socket = TcpStream::connect(host).map_err(|source| SessionError::Connect {
            host: host.to_owned(),
            source,
        })?;
        socket.set_read_timeout(patience)?;
        socket.set_nodelay(true)?;
        let request = match dialect {
            Dialect::Spdy => format!(
                "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                 X-Stream-Protocol-Version: {protocols}\r\nContent-Length: 0\r\n\r\n"
            ),
            Dialect::WebSocket => format!(
                "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
            ),
        };
        socket.write_all(request.as_bytes())?;
        let mut from = BufReader::new(socket.try_clone()?);
        let head = read_head(&mut from)?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status != "101" {
            return Err(SessionError::Status(status.to_owned()));
        }
        // The key above is the example of RFC 6455, and this its answer.
        if dialect == Dialect::WebSocket && !head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
            return Err(SessionError::Protocol(format!("a wrong accept key: {head:?}")));
        }
        let socket = Arc::new(Mutex::new(socket));
        Ok(Self {
            from,
            pen: Pen { socket, dialect },
            headers: Compress::new(Compression::default(), true),
            next_stream: 1,
        })
    }

    /// Opens a SPDY stream. The dictionary is optional in zlib, and not used here.
    ///
    /// # Errors
    /// The server is gone.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> Result<u32, SessionError> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        let mut block = count(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&count(text.len()));
            block.extend_from_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(1024);
        self.headers
            .compress_vec(&block, &mut packed, FlushCompress::Sync)
            .map_err(io::Error::other)?;
        let stream = self.next_stream;
        self.next_stream += 2;
        let fixed = [stream.to_be_bytes().as_slice(), &[0; 6]].concat();
        self.pen.spdy([0x80, 3, 0, 1], 0, &[fixed, packed].concat())?;
        Ok(stream)
    }

    /// Waits for what the server sends next.
    ///
    /// # Errors
    /// It is silent for too long, or sends what this client does not know.
    pub fn receive(&mut self) -> Result<Message, SessionError> {
        match self.pen.dialect {
            Dialect::Spdy => self.receive_spdy(),
            Dialect::WebSocket => self.receive_websocket(),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], SessionError> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn payload(&mut self, length: u64) -> Result<Vec<u8>, SessionError> {
        let fits = usize::try_from(length).ok().filter(|_| length <= LARGEST);
        let length = fits.ok_or_else(|| SessionError::Protocol(format!("a message of {length} bytes")))?;
        let mut payload = vec![0; length];
        self.from.read_exact(&mut payload)?;
        Ok(payload)
    }

    fn receive_spdy(&mut self) -> Result<Message, SessionError> {
        const SYN_REPLY: u32 = 0x8003_0002;
        const RST_STREAM: u32 = 0x8003_0003;
        loop {
            if self.from.fill_buf()?.is_empty() {
                return Ok(Message::Closed(None));
            }
            let header = self.bytes::<8>()?;
            let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            let length = u32::from_be_bytes([0, header[5], header[6], header[7]]);
            let payload = self.payload(length.into())?;
            let stream = payload
                .first_chunk()
                .map_or(0, |bytes| u32::from_be_bytes(*bytes));
            let unknown = |what: String| Err(SessionError::Protocol(what));
            match first {
                SYN_REPLY => {}
                RST_STREAM => return Ok(Message::Reset(stream)),
                0x8000_0000.. => return unknown(format!("a frame of type {first:#x}")),
                stream if header[4] & 1 == 0 => return Ok(Message::Data(stream, payload)),
                stream if payload.is_empty() => return Ok(Message::End(stream)),
                _ => return unknown("data with FIN, which podd sends apart".to_owned()),
            }
        }
    }

    fn receive_websocket(&mut self) -> Result<Message, SessionError> {
        loop {
            let [first, length] = self.bytes::<2>()?;
            let length = match length {
                126 => u16::from_be_bytes(self.bytes()?).into(),
                127 => u64::from_be_bytes(self.bytes()?),
                short => short.into(),
            };
            let payload = self.payload(length)?;
            match (first, payload.split_first()) {
                (BINARY, Some((channel, bytes))) => {
                    return Ok(Message::Data((*channel).into(), bytes.to_vec()));
                }
                (CLOSE, _) => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    return Ok(Message::Closed(code));
                }
                (PING, _) => self.pen.websocket(PONG, &payload)?,
                (PONG, _) => {}
                (first, _) => {
                    let what = format!("a WebSocket frame that begins with {first:#x}");
                    return Err(SessionError::Protocol(what));
                }
            }
        }
    }
}

fn read_head(from: &mut BufReader<TcpStream>) -> Result<String, SessionError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let room = (MAX_HEAD - head.len().min(MAX_HEAD)) as u64;
        if from.by_ref().take(room).read_until(b'\n', &mut head)? == 0 {
            return Err(SessionError::Protocol("no whole answer".to_owned()));
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
