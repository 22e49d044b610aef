//! The nest: the nearly empty mount namespace in which podinit lives (docs/process-model.md).
//!
//! [`make`] runs once per start of podd, in a process of its own; [`enter`] runs in every podinit.

use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use sys::Result;
use sys::clone::{flag, setns, unshare};
use sys::mount::{Change, set_attributes};
use sys::privilege::set_umask;

/// Builds the template and sends its mount namespace to podd. An SELinux context that is not empty is that of the null
/// device, which containers use.
pub fn make(store: &CStr, context: &CStr) -> Result<()> {
    let podd = sys::rt::inherited(3)?;
    unshare(flag::NEWNS)?;
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let store = clone_tree(store)?;
    let proc = clone_tree(c"/proc")?;

    set_umask(0);
    let root = tmpfs(c"64k", c"0755", context)?;
    for directory in [c"store", c"proc", c"rootfs", c"shm"] {
        mkdirat(&root, directory, Mode::from_raw_mode(0o755))?;
    }
    // A node of podd's own: containers get it as their input and below masked files, and a chmod there must not be one
    // of the host's /dev/null. What the host has under that name need not be a null device either (CVE-2025-31133).
    let mode = Mode::from_raw_mode(0o666);
    mknodat(&root, c"null", FileType::CharacterDevice, mode, makedev(1, 3))?;
    // Below a chroot pivot_root(2) would exchange that directory and not the namespace's root, which is where setns(2)
    // takes whoever enters: it takes this process there as well.
    setns(&own_namespace()?, flag::NEWNS)?;
    // The new root must be attached somewhere before it can become the root; /proc is on every host.
    attach(root.as_fd(), CWD, c"/proc")?;
    rustix::process::fchdir(&root)?;
    for (mount, target) in [(&store, c"store"), (&proc, c"proc")] {
        attach(mount.as_fd(), CWD, target)?;
    }
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    set_attributes(
        &root,
        c"",
        &Change {
            set: 1,
            ..Change::default()
        },
    )?;

    sys::fdpass::send(&podd, b"nest", &[own_namespace()?.as_fd()])
}

fn own_namespace() -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, c"/proc/self/ns/mnt", flags, Mode::empty())
}

/// Enters a copy of the template, with the pod's own /shm.
pub fn enter(template: OwnedFd) -> Result<()> {
    setns(&template, flag::NEWNS)?;
    unshare(flag::NEWNS)?;
    let shm = tmpfs(c"64m", c"1777", c"")?;
    set_attributes(
        &shm,
        c"",
        &Change {
            set: 2 | 4 | 8,
            ..Change::default()
        },
    )?;
    attach(shm.as_fd(), CWD, c"/shm")
}

fn tmpfs(size: &CStr, mode: &CStr, context: &CStr) -> Result<OwnedFd> {
    let made = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&made, c"size", size)?;
    fsconfig_set_string(&made, c"mode", mode)?;
    if !context.is_empty() {
        fsconfig_set_string(&made, c"context", context)?;
    }
    fsconfig_create(&made)?;
    fsmount(&made, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn clone_tree(path: &CStr) -> Result<OwnedFd> {
    open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
}

fn attach(mount: BorrowedFd<'_>, at: BorrowedFd<'_>, target: &CStr) -> Result<()> {
    move_mount(mount, c"", at, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}
