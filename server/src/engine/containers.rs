//! The life of a container, as order and bookkeeping; `container` does the work on the host.
//!
//! Owns Create-, Start-, Stop- and RemoveContainer, ReopenContainerLog and ExecSync from the checked request to
//! the answer, and what an exit means.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use podd_images::Image;
use tracing::Instrument as _;

use super::error::sentence;
use super::hooks::{self, When};
use super::keeper::number_of;
use super::named::check_apparmor;
use super::pods::{known, unwound};
use super::undo::{Undo, UndoFailure};
use super::{Act, CreateContainer, Engine, EngineError, ExecOutput, Outcome, blocking, container, exec};
use super::{exits, now, settle};
use crate::model::{ContainerId, ContainerMetadata, StopSignal};
use crate::observe::metrics::Stage;
use crate::state::phase::{ContainerEvent, ContainerPhase, Exit, PodPhase, Reason};
use crate::state::record::{ContainerRecord, Encoded, VERSION};
use crate::state::recover::UNSEEN_EXIT;
use crate::state::store::{Container, Pod};
use crate::trace::context::{self as trace, inherit};

/// Exit code of a container whose application could not be executed; other runtimes report the same.
pub(super) const START_FAILED: i32 = 128;

impl Engine {
    /// Builds a container up to its start gate and returns its id.
    ///
    /// The same request again joins the one that runs, or finds the container that it made.
    ///
    /// # Errors
    /// The pod is unknown or not ready, the name is taken by a different request, the image is not in the local
    /// store, or the host refused something: then nothing is left of the container, or an
    /// [`EngineError::Unwound`] says what is.
    pub async fn create_container(self: &Arc<Self>, request: CreateContainer) -> Outcome<ContainerId> {
        let found = self.find_pod(&request.pod)?;
        let pod = found.record.id;
        let name = request.config.metadata.clone();
        let fingerprint = request.fingerprint;
        let engine = Arc::clone(self);
        let shown = shown(&name);
        let body = async move {
            let _shared = found.lock.shared().await;
            let pod = engine
                .snapshot()
                .pod(&pod)
                .cloned()
                .ok_or(EngineError::PodGone(pod))?;
            engine.make_container(&pod, request).await
        };
        let joined = || self.metrics.joined("CreateContainer");
        let joined = self
            .running_containers
            .join((pod, name), fingerprint, body, joined)
            .await;
        settle(joined, "CreateContainer", || shown)
    }

    async fn make_container(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        request: CreateContainer,
    ) -> Result<ContainerId, EngineError> {
        let fingerprint = request.fingerprint.to_string();
        if let Some(holder) = self
            .snapshot()
            .container_named(&pod.record.id, &request.config.metadata)
        {
            let record = &holder.record;
            // Whatever became of it since: a client that asks again has not seen the first answer.
            if record.fingerprint == fingerprint && record.phase != ContainerPhase::Creating {
                self.metrics.found_made("CreateContainer");
                return Ok(record.id);
            }
            let name = shown(&request.config.metadata);
            return Err(EngineError::ContainerNameTaken {
                name,
                holder: record.id,
                phase: record.phase.name(),
            });
        }
        if pod.record.phase != PodPhase::Ready {
            return Err(EngineError::PodPhase {
                pod: pod.record.id,
                phase: pod.record.phase.name(),
            });
        }
        request.config.check_in(&pod.config)?;
        self.check_target(pod, &request.config)?;
        check_apparmor(&request.config).await?;
        self.check_labels(pod, &request.config).await?;
        let image = self.local_image(&request.config.image.image)?;
        let volumes = self.image_volumes(&request.config)?;
        let cdi = self.cdi_edits(&request.config).await?;
        let id = ContainerId::random().map_err(EngineError::MakeId)?;
        trace::note("container.id", id);
        let state = Arc::clone(&self.state);
        let (parent, boot_id) = (Arc::clone(pod), self.state.boot_id().to_owned());
        let held = image.clone();
        let recorded = blocking("CreateContainer", move || -> Result<(), EngineError> {
            let new = new_container(id, &parent, request, fingerprint, &held);
            let record = ContainerRecord {
                boot_id,
                image_volumes: volumes,
                cdi,
                ..new.record
            };
            Ok(state.insert_container(Container { record, ..new })?)
        });
        self.metrics.stage(Stage::Record, recorded).await?;

        let mut undo = Undo::new();
        let made = AssertUnwindSafe(self.build_container(pod, id, &image, &mut undo))
            .catch_unwind()
            .await;
        match made.unwrap_or(Err(EngineError::Panicked("CreateContainer"))) {
            Ok(()) => {
                undo.disarm();
                Ok(id)
            }
            Err(e) => {
                let failures = undo.unwind().await;
                self.run_poststop(&id).await;
                Err(self.discard_container(id, e, failures).await)
            }
        }
    }

