//! podd dies and comes back: pods go on, nothing is forgotten, exits that happened meanwhile are told.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use podd_e2e::cri;
use podd_e2e::images::{self, Dialect, Image, Layer, Packing};
use podd_e2e::podd::{RUN_DIR, STATE_DIR};
use podd_proto::v1 as pb;
use serde_json::json;

use crate::case::{Env, Pod, cases, contains, equal, eventually, log_lines, refused};
use crate::lifecycle::sleeper;
use crate::{stats, users};

cases!("recovery":
    killed_with_live_pods, exits_meanwhile, exits_outlive_podinit, log_goes_on, images_are_kept, created_container_starts_later,
    orderly_stop_leaves_pods, removal_after_restart, killed_while_creating, old_ids_are_still_joined,
    podinit_without_a_record, cgroup_without_podinit_and_record, podinit_that_hangs, podinit_that_hangs_up,
    damaged_layers_after_a_crash);

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
    eventually("both containers are over", || {
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
    podinits("")?
        .into_iter()
        .try_for_each(|pid| signal(pid, Signal::SIGKILL))
}

pub(crate) fn signal(pid: i32, signal: Signal) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?)
}

/// The podinits of the arena whose pod's id begins with this.
pub(crate) fn podinits(pod: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if line
            .strip_prefix("podinit\0")
            .is_some_and(|id| id.starts_with(pod))
        {
            found.push(pid);
        }
    }
    Ok(found)
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

/// Waits until a process was killed and reaped.
fn gone(process: u32) -> Result<()> {
    eventually("the container is over", || {
        Ok(!fs::exists(format!("/proc/{process}"))?)
    })
}

/// Records go, pods stay: what has no record is ended, with its processes and cgroups; the census sees the rest.
fn podinit_without_a_record(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut processes = Vec::new();
    let mut logs = Vec::new();
    for shared in [false, true] {
        for parent in ["", "/orphans/pod1"] {
            let mut config = cri::pod_config("orphan");
            let linux = config.linux.get_or_insert_default();
            linux.cgroup_parent = parent.to_owned();
            if shared {
                linux.security_context.get_or_insert_default().namespace_options =
                    Some(pb::NamespaceOption::default());
            }
            fs::create_dir_all(&config.log_directory)?;
            let pod = cri.run_pod(&config)?;
            let id = cri.create(&pod, &config, &cri::shell("c", "sleep 1000 & sleep 1000"))?;
            cri.start(&id)?;
            processes.push((pod, users::pid(env, &id)?));
            logs.push(config.log_directory);
        }
    }
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    for (pod, _) in &processes {
        fs::remove_dir_all(format!("{STATE_DIR}/pods/{pod}"))?;
    }
    podd.start_again()?;
    for (pod, process) in &processes {
        equal("podinits", podinits(pod)?, Vec::new())?;
        gone(*process)?;
        ensure!(
            !fs::exists(format!("{RUN_DIR}/pods/{pod}"))?,
            "its socket is left"
        );
    }
    equal("pods", lists(env)?.0.len(), 0)?;
    fs::remove_dir("/sys/fs/cgroup/orphans/pod1")?;
    fs::remove_dir("/sys/fs/cgroup/orphans")?;
    logs.iter().try_for_each(fs::remove_dir_all)?;
    // The new podd has nothing to connect; the first pod brings bridge and table back.
    env.pod("first")?.remove()
}

/// podinit and record are both gone, and containers live: they are ended, and their cgroups and sockets go. What looks the
/// same and is somebody else's stays.
fn cgroup_without_podinit_and_record(env: &mut Env<'_>) -> Result<()> {
    let (pod, id) = sleeper(env, "nobodys")?;
    let (process, podinit) = (users::pid(env, &id)?, podinits(&pod.id)?);
    let parent = stats::cgroup(&env.cri()?, &id)?;
    let parent = parent
        .parent()
        .and_then(|pod| pod.parent())
        .context("no parent")?;
    let other = parent.join("f".repeat(64));
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    for pid in podinit {
        signal(pid, Signal::SIGKILL)?;
    }
    fs::remove_dir_all(format!("{STATE_DIR}/pods/{}", pod.id))?;
    fs::create_dir(&other)?;
    ensure!(fs::exists(format!("/proc/{process}"))?, "the container is over");
    podd.start_again()?;
    gone(process)?;
    ensure!(!parent.join(&pod.id).exists(), "its cgroup is left");
    ensure!(
        !fs::exists(format!("{RUN_DIR}/pods/{}", pod.id))?,
        "its socket is left"
    );
    fs::remove_dir(&other).context("a cgroup of somebody else was removed")?;
    pod.remove()?;
    // The new podd has nothing to connect; the first pod brings bridge and table back.
    env.pod("first")?.remove()
}

