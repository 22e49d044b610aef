//! seccomp: OCI profiles to BPF, without libseccomp and without touching the kernel.
//!
//! [`default_profile`] is podd's own profile as an OCI value, so that it can be read, written to disk and handed to
//! hooks like any other; [`compile`] turns any profile into the program that a plan carries. Compiling costs a few
//! hundred microseconds, so whoever starts many containers keeps the [`Filter`]s.

mod bpf;
mod compile;
mod profile;
mod syscalls;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vm;
mod waiting;

pub use compile::{Filter, SeccompError, compile};
pub use profile::{KernelVersion, default_profile};
pub(crate) use waiting::waiting;
