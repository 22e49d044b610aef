//! podd as a service of systemd, installed and removed by the scripts that a node gets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podd_e2e::cri::{self, Cri};
use podd_e2e::podd;
use podd_e2e::registry::Registry;
use podd_proto::v1 as pb;

use crate::case::{Pod, equal, eventually, log_lines};
use crate::guest::{Case, guest_cases};
use crate::scopes::{
    a_bus_that_hangs, a_path_is_refused, a_scope_around_every_pod, a_scope_stopped_by_hand,
    a_scope_that_no_record_knows, annotations_set_no_properties, limits_of_a_pod_without_a_parent,
    podd_killed_while_a_scope_is_made, reload_and_reexec_disturb_nobody,
};
use crate::stats;

/// In this order: the first installs podd, the last removes it.
pub const CASES: &[Case] = guest_cases!("systemd":
    installed_and_ready, whole_lifecycle, options_of_the_hierarchy_stay, restart_leaves_pods, crash_leaves_pods, stop_leaves_pods,
    a_scope_around_every_pod, annotations_set_no_properties, a_path_is_refused, reload_and_reexec_disturb_nobody, limits_of_a_pod_without_a_parent,
    a_scope_stopped_by_hand, a_scope_that_no_record_knows, podd_killed_while_a_scope_is_made, a_bus_that_hangs,
    removed);

pub const UNIT: &str = "podd.service";

/// The registry lives as long as the guest.
static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

/// The output of a program that has to succeed.
pub fn told(program: &str, args: &[&str]) -> Result<String> {
    let done = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("start {program}"))?;
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    ensure!(
        done.status.success(),
        "{program} {args:?}: {}: {out}{err}\n{}",
        done.status,
        journal()
    );
    Ok(out.trim().to_owned())
}

/// What podd said last.
fn journal() -> String {
    let done = Command::new("journalctl")
        .args(["--no-pager", "-n", "25", "-u", UNIT])
        .output();
    done.map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        .unwrap_or_default()
}

pub fn property(name: &str) -> Result<String> {
    told("systemctl", &["show", "--value", "-p", name, UNIT])
}

/// Waits until podd serves as another process than `daemon`. Both are asked for at once: a service that has just been
/// killed is active for a moment, and then has no process.
pub fn back_after(daemon: &str) -> Result<()> {
    let (active, old) = ("ActiveState=active", format!("MainPID={daemon}"));
    eventually("podd is back", || {
        let now = told("systemctl", &["show", "-p", "ActiveState,MainPID", UNIT])?;
        Ok(now.lines().any(|line| line == active) && now.lines().all(|line| line != old))
    })
}

pub fn client() -> Result<Cri> {
    Cri::new(Path::new(podd::SOCKET))
}

/// A file of this workspace's directory deploy/.
fn deployed(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    Ok(path.to_str().context("a path that is not UTF-8")?.to_owned())
}

/// A pod whose cgroup parent has the kubelet's shape for the driver that podd names.
pub fn kubelet_pod(cri: &Cri, name: &str) -> Result<Pod> {
    let driver = cri.runtime_config(pb::RuntimeConfigRequest::default())?;
    let driver = driver.linux.context("no Linux part")?.cgroup_driver();
    let mut config = cri::pod_config(name);
    let uid = config
        .metadata
        .as_ref()
        .context("no metadata")?
        .uid
        .replace('-', "_");
    config.linux.get_or_insert_default().cgroup_parent = match driver {
        pb::CgroupDriver::Systemd => format!("kubepods-besteffort-pod{uid}.slice"),
        pb::CgroupDriver::Cgroupfs => format!("/kubepods/besteffort/pod{uid}"),
    };
    Pod::run(cri, config)
}

fn sleeper(pod: &Pod) -> Result<String> {
    pod.started(&cri::shell(
        "c",
        "trap 'exit 3' TERM; echo begun; sleep 100000 & wait",
    ))
}

/// The start time of a container's first process: another process has another.
fn started_at(cri: &Cri, id: &str) -> Result<String> {
    cri.sh(id, "cut -d' ' -f22 /proc/1/stat")
}

/// What shells and man(1) find.
const SHARED: [&str; 5] = [
    "/usr/local/share/man/man8/podd.8",
    "/usr/local/share/man/man8/podd-inspect.8",
    "/usr/local/share/bash-completion/completions/podd",
    "/usr/local/share/zsh/site-functions/_podd",
    "/usr/local/share/fish/vendor_completions.d/podd.fish",
];

fn installed_and_ready() -> Result<()> {
    let mut registry = Registry::start()?;
    registry.fill().context("fill the registry")?;
    *REGISTRY.lock().map_err(|_| anyhow::anyhow!("a test panicked"))? = Some(registry);
    fs::create_dir_all("/etc/podd")?;
    fs::write("/etc/podd/config.toml", podd::config())?;
    // install.sh ends when the unit is started, and a unit of Type=notify is when podd says that it is ready.
    let binary = podd::binary()?;
    told("sh", &[&deployed("install.sh")?, &binary.to_string_lossy()])?;
    equal("state", property("ActiveState")?.as_str(), "active")?;
    for path in SHARED {
        ensure!(
            fs::metadata(path).is_ok_and(|m| m.len() > 100),
            "{path} is missing or empty"
        );
    }
    let said = client()?.version(pb::VersionRequest::default())?;
    equal("runtime name", said.runtime_name.as_str(), "podd")?;
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", property("MainPID")?))?;
    equal(
        "cgroup of podd",
        cgroup.trim().starts_with("0::/system.slice/podd.service"),
        true,
    )?;
    client()?.pull(podd::IMAGE)?;
    Ok(())
}

