//! Pods: their namespaces, names, files under /etc, lists and records.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;

use crate::case::{Env, Pod, cases, contains, equal};

cases!("sandbox":
    own_namespaces, host_name, hosts_file, resolv_conf, dns_options, host_network, host_ipc_and_pid,
    shared_pid_namespace, many_shared_pid_namespaces, shared_shm, status_tells_what_was_asked, list_filters, stop_is_idempotent,
    stopped_pod_is_not_ready, sysctls, removal_removes_containers);

/// What a process sees as its namespaces, by kind.
const NAMESPACES: &str =
    "for n in net ipc uts pid mnt cgroup user; do echo $n $(readlink /proc/self/ns/$n); done";

/// The namespaces of a container that goes on running: a number is used again once its namespace is gone.
fn namespaces(cri: &Cri, pod: &Pod, name: &str) -> Result<HashMap<String, String>> {
    let id = pod.started(&cri::shell(name, "sleep 100000 & wait"))?;
    let out = cri.sh(&id, NAMESPACES)?;
    Ok(out
        .lines()
        .filter_map(|l| l.split_once(' '))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect())
}

fn of_arena(kind: &str) -> Result<String> {
    Ok(std::fs::read_link(format!("/proc/self/ns/{kind}"))?
        .to_string_lossy()
        .into_owned())
}

fn own_namespaces(env: &mut Env<'_>) -> Result<()> {
    let (cri, one, two) = (env.cri()?, env.pod("one")?, env.pod("two")?);
    let (a, b) = (namespaces(&cri, &one, "a")?, namespaces(&cri, &one, "b")?);
    let other = namespaces(&cri, &two, "a")?;
    for kind in ["net", "ipc", "uts"] {
        equal(&format!("{kind} in one pod"), &a[kind], &b[kind])?;
        ensure!(a[kind] != other[kind], "two pods share {kind}");
        ensure!(
            a[kind] != of_arena(kind)?,
            "the pod is in the host's {kind} namespace"
        );
    }
    for kind in ["pid", "mnt", "cgroup"] {
        ensure!(a[kind] != b[kind], "two containers share {kind}");
        ensure!(
            a[kind] != of_arena(kind)?,
            "the container is in the host's {kind} namespace"
        );
    }
    one.remove()?;
    two.remove()
}

fn host_name(env: &mut Env<'_>) -> Result<()> {
    let mut config = cri::pod_config("name");
    config.hostname = "a-name-of-its-own".to_owned();
    let pod = Pod::run(&env.cri()?, config)?;
    let out = pod.output(&cri::shell("c", "hostname; cat /etc/hostname; echo $HOSTNAME"))?;
    pod.remove()?;
    equal(
        "host name",
        out.as_str(),
        "a-name-of-its-own\na-name-of-its-own\na-name-of-its-own\n",
    )
}

fn hosts_file(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("hosts")?;
    let out = pod.output(&cri::shell("c", "cat /etc/hosts"))?;
    let (v4, v6) = (pod.address('.')?, pod.address(':')?);
    pod.remove()?;
    for part in ["127.0.0.1", "::1", "localhost", &v4, &v6, "hosts"] {
        contains("/etc/hosts", &out, part)?;
    }
    Ok(())
}

