//! What the end-to-end tests stand on: places to run (the arena, virtual machines), a registry with images of its own,
//! a `podd` under test, a blocking CRI client, and a census of everything a pod could leave behind.
//!
//! Needs root and Debian packages only. Contains no unsafe code: the arena is entered by unshare and re-exec.

use std::time::Duration;

pub mod arena;
pub mod census;
pub mod collector;
pub mod cri;
pub mod fixture;
pub mod hanging;
pub mod images;
pub mod observe;
pub mod podd;
pub mod registry;
pub mod session;
pub mod steps;
pub mod vm;

/// How long a test waits for what will happen, however slow the machine is; only one that has failed waits as long.
pub const PATIENCE: Duration = Duration::from_secs(120);
