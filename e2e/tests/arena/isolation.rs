//! What containers must not share with the node or with each other, beside what namespaces part.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Result, ensure};
use podd_e2e::cri;
use podd_proto::v1 as pb;

use crate::case::{Env, cases, contains, equal, skip};

cases!("isolation": null_device_of_the_node, session_keyrings, tunnels, name_of_the_root);

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

/// Each container and each exec has a session keyring of its own: tickets and secrets are kept there.
fn session_keyrings(env: &mut Env<'_>) -> Result<()> {
    if !std::path::Path::new("/proc/keys").exists() {
        return skip("this kernel keeps no keys");
    }
    let pod = env.pod("keys")?;
    // Made by root, and shown to another user only when that is whose session it is.
    let shown = "grep ' keyring  *_ses:' /proc/keys | cut -d' ' -f1";
    let config = |name: &str| {
        let mut config = cri::shell(name, &format!("{shown}; exec sleep 1000"));
        cri::security(&mut config).run_as_user = Some(pb::Int64Value { value: 1000 });
        config
    };
    let (a, b) = (config("a"), config("b"));
    let (id, _) = (pod.started(&a)?, pod.started(&b)?);
    let first = |config: &pb::ContainerConfig| -> Result<String> {
        let mut lines = Vec::new();
        crate::case::eventually("it said its keyring", 10, || {
            lines = crate::case::log_lines(&pod.config, config)?;
            Ok(!lines.is_empty())
        })?;
        equal("keyrings", lines.len(), 1)?;
        Ok(lines[0].content.trim().to_owned())
    };
    let (a, b) = (first(&a)?, first(&b)?);
    let exec = env.cri()?.sh(&id, shown)?.trim().to_owned();
    pod.remove()?;
    ensure!(
        !exec.is_empty() && !exec.contains('\n'),
        "an exec's keyrings: {exec:?}"
    );
    ensure!(a != b && exec != a && exec != b, "shared: {a} {b} {exec}");
    Ok(())
}

/// Programs that make tunnels make the node of the device themselves, and are given NET_ADMIN alone.
fn tunnels(env: &mut Env<'_>) -> Result<()> {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return skip("this host has no /dev/net/tun");
    }
    let pod = env.pod("tunnel")?;
    let script = "mkdir -p /dev/net && mknod /dev/net/tun c 10 200 && ( : <>/dev/net/tun ) && echo opened";
    let out = pod.output(&cri::shell("c", script))?;
    pod.remove()?;
    equal("output", out.as_str(), "opened\n")
}

/// Scripts that ask whether they are in a container look for it.
fn name_of_the_root(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("root")?;
    let out = pod.output(&cri::shell("c", "grep ' / ' /proc/mounts"))?;
    pod.remove()?;
    contains("root", &out, "overlay / overlay rw,")
}
