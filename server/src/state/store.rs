//! What podd knows, in memory: an immutable snapshot that readers take without waiting for anyone.
//!
//! Owns the maps and their indexes. Writes nothing to disk and asks the kernel nothing: `super::State` puts here
//! what is on disk already. The maps are persistent (a changed copy shares all but a few nodes), so an update
//! among 20 000 containers costs microseconds, and a List that is being answered keeps the world it began with.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rpds::{HashTrieMapSync, RedBlackTreeMapSync, RedBlackTreeSetSync};

use super::feed::{Feed, Happened, KEPT, Stage, Subject};
use super::locks::{ContainerLock, PodLock};
use super::phase::{ContainerPhase, Nanos, PodPhase};
use super::record::{ContainerRecord, PodRecord, PodResources};
use crate::model::{
    ContainerConfig, ContainerId, ContainerMetadata, PodConfig, PodId, PodMetadata, Resources,
};

/// A pod as it was at one moment.
#[derive(Debug, Clone)]
pub struct Pod {
    /// What is on disk.
    pub record: PodRecord,
    /// What was asked for, checked.
    pub config: Arc<PodConfig>,
    /// What operations on it share; the same in every version of it.
    pub lock: Arc<PodLock>,
}

impl Pod {
    /// Whether lists show it: not while it is being created.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.record.phase != PodPhase::Creating
    }

    /// What it was given last: when it was made, or by an update.
    #[must_use]
    pub fn resources(&self) -> PodResources {
        self.record.updated.clone().unwrap_or_else(|| PodResources {
            resources: self.config.resources.clone().unwrap_or_default(),
            overhead: self.config.overhead.clone().unwrap_or_default(),
        })
    }
}

/// A container as it was at one moment.
#[derive(Debug, Clone)]
pub struct Container {
    /// What is on disk.
    pub record: ContainerRecord,
    /// What was asked for, checked.
    pub config: Arc<ContainerConfig>,
    /// What operations on it share; the same in every version of it.
    pub lock: Arc<ContainerLock>,
}

impl Container {
    /// Whether lists show it: not while it is being created.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.record.phase != ContainerPhase::Creating
    }

    /// What it was given last: when it was made, or by an update.
    #[must_use]
    pub fn resources(&self) -> &Resources {
        self.record.updated.as_ref().unwrap_or(&self.config.resources)
    }
}

/// Why an id names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No id is or begins like this.
    #[error("nothing has the id {0:?}")]
    Unknown(String),
    /// More than one id begins like this.
    #[error("more than one id begins with {0:?}")]
    Ambiguous(String),
}

/// Everything podd knows, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pods: RedBlackTreeMapSync<PodId, Arc<Pod>>,
    containers: RedBlackTreeMapSync<ContainerId, Arc<Container>>,
    by_pod: RedBlackTreeMapSync<PodId, RedBlackTreeSetSync<ContainerId>>,
    names: HashTrieMapSync<PodMetadata, PodId>,
}

impl Snapshot {
    /// The pod with this id, whatever its phase.
    #[must_use]
    pub fn pod(&self, id: &PodId) -> Option<&Arc<Pod>> {
        self.pods.get(id)
    }

