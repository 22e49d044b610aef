//! Everything that is attached or made below the container's root, always by fd.

use super::root::Root;
use super::{About, Outcome};
use crate::plan::{Attr, Device, FileKind, attr};
use alloc::ffi::CString;
use core::ffi::CStr;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawMode, makedev, mknodat, statat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use sys::mount::{Change, set_attributes};

/// The nest's null device, which masked files show.
const NULL: &CStr = c"/null";

/// Makes a file system, and labels its root where there is a context.
pub(crate) fn make(
    fstype: &CStr,
    options: &[(&CStr, &CStr)],
    attrs: Attr,
    context: &CStr,
) -> Outcome<OwnedFd> {
    let mount = new_mount(fstype, options, attrs).about(fstype.to_bytes())?;
    if !context.is_empty() {
        // The descriptor is good for no more than a path, which the nest's procfs makes of it.
        let path = alloc::format!("/proc/self/fd/{}", mount.as_raw_fd());
        super::process::relabel(&CString::new(path).unwrap_or_default(), context)?;
    }
    Ok(mount)
}

fn new_mount(fstype: &CStr, options: &[(&CStr, &CStr)], attrs: Attr) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, *key)?;
        } else {
            fsconfig_set_string(&context, *key, *value)?;
        }
    }
    fsconfig_create(&context)?;
    #[expect(clippy::cast_possible_truncation, reason = "mount attributes are below 2^32")]
    let attrs = MountAttrFlags::from_bits_retain(attrs as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

pub(crate) fn mount_nest(root: &Root, source: &CStr, target: &CStr, kind: FileKind, attrs: Attr) -> Outcome {
    let mount = clone_of(CWD, source).about(source.to_bytes())?;
    mount_slot(
        root,
        &mount,
        target,
        kind,
        &Change {
            set: attrs,
            ..Change::default()
        },
    )
}

pub(crate) fn mount_slot(
    root: &Root,
    mount: &OwnedFd,
    target: &CStr,
    kind: FileKind,
    change: &Change<'_>,
) -> Outcome {
    if change.set != 0 || change.clear != 0 {
        let attributes = Change {
            set: change.set,
            clear: change.clear,
            recursive: change.recursive,
            ..Change::default()
        };
        set_attributes(mount, c"", &attributes).about(target.to_bytes())?;
    }
    let point = root.mount_point(target, kind)?;
    attach(mount.as_fd(), point.as_fd()).about(target.to_bytes())?;
    if change.propagation != 0 {
        let propagation = Change {
            propagation: change.propagation,
            recursive: true,
            ..Change::default()
        };
        set_attributes(mount, c"", &propagation).about(target.to_bytes())?;
    }
    Ok(())
}

pub(crate) fn clone_of(at: BorrowedFd<'_>, path: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(at, path, flags)
}

pub(crate) fn attach(mount: BorrowedFd<'_>, point: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", point, c"", flags)
}

pub(crate) fn mknod(root: &Root, device: &Device<'_>) -> Outcome {
    let (parent, name) = root.parent(device.path)?;
    let kind = FileType::from_raw_mode(device.mode as RawMode);
    let mode = Mode::from_raw_mode(device.mode as RawMode & 0o7777);
    mknodat(&parent, name, kind, mode, makedev(device.major, device.minor)).about(device.path.to_bytes())?;
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(device.uid),
            rustix::fs::Gid::from_raw(device.gid),
        );
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .about(device.path.to_bytes())?;
    }
    Ok(())
}

pub(crate) fn symlink(root: &Root, path: &CStr, target: &CStr) -> Outcome {
    let (parent, name) = root.parent(path)?;
    match symlinkat(target, &parent, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).about(path.to_bytes()),
    }
}

/// Opens a path that may be missing: masking nothing is no error (OCI runtime spec, "maskedPaths").
fn existing(root: &Root, path: &CStr) -> Outcome<Option<OwnedFd>> {
    match root.resolve(path.to_bytes(), OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(fault) if matches!(fault.errno, Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(fault) => Err(fault),
    }
}

pub(crate) fn mask(root: &Root, path: &CStr, context: &CStr) -> Outcome {
    let Some(point) = existing(root, path)? else {
        return Ok(());
    };
    let stat = statat(&point, c"", AtFlags::EMPTY_PATH).about(path.to_bytes())?;
    let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let options = [(c"size", c"0"), (c"context", context)];
        new_mount(
            c"tmpfs",
            &options[..options.len() - usize::from(context.is_empty())],
            attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC,
        )
    } else {
        clone_of(CWD, NULL)
    };
    attach(cover.about(path.to_bytes())?.as_fd(), point.as_fd()).about(path.to_bytes())
}

pub(crate) fn read_only(root: &Root, path: &CStr) -> Outcome {
    let Some(point) = existing(root, path)? else {
        return Ok(());
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(&point, c"", flags).about(path.to_bytes())?;
    let change = Change {
        set: attr::RDONLY,
        recursive: true,
        ..Change::default()
    };
    set_attributes(&mount, c"", &change).about(path.to_bytes())?;
    attach(mount.as_fd(), point.as_fd()).about(path.to_bytes())
}
