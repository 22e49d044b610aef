//! A client of streaming URLs: SPDY/3.1 and WebSocket as far as sessions need them, blocking.
//!
//! Written from the protocols and sharing no code with podd, so that both can be wrong in different ways only.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compress, Compression, FlushCompress};
use serde_json::Value;

/// How long the server may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// SPDY/3.1.
    Spdy,
    /// WebSocket with a channel protocol.
    WebSocket,
}

/// Both, for tests of what must be the same.
pub const DIALECTS: [Dialect; 2] = [Dialect::Spdy, Dialect::WebSocket];

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

/// The sending side; may be used by another thread than the receiving side.
#[derive(Debug)]
pub struct Pen {
    socket: TcpStream,
    dialect: Dialect,
}

impl Pen {
    /// Sends bytes on a stream.
    ///
    /// # Errors
    /// The server is gone.
    pub fn data(&mut self, stream: u32, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(32 * 1024) {
            match self.dialect {
                Dialect::Spdy => self.spdy(&stream.to_be_bytes(), 0, chunk)?,
                Dialect::WebSocket => self.websocket(&[&[u8::try_from(stream)?], chunk].concat())?,
            }
        }
        Ok(())
    }

    /// Ends a stream.
    ///
    /// # Errors
    /// The server is gone.
    pub fn end(&mut self, stream: u32) -> Result<()> {
        match self.dialect {
            Dialect::Spdy => self.spdy(&stream.to_be_bytes(), 1, b""),
            Dialect::WebSocket => self.websocket(&[255, u8::try_from(stream)?]),
        }
    }

    /// Gives a stream up.
    ///
    /// # Errors
    /// The server is gone.
    pub fn reset(&mut self, stream: u32) -> Result<()> {
        let payload = [stream.to_be_bytes(), 5u32.to_be_bytes()].concat();
        self.spdy(&[0x80, 3, 0, 3], 0, &payload)
    }

    fn spdy(&mut self, first: &[u8; 4], flags: u8, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len())?.to_be_bytes();
        let frame = [first.as_slice(), &[flags], &length[1..], payload].concat();
        Ok(self.socket.write_all(&frame)?)
    }

    /// One masked binary message (RFC 6455, 5.2).
    fn websocket(&mut self, payload: &[u8]) -> Result<()> {
        const MASK: [u8; 4] = [0x5a, 1, 2, 3];
        let mut frame = vec![0x82];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | u8::try_from(short)?),
            long => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&MASK);
        let masked = payload.iter().zip(MASK.iter().cycle());
        frame.extend(masked.map(|(byte, mask)| byte ^ mask));
        Ok(self.socket.write_all(&frame)?)
    }
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
    /// Connects to `url` and asks for one of `protocols`.
    ///
    /// # Errors
    /// `status 404` and the like, where the server refuses.
    pub fn open(url: &str, dialect: Dialect, protocols: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("http://")
            .with_context(|| format!("{url:?} is no absolute URL"))?;
        let (host, path) = rest.split_once('/').context("the URL has no path")?;
        let mut socket = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
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
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(
                from.read_until(b'\n', &mut head)? > 0,
                "the server closed the connection"
            );
        }
        let head = String::from_utf8(head)?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(status == "101", "status {status}");
        if dialect == Dialect::WebSocket {
            // The key above is the example of RFC 6455, and this its answer.
            ensure!(
                head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
                "wrong accept key: {head}"
            );
        }
        Ok(Self {
            from,
            pen: Pen { socket, dialect },
            headers: Compress::new(Compression::default(), true),
            next_stream: 1,
        })
    }

    /// A second sending side.
    ///
    /// # Errors
    /// No more files.
    pub fn another_pen(&self) -> Result<Pen> {
        Ok(Pen {
            socket: self.pen.socket.try_clone()?,
            dialect: self.pen.dialect,
        })
    }

    /// Opens a SPDY stream. The dictionary is optional in zlib, and not used here.
    ///
    /// # Errors
    /// The server is gone.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let mut block = u32::try_from(headers.len())?.to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(1024);
        self.headers
            .compress_vec(&block, &mut packed, FlushCompress::Sync)?;
        let stream = self.next_stream;
        self.next_stream += 2;
        let fixed = [stream.to_be_bytes().as_slice(), &[0; 6]].concat();
        self.pen.spdy(&[0x80, 3, 0, 1], 0, &[fixed, packed].concat())?;
        Ok(stream)
    }

    /// Waits for what the server sends next.
    ///
    /// # Errors
    /// It sends nothing for a minute, or what this client does not know.
    pub fn receive(&mut self) -> Result<Message> {
        match self.pen.dialect {
            Dialect::Spdy => self.receive_spdy(),
            Dialect::WebSocket => self.receive_websocket(),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn payload(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut payload = vec![0; usize::try_from(length)?];
        self.from.read_exact(&mut payload)?;
        Ok(payload)
    }

    fn receive_spdy(&mut self) -> Result<Message> {
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
            match first {
                SYN_REPLY => {}
                RST_STREAM => return Ok(Message::Reset(stream)),
                0x8000_0000.. => bail!("a frame of type {first:#x}"),
                stream if header[4] & 1 == 0 => return Ok(Message::Data(stream, payload)),
                stream => {
                    ensure!(payload.is_empty(), "data with FIN, which podd sends apart");
                    return Ok(Message::End(stream));
                }
            }
        }
    }

    fn receive_websocket(&mut self) -> Result<Message> {
        let [first, length] = self.bytes::<2>()?;
        let length = match length {
            126 => u16::from_be_bytes(self.bytes()?).into(),
            127 => u64::from_be_bytes(self.bytes()?),
            short => short.into(),
        };
        let payload = self.payload(length)?;
        match first {
            0x82 => {
                let (channel, bytes) = payload.split_first().context("a message without a channel")?;
                Ok(Message::Data((*channel).into(), bytes.to_vec()))
            }
            0x88 => Ok(Message::Closed(
                payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
            )),
            other => bail!("a WebSocket frame that begins with {other:#x}"),
        }
    }
}

