//! What containers must not share with the node or with each other, beside what namespaces part.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri;
use podd_proto::v1 as pb;

use crate::case::{Env, Pod, cases, contains, equal, eventually, field, skip};
use crate::users;

cases!("isolation":
    null_device_of_the_node, session_keyrings, tunnels, name_of_the_root, first_process_of_a_pod, first_process_of_a_lost_pod);

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
        crate::case::eventually("it said its keyring", || {
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

/// A pod whose containers share their processes, below a parent as kubelets name one.
fn shared(env: &mut Env<'_>, parent: &str) -> Result<Pod> {
    let mut config = cri::pod_config("first");
    let linux = config.linux.get_or_insert_default();
    linux.cgroup_parent = parent.to_owned();
    linux.security_context.get_or_insert_default().namespace_options = Some(pb::NamespaceOption::default());
    Pod::run(&env.cri()?, config)
}

fn sleeper(pod: &Pod) -> Result<String> {
    let mut config = cri::shell("c", "exec sleep 1000");
    cri::security(&mut config).namespace_options = Some(pb::NamespaceOption::default());
    pod.started(&config)
}

/// The process 1 that a container of the pod sees, as the node numbers it.
fn first_process(env: &mut Env<'_>, container: &str) -> Result<u32> {
    let process = users::pid(env, container)?;
    let namespace = fs::read_link(format!("/proc/{process}/ns/pid"))?;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let first = field(&status, "NSpid").is_ok_and(|pids| pids.ends_with("\t1"));
        if first && fs::read_link(path.join("ns/pid")).is_ok_and(|it| it == namespace) {
            return Ok(field(&status, "Pid")?.parse()?);
        }
    }
    anyhow::bail!("the namespace has no process 1")
}

/// Pid 1 of a shared pid namespace is in reach of its containers: it has nothing, may do nothing, and is in the pod's
/// cgroup, so that what it uses is the pod's.
fn first_process_of_a_pod(env: &mut Env<'_>) -> Result<()> {
    for parent in ["", "/first/pod1"] {
        let pod = shared(env, parent)?;
        let id = sleeper(&pod)?;
        let first = first_process(env, &id)?;
        let status = fs::read_to_string(format!("/proc/{first}/status"))?;
        let none = "0000000000000000";
        for (name, expected) in [
            ("Name", "podd-pod"),
            ("Uid", "65534\t65534\t65534\t65534"),
            ("Gid", "65534\t65534\t65534\t65534"),
            ("Groups", ""),
            ("CapInh", none),
            ("CapPrm", none),
            ("CapEff", none),
            ("CapBnd", none),
            ("CapAmb", none),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            equal(name, field(&status, name)?.trim(), expected)?;
        }
        let of = |pid: u32| -> Result<String> {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            let path = text.lines().find_map(|line| line.strip_prefix("0::"));
            Ok(path.context("no cgroup v2")?.to_owned())
        };
        let container = of(users::pid(env, &id)?)?;
        let (above, _) = container.rsplit_once('/').unwrap_or_default();
        equal(
            "cgroup",
            of(first)?.trim(),
            format!("{above}/{}", pod.id).as_str(),
        )?;
        // It reaps what containers leave, also after the pod was frozen: that interrupts what it waits in.
        let directory = format!("/sys/fs/cgroup{above}/cgroup.freeze");
        fs::write(&directory, "1")?;
        std::thread::sleep(std::time::Duration::from_millis(100));
        fs::write(&directory, "0")?;
        env.cri()?.sh(&id, "(sleep 0.1 & ) ; true")?;
        eventually("orphans are reaped", || Ok(zombies(first) == 0))?;
        pod.remove()?;
        eventually("it is over", || Ok(!fs::exists(format!("/proc/{first}"))?))?;
    }
    fs::remove_dir("/sys/fs/cgroup/first/pod1")?;
    Ok(fs::remove_dir("/sys/fs/cgroup/first")?)
}

/// Children of a process that are dead and not reaped.
fn zombies(parent: u32) -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let statuses = entries.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    let of_parent = |status: &String| field(status, "PPid").is_ok_and(|pid| pid == parent.to_string());
    statuses
        .filter(of_parent)
        .filter(|status| field(status, "State").is_ok_and(|state| state.starts_with('Z')))
        .count()
}

/// podinit dies: process 1 of the pod, which nobody would end then, goes with the pod.
fn first_process_of_a_lost_pod(env: &mut Env<'_>) -> Result<()> {
    let pod = shared(env, "")?;
    let id = sleeper(&pod)?;
    let first = first_process(env, &id)?;
    for podinit in crate::recovery::podinits(&pod.id)? {
        crate::recovery::signal(podinit, nix::sys::signal::Signal::SIGKILL)?;
    }
    eventually("the pod is over", || {
        Ok(pod.status()?.state() == pb::PodSandboxState::SandboxNotready)
    })?;
    eventually("process 1 is over", || Ok(!fs::exists(format!("/proc/{first}"))?))?;
    pod.remove()
}
