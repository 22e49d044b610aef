//! What hangs: podinit, the disk under a log, the server of a volume. It costs the pod that needs it, and for so long as
//! it hangs; every other request is answered, and stopping and removing always work.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use podd_e2e::hanging::{Ask, Hanging};
use podd_e2e::{cri, podd};
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, LogLine, Pod, cases, contains, equal, eventually, refused, skip};
use crate::lifecycle::sleeper;
use crate::recovery::{podinits, signal};
use crate::users;

cases!("stalls":
    a_podinit_that_hangs_keeps_nothing_alive, a_volume_that_hangs_costs_its_container_only, a_log_that_hangs_stops_nothing_else,
    a_full_disk_loses_lines_and_says_so, a_log_that_cannot_be_opened, a_full_state_directory);

/// Nothing that hangs elsewhere may make these wait.
fn answers_quickly(cri: &cri::Cri, id: &str) -> Result<()> {
    let begun = Instant::now();
    cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?;
    cri.list_containers(pb::ListContainersRequest::default())?;
    equal("exec elsewhere", cri.sh(id, "echo here")?.as_str(), "here\n")?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(3), "lists and an exec took {took:?}");
    Ok(())
}

/// podinit does not answer any more: its containers are asked to stop, are killed, are over, and are removed all the
/// same, because the kernel says what is alive.
fn a_podinit_that_hangs_keeps_nothing_alive(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (other, elsewhere) = sleeper(env, "elsewhere")?;
    let pod = env.pod("hangs")?;
    let asked = cri::shell("asked", "trap 'echo asked; exit 3' TERM; sleep 100000 & wait");
    let ids = [
        pod.started(&asked)?,
        pod.started(&cri::shell("deaf", "trap '' TERM; while :; do sleep 1; done"))?,
    ];
    let processes = [users::pid(env, &ids[0])?, users::pid(env, &ids[1])?];
    for podinit in podinits(&pod.id)? {
        signal(podinit, Signal::SIGSTOP)?;
    }
    let begun = Instant::now();
    refused("a probe", Code::DeadlineExceeded, cri.exec(&ids[0], &["true"], 2))?;
    let took = begun.elapsed();
    ensure!(
        took < Duration::from_secs(5),
        "a probe with a limit of 2 s took {took:?}"
    );
    answers_quickly(&cri, &elsewhere)?;
    cri.stop(&ids[0], 1).context("stop")?;
    equal(
        "state",
        cri.container(&ids[0])?.state(),
        pb::ContainerState::ContainerExited,
    )?;
    cri.remove_ctr(&ids[0]).context("remove")?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    })
    .context("stop the pod")?;
    for process in processes {
        ensure!(
            !fs::exists(format!("/proc/{process}"))?,
            "process {process} is left"
        );
    }
    pod.remove()?;
    other.remove()
}

/// NFS whose server is away: the container is refused when its time is over, and nobody else has waited for it.
fn a_volume_that_hangs_costs_its_container_only(env: &mut Env<'_>) -> Result<()> {
    if !Hanging::possible() {
        return skip("the kernel has no FUSE");
    }
    let (cri, dir) = (env.cri()?, tempfile::tempdir_in("/run")?);
    let (other, elsewhere) = sleeper(env, "elsewhere")?;
    let pod = env.pod("volume")?;
    let server = Hanging::mount(dir.path())?;
    let mut config = cri::shell("c", "echo data >/data/file && cat /data/file");
    config.mounts = vec![pb::Mount {
        host_path: dir.path().join("share").display().to_string(),
        container_path: "/data".to_owned(),
        ..Default::default()
    }];
    server.hold(Ask::Lookup);
    let message = std::thread::scope(|scope| -> Result<String> {
        let asked = scope.spawn(|| cri.create(&pod.id, &pod.config, &config));
        eventually("somebody waits for the volume", || Ok(server.waiting() > 0))?;
        while !asked.is_finished() {
            answers_quickly(&cri, &elsewhere)?;
            // Another container of the same pod.
            pod.output(&cri::shell("beside", "true"))?;
            std::thread::sleep(Duration::from_millis(500));
        }
        let answer = asked.join().expect("a call does not panic");
        refused("a container with it", Code::DeadlineExceeded, answer)
    })?;
    contains("names it", &message, "share did not answer within 30 s")?;
    server.release();
    // The name is free, and the server is back.
    equal("output", pod.output(&config)?.as_str(), "data\n")?;
    pod.remove()?;
    other.remove()
}

