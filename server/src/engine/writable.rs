//! How much a container has written: its upper directory, measured in the background and remembered.
//!
//! Owns the walk and when it happens. Whoever asks is answered at once with the last figure, or with none before the
//! first walk is done; nobody waits for a walk, and without questions there is none. At most one walk runs at a time,
//! and a figure is used for longer the more it cost, so that all walks together take a tenth of a processor at most,
//! or more only to keep every figure younger than ten minutes.
//!
//! The walk trusts nothing that a container can do meanwhile: it follows no link, leaves no file system, goes up only
//! to where it came from, and holds two descriptors however deep the tree is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::now;
use crate::model::ContainerId;
use crate::state::phase::Nanos;

/// How long a figure is good at least.
const FRESH: Duration = Duration::from_secs(10);

/// How long it is good at most.
const STALE: Duration = Duration::from_secs(600);

/// The share of a processor that all walks together may take is one part in this many.
const SHARE: u32 = 10;

/// Size of a block in `st_blocks` (stat(2)).
const BLOCK: u64 = 512;

/// What an upper directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was measured.
    pub at: Nanos,
    /// Bytes on disk, as du(1) counts them.
    pub bytes: u64,
    /// Inodes, the directory's own included.
    pub inodes: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    usage: Option<LayerUsage>,
    /// When to measure again; none while that is under way.
    due: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<ContainerId, Known>,
    waiting: VecDeque<(ContainerId, PathBuf)>,
    walking: bool,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    measured: Condvar,
    stop: AtomicBool,
}

/// The figures of all containers. A walk that runs when this is dropped ends soon after.
#[derive(Debug, Default)]
pub struct Layers(Arc<Shared>);

impl Drop for Layers {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Layers {
    /// The last figure of a container; sees to it that a newer one comes when this one is old. Must be called where
    /// a tokio runtime is at hand.
    #[must_use]
    pub fn usage(&self, id: ContainerId, upper: impl FnOnce() -> PathBuf) -> Option<LayerUsage> {
        let mut inner = self.0.lock();
        let never = Known {
            usage: None,
            due: Some(Instant::now()),
        };
        let known = inner.known.entry(id).or_insert(never);
        let usage = known.usage;
        if known.due.is_some_and(|due| due <= Instant::now()) {
            known.due = None;
            inner.waiting.push_back((id, upper()));
            if !std::mem::replace(&mut inner.walking, true) {
                let shared = Arc::clone(&self.0);
                tokio::task::spawn_blocking(move || shared.walk());
            }
        }
        usage
    }

    /// Waits until no first walk over one of these containers is under way, but not longer than `patience`. Blocks.
    pub fn wait_first(&self, ids: &[ContainerId], patience: Duration) {
        let first = |known: &Known| known.usage.is_none() && known.due.is_none();
        let under_way = |inner: &mut Inner| ids.iter().any(|id| inner.known.get(id).is_some_and(first));
        drop(
            self.0
                .measured
                .wait_timeout_while(self.0.lock(), patience, under_way),
        );
    }

    /// Bytes and inodes of all containers that were measured; starts no walk.
    #[must_use]
    pub fn total(&self) -> (u64, u64) {
        let inner = self.0.lock();
        let known = inner.known.values().filter_map(|known| known.usage);
        known.fold((0, 0), |(bytes, inodes), it| {
            (bytes + it.bytes, inodes + it.inodes)
        })
    }

