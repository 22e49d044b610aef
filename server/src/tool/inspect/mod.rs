//! `podd inspect`: all of a container or pod, as podd remembers it and as the kernel has it.

mod confinement;
mod limits;
mod mounts;
mod namespaces;
mod print;

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use podd_proto::v1;
use serde::Serialize;

use super::cri::{Cri, Kept};
use super::failure::Failure;
use super::node::{Container, Found, Node, Pod};
use super::processes;
use super::procfs::{LARGE, LINE, Proc};
use super::screen::Screen;
use super::table::{self, Format};
use confinement::Confinement;
use limits::Rlimit;
use mounts::Mount;
use namespaces::{Inodes, Namespace};

/// Most open files that are counted.
const FILES: usize = 100_000;

/// Show a container or pod: what was asked for, and what the kernel has.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Name or id of the container or pod.
    what: String,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownContainer<'a> {
    #[serde(flatten)]
    container: &'a Container,
    status: Status,
    cgroup: Option<String>,
    cgroup_files: BTreeMap<String, String>,
    process: Option<Kernel>,
}

/// What podd remembers of a container.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    reason: String,
    message: String,
    log_path: String,
    stop_signal: String,
    user: Option<User>,
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    uid: i64,
    gid: i64,
    groups: Vec<i64>,
}

/// What the kernel has for a container's first process.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Kernel {
    pid: i32,
    command: String,
    processes: usize,
    open_files: Option<usize>,
    namespaces: Vec<Namespace>,
    confinement: Confinement,
    rlimits: Vec<Rlimit>,
    mounts: Vec<Mount>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownPod<'a> {
    #[serde(flatten)]
    pod: &'a Pod,
    addresses: Vec<String>,
    annotations: BTreeMap<String, String>,
    runtime_handler: String,
    pid: Option<i32>,
    cgroup: Option<String>,
    cgroup_files: BTreeMap<String, String>,
    namespaces: Vec<Namespace>,
    containers: Vec<&'a Container>,
}

impl Inspect {
    /// Reads and prints.
    ///
    /// # Errors
    /// There is no such container or pod, or podd does not answer.
    pub fn run(self, cri: &Cri, screen: Screen) -> Result<(), Failure> {
        let node = Node::read(cri)?;
        let root = cri.cgroup_root()?;
        screen.print(&match (node.find(&self.what)?, self.output) {
            (Found::Container(it), Format::Json) => table::json(&container(cri, &node, it, &root)?),
            (Found::Container(it), Format::Table) => {
                print::container(&container(cri, &node, it, &root)?, screen)
            }
            (Found::Pod(it), Format::Json) => table::json(&pod(cri, &node, it, &root)?),
            (Found::Pod(it), Format::Table) => print::pod(&pod(cri, &node, it, &root)?, screen),
        })
    }
}

fn container<'a>(
    cri: &Cri,
    node: &Node,
    it: &'a Container,
    root: &Path,
) -> Result<ShownContainer<'a>, Failure> {
    let (status, kept) = cri.container(&it.id)?;
    let directory = kept.directory(root);
    let process = match opened(cri, it, &kept)? {
        Some((pid, proc)) => Some(kernel(cri, node, it, pid, &proc, directory.as_deref())?),
        None => None,
    };
    Ok(ShownContainer {
        container: it,
        status: remembered(status),
        cgroup: directory.as_ref().map(|d| d.display().to_string()),
        cgroup_files: directory.as_deref().map(limits::of_cgroup).unwrap_or_default(),
        process,
    })
}

/// The container's first process. podd is asked again when its directory is open: from then on it cannot be mixed up
/// with another that gets its pid.
fn opened(cri: &Cri, it: &Container, kept: &Kept) -> Result<Option<(i32, Proc)>, Failure> {
    let Some((pid, proc)) = kept.pid.and_then(|pid| Some((pid, Proc::open(pid).ok()?))) else {
        return Ok(None);
    };
    let (_, again) = cri.container(&it.id)?;
    Ok((again.pid == Some(pid)).then_some((pid, proc)))
}

