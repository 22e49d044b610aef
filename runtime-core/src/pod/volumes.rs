//! Opens volumes through a disposable process, under a deadline.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podinit::volume::{CREATE, FORBIDDEN, MAX_REQUEST, RECURSIVE, RELABEL, REPLY};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::Programs;
use super::helper::Helper;
use crate::compile::Volume;
use crate::plan::{FileKind, mount_flag};

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
    /// The request asks for mounts to cross, and the host's mount does not let them.
    #[error(
        "the volume {} is on the mount {}, which {}: mount events cannot reach the container",
        path.display(), mount.display(), if *slave { "is neither a shared nor a slave mount" } else { "is not a shared mount" }
    )]
    Propagation {
        /// Path on the host.
        path: PathBuf,
        /// Where the mount is that the path is on.
        mount: PathBuf,
        /// A slave mount would do.
        slave: bool,
    },
    /// It cannot be given the SELinux context of the container.
    #[error("cannot give the volume {} its SELinux context", path.display())]
    Relabel {
        /// Path on the host.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is a directory of the node that no container's label may have.
    #[error("{} is a directory of the node: its SELinux labels are not changed (selinux_relabel)", .0.display())]
    OfNode(PathBuf),
    /// The helper process could not be started or died.
    #[error("cannot run the process that opens volumes")]
    Helper(#[source] io::Error),
}

/// What becomes of a path that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A directory is made there.
    Create,
    /// It is an error.
    Refuse,
}

/// A change of labels that comes before a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relabel<'a> {
    /// The SELinux context that everything in the volume gets.
    pub context: &'a str,
    /// How long that may take.
    pub deadline: Duration,
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
    helper: Helper,
    deadline: Duration,
}

impl Volumes {
    /// Starts the helper; every volume must answer within `deadline`.
    ///
    /// # Errors
    /// The kernel refuses another process.
    pub fn start(programs: &Programs, deadline: Duration) -> Result<Self, VolumeError> {
        let helper = Helper::start(programs.podinit(), programs.null(), &[c"podd-volumes"], &[])
            .map_err(VolumeError::Helper)?;
        Ok(Self { helper, deadline })
    }

