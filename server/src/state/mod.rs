//! What podd remembers: on disk first, then in the snapshot that everyone reads.
//!
//! Owns the order of the two and that changes of one object happen one after the other. Knows no kernel and no
//! CRI. Methods that write block for the length of a small file write: call them from a blocking thread.

pub mod feed;
pub mod locks;
pub mod phase;
pub mod record;
pub mod recover;
pub mod reserve;
pub mod store;
pub mod trash;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;

use crate::model::{ContainerId, PodId};
use feed::Feed;
use phase::{ContainerEvent, Nanos, PodEvent, Refused};
use record::{ContainerRecord, PodRecord, RecordError, Records};
use store::{Container, Pod, Snapshot, Store};

/// Objects are spread over this many locks; two that share one only wait for each other's file writes.
const SHARDS: usize = 64;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The object is not, or no longer, known.
    #[error("it was removed meanwhile")]
    Gone,
    /// The object's phase does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The record could not be written; nothing has changed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Records and snapshot together.
#[derive(Debug)]
pub struct State {
    records: Records,
    store: Store,
    boot_id: String,
    locks: [Mutex<()>; SHARDS],
    changed: [Notify; SHARDS],
}

/// The time of day, for reports only.
#[must_use]
pub fn now() -> Nanos {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Nanos::try_from(since.as_nanos()).unwrap_or(Nanos::MAX)
}

fn shard(id: &impl Hash) -> usize {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or_default()
}

impl State {
    /// Opens the state below `state_dir`; [`recover::recover`] fills it.
    ///
    /// # Errors
    /// Directories cannot be made.
    pub fn open(state_dir: &Path, boot_id: String) -> Result<Self, RecordError> {
        Ok(Self {
            records: Records::open(state_dir)?,
            store: Store::default(),
            boot_id,
            locks: std::array::from_fn(|_| Mutex::new(())),
            changed: std::array::from_fn(|_| Notify::new()),
        })
    }

