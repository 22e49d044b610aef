//! What an image says about running it, as far as a spec needs it. Foreign data, and only data.

use std::collections::BTreeSet;

/// Execution parameters of an image config (OCI image spec, config.md).
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageDefaults<'a> {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    pub user: &'a str,
    /// `NAME=value` pairs.
    pub env: &'a [String],
    /// Entry point.
    pub entrypoint: &'a [String],
    /// Default arguments.
    pub cmd: &'a [String],
    /// Working directory; empty means `/`.
    pub working_dir: &'a str,
    /// Paths meant as volumes.
    pub volumes: Option<&'a BTreeSet<String>>,
}
