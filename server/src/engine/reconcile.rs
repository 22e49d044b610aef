//! After a start of podd: which of the recorded pods and containers still live, what ended meanwhile, and what
//! was half made.
//!
//! Assumptions: the kernel alone says what is alive; who holds a podinit's socket is the pod's own podinit, as the
//! socket is gone with it; what podinit reports of a container counts more than the record, which may be older. A podinit
//! that lives and does not answer is alive, and so is its pod: podd catches up with it when it answers.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use podd_netplug::Attachment;
use runtime_core::pod::{self, Found, TaskPhase, TaskState};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::keeper::{Keeper, container_handle};
use super::native::NativeError;
use super::{Engine, EngineError, blocking, exits, plans};
use crate::model::{ContainerId, PodId};
use crate::observe::metrics::Leak;
use crate::state::phase::{ContainerEvent, ContainerPhase, PodPhase};
use crate::state::record::ProcessRef;
use crate::state::recover::Recovered;
use crate::state::store::{Container, Pod};

/// How long a start of podd waits for a podinit to say that it is there.
const ANSWER: Duration = Duration::from_secs(5);

/// How many podinits are waited for at once.
const ASKED_AT_ONCE: usize = 32;

impl Engine {
    /// Brings records and host together again, before the first request is answered.
    ///
    /// # Errors
    /// The host could not be asked.
    pub(super) async fn reconcile(self: &Arc<Self>, found: &Recovered) -> Result<(), EngineError> {
        self.disown(found).await?;
        let snapshot = self.snapshot();
        for container in snapshot.containers() {
            self.hold_layers(container);
        }
        let lost = self.adopt_living().await?;
        self.sweep_podinits().await?;
        self.sweep_remains().await?;
        let live: Vec<Attachment> = snapshot
            .pods()
            .filter_map(|pod| pod.record.attachment.clone())
            .collect();
        let network = self.native.network.reconcile(&live).await;
        let network = network.map_err(NativeError::from)?;
        self.metrics.leaked(Leak::Link, network.removed_links.len(), true);
        for id in &found.half_made_containers {
            let taken_back = self.delete_half_made(*id).await;
            self.metrics.leaked(Leak::Container, 1, taken_back);
        }
        for id in lost.into_iter().filter(|id| !found.half_made_pods.contains(id)) {
            self.report_pod_lost(id);
        }
        for id in &found.half_made_pods {
            let Some(pod) = self.snapshot().pod(id).cloned() else {
                continue;
            };
            let removed = self.remove_pod_now(&pod).await;
            self.metrics.leaked(Leak::Pod, 1, removed.is_ok());
            if let Err(e) = removed {
                tell(&e, "cannot take back a pod that was being made", *id);
            }
        }
        Ok(())
    }

    /// Takes over all pods whose podinit answers; returns the others.
    async fn adopt_living(self: &Arc<Self>) -> Result<Vec<PodId>, EngineError> {
        let snapshot = self.snapshot();
        let living = snapshot
            .pods()
            .filter(|pod| pod.record.phase != PodPhase::NotReady);
        let mut answers = stream::iter(living)
            .map(|pod| async move { (pod, self.find_podinit(pod).await) })
            .buffer_unordered(ASKED_AT_ONCE);
        let mut lost = Vec::new();
        while let Some((pod, podinit)) = answers.next().await {
            let Ok((keeper, answers)) = podinit else {
                lost.push(pod.record.id);
                continue;
            };
            match self.adopt(pod.record.id, keeper, answers).await {
                // It was asked to end by the podd before, and ends now: whoever listens to it reports that.
                Err(EngineError::Native(NativeError::PodinitGone)) => {}
                adopted => adopted?,
            }
        }
        Ok(lost)
    }

    /// Marks what was half made as left over, before its end is recorded: a podd that comes after a crash in the
    /// middle of this takes it back as well, and does not mistake it for something that was made and is over.
    async fn disown(&self, found: &Recovered) -> Result<(), EngineError> {
        let (pods, containers) = (found.half_made_pods.clone(), found.half_made_containers.clone());
        let state = Arc::clone(&self.state);
        blocking("recovery", move || -> Result<_, EngineError> {
            for id in pods {
                let marked = state.update_pod(&id, |record| {
                    record.leftover = true;
                    Ok(())
                });
                marked.map_err(|e| EngineError::of_pod(id, e))?;
            }
            for id in containers {
                let marked = state.update_container(&id, |record| {
                    record.leftover = true;
                    Ok(())
                });
                marked.map_err(|e| EngineError::of_container(id, e))?;
            }
            Ok(())
        })
        .await
    }

    fn hold_layers(&self, container: &Container) {
        let record = &container.record;
        let volumes = record.image_volumes.iter().map(|volume| &volume.image_id);
        let ids = volumes.chain([&record.image_id]);
        let holds = ids.filter_map(|id| self.images.hold_by_id(&podd_images::ImageId::parse(id)?));
        self.native.hold(record.id, holds.collect());
    }

    /// Connects to the podinit of a pod; whether it answers.
    async fn find_podinit(&self, pod: &Pod) -> Result<(Arc<Keeper>, bool), EngineError> {
        let (path, recorded) = (self.native.socket_path(&pod.record.id), pod.record.podinit);
        let connected = blocking("recovery", move || -> Result<_, NativeError> {
            let gone = |_| NativeError::PodinitGone;
            match pod::find(&path, ANSWER).map_err(gone)? {
                Found::Answers(podinit) => {
                    let process = ProcessRef {
                        pid: podinit.pid.cast_signed(),
                        start_time: plans::start_time(podinit.pid).map_err(gone)?,
                    };
                    Ok((podinit.socket, podinit.pidfd, process, true))
                }
                Found::Silent(socket) => {
                    let process = recorded.ok_or(NativeError::PodinitGone)?;
                    Ok((socket, open_recorded(process)?, process, false))
                }
            }
        });
        let (socket, pidfd, process, answers) = connected.await?;
        let keeper = Keeper::new(socket, pidfd, process).map_err(|source| NativeError::Kernel {
            operation: "watch podinit's socket",
            source,
        })?;
        Ok((keeper, answers))
    }

