//! Why no plan can be made of a spec.

use std::path::PathBuf;

use thiserror::Error;

use super::UnknownCap;
use crate::seccomp::SeccompError;

/// A spec or its inputs cannot become a plan. Nothing was done.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CompileError {
    /// A string that goes to the kernel holds a NUL byte.
    #[error("{what} holds a NUL byte")]
    Nul {
        /// Which string.
        what: &'static str,
    },
    /// A path is not absolute.
    #[error("{what} {path:?} is not an absolute path")]
    Relative {
        /// Which path.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Something that a plan cannot do without is missing.
    #[error("the spec has no {0}")]
    Missing(&'static str),
    /// A number is outside of what the kernel takes.
    #[error("{what} {value} is out of range")]
    Range {
        /// Which number.
        what: &'static str,
        /// The number.
        value: i64,
    },
    /// The spec asks for something that no plan does.
    #[error("{what} {value:?} is not supported")]
    Unsupported {
        /// Kind of thing.
        what: &'static str,
        /// The thing.
        value: String,
    },
    /// A host name is longer than the kernel takes.
    #[error("host name of {0} bytes, the kernel takes 64")]
    HostnameTooLong(usize),
    /// The caller opened a different number of volumes than the spec has.
    #[error("the spec has {wanted} volumes, {given} were opened")]
    VolumeCount {
        /// Bind mounts of the spec that are no nest paths.
        wanted: usize,
        /// What the inputs brought.
        given: usize,
    },
    /// A capability has no number.
    #[error(transparent)]
    Capability(#[from] UnknownCap),
    /// The seccomp profile does not compile.
    #[error("seccomp profile")]
    Seccomp(#[from] SeccompError),
}
