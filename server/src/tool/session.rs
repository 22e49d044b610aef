//! `podd exec` and `podd attach`: the operator's standard streams, carried to a process in a container.
//!
//! Over WebSocket with the protocol v5.channel.k8s.io: the first byte of each message says which stream it is of.

use std::io::{self, IsTerminal as _, Read as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use podd_client::{Dialect, Message, Pen, Session};
use podd_proto::v1;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::cri::Cri;
use super::failure::Failure;
use super::node::Node;
use super::terminal::{Restored, Terminal};

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const ERROR: u32 = 3;
const RESIZE: u32 = 4;

/// Most bytes of the last word of a session.
const LAST_WORD: usize = 64 << 10;

/// What of the operator's is given to the process.
#[derive(Debug, Clone, Copy, Args)]
pub struct Streams {
    /// Pass standard input on.
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal of the size of this one.
    #[arg(short, long)]
    tty: bool,
}

/// Run a command in a container; its exit code is podd's own.
#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    streams: Streams,
    /// Name or id of the container.
    container: String,
    /// The program and its arguments; no shell is involved.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

/// Join the standard streams of a container's first process; ctrl-p ctrl-q leaves it.
#[derive(Debug, Args)]
pub struct Attach {
    #[command(flatten)]
    streams: Streams,
    /// Name or id of the container.
    container: String,
}

impl Exec {
    /// Runs the command, and returns its exit code.
    ///
    /// # Errors
    /// It could not be run, or the session broke.
    pub fn run(self, cri: &Cri) -> Result<u8, Failure> {
        self.streams.check()?;
        let node = Node::read(cri)?;
        let answer = cri.exec(v1::ExecRequest {
            container_id: node.container(&self.container)?.id.clone(),
            cmd: self.command,
            tty: self.streams.tty,
            stdin: self.streams.interactive,
            stdout: true,
            stderr: !self.streams.tty,
        })?;
        carry(cri, &answer.url, self.streams, false)
    }
}

impl Attach {
    /// Carries the streams until the process ends or the operator leaves.
    ///
    /// # Errors
    /// The container does not run, has a terminal where none was asked for, or the session broke.
    pub fn run(self, cri: &Cri) -> Result<u8, Failure> {
        self.streams.check()?;
        let node = Node::read(cri)?;
        let answer = cri.attach(v1::AttachRequest {
            container_id: node.container(&self.container)?.id.clone(),
            tty: self.streams.tty,
            stdin: self.streams.interactive,
            stdout: true,
            stderr: !self.streams.tty,
        })?;
        carry(cri, &answer.url, self.streams, true)
    }
}

impl Streams {
    fn check(self) -> Result<(), Failure> {
        if self.tty && !io::stdin().is_terminal() {
            return Err(Failure::NoTerminal);
        }
        Ok(())
    }
}

/// Carries everything until the session ends, and returns the exit code.
fn carry(cri: &Cri, url: &str, streams: Streams, may_leave: bool) -> Result<u8, Failure> {
    let mut session = Session::open(url, Dialect::WebSocket, "v5.channel.k8s.io", None)?;
    let _restored = match streams.tty {
        true => {
            let terminal = Terminal::raw().map_err(Failure::Terminal)?;
            watch(cri, &terminal, &session.pen)?;
            Some(Restored(terminal))
        }
        false => None,
    };
    let left = Arc::new(AtomicBool::new(false));
    if streams.interactive {
        let (pen, left) = (session.pen.clone(), Arc::clone(&left));
        let leave = Leave {
            armed: may_leave && streams.tty,
            prefix: false,
        };
        // Reads until the session is over: then the process ends, and the thread with it.
        let thread = std::thread::Builder::new().name("stdin".to_owned());
        thread
            .spawn(move || forward(&pen, leave, &left))
            .map_err(Failure::SetUp)?;
    }
    match receive(&mut session, io::stdout(), io::stderr()) {
        _ if left.load(Ordering::Relaxed) => Ok(0),
        Ok(last) => outcome(&last),
        Err(e) => Err(e),
    }
}

/// Tells the size now and whenever it changes; a signal that ends this program restores the terminal first.
fn watch(cri: &Cri, terminal: &Terminal, pen: &Pen) -> Result<(), Failure> {
    let guard = cri.runtime().enter();
    let mut changed = signal(SignalKind::window_change()).map_err(Failure::SetUp)?;
    for (kind, number) in [
        (SignalKind::terminate(), 15),
        (SignalKind::hangup(), 1),
        (SignalKind::interrupt(), 2),
    ] {
        let (mut told, terminal) = (signal(kind).map_err(Failure::SetUp)?, terminal.clone());
        tokio::spawn(async move {
            told.recv().await;
            terminal.restore();
            std::process::exit(128 + number);
        });
    }
    drop(guard);
    resize(pen);
    let pen = pen.clone();
    cri.runtime().spawn(async move {
        while changed.recv().await.is_some() {
            resize(&pen);
        }
    });
    Ok(())
}

fn resize(pen: &Pen) {
    if let Some((columns, rows)) = Terminal::size() {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        // Where the session has ended, the receiving side says so.
        let _ = pen.data(RESIZE, size.as_bytes());
    }
}

/// Passes standard input on until it ends, the session does, or the operator leaves.
fn forward(pen: &Pen, mut leave: Leave, left: &AtomicBool) {
    let (mut stdin, mut buffer) = (io::stdin().lock(), vec![0; 16 << 10]);
    loop {
        match stdin.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => {
                let _ = pen.end(STDIN);
                return;
            }
            Ok(count) => {
                let (bytes, leaves) = leave.filter(&buffer[..count]);
                if pen.data(STDIN, &bytes).is_err() {
                    return;
                }
                if leaves {
                    left.store(true, Ordering::Relaxed);
                    pen.close();
                    return;
                }
            }
        }
    }
}

