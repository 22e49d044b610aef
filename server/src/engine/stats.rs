//! What containers and pods use: counters of their cgroups, of the pods' links, and of what containers have written.
//!
//! Owns the one pass over the kernel's files, on a blocking thread, and the last sample of processor time by which a
//! rate is found. What cannot be read is absent; one container in trouble keeps no other from being reported.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime_core::cgroup::{Cgroup, CpuStats, MemoryStats, Pressure, StatsReader};

use super::native::NativeError;
use super::writable::Layers;
use super::{Engine, EngineError, blocking, now};
use crate::model::{ContainerId, PodId};
use crate::state::phase::{ContainerPhase, Nanos};
use crate::state::store::{Container, Pod};

pub use super::writable::LayerUsage;

/// Samples closer together than this make no rate that means anything.
const WINDOW: Duration = Duration::from_secs(1);

/// Counters of one cgroup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupUsage {
    /// When they were read.
    pub at: Nanos,
    /// Processors.
    pub cpu: CpuStats,
    /// Nanoseconds of processor time per second, between the last two samples.
    pub nano_cores: Option<u64>,
    /// Memory and swap.
    pub memory: MemoryStats,
    /// io.pressure.
    pub io: Option<Pressure>,
}

/// What a container uses.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// Which.
    pub container: Arc<Container>,
    /// Its cgroup; absent once that is gone.
    pub group: Option<GroupUsage>,
    /// What it has written to its root; absent until that was measured once.
    pub layer: Option<LayerUsage>,
}

/// Counters of a network interface, as the pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkUsage {
    /// When they were read.
    pub at: Nanos,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors on receipt.
    pub rx_errors: u64,
    /// Packets that were not received for want of room.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors on sending.
    pub tx_errors: u64,
    /// Packets that were not sent for want of room.
    pub tx_dropped: u64,
}

impl LinkUsage {
    /// What one end sends, the other receives.
    fn of_other_end(self) -> Self {
        Self {
            at: self.at,
            rx_bytes: self.tx_bytes,
            rx_packets: self.tx_packets,
            rx_errors: self.tx_errors,
            rx_dropped: self.tx_dropped,
            tx_bytes: self.rx_bytes,
            tx_packets: self.rx_packets,
            tx_errors: self.rx_errors,
            tx_dropped: self.rx_dropped,
        }
    }
}

/// What a pod uses.
#[derive(Debug, Clone)]
pub struct PodUsage {
    /// Which.
    pub pod: Arc<Pod>,
    /// Its cgroup; absent once that is gone.
    pub group: Option<GroupUsage>,
    /// Its interface; absent in the host's network and after the pod was stopped.
    pub link: Option<LinkUsage>,
    /// The other interfaces of its network, by name, while a process is in there.
    pub other_links: Vec<(String, LinkUsage)>,
    /// When processes were counted, and how many there were.
    pub processes: Option<(Nanos, u64)>,
    /// Its containers that are not over.
    pub containers: Vec<ContainerUsage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Pod(PodId),
    Container(ContainerId),
}

/// A sample of processor time, and the rate between it and the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Instant,
    usage_usec: u64,
    nano_cores: Option<u64>,
}

impl Sample {
    /// The sample to keep after another reading.
    fn after(last: Option<Self>, at: Instant, usage_usec: u64) -> Self {
        let first = Self {
            at,
            usage_usec,
            nano_cores: None,
        };
        let Some(last) = last else { return first };
        let elapsed = at.saturating_duration_since(last.at);
        if elapsed < WINDOW {
            return last;
        }
        // Time that runs backwards is that of another cgroup.
        let Some(used) = usage_usec.checked_sub(last.usage_usec) else {
            return first;
        };
        let rate = u128::from(used) * 1_000 * 1_000_000_000 / elapsed.as_nanos();
        Self {
            nano_cores: u64::try_from(rate).ok(),
            ..first
        }
    }
}

/// What is remembered from one call to the next.
#[derive(Debug, Default)]
pub struct Stats {
    samples: Mutex<HashMap<Key, Sample>>,
    pub(super) layers: Layers,
}