    /// Runs the hooks of a container whose processes, mounts and cgroup are gone.
    async fn run_poststop(self: &Arc<Self>, id: &ContainerId) {
        let found = self.snapshot().container(id).cloned();
        if let Some(found) = found.filter(|found| hooks::any(found, When::Poststop)) {
            hooks::warn(&found, hooks::run(self, &found, When::Poststop, None).await);
        }
    }

    async fn build_container(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        id: ContainerId,
        image: &Image,
        undo: &mut Undo,
    ) -> Result<(), EngineError> {
        let new = self
            .snapshot()
            .container(&id)
            .cloned()
            .ok_or(EngineError::ContainerGone(id))?;
        let built = container::create(self, pod, &new, image, undo).await?;
        let state = Arc::clone(&self.state);
        blocking("CreateContainer", move || {
            let change = state.update_container(&id, |record| {
                record.phase = record.phase.apply(ContainerEvent::Built { pid: built.pid })?;
                record.cgroup = Some(built.cgroup);
                record.identity = Some(built.identity);
                Ok(())
            });
            change.map(drop).map_err(|e| EngineError::of_container(id, e))
        })
        .await
    }

    /// Forgets a container whose creation failed, so that its name is free before anyone is told.
    async fn discard_container(
        &self,
        id: ContainerId,
        e: EngineError,
        undo: Vec<UndoFailure>,
    ) -> EngineError {
        let clean = undo.is_empty();
        let state = Arc::clone(&self.state);
        let forgotten = blocking("CreateContainer", move || -> Result<(), EngineError> {
            if clean {
                return Ok(state.remove_container(&id)?);
            }
            let change = state.update_container(&id, |record| {
                record.leftover = true;
                record.phase = record.phase.apply(ContainerEvent::Exited(cannot_run()))?;
                Ok(())
            });
            change.map(drop).map_err(|e| EngineError::of_container(id, e))
        })
        .await;
        unwound(e, undo, forgotten.err())
    }

