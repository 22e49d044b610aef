//! Who waits for whom: one lock per pod, one per container.
//!
//! Locks are part of the objects that [`super::store`] hands out: every version of an object shares them, and they are
//! gone with the last who knows it. Stopping and removing a pod excludes every other operation on it; operations on
//! its containers exclude each other only per container. Stopping a container and exec take no lock: a long grace
//! period must not keep the pod from being killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::phase::Nanos;

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
    /// Held while the log is opened anew.
    pub log: Arc<Mutex<()>>,
    asked_to_stop: AtomicBool,
    /// When podd first killed the container, and how many of its processes had been killed for want of memory then.
    killed: OnceLock<(Nanos, u64)>,
}

impl ContainerLock {
    /// Notes that podd kills the container now, of which the kernel has killed so many processes for want of memory.
    pub fn killed_after(&self, oom_kills: u64) {
        let _the_first_counts = self.killed.set((super::now(), oom_kills));
    }

    /// How many of these have nothing to do with an end at `finished`, as podd killed the container before that.
    pub fn oom_kills_before(&self, finished: Nanos) -> u64 {
        match self.killed.get() {
            Some((at, oom_kills)) if *at <= finished => *oom_kills,
            _ => 0,
        }
    }

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
    fn an_end_before_the_kill_is_judged_by_all_that_was_counted() {
        let lock = ContainerLock::default();
        let before = super::super::now();
        assert_eq!(lock.oom_kills_before(before), 0);
        lock.killed_after(2);
        lock.killed_after(5);
        assert_eq!(lock.oom_kills_before(before - 1), 0);
        assert_eq!(lock.oom_kills_before(super::super::now()), 2);
    }

    #[test]
    fn only_the_first_sends_the_stop_signal() {
        let lock = ContainerLock::default();
        assert!(lock.first_to_ask());
        assert!(!lock.first_to_ask());
    }
}
