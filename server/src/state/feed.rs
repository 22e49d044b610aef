//! What happens to pods and containers, told to whoever listens.
//!
//! Owns which change of the snapshot is news, the order and the times of the news, and how long they wait for a
//! listener. Never waits for one: news go into one ring that all listeners read at their own pace, and who falls
//! behind by more than the ring holds learns how many it missed. While nobody listens the last [`KEPT`] news are kept
//! for [`RETENTION`], and everybody who begins to listen within that time gets them first.
//!
//! Times order news against what readers of the snapshot see: that of a piece of news is taken after its change is
//! in the snapshot, [`Feed::moment`] before the snapshot is read. So a status with a later time than a piece of news
//! shows what that announced, which is what the kubelet assumes when it compares the two.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::phase::{ContainerPhase, Nanos, PodPhase};
use super::store::{Container, Pod, Snapshot};
use crate::model::{ContainerId, PodId};

/// How many news a listener may be behind.
const CAPACITY: usize = 1024;

/// How many news are kept while nobody listens. Each holds a version of its pod and of one container, 3 KiB with what
/// the kubelet asks for. Who subscribes has listed everything right before; they are for what happens in between, and
/// for what a new podd finds that ended while podd was away.
pub(super) const KEPT: usize = 256;

/// How long news are kept while nobody listens.
pub const RETENTION: Duration = Duration::from_secs(5 * 60);

/// While news are kept, podd wakes up no more often than this to look for old ones.
const ROUND: Duration = Duration::from_secs(15);

/// What happened to a pod or a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// It is there.
    Created,
    /// It runs.
    Started,
    /// It is over.
    Stopped,
    /// It was removed.
    Deleted,
}

/// Which object it happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A pod.
    Pod(PodId),
    /// A container.
    Container(ContainerId),
}

impl AsRef<str> for Subject {
    fn as_ref(&self) -> &str {
        match self {
            Self::Pod(id) => id.as_str(),
            Self::Container(id) => id.as_str(),
        }
    }
}

/// One piece of news, and the pod as it was right after it.
#[derive(Debug, Clone)]
pub struct News {
    /// When the snapshot showed it; later than the time of every piece of news before.
    pub at: Nanos,
    /// What happened.
    pub happened: Happened,
    /// To which object.
    pub subject: Subject,
    /// The pod; one that was removed, as it was last.
    pub pod: Arc<Pod>,
    /// The pod's containers that lists show.
    pub containers: Vec<Arc<Container>>,
}

/// Why a listener gets no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// It read too slowly.
    #[error(
        "{0} events came faster than they were read and are lost: list pods and containers, then subscribe again"
    )]
    Missed(u64),
    /// podd ends.
    #[error("podd is stopping: subscribe again when it is back")]
    Closed,
}

/// How far an object is in what clients may see of its life. Leftovers of failed creations are not there: whoever
/// asked for them was told that they failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Absent,
    Made,
    Running,
    Over,
}

impl Stage {
    pub(super) fn of_pod(pod: Option<&Arc<Pod>>) -> Self {
        match pod.filter(|pod| !pod.record.leftover).map(|pod| pod.record.phase) {
            None | Some(PodPhase::Creating) => Self::Absent,
            Some(PodPhase::Ready) => Self::Running,
            Some(PodPhase::NotReady) => Self::Over,
        }
    }

    pub(super) fn of_container(container: Option<&Arc<Container>>) -> Self {
        match container.filter(|c| !c.record.leftover).map(|c| &c.record.phase) {
            None | Some(ContainerPhase::Creating) => Self::Absent,
            Some(ContainerPhase::Created { .. }) => Self::Made,
            Some(ContainerPhase::Running { .. }) => Self::Running,
            Some(ContainerPhase::Exited(_)) => Self::Over,
        }
    }

