//! What metrics show of pods and containers: everything that statistics show, and more of the kernel's files.
//!
//! Owns the pass over them: cgroup files, one reading of the links' counters, and for each process its open files.
//! No process is started, and no tree is walked but by the background walk of `writable`, whose first figure of a
//! new container is waited for, shortly.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use runtime_core::cgroup::{Account, Cgroup};
use rustix::fs::{CWD, Mode, OFlags, RawDir};

use super::native::NativeError;
use super::stats::{GroupUsage, LayerUsage, LinkUsage, Pass, counts, tell};
use super::{Engine, EngineError, now};
use crate::model::ContainerId;
use crate::state::phase::{ContainerPhase, Nanos};
use crate::state::store::{Container, Pod};

/// How long new containers are waited for whose writable layer was never measured.
const FIRST_WALK: Duration = Duration::from_millis(100);

/// So many open files are counted in one container at most: each costs a system call.
const DESCRIPTORS: u64 = 1 << 16;

/// Processes of a container, and what they have open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processes {
    /// How many there are.
    pub count: u64,
    /// Their open files, sockets among them; absent where there are too many to count.
    pub descriptors: Option<u64>,
    /// Their open sockets, likewise.
    pub sockets: Option<u64>,
}

/// What was read of a pod or of a container.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// When.
    pub at: Nanos,
    /// Counters of its cgroup; absent once that is gone.
    pub group: Option<GroupUsage>,
    /// The rest of its cgroup's files.
    pub account: Account,
    /// Some file was there and could not be read.
    pub failed: bool,
    /// Its processes.
    pub processes: Option<Processes>,
    /// RLIMIT_NOFILE of its first process.
    pub open_files_max: Option<u64>,
    /// What it has written to its root; absent until that was measured once.
    pub layer: Option<LayerUsage>,
    /// Its interface.
    pub link: Option<LinkUsage>,
}

/// A pod and its containers that are not over.
#[derive(Debug, Clone)]
pub struct PodReading {
    /// Which.
    pub pod: Arc<Pod>,
    /// The pod as a whole.
    pub whole: Reading,
    /// Its containers.
    pub containers: Vec<(Arc<Container>, Reading)>,
}

/// The file system that containers write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its device, `/dev/…` where it is one.
    pub device: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Inodes it can hold; 0 where it makes them as it needs them.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// What was read in one pass.
#[derive(Debug, Default)]
pub struct Readings {
    /// Pod by pod.
    pub pods: Vec<PodReading>,
    /// The file system that containers write to.
    pub disk: Option<Disk>,
    /// Names of the block devices that were used.
    pub devices: HashMap<(u32, u32), String>,
}

impl Engine {
    /// Reads what metrics show of these pods.
    ///
    /// # Errors
    /// A defect in podd.
    pub async fn read_metrics(self: &Arc<Self>, pods: Vec<Arc<Pod>>) -> Result<Readings, EngineError> {
        self.pass("ListPodSandboxMetrics", move |pass| pass.readings(pods))
            .await
    }
}

impl Pass<'_> {
    fn readings(&mut self, pods: Vec<Arc<Pod>>) -> Readings {
        let sizes = page_sizes();
        let mut pods: Vec<_> = pods.into_iter().map(|pod| self.read_pod(pod, &sizes)).collect();
        self.await_layers(&mut pods);
        let disk = disk(&self.engine.config.state_dir);
        let all = pods
            .iter()
            .flat_map(|pod| pod.containers.iter().map(|(_, r)| r).chain([&pod.whole]));
        let mut devices = HashMap::new();
        for io in all.flat_map(|reading| &reading.account.io) {
            devices.entry(io.device).or_insert_with(|| device_name(io.device));
        }
        Readings { pods, disk, devices }
    }

    fn read_pod(&mut self, pod: Arc<Pod>, sizes: &[String]) -> PodReading {
        let snapshot = self.engine.snapshot();
        let mine = snapshot
            .containers_of(&pod.record.id)
            .filter(|c| counts(c))
            .cloned();
        let containers: Vec<_> = mine.map(|c| self.read_container(c, sizes)).collect();
        let (_, mut whole) = self.read_group(pod.record.cgroup.as_deref(), sizes);
        whole.link = self.link(&pod);
        whole.processes = containers.iter().filter_map(|(_, r)| r.processes).reduce(|a, b| {
            let sum = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
            Processes {
                count: a.count + b.count,
                descriptors: sum(a.descriptors, b.descriptors),
                sockets: sum(a.sockets, b.sockets),
            }
        });
        PodReading {
            pod,
            whole,
            containers,
        }
    }

    fn read_container(&mut self, container: Arc<Container>, sizes: &[String]) -> (Arc<Container>, Reading) {
        let (cgroup, mut reading) = self.read_group(container.record.cgroup.as_deref(), sizes);
        if let Some(pids) = cgroup.and_then(|cgroup| cgroup.procs().ok()) {
            reading.processes = Some(processes(&pids));
            if let ContainerPhase::Running { pid, .. } = container.record.phase
                && pids.contains(&pid.cast_unsigned())
            {
                reading.open_files_max = open_files_max(pid);
            }
        }
        reading.layer = self.layer(&container);
        (container, reading)
    }

    fn read_group(&mut self, path: Option<&str>, sizes: &[String]) -> (Option<Cgroup>, Reading) {
        let cgroup = self.find(path);
        let mut reading = Reading {
            at: now(),
            ..Reading::default()
        };
        if let Some(cgroup) = &cgroup {
            let mut read = || -> Result<(), NativeError> {
                reading.group = Some(self.counters(cgroup)?);
                reading.account = self.reader.account(cgroup, sizes)?;
                Ok(())
            };
            if let Err(e) = read() {
                reading.failed = true;
                tell::<()>(cgroup.path().as_str(), &e);
            }
        }
        (cgroup, reading)
    }

    /// The first question after a container begins its first walk, and most take a millisecond.
    fn await_layers(&self, pods: &mut [PodReading]) {
        let mut new: Vec<_> = pods
            .iter_mut()
            .flat_map(|pod| &mut pod.containers)
            .filter(|(_, reading)| reading.layer.is_none())
            .collect();
        if new.is_empty() {
            return;
        }
        let ids: Vec<ContainerId> = new.iter().map(|(container, _)| container.record.id).collect();
        self.engine.stats.layers.wait_first(&ids, FIRST_WALK);
        for (container, reading) in &mut new {
            reading.layer = self.layer(container);
        }
    }
}

