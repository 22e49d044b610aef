//! seccomp: OCI profiles to BPF, without libseccomp and without touching the kernel.
use oci_spec::runtime::LinuxSeccomp;
use thiserror::Error;

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

/// Version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(u32, u32);

impl KernelVersion {
    /// From its first two numbers.
    #[must_use]
    pub fn new(major: u32, minor: u32) -> Self {
        Self(major, minor)
    }

    /// Reads the beginning of a release such as `6.1.0-18-amd64`; what cannot be read counts as 0.
    #[must_use]
    pub fn parse(release: &str) -> Self {
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|n| n.parse().unwrap_or(0));
        Self(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

/// Default.
pub fn default_profile(caps: crate::compile::CapSet, kernel: KernelVersion) -> LinuxSeccomp {
    let _ = (caps, kernel);
    LinuxSeccomp::default()
}