/// The disk below a log does not answer: what the container writes waits for it, and is there when it does. Meanwhile
/// its pod is as alive as any other, a command can be run, and a container that has no such log goes on.
fn a_log_that_hangs_stops_nothing_else(env: &mut Env<'_>) -> Result<()> {
    if !Hanging::possible() {
        return skip("the kernel has no FUSE");
    }
    let (cri, pod) = (env.cri()?, env.pod("log")?);
    let disk = Hanging::mount(std::path::Path::new(&pod.config.log_directory))?;
    let mut quiet = cri::shell("quiet", "trap 'exit 4' TERM; sleep 100000 & wait");
    quiet.log_path = String::new();
    let quiet = pod.started(&quiet)?;
    let talks = cri::shell(
        "c",
        "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo line $i; sleep 0.001; done; exit 5",
    );
    let id = pod.started(&talks)?;
    eventually("the first lines", || Ok(!disk.content("c.log").is_empty()))?;
    disk.hold(Ask::Write);
    eventually("a write waits", || Ok(disk.waiting() > 0))?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(500));
        answers_quickly(&cri, &quiet)?;
    }
    // The other containers of the pod come and go.
    let begun = Instant::now();
    cri.stop(&quiet, 10)?;
    equal("exit code of the quiet one", cri.container(&quiet)?.exit_code, 4)?;
    let mut late = cri::shell("late", "exit 6");
    late.log_path = String::new();
    let late = pod.started(&late)?;
    equal("exit code of a late one", cri.wait_exit(&late)?.exit_code, 6)?;
    let took = begun.elapsed();
    ensure!(
        took < Duration::from_secs(5),
        "a stop and a container took {took:?}"
    );
    // What hangs itself can be stopped and removed, too: the kernel says when it is over.
    let stopped = pod.started(&cri::shell("stopped", "while :; do echo x; done"))?;
    cri.stop(&stopped, 0)?;
    equal(
        "state of the stopped one",
        cri.container(&stopped)?.state(),
        pb::ContainerState::ContainerExited,
    )?;
    disk.release();
    cri.remove_ctr(&stopped)?;
    equal("exit code", cri.wait_exit(&id)?.exit_code, 5)?;
    let text = String::from_utf8(disk.content("c.log"))?;
    let lines = crate::case::parse_log(&text)?;
    let expected = (1..=1000).map(|i| format!("line {i}"));
    ensure!(
        lines.iter().map(|line| line.content.clone()).eq(expected),
        "{} of 1000 lines: {:?}",
        lines.len(),
        lines.last()
    );
    cri.remove_ctr(&id)?;
    drop(disk);
    pod.remove()
}

/// A disk without room: the container goes on, what is lost is counted where people look, and what comes later is whole.
fn a_full_disk_loses_lines_and_says_so(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("full")?);
    let small = Small::over(&pod.config.log_directory, "size=256k")?;
    let done = (|| {
        let script =
            "seq 1 100000; touch /full; while ! [ -e /room ]; do sleep 0.05; done; echo after; exit 7";
        let config = cri::shell("c", script);
        let id = pod.started(&config)?;
        eventually("the container goes on", || {
            Ok(cri.sh(&id, "test -e /full").is_ok())
        })?;
        // As an operator makes room; the log itself is rotated by the kubelet.
        let log = cri::log_path(&pod.config, &config);
        let before = fs::read_to_string(&log)?;
        fs::rename(&log, log.with_extension("old"))?;
        fs::write(log.with_extension("old"), "")?;
        cri.reopen_container_log(pb::ReopenContainerLogRequest {
            container_id: id.clone(),
        })?;
        cri.sh(&id, "touch /room")?;
        equal("exit code", cri.wait_exit(&id)?.exit_code, 7)?;
        // Lines of the container, and how many podd says are missing.
        let after = fs::read_to_string(&log)?;
        let lines = crate::case::parse_log(&format!("{before}{after}"))?;
        let missing = |line: &LogLine| {
            line.content
                .strip_prefix("podd: ")?
                .split(' ')
                .next()?
                .parse::<usize>()
                .ok()
        };
        let lost: usize = lines.iter().filter_map(missing).sum();
        let whole = |at: usize, line: &LogLine| line.content == (at + 1).to_string();
        let kept = lines
            .iter()
            .enumerate()
            .take_while(|(at, line)| whole(*at, line))
            .count();
        // The line that was torn may be counted, or have been whole.
        ensure!(
            lost > 0 && (100_000..=100_001).contains(&(kept + lost)),
            "{kept} lines are there, {lost} are said to be missing"
        );
        let last = lines.last().context("no log")?;
        equal("what came when there was room", last.content.as_str(), "after")?;
        contains("what is said of it", &after, " lines are missing here")?;
        Ok(())
    })();
    drop(small);
    done?;
    pod.remove()
}

