//! Why no spec can be made of a request that is right in itself.

use thiserror::Error;

/// The image or the host lacks what the request needs.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// Neither the request nor the image says what to run.
    #[error("neither the request nor the image has a command")]
    NoCommand,
    /// The image names a user that cannot be one.
    #[error("the image's user {0:?} is not a user")]
    ImageUser(String),
    /// The image's configuration holds a NUL byte.
    #[error("the image's {0} holds a NUL byte")]
    ImageNul(&'static str),
    /// The image means more directories as volumes than any does.
    #[error("the image has more than {0} volumes")]
    ImageVolumes(usize),
    /// The kernel, or podd's own bounding set, lacks capabilities that the request adds.
    #[error("capabilities {0} are not available on this host")]
    Capabilities(String),
    /// The caller did not read the profile.
    #[error("localhost seccomp profile {0:?} is not available")]
    SeccompProfile(String),
    /// The caller did not look up the image.
    #[error("image {0:?} of a mount is not available")]
    ImageVolume(String),
    /// The OCI types do not take what was put together.
    #[error("cannot put the OCI spec together: {0}")]
    Oci(String),
}