/// What is asked of an exec or attach.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// A terminal, and then no standard error.
    pub tty: bool,
}

/// The streams of an exec or attach.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    error: u32,
    stdin: u32,
    stdout: u32,
    stderr: u32,
    resize: u32,
}

/// An exec or attach.
#[derive(Debug)]
pub struct Remote {
    session: Session,
    streams: Streams,
    /// Standard output so far.
    pub stdout: Vec<u8>,
    /// Standard error so far.
    pub stderr: Vec<u8>,
    error: Vec<u8>,
}

impl Remote {
    /// Begins a session at a URL from Exec or Attach.
    ///
    /// # Errors
    /// The server refuses.
    pub fn open(url: &str, dialect: Dialect, wanted: Wanted) -> Result<Self> {
        let protocol = match dialect {
            Dialect::Spdy => "v4.channel.k8s.io",
            Dialect::WebSocket => "v5.channel.k8s.io",
        };
        let mut session = Session::open(url, dialect, protocol)?;
        let mut streams = Streams {
            stdin: 0,
            stdout: 1,
            stderr: 2,
            error: 3,
            resize: 4,
        };
        if dialect == Dialect::Spdy {
            let mut open = |asked: bool, name: &str| {
                if asked {
                    session.stream(&[("streamtype", name)])
                } else {
                    Ok(u32::MAX)
                }
            };
            streams = Streams {
                error: open(true, "error")?,
                stdin: open(wanted.stdin, "stdin")?,
                stdout: open(true, "stdout")?,
                stderr: open(!wanted.tty, "stderr")?,
                resize: open(wanted.tty, "resize")?,
            };
        }
        Ok(Self {
            session,
            streams,
            stdout: Vec::new(),
            stderr: Vec::new(),
            error: Vec::new(),
        })
    }

