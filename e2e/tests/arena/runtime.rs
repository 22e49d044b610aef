//! Version, Status, RuntimeConfig, UpdateRuntimeConfig, and the socket itself.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use podd_e2e::podd::SOCKET;
use podd_proto::v1 as pb;

use crate::case::{Env, cases, equal};

cases!("runtime": version, status, cgroup_driver, pod_range, socket_mode);

fn version(env: &mut Env<'_>) -> Result<()> {
    let said = env.cri()?.version(pb::VersionRequest::default())?;
    equal("kube API version", said.version.as_str(), "0.1.0")?;
    equal("runtime API version", said.runtime_api_version.as_str(), "v1")?;
    equal("runtime name", said.runtime_name.as_str(), "podd")?;
    ensure!(!said.runtime_version.is_empty(), "no runtime version");
    Ok(())
}

fn status(env: &mut Env<'_>) -> Result<()> {
    let said = env.cri()?.status(pb::StatusRequest { verbose: true })?;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let conditions = &said.status.as_ref().context("no status")?.conditions;
        let found = conditions
            .iter()
            .find(|c| c.r#type == kind)
            .with_context(|| format!("no {kind}"))?;
        ensure!(
            found.status,
            "{kind} is false: {} {}",
            found.reason,
            found.message
        );
    }
    ensure!(
        said.runtime_handlers.iter().any(|h| h.name.is_empty()),
        "the default handler is not listed"
    );
    said.features.context("no features").map(drop)
}

fn cgroup_driver(env: &mut Env<'_>) -> Result<()> {
    let said = env.cri()?.runtime_config(pb::RuntimeConfigRequest::default())?;
    // Process 1 of an arena is not systemd.
    equal(
        "driver",
        said.linux.context("no Linux part")?.cgroup_driver(),
        pb::CgroupDriver::Cgroupfs,
    )
}

fn pod_range(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let set = |range: &str| {
        let network_config = Some(pb::NetworkConfig {
            pod_cidr: range.to_owned(),
        });
        let runtime_config = Some(pb::RuntimeConfig { network_config });
        cri.update_runtime_config(pb::UpdateRuntimeConfigRequest { runtime_config })
    };
    // What the kubelet sends when the node has no range yet: nothing changes.
    set("").context("an empty range")?;
    ensure!(set("10.88.0.0/33").is_err(), "an impossible range was accepted");
    Ok(())
}

fn socket_mode(_: &mut Env<'_>) -> Result<()> {
    let mode = std::fs::metadata(SOCKET)?.permissions().mode() & 0o777;
    equal("mode of the socket", format!("{mode:o}"), "660".to_owned())
}
