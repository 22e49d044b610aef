//! The container's root directory, and how paths are resolved beneath it.

use super::{About, Outcome};
use crate::plan::FileKind;
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, open_tree,
    unmount,
};
use sys::mount::{Change, set_attributes};

/// Where the nest keeps room for it.
const MOUNT_POINT: &CStr = c"/rootfs";

/// The directory that absolute paths of a plan start from.
#[derive(Debug)]
pub(crate) enum Root {
    /// No root yet.
    None,
    /// An `O_PATH` fd of it.
    At(OwnedFd),
}

/// Mounts the layers at the nest's /rootfs.
pub(crate) fn overlay(lowers: &[&CStr], base: &CStr, upper: &CStr, work: &CStr) -> Outcome<Root> {
    rustix::process::chdir(base).about(base.to_bytes())?;
    // Before 6.5 there is no lowerdir+, and one fsconfig string holds 255 bytes: too few for a list of layers. Such a
    // kernel is not asked, as it would complain in its log about every container.
    let attached = if kernel_is_before(6, 5) {
        Err(Errno::INVAL)
    } else {
        overlay_by_fd(lowers, upper, work)
    };
    match attached {
        Err(Errno::INVAL) => overlay_by_string(lowers, upper, work),
        other => other,
    }
    .about("overlay")?;
    rustix::process::chdir(c"/").about("/")?;
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

fn kernel_is_before(major: u32, minor: u32) -> bool {
    let name = rustix::system::uname();
    let mut numbers = name
        .release()
        .to_bytes()
        .split(|byte| !byte.is_ascii_digit())
        .map_while(|digits| core::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    let version = (
        numbers.next().unwrap_or(u32::MAX),
        numbers.next().unwrap_or(u32::MAX),
    );
    version < (major, minor)
}

fn overlay_by_fd(lowers: &[&CStr], upper: &CStr, work: &CStr) -> rustix::io::Result<()> {
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in lowers {
        fsconfig_set_string(&context, c"lowerdir+", *lower)?;
    }
    fsconfig_set_string(&context, c"upperdir", upper)?;
    fsconfig_set_string(&context, c"workdir", work)?;
    fsconfig_set_flag(&context, c"volatile")?;
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(
        &mount,
        c"",
        CWD,
        MOUNT_POINT,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Layer names are short and relative to the working directory, so that they fit in the page of mount(2).
fn overlay_by_string(lowers: &[&CStr], upper: &CStr, work: &CStr) -> rustix::io::Result<()> {
    let mut data: Vec<u8> = b"volatile,lowerdir=".to_vec();
    data.extend_from_slice(
        &lowers
            .iter()
            .map(|lower| lower.to_bytes())
            .collect::<Vec<_>>()
            .join(&b':'),
    );
    for (key, path) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
        data.extend_from_slice(key);
        data.extend_from_slice(path.to_bytes());
    }
    data.push(0);
    let data = CStr::from_bytes_with_nul(&data).map_err(|_| Errno::INVAL)?;
    mount(c"overlay", MOUNT_POINT, c"overlay", MountFlags::empty(), data)
}

impl Root {
    /// The root of the mount namespace just entered.
    pub(crate) fn open() -> Outcome<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, c"/", flags, Mode::empty()).map(Self::At).about("/")
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
