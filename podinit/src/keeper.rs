//! The poll loop: connections from podd, signals, and the fds of every task. One turn handles what epoll names.

use crate::loan::{Loans, Work};
use crate::output::BUFFER;
use crate::task::{Caller, Phase, Task, now, record_exit};
use alloc::vec::Vec;
use podinit::report::{MAX_REPORT, Report};
use podinit::wire::{
    Answer, MAX_FRAME, Refused, Request, RequestFrame, TaskKind, TaskPhase, TaskState, launch_flag,
};
use rustix::event::epoll;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, Result, read};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Signal, WaitOptions, pidfd_send_signal, wait};
use sys::signal::{SignalSet, signalfd};

/// Most daemons connected at once: the one that is, and those that were and are not closed yet.
const CONNECTIONS: usize = 4;

/// What an epoll event is about; a number travels in the low byte of the event's data.
#[derive(Clone, Copy)]
pub enum Source {
    Listener,
    Signals,
    Connection,
    Sync,
    Stdout,
    Stderr,
    Client,
}

impl Source {
    /// The data of its events.
    pub fn data(self, number: u32) -> epoll::EventData {
        epoll::EventData::new_u64(u64::from(number) << 8 | self as u64)
    }
}

struct Connection {
    number: u32,
    socket: OwnedFd,
}

/// The pod's namespaces, as far as it has its own.
#[derive(Default)]
pub struct Namespaces {
    pub net: Option<OwnedFd>,
    pub ipc: Option<OwnedFd>,
    pub uts: Option<OwnedFd>,
    pub user: Option<OwnedFd>,
    pub pid: Option<OwnedFd>,
}

/// An ended process whose stage has not said yet that it exists.
struct Unclaimed {
    pid: u32,
    phase: TaskPhase,
    finished: u64,
}

pub struct Keeper {
    /// The same that the loop waits on.
    pub epoll: OwnedFd,
    listener: OwnedFd,
    signals: OwnedFd,
    connections: Vec<Connection>,
    next_connection: u32,
    unclaimed: Vec<Unclaimed>,
    pub buffer: Vec<u8>,
    pub tasks: Vec<Task>,
    pub namespaces: Namespaces,
    pub null: OwnedFd,
    pub loans: Loans,
    /// Counts how often a thread took over from one that hangs.
    pub turn: u32,
    /// Somebody who stops everything, such as a service manager at shutdown, has sent SIGTERM.
    leaving: bool,
    quit: bool,
}

/// An errno and a body: the content of a reply.
type Outcome = (u32, Vec<u8>);

pub fn failed(errno: Errno) -> Outcome {
    (errno.raw_os_error().unsigned_abs(), Vec::new())
}

/// Numbers of asm/signal.h.
const SIGTERM: u32 = 15;
const SIGCHLD: u32 = 17;

/// Exit statuses and signals fit a byte (wait(2)).
fn low_byte(status: i32) -> u8 {
    u8::try_from(status & 0xff).unwrap_or(u8::MAX)
}

