//! What Create-, Start-, Stop- and RemoveContainer and ReopenContainerLog do on the host.
//!
//! Owns the kernel steps; `containers` owns their order among other operations, the records and the names.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podd_images::{Image, LayerHold};
use runtime_core::cgroup::{Cgroup, CgroupPath, Phase};
use runtime_core::pod::{Report, Request, Role, TaskKind, TaskPhase, TaskState, launch_flag};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::build::{self, Build};
use super::hooks::{self, When};
use super::keeper::{Keeper, Reply, container_handle};
use super::log::open_log;
use super::native::NativeError;
use super::plans::Stat;
use super::undo::Undo;
use super::{Engine, EngineError, blocking, exits, plans};
use crate::model::{ContainerPid, StopSignal};
use crate::observe::metrics::Stage;
use crate::state::phase::{ContainerPhase, Nanos};
use crate::state::record::Identity;
use crate::state::store::{Container, Pod};

/// What [`create`] has made.
#[derive(Debug, Clone)]
pub struct Built {
    /// The process that waits at the start gate, as the host numbers it.
    pub pid: i32,
    /// The container's cgroup, seen from the root of the hierarchy.
    pub cgroup: String,
    /// Who the application will run as.
    pub identity: Identity,
}

/// Whether an exit is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// podinit will report the exit, or has already.
    WillReport,
    /// podinit does not answer: only the kernel can say when nothing is left.
    Silent,
    /// No process is left and nobody can say how it ended.
    Unseen,
}

/// Builds the container up to its start gate; pushes onto `undo` what it has made.
///
/// The container's record is on disk with phase `Creating`.
///
/// # Errors
/// The step that failed. `undo` is run by the caller.
pub async fn create(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    image: &Image,
    undo: &mut Undo,
) -> Result<Built, EngineError> {
    let id = container.record.id;
    let keeper = engine.native.keeper(&pod.record.id)?;
    engine.native.hold(id, holds(engine, container, image)?);
    let holder = Arc::clone(engine);
    undo.push("release the image", async move {
        holder.native.release(&id);
        holder.native.execs.forget(&id);
        Ok::<_, NativeError>(())
    });
    let cgroup = make_cgroup(engine, engine.native.container_cgroup(pod, &id)?, undo);
    let cgroup = engine.metrics.stage(Stage::ContainerCgroup, cgroup).await?;

    let (to_build, image, at) = (
        Arc::clone(engine),
        image.clone(),
        (Arc::clone(pod), Arc::clone(container)),
    );
    let built = blocking("CreateContainer", move || {
        build::build(&to_build, &at.0, &at.1, &image)
    });
    let built = engine.metrics.stage(Stage::Plan, built);
    // It opens files where the kubelet says: a thread that hangs there is left behind, and nobody gets what it opens. What
    // has a deadline of its own, and names its subject, comes first.
    let patience = Duration::from_secs(engine.config.timeouts.create_seconds.into());
    let patience = patience.saturating_add(build::VOLUME_DEADLINE);
    let built = tokio::time::timeout(patience, built).await;
    let built = built.map_err(|_| NativeError::CreateTimeout(patience.as_secs()))??;
    cgroup.check(&built.limits).map_err(NativeError::from)?;
    // Before there is a process: the stage only makes nodes, which every set of rules allows, and uses a terminal.
    if let Some(program) = &built.devices {
        cgroup.restrict_devices(program).map_err(NativeError::from)?;
    }
    let launched = launch(engine, &keeper, container, &cgroup, built, undo);
    engine.metrics.stage(Stage::Launch, launched).await
}

/// Keeps the layers of the container's image, and of those that it mounts, from being removed.
fn holds(engine: &Engine, container: &Container, image: &Image) -> Result<Vec<LayerHold>, EngineError> {
    let mut holds = vec![engine.images.hold(image)?];
    for volume in &container.record.image_volumes {
        let gone = || EngineError::ImageUnknown(volume.image_id.clone());
        let image = engine.images.resolve(&volume.image_id).ok_or_else(gone)?;
        holds.push(engine.images.hold(&image)?);
    }
    Ok(holds)
}