    /// The files, for the paths of what belongs to one object.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The id of the running kernel's boot.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// What podd knows now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.store.snapshot()
    }

    /// What happens to pods and containers from now on.
    #[must_use]
    pub fn feed(&self) -> &Feed {
        self.store.feed()
    }

    fn lock(&self, id: &impl Hash) -> MutexGuard<'_, ()> {
        self.locks[shard(id)]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a new pod.
    ///
    /// # Errors
    /// The record cannot be written; the pod is not known then.
    pub fn insert_pod(&self, pod: Pod) -> Result<(), RecordError> {
        let _lock = self.lock(&pod.record.id);
        self.records.save_pod(&pod.record)?;
        self.store.put_pod(Arc::new(pod));
        Ok(())
    }

    /// Changes the record of a pod, on disk and then in the snapshot, and returns the pod as it is now.
    ///
    /// # Errors
    /// The pod is unknown, `change` refused, or the record cannot be written: nothing has changed then.
    pub fn update_pod(
        &self,
        id: &PodId,
        change: impl FnOnce(&mut PodRecord) -> Result<(), Refused>,
    ) -> Result<Arc<Pod>, ChangeError> {
        let _lock = self.lock(id);
        let old = self.snapshot().pod(id).cloned().ok_or(ChangeError::Gone)?;
        let mut pod = Pod::clone(&old);
        change(&mut pod.record)?;
        if pod.record == old.record {
            return Ok(old);
        }
        self.records.save_pod(&pod.record)?;
        let pod = Arc::new(pod);
        self.store.put_pod(Arc::clone(&pod));
        Ok(pod)
    }

    /// Moves a pod to its next phase.
    ///
    /// # Errors
    /// As for [`State::update_pod`].
    pub fn pod_event(&self, id: &PodId, event: PodEvent) -> Result<Arc<Pod>, ChangeError> {
        self.update_pod(id, |record| {
            record.phase = record.phase.apply(event)?;
            Ok(())
        })
    }

    /// Forgets a pod and deletes its directory; its containers must be gone.
    ///
    /// # Errors
    /// The directory cannot be deleted; the pod stays known, so that removing it can be tried again.
    pub fn remove_pod(&self, id: &PodId) -> Result<(), RecordError> {
        let _lock = self.lock(id);
        self.records.delete_pod(id)?;
        self.store.drop_pod(id);
        Ok(())
    }

    /// Remembers a new container.
    ///
    /// # Errors
    /// The record cannot be written; the container is not known then.
    pub fn insert_container(&self, container: Container) -> Result<(), RecordError> {
        let _lock = self.lock(&container.record.id);
        self.records.save_container(&container.record)?;
        self.store.put_container(Arc::new(container));
        Ok(())
    }

    /// Changes the record of a container, on disk and then in the snapshot, and returns it as it is now.
    ///
    /// # Errors
    /// The container is unknown, `change` refused, or the record cannot be written: nothing has changed then.
    pub fn update_container(
        &self,
        id: &ContainerId,
        change: impl FnOnce(&mut ContainerRecord) -> Result<(), Refused>,
    ) -> Result<Arc<Container>, ChangeError> {
        let _lock = self.lock(id);
        let old = self.snapshot().container(id).cloned().ok_or(ChangeError::Gone)?;
        let mut container = Container::clone(&old);
        change(&mut container.record)?;
        if container.record == old.record {
            return Ok(old);
        }
        self.records.save_container(&container.record)?;
        let container = Arc::new(container);
        self.store.put_container(Arc::clone(&container));
        self.changed[shard(id)].notify_waiters();
        Ok(container)
    }

    /// Moves a container to its next phase.
    ///
    /// # Errors
    /// As for [`State::update_container`].
    pub fn container_event(
        &self,
        id: &ContainerId,
        event: ContainerEvent,
    ) -> Result<Arc<Container>, ChangeError> {
        self.update_container(id, |record| {
            record.phase = record.phase.apply(event)?;
            Ok(())
        })
    }

    /// Forgets a container and deletes its directory.
    ///
    /// # Errors
    /// The directory cannot be deleted; the container stays known, so that removing it can be tried again.
    pub fn remove_container(&self, id: &ContainerId) -> Result<(), RecordError> {
        let _lock = self.lock(id);
        let Some(container) = self.snapshot().container(id).cloned() else {
            return Ok(());
        };
        self.records.delete_container(&container.record.pod, id)?;
        self.store.drop_container(id);
        self.changed[shard(id)].notify_waiters();
        Ok(())
    }

    /// Waits until a container has exited or is unknown, and returns it as it is then.
    pub async fn wait_exited(&self, id: &ContainerId) -> Option<Arc<Container>> {
        loop {
            // Registered before the look, so that a change right after the look is not missed.
            let changed = self.changed[shard(id)].notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.snapshot().container(id) {
                Some(container) if container.record.phase.is_alive() => {}
                done => return done.cloned(),
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phase::{ContainerPhase, Exit, PodPhase, Reason};
    use record::tests::{container, pod};

    fn open() -> (tempfile::TempDir, State) {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "boot".to_owned()).unwrap();
        (dir, state)
    }

    #[test]
    fn a_change_is_on_disk_and_in_the_snapshot() {
        let (_dir, state) = open();
        let pod = pod("a", 0);
        let id = pod.record.id;
        state.insert_pod(pod).unwrap();
        state.pod_event(&id, PodEvent::Started).unwrap();
        assert_eq!(
            state.records().load_pod(id.as_str()).unwrap().phase,
            PodPhase::Ready
        );
        assert_eq!(state.snapshot().pod(&id).unwrap().record.phase, PodPhase::Ready);
        assert!(matches!(
            state.pod_event(&id, PodEvent::Started),
            Err(ChangeError::Refused(_))
        ));
        state.remove_pod(&id).unwrap();
        state.remove_pod(&id).unwrap();
        assert!(matches!(
            state.pod_event(&id, PodEvent::Stopped),
            Err(ChangeError::Gone)
        ));
        assert!(state.records().pod_names().unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_exit_wakes_whoever_waits() {
        let (_dir, state) = open();
        let state = Arc::new(state);
        let pod = pod("a", 0);
        let container = container(&pod, "c");
        let id = container.record.id;
        state.insert_pod(pod).unwrap();
        state.insert_container(container).unwrap();
        let waiter = tokio::spawn({
            let state = Arc::clone(&state);
            async move { state.wait_exited(&id).await }
        });
        tokio::task::yield_now().await;
        state
            .container_event(&id, ContainerEvent::Built { pid: 1 })
            .unwrap();
        state
            .container_event(&id, ContainerEvent::Started { at: 5 })
            .unwrap();
        let exit = Exit {
            code: 3,
            reason: Reason::Error,
            message: String::new(),
            started_at: 0,
            finished_at: 9,
        };
        state
            .container_event(&id, ContainerEvent::Exited(exit.clone()))
            .unwrap();
        let seen = waiter.await.unwrap().unwrap();
        assert_eq!(
            seen.record.phase,
            ContainerPhase::Exited(Exit {
                started_at: 5,
                ..exit
            })
        );
        state.remove_container(&id).unwrap();
        assert!(state.wait_exited(&id).await.is_none());
    }
}
