//! Stacks of image layers: a container's root, image volumes, and both with the ids of a user namespace.

use super::root::MOUNT_POINT;
use super::{About, Outcome};
use crate::plan::Layers;
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, open_tree,
    unmount,
};
use sys::mount::{Change, set_attributes};

/// Stacks layers and returns the mount detached. Mounts at the nest's /rootfs meanwhile: the caller's mount namespace
/// has to be its own.
///
/// With `users` the layers get the ids of that user namespace. Such a clone has to be attached before overlayfs takes
/// it as a layer (EINVAL for a detached one); the overlay itself cannot be given ids.
pub(crate) fn stack(layers: &Layers<'_>, users: Option<BorrowedFd<'_>>, sub_path: &CStr) -> Outcome<OwnedFd> {
    let base = layers.base.to_bytes();
    if let Some(users) = users {
        let clone = clone_of(CWD, layers.base).about(base)?;
        map_ids(clone.as_fd(), users)?;
        attach(&clone).about(base)?;
        rustix::process::chdir(MOUNT_POINT).about(base)?;
    } else {
        rustix::process::chdir(layers.base).about(base)?;
    }
    let made = match (layers.lowers.as_slice(), layers.writable) {
        // An overlay without an upper directory needs two layers.
        ([only], None) => part(only, sub_path),
        _ => overlay(layers).and_then(|()| {
            let made = part(MOUNT_POINT, sub_path);
            unmount(MOUNT_POINT, UnmountFlags::DETACH).about(MOUNT_POINT.to_bytes())?;
            made
        }),
    };
    rustix::process::chdir(c"/").about("/")?;
    if users.is_some() {
        unmount(MOUNT_POINT, UnmountFlags::DETACH).about(MOUNT_POINT.to_bytes())?;
    }
    made
}

/// Gives a detached mount and those below it the ids of a user namespace.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Outcome {
    let change = Change {
        idmap: Some(users),
        recursive: true,
        ..Change::default()
    };
    set_attributes(mount, c"", &change).about("id-mapped mount")
}

/// A detached clone of what `sub_path` names below `stack`. It comes from the request and meets links of an image:
/// neither leads out.
fn part(stack: &CStr, sub_path: &CStr) -> Outcome<OwnedFd> {
    if sub_path.is_empty() {
        return clone_of(CWD, stack).about(stack.to_bytes());
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let within = rustix::fs::openat(CWD, stack, flags | OFlags::DIRECTORY, Mode::empty());
    let within = within.about(stack.to_bytes())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(&within, sub_path, flags, Mode::empty(), resolve).about(sub_path.to_bytes())?;
    clone_of(found.as_fd(), c"").about(sub_path.to_bytes())
}

fn clone_of(at: BorrowedFd<'_>, path: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(at, path, flags)
}

fn attach(mount: &OwnedFd) -> rustix::io::Result<()> {
    move_mount(
        mount,
        c"",
        CWD,
        MOUNT_POINT,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Mounts the layers, which are relative to the working directory, at the nest's /rootfs.
pub(super) fn overlay(layers: &Layers<'_>) -> Outcome {
    // Before 6.5 there is no lowerdir+, and one fsconfig string holds 255 bytes: too few for a list of layers. Such a
    // kernel is not asked, as it would complain in its log about every container.
    let attached = if kernel_is_before(6, 5) {
        Err(Errno::INVAL)
    } else {
        overlay_by_fd(layers)
    };
    match attached {
        Err(Errno::INVAL) => overlay_by_string(layers),
        other => other,
    }
    .about("overlay")
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

fn overlay_by_fd(layers: &Layers<'_>) -> rustix::io::Result<()> {
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Scripts look for "overlay / overlay" in the table of mounts, as mount(2) shows it.
    fsconfig_set_string(&context, c"source", c"overlay")?;
    for lower in &layers.lowers {
        fsconfig_set_string(&context, c"lowerdir+", *lower)?;
    }
    if !layers.context.is_empty() {
        fsconfig_set_string(&context, c"context", layers.context)?;
    }
    if let Some((upper, work)) = layers.writable {
        fsconfig_set_string(&context, c"upperdir", upper)?;
        fsconfig_set_string(&context, c"workdir", work)?;
        fsconfig_set_flag(&context, c"volatile")?;
    }
    fsconfig_create(&context)?;
    attach(&fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// Layer names are short and relative to the working directory, so that they fit in the page of mount(2).
fn overlay_by_string(layers: &Layers<'_>) -> rustix::io::Result<()> {
    let mut data: Vec<u8> = b"lowerdir=".to_vec();
    data.extend_from_slice(
        &layers
            .lowers
            .iter()
            .map(|lower| lower.to_bytes())
            .collect::<Vec<_>>()
            .join(&b':'),
    );
    if let Some((upper, work)) = layers.writable {
        for (key, path) in [(&b",volatile,upperdir="[..], upper), (b",workdir=", work)] {
            data.extend_from_slice(key);
            data.extend_from_slice(path.to_bytes());
        }
    }
    if !layers.context.is_empty() {
        // In quotes: a level has commas.
        data.extend_from_slice(&[b",context=\"", layers.context.to_bytes(), b"\""].concat());
    }
    data.push(0);
    let data = CStr::from_bytes_with_nul(&data).map_err(|_| Errno::INVAL)?;
    mount(c"overlay", MOUNT_POINT, c"overlay", MountFlags::empty(), data)
}