fn whole_lifecycle() -> Result<()> {
    let cri = client()?;
    let pod = kubelet_pod(&cri, "life")?;
    let mut config = cri::shell("c", "echo begun; trap 'exit 3' TERM; sleep 100000 & wait");
    config.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let id = pod.started(&config)?;
    let cgroup = stats::cgroup(&cri, &id)?;
    for (file, expected) in [("cpu.max", "50000 100000"), ("memory.max", "67108864")] {
        let found = fs::read_to_string(cgroup.join(file))
            .with_context(|| format!("{file} of {}", cgroup.display()))?;
        equal(file, found.trim(), expected)?;
    }
    equal("exec", cri.sh(&id, "hostname")?.as_str(), "life\n")?;
    eventually("the log has the line", || {
        Ok(log_lines(&pod.config, &config)?
            .iter()
            .any(|l| l.content == "begun"))
    })?;
    ensure!(pod.address('.')?.starts_with("10."), "no address");
    cri.stop(&id, 20)?;
    equal("exit code", cri.container(&id)?.exit_code, 3)?;
    let of_pod = pod.id.clone();
    pod.remove()?;
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    equal("cgroups with the pod's name", cgroups_named(&of_pod), Vec::new())
}

/// A privileged container is in the node's cgroup namespace, where whoever mounts the one hierarchy anew sets its options.
fn options_of_the_hierarchy_stay() -> Result<()> {
    let options = || told("findmnt", &["-no", "FS-OPTIONS", "/sys/fs/cgroup"]);
    let before = options()?;
    ensure!(
        before.contains("nsdelegate"),
        "systemd has mounted it with {before:?}"
    );
    let cri = client()?;
    let mut config = cri::pod_config("hierarchy");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = Pod::run(&cri, config)?;
    let script = "cd /sys/fs/cgroup; ls -d system.slice; mkdir made && rmdir made; grep -c ' /sys/fs/cgroup .*nosuid' /proc/self/mounts";
    let mut config = cri::shell("c", script);
    cri::security(&mut config).privileged = true;
    equal("inside", pod.output(&config)?.as_str(), "system.slice\n1\n")?;
    equal("options afterwards", options()?, before)?;
    pod.remove()
}

/// Cgroups whose name contains `part`.
pub fn cgroups_named(part: &str) -> Vec<PathBuf> {
    let (mut dirs, mut found) = (vec![PathBuf::from("/sys/fs/cgroup")], Vec::new());
    while let Some(dir) = dirs.pop() {
        let below = fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path());
        dirs.extend(below.filter(|p| p.is_dir()));
        if dir.to_string_lossy().contains(part) {
            found.push(dir);
        }
    }
    found
}

/// Does `change` to the service while a container runs; it has to be the same process afterwards, and podd another.
fn survives(name: &str, change: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let cri = client()?;
    let pod = kubelet_pod(&cri, name)?;
    let id = sleeper(&pod)?;
    let (process, daemon) = (started_at(&cri, &id)?, property("MainPID")?);
    change(&daemon)?;
    back_after(&daemon).with_context(journal)?;
    equal(
        "state",
        cri.container(&id)?.state(),
        pb::ContainerState::ContainerRunning,
    )?;
    equal("start time of the process", started_at(&cri, &id)?, process)?;
    cri.stop(&id, 20)?;
    equal("exit code", cri.container(&id)?.exit_code, 3)?;
    pod.remove()
}

fn restart_leaves_pods() -> Result<()> {
    survives("restart", |_| told("systemctl", &["restart", UNIT]).map(drop))
}

fn crash_leaves_pods() -> Result<()> {
    survives("crash", |daemon| {
        let pid = Pid::from_raw(daemon.parse()?);
        kill(pid, Signal::SIGKILL).context("kill podd")
    })
}

fn stop_leaves_pods() -> Result<()> {
    survives("stop", |_| {
        told("systemctl", &["stop", UNIT])?;
        equal("state", property("ActiveState")?.as_str(), "inactive")?;
        told("systemctl", &["start", UNIT]).map(drop)
    })
}

fn removed() -> Result<()> {
    told("sh", &[&deployed("uninstall.sh")?, "--purge"])?;
    for path in [
        "/usr/local/bin/podd",
        "/etc/systemd/system/podd.service",
        "/run/podd",
    ]
    .into_iter()
    .chain(SHARED)
    {
        ensure!(!Path::new(path).exists(), "{path} is left");
    }
    // A mount of its own in the guest.
    equal("files of podd", fs::read_dir(podd::STATE_DIR)?.count(), 0)?;
    equal("cgroups of podd", cgroups_named("podd"), Vec::new())
}
