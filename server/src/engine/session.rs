//! What Exec and Attach do on the host: a process' standard streams as podd holds them.
//!
//! podinit passes the ends of pipes and terminals to podd, which moves the bytes: podinit's memory does not grow
//! with what people do in a shell. When podd dies its ends are closed with it, as if the client had gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::BytesMut;
use runtime_core::plan::TerminalSize;
use runtime_core::pod::{Request, Role, TaskPhase, TaskState, attach_flag, launch_flag};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::exec::{Launched, Pipe, Prepared, Registered, code, launch};
use super::keeper::{Keeper, container_handle};
use super::native::NativeError;
use super::{Engine, EngineError, blocking};
use crate::state::store::Container;

/// Which standard streams are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output, or the terminal's.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// A terminal in place of pipes.
    pub terminal: bool,
}

/// podd's ends of a process' standard streams.
#[derive(Debug)]
pub struct Stdio {
    /// Where its input is written; closed when dropped.
    pub stdin: Option<Sink>,
    /// Its output.
    pub stdout: Option<Source>,
    /// Its standard error.
    pub stderr: Option<Source>,
    /// Its terminal, for changes of size.
    pub terminal: Option<Arc<Terminal>>,
}

/// The master of a terminal.
#[derive(Debug)]
pub struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    #[expect(
        deprecated,
        reason = "the safe constructor; an OwnedFd keeps its number, as it demands"
    )]
    fn new(master: OwnedFd) -> io::Result<Arc<Self>> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Arc::new(Self(AsyncFd::new(master)?)))
    }

    /// Changes the size, which its foreground processes are told by SIGWINCH.
    pub fn resize(&self, size: TerminalSize) {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // A terminal that has hung up has no size.
        let _ = tcsetwinsize(self.0.get_ref(), size);
    }

    async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let filled = buffer.len();
        buffer.resize(buffer.capacity(), 0);
        let read = loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer[filled..])?)) {
                Ok(done) => break done,
                Err(_would_block) => {}
            }
        };
        // A terminal reports the end of its last user as EIO.
        let length = match read {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(0),
            other => other,
        };
        buffer.truncate(filled + *length.as_ref().unwrap_or(&0));
        length
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }
}

/// Where a process' output is read.
#[derive(Debug)]
pub enum Source {
    /// A pipe.
    Pipe(pipe::Receiver),
    /// A terminal.
    Terminal(Arc<Terminal>),
}

impl Source {
    /// Appends what there is to the spare room of `buffer`; 0 at the end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read_buf(buffer).await,
            Self::Terminal(terminal) => terminal.read(buffer).await,
        }
    }
}

/// Where a process' input is written.
#[derive(Debug)]
pub enum Sink {
    /// A pipe.
    Pipe(pipe::Sender),
    /// A terminal.
    Terminal(Arc<Terminal>),
}

impl Sink {
    /// Writes all of it, as fast as the process reads.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Terminal(terminal) => terminal.write_all(bytes).await,
        }
    }
}

/// The end of a command that is still to come.
#[derive(Debug)]
pub struct Exited {
    exited: oneshot::Receiver<TaskState>,
    _registered: Registered,
}

impl Exited {
    /// Waits for the end: exit code, or 128 plus the signal.
    ///
    /// # Errors
    /// podinit died first.
    pub async fn code(self) -> Result<i32, EngineError> {
        let state = self.exited.await.map_err(|_| NativeError::PodinitGone)?;
        Ok(code(state.phase))
    }
}

/// Starts a command in a running container for a client that is connected; its terminal, where one is wanted, has
/// this size from the beginning.
///
/// # Errors
/// The command cannot be executed.
pub async fn exec(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    argv: Vec<String>,
    wanted: Wanted,
    size: TerminalSize,
) -> Result<(Stdio, Exited), EngineError> {
    let (prepare, within) = (Arc::clone(engine), Arc::clone(container));
    let (prepared, pipes) = blocking("Exec", move || -> Result<_, EngineError> {
        let prepared = Prepared::new(&prepare, &within, argv, wanted.terminal.then_some(size))?;
        Ok((prepared, Pipes::new(wanted)?))
    })
    .await?;
    let flags = if wanted.terminal { launch_flag::TTY } else { 0 };
    let launched = launch(engine, container, &prepared, flags, &pipes.theirs()).await?;
    let Launched {
        exited,
        registered,
        mut fds,
        ..
    } = launched;
    let watch = |source| NativeError::Kernel {
        operation: "watch the command's streams",
        source,
    };
    let stdio = if wanted.terminal {
        terminal_stdio(fds.pop(), wanted).map_err(watch)?
    } else {
        pipes.into_stdio().map_err(watch)?
    };
    let exited = Exited {
        exited,
        _registered: registered,
    };
    Ok((stdio, exited))
}

/// The pipes of a command without a terminal; streams that are not wanted are /dev/null.
struct Pipes {
    stdin: Option<Pipe>,
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
}

