//! The scopes that systemd makes for pods: what they are, that nothing disturbs them, and that none is left.
//!
//! Between the first and the last test of [`crate::systemd`], which install podd and remove it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podd_e2e::cri::{self, Cri};
use podd_e2e::podd;
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Pod, contains, equal, eventually, refused};
use crate::stats;
use crate::systemd::{UNIT, back_after, cgroups_named, client, kubelet_pod, property, told};

/// Units of podd's pods that systemd knows, in whatever state.
fn scopes() -> Result<Vec<String>> {
    let list = told(
        "systemctl",
        &["list-units", "--all", "--plain", "--no-legend", "podd-*.scope"],
    )?;
    let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
    Ok(list.lines().filter_map(name).collect())
}

/// systemd collects what is over in its own time. A cgroup that it gave up is in no list of its own.
fn no_scopes() -> Result<()> {
    eventually("no scope is left", || Ok(scopes()?.is_empty()))?;
    eventually("no cgroup of a pod is left", || {
        Ok(cgroups_named("/podd-").is_empty())
    })
    .with_context(|| format!("{:?}", cgroups_named("/podd-")))
}

fn scope_of(pod: &Pod) -> String {
    format!("podd-{}.scope", pod.id)
}

fn of_unit(unit: &str, property: &str) -> Result<String> {
    told("systemctl", &["show", "--value", "-p", property, unit])
}

fn limited(pod: &Pod) -> Result<String> {
    let mut config = cri::shell("c", "trap 'exit 3' TERM; sleep 100000 & wait");
    config.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".to_owned(),
        ..Default::default()
    });
    pod.started(&config)
}

/// The limits of [`limited`], as the kernel has them.
fn still_limited(dir: &Path) -> Result<()> {
    for (file, expected) in [
        ("cpu.max", "50000 100000"),
        ("memory.max", "67108864"),
        ("cpuset.cpus", "0"),
    ] {
        let found = fs::read_to_string(dir.join(file)).with_context(|| file.to_owned())?;
        equal(file, found.trim(), expected)?;
    }
    Ok(())
}

pub fn a_scope_around_every_pod() -> Result<()> {
    let cri = client()?;
    let driver = cri.runtime_config(pb::RuntimeConfigRequest::default())?;
    let driver = driver.linux.context("no Linux part")?.cgroup_driver();
    equal("driver", driver, pb::CgroupDriver::Systemd)?;
    let pod = kubelet_pod(&cri, "scope")?;
    let (unit, id) = (scope_of(&pod), limited(&pod)?);
    for (name, expected) in [
        ("Delegate", "yes"),
        ("TasksMax", "infinity"),
        ("ActiveState", "active"),
    ] {
        equal(name, of_unit(&unit, name)?.as_str(), expected)?;
    }
    let parent = &pod.config.linux.as_ref().context("no Linux part")?.cgroup_parent;
    equal("Slice", &of_unit(&unit, "Slice")?, parent)?;
    let scope = Path::new("/sys/fs/cgroup").join(of_unit(&unit, "ControlGroup")?.trim_start_matches('/'));
    equal("cgroup", stats::cgroup(&cri, &id)?, scope.join("pod").join(&id))?;
    still_limited(&scope.join("pod").join(&id))?;
    // Every controller arrives, also those that systemd does not know of.
    let list = |path: PathBuf| -> Result<String> { Ok(fs::read_to_string(path)?.trim().to_owned()) };
    equal(
        "controllers",
        list(scope.join("pod").join(&id).join("cgroup.controllers"))?,
        list(PathBuf::from("/sys/fs/cgroup/cgroup.controllers"))?,
    )?;
    equal(
        "processes of the scope itself",
        list(scope.join("cgroup.procs"))?,
        String::new(),
    )?;
    let keeper = list(scope.join("podinit/cgroup.procs"))?;
    equal(
        "its keeper",
        fs::read_to_string(format!("/proc/{keeper}/comm"))?.trim(),
        "podinit",
    )?;
    pod.remove()?;
    ensure!(!scope.exists(), "{} is left", scope.display());
    no_scopes()
}

