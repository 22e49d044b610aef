//! Who waits for whom: one lock per pod, one per container.
//!
//! Locks are part of the objects that [`super::store`] hands out: every version of an object shares them, and they are
//! gone with the last who knows it. Stopping and removing a pod excludes every other operation on it; operations on
//! its containers exclude each other only per container. Stopping a container and exec take no lock: a long grace
//! period must not keep the pod from being killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// What the operations on one pod share.
#[derive(Debug, Default)]
pub struct PodLock {
    whole: Arc<RwLock<()>>,
    /// Held while the limits of the pod as a whole are changed.
    pub resources: Mutex<()>,
}

impl PodLock {
    /// Waits until nothing excludes operations on the pod's containers.
    pub async fn shared(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.whole).read_owned().await
    }

    /// Waits until no operation on the pod or its containers runs.
    pub async fn alone(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.whole).write_owned().await
    }
}

/// What the operations on one container share.
#[derive(Debug, Default)]
pub struct ContainerLock {
    /// Held while the container is started, while its resources are changed, and while it is deleted.
    pub serial: Mutex<()>,
    asked_to_stop: AtomicBool,
}

impl ContainerLock {
    /// Notes that the stop signal is being sent; true for the first who asks.
    pub fn first_to_ask(&self) -> bool {
        !self.asked_to_stop.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_operation_excludes_container_operations() {
        let lock = PodLock::default();
        let one = lock.shared().await;
        let _two = lock.shared().await;
        let alone = tokio::time::timeout(std::time::Duration::from_millis(5), lock.alone()).await;
        assert!(alone.is_err());
        drop((one, _two));
        let _alone = lock.alone().await;
    }

    #[test]
    fn only_the_first_sends_the_stop_signal() {
        let lock = ContainerLock::default();
        assert!(lock.first_to_ask());
        assert!(!lock.first_to_ask());
    }
}
