//! Changing what containers and pods may use, and reading what the kernel holds them to.
//!
//! Owns UpdateContainerResources and UpdatePodSandboxResources from the checked request to the answer: checked,
//! written and read back in one go per object, then recorded. What the files say is what is reported.

use std::sync::Arc;

use runtime_core::cgroup::{Cgroup, Limits, Updated};
use tracing::Instrument as _;

use super::native::NativeError;
use super::{Engine, EngineError, Outcome, blocking, exits};
use crate::model::{PodId, Resources};
use crate::spec::{self, Change};
use crate::state::phase::{ContainerPhase, PodPhase};
use crate::state::record::PodResources;
use crate::state::store::{Container, Pod};

impl Engine {
    /// Changes the resources of a container that is created or running; what the change does not give stays.
    ///
    /// Updates of one container happen one after the other, and go on when the client gives up.
    ///
    /// # Errors
    /// The container is unknown or over, a controller is missing, memory is in use, or the kernel refuses a value:
    /// then nothing has changed, or the error says what has.
    pub async fn update_container(self: &Arc<Self>, id: &str, change: Resources) -> Outcome<()> {
        let found = self.find_container(id)?;
        let engine = Arc::clone(self);
        let work = async move { engine.resize_container(&found, change).await };
        match tokio::spawn(work.in_current_span()).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Arc::new(EngineError::Panicked("UpdateContainerResources"))),
        }
    }

    async fn resize_container(
        self: &Arc<Self>,
        found: &Container,
        change: Resources,
    ) -> Result<(), EngineError> {
        let id = found.record.id;
        let _shared = self.share_pod(found).await;
        let _serial = found.lock.serial.lock().await;
        let Some(found) = self.snapshot().container(&id).cloned() else {
            return Err(EngineError::ContainerGone(id));
        };
        if !matches!(
            found.record.phase,
            ContainerPhase::Created { .. } | ContainerPhase::Running { .. }
        ) {
            return Err(EngineError::NotRunning {
                container: id,
                phase: found.record.phase.name(),
            });
        }
        let engine = Arc::clone(self);
        blocking("UpdateContainerResources", move || {
            engine.change_container(&found, &change)
        })
        .await
    }

    /// Writes files, scores of processes and the record, in this order; takes back what came before a failure.
    fn change_container(&self, container: &Container, change: &Resources) -> Result<(), EngineError> {
        let id = container.record.id;
        let cgroup = exits::find_cgroup(self, container)?.ok_or(EngineError::ContainerGone(id))?;
        let after = container.resources().changed_by(change);
        let (old, new) = (container.resources().oom_score_adj, after.oom_score_adj);
        let (old, new) = (self.score(old), self.score(new));
        let updated = update(&cgroup, change)?;
        if let Err(e) = cgroup.change_oom_score_adj(old, new) {
            let _stays_where_that_fails = cgroup.change_oom_score_adj(new, old);
            return Err(NativeError::from(updated.undo(e)).into());
        }
        let recorded = self.state.update_container(&id, |record| {
            if after != *container.resources() {
                record.updated = Some(after);
            }
            Ok(())
        });
        if let Err(e) = recorded {
            let _stays_where_that_fails = cgroup.change_oom_score_adj(new, old);
            let kept = updated.write_back();
            if !kept.is_empty() {
                tracing::error!(container = %id, files = kept.join(", "), "an update is in force and not recorded");
            }
            return Err(EngineError::of_container(id, e));
        }
        Ok(())
    }

    /// A score as far as podd may give it.
    fn score(&self, asked: i32) -> i32 {
        asked.max(self.native.host.least_oom_score_adj)
    }

    /// Changes what a pod uses beside and with its containers. In a cgroup that the client named, limits of the pod
    /// are the client's to set: there the change is recorded.
    ///
    /// # Errors
    /// As for [`Engine::update_container`].
    pub async fn update_pod(self: &Arc<Self>, id: &str, change: PodResources) -> Outcome<()> {
        let pod = self.find_pod(id)?;
        let id = pod.record.id;
        let engine = Arc::clone(self);
        let work = async move {
            let _shared = pod.lock.shared().await;
            let _serial = pod.lock.resources.lock().await;
            let engine = Arc::clone(&engine);
            blocking("UpdatePodSandboxResources", move || {
                engine.change_pod(id, &change)
            })
            .await
        };
        match tokio::spawn(work.in_current_span()).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Arc::new(EngineError::Panicked("UpdatePodSandboxResources"))),
        }
    }

    fn change_pod(&self, id: PodId, change: &PodResources) -> Result<(), EngineError> {
        let pod = self
            .snapshot()
            .pod(&id)
            .cloned()
            .ok_or(EngineError::PodGone(id))?;
        if pod.record.phase != PodPhase::Ready {
            let phase = pod.record.phase.name();
            return Err(EngineError::PodPhase { pod: id, phase });
        }
        let before = pod.resources();
        let after = PodResources {
            resources: before.resources.changed_by(&change.resources),
            overhead: before.overhead.changed_by(&change.overhead),
        };
        let cgroup = match limits_of_pod(&pod) {
            Some(_) => find(self, &pod)?,
            None => None,
        };
        let total = after.resources.with_overhead(&after.overhead);
        let updated = cgroup.as_ref().map(|cgroup| update(cgroup, &total)).transpose()?;
        let recorded = self.state.update_pod(&id, |record| {
            if after != before {
                record.updated = Some(after);
            }
            Ok(())
        });
        if let Err(e) = recorded {
            let kept = updated.map(Updated::write_back).unwrap_or_default();
            if !kept.is_empty() {
                tracing::error!(pod = %id, files = kept.join(", "), "an update is in force and not recorded");
            }
            return Err(EngineError::of_pod(id, e));
        }
        Ok(())
    }

    /// What the kernel holds containers to, one answer each. Of one that is over, what it was given last.
    ///
    /// # Errors
    /// A defect of podd.
    pub async fn container_resources(
        self: &Arc<Self>,
        containers: Vec<Arc<Container>>,
    ) -> Result<Vec<Resources>, EngineError> {
        let engine = Arc::clone(self);
        blocking("ContainerStatus", move || -> Result<_, EngineError> {
            let read = |container: &Arc<Container>| {
                let alive = container.record.phase.is_alive();
                let found = alive.then(|| exits::find_cgroup(&engine, container));
                match found {
                    Some(Ok(Some(cgroup))) => read_back(&cgroup, container.resources()),
                    _ => container.resources().clone(),
                }
            };
            Ok(containers.iter().map(read).collect())
        })
        .await
    }

    /// What the kernel holds a pod as a whole to, overhead included. Where that is the client's affair, what the
    /// client said.
    ///
    /// # Errors
    /// A defect of podd.
    pub async fn pod_resources(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<Resources, EngineError> {
        let (engine, pod) = (Arc::clone(self), Arc::clone(pod));
        blocking("PodSandboxStatus", move || -> Result<_, EngineError> {
            let asked = pod.resources();
            let total = asked.resources.with_overhead(&asked.overhead);
            Ok(match limits_of_pod(&pod) {
                Some(_) => find(&engine, &pod)?.map_or_else(|| total.clone(), |it| read_back(&it, &total)),
                None => total,
            })
        })
        .await
    }
}