/// CVE-2024-3154: annotations of a pod and of a container set nothing of their units, least of all a program to run.
pub fn annotations_set_no_properties() -> Result<()> {
    const MARK: &str = "/run/attacked";
    let attack = [
        (
            "org.systemd.property.ExecStartPre",
            format!("[(\"/bin/touch\", [\"touch\", \"{MARK}\"], false)]"),
        ),
        (
            "org.systemd.property.ExecStopPost",
            format!("[(\"/bin/touch\", [\"touch\", \"{MARK}\"], false)]"),
        ),
        ("org.systemd.property.TasksMax", "uint64 7".to_owned()),
        ("org.systemd.property.Description", "'attacked'".to_owned()),
    ];
    let annotations: HashMap<String, String> = attack
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let cri = client()?;
    let plain = kubelet_pod(&cri, "plain")?;
    let mut config = plain.config.clone();
    let named = cri::pod_config("annotated");
    (config.metadata, config.log_directory) = (named.metadata, named.log_directory);
    config.annotations.clone_from(&annotations);
    let pod = Pod::run(&cri, config)?;
    let mut container = cri::shell("c", "exec sleep 100000");
    container.annotations = annotations;
    let id = pod.started(&container)?;
    // What differs between any two pods' scopes is left out: names, numbers and times.
    let all = |pod: &Pod| -> Result<Vec<String>> {
        let uid = pod.config.metadata.as_ref().map_or("", |metadata| &metadata.uid);
        let shown = told("systemctl", &["show", &scope_of(pod)])?;
        let of_one = |line: &&str| {
            let name = line.split('=').next().unwrap_or_default();
            ![
                "Timestamp",
                "InvocationID",
                "ControlGroupId",
                "CPUUsage",
                "Memory",
                "Tasks",
                "IO",
                "IP",
            ]
            .iter()
            .any(|part| name.contains(part) && name != "TasksMax")
        };
        Ok(shown
            .lines()
            .filter(of_one)
            .map(|line| {
                line.replace(&pod.id, "ID")
                    .replace(uid, "UID")
                    .replace("annotated", "plain")
            })
            .collect())
    };
    equal("properties", all(&pod)?, all(&plain)?)?;
    cri.stop(&id, 0)?;
    pod.remove()?;
    plain.remove()?;
    no_scopes()?;
    ensure!(!Path::new(MARK).exists(), "an annotation was executed");
    Ok(())
}

pub fn a_path_is_refused() -> Result<()> {
    let mut config = cri::pod_config("path");
    config.linux.get_or_insert_default().cgroup_parent = "/kubepods/besteffort/pod1".to_owned();
    let request = pb::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    };
    let message = refused(
        "a path",
        Code::InvalidArgument,
        client()?.run_pod_sandbox(request),
    )?;
    contains(
        "message",
        &message,
        "is a path, but podd's cgroup driver is systemd",
    )?;
    ensure!(
        !Path::new("/sys/fs/cgroup/kubepods").exists(),
        "the path was made"
    );
    no_scopes()
}

pub fn reload_and_reexec_disturb_nobody() -> Result<()> {
    let cri = client()?;
    let pod = kubelet_pod(&cri, "reload")?;
    let id = limited(&pod)?;
    let dir = stats::cgroup(&cri, &id)?;
    told("systemctl", &["daemon-reload"])?;
    still_limited(&dir)?;
    told("systemctl", &["daemon-reexec"])?;
    still_limited(&dir)?;
    // Writes every file of the scope itself anew.
    told(
        "systemctl",
        &["set-property", "--runtime", &scope_of(&pod), "CPUWeight=200"],
    )?;
    still_limited(&dir)?;
    equal("exec", cri.sh(&id, "echo here")?.as_str(), "here\n")?;
    // The connection to the bus outlives the systemd that it was made to.
    let other = kubelet_pod(&cri, "after")?;
    limited(&other)?;
    other.remove()?;
    cri.stop(&id, 20)?;
    equal("exit code", cri.container(&id)?.exit_code, 3)?;
    pod.remove()?;
    no_scopes()
}

pub fn limits_of_a_pod_without_a_parent() -> Result<()> {
    let cri = client()?;
    let mut config = cri::pod_config("own");
    config.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        ..Default::default()
    });
    let pod = Pod::run(&cri, config)?;
    equal("slice", of_unit(&scope_of(&pod), "Slice")?.as_str(), "podd.slice")?;
    let dir = PathBuf::from(format!("/sys/fs/cgroup/podd.slice/{}/pod", scope_of(&pod)));
    let limit = || -> Result<String> { Ok(fs::read_to_string(dir.join("memory.max"))?.trim().to_owned()) };
    equal("memory.max", limit()?.as_str(), "134217728")?;
    told("systemctl", &["daemon-reload"])?;
    told(
        "systemctl",
        &["set-property", "--runtime", &scope_of(&pod), "CPUWeight=200"],
    )?;
    equal("memory.max", limit()?.as_str(), "134217728")?;
    pod.remove()?;
    no_scopes()?;
    told("systemctl", &["stop", "podd.slice"]).map(drop)
}

