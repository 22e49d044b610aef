//! A runtime to be measured.

use anyhow::Result;
use podd_e2e::cri::Cri;

use crate::processes::Processes;

/// Kills the daemon, starts it again and waits until it answers.
pub type Restart = Box<dyn Fn() -> Result<()> + Sync>;

/// A runtime that answers, and what has to be known of it.
pub struct Target {
    /// Label of its figures.
    pub name: String,
    /// A client of it.
    pub cri: Cri,
    /// Its processes.
    pub processes: Processes,
    /// Handler that pods ask for; empty for its default.
    pub handler: String,
    /// Parent of the pods' cgroups; empty for its default.
    pub cgroup_parent: String,
    /// How its daemon is restarted, where that is known.
    pub restart: Option<Restart>,
}