/// Finds ctrl-p ctrl-q.
struct Leave {
    armed: bool,
    /// The last byte was ctrl-p, which is held back.
    prefix: bool,
}

impl Leave {
    /// What is to be passed on, and whether the operator leaves.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        const CTRL_P: u8 = 0x10;
        const CTRL_Q: u8 = 0x11;
        if !self.armed {
            return (bytes.to_vec(), false);
        }
        let mut out = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            match (std::mem::take(&mut self.prefix), *byte) {
                (true, CTRL_Q) => return (out, true),
                (false, CTRL_P) => self.prefix = true,
                (held, byte) => {
                    out.extend(held.then_some(CTRL_P));
                    out.push(byte);
                }
            }
        }
        (out, false)
    }
}

/// Writes what comes, and returns the last word.
fn receive(session: &mut Session, mut out: impl Write, mut err: impl Write) -> Result<Vec<u8>, Failure> {
    let mut last = Vec::new();
    loop {
        let (to, bytes): (&mut dyn Write, _) = match session.receive()? {
            Message::Data(STDOUT, bytes) => (&mut out, bytes),
            Message::Data(STDERR, bytes) => (&mut err, bytes),
            Message::Data(ERROR, bytes) => {
                last.extend_from_slice(&bytes);
                last.truncate(LAST_WORD);
                continue;
            }
            Message::Data(..) | Message::End(_) | Message::Reset(_) => continue,
            Message::Closed(_) => return Ok(last),
        };
        to.write_all(&bytes)
            .and_then(|()| to.flush())
            .map_err(Failure::Output)?;
    }
}

/// The exit code of a session's last word, a Status object of the Kubernetes API.
fn outcome(last: &[u8]) -> Result<u8, Failure> {
    let status: Value = serde_json::from_slice(last).unwrap_or_default();
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let cause = causes.into_iter().flatten().find(|c| c["reason"] == "ExitCode");
    let code = cause.and_then(|c| c["message"].as_str()?.parse::<i32>().ok());
    match (code, status["message"].as_str()) {
        (Some(code), _) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Some(message)) => Err(Failure::Ended(message.to_owned())),
        (None, None) => Err(Failure::Ended(
            "podd ended the session without a status".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_has_the_exit_code() {
        let code = |text: &str| outcome(text.as_bytes()).map_err(|e| e.to_string());
        assert_eq!(code(r#"{"status":"Success"}"#), Ok(0));
        let failed = |code: &str| {
            format!(
                r#"{{"status":"Failure","details":{{"causes":[{{"reason":"ExitCode","message":"{code}"}}]}}}}"#
            )
        };
        assert_eq!(code(&failed("3")), Ok(3));
        assert_eq!(code(&failed("137")), Ok(137));
        assert_eq!(code(&failed("-1")), Ok(255));
        let refused = code(r#"{"status":"Failure","message":"no such\u001b file"}"#);
        assert_eq!(refused, Err("no such\\u{1b} file".to_owned()));
        assert!(code("").unwrap_err().contains("without a status"));
    }

    #[test]
    fn ctrl_p_ctrl_q_leaves() {
        let mut leave = Leave {
            armed: true,
            prefix: false,
        };
        assert_eq!(leave.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(leave.filter(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(leave.filter(b"\x10\x10x"), (b"\x10\x10x".to_vec(), false));
        assert_eq!(leave.filter(b"c\x10"), (b"c".to_vec(), false));
        assert_eq!(leave.filter(b"\x11d"), (Vec::new(), true));
        let mut unarmed = Leave {
            armed: false,
            prefix: false,
        };
        assert_eq!(unarmed.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