/// Somebody stops the scope of a pod: its processes are asked, and systemd need not wait for podinit.
pub fn a_scope_stopped_by_hand() -> Result<()> {
    let cri = client()?;
    let pod = kubelet_pod(&cri, "by-hand")?;
    let id = limited(&pod)?;
    let begun = Instant::now();
    told("systemctl", &["stop", &scope_of(&pod)])?;
    ensure!(
        begun.elapsed() < Duration::from_secs(60),
        "it took {:?}",
        begun.elapsed()
    );
    let status = cri.wait_exit(&id)?;
    equal("exit code", status.exit_code, 3)?;
    eventually("the pod is not ready", || {
        Ok(pod.status()?.state() == pb::PodSandboxState::SandboxNotready)
    })?;
    pod.remove()?;
    no_scopes()
}

/// A scope whose record is gone, as after a state directory was emptied under a podd that was not running.
pub fn a_scope_that_no_record_knows() -> Result<()> {
    let cri = client()?;
    let pod = kubelet_pod(&cri, "orphan")?;
    limited(&pod)?;
    told("systemctl", &["stop", UNIT])?;
    equal("scopes", scopes()?, vec![scope_of(&pod)])?;
    fs::remove_dir_all(Path::new(podd::STATE_DIR).join("pods").join(&pod.id))?;
    // Of somebody else, who happens to like the name.
    told(
        "systemd-run",
        &[
            "--scope",
            "--unit=podd-other",
            "sh",
            "-c",
            "sleep 100000 >/dev/null 2>&1 &",
        ],
    )?;
    told("systemctl", &["start", UNIT])?;
    equal("scopes", scopes()?, vec!["podd-other.scope".to_owned()])?;
    told("systemctl", &["stop", "podd-other.scope"])?;
    pod.remove()?;
    no_scopes()
}

/// Sends a signal to a process that systemd named.
fn send(pid: &str, signal: Signal) -> Result<()> {
    let number = pid.parse().with_context(|| format!("{pid:?} is no process id"))?;
    kill(Pid::from_raw(number), signal).with_context(|| format!("send {signal} to {pid}"))
}

pub fn a_bus_that_hangs() -> Result<()> {
    let cri = client()?;
    let bus = told("systemctl", &["show", "--value", "-p", "MainPID", "dbus.service"])?;
    send(&bus, Signal::SIGSTOP)?;
    let answer = kubelet_pod(&cri, "hangs");
    send(&bus, Signal::SIGCONT)?;
    let error = answer.err().context("a pod was made without systemd")?;
    let error = format!("{error:#}");
    contains("code", &error, "Deadline expired")?;
    contains("message", &error, "systemd did not")?;
    // What could not be taken back while the bus hung is removed on request, as the kubelet does.
    for pod in cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?.items {
        cri.remove_pod(&pod.id)?;
    }
    no_scopes()?;
    let pod = kubelet_pod(&cri, "again")?;
    limited(&pod)?;
    pod.remove()?;
    no_scopes()
}

/// podd dies while systemd makes a scope for it, before, or after.
pub fn podd_killed_while_a_scope_is_made() -> Result<()> {
    for round in 0..6u64 {
        let daemon = property("MainPID")?;
        let asked = std::thread::spawn(move || -> Result<()> {
            // Whatever it comes to: podd is killed meanwhile.
            if let Ok(pod) = kubelet_pod(&client()?, "killed") {
                std::mem::forget(pod);
            }
            Ok(())
        });
        std::thread::sleep(Duration::from_millis(60 * round));
        send(&daemon, Signal::SIGKILL)?;
        asked
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        back_after(&daemon)?;
        let cri = client()?;
        let pods = cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?.items;
        let mut known: Vec<String> = pods.iter().map(|pod| format!("podd-{}.scope", pod.id)).collect();
        known.sort();
        eventually("every scope has a pod", || {
            let mut now = scopes()?;
            now.sort();
            Ok(now.iter().all(|unit| known.contains(unit)))
        })?;
        remove(&cri, &pods)?;
        no_scopes()?;
    }
    Ok(())
}

fn remove(cri: &Cri, pods: &[pb::PodSandbox]) -> Result<()> {
    pods.iter().try_for_each(|pod| Ok(cri.remove_pod(&pod.id)?))
}
