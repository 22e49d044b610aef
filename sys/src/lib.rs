//! Every `unsafe` block of the workspace: thin typed wrappers over system calls that rustix lacks, and the run
//! time of the two static binaries (podinit, stage) that use no libc.
//!
//! Each function is one kernel operation, returns an owned fd or a plain value, and decides nothing. What
//! rustix offers safely is called from there directly and not wrapped again.
#![cfg_attr(not(feature = "std"), no_std)]
extern crate alloc;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("podd runs on Linux on x86_64");

pub mod bpf;
pub mod clone;
pub mod exec;
pub mod fdpass;
#[cfg(feature = "std")]
pub mod heap;
pub mod memfd;
pub mod mount;
pub mod privilege;
mod raw;
#[cfg(all(feature = "rt", not(feature = "std")))]
pub mod rt;
pub mod signal;
pub mod spawn;
#[cfg(all(feature = "rt", not(feature = "std")))]
pub mod thread;

pub use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
pub use rustix::io::{Errno, Result};
