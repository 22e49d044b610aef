//! Opens volumes through a disposable process, under a deadline.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podinit::volume::{CREATE, MAX_REQUEST, RECURSIVE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use sys::spawn::{Spawn, spawn};

use super::Programs;
use crate::plan::FileKind;

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The kernel refused the path.
    #[error("cannot open the volume {}", path.display())]
    Open {
        /// Path on the host.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The path did not answer in time: a network file system may hang.
    #[error("the volume {} did not answer within {} s: is its file system reachable?", path.display(), deadline.as_secs())]
    Hangs {
        /// Path on the host.
        path: PathBuf,
        /// How long was waited.
        deadline: Duration,
    },
    /// The helper process could not be started or died.
    #[error("cannot run the process that opens volumes")]
    Helper(#[source] io::Error),
}

/// An opened volume: a detached mount, attached by whoever gets it.
#[derive(Debug)]
pub struct OpenVolume {
    /// The mount.
    pub mount: OwnedFd,
    /// What is mounted.
    pub kind: FileKind,
}

/// The helper process; it ends when this is dropped.
#[derive(Debug)]
pub struct Volumes {
    socket: OwnedFd,
    pidfd: OwnedFd,
    deadline: Duration,
}

impl Volumes {
    /// Starts the helper; every volume must answer within `deadline`.
    ///
    /// # Errors
    /// The kernel refuses another process.
    pub fn start(programs: &Programs, deadline: Duration) -> Result<Self, VolumeError> {
        let start = || -> io::Result<Self> {
            let (socket, theirs) = socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            let null = Some(programs.null());
            let child = spawn(&Spawn {
                program: programs.podinit(),
                argv: &[c"podd-volumes"],
                fds: &[null, null, null, Some(theirs.as_fd())],
                cgroup: None,
                new_session: true,
            })?;
            Ok(Self {
                socket,
                pidfd: child.pidfd,
                deadline,
            })
        };
        start().map_err(VolumeError::Helper)
    }

    /// Opens one path: with the mounts below it when `recursive`, created as a directory when it is missing.
    ///
    /// # Errors
    /// The path cannot be opened or hangs. After the latter nothing else can be opened here.
    pub fn open(&self, path: &Path, recursive: bool) -> Result<OpenVolume, VolumeError> {
        let refused = |source: io::Error| VolumeError::Open {
            path: path.to_owned(),
            source,
        };
        let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|error| refused(error.into()))?;
        let flags = CREATE | if recursive { RECURSIVE } else { 0 };
        let request = [&flags.to_le_bytes(), c_path.as_bytes_with_nul()].concat();
        if request.len() > MAX_REQUEST {
            return Err(refused(io::ErrorKind::InvalidFilename.into()));
        }
        let helper = |errno: sys::Errno| VolumeError::Helper(errno.into());
        sys::fdpass::send(&self.socket, &request, &[]).map_err(helper)?;
        if !self.readable().map_err(VolumeError::Helper)? {
            return Err(VolumeError::Hangs {
                path: path.to_owned(),
                deadline: self.deadline,
            });
        }
        let (mut reply, mut fds) = ([0u8; 8], Vec::new());
        let n = sys::fdpass::receive(&self.socket, &mut reply, &mut fds).map_err(helper)?;
        let word = |at: usize| u32::from_le_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        match (n, word(0), fds.pop()) {
            (8, 0, Some(mount)) => {
                let kind = if word(4) == 0 {
                    FileKind::Directory
                } else {
                    FileKind::File
                };
                Ok(OpenVolume { mount, kind })
            }
            (8, errno, _) if errno != 0 => Err(refused(io::Error::from_raw_os_error(errno.cast_signed()))),
            _ => Err(VolumeError::Helper(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn readable(&self) -> io::Result<bool> {
        let end = Instant::now() + self.deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
                Err(sys::Errno::INTR) => {}
                Ok(ready) => return Ok(ready > 0),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Volumes {
    /// Ends the helper. One that hangs in the kernel is left to a thread that waits for it.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let ended = |pidfd: &OwnedFd, options| waitid(WaitId::PidFd(pidfd.as_fd()), options);
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let _ = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout));
        if let Ok(None) = ended(&self.pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
            && let Ok(pidfd) = self.pidfd.try_clone()
        {
            std::thread::spawn(move || ended(&pidfd, WaitIdOptions::EXITED).map(drop));
        }
    }
}