impl Stats {
    /// The rate after another reading.
    fn rate(&self, key: Key, usage_usec: u64) -> Option<u64> {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = Sample::after(samples.get(&key).copied(), Instant::now(), usage_usec);
        samples.insert(key, sample);
        sample.nano_cores
    }

    /// How many objects are remembered.
    fn len(&self) -> usize {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Forgets what no longer exists.
    fn prune(&self, engine: &Engine) {
        let snapshot = engine.snapshot();
        self.samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, _| match key {
                Key::Pod(id) => snapshot.pod(id).is_some(),
                Key::Container(id) => snapshot.container(id).is_some(),
            });
        self.layers.retain(|id| snapshot.container(id).is_some());
    }
}

/// Whether there are statistics of a container: one that is over uses nothing any more.
#[must_use]
pub fn counts(container: &Container) -> bool {
    match container.record.phase {
        ContainerPhase::Created { .. } | ContainerPhase::Running { .. } => true,
        ContainerPhase::Creating | ContainerPhase::Exited(_) => false,
    }
}

impl Engine {
    /// What these containers use.
    ///
    /// # Errors
    /// A defect in podd.
    pub async fn containers_usage(
        self: &Arc<Self>,
        containers: Vec<Arc<Container>>,
    ) -> Result<Vec<ContainerUsage>, EngineError> {
        self.pass("ContainerStats", move |pass| {
            containers.into_iter().map(|c| pass.container(c)).collect()
        })
        .await
    }

    /// What these pods and their containers use.
    ///
    /// # Errors
    /// A defect in podd.
    pub async fn pods_usage(self: &Arc<Self>, pods: Vec<Arc<Pod>>) -> Result<Vec<PodUsage>, EngineError> {
        self.pass("PodSandboxStats", move |pass| {
            pods.into_iter().map(|p| pass.pod(p)).collect()
        })
        .await
    }

    pub(super) async fn pass<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        work: impl FnOnce(&mut Pass<'_>) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let engine = Arc::clone(self);
        blocking(operation, move || -> Result<T, EngineError> {
            let before = engine.stats.len();
            let done = work(&mut Pass {
                engine: &engine,
                reader: StatsReader::default(),
                links: None,
            });
            // Whenever something is new, something else may be gone: what is remembered stays as much as exists.
            if engine.stats.len() > before {
                engine.stats.prune(&engine);
            }
            Ok(done)
        })
        .await
    }
}

impl Engine {
    /// Bytes and inodes that all containers have written, as far as that was measured.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        self.stats.layers.total()
    }
}

/// One pass over the kernel's files.
pub(super) struct Pass<'a> {
    pub(super) engine: &'a Engine,
    pub(super) reader: StatsReader,
    /// The counters of all links, once the first is asked for.
    links: Option<HashMap<String, LinkUsage>>,
}

