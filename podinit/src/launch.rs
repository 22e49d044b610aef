//! Starting stages: which fds they get, and what becomes of their reports.

use crate::keeper::{Keeper, Source};
use crate::output::{Log, Output};
use crate::task::{Caller, Phase, Task, now};
use alloc::vec::Vec;
use podinit::cri_log::Stream;
use podinit::wire::{Role, TaskKind, launch_flag, slot};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use sys::clone::Child;
use sys::spawn::{Spawn, spawn};

/// The fds of a launch by role.
#[derive(Default)]
struct Fds {
    stage: Option<OwnedFd>,
    plan: Option<OwnedFd>,
    cgroup: Option<OwnedFd>,
    log: Option<OwnedFd>,
    record: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    mounts: Vec<OwnedFd>,
}

impl Fds {
    fn sort(roles: &[Role], fds: Vec<OwnedFd>) -> Result<Self> {
        if roles.len() != fds.len() {
            return Err(Errno::INVAL);
        }
        let mut sorted = Self::default();
        for (role, fd) in roles.iter().zip(fds) {
            let place = match role {
                Role::Stage => &mut sorted.stage,
                Role::Plan => &mut sorted.plan,
                Role::Cgroup => &mut sorted.cgroup,
                Role::Log => &mut sorted.log,
                Role::Record => &mut sorted.record,
                Role::Stdin => &mut sorted.stdin,
                Role::Stdout => &mut sorted.stdout,
                Role::Stderr => &mut sorted.stderr,
                Role::Mount => {
                    sorted.mounts.push(fd);
                    continue;
                }
            };
            *place = Some(fd);
        }
        Ok(sorted)
    }
}

/// A container's pipes: podinit's ends.
#[derive(Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    outputs: [Option<Output>; 2],
}