impl Keeper {
    pub fn new(podd: OwnedFd, listener: OwnedFd) -> Result<Self> {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let mut keeper = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            signals: signalfd(SignalSet::EMPTY.with(SIGCHLD).with(SIGTERM))?,
            listener,
            connections: Vec::new(),
            next_connection: 0,
            unclaimed: Vec::new(),
            buffer: alloc::vec![0; BUFFER],
            tasks: Vec::new(),
            namespaces: Namespaces::default(),
            loans: Loans::default(),
            turn: 0,
            null: rustix::fs::openat(rustix::fs::CWD, c"/null", flags, rustix::fs::Mode::empty())?,
            leaving: false,
            quit: false,
        };
        rustix::io::ioctl_fionbio(&keeper.listener, true)?;
        keeper.watch(keeper.listener.as_fd(), Source::Listener, 0)?;
        keeper.watch(keeper.signals.as_fd(), Source::Signals, 0)?;
        keeper.connect(podd)?;
        Ok(keeper)
    }

    /// Whether podd has said quit, or nothing is left to wait for after a SIGTERM.
    pub fn is_over(&mut self) -> bool {
        if self.leaving {
            // Busy until the last container, which was sent the same signal, has ended and is recorded.
            let _busy_or_ended = self.end();
        }
        self.quit
    }

    /// What epoll has told.
    pub fn handle(&mut self, data: u64) {
        #[expect(clippy::cast_possible_truncation, reason = "packed by Source::data")]
        let (number, source) = ((data >> 8) as u32, data as u8);
        match source {
            s if s == Source::Listener as u8 => self.accept(),
            s if s == Source::Signals as u8 => self.reap(),
            s if s == Source::Connection as u8 => self.serve(number),
            s if s == Source::Sync as u8 => self.hear(number),
            s if s == Source::Stdout as u8 => self.pump(number, 0),
            s if s == Source::Stderr as u8 => self.pump(number, 1),
            _ => self.client_ready(number),
        }
    }

    pub fn watch(&self, fd: BorrowedFd<'_>, source: Source, number: u32) -> Result<()> {
        epoll::add(&self.epoll, fd, source.data(number), epoll::EventFlags::IN)
    }

    fn accept(&mut self) {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC) {
            // The socket's directory admits root only; this is the second lock on the same door.
            let root = rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid.is_root());
            if root && self.connections.len() < CONNECTIONS {
                let _ = self.connect(socket);
            }
        }
    }

    fn connect(&mut self, socket: OwnedFd) -> Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        self.next_connection += 1;
        let number = self.next_connection;
        self.watch(socket.as_fd(), Source::Connection, number)?;
        self.connections.push(Connection { number, socket });
        Ok(())
    }

    fn serve(&mut self, number: u32) {
        loop {
            let Some(connection) = self.connections.iter().find(|c| c.number == number) else {
                return;
            };
            let mut frame = [0u8; MAX_FRAME];
            let mut fds = Vec::new();
            match sys::fdpass::receive(&connection.socket, &mut frame, &mut fds) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                Ok(0) | Err(_) => return self.disconnect(number),
                Ok(n) => self.request(number, &frame[..n], fds),
            }
        }
    }

    fn disconnect(&mut self, number: u32) {
        self.connections.retain(|connection| connection.number != number);
    }

    /// Sends to one connection. One that does not read is closed: podd asks for everything when it connects again.
    pub fn send(&mut self, number: u32, answer: &Answer, fds: &[BorrowedFd<'_>]) {
        let Some(connection) = self.connections.iter().find(|c| c.number == number) else {
            return;
        };
        if sys::fdpass::send(&connection.socket, &answer.encode(), fds).is_err() {
            self.disconnect(number);
        }
    }

    fn request(&mut self, connection: u32, bytes: &[u8], fds: Vec<OwnedFd>) {
        let frame = match RequestFrame::decode(bytes) {
            Ok(frame) => frame,
            Err(Refused::Unknown(sequence)) => {
                let (errno, body) = failed(Errno::NOSYS);
                return self.send(
                    connection,
                    &Answer::Reply {
                        sequence,
                        errno,
                        body,
                    },
                    &[],
                );
            }
            Err(Refused::Malformed) => return self.disconnect(connection),
        };
        let caller = Caller {
            connection,
            sequence: frame.sequence,
        };
        if let Some(outcome) = self.perform(caller, frame, fds) {
            self.reply(caller, outcome, &[]);
        }
    }

    pub fn reply(&mut self, caller: Caller, (errno, body): Outcome, fds: &[BorrowedFd<'_>]) {
        self.send(
            caller.connection,
            &Answer::Reply {
                sequence: caller.sequence,
                errno,
                body,
            },
            fds,
        );
    }

    /// Does what is asked; `None` if the reply comes later or was sent.
    fn perform(&mut self, caller: Caller, frame: RequestFrame, mut fds: Vec<OwnedFd>) -> Option<Outcome> {
        let handle = frame.handle;
        let done = match frame.request {
            Request::Hello => {
                return Some((0, rustix::process::getpid().as_raw_pid().to_le_bytes().to_vec()));
            }
            Request::Launch {
                kind,
                flags,
                target,
                roles,
            } => {
                return match self.launch(caller, handle, kind, flags, target, &roles, fds) {
                    Ok(()) => None,
                    Err(errno) => Some(failed(errno)),
                };
            }
            Request::Start => return self.start(caller, handle),
            Request::Signal(number) => self.signal(handle, number),
            Request::Reopen => self.reopen(handle, fds.pop()),
            Request::Resize { rows, columns } => self.resize(handle, rows, columns),
            Request::Forget => self.forget(handle),
            Request::List => return Some(self.list(handle)),
            Request::Namespaces => {
                self.send_namespaces(caller);
                return None;
            }
            Request::Quit => self.end(),
            Request::Attach { flags, roles } => {
                self.attach(caller, handle, flags, &roles, fds);
                return None;
            }
        };
        Some(done.map_or_else(failed, |()| (0, Vec::new())))
    }

    pub fn task(&mut self, handle: u32) -> Result<&mut Task> {
        self.tasks
            .iter_mut()
            .find(|task| task.handle == handle)
            .ok_or(Errno::SRCH)
    }

    fn start(&mut self, caller: Caller, handle: u32) -> Option<Outcome> {
        let task = match self.task(handle) {
            Ok(task) => task,
            Err(errno) => return Some(failed(errno)),
        };
        match (&task.sync, task.phase) {
            (Some(sync), Phase::Gated) => match rustix::io::write(sync, b"g") {
                Ok(_) => {
                    task.phase = Phase::Starting;
                    task.caller = Some(caller);
                    None
                }
                Err(errno) => Some(failed(errno)),
            },
            // Started already, or ended before: podd knows from the state which.
            _ => Some(failed(Errno::ALREADY)),
        }
    }

    fn signal(&mut self, handle: u32, number: u32) -> Result<()> {
        let task = self.task(handle)?;
        if task.is_reaped() {
            return Err(Errno::SRCH);
        }
        let pidfd = task.pidfd.as_ref().ok_or(Errno::SRCH)?;
        let number = i32::try_from(number).map_err(|_| Errno::INVAL)?;
        sys::signal::send_to_pidfd(pidfd, number)
    }

    fn reopen(&mut self, handle: u32, file: Option<OwnedFd>) -> Result<()> {
        let file = file.ok_or(Errno::INVAL)?;
        let away = self.log_is_away(handle);
        let task = self.task(handle)?;
        if task.log.is_none() && !away {
            return Err(Errno::INVAL);
        }
        // Before anything else is written.
        task.reopened = Some(file);
        self.owe(handle, Work::Pump(0));
        Ok(())
    }

    fn resize(&mut self, handle: u32, rows: u16, columns: u16) -> Result<()> {
        let console = self.task(handle)?.console.as_ref().ok_or(Errno::NOTTY)?;
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(console, size)
    }

    fn forget(&mut self, handle: u32) -> Result<()> {
        if !matches!(self.task(handle)?.phase, Phase::Ended(_)) {
            return Err(Errno::BUSY);
        }
        self.tasks.retain(|task| task.handle != handle);
        Ok(())
    }

    fn list(&self, above: u32) -> Outcome {
        let mut states: Vec<TaskState> = self
            .tasks
            .iter()
            .map(Task::state)
            .filter(|state| state.handle > above)
            .collect();
        states.sort_unstable_by_key(|state| state.handle);
        let mut body = Vec::new();
        states
            .iter()
            .take((MAX_FRAME - 64) / TaskState::SIZE)
            .for_each(|state| state.encode(&mut body));
        (0, body)
    }

    fn send_namespaces(&mut self, caller: Caller) {
        let held = core::mem::take(&mut self.namespaces);
        let all = [
            (launch_flag::NET, &held.net),
            (launch_flag::IPC, &held.ipc),
            (launch_flag::UTS, &held.uts),
            (launch_flag::USER, &held.user),
            (launch_flag::PID, &held.pid),
        ];
        let present = all
            .iter()
            .filter_map(|(bit, fd)| Some((u8::try_from(*bit).ok()?, fd.as_ref()?.as_fd())));
        let (body, fds): (Vec<u8>, Vec<BorrowedFd<'_>>) = present.unzip();
        self.reply(caller, (0, body), &fds);
        self.namespaces = held;
    }

    fn end(&mut self) -> Result<()> {
        let busy = |task: &Task| task.kind != TaskKind::Pod && !matches!(task.phase, Phase::Ended(_));
        if self.tasks.iter().any(busy) {
            return Err(Errno::BUSY);
        }
        for task in &self.tasks {
            if let (TaskKind::Pod, Some(pidfd)) = (task.kind, &task.pidfd) {
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
        }
        self.quit = true;
        Ok(())
    }

    /// Reads what stages report.
    fn hear(&mut self, handle: u32) {
        loop {
            let Some(task) = self.tasks.iter_mut().find(|task| task.handle == handle) else {
                return;
            };
            let Some(sync) = &task.sync else { return };
            let (mut bytes, mut fds) = ([0u8; MAX_REPORT], Vec::new());
            match sys::fdpass::receive(sync, &mut bytes, &mut fds) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                Ok(n) if n > 0 => match Report::decode(&bytes[..n]) {
                    Some(Report::Cloned { pid }) => self.cloned(handle, pid, fds.pop()),
                    Some(Report::Console) => self.console(handle, fds.pop()),
                    Some(Report::Ready(_)) => self.ready(handle, &bytes[..n]),
                    Some(Report::Failed(failure)) => {
                        return self.stage_failed(handle, failure.errno, &bytes[..n]);
                    }
                    None => {
                        return self.stage_failed(handle, Errno::PROTO.raw_os_error().unsigned_abs(), &[]);
                    }
                },
                Ok(_) | Err(_) => return self.executed(handle),
            }
        }
    }

    fn cloned(&mut self, handle: u32, pid: u32, pidfd: Option<OwnedFd>) {
        let Ok(task) = self.task(handle) else { return };
        task.pid = pid;
        task.pidfd = pidfd;
        if let Some(report) = task.early.take() {
            self.ready(handle, &report);
        }
        if let Some(at) = self.unclaimed.iter().position(|unclaimed| unclaimed.pid == pid) {
            let Unclaimed { phase, finished, .. } = self.unclaimed.swap_remove(at);
            self.hear(handle);
            self.ended(handle, phase, finished);
        }
    }

    /// End of file on the sync socket: the application runs, or the stage is gone without a word.
    fn executed(&mut self, handle: u32) {
        let Ok(task) = self.task(handle) else { return };
        task.sync = None;
        if task.phase == Phase::Gated {
            // Killed before it was started: its end is reported like any other.
            return;
        }
        let runs = match task.kind {
            TaskKind::Exec => task.pid != 0,
            TaskKind::Container => task.phase == Phase::Starting,
            TaskKind::Pod => task.phase == Phase::Running,
        };
        if !runs {
            return self.stage_failed(handle, Errno::PIPE.raw_os_error().unsigned_abs(), &[]);
        }
        if task.kind == TaskKind::Pod {
            return;
        }
        task.phase = Phase::Running;
        task.started = now();
        let mut body = Vec::new();
        task.state().encode(&mut body);
        // The terminal of an exec is podd's alone: it hangs up when podd closes it, or dies.
        let console = match task.kind {
            TaskKind::Exec => task.console.take(),
            TaskKind::Container | TaskKind::Pod => None,
        };
        if let Some(caller) = task.caller.take() {
            let fds: Vec<BorrowedFd<'_>> = console.iter().map(AsFd::as_fd).collect();
            self.reply(caller, (0, body), &fds);
        }
    }

    fn stage_failed(&mut self, handle: u32, errno: u32, report: &[u8]) {
        let Some(at) = self.tasks.iter().position(|task| task.handle == handle) else {
            return;
        };
        // A started task that cannot execute is kept for its end to be seen; all others leave nothing behind.
        let mut task = self.tasks.swap_remove(at);
        if let Some(pidfd) = &task.pidfd {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        if let Some(caller) = task.caller.take() {
            self.reply(caller, (errno, report.to_vec()), &[]);
        }
    }

    /// Collects every ended child: tasks, outer processes of stages, and orphans of containers without a pid
    /// namespace of their own.
    fn reap(&mut self) {
        // struct signalfd_siginfo begins with the signal's number (signalfd(2)).
        let mut siginfo = [0u8; 128];
        while read(&self.signals, &mut siginfo).is_ok() {
            self.leaving |= u32::from(siginfo[0]) == SIGTERM;
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_pid().unsigned_abs();
            let phase = match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => TaskPhase::Exited(low_byte(status)),
                (_, Some(signal)) => TaskPhase::Killed(low_byte(signal)),
                _ => continue,
            };
            let finished = now();
            let task = self.tasks.iter().find(|task| task.begins_with(pid));
            if let Some(handle) = task.map(|task| task.handle) {
                self.hear(handle);
                self.ended(handle, phase, finished);
            } else if let Some(task) = self.tasks.iter_mut().find(|task| task.stage == pid) {
                task.stage = 0;
            } else if self.tasks.iter().any(Task::is_nameless) {
                self.unclaimed.push(Unclaimed { pid, phase, finished });
            }
        }
        if !self.tasks.iter().any(Task::is_nameless) {
            self.unclaimed.clear();
        }
    }

    /// A task's first process ended: its output is drained, its exit recorded, then everybody is told.
    fn ended(&mut self, handle: u32, phase: TaskPhase, finished: u64) {
        // The stage may have ended without the end of file being heard: its outer process still held the socket.
        if self.task(handle).is_ok_and(|task| task.sync.is_some()) {
            self.executed(handle);
        }
        let Ok(task) = self.task(handle) else { return };
        let recorded = task.record.is_some() || task.log.is_some();
        // While a log hangs, an end that needs none is told all the same.
        if recorded && !(self.logs_hang() && self.has_no_log(handle)) {
            if let Ok(task) = self.task(handle) {
                task.phase = Phase::Ending;
            }
            return self.owe(handle, Work::End(phase, finished));
        }
        let mut buffer = core::mem::take(&mut self.buffer);
        if let Some(task) = self.tasks.iter_mut().find(|task| task.handle == handle) {
            for mut output in task.outputs.iter_mut().filter_map(Option::take) {
                output.pump(&mut None, &mut buffer, true);
                // podd may hold the same terminal for a client: closing this fd alone would not end the watch.
                let _ = epoll::delete(&self.epoll, &*output.fd);
            }
            if let Some(directory) = &task.record {
                record_exit(directory, phase, task.started, finished);
            }
        }
        self.buffer = buffer;
        self.over(handle, phase, finished);
    }

    /// Whether nothing of a task is written to a log, or lent for that.
    pub fn has_no_log(&mut self, handle: u32) -> bool {
        !self.log_is_away(handle) && self.task(handle).is_ok_and(|task| task.log.is_none())
    }

    /// Nothing of a task is left to be done.
    pub fn over(&mut self, handle: u32, phase: TaskPhase, finished: u64) {
        let Ok(task) = self.task(handle) else { return };
        (task.stdin, task.console, task.log, task.pidfd) = (None, None, None, None);
        task.phase = Phase::Ended(phase);
        task.finished = finished;
        task.record = None;
        let (state, kind) = (task.state(), task.kind);
        if kind == TaskKind::Exec {
            self.tasks.retain(|task| task.handle != handle);
        }
        let numbers: Vec<u32> = self
            .connections
            .iter()
            .map(|connection| connection.number)
            .collect();
        for number in numbers {
            self.send(number, &Answer::Exited(state), &[]);
        }
    }
}
