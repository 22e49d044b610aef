//! Signal masks and signalfd(2).

use crate::raw::syscall;
use linux_raw_sys::general::{
    __NR_pidfd_send_signal, __NR_rt_sigprocmask, __NR_rt_sigtimedwait, __NR_signalfd4, SIG_SETMASK,
};
use rustix::fd::{FromRawFd, OwnedFd};
use rustix::io::Result;

/// A set of signals as the kernel takes it: bit n-1 is signal n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: Self = Self(0);
    /// Every signal (the kernel leaves SIGKILL and SIGSTOP out by itself).
    pub const ALL: Self = Self(u64::MAX);

    /// The set with one more signal, by number.
    #[must_use]
    pub const fn with(self, signal: u32) -> Self {
        Self(self.0 | 1 << (signal - 1))
    }
}

/// Replaces the calling thread's mask of blocked signals and returns the old one (rt_sigprocmask(2)).
pub fn set_blocked(set: SignalSet) -> Result<SignalSet> {
    let mut old = SignalSet::EMPTY;
    let (new_at, old_at) = (&raw const set.0 as usize, &raw mut old.0 as usize);
    // SAFETY: both pointers are to live u64 values, and the size says so.
    unsafe {
        syscall(
            __NR_rt_sigprocmask,
            [SIG_SETMASK as usize, new_at, old_at, 8, 0, 0],
        )?
    };
    Ok(old)
}

/// A non-blocking, close-on-exec fd that becomes readable when one of the blocked signals is pending (signalfd(2)).
pub fn signalfd(set: SignalSet) -> Result<OwnedFd> {
    const NONBLOCK_CLOEXEC: usize = 0o4000 | 0o2_000_000;
    // SAFETY: the pointer is to a live u64, the size says so; -1 asks for a new fd, which nobody else owns.
    unsafe {
        let fd = syscall(
            __NR_signalfd4,
            [usize::MAX, &raw const set.0 as usize, 8, NONBLOCK_CLOEXEC, 0, 0],
        )?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "fds are small"
        )]
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Sends signal `number` to the process of a pidfd (pidfd_send_signal(2)); real-time signals included.
pub fn send_to_pidfd(pidfd: impl rustix::fd::AsFd, number: i32) -> Result<()> {
    use rustix::fd::AsRawFd;
    let fd = pidfd.as_fd().as_raw_fd().cast_unsigned() as usize;
    // SAFETY: numbers only; a null siginfo asks the kernel to fill it in.
    unsafe {
        syscall(
            __NR_pidfd_send_signal,
            [fd, number.cast_unsigned() as usize, 0, 0, 0, 0],
        )?
    };
    Ok(())
}

/// Sleeps until one of the blocked signals in `set` is pending, and takes it (rt_sigtimedwait(2)).
pub fn wait_for(set: SignalSet) -> Result<()> {
    // SAFETY: the pointer is to a live u64, the size says so; siginfo and timeout are absent.
    match unsafe { syscall(__NR_rt_sigtimedwait, [&raw const set.0 as usize, 0, 0, 8, 0, 0]) } {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