    /// Opens one volume, relabelled where that is asked for. Slave and shared propagation need a mount that is itself
    /// shared.
    ///
    /// # Errors
    /// The path cannot be opened or relabelled or hangs, after which nothing else can be opened here, or its mount is
    /// private.
    pub fn open(
        &self,
        volume: &Volume<'_>,
        missing: Missing,
        relabel: Option<Relabel<'_>>,
    ) -> Result<OpenVolume, VolumeError> {
        let (path, recursive, propagation) = (volume.source, volume.recursive, volume.propagation);
        let refused = |source: io::Error| VolumeError::Open {
            path: path.to_owned(),
            source,
        };
        let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|error| refused(error.into()))?;
        let create = if missing == Missing::Create { CREATE } else { 0 };
        let flags = create | if recursive { RECURSIVE } else { 0 };
        let context = CString::new(relabel.map_or("", |relabel| relabel.context));
        let context = context.map_err(|error| refused(error.into()))?;
        let texts = [c_path.as_bytes_with_nul(), context.as_bytes_with_nul()];
        let request = [&flags.to_le_bytes(), texts[0], texts[1]].concat();
        if request.len() > MAX_REQUEST {
            return Err(refused(io::ErrorKind::InvalidFilename.into()));
        }
        let failed = |errno: sys::Errno| VolumeError::Helper(errno.into());
        sys::fdpass::send(&self.helper.socket, &request, &[]).map_err(failed)?;
        let deadline = relabel.map_or(self.deadline, |relabel| self.deadline.max(relabel.deadline));
        if !self.readable(deadline).map_err(VolumeError::Helper)? {
            return Err(VolumeError::Hangs {
                path: path.to_owned(),
                deadline,
            });
        }
        let (mut reply, mut fds) = ([0u8; REPLY], Vec::new());
        let n = sys::fdpass::receive(&self.helper.socket, &mut reply, &mut fds).map_err(failed)?;
        let word = |at: usize| u32::from_le_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        match (n, word(0), fds.pop()) {
            (REPLY, 0, Some(mount)) => {
                check(path, u64::from(word(8)) | u64::from(word(12)) << 32, propagation)?;
                let kind = if word(4) == 0 {
                    FileKind::Directory
                } else {
                    FileKind::File
                };
                Ok(OpenVolume { mount, kind })
            }
            (REPLY, errno, _) if errno != 0 => {
                let source = io::Error::from_raw_os_error(errno.cast_signed());
                Err(match word(4) {
                    RELABEL => VolumeError::Relabel {
                        path: path.to_owned(),
                        source,
                    },
                    FORBIDDEN => VolumeError::OfNode(path.to_owned()),
                    _ => refused(source),
                })
            }
            _ => Err(VolumeError::Helper(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn readable(&self, deadline: Duration) -> io::Result<bool> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(
                &mut [PollFd::new(&self.helper.socket, PollFlags::IN)],
                Some(&timeout),
            ) {
                Err(sys::Errno::INTR) => {}
                Ok(ready) => return Ok(ready > 0),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Whether mount events can cross as the request asks, as the documentation of the CRI demands.
fn check(path: &Path, on: u64, propagation: u64) -> Result<(), VolumeError> {
    if propagation == mount_flag::PRIVATE {
        return Ok(());
    }
    let table = std::fs::read("/proc/self/mountinfo").map_err(VolumeError::Helper)?;
    // One that is gone again was seen a moment ago: what is mounted then is for the kernel to say.
    let Some(mount) = MountLine::find(&table, on) else {
        return Ok(());
    };
    let slave = propagation == mount_flag::SLAVE;
    if mount.shared || (slave && mount.slave) {
        return Ok(());
    }
    Err(VolumeError::Propagation {
        path: path.to_owned(),
        mount: mount.point,
        slave,
    })
}

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct MountLine {
    point: PathBuf,
    shared: bool,
    slave: bool,
}

impl MountLine {
    fn find(table: &[u8], id: u64) -> Option<Self> {
        let id = id.to_string();
        let mut lines = table.split(|byte| *byte == b'\n');
        let line = lines.find(|line| line.split(|byte| *byte == b' ').next() == Some(id.as_bytes()))?;
        let mut words = line.split(|byte| *byte == b' ').skip(4);
        let point = std::ffi::OsStr::from_bytes(words.next()?).into();
        let optional: Vec<&[u8]> = words.skip(1).take_while(|word| *word != b"-").collect();
        let has = |name: &[u8]| optional.iter().any(|word| word.starts_with(name));
        Some(Self {
            point,
            shared: has(b"shared:"),
            slave: has(b"master:"),
        })
    }
}

impl Drop for Volumes {
    /// Ends the helper. One that hangs in the kernel is left to a thread that waits for it.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.helper.pidfd, Signal::KILL);
        let ended = |pidfd: &OwnedFd, options| waitid(WaitId::PidFd(pidfd.as_fd()), options);
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let _ = poll(
            &mut [PollFd::new(&self.helper.pidfd, PollFlags::IN)],
            Some(&timeout),
        );
        if let Ok(None) = ended(&self.helper.pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
            && let Ok(pidfd) = self.helper.pidfd.try_clone()
        {
            std::thread::spawn(move || ended(&pidfd, WaitIdOptions::EXITED).map(drop));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_optional_fields_of_a_mount_are_read() {
        let table = b"22 1 0:21 / / rw shared:1 - ext4 /dev/a rw\n\
            220 22 0:5 / /a\\040b rw,nosuid master:1 propagate_from:2 - tmpfs shared:9 rw\n\
            23 22 0:6 / /c rw - tmpfs t rw,shared:3\n";
        let line = |id| {
            let line = MountLine::find(table, id).unwrap();
            (line.point.display().to_string(), line.shared, line.slave)
        };
        assert_eq!(line(22), ("/".to_owned(), true, false));
        assert_eq!(line(220), ("/a\\040b".to_owned(), false, true));
        assert_eq!(line(23), ("/c".to_owned(), false, false));
        assert_eq!(MountLine::find(table, 2), None);
    }
}
