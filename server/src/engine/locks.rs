//! Who waits for whom: one lock per pod, one per container.
//!
//! Owns the locks and the moment they are forgotten. Stopping and removing a pod excludes every other operation
//! on it; operations on its containers exclude each other only per container. Stopping a container and exec take
//! no lock: a long grace period must not keep the pod from being killed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::model::{ContainerId, PodId};

/// What the operations on one container share.
#[derive(Debug, Default)]
pub struct ContainerLock {
    /// Held while the container is started, while its resources are changed, and while it is deleted.
    pub serial: tokio::sync::Mutex<()>,
    asked_to_stop: AtomicBool,
}

impl ContainerLock {
    /// Notes that the stop signal is being sent; true for the first who asks.
    pub fn first_to_ask(&self) -> bool {
        !self.asked_to_stop.swap(true, Ordering::Relaxed)
    }
}

/// The locks of all pods and containers that operations have touched.
#[derive(Debug, Default)]
pub struct Locks {
    pods: Mutex<HashMap<PodId, Arc<RwLock<()>>>>,
    pod_resources: Mutex<HashMap<PodId, Arc<tokio::sync::Mutex<()>>>>,
    containers: Mutex<HashMap<ContainerId, Arc<ContainerLock>>>,
}

impl Locks {
    /// Waits until nothing excludes operations on the pod's containers.
    pub async fn pod_shared(&self, id: PodId) -> OwnedRwLockReadGuard<()> {
        entry(&self.pods, id).read_owned().await
    }

    /// Waits until no operation on the pod or its containers runs.
    pub async fn pod_alone(&self, id: PodId) -> OwnedRwLockWriteGuard<()> {
        entry(&self.pods, id).write_owned().await
    }

    /// Held while the limits of the pod as a whole are changed.
    pub fn pod_resources(&self, id: PodId) -> Arc<tokio::sync::Mutex<()>> {
        entry(&self.pod_resources, id)
    }

    /// What the operations on one container share.
    pub fn container(&self, id: ContainerId) -> Arc<ContainerLock> {
        entry(&self.containers, id)
    }

    /// Forgets a removed pod. Who still waits for its lock finds the pod gone.
    pub fn forget_pod(&self, id: &PodId) {
        forget(&self.pods, id);
        forget(&self.pod_resources, id);
    }

    /// Forgets a removed container.
    pub fn forget_container(&self, id: &ContainerId) {
        forget(&self.containers, id);
    }
}

fn entry<K: Hash + Eq, T: Default>(map: &Mutex<HashMap<K, Arc<T>>>, key: K) -> Arc<T> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(map.entry(key).or_default())
}

fn forget<K: Hash + Eq, T>(map: &Mutex<HashMap<K, T>>, key: &K) {
    map.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_operation_excludes_container_operations() {
        let locks = Locks::default();
        let id = PodId::random().unwrap();
        let one = locks.pod_shared(id).await;
        let _two = locks.pod_shared(id).await;
        let alone = tokio::time::timeout(std::time::Duration::from_millis(5), locks.pod_alone(id)).await;
        assert!(alone.is_err());
        drop((one, _two));
        let _alone = locks.pod_alone(id).await;
    }

    #[test]
    fn only_the_first_sends_the_stop_signal() {
        let locks = Locks::default();
        let id = ContainerId::random().unwrap();
        assert!(locks.container(id).first_to_ask());
        assert!(!locks.container(id).first_to_ask());
        locks.forget_container(&id);
        assert!(locks.container(id).first_to_ask());
    }
}
