//! Resources of a pod as a whole: limits of podd's where podd chooses the cgroup, the client's where it names it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, Pod, cases, equal, refused};
use crate::resources::{MIB, Wire, need, say, sleeper};
use crate::stats::cgroup;

cases!("pod_limits": pod_as_a_whole, a_named_parent_keeps_its_limits);

/// What `verbose` says of a pod.
fn info(cri: &Cri, pod: &str) -> Result<serde_json::Value> {
    let request = pb::PodSandboxStatusRequest {
        pod_sandbox_id: pod.to_owned(),
        verbose: true,
    };
    let info = cri.pod_sandbox_status(request)?.info;
    Ok(serde_json::from_str(info.get("info").context("no info")?)?)
}

fn pod_as_a_whole(env: &mut Env<'_>) -> Result<()> {
    need(&["cpu", "memory"])?;
    let cri = env.cri()?;
    let mut config = cri::pod_config("whole");
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(Wire {
        cpu_shares: 512,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 64 * MIB,
        ..Default::default()
    });
    linux.overhead = Some(Wire {
        cpu_quota: 10_000,
        memory_limit_in_bytes: 16 * MIB,
        ..Default::default()
    });
    let pod = Pod::run(&cri, config)?;
    let place = info(&cri, &pod.id)?["cgroup"]
        .as_str()
        .context("no cgroup")?
        .to_owned();
    let dir = Path::new("/sys/fs/cgroup").join(place);
    say(
        &dir,
        &[
            ("cpu.max", "60000 100000"),
            ("memory.max", "83886080"),
            ("cpu.weight", "59"),
        ],
    )?;
    let change = |memory| pb::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(Wire {
            memory_limit_in_bytes: memory,
            ..Default::default()
        }),
        ..Default::default()
    };
    cri.update_pod_sandbox_resources(change(128 * MIB))?;
    say(&dir, &[("cpu.max", "60000 100000"), ("memory.max", "150994944")])?;
    equal(
        "status",
        info(&cri, &pod.id)?["resources"]["memory_limit"].as_i64(),
        Some(144 * MIB),
    )?;
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    podd.start_again()?;
    cri.update_pod_sandbox_resources(change(32 * MIB))?;
    say(&dir, &[("memory.max", "50331648")])?;
    refused(
        "negative",
        Code::InvalidArgument,
        cri.update_pod_sandbox_resources(change(-1)),
    )?;
    pod.remove()
}

/// A kubelet limits the cgroup that it names, by other sums than it sends: those of podd would limit containers that
/// have no limit.
fn a_named_parent_keeps_its_limits(env: &mut Env<'_>) -> Result<()> {
    need(&["memory"])?;
    let parent = Path::new("/sys/fs/cgroup/kubepods/pod1");
    fs::create_dir_all(parent)?;
    let result = (|| {
        let cri = env.cri()?;
        let mut config = cri::pod_config("named");
        let linux = config.linux.get_or_insert_default();
        linux.cgroup_parent = "/kubepods/pod1".to_owned();
        linux.resources = Some(Wire {
            memory_limit_in_bytes: 64 * MIB,
            ..Default::default()
        });
        let pod = Pod::run(&cri, config)?;
        let id = sleeper(&pod, "c", Wire::default())?;
        ensure!(cgroup(&cri, &id)?.starts_with(parent), "not below its parent");
        say(parent, &[("memory.max", "max")])?;
        cri.update_pod_sandbox_resources(pb::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            resources: Some(Wire {
                memory_limit_in_bytes: 32 * MIB,
                ..Default::default()
            }),
            ..Default::default()
        })?;
        say(parent, &[("memory.max", "max")])?;
        let told = info(&cri, &pod.id)?["resources"]["memory_limit"].as_i64();
        equal("status", told, Some(32 * MIB))?;
        pod.remove()?;
        ensure!(parent.exists(), "podd removed a cgroup that it did not make");
        Ok(())
    })();
    fs::remove_dir(parent)?;
    fs::remove_dir("/sys/fs/cgroup/kubepods")?;
    result
}
