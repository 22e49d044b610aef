//! Where a daemon can die: just before each system call by which it changes something that outlives it.
//!
//! Follows all threads of a process, and none of its children, by ptrace(2), and kills it at a chosen change. The thread
//! that follows is the one that may wait for what it follows, and lets go of everything when it ends.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// The process was killed when it was about to make this system call.
    Killed(&'static str),
    /// It was over before; so many changes were made.
    Over(u64),
}

/// Follows process `pid` until `over`, or until it is about to make its change number `kill_at`, of which the first is 1:
/// then it is killed. Calls `begun` when it sees all that the process does.
///
/// # Errors
/// It cannot be traced.
pub fn follow(pid: u32, kill_at: Option<u64>, over: &AtomicBool, begun: impl FnOnce()) -> Result<Followed> {
    let process = Pid::from_raw(pid.cast_signed());
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("list the threads")? {
        let thread: i32 = task?.file_name().to_string_lossy().parse()?;
        let thread = Pid::from_raw(thread);
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
        match ptrace::seize(thread, options).and_then(|()| ptrace::interrupt(thread)) {
            // A thread that has ended meanwhile, or that is followed because its creator is.
            Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => {}
            Err(e) => return Err(e).context("trace podd"),
        }
    }
    begun();
    let (mut inside, mut changes) = (HashSet::new(), 0);
    // Of this thread's own only: others of this process wait for children of theirs.
    let wait = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
    while !over.load(Ordering::Relaxed) {
        let (thread, signal) = match waitpid(None, Some(wait)) {
            Ok(WaitStatus::StillAlive) => {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                let enters = inside.insert(thread);
                if !enters {
                    inside.remove(&thread);
                } else if let Some(change) = change(thread) {
                    changes += 1;
                    if kill_at == Some(changes) {
                        kill(process, Signal::SIGKILL).context("kill podd")?;
                        return Ok(Followed::Killed(change));
                    }
                }
                (thread, None)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
            Ok(_) => continue,
            Err(Errno::ECHILD) => break,
            Err(e) => return Err(e).context("wait for podd"),
        };
        match ptrace::syscall(thread, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(e).context("let podd go on"),
        }
    }
    Ok(Followed::Over(changes))
}

/// The name of the system call that a thread is about to make, if it changes what others see: files and directories,
/// processes, cgroups, networks, and what podinit was told.
fn change(thread: Pid) -> Option<&'static str> {
    let registers = ptrace::getregs(thread).ok()?;
    let writes = |flags: u64| {
        let accesses = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT) as u64;
        flags & accesses != 0
    };
    match registers.orig_rax.cast_signed() {
        libc::SYS_mkdir => Some("mkdir"),
        libc::SYS_mkdirat => Some("mkdirat"),
        libc::SYS_rename => Some("rename"),
        libc::SYS_renameat => Some("renameat"),
        libc::SYS_renameat2 => Some("renameat2"),
        libc::SYS_unlink => Some("unlink"),
        libc::SYS_unlinkat => Some("unlinkat"),
        libc::SYS_rmdir => Some("rmdir"),
        libc::SYS_link | libc::SYS_linkat => Some("link"),
        libc::SYS_bind => Some("bind"),
        libc::SYS_clone3 if makes_process(thread, registers.rdi) => Some("clone3"),
        libc::SYS_bpf => Some("bpf"),
        libc::SYS_sendmsg => Some("sendmsg"),
        libc::SYS_sendto => Some("sendto"),
        libc::SYS_setxattr | libc::SYS_fsetxattr => Some("setxattr"),
        libc::SYS_open if writes(registers.rsi) => Some("open"),
        libc::SYS_openat if writes(registers.rdx) => Some("openat"),
        libc::SYS_kill | libc::SYS_pidfd_send_signal => Some("kill"),
        _ => None,
    }
}

/// Whether the arguments of clone3(2) at `address` ask for a process and not for a thread.
fn makes_process(thread: Pid, address: u64) -> bool {
    let flags = ptrace::read(thread, address as ptrace::AddressType);
    flags.is_ok_and(|flags| flags & i64::from(libc::CLONE_THREAD) == 0)
}
