//! What ExecSync does on the host.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use runtime_core::cgroup::Cgroup;
use runtime_core::pod::{Request, Role, TaskKind, TaskPhase, TaskState};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

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
    let prepared = blocking("ExecSync", move || Prepared::new(&prepare, &within, argv)).await?;
    // In a task of its own: a client that goes away while the command is being started leaves nothing behind, as
    // what the task returns is dropped.
    let launched = tokio::spawn(launch(Arc::clone(engine), Arc::clone(container), prepared)).await;
    let (running, exited, stdout, stderr) = launched.map_err(|_| EngineError::Panicked("ExecSync"))??;
    let limit = engine.config.limits.exec_sync_output_bytes as usize;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = until_over(
        exited,
        collect(stdout, &mut out, limit),
        collect(stderr, &mut err, limit),
    );
    let state = match timeout {
        None => ended.await?,
        Some(limit) => match tokio::time::timeout(limit, ended).await {
            Ok(state) => state?,
            Err(_) => {
                running.kill().await;
                return Err(NativeError::ExecTimeout(limit.as_secs()).into());
            }
        },
    };
    running.over();
    Ok(ExecOutput {
        stdout: out,
        stderr: err,
        code: code(state.phase),
    })
}

type Reader = std::io::Result<pipe::Receiver>;

/// Starts the command and returns it with where its exit will be told and its outputs.
async fn launch(
    engine: Arc<Engine>,
    container: Arc<Container>,
    prepared: Prepared,
) -> Result<(Running, oneshot::Receiver<TaskState>, Reader, Reader), EngineError> {
    let Prepared {
        plan,
        encoded,
        cgroup,
        stdout,
        stderr,
    } = prepared;
    let keeper = engine.native.keeper(&container.record.pod)?;
    let (handle, exited) = keeper.register_exec();
    let registered = Registered {
        keeper: Arc::clone(&keeper),
        handle,
    };
    let roles = vec![Role::Stage, Role::Plan, Role::Cgroup, Role::Stdout, Role::Stderr];
    let target = container_handle(container.record.handle);
    let request = Request::Launch {
        kind: TaskKind::Exec,
        flags: 0,
        target,
        roles,
    };
    let stage = engine.native.programs.stage();
    let fds = [
        stage,
        plan.as_fd(),
        cgroup.dir(),
        stdout.write.as_fd(),
        stderr.write.as_fd(),
    ];
    let reply = keeper
        .call(handle, request, &fds)
        .await
        .map_err(|e| plans::explain(e, &encoded))?;
    let pid = TaskState::decode(&reply.body).map_or(0, |state| state.pid);
    let running = Running {
        pid,
        cgroup: Some(cgroup),
        _registered: registered,
    };
    Ok((running, exited, stdout.into_reader(), stderr.into_reader()))
}

/// Waits for the exit and the ends of both outputs; for the latter not much longer than for the former.
async fn until_over(
    exited: oneshot::Receiver<TaskState>,
    stdout: impl Future<Output = ()>,
    stderr: impl Future<Output = ()>,
) -> Result<TaskState, NativeError> {
    let reading = async { tokio::join!(stdout, stderr) };
    tokio::pin!(reading);
    tokio::pin!(exited);
    let ended = tokio::select! {
        _ = &mut reading => exited.await,
        ended = &mut exited => {
            let _ = tokio::time::timeout(DRAIN, reading).await;
            ended
        }
    };
    ended.map_err(|_| NativeError::PodinitGone)
}

fn code(phase: TaskPhase) -> i32 {
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

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn new() -> Result<Self, NativeError> {
        let failed = |source: std::io::Error| NativeError::Kernel {
            operation: "make a pipe",
            source,
        };
        let (read, write) = std::io::pipe().map_err(failed)?;
        rustix::io::ioctl_fionbio(&read, true).map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            read: read.into(),
            write: write.into(),
        })
    }

    /// Keeps the reading end: the writing end is the command's alone from now on.
    fn into_reader(self) -> Reader {
        drop(self.write);
        pipe::Receiver::from_owned_fd(self.read)
    }
}

struct Prepared {
    plan: OwnedFd,
    encoded: Vec<u8>,
    cgroup: Cgroup,
    stdout: Pipe,
    stderr: Pipe,
}

impl Prepared {
    fn new(engine: &Engine, container: &Container, argv: Vec<String>) -> Result<Self, EngineError> {
        let encoded = build::exec_plan(engine, container, argv, false)?;
        let cgroup = match nested_cgroup(engine, container)? {
            Some(nested) => Some(nested),
            None => exits::find_cgroup(engine, container)?,
        };
        let cgroup = cgroup.ok_or(EngineError::ContainerGone(container.record.id))?;
        Ok(Self {
            plan: plans::seal(&encoded)?,
            encoded,
            cgroup,
            stdout: Pipe::new()?,
            stderr: Pipe::new()?,
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
struct Registered {
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
