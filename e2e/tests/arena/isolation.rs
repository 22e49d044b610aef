//! What containers must not share with the node or with each other, beside what namespaces part.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Result, ensure};
use podd_e2e::cri;

use crate::case::{Env, cases, contains, equal};

cases!("isolation": null_device_of_the_node);

/// A chmod of the null device that a container gets as its input, or below a masked file, is none of the node's.
fn null_device_of_the_node(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("null")?;
    // The mode that it has: nothing comes of it where the node's own is changed.
    let script = "stat -L -c '%d:%i' /dev/stdin /proc/uptime; chmod 666 /dev/stdin 2>&1; chmod 666 /proc/uptime 2>&1; true";
    let mut config = cri::shell("c", script);
    cri::security(&mut config).masked_paths = vec!["/proc/uptime".to_owned()];
    let out = pod.output(&config)?;
    let id = pod.started(&cri::shell("exec", "exec sleep 1000"))?;
    let exec = env.cri()?.sh(&id, "stat -L -c '%d:%i' /dev/stdin")?;
    pod.remove()?;
    let node = fs::metadata("/dev/null")?;
    let node = format!("{}:{}", node.dev(), node.ino());
    ensure!(
        !out.contains(&node),
        "the node's /dev/null is in the container: {out}"
    );
    ensure!(
        exec != format!("{node}\n"),
        "the node's /dev/null is an exec's input"
    );
    equal("refused", out.matches("Read-only file system").count(), 2)
}