impl Keeper {
    /// Starts a stage; the reply is sent when it has reported.
    #[expect(clippy::too_many_arguments, reason = "the fields of one frame")]
    pub fn launch(
        &mut self,
        caller: Caller,
        handle: u32,
        kind: TaskKind,
        flags: u32,
        target: u32,
        roles: &[Role],
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        if self.tasks.iter().any(|task| task.handle == handle) {
            return Err(Errno::EXIST);
        }
        let mut fds = Fds::sort(roles, fds)?;
        let mut ends = Ends::default();
        if kind == TaskKind::Container && flags & launch_flag::TTY == 0 {
            ends = pipes(&mut fds, flags & launch_flag::STDIN != 0)?;
        }
        let (sync, stage_end) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&sync, true)?;
        let stage = self.spawn_stage(&fds, &stage_end, kind, target)?;
        let stage_pid = stage.pid;
        // Without a pid namespace the helper of a pod does not clone: it is its own first process.
        let helper = (kind == TaskKind::Pod && flags & launch_flag::PID == 0).then_some(stage);
        self.watch(sync.as_fd(), Source::Sync, handle)?;
        for (output, source) in ends.outputs.iter().zip([Source::Stdout, Source::Stderr]) {
            if let Some(output) = output {
                self.watch(output.fd.as_fd(), source, handle)?;
            }
        }
        self.tasks.push(Task {
            handle,
            kind,
            flags,
            phase: Phase::Staging,
            pid: helper.as_ref().map_or(0, |helper| helper.pid),
            pidfd: helper.map(|helper| helper.pidfd),
            stage: stage_pid,
            sync: Some(sync),
            early: None,
            caller: Some(caller),
            outputs: ends.outputs,
            stdin: ends.stdin,
            console: None,
            log: fds.log.map(Log::new),
            reopened: None,
            record: fds.record,
            started: 0,
            finished: 0,
        });
        Ok(())
    }

    fn spawn_stage(&self, fds: &Fds, sync: &OwnedFd, kind: TaskKind, target: u32) -> Result<Child> {
        let null = self.null.as_fd();
        let held = &self.namespaces;
        let joined = match kind {
            // A container that joins the pid namespace of another.
            TaskKind::Container if target == 0 => None,
            TaskKind::Exec | TaskKind::Container => {
                // An exec will do with a container that waits to be started: all that it joins is there.
                let ready = |phase: Phase| match phase {
                    Phase::Running => true,
                    Phase::Gated | Phase::Starting => kind == TaskKind::Exec,
                    Phase::Staging | Phase::Ending | Phase::Ended(_) => false,
                };
                let container = self
                    .tasks
                    .iter()
                    .find(|task| task.handle == target && ready(task.phase));
                Some(
                    container
                        .and_then(|task| task.pidfd.as_ref())
                        .ok_or(Errno::SRCH)?
                        .as_fd(),
                )
            }
            TaskKind::Pod => None,
        };
        let namespaces = [&held.net, &held.ipc, &held.uts, &held.user, &held.pid];
        let mut slots: Vec<Option<BorrowedFd<'_>>> = Vec::with_capacity(16 + fds.mounts.len());
        slots.extend(
            [&fds.stdin, &fds.stdout, &fds.stderr].map(|fd| Some(fd.as_ref().map_or(null, AsFd::as_fd))),
        );
        slots.extend([
            Some(sync.as_fd()),
            fds.plan.as_ref().map(AsFd::as_fd),
            fds.cgroup.as_ref().map(AsFd::as_fd),
        ]);
        slots.extend(namespaces.into_iter().map(|fd| fd.as_ref().map(AsFd::as_fd)));
        slots.push(joined);
        slots.extend(fds.mounts.iter().map(|fd| Some(fd.as_fd())));
        debug_assert_eq!(slots.len() - fds.mounts.len(), slot::FIRST_MOUNT as usize);
        let program = fds.stage.as_ref().ok_or(Errno::INVAL)?.as_fd();
        // What process lists show: a stage is something else in a moment, but the one of a pod may stay as its pid 1.
        let name = match kind {
            TaskKind::Pod => c"podd-pod",
            TaskKind::Container | TaskKind::Exec => c"stage",
        };
        spawn(&Spawn {
            program,
            argv: &[name],
            fds: &slots,
            cgroup: None,
            new_session: false,
        })
    }

    /// A terminal's master arrived: a container's is pumped like a pipe, an exec's goes to podd with the reply.
    pub fn console(&mut self, handle: u32, master: Option<OwnedFd>) {
        let Some(master) = master else { return };
        let Some(at) = self.tasks.iter().position(|task| task.handle == handle) else {
            return;
        };
        if self.tasks[at].kind == TaskKind::Container {
            let _ = rustix::io::ioctl_fionbio(&master, true);
            if let Ok(reader) = rustix::io::fcntl_dupfd_cloexec(&master, 0) {
                let _ = self.watch(reader.as_fd(), Source::Stdout, handle);
                self.tasks[at].outputs[0] = Some(Output::new(reader, Stream::Stdout));
            }
        }
        self.tasks[at].console = Some(master);
    }

    /// A stage is at its gate, or holds the pod's namespaces.
    pub fn ready(&mut self, handle: u32, report: &[u8]) {
        let Some(task) = self.tasks.iter_mut().find(|task| task.handle == handle) else {
            return;
        };
        if task.pid == 0 {
            task.early = Some(report.to_vec());
            return;
        }
        let caller = task.caller.take();
        if task.kind != TaskKind::Pod {
            task.phase = Phase::Gated;
            if let Some(caller) = caller {
                self.reply(caller, (0, report.to_vec()), &[]);
            }
            return;
        }
        let taken = self.take_namespaces(handle);
        let Some(caller) = caller else { return };
        if let Err(errno) = taken {
            return self.reply(caller, (errno.raw_os_error().unsigned_abs(), Vec::new()), &[]);
        }
        let net = self.namespaces.net.take();
        let fds: Vec<BorrowedFd<'_>> = net.iter().map(AsFd::as_fd).collect();
        self.reply(caller, (0, report.to_vec()), &fds);
        self.namespaces.net = net;
    }

    /// Opens the namespaces of the pod's helper. The helper then ends, or stays as pid 1 of a shared pid namespace.
    fn take_namespaces(&mut self, handle: u32) -> Result<()> {
        let Some(at) = self.tasks.iter().position(|task| task.handle == handle) else {
            return Err(Errno::SRCH);
        };
        let (pid, flags) = (self.tasks[at].pid, self.tasks[at].flags);
        let open = |bit: u32, name: &str| {
            let path = alloc::format!("/proc/{pid}/ns/{name}");
            let flags_open = OFlags::RDONLY | OFlags::CLOEXEC;
            (flags & bit != 0)
                .then(|| openat(CWD, path.as_str(), flags_open, Mode::empty()))
                .transpose()
        };
        self.namespaces.net = open(launch_flag::NET, "net")?;
        self.namespaces.ipc = open(launch_flag::IPC, "ipc")?;
        self.namespaces.uts = open(launch_flag::UTS, "uts")?;
        self.namespaces.user = open(launch_flag::USER, "user")?;
        self.namespaces.pid = open(launch_flag::PID, "pid")?;
        let task = &mut self.tasks[at];
        if flags & launch_flag::PID != 0 {
            task.phase = Phase::Running;
            task.started = now();
            return Ok(());
        }
        if let Some(pidfd) = &task.pidfd {
            pidfd_send_signal(pidfd, Signal::KILL)?;
        }
        self.tasks.swap_remove(at);
        Ok(())
    }
}

fn pipes(fds: &mut Fds, stdin: bool) -> Result<Ends> {
    let mut ends = Ends::default();
    if stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        fds.stdin = Some(read);
        ends.stdin = Some(write);
    }
    for (at, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        ends.outputs[at] = Some(Output::new(read, stream));
        *(if at == 0 { &mut fds.stdout } else { &mut fds.stderr }) = Some(write);
    }
    Ok(ends)
}