    /// Opens the start gate. Starting what runs already is success: a retry whose client gave up asks for that.
    ///
    /// # Errors
    /// The container is unknown or over, or its application cannot be executed: then the container is over, with
    /// the reason `StartError`.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Outcome<()> {
        let id = self.find_container(id)?.record.id;
        let engine = Arc::clone(self);
        self.act(Act::Start(id), async move {
            if engine.open_gate(id).await? {
                engine.run_poststart(id).await?;
            }
            Ok(())
        })
        .await
    }

    /// Runs the hooks of a container that has just been started. One that fails ends it (runtime.md, "Lifecycle").
    async fn run_poststart(self: &Arc<Self>, id: ContainerId) -> Result<(), EngineError> {
        let found = self.snapshot().container(&id).cloned();
        let Some(found) = found.filter(|found| hooks::any(found, When::Poststart)) else {
            return Ok(());
        };
        let pid = match found.record.phase {
            ContainerPhase::Running { pid, .. } => Some(pid),
            _ => None,
        };
        let ran = hooks::run(self, &found, When::Poststart, pid).await;
        if ran.is_err() {
            self.kill_container(&found).await?;
        }
        ran
    }

    /// Whether the container was started by this call, and not before.
    async fn open_gate(self: &Arc<Self>, id: ContainerId) -> Result<bool, EngineError> {
        let found = self
            .snapshot()
            .container(&id)
            .cloned()
            .ok_or(EngineError::ContainerGone(id))?;
        let _shared = self.share_pod(&found).await;
        let _serial = found.lock.serial.lock().await;
        let found = self
            .snapshot()
            .container(&id)
            .cloned()
            .ok_or(EngineError::ContainerGone(id))?;
        match found.record.phase {
            ContainerPhase::Running { .. } => return Ok(false),
            ContainerPhase::Created { .. } => {}
            _ => {
                let event = ContainerEvent::Started { at: 0 };
                let refused = found.record.phase.apply(event).err();
                return Err(refused.map_or(EngineError::ContainerGone(id), |refused| {
                    EngineError::ContainerPhase {
                        container: id,
                        refused,
                    }
                }));
            }
        }
        let started = container::start(self, &found);
        let started = self.metrics.stage(Stage::Start, started).await;
        let event = match &started {
            Ok(at) => ContainerEvent::Started { at: *at },
            Err(e) => ContainerEvent::Exited(Exit {
                code: START_FAILED,
                reason: Reason::StartError,
                message: sentence(e),
                started_at: 0,
                finished_at: now(),
            }),
        };
        self.apply(id, event).await?;
        started.map(|_| true)
    }

    /// Asks a container to stop, waits for the grace period, and kills what is left of it.
    ///
    /// Runs beside other operations on the pod. Asked twice, the shorter grace period ends it.
    ///
    /// # Errors
    /// The id is ambiguous, or killed processes do not vanish. An id that is unknown is no error.
    pub async fn stop_container(self: &Arc<Self>, id: &str, grace: Duration) -> Outcome<()> {
        let Some(found) = known(self.find_container(id))? else {
            return Ok(());
        };
        let engine = Arc::clone(self);
        let work = async move { engine.stop_now(&found, grace).await };
        let work = tokio::spawn(inherit(work).in_current_span());
        match work.await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Arc::new(EngineError::Panicked("StopContainer"))),
        }
    }

    async fn stop_now(self: &Arc<Self>, found: &Arc<Container>, grace: Duration) -> Result<(), EngineError> {
        let id = found.record.id;
        // Who waits at the gate runs no handler: only SIGKILL ends it.
        if matches!(found.record.phase, ContainerPhase::Running { .. }) && !grace.is_zero() {
            if found.lock.first_to_ask() {
                container::signal(self, found, found.record.stop_signal).await?;
            }
            if tokio::time::timeout(grace, self.state.wait_exited(&id))
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        self.kill_container(found).await
    }

    /// Kills everything in a container and waits until its exit is recorded.
    pub(super) async fn kill_container(self: &Arc<Self>, found: &Arc<Container>) -> Result<(), EngineError> {
        let id = found.record.id;
        let current = self.snapshot().container(&id).cloned();
        let Some(found) = current.filter(|c| c.record.phase.is_alive()) else {
            return Ok(());
        };
        let waited = self.kill_wait();
        let killed = async {
            let patience = match container::kill(self, &found).await? {
                container::Killed::Unseen => return self.bury_unseen(id).await,
                container::Killed::Silent => waited,
                container::Killed::WillReport => {
                    if tokio::time::timeout(waited, self.state.wait_exited(&id))
                        .await
                        .is_ok()
                    {
                        return Ok(());
                    }
                    Duration::ZERO
                }
            };
            // The kernel says what is alive: a podinit that hangs, or waits for the disk of a log, keeps no container
            // from being over.
            if container::wait_empty(self, &found, patience).await.is_err() {
                return Err(EngineError::WillNotDie {
                    container: id,
                    waited,
                });
            }
            tracing::warn!(container = %id, "podinit does not say how the container ended");
            self.bury_unseen(id).await
        };
        self.metrics.stage(Stage::Kill, killed).await
    }

    /// Records that a container is over whose end podinit can no longer tell: it may have written it down.
    pub(super) async fn bury_unseen(self: &Arc<Self>, id: ContainerId) -> Result<(), EngineError> {
        let Some(found) = self.snapshot().container(&id).cloned() else {
            return Ok(());
        };
        let engine = Arc::clone(self);
        let recorded = blocking("reading an exit record", move || -> Result<_, EngineError> {
            Ok(exits::recorded(&engine, &found))
        });
        let exit = recorded.await?.unwrap_or_else(unseen);
        self.apply(id, ContainerEvent::Exited(exit)).await
    }

    /// Kills a container where that is still needed, and deletes its files and records; its log stays.
    ///
    /// # Errors
    /// As for [`Engine::stop_container`], or its files cannot be deleted; the container stays known then.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Outcome<()> {
        let Some(found) = known(self.find_container(id))? else {
            return Ok(());
        };
        let (engine, id) = (Arc::clone(self), found.record.id);
        self.act(Act::Remove(id), async move {
            let _shared = engine.share_pod(&found).await;
            engine.kill_container(&found).await?;
            engine.delete_container(&found).await
        })
        .await
    }

    /// Deletes what is left of a container that is over; the caller holds the pod's lock.
    pub(super) async fn delete_container(self: &Arc<Self>, known: &Container) -> Result<(), EngineError> {
        let id = known.record.id;
        let _serial = known.lock.serial.lock().await;
        let Some(found) = self.snapshot().container(&id).cloned() else {
            return Ok(());
        };
        self.metrics
            .stage(Stage::ContainerRemoval, container::remove(self, &found))
            .await?;
        self.run_poststop(&id).await;
        let state = Arc::clone(&self.state);
        blocking("RemoveContainer", move || state.remove_container(&id)).await
    }

    /// Makes podinit open the container's log file anew, after the kubelet has rotated it.
    ///
    /// # Errors
    /// The container is unknown or not running, or the file cannot be opened.
    pub async fn reopen_log(self: &Arc<Self>, id: &str) -> Outcome<()> {
        let found = self.running(id)?;
        Ok(container::reopen_log(self, &found).await?)
    }

    /// Runs a command in a container and waits for it.
    ///
    /// Dropping the future kills the command; `timeout` of none waits for ever.
    ///
    /// # Errors
    /// The container is unknown or over, or the command cannot be executed or takes too long.
    pub async fn exec_sync(
        self: &Arc<Self>,
        id: &str,
        argv: Vec<String>,
        timeout: Option<Duration>,
    ) -> Outcome<ExecOutput> {
        let found = self.enterable(id)?;
        Ok(exec::exec_sync(self, &found, argv, timeout).await?)
    }

    /// The running container that an id, or its unique beginning, names.
    ///
    /// # Errors
    /// It is unknown or not running.
    pub fn running(&self, id: &str) -> Outcome<Arc<Container>> {
        let found = self.find_container(id)?;
        match found.record.phase {
            ContainerPhase::Running { .. } => Ok(found),
            _ => Err(not_running(&found)),
        }
    }

    /// The container that an id, or its unique beginning, names, for a further process in it. One that was not started
    /// will do: it has its namespaces and mounts, and its first process waits at the gate.
    ///
    /// # Errors
    /// It is unknown, or over.
    pub fn enterable(&self, id: &str) -> Outcome<Arc<Container>> {
        let found = self.find_container(id)?;
        match found.record.phase {
            ContainerPhase::Created { .. } | ContainerPhase::Running { .. } => Ok(found),
            ContainerPhase::Creating | ContainerPhase::Exited(_) => Err(not_running(&found)),
        }
    }

    /// Called by `native` when podinit reports an exit, once or again after a restart of podd.
    ///
    /// Returns at once, so that who reads podinit's socket never waits: an exit that overtakes the answer to its
    /// own start is applied after it.
    pub fn report_exit(self: &Arc<Self>, id: ContainerId, exit: Exit) {
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            // Removed meanwhile: nobody is left to be told.
            let Some(found) = engine.snapshot().container(&id).cloned() else {
                return;
            };
            let _serial = found.lock.serial.lock().await;
            match engine.apply(id, ContainerEvent::Exited(exit)).await {
                Ok(()) | Err(EngineError::ContainerGone(_)) => {}
                Err(e) => {
                    let e: &(dyn std::error::Error + 'static) = &e;
                    tracing::error!(container = %id, error = e, "cannot record the exit of a container");
                }
            }
        });
    }

    /// Records what happened to a container. One that is over loses its cgroup when that is on disk, and not before, as
    /// memory.events are asked again after a crash. cAdvisor would go on counting a dead container, and init containers
    /// stay as long as their pod.
    pub(super) async fn apply(&self, id: ContainerId, event: ContainerEvent) -> Result<(), EngineError> {
        let (state, cgroups) = (Arc::clone(&self.state), self.native.cgroups.clone());
        let over = matches!(event, ContainerEvent::Exited(_));
        let cgroup = self
            .snapshot()
            .container(&id)
            .and_then(|c| c.record.cgroup.clone());
        blocking(
            "recording a container's state",
            move || -> Result<(), EngineError> {
                let applied = state.container_event(&id, event);
                applied.map_err(|e| EngineError::of_container(id, e))?;
                if let Some(Ok(path)) = cgroup.filter(|_| over).map(|path| path.parse()) {
                    // What cannot be removed yet, RemoveContainer removes, or says why not.
                    let _ = cgroups.remove(&path, Instant::now());
                }
                Ok(())
            },
        )
        .await
    }
}

