//! clone3(2), unshare(2) and setns(2).

use crate::raw::{check, syscall};
use core::ffi::c_void;
use linux_raw_sys::general::{
    __NR_clone3, __NR_exit_group, __NR_setns, __NR_unshare, CLONE_PIDFD, clone_args,
};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Result;

/// `CLONE_*` flags of clone3(2) that callers name; the values are those of linux/sched.h.
pub mod flag {
    /// New mount namespace.
    pub const NEWNS: u64 = 0x0002_0000;
    /// New cgroup namespace.
    pub const NEWCGROUP: u64 = 0x0200_0000;
    /// New UTS namespace (host name).
    pub const NEWUTS: u64 = 0x0400_0000;
    /// New System V IPC and POSIX message queue namespace.
    pub const NEWIPC: u64 = 0x0800_0000;
    /// New user namespace.
    pub const NEWUSER: u64 = 0x1000_0000;
    /// New pid namespace.
    pub const NEWPID: u64 = 0x2000_0000;
    /// New network namespace.
    pub const NEWNET: u64 = 0x4000_0000;
    /// The new process becomes a sibling of its creator.
    pub const PARENT: u64 = 0x0000_8000;
    pub(crate) const VM: u64 = 0x0000_0100;
    pub(crate) const VFORK: u64 = 0x0000_4000;
    pub(crate) const INTO_CGROUP: u64 = 0x2_0000_0000;
    pub(crate) const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
}

/// The other side of a [`fork`]: the new process as its creator sees it.
#[derive(Debug)]
pub struct Child {
    /// Process id in the caller's pid namespace.
    pub pid: u32,
    /// A pidfd of it.
    pub pidfd: OwnedFd,
}

/// Continues in two processes with separate memory: `None` in the new one, [`Child`] in the caller.
///
/// `flags` are of [`flag`]; with `cgroup` (a directory of cgroup v2) the child is born in it, and
/// never runs outside (`CLONE_INTO_CGROUP`, clone(2)).
///
/// Only for programs with one thread: another thread's locks would stay locked in the copy. stage has one, and so have
/// the helpers that podinit's program can be; podinit itself, which may have two, does not fork.
#[cfg(not(feature = "std"))]
pub fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Child>> {
    let mut pidfd: i32 = -1;
    let mut args = arguments(flags, cgroup, &raw mut pidfd);
    // CLONE_PARENT inherits the creator's exit signal, and clone3 refuses another one with it.
    if flags & flag::PARENT == 0 {
        args.exit_signal = 17;
    }
    // SAFETY: args is a valid clone_args; without CLONE_VM the child has its own copy of memory and stack, and
    // the program has a single thread, so nothing in the copy is half-changed.
    let pid = unsafe {
        syscall(
            __NR_clone3,
            [&raw const args as usize, size_of::<clone_args>(), 0, 0, 0, 0],
        )?
    };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(child(pid, pidfd)))
}

/// Runs `body(data)` in a new process that shares the caller's memory, until it executes a program or exits;
/// the calling thread sleeps so long (`CLONE_VM | CLONE_VFORK`). Signal handlers are reset in the child.
///
/// # Safety
/// `body` runs in the caller's memory on a small stack: it may only make raw system calls and write through
/// `data`, must not allocate, lock or unwind, and must end in execve or exit.
pub(crate) unsafe fn vfork(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: unsafe extern "C" fn(*mut c_void) -> !,
    data: *mut c_void,
) -> Result<Child> {
    let mut stack = core::mem::MaybeUninit::<[u128; 1024]>::uninit();
    let mut pidfd: i32 = -1;
    let mut args = arguments(
        flags | flag::VM | flag::VFORK | flag::CLEAR_SIGHAND,
        cgroup,
        &raw mut pidfd,
    );
    args.exit_signal = 17;
    args.stack = &raw mut stack as u64;
    args.stack_size = size_of_val(&stack) as u64;
    let ret: isize;
    // SAFETY: args is valid, the stack is unused and outlives the child's use of it because CLONE_VFORK suspends
    // this thread until the child executes or exits; the child calls body and never returns here. The registers
    // that carry body and data survive the system call.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") __NR_clone3 as usize => ret,
            inlateout("rdi") &raw const args => _,
            in("rsi") size_of::<clone_args>(),
            in("r12") body,
            in("r13") data,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    let pid = check(ret)?;
    Ok(child(pid, pidfd))
}

fn arguments(flags: u64, cgroup: Option<BorrowedFd<'_>>, pidfd: *mut i32) -> clone_args {
    // SAFETY: clone_args is a C struct of integers, for which zero is valid.
    let mut args: clone_args = unsafe { core::mem::zeroed() };
    args.flags = flags | u64::from(CLONE_PIDFD);
    args.pidfd = pidfd as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= flag::INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    args
}

fn child(pid: usize, pidfd: i32) -> Child {
    // SAFETY: the kernel stored a new fd in pidfd, owned by nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    #[expect(clippy::cast_possible_truncation, reason = "pids are below 2^22")]
    Child {
        pid: pid as u32,
        pidfd,
    }
}

/// Moves the calling process into new namespaces (unshare(2)).
pub fn unshare(namespaces: u64) -> Result<()> {
    // SAFETY: namespace flags change what names mean to the kernel, not memory or open files.
    unsafe {
        syscall(
            __NR_unshare,
            [usize::try_from(namespaces).unwrap_or(0), 0, 0, 0, 0, 0],
        )?
    };
    Ok(())
}

/// Moves the calling thread into existing namespaces: `fd` is a namespace, or a pidfd with several `namespaces`
/// (setns(2)).
pub fn setns(fd: impl AsFd, namespaces: u64) -> Result<()> {
    let fd = fd.as_fd().as_raw_fd().cast_unsigned() as usize;
    // SAFETY: as unshare.
    unsafe {
        syscall(
            __NR_setns,
            [fd, usize::try_from(namespaces).unwrap_or(0), 0, 0, 0, 0],
        )?
    };
    Ok(())
}

/// Ends the process at once, without running anything.
pub fn exit(status: u32) -> ! {
    loop {
        // SAFETY: exit_group has no preconditions and does not return.
        let _ = unsafe { syscall(__NR_exit_group, [status as usize, 0, 0, 0, 0, 0]) };
    }
}
