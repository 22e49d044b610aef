//! Starting a podinit, finding one again, and exchanging frames with it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use podinit::wire::{Answer, MAX_FRAME, Refused, Request, RequestFrame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect as connect_socket,
    listen as listen_socket, socket_with,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Programs;
use super::helper::Helper;

/// A podinit, just started or found again.
#[derive(Debug)]
pub struct Podinit {
    /// Its pid.
    pub pid: u32,
    /// A pidfd of it.
    pub pidfd: OwnedFd,
    /// The connection to it, non-blocking.
    pub socket: OwnedFd,
}

/// What came in one frame.
#[derive(Debug)]
pub struct Received {
    /// The frame.
    pub answer: Answer,
    /// The fds that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Starts podinit for a pod. It listens on `listener`, made by [`listen`], for podds that come later.
///
/// # Errors
/// The kernel refuses another process; none is left then.
pub fn spawn(programs: &Programs, pod: &str, listener: &OwnedFd) -> io::Result<Podinit> {
    let argv = [c"podinit", &CString::new(pod)?];
    let further = [listener.as_fd(), programs.nest()];
    let started = Helper::start(programs.podinit(), programs.null(), &argv, &further)?;
    rustix::io::ioctl_fionbio(&started.socket, true)?;
    Ok(Podinit {
        pid: started.pid,
        pidfd: started.pidfd,
        socket: started.socket,
    })
}

/// Makes the socket file on which a podinit is found again; one that is there is of a dead podinit.
///
/// # Errors
/// The file cannot be made.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = seqpacket()?;
    with_address(path, |address| Ok(bind(&socket, address)?))?;
    listen_socket(&socket, 4)?;
    Ok(socket)
}

/// What is found where a podinit listens.
#[derive(Debug)]
pub enum Found {
    /// It has said who it is.
    Answers(Podinit),
    /// It holds its socket and says nothing yet: the connection to it, non-blocking.
    Silent(OwnedFd),
}

/// Connects to the podinit that listens at `path`, and waits for `patience` for it to say who it is.
///
/// # Errors
/// `ConnectionRefused` or `NotFound`: there is none. `WouldBlock`: it has not looked at earlier connections, four of them.
pub fn find(path: &Path, patience: Duration) -> io::Result<Found> {
    let socket = seqpacket()?;
    // A listener that accepts nobody would make connect(2) wait for ever.
    rustix::io::ioctl_fionbio(&socket, true)?;
    with_address(path, |address| Ok(connect_socket(&socket, address)?))?;
    // The socket's own credentials are those of the podd that made it: only podinit can say who it is.
    send(
        &socket,
        &RequestFrame {
            sequence: HELLO,
            handle: 0,
            request: Request::Hello,
        },
        &[],
    )?;
    let pid = match hello(&socket, Instant::now() + patience) {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(Found::Silent(socket)),
        said => said?,
    };
    let named = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(named, PidfdFlags::empty())?;
    Ok(Found::Answers(Podinit { pid, pidfd, socket }))
}

/// Sequence of the one request that is answered before anybody else uses the connection.
const HELLO: u32 = u32::MAX;

fn hello(socket: &OwnedFd, end: Instant) -> io::Result<u32> {
    loop {
        let left =
            Timespec::try_from(end.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(sys::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        match receive(socket) {
            Ok(Some(Received {
                answer:
                    Answer::Reply {
                        sequence: HELLO,
                        body,
                        ..
                    },
                ..
            })) => {
                let pid = body.first_chunk::<4>().ok_or(io::ErrorKind::InvalidData)?;
                return Ok(u32::from_le_bytes(*pid));
            }
            // An exit that happens just now: it is listed as well.
            Ok(Some(_)) => {}
            Ok(None) => return Err(io::ErrorKind::ConnectionReset.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A socket address holds 107 bytes of path; through the directory's fd every path fits (unix(7)).
fn with_address<T>(path: &Path, call: impl FnOnce(&SocketAddrUnix) -> io::Result<T>) -> io::Result<T> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    call(&SocketAddrUnix::new(&short)?)
}

/// Sends a request with its fds.
///
/// # Errors
/// `WouldBlock` while the socket is full; anything else means that podinit is gone.
pub fn send(socket: impl AsFd, frame: &RequestFrame, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
    Ok(sys::fdpass::send(socket, &frame.encode(), fds)?)
}

/// Receives one frame; `None` when podinit closed the connection.
///
/// # Errors
/// `WouldBlock` when there is none; `InvalidData` for a frame of another protocol.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Received>> {
    let (mut frame, mut fds) = ([0u8; MAX_FRAME], Vec::new());
    match sys::fdpass::receive(socket, &mut frame, &mut fds)? {
        0 => Ok(None),
        n => match Answer::decode(&frame[..n]) {
            Ok(answer) => Ok(Some(Received { answer, fds })),
            Err(Refused::Malformed | Refused::Unknown(_)) => Err(io::ErrorKind::InvalidData.into()),
        },
    }
}
