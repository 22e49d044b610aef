//! podd dies and comes back: pods go on, nothing is forgotten, exits that happened meanwhile are told.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::cri;
use podd_proto::v1 as pb;

use crate::case::{Env, Pod, cases, contains, equal, log_lines};
use crate::lifecycle::sleeper;

cases!("recovery":
    killed_with_live_pods, exits_meanwhile, exits_outlive_podinit, log_goes_on, images_are_kept, created_container_starts_later,
    orderly_stop_leaves_pods, removal_after_restart, killed_while_creating, old_ids_are_still_joined);

/// Kills podd the hard way and starts it again.
fn restart(env: &mut Env<'_>) -> Result<()> {
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    podd.start_again()
}

fn lists(env: &mut Env<'_>) -> Result<(Vec<pb::PodSandbox>, Vec<pb::Container>)> {
    let cri = env.cri()?;
    let mut pods = cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?.items;
    let mut containers = cri
        .list_containers(pb::ListContainersRequest::default())?
        .containers;
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((pods, containers))
}

fn killed_with_live_pods(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (one, id) = sleeper(env, "one")?;
    let (two, _) = sleeper(env, "two")?;
    two.created(&cri::shell("created", "true"))?;
    let (before, status, network) = (lists(env)?, cri.container(&id)?, one.status()?.network);
    restart(env)?;
    equal("lists", lists(env)?, before)?;
    equal("status", cri.container(&id)?, status)?;
    equal("network", one.status()?.network, network)?;
    equal("exec", cri.sh(&id, "echo alive")?.as_str(), "alive\n")?;
    cri.stop(&id, 5)?;
    equal("exit code", cri.container(&id)?.exit_code, 0)?;
    one.remove()?;
    two.remove()
}

fn exits_meanwhile(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("meanwhile")?;
    let codes = [0, 3, 143];
    let ids = codes
        .iter()
        .map(|code| {
            pod.started(&cri::shell(
                &format!("c{code}"),
                &format!("sleep 0.3; exit {code}"),
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    std::thread::sleep(Duration::from_millis(700));
    podd.start_again()?;
    for (id, code) in ids.iter().zip(codes) {
        let status = cri.container(id)?;
        equal(
            "state at once",
            status.state(),
            pb::ContainerState::ContainerExited,
        )?;
        equal("exit code", status.exit_code, code)?;
        ensure!(status.finished_at > status.started_at, "no time of the end");
    }
    pod.remove()
}

/// podd and the pod's podinit both die after a container has ended: what podinit wrote down still counts.
fn exits_outlive_podinit(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("outlive")?;
    let ended = pod.started(&cri::shell("ended", "sleep 0.2; exit 7"))?;
    let alive = pod.started(&cri::shell("alive", "sleep 1000"))?;
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    std::thread::sleep(Duration::from_millis(600));
    kill_podinits()?;
    podd.start_again()?;
    crate::case::eventually("both containers are over", 5, || {
        let states = [cri.container(&ended)?.state(), cri.container(&alive)?.state()];
        Ok(states == [pb::ContainerState::ContainerExited; 2])
    })?;
    equal("recorded exit code", cri.container(&ended)?.exit_code, 7)?;
    equal(
        "reason of the other",
        cri.container(&alive)?.reason,
        "Unknown".to_owned(),
    )?;
    pod.remove()
}

/// Kills every podinit of the arena.
fn kill_podinits() -> Result<()> {
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.trim() == "podinit" {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?;
        }
    }
    Ok(())
}

fn log_goes_on(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("log")?;
    let config = cri::shell(
        "c",
        "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.004; done",
    );
    let id = pod.started(&config)?;
    std::thread::sleep(Duration::from_millis(200));
    restart(env)?;
    cri.reopen_container_log(pb::ReopenContainerLogRequest {
        container_id: id.clone(),
    })?;
    cri.wait_exit(&id)?;
    let found: Vec<_> = log_lines(&pod.config, &config)?
        .into_iter()
        .map(|l| l.content)
        .collect();
    let expected: Vec<_> = (1..=300).map(|i| i.to_string()).collect();
    ensure!(found == expected, "{} of 300 lines", found.len());
    pod.remove()
}

fn images_are_kept(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let name = "gcr.io/k8s-staging-cri-tools/test-image-3:latest";
    cri.pull(name)?;
    let before = cri.image(name)?;
    restart(env)?;
    equal("image", cri.image(name)?, before)?;
    cri.remove(name).context("remove")?;
    // Without pods the new podd has nothing to connect; the first pod brings bridge and table back.
    env.pod("first")?.remove()
}

fn created_container_starts_later(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("later")?;
    let id = pod.created(&cri::shell("c", "exit 6"))?;
    restart(env)?;
    equal(
        "state",
        cri.container(&id)?.state(),
        pb::ContainerState::ContainerCreated,
    )?;
    cri.start(&id)?;
    equal("exit code", cri.wait_exit(&id)?.exit_code, 6)?;
    pod.remove()
}

fn orderly_stop_leaves_pods(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "orderly")?;
    let begun = Instant::now();
    let podd = env.podd()?;
    let status = podd.end(Signal::SIGTERM)?;
    ensure!(status.success(), "podd ended with {status}");
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "podd took {:?} to stop",
        begun.elapsed()
    );
    podd.start_again()?;
    equal("exec", cri.sh(&id, "echo alive")?.as_str(), "alive\n")?;
    pod.remove()
}

fn removal_after_restart(env: &mut Env<'_>) -> Result<()> {
    let (pod, _) = sleeper(env, "removal")?;
    restart(env)?;
    pod.remove()
}

fn killed_while_creating(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    for round in 0..10_u64 {
        let config = cri::pod_config("halfway");
        fs::create_dir_all(&config.log_directory)?;
        let worker = {
            let (cri, config) = (cri.clone(), config.clone());
            std::thread::spawn(move || cri.run_pod(&config))
        };
        std::thread::sleep(Duration::from_millis(round));
        restart(env)?;
        let _ = worker.join();
        // The kubelet's retry: it joins what survived or makes it anew, and then it is whole.
        let id = cri
            .run_pod(&config)
            .with_context(|| format!("retry after {round} ms"))?;
        let pod = cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?.items;
        equal("pods of one name", pod.len(), 1)?;
        let ctr = cri.create(&id, &config, &cri::shell("c", "exit 2"))?;
        cri.start(&ctr)?;
        equal("exit code", cri.wait_exit(&ctr)?.exit_code, 2)?;
        cri.remove_pod(&id)?;
        fs::remove_dir_all(&config.log_directory)?;
    }
    Ok(())
}

fn old_ids_are_still_joined(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod: Pod = env.pod("join")?;
    let config = cri::shell("c", "exec sleep 1000");
    let id = pod.created(&config)?;
    restart(env)?;
    equal("pod", cri.run_pod(&pod.config)?, pod.id.clone())?;
    equal("container", cri.create(&pod.id, &pod.config, &config)?, id)?;
    let error = cri
        .create(&pod.id, &pod.config, &cri::shell("c", "false"))
        .err()
        .context("a change was joined")?;
    contains("code", &format!("{:?}", error.code()), "AlreadyExists")?;
    pod.remove()
}
