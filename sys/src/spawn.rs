//! Starting one of podd's own programs from a sealed memfd, without copying the caller.

use crate::clone::{self, Child, exit};
use crate::raw::syscall;
use crate::signal::{SignalSet, set_blocked};
use core::ffi::{CStr, c_void};
use linux_raw_sys::general::{
    __NR_close_range, __NR_dup3, __NR_execveat, __NR_fcntl, __NR_rt_sigaction, __NR_rt_sigprocmask,
    __NR_setsid, AT_EMPTY_PATH, F_DUPFD_CLOEXEC, SIG_SETMASK,
};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::{Errno, Result};

/// Most arguments and most fds that a spawned program gets.
pub const LIMIT: usize = 256;
const ARGUMENTS: usize = 8;

/// What to start, and what it inherits. It gets no environment and nothing that is not named here.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program: a sealed memfd, or any executable file.
    pub program: BorrowedFd<'a>,
    /// Arguments, the program's name first; seven at most.
    pub argv: &'a [&'a CStr],
    /// The child's fds 0, 1, 2 and so on; `None` leaves the number closed. [`LIMIT`] at most.
    pub fds: &'a [Option<BorrowedFd<'a>>],
    /// A cgroup v2 directory the child is born in; the caller's cgroup if `None`.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Start a session of its own, so that no terminal and no process group signal reaches it.
    pub new_session: bool,
}

/// What the child needs, prepared before it exists: it only makes system calls.
struct Prepared {
    program: i32,
    argv: [*const u8; ARGUMENTS],
    fds: [i32; LIMIT],
    count: usize,
    new_session: bool,
    failed: i32,
}

/// Starts the program and returns when it executes. An error means that no process is left.
pub fn spawn(spawn: &Spawn<'_>) -> Result<Child> {
    if spawn.argv.len() >= ARGUMENTS || spawn.fds.len() > LIMIT {
        return Err(Errno::TOOBIG);
    }
    let mut prepared = Prepared {
        program: spawn.program.as_raw_fd(),
        argv: [core::ptr::null(); ARGUMENTS],
        fds: [-1; LIMIT],
        count: spawn.fds.len(),
        new_session: spawn.new_session,
        failed: 0,
    };
    for (slot, arg) in prepared.argv.iter_mut().zip(spawn.argv) {
        *slot = arg.as_ptr().cast();
    }
    for (slot, fd) in prepared.fds.iter_mut().zip(spawn.fds) {
        *slot = fd.map_or(-1, |fd| fd.as_raw_fd());
    }
    // A handler that ran in the child would run in this process's memory.
    let blocked = set_blocked(SignalSet::ALL)?;
    // SAFETY: enter() keeps vfork's promise: it makes system calls, writes prepared.failed, and ends in execveat
    // or exit; prepared outlives it because this thread sleeps until then.
    let child = unsafe { clone::vfork(0, spawn.cgroup, enter, (&raw mut prepared).cast()) };
    set_blocked(blocked)?;
    let child = child?;
    // SAFETY: the child wrote through the pointer; the compiler must not assume the initial value.
    let failed = unsafe { core::ptr::read_volatile(&raw const prepared.failed) };
    if failed == 0 {
        return Ok(child);
    }
    let options = rustix::process::WaitIdOptions::EXITED;
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(rustix::fd::AsFd::as_fd(&child.pidfd)),
        options,
    );
    Err(Errno::from_raw_os_error(failed))
}

unsafe extern "C" fn enter(data: *mut c_void) -> ! {
    // SAFETY: data is the Prepared of spawn(), which outlives this process's use of it.
    let prepared = unsafe { &mut *data.cast::<Prepared>() };
    let errno = execute(prepared).raw_os_error();
    // SAFETY: as above; volatile because the reader is another process.
    unsafe { core::ptr::write_volatile(&raw mut prepared.failed, errno) };
    exit(127)
}

/// Moves the fds in place and executes; returns only on failure.
fn execute(prepared: &mut Prepared) -> Errno {
    let call = |number: u32, args: [usize; 6]| {
        // SAFETY: every call below names fds of this process or pointers into prepared and constants.
        unsafe { syscall(number, args) }
    };
    let at = |fd: i32| fd.cast_unsigned() as usize;
    let floor = prepared.count;
    let step = (|| {
        // First above the target range, so that no move overwrites a source that is still needed.
        let above = |fd: i32| call(__NR_fcntl, [at(fd), F_DUPFD_CLOEXEC as usize, floor, 0, 0, 0]);
        let program = above(prepared.program)?;
        for fd in &mut prepared.fds[..floor] {
            if *fd >= 0 {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_possible_wrap,
                    reason = "fds are small"
                )]
                {
                    *fd = above(*fd)? as i32;
                }
            }
        }
        for number in 0..floor {
            let fd = prepared.fds[number];
            if fd >= 0 {
                call(__NR_dup3, [at(fd), number, 0, 0, 0, 0])?;
            } else {
                call(__NR_close_range, [number, number, 0, 0, 0, 0])?;
            }
        }
        const CLOEXEC: usize = 4;
        call(__NR_close_range, [floor, u32::MAX as usize, CLOEXEC, 0, 0, 0])?;
        if prepared.new_session {
            call(__NR_setsid, [0; 6])?;
        }
        // Ignored signals stay ignored across execve, and podd's own choices are not the container's.
        let default: [usize; 4] = [0; 4];
        for signal in 1..=64 {
            let _ = call(__NR_rt_sigaction, [signal, default.as_ptr() as usize, 0, 8, 0, 0]);
        }
        let none = SignalSet::EMPTY;
        call(
            __NR_rt_sigprocmask,
            [SIG_SETMASK as usize, &raw const none.0 as usize, 0, 8, 0, 0],
        )?;
        let environment: [*const u8; 1] = [core::ptr::null()];
        let (argv, env) = (prepared.argv.as_ptr() as usize, environment.as_ptr() as usize);
        call(
            __NR_execveat,
            [
                program,
                c"".as_ptr() as usize,
                argv,
                env,
                AT_EMPTY_PATH as usize,
                0,
            ],
        )
    })();
    step.err().unwrap_or(Errno::NOEXEC)
}