/// The directory of a log does not answer: what needs it is given up, and holds nothing that others need.
fn a_log_that_cannot_be_opened(env: &mut Env<'_>) -> Result<()> {
    if !Hanging::possible() {
        return skip("the kernel has no FUSE");
    }
    configure(env, &(podd::config() + "\n[timeouts]\ncreate_seconds = 1\n"))?;
    let cri = env.cri()?;
    let (other, elsewhere) = sleeper(env, "elsewhere")?;
    let pod = env.pod("log")?;
    let disk = Hanging::mount(std::path::Path::new(&pod.config.log_directory))?;
    let id = pod.started(&cri::shell("c", "exec sleep 1000"))?;
    let tasks = format!("/proc/{}/task", env.podd()?.pid());
    let threads = || -> Result<usize> { Ok(fs::read_dir(&tasks)?.count()) };
    disk.hold(Ask::Lookup);
    let before = threads()?;
    std::thread::scope(|scope| -> Result<()> {
        let reopen = || {
            cri.reopen_container_log(pb::ReopenContainerLogRequest {
                container_id: id.clone(),
            })
        };
        let reopened: Vec<_> = (0..20).map(|_| scope.spawn(reopen)).collect();
        let created = scope.spawn(|| cri.create(&pod.id, &pod.config, &cri::shell("new", "true")));
        eventually("somebody waits for the disk", || Ok(disk.waiting() > 0))?;
        std::thread::sleep(Duration::from_secs(1));
        // Clients that ask again and again do not use up podd's threads.
        let more = threads()?.saturating_sub(before);
        ensure!(more < 15, "{more} threads wait for the disk");
        answers_quickly(&cri, &elsewhere)?;
        for reopened in reopened {
            let answer = reopened.join().expect("a call does not panic");
            refused("a reopened log", Code::DeadlineExceeded, answer)?;
        }
        let answer = created.join().expect("a call does not panic");
        refused("a new container", Code::DeadlineExceeded, answer).map(drop)
    })?;
    // The pod can be removed while its disk hangs.
    cri.remove_pod(&pod.id)?;
    drop(disk);
    pod.remove()?;
    other.remove()?;
    configure(env, &podd::config())?;
    // The new podd has nothing to connect; the first pod brings bridge and table back.
    env.pod("first")?.remove()
}

/// Starts podd again with another configuration.
fn configure(env: &mut Env<'_>, config: &str) -> Result<()> {
    fs::write(podd::CONFIG, config)?;
    let podd = env.podd()?;
    podd.end(Signal::SIGTERM)?;
    podd.start_again()
}

/// The disk of the state directory is full: nothing new is made, and everything that is there can be ended and removed,
/// which is what makes room again.
fn a_full_state_directory(env: &mut Env<'_>) -> Result<()> {
    const UNUSED: &str = "gcr.io/k8s-staging-cri-tools/test-image-3:latest";
    const FILL: &str = "/var/lib/podd/fill";
    let cri = env.cri()?;
    env.podd()?.end(Signal::SIGTERM)?;
    let small = Small::over(podd::STATE_DIR, "size=96m")?;
    env.podd()?.start_again()?;
    cri.pull(podd::IMAGE)?;
    cri.pull(UNUSED)?;
    let pod = env.pod("full")?;
    let ends = pod.started(&cri::shell(
        "ends",
        "while ! [ -e /end ]; do sleep 0.05; done; exit 3",
    ))?;
    let runs = pod.started(&cri::shell("runs", "exec sleep 1000"))?;
    let created = pod.created(&cri::shell("created", "true"))?;
    cri.sh(&ends, "touch /end.soon")?;
    let mut fill = fs::File::create(FILL)?;
    let full = std::io::copy(&mut std::io::repeat(0), &mut fill);
    ensure!(
        full.is_err_and(|e| e.kind() == std::io::ErrorKind::StorageFull),
        "it is not full"
    );
    let asked = cri::pod_config("new");
    refused("a pod", Code::ResourceExhausted, cri.run_pod(&asked))?;
    let new = cri::shell("new", "true");
    refused(
        "a container",
        Code::ResourceExhausted,
        cri.create(&pod.id, &pod.config, &new),
    )?;
    env.podd()?.end(Signal::SIGKILL)?;
    env.podd()?.start_again().context("start on a full disk")?;
    cri.sh(&ends, "mv /end.soon /end")?;
    equal("exit code", cri.wait_exit(&ends)?.exit_code, 3)?;
    cri.stop(&runs, 0)?;
    equal(
        "state",
        cri.container(&runs)?.state(),
        pb::ContainerState::ContainerExited,
    )?;
    for id in [&ends, &created] {
        cri.remove_ctr(id)?;
    }
    cri.remove(UNUSED).context("remove an image")?;
    ensure!(cri.image(UNUSED)?.is_none(), "the image is there");
    pod.remove()?;
    fs::remove_file(FILL)?;
    let again = Pod::run(&cri, asked)?;
    again.output(&cri::shell("c", "true"))?;
    again.remove()?;
    ensure!(
        fs::metadata("/var/lib/podd/reserve")?.len() > 0,
        "nothing is kept for the next time"
    );
    env.podd()?.end(Signal::SIGTERM)?;
    drop(small);
    env.podd()?.start_again()?;
    // The new podd has nothing to connect; the first pod brings bridge and table back.
    env.pod("first")?.remove()
}

/// A small file system over a directory, until it is dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn over(at: &str, options: &str) -> Result<Self> {
        mount(Some("small"), at, Some("tmpfs"), MsFlags::empty(), Some(options))?;
        Ok(Self(at.into()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
