//! The connection to one podinit: requests that wait for their reply, and what podinit tells by itself.
//!
//! Owns the socket and who waits on it; knows handles and no containers.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime_core::pod::{self, Answer, Received, Report, Request, RequestFrame, TaskState};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{oneshot, watch};

use super::native::NativeError;
use crate::model::ContainerId;
use crate::state::record::ProcessRef;

/// Handle of the pod's own task: its namespaces.
pub const POD_HANDLE: u32 = 0;

/// Handles of execs begin here; podd chooses them anew after a restart, above those that still run.
const FIRST_EXEC: u32 = 0x8000_0000;

/// How long podinit may take to answer. Its loop waits for nothing: one that hangs must not hang podd.
const ANSWER: Duration = Duration::from_secs(10);

/// The same for starting a process, which waits for a stage; callers may have less patience.
const LAUNCH: Duration = Duration::from_secs(300);

/// The number of a new container, from the random beginning of its id: podinit refuses one that it knows.
#[must_use]
pub fn number_of(id: &ContainerId) -> u32 {
    let beginning = id.as_str().get(..8).unwrap_or_default();
    let random = u32::from_str_radix(beginning, 16).unwrap_or_default();
    // Below the handles of execs, which begin with the upper half.
    (random >> 1) % (FIRST_EXEC - 1)
}

/// How podinit knows a container.
#[must_use]
pub fn container_handle(number: u32) -> u32 {
    number + 1
}

/// The number of the container that podinit knows by `handle`.
#[must_use]
pub fn container_number(handle: u32) -> Option<u32> {
    (handle != POD_HANDLE && handle < FIRST_EXEC).then(|| handle - 1)
}

/// The answer to a request that worked.
#[derive(Debug)]
pub struct Reply {
    /// What the wire says of the kind of request.
    pub body: Vec<u8>,
    /// The fds that came with it.
    pub fds: Vec<OwnedFd>,
}

#[derive(Debug)]
struct RawReply {
    errno: u32,
    reply: Reply,
}

/// One podinit.
#[derive(Debug)]
pub struct Keeper {
    /// Of sequenced packets; tokio has no type of its own for them, and this one waits for any socket.
    socket: UnixDatagram,
    pidfd: OwnedFd,
    /// Its process, for the pod's record.
    pub process: ProcessRef,
    sequence: AtomicU32,
    next_exec: AtomicU32,
    pending: Mutex<Option<HashMap<u32, oneshot::Sender<RawReply>>>>,
    execs: Mutex<HashMap<u32, oneshot::Sender<TaskState>>>,
    gone: watch::Sender<bool>,
}

