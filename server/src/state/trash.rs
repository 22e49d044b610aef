//! Directories on their way out.
//!
//! One rename takes a tree away from its place, so that nothing half deleted is ever found there; a thread that lives
//! as long as there is work empties it. Whoever removes a container waits for the rename alone: a container may have
//! written gigabytes, or a million files. What a killed podd leaves here, the next one deletes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tracing::warn;

/// A directory whose entries are deleted.
#[derive(Debug)]
pub struct Trash {
    dir: PathBuf,
    next: AtomicU64,
    sweeper: Arc<Sweeper>,
}

/// What the thread and those who give it work share.
#[derive(Debug, Default)]
struct Sweeper {
    work: Mutex<Work>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    /// A thread runs.
    running: bool,
    /// The last one that was started.
    thread: Option<JoinHandle<()>>,
    /// Something came since the thread last looked.
    more: bool,
}

impl Trash {
    /// The trash in `dir`, which exists and holds nothing else.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            next: AtomicU64::new(0),
            sweeper: Arc::default(),
        }
    }

    /// Takes `path` away; one that is missing is fine. `name` is for those who look into the trash.
    ///
    /// # Errors
    /// The rename failed: `path` is where it was.
    pub fn take(&self, path: &Path, name: &str) -> io::Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            match fs::rename(path, self.dir.join(format!("{name}-{number}"))) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                // A daemon before this one used the number, and could not delete what it took.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                    ) => {}
                Err(e) => return Err(e),
            }
        }
        self.empty();
        Ok(())
    }

    /// Begins to delete all that is here; does not wait.
    pub fn empty(&self) {
        let mut work = self.sweeper.lock();
        work.more = true;
        if work.running {
            return;
        }
        let (dir, sweeper) = (self.dir.clone(), Arc::clone(&self.sweeper));
        let thread = std::thread::Builder::new().name("podd-trash".to_owned());
        match thread.spawn(move || sweeper.sweep(&dir)) {
            Ok(thread) => {
                work.running = true;
                work.thread = Some(thread);
            }
            // The next one who deletes tries again.
            Err(e) => warn!("cannot start the thread that empties {}: {e}", self.dir.display()),
        }
    }

    /// How many directories are still to be deleted. Blocks.
    ///
    /// # Errors
    /// The trash cannot be listed.
    pub fn waiting(&self) -> io::Result<usize> {
        Ok(fs::read_dir(&self.dir)?.count())
    }

    /// Whether the thread died at its work, so that nothing is deleted any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        let work = self.sweeper.lock();
        work.running && work.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Waits until no thread deletes any more.
    #[cfg(test)]
    pub(crate) fn wait_empty(&self) {
        let work = self.sweeper.lock();
        let running = self.sweeper.idle.wait_while(work, |work| work.running);
        drop(running.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Sweeper {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes what is in `dir` until nothing new has come; what resists stays for the next time.
    fn sweep(&self, dir: &Path) {
        loop {
            self.lock().more = false;
            match fs::read_dir(dir) {
                Ok(entries) => entries.flatten().for_each(|entry| {
                    let name = entry.file_name();
                    if let Err(e) = podd_images::erase_tree(dir, &name.to_string_lossy()) {
                        warn!("cannot delete {}: {e}", entry.path().display());
                    }
                }),
                Err(e) => warn!("cannot list {}: {e}", dir.display()),
            }
            let mut work = self.lock();
            if !work.more {
                work.running = false;
                self.idle.notify_all();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_vanishes() {
        let dir = tempfile::tempdir().unwrap();
        let (place, home) = (dir.path().join("trash"), dir.path().join("home"));
        fs::create_dir(&place).unwrap();
        // A number that is taken already, by a directory that is not empty.
        fs::create_dir_all(place.join("a-0/full")).unwrap();
        let trash = Trash::new(place.clone());
        for _ in 0..20 {
            fs::create_dir_all(home.join("deep/deeper")).unwrap();
            fs::write(home.join("deep/file"), "x").unwrap();
            trash.take(&home, "a").unwrap();
            assert!(!home.exists());
        }
        trash.take(&home, "a").unwrap();
        trash.wait_empty();
        assert_eq!(trash.waiting().unwrap(), 0);
        assert!(!trash.is_abandoned());
    }
}
