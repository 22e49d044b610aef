//! The machine loses power while pods run, and comes back, with a newer kernel, on the same disk.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pb::ContainerState::{ContainerExited, ContainerRunning};
use podd_e2e::arena::WORK_DIR;
use podd_e2e::cri;
use podd_e2e::fixture::Fixture;
use podd_e2e::podd::{self, Podd};
use podd_proto::v1 as pb;

use crate::case::{Pod, equal, refused};
use crate::guest::{Case, guest_cases};

/// Before the power goes.
pub const BEFORE: &[Case] = guest_cases!("reboot": pods_run);
/// When it is back.
pub const AFTER: &[Case] = guest_cases!("reboot": pods_are_over);

/// Outside of podd's directories, on the disk.
const KEPT: &str = "/run/disk/ids";

fn pods_run() -> Result<()> {
    let mut fixture = Fixture::start(true)?;
    let cri = fixture.podd()?.cri().clone();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let config = cri::pod_config(name);
        std::fs::create_dir_all(&config.log_directory)?;
        let pod = cri.run_pod(&config)?;
        let container = cri.create(&pod, &config, &cri::shell("c", "exec sleep 100000"))?;
        cri.start(&container)?;
        equal("state", cri.container(&container)?.state(), ContainerRunning)?;
        let address = cri.pod(&pod)?.network.context("no network")?.ip;
        ids.push(format!("{pod} {container} {address}"));
    }
    std::fs::write(KEPT, ids.join("\n"))?;
    // No value is dropped: podd and its pods run until the guest is switched off.
    std::mem::forget(fixture);
    Ok(())
}

fn pods_are_over() -> Result<()> {
    let kept = std::fs::read_to_string(KEPT).context("the disk is not that of the boot before")?;
    ensure!(
        Path::new(podd::STATE_DIR).join("pods").exists(),
        "podd's state is gone"
    );
    // Not a fixture, which begins with an empty state; nothing is pulled, so there is no registry.
    std::fs::create_dir_all(WORK_DIR)?;
    let podd = Podd::start()?;
    let cri = podd.cri().clone();
    let before: Vec<Vec<&str>> = kept.lines().map(|line| line.split(' ').collect()).collect();
    for words in &before {
        let &[pod, container, _] = words.as_slice() else {
            anyhow::bail!("{words:?}")
        };
        equal("pod", cri.pod(pod)?.state(), pb::PodSandboxState::SandboxNotready)?;
        let status = cri.container(container)?;
        equal("state", status.state(), ContainerExited)?;
        equal("exit code", status.exit_code, 255)?;
        ensure!(status.finished_at > 0, "no time of its end");
        ensure!(
            cri.exec(container, &["true"], 5).is_err(),
            "an exec in a container that is over"
        );
    }
    // The image was kept, and the addresses are free again.
    ensure!(cri.image(podd::IMAGE)?.is_some(), "the image is gone");
    let new = Pod::run(&cri, cri::pod_config("three"))?;
    new.output(&cri::shell("c", "echo lives"))?;
    let address = new.address('.')?;
    ensure!(
        before.iter().any(|words| words.get(2) == Some(&address.as_str())),
        "{address} is none of the addresses that became free"
    );
    new.remove()?;
    for words in &before {
        cri.remove_pod(words[0])?;
        refused(
            "removed",
            tonic::Code::NotFound,
            cri.pod_sandbox_status(pb::PodSandboxStatusRequest {
                pod_sandbox_id: words[0].to_owned(),
                verbose: false,
            }),
        )?;
    }
    Ok(())
}
