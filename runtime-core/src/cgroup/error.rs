//! What can go wrong with a cgroup.

use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

use super::{CgroupPath, CgroupPathError};

/// An operation on a cgroup failed.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The directory is on no cgroup2 file system.
    #[error("{0:?} is not on a cgroup2 file system")]
    NotCgroup2(PathBuf),
    /// The directory cannot be opened.
    #[error("open {path:?}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// A cgroup cannot be made.
    #[error("create cgroup {path}")]
    Create {
        /// Which.
        path: CgroupPath,
        /// Why.
        source: Errno,
    },
    /// A cgroup cannot be removed.
    #[error("remove cgroup {path}")]
    Remove {
        /// Which.
        path: CgroupPath,
        /// Why.
        source: Errno,
    },
    /// A file cannot be read.
    #[error("read {file} of cgroup {path}")]
    Read {
        /// Whose.
        path: CgroupPath,
        /// Which file.
        file: String,
        /// Why.
        source: Errno,
    },
    /// A value was not accepted.
    #[error("write {value:?} to {file} of cgroup {path}")]
    Write {
        /// Whose.
        path: CgroupPath,
        /// Which file.
        file: String,
        /// What was written.
        value: String,
        /// Why.
        source: Errno,
    },
    /// A file says something that the kernel does not say.
    #[error("{file} of cgroup {path} is malformed")]
    Malformed {
        /// Whose.
        path: CgroupPath,
        /// Which file.
        file: String,
    },
    /// A limit needs a controller that this cgroup does not have.
    #[error("{file} needs the {controller} controller, which is not available in cgroup {path}")]
    MissingController {
        /// Whose.
        path: CgroupPath,
        /// What is missing.
        controller: String,
        /// What was to be written.
        file: String,
    },
    /// A limit needs a file that this kernel does not have.
    #[error("this kernel has no {file} in cgroup {path}")]
    NoFile {
        /// Whose.
        path: CgroupPath,
        /// What was to be written.
        file: String,
    },
    /// Processors or memory nodes that the cgroup above does not have.
    #[error("{file} of cgroup {path} cannot be {asked:?}: the cgroup above has {given:?}")]
    NotGiven {
        /// Whose.
        path: CgroupPath,
        /// What was to be written.
        file: String,
        /// What was asked for.
        asked: String,
        /// What there is.
        given: String,
    },
    /// A memory limit below what is in use, of which the kernel can reclaim no more.
    #[error(
        "memory.max of cgroup {path} cannot be {limit}: {used} bytes are in use after reclaim, and the kernel would \
         kill processes to get below"
    )]
    MemoryInUse {
        /// Whose.
        path: CgroupPath,
        /// The limit in bytes.
        limit: u64,
        /// Bytes in use.
        used: u64,
    },
    /// The kernel accepted a value and uses another.
    #[error("{file} of cgroup {path} is {now:?} after {value:?} was written")]
    NotTaken {
        /// Whose.
        path: CgroupPath,
        /// Which file.
        file: String,
        /// What was written.
        value: String,
        /// What it says.
        now: String,
    },
    /// An update failed, and what it had written could not all be written back.
    #[error("{source}; moreover {files} cannot be written back")]
    NotUndone {
        /// Why the update failed.
        source: Box<CgroupError>,
        /// What keeps its new value.
        files: String,
    },
    /// A limit cannot be expressed.
    #[error("{what}: {reason}")]
    Limit {
        /// Which limit.
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// A rule about devices cannot be expressed.
    #[error("device rule {rule}: {reason}")]
    DeviceRule {
        /// The rule as people write it.
        rule: String,
        /// Why not.
        reason: &'static str,
    },
    /// The kernel cannot restrict access to devices, or does not let podd do so.
    #[error(
        "access of containers to devices cannot be restricted, so that only privileged ones can run: \
         the kernel needs CONFIG_CGROUP_BPF, and podd CAP_SYS_ADMIN in the initial user namespace"
    )]
    NoDeviceControl(#[source] Errno),
    /// The program made of rules about devices was refused.
    #[error("load the program that restricts access to devices")]
    LoadDevices(#[source] Errno),
    /// Rules about devices cannot be put on a cgroup.
    #[error("restrict access to devices in cgroup {path}")]
    AttachDevices {
        /// Which.
        path: CgroupPath,
        /// Why.
        source: Errno,
    },
    /// Processes are still there.
    #[error("cgroup {0} still has processes")]
    Deadline(CgroupPath),
    /// More directories inside each other than anyone needs.
    #[error("cgroup {0} is nested too deeply")]
    TooDeep(CgroupPath),
    /// A path is none.
    #[error(transparent)]
    Path(#[from] CgroupPathError),
}
