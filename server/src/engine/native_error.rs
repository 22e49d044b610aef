//! Why something on the host failed, in sentences for an operator.

use std::io;
use std::path::PathBuf;

use runtime_core::cgroup::{CgroupError, CgroupPathError};
use runtime_core::compile::CompileError;
use runtime_core::pod::{Failure, SealError, VolumeError};
use rustix::io::Errno;

use super::systemd::SystemdError;

/// The class of a failure, for the gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be carried out on any host.
    InvalidArgument,
    /// The host or the object is not in the state that the request needs.
    FailedPrecondition,
    /// The name is taken by another.
    AlreadyExists,
    /// Something is used up: addresses, disk, memory, processes.
    ResourceExhausted,
    /// Something took too long.
    DeadlineExceeded,
    /// It may work when tried again.
    Unavailable,
    /// podd does not do this.
    Unimplemented,
    /// Anything else.
    Internal,
}

/// Why something on the host failed.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The systemd cgroup driver was asked for where there is no systemd.
    #[error("cgroup.driver is \"systemd\", but systemd is not process 1 of this machine")]
    NoSystemd,
    /// systemd.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// The parent of pods that name none.
    #[error(transparent)]
    DefaultParent(#[from] crate::model::Refused),
    /// A cgroup parent of the other driver.
    #[error(
        "cgroup parent {parent:?} is {is}, but podd's cgroup driver is {driver}: the kubelet has to use the driver that \
         RuntimeConfig names, or cgroup.driver has to be changed"
    )]
    CgroupShape {
        /// The parent that was named.
        parent: String,
        /// What it looks like.
        is: &'static str,
        /// The driver in use.
        driver: &'static str,
    },
    /// A cgroup path that cannot be.
    #[error(transparent)]
    CgroupPath(#[from] CgroupPathError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The network.
    #[error(transparent)]
    Network(#[from] podd_netplug::Error),
    /// The embedded programs.
    #[error(transparent)]
    Programs(#[from] SealError),
    /// A request that passed the checks and still cannot become a plan.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A file of podd's own.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried, in the imperative.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A seccomp profile of the request.
    #[error("cannot read the seccomp profile {}", path.display())]
    Profile {
        /// Its path on the node.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A kernel object without a name.
    #[error("cannot {operation}")]
    Kernel {
        /// What was tried, in the imperative.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The policy of a node with SELinux cannot be used.
    #[error(transparent)]
    Selinux(#[from] crate::selinux::SelinuxError),
    /// A pod asks for a user namespace.
    #[error("this node cannot give pods a user namespace: {0}")]
    NoUserNamespaces(String),
    /// podinit is not there.
    #[error("podinit of the pod is gone: stop and remove the pod")]
    PodinitGone,
    /// podinit does not answer.
    #[error("podinit did not {operation} within {} s: is it stopped, or the machine overloaded?", waited.as_secs())]
    PodinitSilent {
        /// What was asked, in the imperative.
        operation: &'static str,
        /// How long was waited.
        waited: std::time::Duration,
    },
    /// podinit refused.
    #[error("podinit could not {operation}")]
    Podinit {
        /// What was asked, in the imperative.
        operation: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// A stage failed; see [`NativeError::Step`] for the same in words.
    #[error("step {} failed ({})", .0.step, String::from_utf8_lossy(&.0.subject))]
    Stage(Failure),
    /// A step of a plan failed in the new process.
    #[error("cannot {doing}")]
    Step {
        /// What the step does and to what, in the imperative.
        doing: String,
        /// Whether it is the command or a sub path that is wrong, not the host.
        command: bool,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A hook failed.
    #[error("{what} {reason}")]
    Hook {
        /// Its kind and path.
        what: String,
        /// What became of it.
        reason: String,
        /// It took too long.
        late: bool,
    },
    /// A command did not end in time and was killed.
    #[error("the command did not end within {0} s and was killed")]
    ExecTimeout(u64),
    /// The directory of a log does not answer.
    #[error("the container's log could not be opened within {0} s: is its disk reachable?")]
    LogHangs(u64),
    /// A container was not built in time.
    #[error("the container was not ready within {0} s")]
    CreateTimeout(u64),
    /// A defect in podd.
    #[error("{0} ran into a defect of podd, see its log")]
    Panicked(&'static str),
}

impl NativeError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoSystemd => Kind::FailedPrecondition,
            Self::Systemd(e) => systemd(e),
            Self::Profile { .. }
            | Self::DefaultParent(_)
            | Self::CgroupShape { .. }
            | Self::CgroupPath(_)
            | Self::Compile(_) => Kind::InvalidArgument,
            Self::Cgroup(e) => cgroup(e),
            Self::Network(e) => network(e),
            Self::PodinitSilent { .. }
            | Self::Volume(VolumeError::Hangs { .. })
            | Self::ExecTimeout(_)
            | Self::LogHangs(_)
            | Self::Hook { late: true, .. }
            | Self::CreateTimeout(_) => Kind::DeadlineExceeded,
            Self::Volume(
                VolumeError::Open { .. }
                | VolumeError::Propagation { .. }
                | VolumeError::Relabel { .. }
                | VolumeError::OfNode(_),
            ) => Kind::FailedPrecondition,
            Self::Selinux(_) => Kind::FailedPrecondition,
            Self::PodinitGone | Self::NoUserNamespaces(_) | Self::Hook { .. } => Kind::FailedPrecondition,
            Self::File { source, .. }
            | Self::Kernel { source, .. }
            | Self::Podinit { source, .. }
            | Self::Volume(VolumeError::Helper(source)) => of_io(source),
            Self::Step { command: true, .. } => Kind::InvalidArgument,
            Self::Step { source, .. } => of_io(source),
            Self::Stage(_) | Self::Programs(_) | Self::Panicked(_) => Kind::Internal,
        }
    }
}

fn of_io(e: &io::Error) -> Kind {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory | io::ErrorKind::QuotaExceeded => {
            Kind::ResourceExhausted
        }
        io::ErrorKind::TimedOut => Kind::DeadlineExceeded,
        _ => Kind::Internal,
    }
}

fn systemd(e: &SystemdError) -> Kind {
    match e {
        SystemdError::Silent { .. } => Kind::DeadlineExceeded,
        SystemdError::Bus(_) => Kind::Unavailable,
        SystemdError::Elsewhere { .. } => Kind::FailedPrecondition,
        SystemdError::Refused { .. } | SystemdError::Failed { .. } => Kind::Internal,
    }
}

fn cgroup(e: &CgroupError) -> Kind {
    match e {
        CgroupError::MissingController { .. }
        | CgroupError::NoFile { .. }
        | CgroupError::MemoryInUse { .. }
        | CgroupError::NotTaken { .. }
        | CgroupError::NoDeviceControl(_) => Kind::FailedPrecondition,
        // What the kernel says of a value that it cannot mean, and of one that is impossible now.
        CgroupError::Write { source, .. } => match *source {
            Errno::INVAL | Errno::RANGE | Errno::NODEV | Errno::TOOBIG | Errno::DOM => Kind::InvalidArgument,
            Errno::BUSY | Errno::NOSPC | Errno::OPNOTSUPP => Kind::FailedPrecondition,
            _ => Kind::Internal,
        },
        CgroupError::NotUndone { source, .. } => cgroup(source),
        CgroupError::DeviceRule { .. }
        | CgroupError::NotGiven { .. }
        | CgroupError::Limit { .. }
        | CgroupError::Path(_)
        | CgroupError::TooDeep(_) => Kind::InvalidArgument,
        CgroupError::Deadline(_) => Kind::DeadlineExceeded,
        _ => Kind::Internal,
    }
}

fn network(e: &podd_netplug::Error) -> Kind {
    use podd_netplug::ErrorKind;
    match e.kind() {
        ErrorKind::InvalidArgument => Kind::InvalidArgument,
        ErrorKind::ResourceExhausted => Kind::ResourceExhausted,
        ErrorKind::AlreadyExists => Kind::AlreadyExists,
        ErrorKind::FailedPrecondition => Kind::FailedPrecondition,
        ErrorKind::Unavailable => Kind::Unavailable,
        ErrorKind::Internal => Kind::Internal,
    }
}
