//! After a start of podd: which of the recorded pods and containers still live, what ended meanwhile, and what
//! was half made.
//!
//! Assumptions: the kernel alone says what is alive; a podinit that answers on its socket is the pod's own, as the
//! socket is gone with it; what podinit reports of a container counts more than the record, which may be older.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use podd_netplug::Attachment;
use runtime_core::pod::{self, TaskPhase, TaskState};

use super::keeper::{Keeper, container_handle};
use super::native::NativeError;
use super::{Engine, EngineError, blocking, exits, plans};
use crate::model::{ContainerId, PodId};
use crate::observe::metrics::Leak;
use crate::state::phase::{ContainerEvent, ContainerPhase, PodPhase};
use crate::state::record::ProcessRef;
use crate::state::recover::Recovered;
use crate::state::store::{Container, Pod};

/// How long a podinit may take to say that it is there. One that waits for the disk of a log is alive all the same, and
/// who does not answer is ended.
const ANSWER: Duration = Duration::from_secs(15);

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
            let Ok(keeper) = podinit else {
                lost.push(pod.record.id);
                continue;
            };
            match self.adopt(pod, &keeper).await {
                // It was asked to end by the podd before, and ends now: whoever listens to it reports that.
                Err(EngineError::Native(NativeError::PodinitGone)) => {}
                // One pod whose log disk hangs must not keep the others from being served.
                Err(e @ EngineError::Native(NativeError::PodinitSilent { .. })) => {
                    tell(&e, "cannot catch up with a pod", pod.record.id);
                }
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

    /// Connects to the podinit of a pod.
    async fn find_podinit(&self, pod: &Pod) -> Result<Arc<Keeper>, EngineError> {
        let path = self.native.socket_path(&pod.record.id);
        let connected = blocking("recovery", move || -> Result<_, NativeError> {
            let podinit = pod::connect(&path, ANSWER).map_err(|_| NativeError::PodinitGone)?;
            let start_time = plans::start_time(podinit.pid).map_err(|_| NativeError::PodinitGone)?;
            Ok((podinit, start_time))
        });
        let (podinit, start_time) = connected.await?;
        let process = ProcessRef {
            pid: podinit.pid.cast_signed(),
            start_time,
        };
        Ok(
            Keeper::new(podinit.socket, podinit.pidfd, process).map_err(|source| NativeError::Kernel {
                operation: "watch podinit's socket",
                source,
            })?,
        )
    }

    /// Takes over a living pod and catches up with its containers.
    async fn adopt(self: &Arc<Self>, pod: &Pod, keeper: &Arc<Keeper>) -> Result<(), EngineError> {
        super::pod::attend(self, pod.record.id, keeper);
        let tasks = keeper.tasks().await?;
        for container in self.snapshot().containers_of(&pod.record.id) {
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
        let Ok(keeper) = self.find_podinit(&pod).await else {
            return false;
        };
        tracing::warn!(pod = %id, "podinit of the pod has closed its connection and is connected to again");
        if let Err(e) = self.adopt(&pod, &keeper).await {
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

fn tell(e: &EngineError, what: &'static str, pod: PodId) {
    let e: &(dyn std::error::Error + 'static) = e;
    tracing::error!(%pod, error = e, what);
}