/// How a container ended that never came to be.
fn cannot_run() -> Exit {
    Exit {
        code: START_FAILED,
        reason: Reason::ContainerCannotRun,
        message: "the container could not be created".to_owned(),
        started_at: 0,
        finished_at: now(),
    }
}

/// How a container ended whose podinit is no longer there to say.
fn unseen() -> Exit {
    Exit {
        code: UNSEEN_EXIT,
        reason: Reason::Unknown,
        message: "nobody saw how the container ended".to_owned(),
        started_at: 0,
        finished_at: now(),
    }
}

fn new_container(
    id: ContainerId,
    pod: &Pod,
    request: CreateContainer,
    fingerprint: String,
    image: &Image,
) -> Container {
    let config = request.config;
    let log_path = match (&pod.config.log_directory, &config.log_path) {
        (Some(directory), Some(path)) => Some(Path::new(directory).join(path)),
        _ => None,
    };
    let of_image = || StopSignal::from_image(&image.config.config.stop_signal);
    let stop_signal = config.stop_signal.or_else(of_image).unwrap_or(StopSignal::TERM);
    let record = ContainerRecord {
        version: VERSION,
        id,
        pod: pod.record.id,
        boot_id: pod.record.boot_id.clone(),
        handle: number_of(&id),
        name: config.metadata.name.clone(),
        attempt: config.metadata.attempt,
        created_at: now(),
        phase: ContainerPhase::Creating,
        leftover: false,
        fingerprint,
        request: Encoded(request.encoded.into()),
        image_id: image.id.to_string(),
        image_ref: image
            .repo_digests
            .first()
            .cloned()
            .unwrap_or_else(|| image.id.to_string()),
        layers: image.layers.clone(),
        image_volumes: Vec::new(),
        cdi: None,
        log_path,
        cgroup: None,
        stop_signal,
        identity: None,
        updated: None,
    };
    Container {
        record,
        config: Arc::new(config),
        lock: Arc::default(),
    }
}

fn not_running(found: &Container) -> Arc<EngineError> {
    Arc::new(EngineError::NotRunning {
        container: found.record.id,
        phase: found.record.phase.name(),
    })
}

/// Name and attempt, as errors show a container.
fn shown(name: &ContainerMetadata) -> String {
    format!("{} (attempt {})", name.name, name.attempt)
}