    /// Forgets containers that are no more.
    pub fn retain(&self, exists: impl Fn(&ContainerId) -> bool) {
        self.0.lock().known.retain(|id, _| exists(id));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures one directory after the other until none is waiting.
    fn walk(&self) {
        loop {
            let mut inner = self.lock();
            let Some((id, upper)) = inner.waiting.pop_front() else {
                inner.walking = false;
                return;
            };
            drop(inner);
            let began = Instant::now();
            let measured = measure(&upper, &self.stop);
            let took = began.elapsed();
            let mut inner = self.lock();
            let rest = rest(took, inner.known.len());
            // Forgotten meanwhile: the container is no more.
            let Some(known) = inner.known.get_mut(&id) else {
                continue;
            };
            known.due = Some(Instant::now() + rest);
            match measured {
                Ok(usage) => known.usage = Some(usage),
                // podd stops, or the container was removed.
                Err(Errno::CANCELED | Errno::NOENT) => {}
                Err(errno) => {
                    tracing::warn!(container = %id, %errno, "cannot measure what the container has written");
                }
            }
            drop(inner);
            self.measured.notify_all();
        }
    }
}

/// How long to leave a directory alone that took so long, where there are so many.
fn rest(took: Duration, directories: usize) -> Duration {
    let directories = u32::try_from(directories).unwrap_or(u32::MAX);
    took.saturating_mul(directories.saturating_mul(SHARE))
        .clamp(FRESH, STALE)
}

/// Adds up what a directory tree takes.
///
/// # Errors
/// A directory that is there cannot be read; `CANCELED` when `stop` was set.
pub fn measure(top: &Path, stop: &AtomicBool) -> Result<LayerUsage, Errno> {
    let at = now();
    let mut walk = Walk::begin(top)?;
    while !stop.load(Ordering::Relaxed) {
        if !walk.step()? {
            return Ok(LayerUsage {
                at,
                bytes: walk.blocks.saturating_mul(BLOCK),
                inodes: walk.inodes,
            });
        }
    }
    Err(Errno::CANCELED)
}

type Identity = (u64, u64);

/// A directory on the way from the top to the current one.
struct Above {
    identity: Identity,
    /// Where the names of its directories begin that are still to be visited.
    names: usize,
}

/// A walk, depth first.
struct Walk {
    blocks: u64,
    inodes: u64,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
    current: OwnedFd,
    identity: Identity,
    above: Vec<Above>,
    /// Directories to be visited, here and above: their names, each ended by a NUL.
    names: Vec<u8>,
    /// Where those of the current directory begin.
    begin: usize,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Walk {
    fn begin(top: &Path) -> Result<Self, Errno> {
        let current = rustix::fs::openat(CWD, top, flags(), Mode::empty())?;
        let stat = rustix::fs::fstat(&current)?;
        let mut walk = Self {
            blocks: 0,
            inodes: 0,
            linked: HashSet::new(),
            current,
            identity: identity(&stat),
            above: Vec::new(),
            names: Vec::new(),
            begin: 0,
            buffer: vec![MaybeUninit::uninit(); 32 << 10],
        };
        walk.count(&stat);
        walk.list()?;
        Ok(walk)
    }

    /// Goes one directory down or up; false at the end.
    fn step(&mut self) -> Result<bool, Errno> {
        if self.names.len() > self.begin {
            return self.descend().map(|()| true);
        }
        let Some(above) = self.above.pop() else {
            return Ok(false);
        };
        let parent = open(&self.current, c"..")?;
        if identity(&rustix::fs::fstat(&parent)?) != above.identity {
            // The container moved the directory: there is no way back, and what was seen has to do.
            return Ok(false);
        }
        self.current = parent;
        self.identity = above.identity;
        self.begin = above.names;
        Ok(true)
    }

    fn descend(&mut self) -> Result<(), Errno> {
        let end = self.names.len().saturating_sub(1);
        let before = self.names.get(..end).unwrap_or_default();
        let start = before
            .iter()
            .rposition(|byte| *byte == 0)
            .map_or(0, |nul| nul + 1);
        let name = self.names.split_off(start);
        let Ok(name) = CStr::from_bytes_with_nul(&name) else {
            return Ok(());
        };
        let next = match open(&self.current, name) {
            // Removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other?,
        };
        let identity = identity(&rustix::fs::fstat(&next)?);
        if identity.0 != self.identity.0 {
            return Ok(());
        }
        self.above.push(Above {
            identity: self.identity,
            names: self.begin,
        });
        self.current = next;
        self.identity = identity;
        self.begin = self.names.len();
        self.list()
    }

    /// Counts everything in the current directory, and remembers the directories.
    fn list(&mut self) -> Result<(), Errno> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let done = self.list_with(&mut buffer);
        self.buffer = buffer;
        done
    }