impl Pass<'_> {
    /// What a container has written, as far as it was measured.
    pub(super) fn layer(&self, container: &Container) -> Option<LayerUsage> {
        let record = &container.record;
        let records = self.engine.state.records();
        let upper = || records.container_dir(&record.pod, &record.id).join("upper");
        self.engine.stats.layers.usage(record.id, upper)
    }

    /// The counters of a pod's interface; absent in the host's network and after the pod was stopped.
    pub(super) fn link(&mut self, pod: &Pod) -> Option<LinkUsage> {
        let attachment = pod.record.attachment.as_ref()?;
        self.links
            .get_or_insert_with(links)
            .get(&attachment.host_link)
            .copied()
    }

    fn container(&mut self, container: Arc<Container>) -> ContainerUsage {
        let record = &container.record;
        let group = self
            .find(record.cgroup.as_deref())
            .and_then(|cgroup| self.group(&cgroup, Key::Container(record.id)));
        ContainerUsage {
            group,
            layer: self.layer(&container),
            container,
        }
    }

    fn pod(&mut self, pod: Arc<Pod>) -> PodUsage {
        let record = &pod.record;
        let snapshot = self.engine.snapshot();
        let mine: Vec<_> = snapshot
            .containers_of(&record.id)
            .filter(|c| counts(c))
            .cloned()
            .collect();
        let cgroup = self.find(record.cgroup.as_deref());
        let link = self.link(&pod);
        let mut group = cgroup
            .as_ref()
            .and_then(|cgroup| self.group(cgroup, Key::Pod(record.id)));
        if let Some(group) = &mut group {
            let limits = [group.memory.limit, self.limit_of_slice(&pod)];
            group.memory.limit = limits.into_iter().flatten().min();
        }
        PodUsage {
            group,
            processes: cgroup.and_then(|cgroup| Some((now(), self.processes(&cgroup, &mine)?))),
            other_links: other_links(&pod, &mine),
            link,
            containers: mine.into_iter().map(|c| self.container(c)).collect(),
            pod,
        }
    }

    /// The limit of memory that the kubelet has set for a pod in a scope: on the slice around the scope.
    fn limit_of_slice(&mut self, pod: &Pod) -> Option<u64> {
        let record = &pod.record;
        let scope = record.scope.as_ref().and(record.cgroup.as_deref())?;
        let slice = scope.rsplitn(3, '/').nth(2);
        let slice = self.find(slice)?;
        let limit = self.reader.memory_limit(&slice);
        limit.unwrap_or_else(|e| tell(slice.path().as_str(), &e.into()))
    }

    /// Opens a cgroup, if it still exists.
    pub(super) fn find(&self, path: Option<&str>) -> Option<Cgroup> {
        let open = |path: &str| -> Result<Option<Cgroup>, NativeError> {
            let path = path.parse().map_err(NativeError::CgroupPath)?;
            Ok(self.engine.native.cgroups.find(&path)?)
        };
        path.and_then(|path| open(path).unwrap_or_else(|e| tell(path, &e)))
    }

    /// The counters of a cgroup, without a rate.
    pub(super) fn counters(&mut self, cgroup: &Cgroup) -> Result<GroupUsage, NativeError> {
        Ok(GroupUsage {
            at: now(),
            cpu: self.reader.cpu(cgroup)?,
            nano_cores: None,
            memory: self.reader.memory(cgroup)?,
            io: self.reader.io_pressure(cgroup)?,
        })
    }

    fn group(&mut self, cgroup: &Cgroup, key: Key) -> Option<GroupUsage> {
        let group = self
            .counters(cgroup)
            .map(Some)
            .unwrap_or_else(|e| tell(cgroup.path().as_str(), &e))?;
        Some(GroupUsage {
            nano_cores: group
                .cpu
                .usage_usec
                .and_then(|usage| self.engine.stats.rate(key, usage)),
            ..group
        })
    }

    /// Tasks in the pod's cgroup; without the controller, the processes directly in those of its containers.
    fn processes(&mut self, cgroup: &Cgroup, containers: &[Arc<Container>]) -> Option<u64> {
        match self.reader.tasks(cgroup) {
            Ok(Some(tasks)) => return Some(tasks),
            Ok(None) => {}
            Err(e) => return tell(cgroup.path().as_str(), &e.into()),
        }
        let members = containers
            .iter()
            .filter_map(|c| self.find(c.record.cgroup.as_deref()))
            .filter_map(|cgroup| cgroup.procs().ok());
        Some(members.map(|pids| pids.len() as u64).sum())
    }
}