/// Counts what processes have open. One that ends meanwhile has nothing open.
fn processes(pids: &[u32]) -> Processes {
    let mut sum = (0, 0);
    let mut buffer = vec![MaybeUninit::uninit(); 4096];
    let counted = pids.iter().all(|pid| count_open(*pid, &mut sum, &mut buffer));
    Processes {
        count: pids.len() as u64,
        descriptors: counted.then_some(sum.0),
        sockets: counted.then_some(sum.1),
    }
}

/// Adds the open files and sockets of a process; says whether that was possible within the bound. Names of links
/// are read and no link is followed: what is behind one may hang.
fn count_open(pid: u32, sum: &mut (u64, u64), buffer: &mut [MaybeUninit<u8>]) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty()) else {
        return true;
    };
    let mut entries = RawDir::new(&dir, buffer);
    while let Some(Ok(entry)) = entries.next() {
        if entry.file_name().to_bytes().first() == Some(&b'.') {
            continue;
        }
        sum.0 += 1;
        if sum.0 > DESCRIPTORS {
            return false;
        }
        let mut target = [MaybeUninit::uninit(); 16];
        let begin = rustix::fs::readlinkat_raw(&dir, entry.file_name(), &mut target);
        sum.1 += u64::from(begin.is_ok_and(|(begin, _)| begin.starts_with(b"socket:")));
    }
    true
}

/// The soft limit of `Max open files` in /proc/pid/limits.
fn open_files_max(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Sizes of huge pages on this machine, as the files of cgroups are named (mm/hugetlb_cgroup.c).
fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let kib: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            Some(page_size(kib))
        })
        .collect()
}

fn page_size(kib: u64) -> String {
    match kib {
        _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    }
}

fn disk(directory: &std::path::Path) -> Option<Disk> {
    let space = rustix::fs::statvfs(directory).ok()?;
    let device = rustix::fs::stat(directory).ok()?.st_dev;
    Some(Disk {
        device: device_name((rustix::fs::major(device), rustix::fs::minor(device))),
        bytes: space.f_blocks.saturating_mul(space.f_frsize),
        inodes: space.f_files,
        inodes_free: space.f_ffree,
    })
}

/// The name of a block device, or its numbers: those of a file system without a device of its own have no name.
fn device_name((major, minor): (u32, u32)) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = link
        .as_ref()
        .and_then(|link| link.file_name())
        .and_then(|name| name.to_str());
    match name {
        // In sysfs a slash is written as an exclamation mark.
        Some(name) => format!("/dev/{}", name.replace('!', "/")),
        None => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_and_sockets_are_counted() {
        let me = std::process::id();
        let before = processes(&[me]);
        let (_one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        let _file = std::fs::File::open("/proc/self/status").unwrap();
        let after = processes(&[me]);
        assert_eq!((before.count, after.count), (1, 1));
        // Other tests of this process open and close files meanwhile.
        assert!(after.descriptors.unwrap() >= 3, "{after:?}");
        assert!(after.sockets.unwrap() >= 2, "{after:?}");
        assert!(after.sockets < after.descriptors, "{after:?}");
        let gone = processes(&[u32::MAX >> 1]);
        assert_eq!((gone.descriptors, gone.sockets), (Some(0), Some(0)));
        assert!(open_files_max(me.cast_signed()).unwrap() > 0);
        assert_eq!(open_files_max(i32::MAX), None);
    }

    #[test]
    fn sizes_of_pages_are_named_as_the_kernel_names_them() {
        for (kib, name) in [(64, "64KB"), (2048, "2MB"), (1 << 20, "1GB")] {
            assert_eq!(page_size(kib), name);
        }
    }

    #[test]
    fn the_disk_below_a_directory_has_a_size_and_a_name() {
        let temp = tempfile::tempdir().unwrap();
        let disk = disk(temp.path()).unwrap();
        assert!(disk.bytes > 0 && disk.inodes_free <= disk.inodes, "{disk:?}");
        assert!(!disk.device.is_empty());
        assert_eq!(super::disk(&temp.path().join("none")), None);
        assert_eq!(device_name((0, 9_999)), "0:9999");
    }
}