fn resolv_conf(env: &mut Env<'_>) -> Result<()> {
    let mut config = cri::pod_config("dns");
    config.dns_config = Some(pb::DnsConfig {
        servers: vec!["10.96.0.10".to_owned(), "fd00::10".to_owned()],
        searches: vec!["default.svc.cluster.local".to_owned(), "cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let pod = Pod::run(&env.cri()?, config)?;
    let out = pod.output(&cri::shell("c", "cat /etc/resolv.conf"))?;
    pod.remove()?;
    let expected = "search default.svc.cluster.local cluster.local\nnameserver 10.96.0.10\n\
        nameserver fd00::10\noptions ndots:5\n";
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    equal("resolv.conf", sorted(&out), sorted(expected))
}

fn dns_options(env: &mut Env<'_>) -> Result<()> {
    // Without a DNS configuration the node's own file is used.
    let pod = env.pod("nodns")?;
    let out = pod.output(&cri::shell("c", "cat /etc/resolv.conf"))?;
    pod.remove()?;
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    equal("resolv.conf", out.trim_end(), host.trim_end())
}

fn pod_namespaces(change: impl FnOnce(&mut pb::NamespaceOption)) -> pb::PodSandboxConfig {
    let mut config = cri::pod_config("namespaces");
    let mut options = pb::NamespaceOption {
        pid: pb::NamespaceMode::Container.into(),
        ..Default::default()
    };
    change(&mut options);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options);
    config
}

/// A container configuration with the pod's own namespace options, as the kubelet sends it.
fn like_pod(pod: &pb::PodSandboxConfig, mut config: pb::ContainerConfig) -> pb::ContainerConfig {
    let options = pod
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref()?.namespace_options.clone());
    cri::security(&mut config).namespace_options = options;
    config
}

fn host_network(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut config = pod_namespaces(|o| o.network = pb::NamespaceMode::Node.into());
    config.hostname = String::new();
    let pod = Pod::run(&cri, config)?;
    let script = cri::shell("c", "readlink /proc/self/ns/net; hostname");
    let out = pod.output(&like_pod(&pod.config, script))?;
    let network = pod.status()?.network.unwrap_or_default();
    pod.remove()?;
    equal(
        "network namespace and name",
        out,
        format!("{}\narena\n", of_arena("net")?),
    )?;
    equal("address of a host-network pod", network.ip.as_str(), "")
}

fn host_ipc_and_pid(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let config = pod_namespaces(|o| {
        o.ipc = pb::NamespaceMode::Node.into();
        o.pid = pb::NamespaceMode::Node.into();
    });
    let pod = Pod::run(&cri, config)?;
    let script = cri::shell("c", "readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid");
    let out = pod.output(&like_pod(&pod.config, script))?;
    pod.remove()?;
    equal(
        "namespaces",
        out,
        format!("{}\n{}\n", of_arena("ipc")?, of_arena("pid")?),
    )
}

fn shared_pid_namespace(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = Pod::run(&cri, pod_namespaces(|o| o.pid = pb::NamespaceMode::Pod.into()))?;
    let long = pod.started(&like_pod(&pod.config, cri::shell("long", "exec sleep 4242")))?;
    let seen = pod.output(&like_pod(
        &pod.config,
        cri::shell("c", "ps -o pid,args; echo self $$"),
    ))?;
    contains("processes", &seen, "sleep 4242")?;
    ensure!(
        !seen.contains("self 1\n"),
        "a container is process 1 of a shared namespace: {seen}"
    );
    cri.stop(&long, 0)?;
    pod.remove()
}

fn many_shared_pid_namespaces(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    for round in 0..60 {
        let config = pod_namespaces(|o| o.pid = pb::NamespaceMode::Pod.into());
        let pod = Pod::run(&cri, config).with_context(|| format!("round {round}"))?;
        pod.remove()?;
    }
    Ok(())
}

fn shared_shm(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("shm")?;
    pod.output(&cri::shell(
        "write",
        "echo shared >/dev/shm/file && mount | grep -q ' /dev/shm '",
    ))?;
    let seen = pod.output(&cri::shell("read", "cat /dev/shm/file"))?;
    pod.remove()?;
    equal("seen by the second container", seen.as_str(), "shared\n")
}

fn status_tells_what_was_asked(env: &mut Env<'_>) -> Result<()> {
    let mut config = cri::pod_config("asked");
    config.labels = HashMap::from([("app".to_owned(), "x".to_owned())]);
    config.annotations = HashMap::from([("note".to_owned(), "kept ✓".to_owned())]);
    let before = now();
    let pod = Pod::run(&env.cri()?, config)?;
    let said = pod.status()?;
    equal("metadata", said.metadata.clone(), pod.config.metadata.clone())?;
    equal("labels", &said.labels, &pod.config.labels)?;
    equal("annotations", &said.annotations, &pod.config.annotations)?;
    equal("state", said.state(), pb::PodSandboxState::SandboxReady)?;
    ensure!(
        (before..=now()).contains(&said.created_at),
        "created_at {} is not now",
        said.created_at
    );
    let namespaces = said.linux.and_then(|l| l.namespaces).and_then(|n| n.options);
    ensure!(namespaces.is_some(), "no namespace options");
    pod.remove()
}

/// Nanoseconds since 1970, as the CRI counts.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn list_filters(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let labelled = |value: &str| {
        let mut config = cri::pod_config(value);
        config.labels = HashMap::from([
            ("kind".to_owned(), value.to_owned()),
            ("all".to_owned(), "y".to_owned()),
        ]);
        config
    };
    let (one, two) = (Pod::run(&cri, labelled("one"))?, Pod::run(&cri, labelled("two"))?);
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: two.id.clone(),
    })?;
    let list = |filter: pb::PodSandboxFilter| -> Result<Vec<String>> {
        let found = cri
            .list_pod_sandbox(pb::ListPodSandboxRequest { filter: Some(filter) })?
            .items;
        let mut ids: Vec<_> = found.into_iter().map(|p| p.id).collect();
        ids.sort();
        Ok(ids)
    };
    let selector = |k: &str, v: &str| HashMap::from([(k.to_owned(), v.to_owned())]);
    let state = |s: pb::PodSandboxState| Some(pb::PodSandboxStateValue { state: s.into() });
    let mut both = vec![one.id.clone(), two.id.clone()];
    both.sort();
    let any = pb::PodSandboxFilter::default;
    equal("all", list(any())?, both.clone())?;
    equal(
        "by label",
        list(pb::PodSandboxFilter {
            label_selector: selector("all", "y"),
            ..any()
        })?,
        both,
    )?;
    let kind = pb::PodSandboxFilter {
        label_selector: selector("kind", "one"),
        ..any()
    };
    equal("by other label", list(kind)?, vec![one.id.clone()])?;
    let ready = pb::PodSandboxFilter {
        state: state(pb::PodSandboxState::SandboxReady),
        ..any()
    };
    equal("ready", list(ready)?, vec![one.id.clone()])?;
    let not_ready = pb::PodSandboxFilter {
        state: state(pb::PodSandboxState::SandboxNotready),
        ..any()
    };
    equal("not ready", list(not_ready)?, vec![two.id.clone()])?;
    equal(
        "by id",
        list(pb::PodSandboxFilter {
            id: two.id.clone(),
            ..any()
        })?,
        vec![two.id.clone()],
    )?;
    // crictl and critest pass shortened ids.
    let short = one.id[..13].to_owned();
    equal(
        "by short id",
        list(pb::PodSandboxFilter { id: short, ..any() })?,
        vec![one.id.clone()],
    )?;
    let none = pb::PodSandboxFilter {
        id: one.id.clone(),
        label_selector: selector("kind", "two"),
        ..any()
    };
    equal("both must match", list(none)?, Vec::new())?;
    one.remove()?;
    two.remove()
}

