//! The life of a pod, as order and bookkeeping; `pod` does the work on the host.
//!
//! Owns RunPodSandbox, StopPodSandbox and RemovePodSandbox from the checked request to the answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use serde::de::IgnoredAny;
use tokio::sync::OwnedRwLockReadGuard;

use super::place::Place;
use super::undo::{Undo, UndoFailure};
use super::{Act, Engine, EngineError, Outcome, RunPod, blocking, now, pod, settle};
use crate::model::{PodId, PodMetadata};
use crate::observe::metrics::Stage;
use crate::state::phase::{PodEvent, PodPhase};
use crate::state::record::{Encoded, PodRecord, VERSION};
use crate::state::store::{Container, Pod};
use crate::trace::context as trace;

impl Engine {
    /// Makes a pod and returns its id once containers can be created in it.
    ///
    /// The same request again joins the one that runs, or finds the pod that it made.
    ///
    /// # Errors
    /// The name is taken by a different request, the handler is unknown, or the host refused something: then
    /// nothing is left of the pod, or an [`EngineError::Unwound`] says what is.
    pub async fn run_pod(self: &Arc<Self>, request: RunPod) -> Outcome<PodId> {
        let name = request.config.metadata.clone();
        let fingerprint = request.fingerprint;
        let engine = Arc::clone(self);
        let shown = shown(&name);
        let body = async move { engine.make_pod(request).await };
        settle(
            self.running_pods
                .join(name, fingerprint, body, || self.metrics.joined("RunPodSandbox"))
                .await,
            "RunPodSandbox",
            || shown,
        )
    }

    async fn make_pod(self: Arc<Self>, request: RunPod) -> Result<PodId, EngineError> {
        let fingerprint = request.fingerprint.to_string();
        if let Some(holder) = self.snapshot().pod_named(&request.config.metadata) {
            let record = &holder.record;
            if record.fingerprint == fingerprint && record.phase == PodPhase::Ready {
                self.metrics.found_made("RunPodSandbox");
                return Ok(record.id);
            }
            let name = shown(&request.config.metadata);
            return Err(EngineError::PodNameTaken {
                name,
                holder: record.id,
                phase: record.phase.name(),
            });
        }
        if !self.native.knows_handler(&request.handler) {
            return Err(EngineError::UnknownHandler(request.handler));
        }
        let id = PodId::random().map_err(EngineError::MakeId)?;
        let metadata = &request.config.metadata;
        trace::note_pod(&metadata.namespace, &metadata.name, &metadata.uid);
        let place = self.native.place(&id, request.config.cgroup_parent.as_ref())?;
        let new = self.new_pod(id, request, fingerprint, &place);
        let lock = Arc::clone(&new.lock);
        let engine = Arc::clone(&self);
        let recorded = blocking("RunPodSandbox", move || engine.insert_pod(new));
        self.metrics.stage(Stage::Record, recorded).await?;

        let _alone = lock.alone().await;
        let mut undo = Undo::new();
        let made = AssertUnwindSafe(self.start_pod(id, &mut undo))
            .catch_unwind()
            .await;
        match made.unwrap_or(Err(EngineError::Panicked("RunPodSandbox"))) {
            Ok(()) => {
                undo.disarm();
                Ok(id)
            }
            Err(e) => Err(self.discard_pod(id, e, undo.unwind().await).await),
        }
    }

    fn new_pod(&self, id: PodId, request: RunPod, fingerprint: String, place: &Place) -> Pod {
        let metadata = &request.config.metadata;
        let record = PodRecord {
            version: VERSION,
            id,
            boot_id: self.state.boot_id().to_owned(),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            attempt: metadata.attempt,
            runtime_handler: request.handler,
            created_at: now(),
            phase: PodPhase::Creating,
            leftover: false,
            fingerprint,
            request: Encoded(request.encoded.into()),
            cgroup: Some(place.cgroup().as_str().to_owned()),
            scope: place.unit().map(str::to_owned),
            selinux_level: None,
            attachment: None,
            podinit: None,
            next_handle: IgnoredAny,
            updated: None,
        };
        Pod {
            record,
            config: Arc::new(request.config),
            lock: Arc::default(),
        }
    }

    async fn start_pod(self: &Arc<Self>, id: PodId, undo: &mut Undo) -> Result<(), EngineError> {
        let pod = self
            .snapshot()
            .pod(&id)
            .cloned()
            .ok_or(EngineError::PodGone(id))?;
        let assets = pod::start(self, &pod, undo).await?;
        let state = Arc::clone(&self.state);
        blocking("RunPodSandbox", move || {
            let change = state.update_pod(&id, |record| {
                record.phase = record.phase.apply(PodEvent::Started)?;
                record.attachment = assets.attachment;
                record.podinit = Some(assets.podinit);
                Ok(())
            });
            change.map(drop).map_err(|e| EngineError::of_pod(id, e))
        })
        .await
    }

    /// Forgets a pod whose creation failed, so that its name is free before anyone is told.
    async fn discard_pod(&self, id: PodId, e: EngineError, undo: Vec<UndoFailure>) -> EngineError {
        let clean = undo.is_empty();
        let state = Arc::clone(&self.state);
        let forgotten = blocking("RunPodSandbox", move || -> Result<(), EngineError> {
            if clean {
                return Ok(state.remove_pod(&id)?);
            }
            let change = state.update_pod(&id, |record| {
                record.leftover = true;
                record.phase = record.phase.apply(PodEvent::Stopped)?;
                Ok(())
            });
            change.map(drop).map_err(|e| EngineError::of_pod(id, e))
        })
        .await;
        unwound(e, undo, forgotten.err())
    }

