//! seccomp(2), and the identity calls that take raw numbers.

use crate::raw::syscall;
use linux_raw_sys::general::{
    __NR_capset, __NR_close_range, __NR_keyctl, __NR_prctl, __NR_prlimit64, __NR_seccomp, __NR_setgroups,
    __NR_setresgid, __NR_setresuid, __NR_umask,
};
use rustix::io::{Errno, Result};

/// Installs a seccomp filter on the calling process: `program` is an array of `struct sock_filter`, 8 bytes
/// an instruction; `flags` are `SECCOMP_FILTER_FLAG_*` (seccomp(2)).
pub fn install_seccomp_filter(program: &[u8], flags: u32) -> Result<()> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const u8,
    }
    const SET_MODE_FILTER: usize = 1;
    if !program.len().is_multiple_of(8) {
        return Err(Errno::INVAL);
    }
    let len = u16::try_from(program.len() / 8).map_err(|_| Errno::TOOBIG)?;
    let filter = Program {
        len,
        filter: program.as_ptr(),
    };
    // SAFETY: filter describes live memory of len instructions; the kernel copies and checks it.
    unsafe {
        syscall(
            __NR_seccomp,
            [
                SET_MODE_FILTER,
                flags as usize,
                &raw const filter as usize,
                0,
                0,
                0,
            ],
        )?
    };
    Ok(())
}

/// Sets one resource limit by its number; `u64::MAX` is unlimited (prlimit(2)).
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = [soft, hard];
    // SAFETY: the pointer is to a live rlimit64 of two u64.
    unsafe {
        syscall(
            __NR_prlimit64,
            [0, resource as usize, limit.as_ptr() as usize, 0, 0, 0],
        )?
    };
    Ok(())
}

/// Sets real, effective and saved group, then the supplementary groups, then real, effective and saved user.
/// For single-threaded programs: the kernel's calls change one thread (credentials(7)).
pub fn set_identity(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    let (uid, gid) = (uid as usize, gid as usize);
    // SAFETY: numbers, and a pointer to live u32 values with their count.
    unsafe {
        syscall(
            __NR_setgroups,
            [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0],
        )?;
        syscall(__NR_setresgid, [gid, gid, gid, 0, 0, 0])?;
        syscall(__NR_setresuid, [uid, uid, uid, 0, 0, 0])?;
    }
    Ok(())
}

/// Sets the effective, permitted and inheritable capability sets of the calling thread (capset(2), version 3).
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "the sets are split in two words")]
    let half = |shift: u32| {
        [
            (effective >> shift) as u32,
            (permitted >> shift) as u32,
            (inheritable >> shift) as u32,
        ]
    };
    let header: [u32; 2] = [0x2008_0522, 0];
    let data = [half(0), half(32)];
    // SAFETY: both pointers are to live structs of the version that the header names.
    unsafe {
        syscall(
            __NR_capset,
            [&raw const header as usize, &raw const data as usize, 0, 0, 0, 0],
        )?
    };
    Ok(())
}

/// prctl(2) operations on capabilities and privileges that take numbers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Drop a capability from the bounding set.
    DropBounding(u32),
    /// Keep permitted capabilities across a change of user.
    KeepCapabilities(bool),
    /// Add a capability to the ambient set.
    RaiseAmbient(u32),
    /// Empty the ambient set.
    ClearAmbient,
    /// Never gain privileges by execve again.
    NoNewPrivileges,
    /// Whether other processes of the same user may trace and read this one.
    Dumpable(bool),
    /// Adopt orphaned descendants.
    ChildSubreaper,
}

/// Performs one [`Privilege`] operation.
pub fn set_privilege(operation: Privilege) -> Result<()> {
    let args = match operation {
        Privilege::DropBounding(cap) => [24, cap as usize, 0, 0, 0, 0],
        Privilege::KeepCapabilities(on) => [8, usize::from(on), 0, 0, 0, 0],
        Privilege::RaiseAmbient(cap) => [47, 2, cap as usize, 0, 0, 0],
        Privilege::ClearAmbient => [47, 4, 0, 0, 0, 0],
        Privilege::NoNewPrivileges => [38, 1, 0, 0, 0, 0],
        Privilege::Dumpable(on) => [4, usize::from(on), 0, 0, 0, 0],
        Privilege::ChildSubreaper => [36, 1, 0, 0, 0, 0],
    };
    // SAFETY: these prctl operations take numbers and touch no memory.
    unsafe { syscall(__NR_prctl, args)? };
    Ok(())
}

/// Gives the calling process a session keyring of its own, empty and without a name (keyctl(2),
/// `KEYCTL_JOIN_SESSION_KEYRING`).
///
/// # Errors
/// `ENOSYS` where the kernel keeps no keys, `EDQUOT` where the user has too many.
pub fn new_session_keyring() -> Result<()> {
    const JOIN_SESSION_KEYRING: usize = 1;
    // SAFETY: without a name there is no pointer, and the call touches no memory.
    unsafe { syscall(__NR_keyctl, [JOIN_SESSION_KEYRING, 0, 0, 0, 0, 0])? };
    Ok(())
}

/// Sets the file mode creation mask.
pub fn set_umask(mask: u32) {
    // SAFETY: umask takes a number and cannot fail.
    let _ = unsafe { syscall(__NR_umask, [mask as usize, 0, 0, 0, 0, 0]) };
}

/// Marks every fd from `first` up close-on-exec (close_range(2)).
pub fn close_on_exec_from(first: u32) -> Result<()> {
    const CLOEXEC: usize = 4;
    // SAFETY: marking fds changes nothing for this program.
    unsafe {
        syscall(
            __NR_close_range,
            [first as usize, u32::MAX as usize, CLOEXEC, 0, 0, 0],
        )?
    };
    Ok(())
}
