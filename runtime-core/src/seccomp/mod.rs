//! seccomp: OCI profiles to BPF, without libseccomp and without touching the kernel.
use thiserror::Error;
use oci_spec::runtime::LinuxSeccomp;

/// A compiled filter: what seccomp(2) takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    program: Vec<u8>,
    flags: u32,
}

impl Filter {
    /// An array of `struct sock_filter`.
    #[must_use]
    pub fn program(&self) -> &[u8] {
        &self.program
    }

    /// `SECCOMP_FILTER_FLAG_*`.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags
    }
}

/// Why a profile does not compile.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SeccompError {
    /// Not built.
    #[error("not supported")]
    Unsupported,
}

/// Compiles a profile.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let _ = profile;
    Err(SeccompError::Unsupported)
}
