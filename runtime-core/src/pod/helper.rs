//! Processes of podinit's program, at the other end of a socket: podinit itself, and disposable ones that do one thing
//! where podd itself must not be, in another namespace or before a path that may hang.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sys::spawn::{Spawn, spawn};

/// A running helper.
#[derive(Debug)]
pub struct Helper {
    /// podd's end of a packet socket; the helper's is closed here, so that its death can be read.
    pub socket: OwnedFd,
    /// Its pid.
    pub pid: u32,
    /// A pidfd of it, to be waited for.
    pub pidfd: OwnedFd,
}

impl Helper {
    /// Starts `program` with the null device as its standard streams, the socket, and then `further` descriptors; the
    /// first of `argv` says what it is to do.
    ///
    /// # Errors
    /// The kernel refuses another process or socket.
    pub fn start(
        program: BorrowedFd<'_>,
        null: BorrowedFd<'_>,
        argv: &[&CStr],
        further: &[BorrowedFd<'_>],
    ) -> io::Result<Self> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut fds = vec![Some(null), Some(null), Some(null), Some(theirs.as_fd())];
        fds.extend(further.iter().copied().map(Some));
        let child = spawn(&Spawn {
            program,
            argv,
            fds: &fds,
            cgroup: None,
            new_session: true,
        })?;
        Ok(Self {
            socket,
            pid: child.pid,
            pidfd: child.pidfd,
        })
    }
}
