//! The directory a layer is unpacked into: name resolution beneath its root, by file descriptor.
//!
//! Every parent is opened with one `openat2(RESOLVE_IN_ROOT)` from the root descriptor, so a symbolic link of the
//! layer is followed as it would be after chroot (docker's rule for `lib -> usr/lib`) and can never leave. The last
//! component is never followed. The last parent is cached; the cache is dropped whenever something is replaced.
//! Nothing here reads the archive.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::Error;
use crate::tar::{bad, printable};

/// Most symbolic links followed while missing directories are created; the kernel's own limit.
const LINKS_MAX: usize = 40;
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Root of a layer under construction, with what is needed to replace things in it.
pub(super) struct Tree {
    root: OwnedFd,
    /// Directory outside the layer to which replaced directories are moved; removed with the rest of `tmp/<n>`.
    scratch: OwnedFd,
    moved: u32,
    cache: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories made only because an entry below them needed them: inode number to path.
    implicit: HashMap<u64, Vec<u8>>,
    pub(super) made: u64,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, scratch: OwnedFd) -> Tree {
        Tree {
            root,
            scratch,
            moved: 0,
            cache: None,
            implicit: HashMap::new(),
            made: 0,
        }
    }

    /// The directory `path`, symbolic links in it resolved inside the root; made if missing.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Error> {
        if let Some((cached, fd)) = &self.cache
            && cached == path
        {
            return Ok(Rc::clone(fd));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = match self.open(path, flags) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            Err(e) => return Err(at("open directory", path, e)),
        };
        let fd = Rc::new(fd);
        self.cache = Some((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// Opens an existing object; all of `path` is resolved inside the root.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 0..16 {
            match fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // A rename elsewhere on the machine can make the kernel unsure about `..` (openat2(2)).
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Walks `path` and makes what is missing, following links of the layer even where their target is missing.
    fn make_parents(&mut self, path: &[u8]) -> Result<OwnedFd, Error> {
        let mut todo: VecDeque<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let mut done: Vec<u8> = Vec::new();
        let mut links = 0;
        let mut here = self
            .open(b"", OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| at("open", path, e))?;
        while let Some(part) = todo.pop_front() {
            if part.is_empty() || part == b"." {
                continue;
            }
            let mut next = done.clone();
            if !next.is_empty() {
                next.push(b'/');
            }
            next.extend_from_slice(&part);
            match self.open(&next, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(fd) => {
                    here = fd;
                    done = next;
                    continue;
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(at("open directory", path, e)),
            }
            if let Some(target) = self.make_one(here.as_fd(), &part, &next)? {
                links += 1;
                if links > LINKS_MAX || target.len() + next.len() > 1 << 16 {
                    return Err(at("resolve", path, Errno::LOOP));
                }
                if target.starts_with(b"/") {
                    done.clear();
                    here = self
                        .open(b"", OFlags::PATH | OFlags::DIRECTORY)
                        .map_err(|e| at("open", path, e))?;
                }
                for piece in target.split(|b| *b == b'/').rev() {
                    todo.push_front(piece.to_vec());
                }
                continue;
            }
            here = self
                .open(&next, OFlags::PATH | OFlags::DIRECTORY)
                .map_err(|e| at("open directory", path, e))?;
            done = next;
        }
        Ok(here)
    }

    /// Makes the implicit directory `name`, or returns the target of the dangling link that is in its place.
    fn make_one(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut opaque = false;
        match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(e) => return Err(at("stat", path, e)),
            Ok(stat) if kind(&stat) == FileType::Symlink => {
                let target = fs::readlinkat(dir, name, Vec::new()).map_err(|e| at("read link", path, e))?;
                return Ok(Some(target.into_bytes()));
            }
            // The layer hides the lower directory and puts a new one in its place.
            Ok(stat) if is_whiteout(&stat) => {
                fs::unlinkat(dir, name, AtFlags::empty()).map_err(|e| at("replace", path, e))?;
                opaque = true;
            }
            Ok(_) => {
                let path = printable(path);
                return Err(Error::UnsupportedEntry {
                    path,
                    reason: "a parent is not a directory",
                });
            }
        }
        fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)).map_err(|e| at("make directory", path, e))?;
        fs::chmodat(dir, name, Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(|e| at("chmod", path, e))?;
        self.made += 1;
        let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| at("stat", path, e))?;
        self.implicit.insert(stat.st_ino, path.to_vec());
        if opaque {
            self.set_opaque(path)?;
        }
        Ok(None)
    }

    /// Takes away what an earlier entry left at `name`.
    pub(super) fn clear(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), Error> {
        self.cache = None;
        let stat = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(|e| at("stat", path, e))?,
        };
        if kind(&stat) == FileType::Directory {
            self.moved += 1;
            let aside = format!("replaced-{}", self.moved);
            fs::renameat(dir, name, &self.scratch, aside).map_err(|e| at("replace", path, e))?;
        } else {
            fs::unlinkat(dir, name, AtFlags::empty()).map_err(|e| at("replace", path, e))?;
        }
        Ok(())
    }

    /// Marks a directory as hiding all lower content (overlayfs.rst, "whiteouts and opaque directories").
    pub(super) fn set_opaque(&self, path: &[u8]) -> Result<(), Error> {
        let dir = self
            .open(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| at("open directory", path, e))?;
        fs::fsetxattr(&dir, OPAQUE_XATTR, b"y", fs::XattrFlags::empty())
            .map_err(|e| at("set opaque on", path, e))
    }

    /// An entry describes the directory with this inode: its metadata is the image author's, not ours.
    pub(super) fn described(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
        if !self.implicit.is_empty() {
            let stat = fs::fstat(dir).map_err(|e| at("stat", path, e))?;
            self.implicit.remove(&stat.st_ino);
        }
        Ok(())
    }

    /// Number of implicit directories remembered.
    pub(super) fn implicit_len(&self) -> usize {
        self.implicit.len()
    }

    /// Paths of the directories no entry described, sorted; those replaced since are left out.
    pub(super) fn into_implicit(self) -> Vec<Vec<u8>> {
        let mut paths: Vec<Vec<u8>> = self
            .implicit
            .iter()
            .filter(|(inode, path)| {
                self.open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
                    .and_then(fs::fstat)
                    .is_ok_and(|stat| stat.st_ino == **inode)
            })
            .map(|(_, path)| path.clone())
            .collect();
        paths.sort();
        paths
    }
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Overlayfs whiteout: a character device 0:0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// A failed system call on something in the layer. What the archive caused is its fault, the rest is the store's.
pub(super) fn at(op: &'static str, path: &[u8], errno: Errno) -> Error {
    match errno {
        Errno::NAMETOOLONG | Errno::LOOP | Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::INVAL => bad(
            &format!("cannot {op} {}: {}", printable(path), std::io::Error::from(errno)),
        ),
        _ => Error::store(op, printable(path), errno),
    }
}
