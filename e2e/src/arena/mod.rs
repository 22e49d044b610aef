//! The arena: a private copy of this machine in which podd can run beside anything else without being noticed.
//!
//! Own mount, network, pid, ipc, uts and cgroup namespaces on the running kernel; the host's root file system stays
//! `/`. Three processes make it, each the same executable started again with [`STAGE`] set:
//!
//! 1. *outer* ([`enter`]), on the host: makes a work directory and a cgroup, waits, removes both;
//! 2. *unshare*: moves into the cgroup, leaves the host's namespaces, waits;
//! 3. *init*: process 1 of the arena. Mounts, brings loopback up, starts the command, reaps until it ends.
//!
//! When process 1 ends the kernel kills all that is left, so the arena cleans up however the command ends.

mod cgroup;
mod init;
mod outer;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

pub(crate) use cgroup::delegate as delegate_controllers;
pub(crate) use init::{loopback_up, reap_until};
pub use outer::enter;

/// Names the stage that a re-executed process has to perform.
const STAGE: &str = "PODD_ARENA_STAGE";
/// Path of this executable, for the stages.
const EXECUTABLE: &str = "PODD_ARENA_EXECUTABLE";
/// The arena's cgroup as the host sees it; empty where the host has no cgroup v2.
const CGROUP: &str = "PODD_ARENA_CGROUP";
/// The arena's work directory as the host sees it.
const WORK: &str = "PODD_ARENA_WORK";
/// Set for every process in an arena.
const INSIDE: &str = "PODD_ARENA";

/// The leaf cgroup, seen from the arena, in which the harness itself lives.
pub const HARNESS_CGROUP: &str = "harness";
/// The arena's work directory, seen from inside: a real file system, empty at the start.
pub const WORK_DIR: &str = "/run/arena";

/// Whether this process runs in an arena already.
#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Performs the stage this process was started for, if any; returns only in an ordinary process.
///
/// Every executable that calls [`enter`] calls this first in `main`, while it has one thread.
pub fn stage_hook() {
    let Some(stage) = std::env::var_os(STAGE) else {
        return;
    };
    let command: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match stage.to_str() {
        Some("unshare") => outer::unshare(&command),
        Some("init") => init::run(&command),
        _ => Err(anyhow::anyhow!("{STAGE} names no stage: {stage:?}")),
    };
    let code = done.unwrap_or_else(|e| {
        eprintln!("arena: {e:#}");
        125
    });
    std::process::exit(code);
}

/// This executable again, to perform `stage`.
fn again(stage: &str, command: &[OsString]) -> Result<Command> {
    let exe = own_executable()?;
    let mut cmd = Command::new(&exe);
    cmd.args(command).env(STAGE, stage).env(EXECUTABLE, exe);
    Ok(cmd)
}

/// The path of this executable as the first stage saw it. Later ones have left the mount namespace that their
/// /proc/self/exe is of, and below a chroot they would read a path from outside of it.
fn own_executable() -> Result<PathBuf> {
    match std::env::var_os(EXECUTABLE) {
        Some(path) => Ok(path.into()),
        None => std::env::current_exe().context("own executable"),
    }
}

/// The exit code that says how a child ended, as a shell would put it.
fn code_of(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(125)
}
