//! Many pods: one after another, at once, and from many clients.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::census;
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;

use crate::case::{Env, Pod, cases, equal, eventually};

cases!("scale": five_hundred_pods, three_hundred_at_once, threads_go_back);

fn five_hundred_pods(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while next.fetch_add(1, Ordering::Relaxed) < 500 {
                        let pod = Pod::run(&cri, cri::pod_config("many"))?;
                        let id = pod.started(&cri::shell("c", "echo up; sleep 100000 & wait"))?;
                        equal("exec", cri.sh(&id, "echo in")?.as_str(), "in\n")?;
                        cri.stop(&id, 0)?;
                        cri.remove_ctr(&id)?;
                        pod.remove()?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().expect("a worker does not panic"))
    })
}

fn three_hundred_at_once(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut pods = Vec::new();
    for i in 0..300 {
        let pod = Pod::run(&cri, cri::pod_config(&format!("p{i}"))).with_context(|| format!("pod {i}"))?;
        let id = pod.started(&cri::shell("c", "sleep 100000 & wait"))?;
        pods.push((pod, id));
    }
    let addresses: BTreeSet<_> = pods
        .iter()
        .map(|(pod, _)| pod.address('.'))
        .collect::<Result<_>>()?;
    equal("distinct addresses", addresses.len(), 300)?;
    equal("running", running(&cri)?, 300)?;

    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    podd.start_again()?;
    equal("running after a restart", running(&cri)?, 300)?;
    let (_, last) = pods.last().context("there are pods")?;
    equal("exec", cri.sh(last, "echo in")?.as_str(), "in\n")?;
    pods.into_iter().try_for_each(|(pod, _)| pod.remove())
}

/// How many containers are listed as running.
fn running(cri: &Cri) -> Result<usize> {
    let state = Some(pb::ContainerStateValue {
        state: pb::ContainerState::ContainerRunning.into(),
    });
    let filter = Some(pb::ContainerFilter {
        state,
        ..Default::default()
    });
    let listed = cri.list_containers(pb::ListContainersRequest { filter })?;
    Ok(listed.containers.len())
}

fn threads_go_back(env: &mut Env<'_>) -> Result<()> {
    let (cri, pid) = (env.cri()?, env.podd()?.pid());
    let pods = (0..8)
        .map(|i| env.pod(&format!("t{i}")))
        .collect::<Result<Vec<_>>>()?;
    pods.into_iter().try_for_each(Pod::remove)?;
    cri.version(pb::VersionRequest::default())?;
    // Idle workers of a pool end after ten seconds; what remains does not depend on the number of pods.
    let few = 16;
    eventually("idle threads end", || Ok(census::threads(pid) <= few))?;
    std::thread::sleep(Duration::from_millis(10));
    ensure!(
        census::threads(pid) <= few,
        "{} threads in an idle podd",
        census::threads(pid)
    );
    Ok(())
}
