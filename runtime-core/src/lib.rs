//! From an OCI runtime spec to a running process, and the cgroups it lives in.
//!
//! [`plan`] is the vocabulary: a [`plan::Plan`] is an ordered list of kernel steps with everything resolved.
//! `compile` makes plans from OCI specs without touching the kernel; `stage` executes one, once, in the new
//! process. The `host` feature adds what only the daemon needs. Without it this is a `no_std` library.
#![cfg_attr(not(feature = "host"), no_std)]
extern crate alloc;

pub mod accounts;
#[cfg(feature = "host")]
pub mod cgroup;
#[cfg(feature = "host")]
pub mod compile;
pub mod plan;
#[cfg(feature = "host")]
pub mod pod;
#[cfg(feature = "host")]
pub mod seccomp;
#[cfg(all(feature = "rt", not(feature = "host")))]
pub mod stage;
