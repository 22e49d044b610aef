//! The cgroup that podd was given, and the directories below it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, CgroupError, CgroupPath, files};

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Cgroups inside each other that a removal follows.
const DEPTH_MAX: usize = 128;

/// Names of controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controllers(BTreeSet<String>);

impl Controllers {
    /// Reads a space-separated list.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(text.split_ascii_whitespace().map(str::to_owned).collect())
    }

    /// Whether a controller is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// The names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Those that `other` lacks.
    fn beyond<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        self.0.difference(&other.0).map(String::as_str).collect()
    }
}

/// A directory of a cgroup2 file system below which podd makes cgroups. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CgroupRoot {
    dir: Arc<OwnedFd>,
    path: PathBuf,
}

impl CgroupRoot {
    /// Opens a cgroup2 mount, or a directory in one.
    ///
    /// # Errors
    /// It cannot be opened, or is on another file system.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let root = Self::open_anywhere(path)?;
        let kind = rustix::fs::fstatfs(root.dir())
            .map_err(|source| CgroupError::Open {
                path: path.to_owned(),
                source,
            })?
            .f_type;
        if kind == CGROUP2_MAGIC {
            Ok(root)
        } else {
            Err(CgroupError::NotCgroup2(path.to_owned()))
        }
    }

    /// Opens a directory without asking for its file system; tests use plain ones.
    pub(super) fn open_anywhere(path: &Path) -> Result<Self, CgroupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir =
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|source| CgroupError::Open {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            dir: Arc::new(dir),
            path: path.to_owned(),
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Where it was opened; for people and for tools that want a path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Controllers that the root itself has, which is what any cgroup below can have.
    ///
    /// # Errors
    /// cgroup.controllers cannot be read.
    pub fn controllers(&self) -> Result<Controllers, CgroupError> {
        controllers_of(self.dir(), &CgroupPath::root(), "cgroup.controllers")
    }

    /// Opens a cgroup; `None` when there is none.
    ///
    /// # Errors
    /// It exists and cannot be opened.
    pub fn find(&self, path: &CgroupPath) -> Result<Option<Cgroup>, CgroupError> {
        match files::open_dir(self.dir(), path.as_str()) {
            Ok(dir) => Ok(Some(Cgroup::new(self.clone(), dir, path.clone()))),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(CgroupError::Open {
                path: self.path.join(path.as_str()),
                source,
            }),
        }
    }

    /// Makes a cgroup and what is missing above it, and hands every controller down to it that its ancestors
    /// have. An ancestor that cannot hand one down (it has processes of its own, EBUSY) is no error here: a
    /// limit that needs the controller is refused by name later.
    ///
    /// # Errors
    /// A directory cannot be made or opened.
    pub fn create(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        let fail = |path: &CgroupPath, source| CgroupError::Create {
            path: path.clone(),
            source,
        };
        let (mut dir, mut at) = self.complete_above(path)?;
        for name in path.names().skip(at.names().count()) {
            hand_down(dir.as_fd(), &at)?;
            at = at.join(name)?;
            match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(source) => return Err(fail(&at, source)),
            }
            dir = files::open_dir(&dir, name).map_err(|source| fail(&at, source))?;
        }
        Ok(Cgroup::new(self.clone(), dir, at))
    }

    /// The cgroup above `path` where that has all controllers of the root, so that nothing is missing on the way to it, as
    /// is the case for all but the first below it; the root otherwise.
    fn complete_above(&self, path: &CgroupPath) -> Result<(OwnedFd, CgroupPath), CgroupError> {
        let root = CgroupPath::root();
        if let Some(above) = path.parent()
            && above != root
            && let Ok(dir) = files::open_dir(self.dir(), above.as_str())
            && let Ok(has) = controllers_of(dir.as_fd(), &above, "cgroup.controllers")
            && has == self.controllers()?
        {
            return Ok((dir, above));
        }
        let open = files::open_dir(self.dir(), "");
        let dir = open.map_err(|source| CgroupError::Create {
            path: path.clone(),
            source,
        })?;
        Ok((dir, root))
    }

    /// Makes a cgroup in one that exists, and hands nothing down to it: for processes that stand in the way of that.
    ///
    /// # Errors
    /// The directory cannot be made or opened.
    pub fn create_leaf(&self, above: &CgroupPath, name: &str) -> Result<Cgroup, CgroupError> {
        let path = above.join(name)?;
        let fail = |source| CgroupError::Create {
            path: path.clone(),
            source,
        };
        let dir = files::open_dir(self.dir(), above.as_str()).map_err(fail)?;
        match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => return Err(fail(source)),
        }
        let leaf = files::open_dir(&dir, name).map_err(fail)?;
        Ok(Cgroup::new(self.clone(), leaf, path))
    }

    /// Removes a cgroup with everything below it, once no process is left. One that does not exist is removed.
    ///
    /// # Errors
    /// It has processes when the deadline passes, or the kernel refuses.
    pub fn remove(&self, path: &CgroupPath, deadline: Instant) -> Result<(), CgroupError> {
        let Some(parent) = path.parent() else {
            return Err(CgroupError::Remove {
                path: path.clone(),
                source: Errno::BUSY,
            });
        };
        let mut pause = Duration::from_micros(200);
        loop {
            match self.try_remove(&parent, path) {
                Err(CgroupError::Remove {
                    source: Errno::BUSY, ..
                }) => {}
                other => return other,
            }
            if let Some(group) = self.find(path)? {
                group.wait_empty(deadline)?;
            }
            if Instant::now() >= deadline {
                return Err(CgroupError::Deadline(path.clone()));
            }
            // Nothing is alive, yet the kernel is not done with the dead.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills what is in a cgroup and below, and removes it as [`CgroupRoot::remove`] does. One that is gone is fine, also
    /// if it goes meanwhile.
    ///
    /// # Errors
    /// Something in it does not die in time, or the kernel refuses.
    pub fn end(&self, path: &CgroupPath, deadline: Instant) -> Result<(), CgroupError> {
        let Some(cgroup) = self.find(path)? else {
            return Ok(());
        };
        match cgroup.kill() {
            Err(e) if cgroup.populated()? => Err(e),
            _ => self.remove(path, deadline),
        }
    }

    fn try_remove(&self, parent: &CgroupPath, path: &CgroupPath) -> Result<(), CgroupError> {
        let above = match files::open_dir(self.dir(), parent.as_str()) {
            Ok(above) => above,
            Err(Errno::NOENT) => return Ok(()),
            Err(source) => {
                return Err(CgroupError::Remove {
                    path: path.clone(),
                    source,
                });
            }
        };
        remove_tree(above.as_fd(), path.name(), path, 0)
    }
}

/// Removes one directory, and what is below it when the kernel says that something is.
fn remove_tree(
    above: BorrowedFd<'_>,
    name: &str,
    path: &CgroupPath,
    depth: usize,
) -> Result<(), CgroupError> {
    let fail = |source| CgroupError::Remove {
        path: path.clone(),
        source,
    };
    let rmdir = || match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(source) => Err(source),
    };
    // The kernel says BUSY both for children and for processes; a plain directory (tests) says NOTEMPTY.
    match rmdir() {
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        other => return other.map_err(fail),
    }
    if depth >= DEPTH_MAX {
        return Err(CgroupError::TooDeep(path.clone()));
    }
    let dir = match files::open_dir(above, name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(source) => return Err(fail(source)),
    };
    let below = match children(dir.as_fd()) {
        Ok(below) => below,
        // Removed by somebody else meanwhile, as systemd does with what is below an empty unit.
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(source) => return Err(fail(source)),
    };
    for child in below {
        remove_tree(dir.as_fd(), &child, &path.join(&child)?, depth + 1)?;
    }
    rmdir().map_err(fail)
}

/// Names of the directories in a directory.
pub(super) fn children(dir: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}

/// Reads one of a cgroup's controller lists.
pub(super) fn controllers_of(
    dir: BorrowedFd<'_>,
    path: &CgroupPath,
    file: &str,
) -> Result<Controllers, CgroupError> {
    let text = files::read(dir, file).map_err(|source| CgroupError::Read {
        path: path.clone(),
        file: file.to_owned(),
        source,
    })?;
    Ok(Controllers::parse(&text))
}

/// Lets the children of a cgroup have every controller that it has.
fn hand_down(dir: BorrowedFd<'_>, path: &CgroupPath) -> Result<(), CgroupError> {
    let available = controllers_of(dir, path, "cgroup.controllers")?;
    let enabled = controllers_of(dir, path, "cgroup.subtree_control")?;
    let missing = available.beyond(&enabled);
    if missing.is_empty() {
        return Ok(());
    }
    let line: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
    if files::write(dir, "cgroup.subtree_control", &line.join(" ")).is_err() {
        // All or nothing: one controller that cannot be had must not cost the others.
        for one in line {
            let _unavailable_is_reported_by_limits = files::write(dir, "cgroup.subtree_control", &one);
        }
    }
    Ok(())
}
