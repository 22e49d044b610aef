//! mount_setattr(2), which rustix lacks.

use crate::raw::syscall;
use core::ffi::CStr;
use linux_raw_sys::general::__NR_mount_setattr;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::Result;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Debug, Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes to a mount; the default changes nothing.
#[derive(Debug, Default)]
pub struct Change<'a> {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 to leave it.
    pub propagation: u64,
    /// User namespace whose maps the mount gets (`MOUNT_ATTR_IDMAP`).
    pub idmap: Option<BorrowedFd<'a>>,
    /// Apply to every mount below as well.
    pub recursive: bool,
}

const IDMAP: u64 = 0x0010_0000;
const AT_EMPTY_PATH: usize = 0x1000;
const AT_RECURSIVE: usize = 0x8000;

/// Changes the mount that `fd` holds (an empty `path`), or the one at `path` relative to `fd`.
pub fn set_attributes(fd: impl AsFd, path: &CStr, change: &Change<'_>) -> Result<()> {
    let attr = MountAttr {
        attr_set: change.set | if change.idmap.is_some() { IDMAP } else { 0 },
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: change
            .idmap
            .map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
    };
    let flags = AT_EMPTY_PATH | if change.recursive { AT_RECURSIVE } else { 0 };
    let number = fd.as_fd().as_raw_fd().cast_unsigned() as usize;
    let (path, at) = (path.as_ptr() as usize, &raw const attr as usize);
    // SAFETY: path is NUL-terminated, attr is a live mount_attr of the size given.
    unsafe {
        syscall(
            __NR_mount_setattr,
            [number, path, flags, at, size_of::<MountAttr>(), 0],
        )?
    };
    Ok(())
}
