//! Why a command of the tool failed, in one sentence for the operator.

use std::io;
use std::path::PathBuf;

use podd_client::SessionError;
use tonic::{Code, Status};

use super::{text, time};
use crate::config::ConfigError;

/// Exit code of `exec` and `attach` where not the command but podd failed, as of `env` and `timeout`.
const NOT_THE_COMMAND: u8 = 125;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration, which names the socket.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody listens.
    #[error("no podd answers on {}: start it with `systemctl start podd` or `podd serve`", .0.display())]
    NoDaemon(PathBuf),
    /// The socket is not for everyone.
    #[error("may not use {}: run as root", .0.display())]
    NotAllowed(PathBuf),
    /// The socket is there and cannot be used.
    #[error("cannot connect to {on}: {source}", on = socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// podd answers with an error.
    #[error("{call}: {said}", said = text::safe(message))]
    Call {
        /// The RPC.
        call: &'static str,
        /// The code.
        code: Code,
        /// What it says.
        message: String,
    },
    /// Nothing has this id or name.
    #[error("no {kind} has the id or name {word:?}: `{list}` lists them")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// What the operator wrote.
        word: String,
        /// The command that lists them.
        list: &'static str,
    },
    /// Several have it.
    #[error("{word:?} may be any of {all}", all = candidates.join(", "))]
    Ambiguous {
        /// What the operator wrote.
        word: String,
        /// All that match, made safe.
        candidates: Vec<String>,
    },
    /// What was asked for needs a process.
    #[error("{name} has no process: it is {state}")]
    NoProcess {
        /// The container or pod, made safe.
        name: String,
        /// Its state.
        state: &'static str,
    },
    /// A label filter is not one.
    #[error("{0:?} is no label: write key=value")]
    Label(String),
    /// A time is not one.
    #[error(transparent)]
    Time(#[from] time::NoTime),
    /// A container without a log.
    #[error("{0} has no log: its pod was created without a log directory")]
    NoLog(String),
    /// A file, in the kernel's words.
    #[error("cannot {verb} {on}: {source}", on = text::safe(&path.display().to_string()))]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that is read for a container blocks.
    #[error("the kernel does not answer within {seconds} s when asked for {what}")]
    Slow {
        /// What was read.
        what: String,
        /// How long the tool has waited.
        seconds: u64,
    },
    /// A terminal was asked for where there is none.
    #[error("-t needs a terminal as standard input")]
    NoTerminal,
    /// The terminal cannot be set up.
    #[error("cannot set up the terminal: {0}")]
    Terminal(io::Error),
    /// A session at a streaming URL.
    #[error("the session failed: {}", whole(.0))]
    Session(SessionError),
    /// A session ended with words instead of an exit code.
    #[error("{}", text::safe(.0))]
    Ended(String),
    /// The tool's own output.
    #[error("cannot write the result: {0}")]
    Output(io::Error),
    /// The event loop or a signal handler.
    #[error("cannot set up the tool: {0}")]
    SetUp(io::Error),
}

/// An error with its cause, which is not passed on as one.
fn whole(e: &SessionError) -> String {
    let cause = std::error::Error::source(e);
    cause.map_or_else(|| e.to_string(), |cause| format!("{e}: {cause}"))
}

impl From<SessionError> for Failure {
    fn from(e: SessionError) -> Self {
        Self::Session(e)
    }
}

impl Failure {
    /// What podd answered to a call.
    #[must_use]
    pub fn call(call: &'static str, status: &Status) -> Self {
        Self::Call {
            call,
            code: status.code(),
            message: status.message().to_owned(),
        }
    }

    /// Whether podd does not know (any more) what was asked about.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(
            self,
            Self::Call {
                code: Code::NotFound,
                ..
            }
        )
    }

    /// Whether only the reader of the output has gone, as `head` does.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A failure and the exit code that tells of it.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// The exit code.
    pub code: u8,
}

impl Failed {
    /// A failure of a command that passes on another's exit code, or not.
    #[must_use]
    pub fn new(failure: Failure, passes_code: bool) -> Self {
        let code = if passes_code { NOT_THE_COMMAND } else { 1 };
        Self { failure, code }
    }
}