    /// What has happened to an object that was in this stage and is in another.
    pub(super) fn until(self, now: Self) -> &'static [Happened] {
        use Happened::{Created, Deleted, Started, Stopped};
        match (self, now) {
            (Self::Absent, Self::Made) => &[Created],
            (Self::Absent, Self::Running) => &[Created, Started],
            (Self::Absent, Self::Over) => &[Created, Stopped],
            (Self::Made, Self::Running) => &[Started],
            (Self::Made | Self::Running, Self::Over) => &[Stopped],
            (Self::Made | Self::Running | Self::Over, Self::Absent) => &[Deleted],
            _ => &[],
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// There while somebody listens: most podds have nobody.
    ring: Option<broadcast::Sender<Arc<News>>>,
    closed: bool,
    kept: VecDeque<(Instant, Arc<News>)>,
    told: u64,
}

impl Inner {
    fn expire(&mut self, now: Instant) {
        let old = |(at, _): &(Instant, Arc<News>)| now.saturating_duration_since(*at) > RETENTION;
        while self.kept.len() > KEPT || self.kept.front().is_some_and(old) {
            self.kept.pop_front();
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }
}

/// What the feed counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// News since podd began.
    pub told: u64,
    /// Who listens now.
    pub listeners: usize,
    /// News that the slowest listener has not taken yet.
    pub waiting: usize,
    /// News that are kept for the next listener.
    pub kept: usize,
    /// News that listeners were cut off from since podd began, because they were too slow.
    pub missed: u64,
}

/// The news, and those who listen.
#[derive(Debug, Default)]
pub struct Feed {
    inner: Mutex<Inner>,
    last: AtomicI64,
    missed: Arc<AtomicU64>,
    /// The first news are kept after there were none.
    keeping: Notify,
}

impl Feed {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what has happened, once `snapshot` is what readers see. The caller lets nothing else happen meanwhile.
    pub(super) fn tell(&self, happened: &[Happened], subject: Subject, pod: &Arc<Pod>, snapshot: &Snapshot) {
        if happened.is_empty() {
            return;
        }
        let listed = snapshot.containers_of(&pod.record.id).filter(|c| c.is_listed());
        let containers: Vec<_> = listed.cloned().collect();
        let mut inner = self.lock();
        inner.told += happened.len() as u64;
        for &happened in happened {
            // A clock that was set back must not put news before those that came before them.
            let at = super::now().max(self.last.load(Ordering::Relaxed).saturating_add(1));
            self.last.store(at, Ordering::Release);
            let news = Arc::new(News {
                at,
                happened,
                subject,
                pod: Arc::clone(pod),
                containers: containers.clone(),
            });
            let heard = inner
                .ring
                .as_ref()
                .is_some_and(|ring| ring.send(Arc::clone(&news)).is_ok());
            if !heard {
                inner.ring = None;
                if inner.kept.is_empty() {
                    self.keeping.notify_one();
                }
                let now = Instant::now();
                inner.kept.push_back((now, news));
                inner.expire(now);
            }
        }
    }

    /// The time to put on what is read from the snapshot after this.
    #[must_use]
    pub fn moment(&self) -> Nanos {
        super::now().max(self.last.load(Ordering::Acquire))
    }

    /// Begins to listen.
    #[must_use]
    pub fn listen(&self) -> Listener {
        let mut inner = self.lock();
        inner.expire(Instant::now());
        let kept = inner.kept.iter().map(|(_, news)| Arc::clone(news)).collect();
        let ring = (!inner.closed).then(|| {
            inner
                .ring
                .get_or_insert_with(|| broadcast::channel(CAPACITY).0)
                .subscribe()
        });
        let missed = Arc::clone(&self.missed);
        Listener { kept, ring, missed }
    }

    /// Lets go of kept news as they become old, for ever. Has no timer while none are kept.
    pub async fn forget(&self) {
        self.forget_each(ROUND).await;
    }

    async fn forget_each(&self, round: Duration) {
        loop {
            let oldest = self.lock().kept.front().map(|(at, _)| *at);
            let Some(oldest) = oldest else {
                self.keeping.notified().await;
                continue;
            };
            let due = oldest + RETENTION + Duration::from_nanos(1);
            tokio::time::sleep_until(due.max(Instant::now() + round).into()).await;
            self.lock().expire(Instant::now());
        }
    }

    /// What was told, to how many, and what they have not heard.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let inner = self.lock();
        let ring = inner.ring.as_ref();
        Counts {
            told: inner.told,
            listeners: ring.map_or(0, broadcast::Sender::receiver_count),
            waiting: ring.map_or(0, broadcast::Sender::len),
            kept: inner.kept.len(),
            missed: self.missed.load(Ordering::Relaxed),
        }
    }

    /// Ends all listening, also that which has not begun. What was told already is still heard.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.ring = None;
    }
}

/// One who listens.
#[derive(Debug)]
pub struct Listener {
    kept: VecDeque<Arc<News>>,
    ring: Option<broadcast::Receiver<Arc<News>>>,
    missed: Arc<AtomicU64>,
}

impl Listener {
    /// The next piece of news.
    ///
    /// # Errors
    /// There will be none any more, or some were missed.
    pub async fn next(&mut self) -> Result<Arc<News>, Lost> {
        if let Some(news) = self.kept.pop_front() {
            return Ok(news);
        }
        let ring = self.ring.as_mut().ok_or(Lost::Closed)?;
        ring.recv().await.map_err(|e| match e {
            RecvError::Lagged(missed) => {
                self.missed.fetch_add(missed, Ordering::Relaxed);
                Lost::Missed(missed)
            }
            RecvError::Closed => Lost::Closed,
        })
    }
}

#[cfg(test)]
mod tests;
