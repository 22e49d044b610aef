//! The tool: what an operator asks of the pods and containers on a node, as further commands of `podd`.
//!
//! A client of the CRI socket, like crictl, and beside that a reader of `/proc`, cgroups and log files. One file per
//! noun or command. The daemon knows nothing of it. Whatever a container can write – names, command lines, logs – is
//! hostile: bounded in size and time, and shown with everything a terminal might obey as an escape.

mod cri;
mod events;
mod failure;
mod images;
mod info;
mod inspect;
mod log_file;
mod logs;
pub mod manual;
mod node;
mod pods;
mod processes;
mod procfs;
mod ps;
mod screen;
mod select;
mod session;
mod stats;
mod table;
mod terminal;
mod text;
mod time;
mod top;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub use failure::{Failed, Failure};

use crate::config::Config;
use cri::Cri;
use screen::Screen;

// A command, and which podd it is for.
#[expect(missing_docs, reason = "clap would show it as what every command does")]
#[derive(Debug, Args)]
pub struct Of<T: Args> {
    #[command(flatten)]
    what: T,
    /// The daemon's socket, instead of the configured one.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Configuration file that names the socket [default: /etc/podd/config.toml where it exists].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl<T: Args> Of<T> {
    fn with<R>(self, run: impl FnOnce(T, &Cri, Screen) -> Result<R, Failure>) -> Result<R, Failure> {
        let socket = match self.socket {
            Some(socket) => socket,
            None => Config::load(self.config.as_deref())?.socket,
        };
        run(self.what, &Cri::connect(&socket)?, Screen::look())
    }
}

/// What the tool can do.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// List containers: those that run, unless asked for others.
    Ps(Of<ps::Ps>),
    /// Show pods as a tree, with their containers and processes.
    Pods(Of<pods::Pods>),
    /// Show the processes of a container.
    Top(Of<top::Top>),
    /// Show a container or pod: what was asked for, and what the kernel has.
    Inspect(Of<inspect::Inspect>),
    /// Show what running containers use, again and again.
    Stats(Of<stats::Stats>),
    /// Print the log of a container: its standard output and standard error to podd's own.
    Logs(Of<logs::Logs>),
    /// Run a command in a container; its exit code is podd's own.
    Exec(Of<session::Exec>),
    /// Join the standard streams of a container's first process; ctrl-p ctrl-q leaves it.
    Attach(Of<session::Attach>),
    /// Show what happens to pods and containers, until interrupted.
    Events(Of<events::Events>),
    /// List images of the local store.
    Images(Of<images::Images>),
    /// Show the daemon's version, health and features.
    Info(Of<info::Info>),
}

impl Command {
    /// Does it, and returns the exit code.
    ///
    /// # Errors
    /// What went wrong, and the exit code that tells of it.
    pub fn run(self) -> Result<u8, Failed> {
        let passes_code = matches!(self, Self::Exec(_) | Self::Attach(_));
        match self.perform() {
            Err(failure) if failure.is_broken_pipe() => Ok(0),
            done => done.map_err(|failure| Failed::new(failure, passes_code)),
        }
    }

    fn perform(self) -> Result<u8, Failure> {
        match self {
            Self::Ps(asked) => asked.with(|ps, cri, screen| ps.run(cri, screen)),
            Self::Pods(asked) => asked.with(|pods, cri, screen| pods.run(cri, screen)),
            Self::Top(asked) => asked.with(|top, cri, screen| top.run(cri, screen)),
            Self::Inspect(asked) => asked.with(|inspect, cri, screen| inspect.run(cri, screen)),
            Self::Stats(asked) => asked.with(|stats, cri, screen| stats.run(cri, screen)),
            Self::Logs(asked) => asked.with(|logs, cri, _| logs.run(cri)),
            Self::Events(asked) => asked.with(|events, cri, screen| events.run(cri, screen)),
            Self::Images(asked) => asked.with(|images, cri, screen| images.run(cri, screen)),
            Self::Info(asked) => asked.with(|info, cri, screen| info.run(cri, screen)),
            Self::Exec(asked) => return asked.with(|exec, cri, _| exec.run(cri)),
            Self::Attach(asked) => return asked.with(|attach, cri, _| attach.run(cri)),
        }?;
        Ok(0)
    }
}
