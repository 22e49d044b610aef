//! The container's root directory, and how paths are resolved beneath it.

use super::{About, Outcome};
use crate::plan::{FileKind, Layers};
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use sys::mount::{Change, set_attributes};

/// Where the nest keeps room for it.
pub(super) const MOUNT_POINT: &CStr = c"/rootfs";

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
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
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
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
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
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, MOUNT_POINT, flags, Mode::empty()).about(MOUNT_POINT.to_bytes())?;
    Root::At(root).pivot()
}

impl Root {
    /// The root of the mount namespace just entered.
    pub(crate) fn open() -> Outcome<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
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
        match self.resolve(path.to_bytes(), OFlags::PATH) {
            Err(fault) if fault.errno == Errno::NOENT => {}
            found => return found,
        }
        let (parent, name) = self.parent(path)?;
        match kind {
            FileKind::Directory => match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).about(path.to_bytes()),
            },
            FileKind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&parent, name, flags, Mode::from_raw_mode(0o644)).about(path.to_bytes())?;
            }
        }
        self.resolve(path.to_bytes(), OFlags::PATH)
    }

    /// Opens the directory that holds `path`, creating it and those above it, and returns it with the last name.
    pub(crate) fn parent<'p>(&self, path: &'p CStr) -> Outcome<(OwnedFd, &'p [u8])> {
        let path = path.to_bytes();
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let at = trimmed
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        let (directory, name) = trimmed.split_at(at);
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Errno::INVAL).about(path);
        }
        Ok((self.create_directories(directory)?, name))
    }

    /// Opens a directory, creating it and those above it with mode 0755.
    pub(crate) fn create_directories(&self, path: &[u8]) -> Outcome<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let path_or_root: &[u8] = if path.is_empty() { b"/" } else { path };
        match self.resolve(path_or_root, flags) {
            Err(fault) if fault.errno == Errno::NOENT => {}
            found => return found,
        }
        let mut current = self.resolve(b"/", flags)?;
        let mut walked: Vec<u8> = Vec::with_capacity(path.len());
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).about(path),
            }
            walked.push(b'/');
            walked.extend_from_slice(name);
            // From the root again: a component may be a link of the image, and links resolve inside the root.
            current = self.resolve(&walked, flags)?;
        }
        Ok(current)
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
