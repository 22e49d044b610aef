//! The frozen protocol between podd and podinit: fixed little-endian frames over `SOCK_SEQPACKET`.
//!
//! ```text
//! frame   := version:u16 kind:u16 sequence:u32 handle:u32 value:u32 body     4096 bytes at most
//! request    podd -> podinit, kind below 0x4000
//! event      podinit -> podd, kind 0x4000 and up, sequence 0
//! reply      podinit -> podd, kind of the request | 0x8000, its sequence, value = errno or 0
//! ```
//!
//! A *handle* is the number by which podd names a task (a container, an exec, the pod's namespaces). An unknown
//! kind is answered with `ENOSYS`, so that a newer podd can ask an old podinit what it knows. Frames only ever
//! gain kinds and trailing body bytes.

use alloc::vec::Vec;

/// Version in every frame.
pub const VERSION: u16 = 1;
/// The largest frame.
pub const MAX_FRAME: usize = 4096;
const HEADER: usize = 16;
const REPLY: u16 = 0x8000;
const EVENT_EXITED: u16 = 0x4001;

/// Fd numbers of a stage (docs/process-model.md).
pub mod slot {
    /// Sync socket of the stage.
    pub const SYNC: u32 = 3;
    /// The plan.
    pub const PLAN: u32 = 4;
    /// Directory of the container's cgroup.
    pub const CGROUP: u32 = 5;
    /// The pod's network namespace.
    pub const NET: u32 = 6;
    /// The pod's IPC namespace.
    pub const IPC: u32 = 7;
    /// The pod's UTS namespace.
    pub const UTS: u32 = 8;
    /// The pod's user namespace.
    pub const USER: u32 = 9;
    /// The pod's pid namespace.
    pub const PID: u32 = 10;
    /// Pidfd of the container that an exec joins.
    pub const TARGET: u32 = 11;
    /// First mount of the plan.
    pub const FIRST_MOUNT: u32 = 12;
}

/// What an fd of a launch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// The stage program.
    Stage = 0,
    /// Its plan.
    Plan = 1,
    /// Directory of the cgroup to start in.
    Cgroup = 2,
    /// The container's log file.
    Log = 3,
    /// Directory for the exit record.
    Record = 4,
    /// Standard input of an exec.
    Stdin = 5,
    /// Standard output of an exec.
    Stdout = 6,
    /// Standard error of an exec.
    Stderr = 7,
    /// A mount; the nth of them gets slot `FIRST_MOUNT + n`.
    Mount = 8,
}

impl Role {
    fn from_byte(byte: u8) -> Option<Self> {
        use Role::{Cgroup, Log, Mount, Plan, Record, Stage, Stderr, Stdin, Stdout};
        let all = [Stage, Plan, Cgroup, Log, Record, Stdin, Stdout, Stderr, Mount];
        all.into_iter().find(|role| *role as u8 == byte)
    }
}

/// What a launched task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskKind {
    /// The pod's namespaces. The reply comes with the network namespace fd if there is one.
    Pod = 1,
    /// A container: it waits at its gate, its output goes to its log, its exit is recorded.
    Container = 2,
    /// A process in a running container, with stdio of podd's choosing.
    Exec = 3,
}

/// Bits of [`Request::Launch`]'s `flags`.
pub mod launch_flag {
    /// The pod has a network namespace of its own.
    pub const NET: u32 = 1;
    /// The pod has an IPC namespace of its own.
    pub const IPC: u32 = 2;
    /// The pod has a UTS namespace of its own.
    pub const UTS: u32 = 4;
    /// The pod has a user namespace of its own.
    pub const USER: u32 = 8;
    /// The pod has a shared pid namespace: its task stays, as pid 1.
    pub const PID: u32 = 16;
    /// The container's standard input stays open for clients to attach.
    pub const STDIN: u32 = 32;
    /// The task has a terminal.
    pub const TTY: u32 = 64;
}

/// Bits of [`Request::Attach`]'s `flags`.
pub mod attach_flag {
    /// The reply brings the container's input: its terminal, or the pipe that it reads.
    pub const INPUT: u32 = 1;
    /// podinit gives its own end of the pipe away: the container reads end of file when podd closes it.
    pub const TAKE_INPUT: u32 = 2;
}