    /// The container with this id, whatever its phase.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<&Arc<Container>> {
        self.containers.get(id)
    }

    /// All pods, in the order of their ids.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// All containers, in the order of their ids.
    pub fn containers(&self) -> impl Iterator<Item = &Arc<Container>> {
        self.containers.values()
    }

    /// The containers of one pod.
    pub fn containers_of(&self, pod: &PodId) -> impl Iterator<Item = &Arc<Container>> {
        let ids = self
            .by_pod
            .get(pod)
            .into_iter()
            .flat_map(RedBlackTreeSetSync::iter);
        ids.filter_map(|id| self.containers.get(id))
    }

    /// The pod that holds this name; leftovers of failed creations hold none.
    #[must_use]
    pub fn pod_named(&self, name: &PodMetadata) -> Option<&Arc<Pod>> {
        self.names.get(name).and_then(|id| self.pods.get(id))
    }

    /// The container of a pod that holds this name; leftovers of failed creations hold none.
    #[must_use]
    pub fn container_named(&self, pod: &PodId, name: &ContainerMetadata) -> Option<&Arc<Container>> {
        self.containers_of(pod)
            .find(|c| !c.record.leftover && c.config.metadata == *name)
    }

    /// The pod that an id, or the unique beginning of one, names.
    ///
    /// # Errors
    /// It names none, or several.
    pub fn find_pod(&self, id: &str) -> Result<&Arc<Pod>, LookupError> {
        let exact = id.parse().ok().and_then(|id: PodId| self.pods.get(&id));
        exact.map_or_else(|| unique(self.pods.iter(), id), Ok)
    }

    /// The container that an id, or the unique beginning of one, names.
    ///
    /// # Errors
    /// It names none, or several.
    pub fn find_container(&self, id: &str) -> Result<&Arc<Container>, LookupError> {
        let exact = id
            .parse()
            .ok()
            .and_then(|id: ContainerId| self.containers.get(&id));
        exact.map_or_else(|| unique(self.containers.iter(), id), Ok)
    }

    fn put_pod(&mut self, pod: Arc<Pod>) -> Option<Change> {
        let id = pod.record.id;
        let happened = Stage::of_pod(self.pods.get(&id)).until(Stage::of_pod(Some(&pod)));
        if pod.record.leftover {
            self.free_name(&pod);
        } else {
            self.names.insert_mut(pod.config.metadata.clone(), id);
        }
        self.pods.insert_mut(id, Arc::clone(&pod));
        let subject = Subject::Pod(id);
        Some(Change {
            happened,
            subject,
            pod,
        })
    }

    fn drop_pod(&mut self, id: &PodId) -> Option<Change> {
        let pod = self.pods.get(id).cloned()?;
        self.free_name(&pod);
        self.pods.remove_mut(id);
        self.by_pod.remove_mut(id);
        Some(Change {
            happened: Stage::of_pod(Some(&pod)).until(Stage::Absent),
            subject: Subject::Pod(*id),
            pod,
        })
    }

    fn free_name(&mut self, pod: &Pod) {
        if self.names.get(&pod.config.metadata) == Some(&pod.record.id) {
            self.names.remove_mut(&pod.config.metadata);
        }
    }

    fn put_container(&mut self, container: Arc<Container>) -> Option<Change> {
        let (id, pod) = (container.record.id, container.record.pod);
        let before = self.containers.get(&id);
        let happened = Stage::of_container(before).until(Stage::of_container(Some(&container)));
        if before.is_none() {
            let mut ids = self.by_pod.get(&pod).cloned().unwrap_or_default();
            ids.insert_mut(id);
            self.by_pod.insert_mut(pod, ids);
        }
        self.containers.insert_mut(id, container);
        Some(Change {
            happened,
            subject: Subject::Container(id),
            pod: self.pods.get(&pod).cloned()?,
        })
    }

    fn drop_container(&mut self, id: &ContainerId) -> Option<Change> {
        let container = self.containers.get(id).cloned()?;
        let pod = container.record.pod;
        self.containers.remove_mut(id);
        if let Some(mut ids) = self.by_pod.get(&pod).cloned() {
            ids.remove_mut(id);
            self.by_pod.insert_mut(pod, ids);
        }
        Some(Change {
            happened: Stage::of_container(Some(&container)).until(Stage::Absent),
            subject: Subject::Container(*id),
            pod: self.pods.get(&pod).cloned()?,
        })
    }
}

/// What a change of the snapshot means to those who listen.
struct Change {
    happened: &'static [Happened],
    subject: Subject,
    pod: Arc<Pod>,
}

/// The one object whose id begins with `prefix`.
fn unique<'a, K: AsRef<str> + 'a, T>(
    objects: impl Iterator<Item = (&'a K, &'a T)>,
    prefix: &str,
) -> Result<&'a T, LookupError> {
    let mut found = None;
    if !prefix.is_empty() {
        for (id, object) in objects {
            if id.as_ref().starts_with(prefix) && found.replace(object).is_some() {
                return Err(LookupError::Ambiguous(prefix.to_owned()));
            }
        }
    }
    found.ok_or_else(|| LookupError::Unknown(prefix.to_owned()))
}

/// The current snapshot, and who is told when it changes.
#[derive(Debug, Default)]
pub struct Store {
    current: ArcSwap<Snapshot>,
    writer: Mutex<()>,
    feed: Feed,
}

impl Store {
    /// What podd knows now. Later changes do not show in it.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// What happens to pods and containers from now on.
    #[must_use]
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Publishes a pod, new or changed.
    pub fn put_pod(&self, pod: Arc<Pod>) {
        self.change(|next| next.put_pod(pod));
    }

    /// Forgets a pod.
    pub fn drop_pod(&self, id: &PodId) {
        self.change(|next| next.drop_pod(id));
    }

    /// Publishes a container, new or changed.
    pub fn put_container(&self, container: Arc<Container>) {
        self.change(|next| next.put_container(container));
    }

    /// Forgets a container.
    pub fn drop_container(&self, id: &ContainerId) {
        self.change(|next| next.drop_container(id));
    }

    /// Publishes a pod that was there before podd was: nothing has happened to it.
    pub fn restore_pod(&self, pod: Arc<Pod>) {
        self.change(|next| {
            next.put_pod(pod);
            None
        });
    }

    /// Publishes a container that was there before podd was: nothing has happened to it.
    pub fn restore_container(&self, container: Arc<Container>) {
        self.change(|next| {
            next.put_container(container);
            None
        });
    }