    /// Writes to the standard input.
    ///
    /// # Errors
    /// The server is gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.session.pen.data(self.streams.stdin, bytes)
    }

    /// Ends the standard input.
    ///
    /// # Errors
    /// The server is gone.
    pub fn end_input(&mut self) -> Result<()> {
        self.session.pen.end(self.streams.stdin)
    }

    /// Writes all of the standard input on a thread of its own, and ends it.
    ///
    /// # Errors
    /// No more files.
    pub fn write_aside(&self, bytes: Vec<u8>) -> Result<std::thread::JoinHandle<Result<()>>> {
        let (mut pen, stdin) = (self.session.another_pen()?, self.streams.stdin);
        Ok(std::thread::spawn(move || {
            pen.data(stdin, &bytes)?;
            pen.end(stdin)
        }))
    }

    /// Tells the size of the terminal.
    ///
    /// # Errors
    /// The server is gone.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
        self.session.pen.data(self.streams.resize, size.as_bytes())
    }

    /// Takes one message; `false` at the end of the session.
    ///
    /// # Errors
    /// The server is silent for a minute.
    pub fn step(&mut self) -> Result<bool> {
        match self.session.receive()? {
            Message::Data(stream, bytes) => {
                let to = match stream {
                    s if s == self.streams.stdout => &mut self.stdout,
                    s if s == self.streams.stderr => &mut self.stderr,
                    s if s == self.streams.error => &mut self.error,
                    other => bail!("data on stream {other}"),
                };
                to.extend_from_slice(&bytes);
                Ok(true)
            }
            Message::End(stream) => Ok(stream != self.streams.error),
            Message::Reset(stream) => bail!("stream {stream} was reset"),
            Message::Closed(code) => {
                ensure!(code == Some(1000), "closed with {code:?}");
                Ok(false)
            }
        }
    }

    /// Waits until the standard output contains `text`.
    ///
    /// # Errors
    /// The session ends first.
    pub fn until(&mut self, text: &str) -> Result<()> {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            let more = self.step()?;
            ensure!(
                more,
                "{text:?} does not come, but {:?}, {:?}",
                String::from_utf8_lossy(&self.stdout),
                String::from_utf8_lossy(&self.error)
            );
        }
        Ok(())
    }

    /// Waits for the status, with which the session is over.
    ///
    /// # Errors
    /// The connection breaks before.
    pub fn status(&mut self) -> Result<Value> {
        while self.step()? {}
        serde_json::from_slice(&self.error)
            .with_context(|| format!("status {:?}", String::from_utf8_lossy(&self.error)))
    }
}

/// The exit code of a status; 0 for success.
///
/// # Errors
/// The status tells of another failure.
pub fn exit_code(status: &Value) -> Result<i32> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let cause = causes.into_iter().flatten().find(|c| c["reason"] == "ExitCode");
    let code = cause.and_then(|cause| cause["message"].as_str());
    let code = code.with_context(|| format!("no exit code in {status}"))?;
    Ok(code.parse()?)
}

/// A port-forward over SPDY.
#[derive(Debug)]
pub struct Forward {
    session: Session,
    requests: u32,
}

/// One forwarded connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    data: u32,
    error: u32,
}

impl Forward {
    /// Begins a session at a URL from PortForward.
    ///
    /// # Errors
    /// The server refuses.
    pub fn open(url: &str) -> Result<Self> {
        Ok(Self {
            session: Session::open(url, Dialect::Spdy, "portforward.k8s.io")?,
            requests: 0,
        })
    }

    /// Opens a connection to a port.
    ///
    /// # Errors
    /// The server is gone.
    pub fn connect(&mut self, port: u16) -> Result<Pair> {
        let (port, id) = (port.to_string(), self.requests.to_string());
        self.requests += 1;
        let mut open = |kind: &str| {
            self.session
                .stream(&[("streamtype", kind), ("port", &port), ("requestid", &id)])
        };
        let pair = Pair {
            error: open("error")?,
            data: open("data")?,
        };
        self.session.pen.end(pair.error)?;
        Ok(pair)
    }

    /// Writes on a connection.
    ///
    /// # Errors
    /// The server is gone.
    pub fn write(&mut self, pair: Pair, bytes: &[u8]) -> Result<()> {
        self.session.pen.data(pair.data, bytes)
    }

    /// Reads a connection to its end: what came, and what was told on its error stream.
    ///
    /// # Errors
    /// The server is gone; other connections must be silent meanwhile.
    pub fn finish(&mut self, pair: Pair) -> Result<(Vec<u8>, String)> {
        let (mut data, mut error) = (Vec::new(), Vec::new());
        let mut open = [pair.data, pair.error].to_vec();
        while !open.is_empty() {
            match self.session.receive()? {
                Message::Data(stream, bytes) if stream == pair.data => data.extend_from_slice(&bytes),
                Message::Data(stream, bytes) if stream == pair.error => error.extend_from_slice(&bytes),
                Message::End(stream) | Message::Reset(stream) => {
                    open.retain(|known| *known != stream);
                    if stream == pair.data {
                        // As clients do, which have no more to send then.
                        self.session.pen.reset(stream)?;
                    }
                }
                other => bail!("{other:?} while {open:?} are open"),
            }
        }
        Ok((data, String::from_utf8(error)?))
    }
}
