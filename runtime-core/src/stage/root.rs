//! The container's root directory, and how paths are resolved beneath it.

use super::{About, Outcome};
use crate::plan::{FileKind, Layers};
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use sys::mount::{Change, set_attributes};

/// Where the nest keeps room for it.
pub(super) const MOUNT_POINT: &CStr = c"/rootfs";

/// Most links on the way to one path, as in path_resolution(7).
const LINKS: u32 = 40;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// The directory that absolute paths of a plan start from.
#[derive(Debug)]
pub(crate) enum Root {
    /// No root yet.
    None,
    /// An `O_PATH` fd of it.
    At(OwnedFd),
}

/// Mounts the layers at the nest's /rootfs.
pub(crate) fn overlay(layers: &Layers<'_>) -> Outcome<Root> {
    rustix::process::chdir(layers.base).about(layers.base.to_bytes())?;
    super::layers::overlay(layers)?;
    rustix::process::chdir(c"/").about("/")?;
    let flags = DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, MOUNT_POINT, flags, Mode::empty())
        .map(Root::At)
        .about(MOUNT_POINT.to_bytes())
}

/// Makes a detached mount the root.
pub(crate) fn attach(mount: &OwnedFd) -> Outcome<Root> {
    move_mount(
        mount,
        c"",
        CWD,
        MOUNT_POINT,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .about(MOUNT_POINT.to_bytes())?;
    let flags = DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, MOUNT_POINT, flags, Mode::empty())
        .map(Root::At)
        .about(MOUNT_POINT.to_bytes())
}

/// Exchanges the nest for its empty directory, in a mount namespace of this process alone.
pub(crate) fn leave_nest() -> Outcome {
    sys::clone::unshare(sys::clone::flag::NEWNS).about("unshare")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let empty = open_tree(CWD, MOUNT_POINT, flags).about(MOUNT_POINT.to_bytes())?;
    move_mount(
        &empty,
        c"",
        CWD,
        MOUNT_POINT,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .about(MOUNT_POINT.to_bytes())?;
    let flags = DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, MOUNT_POINT, flags, Mode::empty()).about(MOUNT_POINT.to_bytes())?;
    Root::At(root).pivot()
}

impl Root {
    /// The root of the mount namespace just entered.
    pub(crate) fn open() -> Outcome<Self> {
        let flags = DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, c"/", flags, Mode::empty()).map(Self::At).about("/")
    }

    pub(crate) fn into_fd(self) -> Outcome<OwnedFd> {
        match self {
            Self::At(fd) => Ok(fd),
            Self::None => Err(Errno::NOENT).about("root"),
        }
    }

    pub(crate) fn fd(&self) -> Outcome<BorrowedFd<'_>> {
        match self {
            Self::At(fd) => Ok(fd.as_fd()),
            Self::None => Err(Errno::NOENT).about("root"),
        }
    }

    /// Opens what `path` names inside the root. Symbolic links resolve inside; `..` stops at the root.
    pub(crate) fn resolve(&self, path: &[u8], flags: OFlags) -> Outcome<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(self.fd()?, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve).about(path)
    }

    /// Opens the mount point `path`, creating what is missing of it.
    pub(crate) fn mount_point(&self, path: &CStr, kind: FileKind) -> Outcome<OwnedFd> {
        self.resolve_or_make(path.to_bytes(), OFlags::PATH, kind, 0)
    }

    /// Opens the directory that holds `path`, creating it and those above it, and returns it with the last name.
    pub(crate) fn parent<'p>(&self, path: &'p CStr) -> Outcome<(OwnedFd, &'p [u8])> {
        let (directory, name) = split(path.to_bytes());
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Errno::INVAL).about(path.to_bytes());
        }
        Ok((self.create_directories(directory)?, name))
    }

    /// Opens a directory, creating it and those above it with mode 0755.
    pub(crate) fn create_directories(&self, path: &[u8]) -> Outcome<OwnedFd> {
        self.resolve_or_make(path, DIRECTORY, FileKind::Directory, 0)
    }

    /// A link of the image leads where it says inside the root, also to what is not there yet, as /etc/resolv.conf often
    /// does. `links` were followed on the way here.
    fn resolve_or_make(&self, path: &[u8], flags: OFlags, kind: FileKind, links: u32) -> Outcome<OwnedFd> {
        // An empty path is that of no directory to openat2(2).
        let path = if path.is_empty() { b"/" } else { path };
        match self.resolve(path, flags) {
            Err(fault) if fault.errno == Errno::NOENT => {}
            found => return found,
        }
        let (directory, name) = split(path);
        let within = self.resolve_or_make(directory, DIRECTORY, FileKind::Directory, links)?;
        let made = match kind {
            FileKind::Directory => mkdirat(&within, name, Mode::from_raw_mode(0o755)),
            FileKind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&within, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).about(path),
        }
        let Ok(target) = readlinkat(&within, name, Vec::new()) else {
            return self.resolve(path, flags);
        };
        if links == LINKS {
            return Err(Errno::LOOP).about(path);
        }
        let mut from = directory.to_vec();
        if target.to_bytes().starts_with(b"/") {
            from.clear();
        }
        from.extend_from_slice(target.to_bytes());
        self.resolve_or_make(&from, flags, kind, links + 1)
    }

    /// Makes this the root of the mount namespace and drops the nest (pivot_root(2), "pivot_root(".", ".")").
    pub(crate) fn pivot(&mut self) -> Outcome {
        rustix::process::fchdir(self.fd()?).about("root")?;
        rustix::process::pivot_root(c".", c".").about("pivot_root")?;
        unmount(c".", UnmountFlags::DETACH).about("nest")?;
        rustix::process::chdir(c"/").about("/")?;
        *self = Self::open()?;
        Ok(())
    }

    pub(crate) fn set_read_only(&self) -> Outcome {
        set_attributes(
            self.fd()?,
            c"",
            &Change {
                set: crate::plan::attr::RDONLY,
                ..Change::default()
            },
        )
        .about("/")
    }
}

/// The path above the last name, and that name: `/a/b/` is `/a/` and `b`.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let path = path.get(..end).unwrap_or_default();
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    path.split_at(start)
}