fn remembered(status: v1::ContainerStatus) -> Status {
    let stop_signal = status
        .stop_signal()
        .as_str_name()
        .trim_start_matches("SIGNAL_")
        .to_owned();
    Status {
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        log_path: status.log_path,
        stop_signal,
        user: status.user.and_then(|user| user.linux).map(|user| User {
            uid: user.uid,
            gid: user.gid,
            groups: user.supplemental_groups,
        }),
        annotations: status.annotations.into_iter().collect(),
    }
}

fn kernel(
    cri: &Cri,
    node: &Node,
    it: &Container,
    pid: i32,
    proc: &Proc,
    cgroup: Option<&Path>,
) -> Result<Kernel, Failure> {
    let status = proc.text("status", LARGE).unwrap_or_default();
    let line = proc.try_read("cmdline", LINE).unwrap_or_default();
    let pod = match cri.pod(&it.pod_id) {
        Ok((_, kept)) => held(&kept),
        Err(e) if e.is_gone() => Inodes::new(),
        Err(e) => return Err(e),
    };
    let own = namespaces::of_process(proc);
    Ok(Kernel {
        pid,
        command: processes::command(&line),
        processes: cgroup
            .and_then(|c| processes::pids(c).ok())
            .map_or(0, |pids| pids.len()),
        open_files: proc.entries("fd", FILES).ok().map(|names| names.len()),
        namespaces: namespaces::compare(&own, &of_node(), &pod, &others(cri, node, &it.id)?),
        confinement: Confinement::read(proc, &status),
        rlimits: limits::parse_rlimits(&proc.text("limits", LINE * 2).unwrap_or_default()),
        mounts: mounts::parse(&proc.text("mountinfo", LARGE).unwrap_or_default()),
    })
}

fn pod<'a>(cri: &Cri, node: &'a Node, it: &'a Pod, root: &Path) -> Result<ShownPod<'a>, Failure> {
    let (status, kept) = cri.pod(&it.id)?;
    let network = status.network.unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|more| more.ip);
    let directory = kept.directory(root);
    let own = held(&kept);
    Ok(ShownPod {
        pod: it,
        addresses: std::iter::once(network.ip)
            .chain(more)
            .filter(|ip| !ip.is_empty())
            .collect(),
        annotations: status.annotations.into_iter().collect(),
        runtime_handler: status.runtime_handler,
        pid: kept.pid,
        cgroup: directory.as_ref().map(|d| d.display().to_string()),
        cgroup_files: directory.as_deref().map(limits::of_cgroup).unwrap_or_default(),
        namespaces: namespaces::compare(&own, &of_node(), &Inodes::new(), &others(cri, node, "")?),
        containers: node.of_pod(&it.id).collect(),
    })
}

/// The namespaces of a pod.
fn held(kept: &Kept) -> Inodes {
    let podinit = kept.pid.and_then(|pid| Proc::open(pid).ok());
    podinit.map(|proc| namespaces::of_pod(&proc)).unwrap_or_default()
}

/// The namespaces of the node, which are those of its first process.
fn of_node() -> Inodes {
    Proc::open(1)
        .map(|proc| namespaces::of_process(&proc))
        .unwrap_or_default()
}

/// Every other container that runs, and its namespaces.
fn others(cri: &Cri, node: &Node, id: &str) -> Result<Vec<(String, Inodes)>, Failure> {
    let mut others = Vec::new();
    for container in node
        .containers
        .iter()
        .filter(|c| c.id != id && c.state == "running")
    {
        let kept = match cri.container(&container.id) {
            Ok((_, kept)) => kept,
            Err(e) if e.is_gone() => continue,
            Err(e) => return Err(e),
        };
        if let Some(proc) = kept.pid.and_then(|pid| Proc::open(pid).ok()) {
            others.push((container.title(), namespaces::of_process(&proc)));
        }
    }
    Ok(others)
}