    /// Tells of the containers that ended after `since`, though they are known to be over: a podd before this one
    /// may have recorded that and died before it told.
    pub fn tell_ends(&self, since: Nanos) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        let ended = |container: &&Arc<Container>| match &container.record.phase {
            ContainerPhase::Exited(exit) if !container.record.leftover => exit.finished_at > since,
            _ => false,
        };
        let mut ends: Vec<_> = snapshot.containers().filter(ended).collect();
        ends.sort_by_key(|container| match &container.record.phase {
            ContainerPhase::Exited(exit) => exit.finished_at,
            _ => 0,
        });
        // More than the feed keeps would only push each other out.
        for container in ends.iter().rev().take(KEPT).rev() {
            if let Some(pod) = snapshot.pod(&container.record.pod) {
                let subject = Subject::Container(container.record.id);
                self.feed.tell(&[Happened::Stopped], subject, pod, &snapshot);
            }
        }
    }

    /// Replaces the snapshot, and then tells what `change` says has happened.
    fn change(&self, change: impl FnOnce(&mut Snapshot) -> Option<Change>) {
        // The snapshot is replaced as a whole at the end, so a panic in between leaves the former one.
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.current.load());
        let change = change(&mut next);
        let next = Arc::new(next);
        self.current.store(Arc::clone(&next));
        if let Some(change) = change {
            self.feed
                .tell(change.happened, change.subject, &change.pod, &next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::tests::{container, pod};

    #[test]
    fn a_snapshot_does_not_change() {
        let store = Store::default();
        let before = store.snapshot();
        store.put_pod(Arc::new(pod("a", 0)));
        assert_eq!(before.pods().count(), 0);
        assert_eq!(store.snapshot().pods().count(), 1);
    }

    #[test]
    fn names_are_held_by_what_exists_and_by_no_leftover() {
        let store = Store::default();
        let first = pod("a", 0);
        let name = first.config.metadata.clone();
        store.put_pod(Arc::new(first.clone()));
        assert_eq!(
            store.snapshot().pod_named(&name).unwrap().record.id,
            first.record.id
        );

        let mut leftover = first.clone();
        leftover.record.leftover = true;
        store.put_pod(Arc::new(leftover));
        assert!(store.snapshot().pod_named(&name).is_none());

        let second = pod("a", 0);
        store.put_pod(Arc::new(second.clone()));
        store.drop_pod(&first.record.id);
        assert_eq!(
            store.snapshot().pod_named(&name).unwrap().record.id,
            second.record.id
        );
        store.drop_pod(&second.record.id);
        assert!(store.snapshot().pod_named(&name).is_none());
    }

    #[test]
    fn containers_are_found_by_pod_and_name() {
        let store = Store::default();
        let (a, b) = (pod("a", 0), pod("b", 0));
        let (one, two, three) = (container(&a, "one"), container(&a, "two"), container(&b, "one"));
        for c in [&one, &two, &three] {
            store.put_container(Arc::new(c.clone()));
            store.put_container(Arc::new(c.clone()));
        }
        let snapshot = store.snapshot();
        assert_eq!(snapshot.containers_of(&a.record.id).count(), 2);
        let found = snapshot
            .container_named(&b.record.id, &one.config.metadata)
            .unwrap();
        assert_eq!(found.record.id, three.record.id);
        store.drop_container(&one.record.id);
        store.drop_container(&one.record.id);
        let snapshot = store.snapshot();
        assert_eq!(snapshot.containers_of(&a.record.id).count(), 1);
        assert!(snapshot.container(&one.record.id).is_none());
    }

    #[test]
    fn the_unique_beginning_of_an_id_is_enough() {
        let store = Store::default();
        let mut pods = Vec::new();
        for digit in ["1", "2"] {
            let mut pod = pod(digit, 0);
            pod.record.id = format!("ab{}", digit.repeat(62)).parse().unwrap();
            store.put_pod(Arc::new(pod.clone()));
            pods.push(pod.record.id);
        }
        let snapshot = store.snapshot();
        let find = |id: &str| snapshot.find_pod(id).map(|p| p.record.id);
        assert_eq!(find(pods[0].as_str()), Ok(pods[0]));
        assert_eq!(find("ab2"), Ok(pods[1]));
        assert_eq!(find("ab"), Err(LookupError::Ambiguous("ab".to_owned())));
        assert_eq!(find("b"), Err(LookupError::Unknown("b".to_owned())));
        assert_eq!(find(""), Err(LookupError::Unknown(String::new())));
    }

    #[test]
    fn an_update_among_many_containers_is_cheap() {
        let store = Store::default();
        let pod = pod("a", 0);
        let mut last = container(&pod, "c");
        for _ in 0..20_000 {
            last = container(&pod, "c");
            store.put_container(Arc::new(last.clone()));
        }
        let start = std::time::Instant::now();
        for _ in 0..1000 {
            store.put_container(Arc::new(last.clone()));
        }
        // Copying the map would take seconds; the bound is loose because machines are shared.
        assert!(
            start.elapsed() < std::time::Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
    }
}