/// What podd asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Are you there? The reply's body is podinit's pid.
    Hello,
    /// Start a stage; the reply is its last report.
    Launch {
        /// What is started.
        kind: TaskKind,
        /// Bits of [`launch_flag`].
        flags: u32,
        /// Handle of the container that an exec joins, 0 otherwise.
        target: u32,
        /// What each fd of the frame is, in order.
        roles: Vec<Role>,
    },
    /// Open the gate. The reply's body is the start time in ns since 1970, or the stage's report of failure.
    Start,
    /// Send a signal to the task's first process.
    Signal(u32),
    /// Write the log to the file that comes with the frame from now on.
    Reopen,
    /// Change the size of the task's terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Drop an exited task. `EBUSY` while it runs.
    Forget,
    /// The tasks with a handle above the frame's, as many as fit: a body of [`TaskState`]s; value 0 at the end.
    List,
    /// The namespaces as fds, in the order net, ipc, uts, user, pid; the body has one `launch_flag` byte for each.
    Namespaces,
    /// End, if nothing runs.
    Quit,
    /// Copy what a container writes, from now on, to the pipes of the frame, which must not block. One that stays
    /// full for too long is closed; all are when the container ends. The reply has the input's fd, if there is one.
    Attach {
        /// Bits of [`attach_flag`].
        flags: u32,
        /// [`Role::Stdout`] or [`Role::Stderr`] for each pipe.
        roles: Vec<Role>,
    },
}

/// How a task is, in replies to `List` and in exit events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskState {
    /// Its handle.
    pub handle: u32,
    /// Its first process, 0 when there is none.
    pub pid: u32,
    /// Its phase.
    pub phase: TaskPhase,
    /// Start in ns since 1970, 0 if it never started.
    pub started: u64,
    /// End in ns since 1970, 0 if it has not ended.
    pub finished: u64,
}

/// Phase of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskPhase {
    /// Being set up, or waiting at the gate.
    Created,
    /// Running.
    Running,
    /// Ended with an exit status.
    Exited(u8),
    /// Ended by a signal.
    Killed(u8),
}

impl TaskState {
    /// Bytes of one state.
    pub const SIZE: usize = 32;

    /// Appends the state to a body.
    pub fn encode(&self, body: &mut Vec<u8>) {
        let (phase, status) = match self.phase {
            TaskPhase::Created => (1u32, 0),
            TaskPhase::Running => (2, 0),
            TaskPhase::Exited(status) => (3, status),
            TaskPhase::Killed(signal) => (4, signal),
        };
        for word in [self.handle, self.pid, phase, status.into()] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.extend_from_slice(&self.started.to_le_bytes());
        body.extend_from_slice(&self.finished.to_le_bytes());
    }

    /// The state in the first bytes of a body.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let word = |n: usize| Some(u32::from_le_bytes(body.get(n * 4..n * 4 + 4)?.try_into().ok()?));
        let time = |n: usize| Some(u64::from_le_bytes(body.get(n..n + 8)?.try_into().ok()?));
        let status = u8::try_from(word(3)?).ok()?;
        let phase = match word(2)? {
            1 => TaskPhase::Created,
            2 => TaskPhase::Running,
            3 => TaskPhase::Exited(status),
            4 => TaskPhase::Killed(status),
            _ => return None,
        };
        Some(Self {
            handle: word(0)?,
            pid: word(1)?,
            phase,
            started: time(16)?,
            finished: time(24)?,
        })
    }
}

/// A frame from podd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFrame {
    /// Number that the reply repeats; never 0.
    pub sequence: u32,
    /// The task it is about.
    pub handle: u32,
    /// What is asked.
    pub request: Request,
}

/// A frame from podinit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The answer to a request.
    Reply {
        /// Sequence of the request.
        sequence: u32,
        /// 0, or why it failed.
        errno: u32,
        /// What [`Request`] says of each kind.
        body: Vec<u8>,
    },
    /// A task ended. It was recorded on disk before.
    Exited(TaskState),
}

/// Why a frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not a frame of this protocol.
    Malformed,
    /// A kind this side does not know; the number is the sequence to answer.
    Unknown(u32),
}