    fn list_with(&mut self, buffer: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
        let current = self.current.try_clone().map_err(|_| Errno::MFILE)?;
        let mut entries = RawDir::new(&current, buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // Removed while it was open.
                Err(Errno::NOENT) => return Ok(()),
                other => other?,
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match rustix::fs::statat(&current, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            self.count(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.names.extend_from_slice(name.to_bytes_with_nul());
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return;
        }
        self.inodes += 1;
        self.blocks = self.blocks.saturating_add(stat.st_blocks.cast_unsigned());
    }
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn open(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, flags(), Mode::empty())
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    fn walked(top: &Path) -> (u64, u64) {
        let usage = measure(top, &AtomicBool::new(false)).unwrap();
        (usage.bytes, usage.inodes)
    }

    #[test]
    fn a_tree_is_counted_as_du_counts_it() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("big"), vec![1; 1 << 20]).unwrap();
        let mut expected = Vec::new();
        for dir in ["a", "a/b", "a/b/c", "d"] {
            fs::create_dir(top.join(dir)).unwrap();
            expected.push(top.join(dir));
        }
        for (file, size) in [("a/one", 5000), ("a/b/c/two", 100_000), ("three", 1)] {
            fs::write(top.join(file), vec![7; size]).unwrap();
            expected.push(top.join(file));
        }
        fs::hard_link(top.join("a/one"), top.join("d/again")).unwrap();
        std::os::unix::fs::symlink(outside.path(), top.join("d/link")).unwrap();
        expected.extend([top.join("d/link"), top.to_owned()]);
        let bytes = expected
            .iter()
            .map(|path| path.symlink_metadata().unwrap().blocks() * BLOCK)
            .sum();
        assert_eq!(walked(top), (bytes, expected.len() as u64));
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = rustix::fs::openat(CWD, temp.path(), flags(), Mode::empty()).unwrap();
        for _ in 0..600 {
            rustix::fs::mkdirat(&dir, c"d", Mode::RWXU).unwrap();
            dir = open(&dir, c"d").unwrap();
        }
        rustix::fs::mkdirat(&dir, c"e", Mode::RWXU).unwrap();
        assert_eq!(walked(temp.path()).1, 602);
        let mut walk = Walk::begin(temp.path()).unwrap();
        while walk.above.len() < 500 {
            assert!(walk.step().unwrap());
        }
        let open = fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(open < 200, "{open}");
    }

    #[test]
    fn what_is_gone_and_what_is_cancelled_are_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let none = temp.path().join("none");
        assert_eq!(measure(&none, &AtomicBool::new(false)), Err(Errno::NOENT));
        assert_eq!(measure(temp.path(), &AtomicBool::new(true)), Err(Errno::CANCELED));
    }

    #[test]
    fn what_costs_more_is_measured_less_often() {
        let seconds = Duration::from_secs;
        assert_eq!(rest(Duration::from_millis(1), 50), FRESH);
        assert_eq!(rest(Duration::from_millis(100), 50), seconds(50));
        assert_eq!(rest(seconds(2), 1), seconds(20));
        assert_eq!(rest(seconds(2), usize::MAX), STALE);
    }

    #[tokio::test]
    async fn a_figure_comes_later_and_stays() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), vec![1; 10_000]).unwrap();
        let (layers, id) = (Layers::default(), ContainerId::random().unwrap());
        let upper = || temp.path().to_owned();
        assert_eq!(layers.usage(id, upper), None);
        layers.wait_first(&[id, ContainerId::random().unwrap()], Duration::from_secs(10));
        let deadline = Instant::now() + Duration::from_secs(10);
        let first = loop {
            if let Some(usage) = layers.usage(id, upper) {
                break usage;
            }
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        assert_eq!(first.inodes, 2);
        assert!(first.bytes >= 10_000);
        fs::write(temp.path().join("more"), vec![1; 10_000]).unwrap();
        assert_eq!(layers.usage(id, upper), Some(first), "good for a while");
        layers.retain(|_| false);
        assert_eq!(layers.usage(id, upper), None);
    }
}
