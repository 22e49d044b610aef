//! Hooks that are run in the container's namespaces: each a child of this process, which waits for it.

use super::{About, Fault, Outcome, Root, Stage};
use crate::plan::{Hook, HookRoot, mount_flag};
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, ResolveFlags, SeekFrom, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, chdir, chroot, kill_process_group, waitid};
use rustix::time::{ClockId, clock_gettime};
use sys::clone::Child;

/// Where the host's tree is attached: nothing needs the pod's shared memory in the nest any more.
const HOST: &CStr = c"/shm";
/// How much of what a hook writes is kept for the error.
const KEPT: usize = 256;

/// Attaches the host's tree and moves the container's root to where hooks know it: `<bundle>/rootfs`. Nothing of it
/// outlives the nest, and no mount of it reaches the host.
pub(crate) fn host_tree(tree: &OwnedFd, root: &Root, place: &CStr) -> Outcome {
    let private = sys::mount::Change {
        propagation: mount_flag::PRIVATE,
        recursive: true,
        ..Default::default()
    };
    sys::mount::set_attributes(tree, c"", &private).about("the host's tree")?;
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, c"", rustix::fs::CWD, HOST, onto).about("the host's tree")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place_fd = openat2(tree, place, flags, rustix::fs::Mode::empty(), resolve).about(place.to_bytes())?;
    let both = onto | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(root.fd()?, c"", &place_fd, c"", both).about(place.to_bytes())
}

impl Stage {
    /// Runs a hook to its end.
    pub(crate) fn hook(&self, hook: &Hook<'_>) -> Outcome {
        let state = state(hook).map_err(|errno| failed(hook, errno, b"state on stdin"))?;
        let (said, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(hook, errno, b"pipe"))?;
        let child = sys::clone::fork(0, None).map_err(|errno| failed(hook, errno, b"clone3"))?;
        let Some(child) = child else {
            let errno = become_hook(hook, &state, &theirs);
            let text = alloc::format!("cannot be executed: {errno}");
            let _ = rustix::io::write(&theirs, text.as_bytes());
            sys::clone::exit(127)
        };
        drop(theirs);
        wait(hook, &child, &said)
    }
}

/// The container's state as a file that a hook reads on stdin, with this process's id, which only it knows.
fn state(hook: &Hook<'_>) -> rustix::io::Result<OwnedFd> {
    let pid = rustix::process::getpid().as_raw_pid();
    let rest = hook.state.strip_prefix(b"{").ok_or(Errno::INVAL)?;
    let text = [alloc::format!("{{\"pid\":{pid},").as_bytes(), rest].concat();
    let file = sys::memfd::sealed(c"state", &text, sys::memfd::Use::Data)?;
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

/// Becomes the hook; returns only why not. The filter comes last, as for the application.
fn become_hook(hook: &Hook<'_>, state: &OwnedFd, said: &OwnedFd) -> Errno {
    let prepare = || {
        rustix::process::setsid()?;
        if hook.root == HookRoot::Host {
            chroot(HOST)?;
        }
        chdir(c"/")?;
        rustix::stdio::dup2_stdin(state)?;
        rustix::stdio::dup2_stdout(said)?;
        rustix::stdio::dup2_stderr(said)?;
        sys::privilege::close_on_exec_from(3)?;
        sys::privilege::set_umask(0o022);
        if hook.filter.is_empty() {
            return Ok(());
        }
        sys::privilege::install_seccomp_filter(hook.filter, hook.filter_flags)
    };
    match prepare() {
        Ok(()) => sys::exec::execve(hook.path, &hook.argv, &hook.env),
        Err(errno) => errno,
    }
}

/// Waits for a hook, and kills it with all of its session when its time is over.
fn wait(hook: &Hook<'_>, child: &Child, said: &OwnedFd) -> Outcome {
    let (mut text, mut open) = (Vec::new(), true);
    let end = now_ms() + u64::from(hook.timeout_ms);
    let over = loop {
        let left = end.saturating_sub(now_ms());
        let timeout = Timespec {
            tv_sec: i64::try_from(left / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(left % 1000 * 1_000_000).unwrap_or(0),
        };
        let mut fds = [
            PollFd::new(&child.pidfd, PollFlags::IN),
            PollFd::new(said, PollFlags::IN),
        ];
        let watched = if open { 2 } else { 1 };
        match poll(&mut fds[..watched], Some(&timeout)) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(failed(hook, errno, b"poll")),
            Ok(0) => break true,
            Ok(_) => {}
        }
        let (ended, readable) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if open && readable {
            open = hear(said.as_fd(), &mut text);
        } else if ended {
            break false;
        }
    };
    if over {
        let group = i32::try_from(child.pid).ok().and_then(Pid::from_raw);
        // Before its setsid the group does not exist yet.
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    let status = status.map_err(|errno| failed(hook, errno, b"wait"))?;
    if over {
        let seconds = hook.timeout_ms / 1000;
        let text = alloc::format!("did not end within {seconds} s and was killed");
        return Err(failed(hook, Errno::TIMEDOUT, text.as_bytes()));
    }
    let ended = match status.and_then(|status| status.exit_status()) {
        Some(0) => return Ok(()),
        Some(code) => alloc::format!("ended with {code}"),
        None => "was killed by a signal".into(),
    };
    let text = [ended.as_bytes(), b": ", text.trim_ascii_end()].concat();
    let text = text.strip_suffix(b": ").unwrap_or(&text);
    Err(failed(hook, Errno::CANCELED, text))
}

/// Reads once; what is above the limit is read and dropped. False at the end.
fn hear(said: BorrowedFd<'_>, text: &mut Vec<u8>) -> bool {
    let mut chunk = [0u8; KEPT];
    match rustix::io::read(said, &mut chunk) {
        Ok(0) => false,
        Ok(n) => {
            text.extend(chunk[..n].iter().take(KEPT - text.len()));
            true
        }
        Err(errno) => errno == Errno::INTR,
    }
}

fn failed(hook: &Hook<'_>, errno: Errno, what: &[u8]) -> Fault {
    let subject = [hook.name.to_bytes(), b" hook ", hook.path.to_bytes(), b" ", what].concat();
    Fault { errno, subject }
}

fn now_ms() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1000 + time.tv_nsec.cast_unsigned() / 1_000_000
}