/// A podinit that does not answer a podd that starts is alive, and so is its pod: its containers go on, and what became
/// of them is told when it answers again.
fn podinit_that_hangs(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (other, elsewhere) = sleeper(env, "elsewhere")?;
    let (pod, id) = sleeper(env, "hangs")?;
    let process = users::pid(env, &id)?;
    let ends = pod.started(&cri::shell("ends", "sleep 1; exit 3"))?;
    let send = |what| {
        podinits(&pod.id)?
            .into_iter()
            .try_for_each(|pid| signal(pid, what))
    };
    send(Signal::SIGSTOP)?;
    restart(env)?;
    equal(
        "the pod",
        pod.status()?.state(),
        pb::PodSandboxState::SandboxReady,
    )?;
    equal(
        "its container",
        cri.container(&id)?.state(),
        pb::ContainerState::ContainerRunning,
    )?;
    refused("exec", tonic::Code::DeadlineExceeded, cri.exec(&id, &["true"], 1))?;
    equal(
        "exec elsewhere",
        cri.sh(&elsewhere, "echo alive")?.as_str(),
        "alive\n",
    )?;
    send(Signal::SIGCONT)?;
    equal("exit code", cri.wait_exit(&ends)?.exit_code, 3)?;
    equal("exec", cri.sh(&id, "echo alive")?.as_str(), "alive\n")?;
    equal("its process", users::pid(env, &id)?, process)?;
    // One that hangs for ever is ended with its pod, when somebody asks for that.
    send(Signal::SIGSTOP)?;
    restart(env)?;
    let all = podinits(&pod.id)?;
    pod.remove()?;
    for left in all.into_iter().chain([process.cast_signed()]) {
        gone(left.cast_unsigned())?;
    }
    other.remove()
}

/// podinit closes a connection whose other end does not read. Here both ends see it closed; pod and containers go on.
fn podinit_that_hangs_up(env: &mut Env<'_>) -> Result<()> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    /// Where podinit finds the connection to the podd that started it.
    const PODD: i32 = 3;
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "hangup")?;
    let ends = pod.started(&cri::shell(
        "ends",
        "while ! [ -e /end ]; do sleep 0.01; done; exit 9",
    ))?;
    let [podinit] = podinits(&pod.id)?[..] else {
        bail!("not one podinit");
    };
    let pid = Pid::from_raw(podinit).context("no pid")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let connection = pidfd_getfd(&pidfd, PODD, PidfdGetfdFlags::empty())?;
    cri.sh(&ends, "touch /end")?;
    rustix::net::shutdown(&connection, rustix::net::Shutdown::Both)?;
    drop(connection);
    equal("exit meanwhile", cri.wait_exit(&ends)?.exit_code, 9)?;
    eventually("execs work again", || Ok(cri.sh(&id, "true").is_ok()))?;
    equal("pod", pod.status()?.state(), pb::PodSandboxState::SandboxReady)?;
    equal("podinits", podinits(&pod.id)?, vec![podinit])?;
    cri.stop(&id, 5)?;
    equal("exit code", cri.container(&id)?.exit_code, 0)?;
    pod.remove()
}

/// The power goes while files are written: damage is found, and a pull repairs it.
fn damaged_layers_after_a_crash(env: &mut Env<'_>) -> Result<()> {
    const NAME: &str = "docker.io/odd/torn:latest";
    const CONTENT: &str = "what was pulled\n";
    let layers = [
        images::base_layer()?,
        Layer::new(&[images::file("torn", CONTENT)], Packing::Gzip)?,
    ];
    env.registry().push(
        "odd/torn",
        &["latest"],
        &Image::new(&layers, &json!({}), Dialect::Oci),
    )?;
    let cri = env.cri()?;
    cri.pull(NAME)?;
    let damage = || -> Result<usize> {
        let mut count = 0;
        for layer in fs::read_dir(format!("{STATE_DIR}/images/layers"))? {
            let file = layer?.path().join("torn");
            if file.exists() {
                fs::write(file, "")?;
                count += 1;
            }
        }
        Ok(count)
    };
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    equal("layers with the file", damage()?, 1)?;
    // As a podd finds it that starts after the machine.
    fs::write(format!("{STATE_DIR}/boot-id"), "another\n")?;
    podd.start_again()?;
    eventually("the damage is found", || Ok(cri.image(NAME)?.is_none()))?;
    ensure!(
        cri.image(podd_e2e::podd::IMAGE)?.is_some(),
        "an image that is whole was given up"
    );
    cri.pull(NAME)?;
    let pod = env.pod("torn")?;
    let mut config = cri::shell("c", "cat /torn");
    config.image = Some(cri::spec(NAME));
    equal("repaired", pod.output(&config)?.as_str(), CONTENT)?;
    pod.remove()?;
    cri.remove(NAME)?;
    // For people; nothing of it is used again.
    for entry in fs::read_dir(format!("{STATE_DIR}/images/quarantine"))? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?
        } else {
            fs::remove_file(path)?
        }
    }
    Ok(())
}