    /// Takes over a living pod and catches up with its containers, now or when podinit answers.
    async fn adopt(
        self: &Arc<Self>,
        pod: PodId,
        keeper: Arc<Keeper>,
        answers: bool,
    ) -> Result<(), EngineError> {
        super::pod::attend(self, pod, &keeper);
        if answers {
            match self.catch_up_with(pod, &keeper).await {
                Err(EngineError::Native(NativeError::PodinitSilent { .. })) => {}
                done => return done,
            }
        }
        self.catch_up_later(pod, keeper);
        Ok(())
    }

    /// Catches up with a pod whose podinit does not answer now, as soon as it does.
    fn catch_up_later(self: &Arc<Self>, pod: PodId, keeper: Arc<Keeper>) {
        tracing::warn!(%pod, "podinit does not answer: what became of the pod's containers is not known yet");
        let engine = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(engine) = engine.upgrade() {
                match engine.catch_up_with(pod, &keeper).await {
                    Err(EngineError::Native(NativeError::PodinitSilent { .. })) => {}
                    Err(EngineError::Native(NativeError::PodinitGone)) => return,
                    Err(e) => return tell(&e, "cannot catch up with a pod", pod),
                    Ok(()) => return tracing::info!(%pod, "podinit answers again"),
                }
            }
        });
    }

    /// Asks podinit what became of the pod's containers.
    async fn catch_up_with(self: &Arc<Self>, pod: PodId, keeper: &Arc<Keeper>) -> Result<(), EngineError> {
        let tasks = keeper.tasks().await?;
        for container in self.snapshot().containers_of(&pod) {
            let handle = container_handle(container.record.handle);
            let task = tasks.iter().find(|task| task.handle == handle);
            self.catch_up(container.record.id, task).await?;
        }
        Ok(())
    }

    /// Takes over a pod whose podinit lives and has closed its connection; whether it answers on a new one.
    pub(super) async fn connect_again(self: &Arc<Self>, id: PodId) -> bool {
        let Some(pod) = self.snapshot().pod(&id).cloned() else {
            return false;
        };
        let Ok((keeper, answers)) = self.find_podinit(&pod).await else {
            return false;
        };
        tracing::warn!(pod = %id, "podinit of the pod has closed its connection and is connected to again");
        if let Err(e) = self.adopt(id, keeper, answers).await {
            tell(&e, "cannot catch up with a pod", id);
        }
        true
    }

    /// Brings a container's record to what podinit says of it.
    async fn catch_up(
        self: &Arc<Self>,
        id: ContainerId,
        task: Option<&TaskState>,
    ) -> Result<(), EngineError> {
        let Some(known) = self.snapshot().container(&id).cloned() else {
            return Ok(());
        };
        // podinit may report an exit by itself meanwhile, which waits for this lock too.
        let _serial = known.lock.serial.lock().await;
        let Some(container) = self.snapshot().container(&id).cloned() else {
            return Ok(());
        };
        let Some(task) = task.copied() else {
            let alive = matches!(
                container.record.phase,
                ContainerPhase::Created { .. } | ContainerPhase::Running { .. }
            );
            return if alive { self.bury_unseen(id).await } else { Ok(()) };
        };
        let created = matches!(container.record.phase, ContainerPhase::Created { .. });
        if created && task.started != 0 {
            self.apply(
                id,
                ContainerEvent::Started {
                    at: exits::nanos(task.started),
                },
            )
            .await?;
        }
        if matches!(task.phase, TaskPhase::Exited(_) | TaskPhase::Killed(_))
            && container.record.phase.is_alive()
        {
            let engine = Arc::clone(self);
            let exit = blocking("recovery", move || -> Result<_, EngineError> {
                Ok(exits::settle(&engine, &container, task))
            });
            self.apply(id, ContainerEvent::Exited(exit.await?)).await?;
        }
        Ok(())
    }

    /// Whether nothing is left of it.
    async fn delete_half_made(self: &Arc<Self>, id: ContainerId) -> bool {
        let Some(container) = self.snapshot().container(&id).cloned() else {
            return true;
        };
        let done = async {
            super::container::take_back(self, &container).await?;
            self.delete_container(&container).await
        };
        let done = done.await;
        if let Err(e) = &done {
            let e: &(dyn std::error::Error + 'static) = e;
            tracing::error!(container = %id, error = e, "cannot take back a container that was being made");
        }
        done.is_ok()
    }
}

/// A podinit by its record, if it is still there.
fn open_recorded(process: ProcessRef) -> Result<OwnedFd, NativeError> {
    let named = Pid::from_raw(process.pid).ok_or(NativeError::PodinitGone)?;
    let pidfd = pidfd_open(named, PidfdFlags::empty()).map_err(|_| NativeError::PodinitGone)?;
    let start_time = plans::start_time(process.pid.cast_unsigned()).ok();
    if start_time == Some(process.start_time) {
        Ok(pidfd)
    } else {
        Err(NativeError::PodinitGone)
    }
}

fn tell(e: &EngineError, what: &'static str, pod: PodId) {
    let e: &(dyn std::error::Error + 'static) = e;
    tracing::error!(%pod, error = e, what);
}