async fn make_cgroup(engine: &Arc<Engine>, path: CgroupPath, undo: &mut Undo) -> Result<Cgroup, EngineError> {
    let (root, wait) = (engine.native.cgroups.clone(), engine.kill_wait());
    let (undo_root, undo_path) = (root.clone(), path.clone());
    undo.push_blocking("remove the container's cgroup", move || {
        undo_root.remove(&undo_path, Instant::now() + wait)
    });
    blocking("CreateContainer", move || {
        root.create(&path).map_err(NativeError::from)
    })
    .await
}

async fn launch(
    engine: &Arc<Engine>,
    keeper: &Arc<Keeper>,
    container: &Arc<Container>,
    cgroup: &Cgroup,
    built: Build,
    undo: &mut Undo,
) -> Result<Built, EngineError> {
    let handle = container_handle(container.record.handle);
    let mut fds: Vec<(Role, BorrowedFd<'_>)> = vec![
        (Role::Stage, engine.native.programs.stage()),
        (Role::Plan, built.plan.as_fd()),
        (Role::Cgroup, cgroup.dir()),
        (Role::Record, built.directory.as_fd()),
    ];
    fds.extend(built.log.iter().map(|log| (Role::Log, log.as_fd())));
    fds.extend(built.volumes.iter().map(|mount| (Role::Mount, mount.as_fd())));
    let (roles, fds): (Vec<Role>, Vec<BorrowedFd<'_>>) = fds.into_iter().unzip();
    let bits = [
        (container.config.stdin, launch_flag::STDIN),
        (container.config.tty, launch_flag::TTY),
    ];
    let flags = bits
        .iter()
        .filter(|(asked, _)| *asked)
        .fold(0, |all, (_, bit)| all | bit);

    let (killer, wait, ended) = (cgroup.path().clone(), engine.kill_wait(), Arc::clone(engine));
    let (last, forget) = (Arc::clone(keeper), Arc::clone(container));
    undo.push("end the container's processes", async move {
        let root = ended.native.cgroups.clone();
        blocking("CreateContainer", move || kill_and_wait(&root, &killer, wait)).await?;
        forget_task(&ended, &last, &forget).await
    });
    let request = Request::Launch {
        kind: TaskKind::Container,
        flags,
        target: target(engine, container)?,
        roles,
    };
    let patience = Duration::from_secs(engine.config.timeouts.create_seconds.into())
        .saturating_add(hooks::patience(engine, container));
    let reply = match tokio::time::timeout(patience, keeper.call(handle, request, &fds)).await {
        Ok(reply) => reply.map_err(|e| plans::explain(e, &built.encoded))?,
        Err(_) => return Err(NativeError::CreateTimeout(patience.as_secs()).into()),
    };
    let reply = if hooks::any(container, When::CreateRuntime) {
        run_create_hooks(engine, keeper, container, cgroup, &built.encoded).await?
    } else {
        reply
    };
    let identity = match Report::decode(&reply.body) {
        Some(Report::Ready(identity)) => Identity {
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
        },
        _ => return Err(NativeError::PodinitGone.into()),
    };
    let pid = first_process(cgroup)?;
    // Last, so that a limit smaller than the stage's own needs does not end it.
    cgroup
        .apply(&built.limits, Phase::All)
        .map_err(NativeError::from)?;
    Ok(Built {
        pid,
        cgroup: cgroup.path().as_str().to_owned(),
        identity,
    })
}

/// The stage waits at a gate with all mounts made: runs the hooks of the runtime's namespaces and lets it go on to its
/// start gate. The reply to that.
async fn run_create_hooks(
    engine: &Arc<Engine>,
    keeper: &Arc<Keeper>,
    container: &Arc<Container>,
    cgroup: &Cgroup,
    plan: &[u8],
) -> Result<Reply, EngineError> {
    let pid = first_process(cgroup)?;
    hooks::run(engine, container, When::CreateRuntime, Some(pid)).await?;
    let handle = container_handle(container.record.handle);
    let longer = hooks::patience(engine, container);
    let reply = keeper.open_gate(handle, longer).await;
    Ok(reply.map_err(|e| plans::explain(e, plan))?)
}

fn first_process(cgroup: &Cgroup) -> Result<i32, NativeError> {
    let processes = cgroup.procs()?;
    Ok(processes.first().copied().unwrap_or_default().cast_signed())
}

/// The handle of the container whose pid namespace this one joins, 0 for none.
fn target(engine: &Engine, container: &Container) -> Result<u32, EngineError> {
    let ContainerPid::Target(id) = container.config.security.pid else {
        return Ok(0);
    };
    let snapshot = engine.snapshot();
    let target = snapshot.container(&id).ok_or(EngineError::ContainerGone(id))?;
    Ok(container_handle(target.record.handle))
}

fn kill_and_wait(
    root: &runtime_core::cgroup::CgroupRoot,
    path: &CgroupPath,
    wait: Duration,
) -> Result<(), NativeError> {
    let Some(cgroup) = root.find(path)? else {
        return Ok(());
    };
    cgroup.kill()?;
    Ok(cgroup.wait_empty(Instant::now() + wait)?)
}

/// Makes podinit forget the task of a container whose processes were killed. What a podinit remembers that does not
/// answer, or that waits for the disk of a log, goes with the pod; the number is given to no other container.
///
/// # Errors
/// It does not end in time, or podinit refuses.
async fn forget_task(engine: &Engine, keeper: &Keeper, container: &Container) -> Result<(), EngineError> {
    let (waited, handle) = (engine.kill_wait(), container_handle(container.record.handle));
    let forgotten = async {
        // Killed, and not collected yet.
        while !forgets(keeper, handle).await? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    };
    match tokio::time::timeout(waited, forgotten).await {
        Ok(Err(EngineError::Native(NativeError::PodinitSilent { .. }))) => Ok(()),
        Ok(forgotten) => forgotten,
        Err(_) if is_reaped(keeper, handle).await? => Ok(()),
        Err(_) => Err(EngineError::WillNotDie {
            container: container.record.id,
            waited,
        }),
    }
}

/// Whether podinit knows no first process of a task any more, though it may know the task.
async fn is_reaped(keeper: &Keeper, handle: u32) -> Result<bool, EngineError> {
    let tasks = keeper.tasks().await?;
    let task = tasks.iter().find(|task| task.handle == handle);
    Ok(task.is_none_or(|task| task.pid == 0))
}

/// Whether podinit knows nothing of a task any more; it keeps one that has not ended.
async fn forgets(keeper: &Keeper, handle: u32) -> Result<bool, EngineError> {
    const EBUSY: i32 = 16;
    const ESRCH: i32 = 3;
    match keeper.call(handle, Request::Forget, &[]).await {
        Ok(_) | Err(NativeError::PodinitGone) => Ok(true),
        Err(NativeError::Podinit { source, .. }) if source.raw_os_error() == Some(ESRCH) => Ok(true),
        Err(NativeError::Podinit { source, .. }) if source.raw_os_error() == Some(EBUSY) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Ends a container that was being made when podd died, and makes podinit forget it.
///
/// Its stage may be anywhere: what it clones into the cgroup next is killed next.
///
/// # Errors
/// It does not end in time, or podinit refuses.
pub async fn take_back(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<(), EngineError> {
    let waited = engine.kill_wait();
    let ended = async {
        while kill(engine, container).await? != Killed::Unseen {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let keeper = engine.native.keeper(&container.record.pod)?;
            if forgets(&keeper, container_handle(container.record.handle)).await? {
                break;
            }
        }
        Ok(())
    };
    let late = |_| EngineError::WillNotDie {
        container: container.record.id,
        waited,
    };
    tokio::time::timeout(waited, ended).await.map_err(late)?
}

/// Opens the start gate and waits until the application was executed; when that was.
///
/// # Errors
/// It could not be executed; then no process of the container is left.
pub async fn start(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<Nanos, EngineError> {
    const EALREADY: i32 = 114;
    let keeper = engine.native.keeper(&container.record.pod)?;
    let handle = container_handle(container.record.handle);
    let longer = hooks::patience_at_start(engine, container);
    match keeper.open_gate(handle, longer).await {
        Ok(reply) => {
            let task = TaskState::decode(&reply.body);
            Ok(task.map_or_else(super::now, |task| exits::nanos(task.started)))
        }
        Err(NativeError::Podinit { source, .. }) if source.raw_os_error() == Some(EALREADY) => {
            was_started(&keeper, handle, source).await
        }
        Err(NativeError::Stage(failure)) if failure.subject.starts_with(hooks::START_MARK) => {
            Err(plans::of_hook(&failure).into())
        }
        Err(NativeError::Stage(failure)) => Err(plans::at_start(&failure).into()),
        Err(e) => Err(e.into()),
    }
}

/// Waits for what came of a gate that was opened already: by a podd that was killed before it heard of it.
async fn was_started(keeper: &Keeper, handle: u32, refused: io::Error) -> Result<Nanos, EngineError> {
    loop {
        let tasks = keeper.tasks().await?;
        match tasks.iter().find(|task| task.handle == handle) {
            Some(task) if task.started != 0 => return Ok(exits::nanos(task.started)),
            Some(task) if task.phase == TaskPhase::Created => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // It ended at the gate, or podinit told the other podd why it cannot be executed.
            _ => break,
        }
    }
    Err(NativeError::Step {
        doing: "execute the command".to_owned(),
        command: true,
        source: refused,
    }
    .into())
}

/// Sends a signal to the container's first process; one that is gone counts as done. Where podinit does not answer,
/// podd sends it.
///
/// # Errors
/// The signal could not be sent.
pub async fn signal(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    signal: StopSignal,
) -> Result<(), EngineError> {
    const ESRCH: i32 = 3;
    let keeper = match engine.native.keeper(&container.record.pod) {
        Err(NativeError::PodinitGone) => return Ok(()),
        other => other?,
    };
    let request = Request::Signal(signal.number().unsigned_abs());
    match keeper
        .call(container_handle(container.record.handle), request, &[])
        .await
    {
        Ok(_) | Err(NativeError::PodinitGone) => Ok(()),
        Err(NativeError::Podinit { source, .. }) if source.raw_os_error() == Some(ESRCH) => Ok(()),
        Err(NativeError::PodinitSilent { .. }) => {
            if let Some(process) = child_of(container, &keeper) {
                sys::signal::send_to_pidfd(&process, signal.number()).map_err(|errno| {
                    NativeError::Kernel {
                        operation: "send a signal",
                        source: errno.into(),
                    }
                })?;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// The container's first process, if it still is the one that podinit started.
fn child_of(container: &Container, keeper: &Keeper) -> Option<OwnedFd> {
    let ContainerPhase::Running { pid, .. } = container.record.phase else {
        return None;
    };
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Asked when the number cannot become another process any more: nobody but podinit reaps its children.
    let stat = Stat::read(pid.cast_unsigned()).ok()?;
    (stat.parent == keeper.process.pid.cast_unsigned()).then_some(pidfd)
}

/// Waits until the container's cgroup has no live process, for so long. Blocks a thread of its own.
///
/// # Errors
/// There still is one, or the cgroup cannot be read.
pub async fn wait_empty(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    patience: Duration,
) -> Result<(), EngineError> {
    let (waiter, of) = (Arc::clone(engine), Arc::clone(container));
    let deadline = Instant::now() + patience;
    blocking("StopContainer", move || -> Result<(), EngineError> {
        match exits::find_cgroup(&waiter, &of)? {
            Some(cgroup) => Ok(cgroup.wait_empty(deadline).map_err(NativeError::from)?),
            None => Ok(()),
        }
    })
    .await
}

/// Kills every process of the container, without waiting for the exit report.
///
/// # Errors
/// The processes could not be killed.
pub async fn kill(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<Killed, EngineError> {
    const SIGKILL: u32 = 9;
    const ESRCH: i32 = 3;
    let (killer, victim) = (Arc::clone(engine), Arc::clone(container));
    blocking("StopContainer", move || -> Result<(), EngineError> {
        match exits::find_cgroup(&killer, &victim)? {
            Some(cgroup) => {
                victim.lock.killed_after(exits::oom_kills(&cgroup));
                Ok(cgroup.kill().map_err(NativeError::from)?)
            }
            None => Ok(()),
        }
    })
    .await?;
    let keeper = match engine.native.keeper(&container.record.pod) {
        Err(NativeError::PodinitGone) => return Ok(Killed::Unseen),
        other => other?,
    };
    // The first process may have left the cgroup; through podinit the signal reaches it wherever it is.
    match keeper
        .call(
            container_handle(container.record.handle),
            Request::Signal(SIGKILL),
            &[],
        )
        .await
    {
        Ok(_) => Ok(Killed::WillReport),
        Err(NativeError::PodinitSilent { .. }) => {
            if let Some(process) = child_of(container, &keeper) {
                let _ended_meanwhile = sys::signal::send_to_pidfd(&process, SIGKILL.cast_signed());
            }
            Ok(Killed::Silent)
        }
        Err(NativeError::PodinitGone) => Ok(Killed::Unseen),
        Err(NativeError::Podinit { source, .. }) if source.raw_os_error() == Some(ESRCH) => {
            let tasks = keeper.tasks().await?;
            let known = tasks
                .iter()
                .any(|task| task.handle == container_handle(container.record.handle));
            Ok(if known { Killed::WillReport } else { Killed::Unseen })
        }
        Err(e) => Err(e.into()),
    }
}

/// Frees what a dead container still has outside its directory: its cgroup, podinit's memory of it, its hold on
/// the image. The directory is deleted by the caller. What is gone counts as done.
///
/// # Errors
/// The step that failed; those after it were tried all the same.
pub async fn remove(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<(), EngineError> {
    let forgotten = match engine.native.keeper(&container.record.pod) {
        Ok(keeper) => forget_task(engine, &keeper, container).await,
        Err(_) => Ok(()),
    };
    engine.native.release(&container.record.id);
    engine.native.execs.forget(&container.record.id);
    let (remover, removed) = (Arc::clone(engine), Arc::clone(container));
    let deadline = Instant::now() + engine.kill_wait();
    let cleared = blocking("RemoveContainer", move || -> Result<(), EngineError> {
        match exits::find_cgroup(&remover, &removed)? {
            Some(cgroup) => Ok(cgroup.remove(deadline).map_err(NativeError::from)?),
            None => Ok(()),
        }
    });
    cleared.await?;
    forgotten
}

/// Makes podinit open the log file anew.
///
/// # Errors
/// The file cannot be opened; the old one stays in use.
pub async fn reopen_log(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<(), EngineError> {
    let keeper = engine.native.keeper(&container.record.pod)?;
    let Some(pod) = engine.snapshot().pod(&container.record.pod).cloned() else {
        return Ok(());
    };
    let of = Arc::clone(container);
    let opened = async {
        // A thread that hangs keeps this, so that the next ones wait without a thread.
        let alone = Arc::clone(&container.lock.log).lock_owned().await;
        blocking("ReopenContainerLog", move || {
            let opened = open_log(&pod, &of);
            drop(alone);
            opened
        })
        .await
    };
    let late = |_| NativeError::LogHangs(build::VOLUME_DEADLINE.as_secs());
    let opened = tokio::time::timeout(build::VOLUME_DEADLINE, opened).await;
    let Some(log) = opened.map_err(late)?? else {
        return Ok(());
    };
    keeper
        .call(
            container_handle(container.record.handle),
            Request::Reopen,
            &[log.as_fd()],
        )
        .await?;
    Ok(())
}