    /// Kills the pod's containers and gives back its network; its records and logs stay.
    ///
    /// # Errors
    /// The id is ambiguous, a process will not die, or the host refused something; it can be tried again.
    /// An id that is unknown is no error.
    pub async fn stop_pod(self: &Arc<Self>, id: &str) -> Outcome<()> {
        let Some(pod) = known(self.find_pod(id))? else {
            return Ok(());
        };
        let (engine, id) = (Arc::clone(self), pod.record.id);
        self.act(Act::StopPod(id), async move {
            let _alone = pod.lock.alone().await;
            engine.stop_pod_alone(id).await
        })
        .await
    }

    /// Stops everything in the pod; the caller holds the pod's lock.
    async fn stop_pod_alone(self: &Arc<Self>, id: PodId) -> Result<(), EngineError> {
        let snapshot = self.snapshot();
        let kills = snapshot
            .containers_of(&id)
            .map(|container| self.kill_container(container));
        // All at once, and one that will not die keeps none of the others alive.
        futures::future::join_all(kills)
            .await
            .into_iter()
            .collect::<Result<(), _>>()?;
        let Some(pod) = self.snapshot().pod(&id).cloned() else {
            return Ok(());
        };
        pod::stop(self, &pod).await?;
        let state = Arc::clone(&self.state);
        blocking("StopPodSandbox", move || {
            let change = state.update_pod(&id, |record| {
                record.phase = record.phase.apply(PodEvent::Stopped)?;
                record.attachment = None;
                record.podinit = None;
                Ok(())
            });
            change.map(drop).map_err(|e| EngineError::of_pod(id, e))
        })
        .await
    }

    /// Stops a pod where that is still needed, and deletes its containers, files and records.
    ///
    /// # Errors
    /// As for [`Engine::stop_pod`]; the pod stays known then.
    pub async fn remove_pod(self: &Arc<Self>, id: &str) -> Outcome<()> {
        let Some(pod) = known(self.find_pod(id))? else {
            return Ok(());
        };
        let (engine, id) = (Arc::clone(self), pod.record.id);
        self.act(
            Act::RemovePod(id),
            async move { engine.remove_pod_now(&pod).await },
        )
        .await
    }

    /// Removes a pod of which recovery knows that nobody can be using it, or that a client asked to remove.
    pub(super) async fn remove_pod_now(self: &Arc<Self>, pod: &Pod) -> Result<(), EngineError> {
        let id = pod.record.id;
        let _alone = pod.lock.alone().await;
        self.stop_pod_alone(id).await?;
        for container in self.snapshot().containers_of(&id) {
            self.delete_container(container).await?;
        }
        let Some(pod) = self.snapshot().pod(&id).cloned() else {
            return Ok(());
        };
        self.metrics
            .stage(Stage::PodRemoval, pod::remove(self, &pod))
            .await?;
        let state = Arc::clone(&self.state);
        blocking("RemovePodSandbox", move || state.remove_pod(&id)).await
    }

    /// Waits until nothing excludes operations on the containers of a container's pod. A pod that is gone excludes
    /// none.
    pub(super) async fn share_pod(&self, of: &Container) -> OwnedRwLockReadGuard<()> {
        let pod = self.snapshot().pod(&of.record.pod).cloned();
        let lock = pod.map_or_else(Arc::default, |pod| Arc::clone(&pod.lock));
        lock.shared().await
    }

    /// Called by `native` when a pod's podinit died: the pod is not ready, and what is left of it is ended.
    pub fn report_pod_lost(self: &Arc<Self>, id: PodId) {
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            tracing::warn!(pod = %id, "podinit of the pod died: the pod is no longer ready");
            let Some(pod) = engine.snapshot().pod(&id).cloned() else {
                return;
            };
            let _alone = pod.lock.alone().await;
            if let Err(e) = engine.stop_pod_alone(id).await {
                let e: &(dyn std::error::Error + 'static) = &e;
                tracing::error!(pod = %id, error = e, "cannot end what is left of the pod");
            }
        });
    }
}

/// namespace/name, uid and attempt, as errors show a pod.
fn shown(name: &PodMetadata) -> String {
    format!(
        "{}/{} (uid {}, attempt {})",
        name.namespace, name.name, name.uid, name.attempt
    )
}

/// Stopping and removing the unknown is success.
pub(super) fn known<T>(found: Outcome<T>) -> Outcome<Option<T>> {
    use crate::state::store::LookupError::Unknown;
    match found {
        Ok(object) => Ok(Some(object)),
        Err(e) => match *e {
            EngineError::FindPod(Unknown(_)) | EngineError::FindContainer(Unknown(_)) => Ok(None),
            _ => Err(e),
        },
    }
}

/// The error of an operation, with what could not be taken back.
pub(super) fn unwound(
    e: EngineError,
    mut undo: Vec<UndoFailure>,
    forget: Option<EngineError>,
) -> EngineError {
    if let Some(source) = forget {
        undo.push(UndoFailure {
            name: "forget the record",
            source: Box::new(source),
        });
    }
    if undo.is_empty() {
        e
    } else {
        EngineError::Unwound {
            source: Box::new(e),
            undo,
        }
    }
}