/// Limits that podd itself puts on a pod's cgroup. A client that names the parent sets them there, as kubelets do;
/// what a kubelet sends is the sum of those limits that its containers have, and would limit the others too.
#[must_use]
pub fn limits_of_pod(pod: &Pod) -> Option<Resources> {
    let PodResources { resources, overhead } = pod.resources();
    pod.config
        .cgroup_parent
        .is_none()
        .then(|| resources.with_overhead(&overhead))
}

/// Resources as writes to files of a cgroup.
///
/// # Errors
/// cgroup v2 cannot express them.
pub fn limits(resources: &Resources) -> Result<Limits, NativeError> {
    Ok(Limits::from_oci(&spec::linux_resources(
        resources,
        Change::Update,
    ))?)
}

fn update<'a>(cgroup: &'a Cgroup, resources: &Resources) -> Result<Updated<'a>, NativeError> {
    Ok(cgroup.update(&limits(resources)?)?)
}

fn read_back(cgroup: &Cgroup, asked: &Resources) -> Resources {
    spec::read_back(asked, |file| cgroup.read(file).ok())
}

fn find(engine: &Engine, pod: &Pod) -> Result<Option<Cgroup>, NativeError> {
    let Some(path) = &pod.record.cgroup else {
        return Ok(None);
    };
    let path = path.parse().map_err(NativeError::CgroupPath)?;
    Ok(engine.native.cgroups.find(&path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::tests;

    #[test]
    fn a_named_parent_keeps_the_limits_of_the_pod() {
        let mut pod = tests::pod("a", 0);
        assert_eq!(limits_of_pod(&pod), Some(Resources::default()));
        let config = Arc::make_mut(&mut pod.config);
        config.cgroup_parent = Some(crate::model::CgroupParent::Path("kubepods/pod1".to_owned()));
        assert_eq!(limits_of_pod(&pod), None);
    }
}