fn frame(kind: u16, sequence: u32, handle: u32, value: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    for word in [sequence, handle, value] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

struct Parsed<'a> {
    kind: u16,
    sequence: u32,
    handle: u32,
    value: u32,
    body: &'a [u8],
}

fn parse(bytes: &[u8]) -> Option<Parsed<'_>> {
    let half = |n: usize| Some(u16::from_le_bytes(bytes.get(n..n + 2)?.try_into().ok()?));
    let word = |n: usize| Some(u32::from_le_bytes(bytes.get(n..n + 4)?.try_into().ok()?));
    if half(0)? != VERSION {
        return None;
    }
    Some(Parsed {
        kind: half(2)?,
        sequence: word(4)?,
        handle: word(8)?,
        value: word(12)?,
        body: bytes.get(16..)?,
    })
}

impl RequestFrame {
    /// The bytes of the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let (kind, value) = match &self.request {
            Request::Hello => (1, 0),
            Request::Launch {
                kind,
                flags,
                target,
                roles,
            } => {
                body.extend_from_slice(&flags.to_le_bytes());
                body.extend_from_slice(&target.to_le_bytes());
                body.extend(roles.iter().map(|role| *role as u8));
                (2, *kind as u32)
            }
            Request::Start => (3, 0),
            Request::Signal(signal) => (4, *signal),
            Request::Reopen => (5, 0),
            Request::Resize { rows, columns } => (6, u32::from(*rows) << 16 | u32::from(*columns)),
            Request::Forget => (7, 0),
            Request::List => (8, 0),
            Request::Namespaces => (9, 0),
            Request::Quit => (10, 0),
            Request::Attach { flags, roles } => {
                body.extend(roles.iter().map(|role| *role as u8));
                (11, *flags)
            }
        };
        frame(kind, self.sequence, self.handle, value, &body)
    }

    /// The request in `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        let Parsed {
            kind,
            sequence,
            handle,
            value,
            body,
        } = parse(bytes).ok_or(Refused::Malformed)?;
        let request = match kind {
            1 => Request::Hello,
            2 => launch(value, body).ok_or(Refused::Malformed)?,
            3 => Request::Start,
            4 => Request::Signal(value),
            5 => Request::Reopen,
            #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
            6 => Request::Resize {
                rows: (value >> 16) as u16,
                columns: value as u16,
            },
            7 => Request::Forget,
            8 => Request::List,
            9 => Request::Namespaces,
            10 => Request::Quit,
            11 => Request::Attach {
                flags: value,
                roles: roles(body).ok_or(Refused::Malformed)?,
            },
            _ => return Err(Refused::Unknown(sequence)),
        };
        Ok(Self {
            sequence,
            handle,
            request,
        })
    }
}

fn launch(kind: u32, body: &[u8]) -> Option<Request> {
    let kind = match kind {
        1 => TaskKind::Pod,
        2 => TaskKind::Container,
        3 => TaskKind::Exec,
        _ => return None,
    };
    let (flags, rest) = body.split_first_chunk::<4>()?;
    let (target, rest) = rest.split_first_chunk::<4>()?;
    Some(Request::Launch {
        kind,
        flags: u32::from_le_bytes(*flags),
        target: u32::from_le_bytes(*target),
        roles: roles(rest)?,
    })
}

fn roles(bytes: &[u8]) -> Option<Vec<Role>> {
    bytes.iter().map(|byte| Role::from_byte(*byte)).collect()
}

impl Answer {
    /// The bytes of the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Reply {
                sequence,
                errno,
                body,
            } => frame(REPLY, *sequence, 0, *errno, body),
            Self::Exited(state) => {
                let mut body = Vec::with_capacity(TaskState::SIZE);
                state.encode(&mut body);
                frame(EVENT_EXITED, 0, state.handle, 0, &body)
            }
        }
    }

    /// The answer in `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        let Parsed {
            kind,
            sequence,
            value,
            body,
            ..
        } = parse(bytes).ok_or(Refused::Malformed)?;
        match kind {
            REPLY => Ok(Self::Reply {
                sequence,
                errno: value,
                body: body.to_vec(),
            }),
            EVENT_EXITED => TaskState::decode(body)
                .map(Self::Exited)
                .ok_or(Refused::Malformed),
            _ => Err(Refused::Unknown(sequence)),
        }
    }
}

#[cfg(test)]
mod tests;
