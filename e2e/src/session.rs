//! Sessions of Exec, Attach and PortForward as tests want them: what came is kept, and the end is told.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
pub use podd_client::Dialect;
use podd_client::Message;
use serde_json::Value;

/// How long the server may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both dialects, for tests of what must be the same.
pub const DIALECTS: [Dialect; 2] = [Dialect::Spdy, Dialect::WebSocket];

/// A session with a server that may be silent for a minute.
#[derive(Debug)]
pub struct Session(podd_client::Session);

impl Session {
    /// Connects to `url` and asks for one of `protocols`.
    ///
    /// # Errors
    /// `status 404` and the like, where the server refuses.
    pub fn open(url: &str, dialect: Dialect, protocols: &str) -> Result<Self> {
        let session = podd_client::Session::open(url, dialect, protocols, Some(PATIENCE))?;
        Ok(Self(session))
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
    session: podd_client::Session,
    streams: Streams,
    /// Standard output so far.
    pub stdout: Vec<u8>,
    /// Standard error so far.
    pub stderr: Vec<u8>,
    error: Vec<u8>,
    ended: BTreeSet<u32>,
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
        let mut session = Session::open(url, dialect, protocol)?.0;
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
            ended: BTreeSet::new(),
        })
    }

    /// Whether the server has ended the standard output; WebSocket channels have no end of their own.
    #[must_use]
    pub fn output_has_ended(&self) -> bool {
        self.ended.contains(&self.streams.stdout)
    }

    /// Writes to the standard input.
    ///
    /// # Errors
    /// The server is gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.session.pen.data(self.streams.stdin, bytes)?)
    }

    /// Ends the standard input.
    ///
    /// # Errors
    /// The server is gone.
    pub fn end_input(&mut self) -> Result<()> {
        Ok(self.session.pen.end(self.streams.stdin)?)
    }

    /// Writes all of the standard input on a thread of its own, and ends it.
    pub fn write_aside(&self, bytes: Vec<u8>) -> std::thread::JoinHandle<Result<()>> {
        let (pen, stdin) = (self.session.pen.clone(), self.streams.stdin);
        std::thread::spawn(move || {
            pen.data(stdin, &bytes)?;
            Ok(pen.end(stdin)?)
        })
    }

    /// Tells the size of the terminal.
    ///
    /// # Errors
    /// The server is gone.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
        Ok(self.session.pen.data(self.streams.resize, size.as_bytes())?)
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
            Message::End(stream) => {
                self.ended.insert(stream);
                Ok(stream != self.streams.error)
            }
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
    session: podd_client::Session,
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
            session: Session::open(url, Dialect::Spdy, "portforward.k8s.io")?.0,
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
        Ok(self.session.pen.data(pair.data, bytes)?)
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
