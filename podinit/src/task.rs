//! One thing that podinit started: the pod's namespaces, a container, or an exec.

use crate::output::{Log, Output};
use alloc::vec::Vec;
use podinit::wire::{TaskKind, TaskPhase, TaskState};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, openat, renameat};
use rustix::time::{ClockId, clock_gettime};

/// Who waits for the answer to a request.
#[derive(Clone, Copy)]
pub struct Caller {
    /// Number of the connection.
    pub connection: u32,
    /// Sequence of the request.
    pub sequence: u32,
}

/// How far a task got; what a connection sees of it is [`TaskPhase`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The stage works.
    Staging,
    /// The stage waits at the gate.
    Gated,
    /// The gate is open, `execve` is not reported yet.
    Starting,
    /// The application runs, or the pod's pid 1.
    Running,
    /// The first process was reaped; its log and its exit record are still being written.
    Ending,
    /// Ended.
    Ended(TaskPhase),
}

pub struct Task {
    pub handle: u32,
    pub kind: TaskKind,
    pub flags: u32,
    pub phase: Phase,
    /// First process of the task; 0 until the stage reports it.
    pub pid: u32,
    pub pidfd: Option<OwnedFd>,
    /// The stage's outer process, which ends when it has cloned; 0 once it has ended.
    pub stage: u32,
    pub sync: Option<OwnedFd>,
    /// A report of Ready that overtook the one of Cloned: two processes write to the same socket.
    pub early: Option<Vec<u8>>,
    pub caller: Option<Caller>,
    /// Standard output and standard error; a terminal is in the first place.
    pub outputs: [Option<Output>; 2],
    /// Held open so that a container with `stdin` does not read end of file before anybody attached.
    pub stdin: Option<OwnedFd>,
    /// The terminal of a container for resizing, of an exec until podd has it.
    pub console: Option<OwnedFd>,
    pub log: Option<Log>,
    /// The file that the log goes on in.
    pub reopened: Option<OwnedFd>,
    pub record: Option<OwnedFd>,
    pub started: u64,
    pub finished: u64,
}

impl Task {
    /// Whether `pid` is its first process. A task that has ended has given its number back, and the kernel may have
    /// given it to another.
    pub fn begins_with(&self, pid: u32) -> bool {
        self.pid == pid && !self.is_reaped()
    }

    /// Whether its first process is no more.
    pub fn is_reaped(&self) -> bool {
        matches!(self.phase, Phase::Ending | Phase::Ended(_))
    }

    /// Whether its stage has not said yet which process is its first.
    pub fn is_nameless(&self) -> bool {
        self.begins_with(0)
    }

    /// The task as the wire shows it.
    pub fn state(&self) -> TaskState {
        let phase = match self.phase {
            Phase::Staging | Phase::Gated | Phase::Starting => TaskPhase::Created,
            Phase::Running | Phase::Ending => TaskPhase::Running,
            Phase::Ended(phase) => phase,
        };
        let pid = if self.is_reaped() { 0 } else { self.pid };
        TaskState {
            handle: self.handle,
            pid,
            phase,
            started: self.started,
            finished: self.finished,
        }
    }
}

/// Writes the exit record of a task, whole or not at all: `exited|killed STATUS STARTED FINISHED`, times in ns. A podd
/// that comes after both podd and podinit died finds it there.
pub fn record_exit(directory: &OwnedFd, phase: TaskPhase, started: u64, finished: u64) {
    let (word, status) = match phase {
        TaskPhase::Killed(signal) => ("killed", signal),
        TaskPhase::Exited(status) => ("exited", status),
        TaskPhase::Created | TaskPhase::Running => return,
    };
    let text = alloc::format!("{word} {status} {started} {finished}\n");
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    let written = openat(directory, c"exit.new", flags, Mode::from_raw_mode(0o600))
        .and_then(|file| rustix::io::write(&file, text.as_bytes()));
    if written == Ok(text.len()) {
        let _ = renameat(directory, c"exit.new", directory, c"exit");
    }
}

/// Now, in ns since 1970.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Time since boot in ns, for waits: the time of day may jump.
pub fn uptime() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
