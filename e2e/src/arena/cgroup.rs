//! The arena's cgroup: made by the host side below the root of cgroup v2, removed by it after the last process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::HARNESS_CGROUP;

/// Makes the cgroup `name` with its harness leaf; `None` where the host mounts no cgroup v2.
pub(super) fn create(name: &str) -> Result<Option<PathBuf>> {
    let Some(root) = mount_point()? else {
        return Ok(None);
    };
    if crate::vm::inside() {
        // systemd hands down what its own units ask for, and an arena is to have all there is.
        delegate(&root)?;
    }
    let dir = root.join(name);
    fs::create_dir_all(dir.join(HARNESS_CGROUP))
        .with_context(|| format!("make the cgroup {}", dir.display()))?;
    Ok(Some(dir))
}

/// Moves the calling process into `cgroup`.
pub(super) fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("join {}", cgroup.display()))
}

/// Hands every controller that `cgroup` has on to its children; one that is refused is left out.
pub(crate) fn delegate(cgroup: &Path) -> Result<()> {
    for controller in fs::read_to_string(cgroup.join("cgroup.controllers"))?.split_whitespace() {
        let _ = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// Removes `cgroup` and all below it, waiting for the last processes to be gone.
pub(super) fn remove(cgroup: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    while let Err(e) = remove_tree(cgroup) {
        if Instant::now() > deadline {
            bail!("remove the cgroup {}: {e}", cgroup.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Where the root of the host's cgroup v2 hierarchy is mounted.
fn mount_point() -> Result<Option<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    // proc_pid_mountinfo(5): id parent dev root mountpoint options… - type source super-options.
    let found = table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    });
    Ok(found)
}