impl Pipes {
    fn new(wanted: Wanted) -> Result<Self, NativeError> {
        let piped = |asked: bool| asked && !wanted.terminal;
        Ok(Self {
            stdin: piped(wanted.stdin).then(Pipe::input).transpose()?,
            stdout: piped(wanted.stdout).then(Pipe::output).transpose()?,
            stderr: piped(wanted.stderr).then(Pipe::output).transpose()?,
        })
    }

    fn theirs(&self) -> Vec<(Role, BorrowedFd<'_>)> {
        let all = [
            (Role::Stdin, &self.stdin),
            (Role::Stdout, &self.stdout),
            (Role::Stderr, &self.stderr),
        ];
        all.iter()
            .filter_map(|(role, pipe)| Some((*role, pipe.as_ref()?.theirs.as_fd())))
            .collect()
    }

    fn into_stdio(self) -> io::Result<Stdio> {
        let source = |pipe: Pipe| pipe.into_reader().map(Source::Pipe);
        Ok(Stdio {
            stdin: self
                .stdin
                .map(|pipe| pipe.into_writer().map(Sink::Pipe))
                .transpose()?,
            stdout: self.stdout.map(source).transpose()?,
            stderr: self.stderr.map(source).transpose()?,
            terminal: None,
        })
    }
}

fn terminal_stdio(master: Option<OwnedFd>, wanted: Wanted) -> io::Result<Stdio> {
    let terminal = Terminal::new(master.ok_or(io::ErrorKind::NotFound)?)?;
    Ok(Stdio {
        stdin: wanted.stdin.then(|| Sink::Terminal(Arc::clone(&terminal))),
        // Read also when nobody looks, so that the command never waits for it.
        stdout: Some(Source::Terminal(Arc::clone(&terminal))),
        stderr: None,
        terminal: Some(terminal),
    })
}

/// Joins a running container's output, from the next byte on, and its input.
///
/// # Errors
/// podinit is gone, too old, or has as many clients attached as it takes.
pub async fn attach(
    engine: &Engine,
    container: &Container,
    wanted: Wanted,
) -> Result<(Stdio, Attached), EngineError> {
    let keeper = engine.native.keeper(&container.record.pod)?;
    let handle = container_handle(container.record.handle);
    let config = &container.config;
    // The end of standard output tells the container's end also to a client that only writes.
    let stdout = Pipe::output()?;
    let stderr = (wanted.stderr && !config.tty).then(Pipe::output).transpose()?;
    let mut pipes = vec![(Role::Stdout, stdout.theirs.as_fd())];
    pipes.extend(stderr.iter().map(|pipe| (Role::Stderr, pipe.theirs.as_fd())));
    let failed = |source| NativeError::Kernel {
        operation: "prepare the pipes of a client",
        source,
    };
    for (_, pipe) in &pipes {
        rustix::io::ioctl_fionbio(pipe, true).map_err(|errno| failed(errno.into()))?;
    }
    let (roles, fds): (Vec<Role>, Vec<BorrowedFd<'_>>) = pipes.into_iter().unzip();
    let once = if config.stdin_once {
        attach_flag::TAKE_INPUT
    } else {
        0
    };
    // The terminal also for a client that only changes its size.
    let flags = if wanted.stdin || config.tty {
        attach_flag::INPUT | once
    } else {
        0
    };
    let mut reply = keeper
        .call(handle, Request::Attach { flags, roles }, &fds)
        .await?;
    let input = reply.fds.pop();
    let (stdin, terminal) = match input {
        Some(master) if config.tty => {
            let terminal = Terminal::new(master).map_err(failed)?;
            let sink = wanted.stdin.then(|| Sink::Terminal(Arc::clone(&terminal)));
            (sink, Some(terminal))
        }
        Some(pipe) => {
            let sender = pipe::Sender::from_owned_fd(pipe).map_err(failed)?;
            (Some(Sink::Pipe(sender)), None)
        }
        None => (None, None),
    };
    let source = |pipe: Pipe| pipe.into_reader().map(Source::Pipe).map_err(failed);
    let stdio = Stdio {
        stdin,
        stdout: Some(source(stdout)?),
        stderr: stderr.map(source).transpose()?,
        terminal,
    };
    Ok((stdio, Attached { keeper, handle }))
}

/// A container that a client is attached to.
#[derive(Debug)]
pub struct Attached {
    keeper: Arc<Keeper>,
    handle: u32,
}

impl Attached {
    /// Whether the container still runs, asked when its output has ended for this client.
    ///
    /// # Errors
    /// podinit is gone.
    pub async fn runs(&self) -> Result<bool, EngineError> {
        let tasks = self.keeper.tasks().await?;
        let own = tasks.iter().find(|task| task.handle == self.handle);
        Ok(own.is_some_and(|task| task.phase == TaskPhase::Running))
    }
}