fn stop_is_idempotent(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("twice")?;
    let id = pod.id.clone();
    for _ in 0..2 {
        cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
            pod_sandbox_id: id.clone(),
        })?;
    }
    pod.remove()?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: id.clone(),
    })?;
    cri.remove_pod_sandbox(pb::RemovePodSandboxRequest { pod_sandbox_id: id })?;
    Ok(())
}

fn stopped_pod_is_not_ready(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("stopped")?;
    let ctr = pod.started(&cri::shell("c", "sleep 1000"))?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    })?;
    equal(
        "state of the pod",
        pod.status()?.state(),
        pb::PodSandboxState::SandboxNotready,
    )?;
    let status = cri.container(&ctr)?;
    equal(
        "state of its container",
        status.state(),
        pb::ContainerState::ContainerExited,
    )?;
    ensure!(status.exit_code != 0, "a killed container exited with 0");
    ensure!(
        pod.created(&cri::shell("late", "true")).is_err(),
        "a stopped pod takes containers"
    );
    pod.remove()
}

fn sysctls(env: &mut Env<'_>) -> Result<()> {
    let mut config = cri::pod_config("sysctl");
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = HashMap::from([
        (
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "1024".to_owned(),
        ),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
    ]);
    let pod = Pod::run(&env.cri()?, config)?;
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    let out = pod.output(&cri::shell("c", script))?;
    pod.remove()?;
    equal("sysctls", out.as_str(), "1024\n1\n")
}

fn removal_removes_containers(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("removal")?;
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    pod.remove()?;
    let listed = cri
        .list_containers(pb::ListContainersRequest::default())?
        .containers;
    ensure!(
        listed.iter().all(|c| c.id != id),
        "the container outlived its pod"
    );
    let error = cri
        .container(&id)
        .err()
        .context("the container still has a status")?;
    contains("error", &format!("{error:#}"), &id[..8])
}