pub(super) fn tell<T>(path: &str, e: &NativeError) -> Option<T> {
    let e: &(dyn std::error::Error + 'static) = e;
    tracing::warn!(cgroup = path, error = e, "cannot read what a cgroup uses");
    None
}

/// The counters of all links of the host, by name.
fn links() -> HashMap<String, LinkUsage> {
    let at = now();
    let text = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let link = |line| link(line, at).map(|(name, usage)| (name, usage.of_other_end()));
    text.lines().filter_map(link).collect()
}

/// The interfaces of a pod's own network but for the one that podd made, as a process in it sees them.
fn other_links(pod: &Pod, containers: &[Arc<Container>]) -> Vec<(String, LinkUsage)> {
    let Some(attachment) = &pod.record.attachment else {
        return Vec::new();
    };
    let running = |c: &Arc<Container>| match c.record.phase {
        ContainerPhase::Running { pid, .. } => Some(pid),
        _ => None,
    };
    let Some(pid) = containers.iter().find_map(running) else {
        return Vec::new();
    };
    let at = now();
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let links = text.lines().filter_map(|line| link(line, at));
    links.filter(|(name, _)| *name != attachment.interface).collect()
}

/// A line of /proc/net/dev. Eight numbers of what was received, eight of what was sent; each begins with bytes, packets, errors, drops.
fn link(line: &str, at: Nanos) -> Option<(String, LinkUsage)> {
    let (name, counters) = line.split_once(':')?;
    let mut counters = counters.split_ascii_whitespace().map(str::parse::<u64>);
    let mut half = || -> Option<[u64; 4]> {
        let mut next = || counters.next()?.ok();
        let first = [next()?, next()?, next()?, next()?];
        counters.nth(3)?.ok()?;
        Some(first)
    };
    let ([rx_bytes, rx_packets, rx_errors, rx_dropped], [tx_bytes, tx_packets, tx_errors, tx_dropped]) =
        (half()?, half()?);
    let usage = LinkUsage {
        at,
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    };
    Some((name.trim().to_owned(), usage))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::phase::{Exit, Reason};
    use crate::state::record::tests;

    #[test]
    fn a_rate_is_made_of_samples_that_are_apart() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let first = Sample::after(None, at(0), 1_000_000);
        assert_eq!(first.nano_cores, None);
        // Too close: the first sample stays, and so does the window that it opened.
        assert_eq!(Sample::after(Some(first), at(999), 1_500_000), first);
        let second = Sample::after(Some(first), at(2000), 2_000_000);
        assert_eq!(second.nano_cores, Some(500_000_000), "half a core");
        assert_eq!(Sample::after(Some(second), at(2500), 9_000_000), second);
        let busy = Sample::after(Some(second), at(4000), 10_000_000);
        assert_eq!(busy.nano_cores, Some(4_000_000_000), "four cores");
        let idle = Sample::after(Some(busy), at(14_000), 10_000_000);
        assert_eq!(idle.nano_cores, Some(0));
        let another = Sample::after(Some(idle), at(20_000), 5);
        assert_eq!((another.nano_cores, another.usage_usec), (None, 5));
    }

    #[test]
    fn the_pod_receives_what_the_host_sends() {
        let heads = [
            "Inter-|   Receive                                                |  Transmit",
            " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls \
             carrier compressed",
        ];
        for head in heads {
            assert_eq!(link(head, 9), None);
        }
        let line = " veth0:      1      2    3    4    0     0          0         0       5       6    7    8    0     \
                    0       0          0";
        let (name, usage) = link(line, 9)
            .map(|(name, usage)| (name, usage.of_other_end()))
            .unwrap();
        assert_eq!((name.as_str(), usage.at), ("veth0", 9));
        let sent = [
            usage.tx_bytes,
            usage.tx_packets,
            usage.tx_errors,
            usage.tx_dropped,
        ];
        let received = [
            usage.rx_bytes,
            usage.rx_packets,
            usage.rx_errors,
            usage.rx_dropped,
        ];
        assert_eq!((sent, received), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert!(links().contains_key("lo"), "{:?}", links());
    }

    #[test]
    fn what_is_over_or_not_yet_there_does_not_count() {
        let pod = tests::pod("a", 0);
        let mut it = tests::container(&pod, "c");
        assert!(!counts(&it), "being created");
        it.record.phase = ContainerPhase::Created { pid: 1 };
        assert!(counts(&it));
        it.record.phase = ContainerPhase::Exited(Exit {
            code: 0,
            reason: Reason::Completed,
            message: String::new(),
            started_at: 1,
            finished_at: 2,
        });
        assert!(!counts(&it));
    }
}
