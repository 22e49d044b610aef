//! What ExecSync does on the host, and what every exec begins with.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use runtime_core::cgroup::Cgroup;
use runtime_core::plan::TerminalSize;
use runtime_core::pod::{Request, Role, TaskKind, TaskPhase, TaskState};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::keeper::{Keeper, container_handle};
use super::native::NativeError;
use super::plans::Stat;
use super::{Engine, EngineError, ExecOutput, blocking, build, exits, plans};
use crate::state::phase::ContainerPhase;
use crate::state::store::Container;

/// How long output may still come after the command has ended, from what it left running (CVE-2026-53495).
const DRAIN: Duration = Duration::from_secs(1);

/// Runs a command in a running container and collects what it writes, each stream up to
/// `limits.exec_sync_output_bytes`.
///
/// Dropping the future kills the command and all that it started, as does the timeout.
///
/// # Errors
/// The command cannot be executed, or took longer than `timeout`.
pub async fn exec_sync(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    argv: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput, EngineError> {
    let (prepare, within) = (Arc::clone(engine), Arc::clone(container));
    let prepared = blocking("ExecSync", move || -> Result<_, EngineError> {
        let prepared = Prepared::new(&prepare, &within, argv, None)?;
        Ok((prepared, Pipe::output()?, Pipe::output()?))
    })
    .await?;
    let end = timeout.map(|limit| Instant::now() + limit);
    let late = || EngineError::from(NativeError::ExecTimeout(timeout.unwrap_or_default().as_secs()));
    // In a task of its own: a client that goes away while the command is being started leaves nothing behind, as
    // what the task returns is dropped. So it is where a podinit that hangs starts it late.
    let launched = tokio::spawn(launch_sync(Arc::clone(engine), Arc::clone(container), prepared));
    let launched = before(end, launched).await.ok_or_else(late)?;
    let (running, exited, stdout, stderr) = launched.map_err(|_| EngineError::Panicked("ExecSync"))??;
    let limit = engine.config.limits.exec_sync_output_bytes as usize;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let reading = async {
        tokio::join!(collect(stdout, &mut out, limit), collect(stderr, &mut err, limit));
    };
    let Some(state) = until_over(exited, reading, end).await? else {
        running.kill().await;
        return Err(late());
    };
    running.over();
    Ok(ExecOutput {
        stdout: out,
        stderr: err,
        code: code(state.phase),
    })
}

/// What comes of a future until `end`, or whenever that is.
async fn before<T>(end: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match end {
        None => Some(future.await),
        Some(end) => tokio::time::timeout_at(end, future).await.ok(),
    }
}

/// "No such process", from podinit: it has no such container to enter.
const ESRCH: i32 = 3;

pub(super) type Reader = std::io::Result<pipe::Receiver>;

async fn launch_sync(
    engine: Arc<Engine>,
    container: Arc<Container>,
    (prepared, stdout, stderr): (Prepared, Pipe, Pipe),
) -> Result<(Running, oneshot::Receiver<TaskState>, Reader, Reader), EngineError> {
    let stdio = [
        (Role::Stdout, stdout.theirs.as_fd()),
        (Role::Stderr, stderr.theirs.as_fd()),
    ];
    let launched = launch(&engine, &container, &prepared, 0, &stdio).await?;
    let running = Running {
        pid: launched.pid,
        cgroup: Some(prepared.cgroup),
        _registered: launched.registered,
    };
    Ok((
        running,
        launched.exited,
        stdout.into_reader(),
        stderr.into_reader(),
    ))
}

/// A command that podinit has started.
pub(super) struct Launched {
    /// As the host numbers it.
    pub pid: u32,
    /// Where its exit is told.
    pub exited: oneshot::Receiver<TaskState>,
    /// Its place among the keeper's execs.
    pub registered: Registered,
    /// What came with the answer: the terminal's master, where the plan has one.
    pub fds: Vec<OwnedFd>,
}

/// Starts a command with these standard streams; those that are not named are /dev/null or the terminal.
pub(super) async fn launch(
    engine: &Engine,
    container: &Container,
    prepared: &Prepared,
    flags: u32,
    stdio: &[(Role, BorrowedFd<'_>)],
) -> Result<Launched, EngineError> {
    let keeper = engine.native.keeper(&container.record.pod)?;
    let (handle, exited) = keeper.register_exec();
    let registered = Registered {
        keeper: Arc::clone(&keeper),
        handle,
    };
    let own = [
        (Role::Stage, engine.native.programs.stage()),
        (Role::Plan, prepared.plan.as_fd()),
        (Role::Cgroup, prepared.cgroup.dir()),
    ];
    let (roles, fds): (Vec<Role>, Vec<BorrowedFd<'_>>) = own.iter().chain(stdio).copied().unzip();
    let request = Request::Launch {
        kind: TaskKind::Exec,
        flags,
        target: container_handle(container.record.handle),
        roles,
    };
    let reply = keeper.call(handle, request, &fds).await.map_err(|e| match e {
        // It has ended meanwhile, or the pod was made by a podd whose podinit has execs in running containers only.
        NativeError::Podinit { source, .. } if source.raw_os_error() == Some(ESRCH) => {
            EngineError::NotRunning {
                container: container.record.id,
                phase: match container.record.phase {
                    ContainerPhase::Running { .. } => "exited",
                    _ => container.record.phase.name(),
                },
            }
        }
        e => plans::explain(e, &prepared.encoded).into(),
    })?;
    Ok(Launched {
        pid: TaskState::decode(&reply.body).map_or(0, |state| state.pid),
        exited,
        registered,
        fds: reply.fds,
    })
}

/// Waits for the exit, `None` if it does not come before `end`, and then for the end of `reading`, but not much
/// longer: a command that has ended in time did so, whoever still holds its outputs.
async fn until_over(
    exited: oneshot::Receiver<TaskState>,
    reading: impl Future<Output = ()>,
    end: Option<Instant>,
) -> Result<Option<TaskState>, NativeError> {
    tokio::pin!(reading);
    tokio::pin!(exited);
    let mut read = false;
    let ended = async {
        tokio::select! {
            () = &mut reading => {
                read = true;
                exited.await
            }
            ended = &mut exited => ended,
        }
    };
    let Some(ended) = before(end, ended).await else {
        return Ok(None);
    };
    if !read {
        let _ = tokio::time::timeout(DRAIN, reading).await;
    }
    ended.map(Some).map_err(|_| NativeError::PodinitGone)
}

/// The exit code of a command that has ended.
pub(super) fn code(phase: TaskPhase) -> i32 {
    match phase {
        TaskPhase::Exited(status) => status.into(),
        TaskPhase::Killed(signal) => 128 + i32::from(signal),
        TaskPhase::Created | TaskPhase::Running => super::containers::START_FAILED,
    }
}

/// Reads to the end, keeping the first `limit` bytes, so that a command is never stopped by its output.
async fn collect(reader: Reader, kept: &mut Vec<u8>, limit: usize) {
    let Ok(mut reader) = reader else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(n) = reader.read(&mut chunk).await {
        if n == 0 {
            break;
        }
        let room = limit.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(&chunk[..room]);
    }
}

/// A pipe between podd and a command.
pub(super) struct Pipe {
    /// podd's end.
    pub ours: OwnedFd,
    /// The command's end.
    pub theirs: OwnedFd,
}

impl Pipe {
    /// For what the command writes.
    pub fn output() -> Result<Self, NativeError> {
        let (read, write) = std::io::pipe().map_err(no_pipe)?;
        Ok(Self {
            ours: read.into(),
            theirs: write.into(),
        })
    }

    /// For what the command reads.
    pub fn input() -> Result<Self, NativeError> {
        let (read, write) = std::io::pipe().map_err(no_pipe)?;
        Ok(Self {
            ours: write.into(),
            theirs: read.into(),
        })
    }

    /// Keeps the reading end: the writing end is the command's alone from now on.
    pub fn into_reader(self) -> Reader {
        drop(self.theirs);
        pipe::Receiver::from_owned_fd(self.ours)
    }

    /// Keeps the writing end.
    pub fn into_writer(self) -> std::io::Result<pipe::Sender> {
        drop(self.theirs);
        pipe::Sender::from_owned_fd(self.ours)
    }
}

fn no_pipe(source: std::io::Error) -> NativeError {
    NativeError::Kernel {
        operation: "make a pipe",
        source,
    }
}

/// What an exec needs before podinit is asked.
pub(super) struct Prepared {
    plan: OwnedFd,
    encoded: Vec<u8>,
    cgroup: Cgroup,
}

impl Prepared {
    /// Blocks.
    pub fn new(
        engine: &Engine,
        container: &Container,
        argv: Vec<String>,
        terminal: Option<TerminalSize>,
    ) -> Result<Self, EngineError> {
        let encoded = build::exec_plan(engine, container, argv, terminal)?;
        let cgroup = match nested_cgroup(engine, container)? {
            Some(nested) => Some(nested),
            None => exits::find_cgroup(engine, container)?,
        };
        let cgroup = cgroup.ok_or(EngineError::ContainerGone(container.record.id))?;
        Ok(Self {
            plan: plans::seal(&encoded)?,
            encoded,
            cgroup,
        })
    }
}

/// Where a container has made cgroups of its own, its cgroup may hold no process any more (EBUSY, the "no internal
/// processes" rule of cgroups(7)): a further process goes where its first one is. Blocks.
fn nested_cgroup(engine: &Engine, container: &Container) -> Result<Option<Cgroup>, EngineError> {
    let (ContainerPhase::Running { pid, .. }, Some(own)) =
        (&container.record.phase, &container.record.cgroup)
    else {
        return Ok(None);
    };
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
        return Ok(None);
    };
    let current = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    if !current
        .strip_prefix(own.as_str())
        .is_some_and(|below| below.starts_with('/'))
    {
        return Ok(None);
    }
    let path = current.parse().map_err(NativeError::CgroupPath)?;
    Ok(engine.native.cgroups.find(&path).map_err(NativeError::from)?)
}

/// An exec that its keeper knows; forgotten however its future ends.
#[derive(Debug)]
pub(super) struct Registered {
    keeper: Arc<Keeper>,
    handle: u32,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.keeper.forget_exec(self.handle);
    }
}

/// A command that runs; dropped before it is over, it is killed.
struct Running {
    pid: u32,
    cgroup: Option<Cgroup>,
    _registered: Registered,
}

impl Running {
    fn over(mut self) {
        self.cgroup = None;
    }

    async fn kill(mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            let pid = self.pid;
            let _ = tokio::task::spawn_blocking(move || kill_tree(&cgroup, pid)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Some(cgroup), pid) = (self.cgroup.take(), self.pid) {
            tokio::task::spawn_blocking(move || kill_tree(&cgroup, pid));
        }
    }
}

/// Kills a command, its session and everything descended from it, again until nothing new is found. Blocks.
fn kill_tree(cgroup: &Cgroup, first: u32) {
    const ROUNDS: usize = 32;
    let mut tree = BTreeSet::from([first]);
    for _ in 0..ROUNDS {
        let Ok(procs) = cgroup.procs() else { return };
        let stats: Vec<(u32, Stat)> = procs
            .iter()
            .filter_map(|pid| Some((*pid, Stat::read(*pid).ok()?)))
            .collect();
        loop {
            let more: Vec<u32> = stats
                .iter()
                .filter(|(pid, stat)| {
                    !tree.contains(pid) && (stat.session == first || tree.contains(&stat.parent))
                })
                .map(|(pid, _)| *pid)
                .collect();
            if more.is_empty() {
                break;
            }
            tree.extend(more);
        }
        let alive: Vec<_> = stats.iter().filter(|(pid, _)| tree.contains(pid)).collect();
        if alive.is_empty() {
            return;
        }
        alive.iter().for_each(|(pid, stat)| kill_exactly(*pid, stat));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a process if it is still the one that was looked at.
fn kill_exactly(pid: u32, seen: &Stat) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(pid_of) = Pid::from_raw(pid.cast_signed()) else {
        return;
    };
    if let Ok(pidfd) = pidfd_open(pid_of, PidfdFlags::empty())
        && Stat::read(pid).is_ok_and(|now| now.start_time == seen.start_time)
    {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}