impl Keeper {
    /// Takes over a connected socket. [`Keeper::listen`] must run for replies to come.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub fn new(socket: OwnedFd, pidfd: OwnedFd, process: ProcessRef) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            socket: UnixDatagram::from_std(socket.into())?,
            pidfd,
            process,
            sequence: AtomicU32::new(0),
            next_exec: AtomicU32::new(FIRST_EXEC),
            pending: Mutex::new(Some(HashMap::new())),
            execs: Mutex::default(),
            gone: watch::Sender::new(false),
        }))
    }

    /// Reads what podinit sends until it closes the connection: replies go to who waits for them, exits of
    /// execs to their execs, all other exits to `exited`.
    pub async fn listen(&self, exited: impl Fn(TaskState)) {
        while self.socket.readable().await.is_ok() {
            match self
                .socket
                .try_io(Interest::READABLE, || pod::receive(&self.socket))
            {
                Ok(Some(received)) => self.dispatch(received, &exited),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => break,
            }
        }
        // Whoever waits, waits in vain.
        lock(&self.pending).take();
        lock(&self.execs).clear();
        self.gone.send_replace(true);
    }

    /// Waits until podinit has closed the connection: the pod was stopped, or is lost.
    pub async fn gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    fn dispatch(&self, received: Received, exited: &impl Fn(TaskState)) {
        match received.answer {
            Answer::Reply {
                sequence,
                errno,
                body,
            } => {
                let waiting = lock(&self.pending)
                    .as_mut()
                    .and_then(|pending| pending.remove(&sequence));
                if let Some(waiting) = waiting {
                    let _ = waiting.send(RawReply {
                        errno,
                        reply: Reply {
                            body,
                            fds: received.fds,
                        },
                    });
                }
            }
            Answer::Exited(state) if state.handle >= FIRST_EXEC => {
                self.raise_execs_above(state.handle);
                if let Some(waiting) = lock(&self.execs).remove(&state.handle) {
                    let _ = waiting.send(state);
                }
            }
            Answer::Exited(state) => exited(state),
        }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// podinit is gone, or it refused: [`NativeError::Stage`] when a stage did, [`NativeError::Podinit`] otherwise.
    pub async fn call(
        &self,
        handle: u32,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, NativeError> {
        let patience = if matches!(request, Request::Launch { .. }) {
            LAUNCH
        } else {
            ANSWER
        };
        self.call_within(patience, handle, request, fds).await
    }

    /// Opens a gate behind which hooks may take so much `longer`.
    ///
    /// # Errors
    /// As for [`Keeper::call`].
    pub async fn open_gate(&self, handle: u32, longer: Duration) -> Result<Reply, NativeError> {
        self.call_within(ANSWER.saturating_add(longer), handle, Request::Start, &[])
            .await
    }

    async fn call_within(
        &self,
        patience: Duration,
        handle: u32,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, NativeError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let operation = name(&request);
        let (sender, receiver) = oneshot::channel();
        let waiting = lock(&self.pending)
            .as_mut()
            .map(|pending| pending.insert(sequence, sender));
        waiting.ok_or(NativeError::PodinitGone)?;
        let _forget = Forget {
            keeper: self,
            sequence,
        };
        let frame = RequestFrame {
            sequence,
            handle,
            request,
        };
        let exchange = async {
            self.send(&frame, fds).await?;
            receiver.await.map_err(|_| NativeError::PodinitGone)
        };
        let replied = tokio::time::timeout(patience, exchange).await;
        let silent = |_| NativeError::PodinitSilent {
            operation,
            waited: patience,
        };
        let RawReply { errno, reply } = replied.map_err(silent)??;
        if errno == 0 {
            return Ok(reply);
        }
        match Report::decode(&reply.body) {
            Some(Report::Failed(failure)) => Err(NativeError::Stage(failure)),
            _ => Err(NativeError::Podinit {
                operation,
                source: io::Error::from_raw_os_error(errno.cast_signed()),
            }),
        }
    }

    async fn send(&self, frame: &RequestFrame, fds: &[BorrowedFd<'_>]) -> Result<(), NativeError> {
        loop {
            match self
                .socket
                .try_io(Interest::WRITABLE, || pod::send(&self.socket, frame, fds))
            {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.socket
                        .writable()
                        .await
                        .map_err(|_| NativeError::PodinitGone)?;
                }
                Err(_) => return Err(NativeError::PodinitGone),
            }
        }
    }

    /// A fresh handle for an exec, and where its exit will be told.
    pub fn register_exec(&self) -> (u32, oneshot::Receiver<TaskState>) {
        let handle = self.next_exec.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.execs).insert(handle, sender);
        (handle, receiver)
    }

    /// Forgets an exec whose exit nobody waits for any more.
    pub fn forget_exec(&self, handle: u32) {
        lock(&self.execs).remove(&handle);
    }

    fn raise_execs_above(&self, handle: u32) {
        self.next_exec
            .fetch_max(handle.saturating_add(1), Ordering::Relaxed);
    }

    /// Every task that podinit has.
    ///
    /// # Errors
    /// As for [`Keeper::call`].
    pub async fn tasks(&self) -> Result<Vec<TaskState>, NativeError> {
        let mut tasks: Vec<TaskState> = Vec::new();
        loop {
            let above = tasks.last().map_or(POD_HANDLE, |last| last.handle);
            let page = self.call(above, Request::List, &[]).await?.body;
            let count = tasks.len();
            tasks.extend(page.chunks_exact(TaskState::SIZE).filter_map(TaskState::decode));
            if tasks.len() == count {
                break;
            }
        }
        if let Some(last) = tasks.last().filter(|last| last.handle >= FIRST_EXEC) {
            self.raise_execs_above(last.handle);
        }
        Ok(tasks)
    }

    /// Kills podinit and waits until it is gone; with it go its namespaces and connections. Blocks.
    ///
    /// # Errors
    /// It does not die in time.
    pub fn kill(&self, wait: Duration) -> io::Result<()> {
        use rustix::process::{Signal, pidfd_send_signal};
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.wait(wait)
    }

    /// Waits until podinit has ended, and reaps it where it is a child of this podd. Blocks.
    ///
    /// # Errors
    /// `TimedOut`.
    pub fn wait(&self, wait: Duration) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec::try_from(wait).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.reap();
        Ok(())
    }

    /// A podinit of an earlier podd is a child of init, which reaps it.
    fn reap(&self) {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let _ = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }
}

/// Forgets who waited for a reply, also when the waiting future is dropped.
struct Forget<'a> {
    keeper: &'a Keeper,
    sequence: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(pending) = lock(&self.keeper.pending).as_mut() {
            pending.remove(&self.sequence);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The request in words, for errors.
fn name(request: &Request) -> &'static str {
    match request {
        Request::Hello => "answer",
        Request::Launch { .. } => "start a process",
        Request::Start => "open the start gate",
        Request::Signal(_) => "send a signal",
        Request::Reopen => "reopen the log",
        Request::Resize { .. } => "resize the terminal",
        Request::Forget => "forget an exited process",
        Request::List => "list its processes",
        Request::Namespaces => "hand out the namespaces",
        Request::Quit => "end",
        Request::Attach { .. } => "attach a client",
    }
}
