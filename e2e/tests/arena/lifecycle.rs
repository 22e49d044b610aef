//! Containers from Created to removed: states, codes, reasons, times, stop, lists, retries.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pb::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use podd_e2e::{cri, podd};
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, eventually, log_lines, refused, skip};
use crate::resources;
use crate::sandbox::now;
use crate::stats::cgroup;

cases!("lifecycle":
    states_and_times, exit_codes_and_reasons, created_container_does_not_run, command_that_is_not_there,
    stop_with_grace, stop_without_grace, stop_is_forced_after_grace, stop_signal_of_request, stop_twice,
    remove_running_container, remove_twice, whole_process_tree_dies, list_filters, status_tells_what_was_asked,
    same_request_same_id, changed_request_is_refused, next_attempt_is_another_container, environment,
    working_directory, arguments_are_kept_exactly, orphans_are_reaped,
    process_numbers_come_back, files_that_resist, no_cgroup_of_what_is_over, a_stop_is_no_lack_of_memory,
    a_limit_smaller_than_the_set_up);

fn states_and_times(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("states")?);
    let t0 = now();
    let id = pod.created(&cri::shell("c", "sleep 0.2"))?;
    let created = cri.container(&id)?;
    equal("after create", created.state(), ContainerCreated)?;
    ensure!(
        (t0..=now()).contains(&created.created_at),
        "created_at is not now"
    );
    equal("started_at before start", created.started_at, 0)?;
    cri.start(&id)?;
    let running = cri.container(&id)?;
    equal("after start", running.state(), ContainerRunning)?;
    ensure!(
        running.started_at >= created.created_at,
        "started before it was created"
    );
    equal("finished_at while running", running.finished_at, 0)?;
    let exited = cri.wait_exit(&id)?;
    ensure!(
        exited.finished_at > exited.started_at,
        "finished before it was started"
    );
    ensure!(exited.finished_at <= now(), "finished in the future");
    pod.remove()
}

fn exit_codes_and_reasons(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("codes")?;
    for (script, code, reason) in [
        ("exit 0", 0, "Completed"),
        ("exit 1", 1, "Error"),
        ("exit 255", 255, "Error"),
        ("kill -9 $$ ; sleep 9", 137, "Error"),
        ("trap 'exit 42' TERM; kill $$; sleep 1", 42, "Error"),
    ] {
        // Process 1 of a namespace cannot kill itself, a child of it can.
        let script = if script.contains("-9") {
            "sh -c 'kill -9 $$'; exit $?"
        } else {
            script
        };
        let (status, _) = pod.ran(&cri::shell(&format!("c{code}"), script))?;
        equal(&format!("exit code of {script:?}"), status.exit_code, code)?;
        equal(&format!("reason of {script:?}"), status.reason.as_str(), reason)?;
    }
    pod.remove()
}

fn created_container_does_not_run(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("gate")?);
    let config = cri::shell("c", "echo ran");
    let id = pod.created(&config)?;
    std::thread::sleep(Duration::from_millis(100));
    let log = std::fs::read_to_string(cri::log_path(&pod.config, &config)).unwrap_or_default();
    equal("log before start", log.as_str(), "")?;
    // Its namespaces and mounts are there for an exec; its own command does not run for that.
    equal(
        "exec before start",
        cri.sh(&id, "hostname; ls /proc/1/exe 2>&1 | wc -l")?.as_str(),
        "gate\n1\n",
    )?;
    equal("after exec", cri.container(&id)?.state(), ContainerCreated)?;
    cri.start(&id)?;
    let status = cri.wait_exit(&id)?;
    equal("code", status.exit_code, 0)?;
    let log = std::fs::read_to_string(cri::log_path(&pod.config, &config))?;
    contains("log", &log, "stdout F ran\n")?;
    // A container that was never started can be removed, with what was executed in it.
    let id = pod.created(&cri::shell("never", "echo ran"))?;
    cri.sh(&id, "setsid sleep 8888 >/dev/null 2>&1 &")?;
    cri.remove_ctr(&id)?;
    equal("processes left", running("sleep 8888"), 0)?;
    pod.remove()
}

fn command_that_is_not_there(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("nocommand")?);
    for (command, expected) in [
        ("nosuch", "nosuch: executable file not found in $PATH"),
        ("/no/such", "/no/such: no such file or directory"),
        ("/etc/passwd", "/etc/passwd: permission denied"),
    ] {
        let id = pod.created(&cri::command(&command.replace('/', "-"), &[command]))?;
        let said = refused(command, Code::InvalidArgument, cri.start(&id))?;
        contains("error", &said, expected)?;
        let status = cri.container(&id)?;
        equal("state", status.state(), ContainerExited)?;
        equal(
            "end",
            (status.exit_code, status.reason.as_str()),
            (128, "StartError"),
        )?;
        contains("message", &status.message, expected)?;
        // It is over: it is not started once more, and goes like any other.
        refused("another start", Code::FailedPrecondition, cri.start(&id))?;
        cri.stop(&id, 0)?;
        cri.remove_ctr(&id)?;
    }
    pod.remove()
}

fn stop_with_grace(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("grace")?);
    let config = cri::shell(
        "c",
        "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done",
    );
    let id = pod.started(&config)?;
    eventually("the trap is set", || {
        Ok(!log_lines(&pod.config, &config)?.is_empty())
    })?;
    let begun = Instant::now();
    cri.stop(&id, 10)?;
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "a container that ends was waited for"
    );
    let status = cri.container(&id)?;
    equal("state", status.state(), ContainerExited)?;
    equal("exit code", status.exit_code, 7)?;
    // The log is drained before the exit is told.
    let last = log_lines(&pod.config, &config)?.pop().context("no log")?;
    equal("last line", last.content.as_str(), "bye")?;
    pod.remove()
}

fn stop_without_grace(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("kill")?);
    let id = pod.started(&cri::shell("c", "trap '' TERM; while :; do sleep 1; done"))?;
    let begun = Instant::now();
    cri.stop(&id, 0)?;
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "SIGKILL took {:?}",
        begun.elapsed()
    );
    let status = cri.container(&id)?;
    equal("exit code", status.exit_code, 137)?;
    equal("state", status.state(), ContainerExited)?;
    pod.remove()
}

fn stop_is_forced_after_grace(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("deaf")?);
    let config = cri::shell("c", "trap '' TERM; echo up; while :; do sleep 1; done");
    let id = pod.started(&config)?;
    eventually("the trap is set", || {
        Ok(!log_lines(&pod.config, &config)?.is_empty())
    })?;
    let begun = Instant::now();
    cri.stop(&id, 1)?;
    let took = begun.elapsed();
    ensure!(
        (900..3000).contains(&took.as_millis()),
        "a grace of 1 s took {took:?}"
    );
    equal("exit code", cri.container(&id)?.exit_code, 137)?;
    pod.remove()
}

fn stop_signal_of_request(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("signal")?);
    let mut config = cri::shell(
        "c",
        "trap 'exit 33' USR1; trap '' TERM; echo up; while :; do sleep 0.05; done",
    );
    config.stop_signal = pb::Signal::Sigusr1.into();
    let id = pod.started(&config)?;
    eventually("the trap is set", || {
        Ok(!log_lines(&pod.config, &config)?.is_empty())
    })?;
    cri.stop(&id, 10)?;
    let status = cri.container(&id)?;
    equal("exit code", status.exit_code, 33)?;
    equal("stop signal", status.stop_signal(), pb::Signal::Sigusr1)?;
    pod.remove()
}

fn stop_twice(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("twice")?);
    let id = pod.started(&cri::shell("c", "exec sleep 1000"))?;
    for round in 0..3 {
        cri.stop(&id, 0).with_context(|| format!("stop number {round}"))?;
    }
    pod.remove()
}

fn remove_running_container(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("running")?);
    let id = pod.started(&cri::shell("c", "exec sleep 1000"))?;
    // CRI: "the container must be forcibly removed if running".
    cri.remove_ctr(&id)?;
    refused("status of the removed", Code::NotFound, status(&cri, &id))?;
    pod.remove()
}

fn status(cri: &cri::Cri, id: &str) -> Result<pb::ContainerStatusResponse, Box<tonic::Status>> {
    cri.container_status(pb::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    })
}

fn remove_twice(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("gone")?);
    let id = pod.created(&cri::shell("c", "true"))?;
    cri.remove_ctr(&id)?;
    cri.remove_ctr(&id)?;
    pod.remove()
}

fn whole_process_tree_dies(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("tree")?);
    let script = "for i in 1 2 3; do setsid sh -c 'sleep 7777 & sleep 7777' & done; echo up; wait";
    let config = cri::shell("c", script);
    let id = pod.started(&config)?;
    eventually("children", || Ok(!log_lines(&pod.config, &config)?.is_empty()))?;
    cri.stop(&id, 0)?;
    let left = running("sleep 7777");
    ensure!(left == 0, "{left} processes outlived their container");
    pod.remove()
}

/// Processes of the arena whose command line contains `part`.
pub fn running(part: &str) -> usize {
    let line = |pid: &u32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    podd_e2e::census::pids()
        .iter()
        .filter(|pid| line(pid).contains(part))
        .count()
}

fn list_filters(env: &mut Env<'_>) -> Result<()> {
    let (cri, one, two) = (env.cri()?, env.pod("one")?, env.pod("two")?);
    let label = |mut config: pb::ContainerConfig, value: &str| {
        config.labels = HashMap::from([("l".to_owned(), value.to_owned())]);
        config
    };
    let a = one.started(&label(cri::shell("a", "exec sleep 1000"), "x"))?;
    let b = one.created(&label(cri::shell("b", "true"), "y"))?;
    let c = two.started(&label(cri::shell("c", "true"), "x"))?;
    cri.wait_exit(&c)?;
    let list = |filter: pb::ContainerFilter| -> Result<Vec<String>> {
        let found = cri
            .list_containers(pb::ListContainersRequest { filter: Some(filter) })?
            .containers;
        let mut ids: Vec<_> = found.into_iter().map(|c| c.id).collect();
        ids.sort();
        Ok(ids)
    };
    let sorted = |ids: &[&String]| {
        let mut ids: Vec<_> = ids.iter().map(|&i| i.clone()).collect();
        ids.sort();
        ids
    };
    let any = pb::ContainerFilter::default;
    let state = |s: pb::ContainerState| Some(pb::ContainerStateValue { state: s.into() });
    let x = HashMap::from([("l".to_owned(), "x".to_owned())]);
    equal("all", list(any())?, sorted(&[&a, &b, &c]))?;
    equal(
        "by pod",
        list(pb::ContainerFilter {
            pod_sandbox_id: one.id.clone(),
            ..any()
        })?,
        sorted(&[&a, &b]),
    )?;
    equal(
        "by label",
        list(pb::ContainerFilter {
            label_selector: x,
            ..any()
        })?,
        sorted(&[&a, &c]),
    )?;
    for (wanted, ids) in [
        (ContainerRunning, vec![a.clone()]),
        (ContainerCreated, vec![b.clone()]),
        (ContainerExited, vec![c.clone()]),
    ] {
        equal(
            &format!("{wanted:?}"),
            list(pb::ContainerFilter {
                state: state(wanted),
                ..any()
            })?,
            ids,
        )?;
    }
    equal(
        "by id",
        list(pb::ContainerFilter {
            id: b.clone(),
            ..any()
        })?,
        vec![b.clone()],
    )?;
    equal(
        "by short id",
        list(pb::ContainerFilter {
            id: b[..13].to_owned(),
            ..any()
        })?,
        vec![b.clone()],
    )?;
    one.remove()?;
    two.remove()
}

fn status_tells_what_was_asked(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("asked")?);
    let mut config = cri::shell("c", "exec sleep 1000");
    config.labels = HashMap::from([("a".to_owned(), "b".to_owned())]);
    config.annotations = HashMap::from([("note".to_owned(), "kept".to_owned())]);
    let id = pod.started(&config)?;
    let said = cri.container(&id)?;
    equal("metadata", &said.metadata, &config.metadata)?;
    equal("labels", &said.labels, &config.labels)?;
    equal("annotations", &said.annotations, &config.annotations)?;
    equal(
        "log path",
        said.log_path.clone(),
        cri::log_path(&pod.config, &config).display().to_string(),
    )?;
    let image = cri.image(podd_e2e::podd::IMAGE)?.context("no image")?;
    // Since 1.36 these are one value; the kubelet's image garbage collection compares them.
    equal("image_id", &said.image_id, &image.id)?;
    equal(
        "image",
        said.image.context("no image")?.image.as_str(),
        podd_e2e::podd::IMAGE,
    )?;
    let user = said.user.and_then(|u| u.linux).context("no user")?;
    equal("user", (user.uid, user.gid), (0, 0))?;
    pod.remove()
}

fn same_request_same_id(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("retry")?;
    equal("pod", cri.run_pod(&pod.config)?, pod.id.clone())?;
    let config = cri::shell("c", "exec sleep 1000");
    let id = pod.created(&config)?;
    equal("container", pod.created(&config)?, id.clone())?;
    // Four clients at once get one container.
    let other = cri::shell("d", "exec sleep 1000");
    let ids = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| pod.created(&other))).collect();
        calls
            .into_iter()
            .map(|c| c.join().expect("a call does not panic"))
            .collect::<Result<Vec<_>>>()
    })?;
    ensure!(
        ids.iter().all(|i| *i == ids[0]),
        "one request, several containers: {ids:?}"
    );
    pod.remove()
}

fn changed_request_is_refused(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("changed")?;
    let mut changed = pod.config.clone();
    changed.hostname = "other".to_owned();
    refused("changed pod", Code::AlreadyExists, cri.run_pod(&changed))?;
    pod.created(&cri::shell("c", "true"))?;
    refused(
        "changed container",
        Code::AlreadyExists,
        cri.create(&pod.id, &pod.config, &cri::shell("c", "false")),
    )?;
    pod.remove()
}

fn next_attempt_is_another_container(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("attempt")?;
    let mut config = cri::shell("c", "true");
    let first = pod.created(&config)?;
    config.metadata.get_or_insert_default().attempt = 1;
    let second = pod.created(&config)?;
    ensure!(first != second, "two attempts, one id");
    pod.remove()
}

fn environment(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("env")?;
    let mut config = cri::shell(
        "c",
        "printf '%s|' \"$PLAIN\" \"$EMPTY\" \"$BYTES\" | od -An -c | tr -d ' \\n'; echo $PATH",
    );
    let value = |key: &str, value: &[u8]| pb::KeyValue {
        key: key.to_owned(),
        value: value.to_vec(),
    };
    config.envs = vec![
        value("PLAIN", b"a=b c"),
        value("EMPTY", b""),
        value("BYTES", b"\xff\xfe"),
    ];
    let out = pod.output(&config)?;
    pod.remove()?;
    contains("values", &out, "a=bc||377376|")?;
    contains("PATH of the image", &out, "/usr/local/sbin:")
}

fn working_directory(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("cwd")?;
    let mut config = cri::shell("c", "pwd; stat -c '%a %u' .");
    config.working_dir = "/made/for/this".to_owned();
    let out = pod.output(&config)?;
    pod.remove()?;
    equal("working directory", out.as_str(), "/made/for/this\n755 0\n")
}

fn arguments_are_kept_exactly(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("args")?;
    let out = pod.output(&cri::command(
        "c",
        &["printf", "[%s]", "a b", "", "$HOME", "*", "ü"],
    ))?;
    pod.remove()?;
    equal("arguments", out.trim_end(), "[a b][][$HOME][*][ü]")
}

fn orphans_are_reaped(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("orphans")?);
    let long = pod.started(&cri::shell("c", "exec sleep 1000"))?;
    for _ in 0..5 {
        cri.exec(&long, &["sh", "-c", "setsid sh -c 'sleep 0.05' & exit 0"], 5)?;
    }
    let zombies = || -> usize {
        let stat = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        podd_e2e::census::pids()
            .iter()
            .filter(|pid| stat(pid).contains(") Z "))
            .count()
    };
    // Orphans of a container belong to its process 1, which here never waits: they vanish with it.
    cri.stop(&long, 0)?;
    eventually("no zombies", || Ok(zombies() == 0))?;
    pod.remove()
}

/// The kernel gives the number of a container that has ended to an exec in the same pod: each has its own end.
fn process_numbers_come_back(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let of_node = |security: &mut pb::NamespaceOption| security.pid = pb::NamespaceMode::Node.into();
    let mut config = cri::pod_config("numbers");
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    of_node(security.namespace_options.get_or_insert_default());
    let pod = Pod::run(&cri, config)?;
    let in_node = |mut container: pb::ContainerConfig| {
        of_node(
            cri::security(&mut container)
                .namespace_options
                .get_or_insert_default(),
        );
        container
    };
    let first = in_node(cri::shell("ended", "echo $$; exit 7"));
    let ended = cri.wait_exit(&pod.started(&first)?)?;
    let lines = log_lines(&pod.config, &first)?;
    let number: u32 = lines.first().context("no line")?.text().trim().parse()?;
    let id = pod.started(&in_node(cri::shell("c", "exec sleep 1000")))?;
    let mut hits = 0;
    for attempt in 0..100 {
        // Threads of podd take numbers too: how many lie between this and the exec's is not known.
        fs::write(
            "/proc/sys/kernel/ns_last_pid",
            format!("{}", number - 2 - attempt % 6),
        )?;
        let shown: u32 = cri.sh(&id, "echo $$; exit 0")?.trim().parse()?;
        hits += u32::from(shown == number);
        if hits == 3 {
            break;
        }
    }
    ensure!(hits > 0, "no exec got the number {number}");
    let after = cri.container(&ended.id)?;
    equal("status of the one that ended", after, ended)?;
    equal("the other", cri.container(&id)?.state(), ContainerRunning)?;
    pod.remove()
}

/// A pod whose container runs until it is stopped.
pub fn sleeper(env: &mut Env<'_>, name: &str) -> Result<(Pod, String)> {
    let pod = env.pod(name)?;
    let id = pod.started(&cri::shell("c", "trap 'exit 0' TERM; sleep 100000 & wait"))?;
    Ok((pod, id))
}

/// A container with CAP_LINUX_IMMUTABLE could set these flags itself; the image's busybox cannot.
fn files_that_resist(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("resist")?);
    let id = pod.started(&cri::shell("c", "exec sleep 1000"))?;
    cri.sh(&id, "mkdir -p /d/e && touch /f /d/e/g")?;
    // What an overlay keeps as an attribute of its own is a flag of the file where podd removes it.
    let root = format!("{}/pods/{}/containers/{id}/upper", podd::STATE_DIR, pod.id);
    for (flag, path) in [("+i", "f"), ("+a", "d/e/g"), ("+i", "d/e"), ("+a", "d")] {
        let set = Command::new("chattr")
            .arg(flag)
            .arg(format!("{root}/{path}"))
            .output();
        if !set.is_ok_and(|done| done.status.success()) {
            return skip("this machine has no chattr, or its file system no flags");
        }
    }
    ensure!(cri.sh(&id, "rm -rf /d").is_err(), "the flags mean nothing");
    cri.stop(&id, 0)?;
    cri.remove_ctr(&id)?;
    pod.remove()?;
    let trash = Path::new(podd::STATE_DIR).join("trash");
    eventually("the trash is empty", || {
        Ok(fs::read_dir(&trash)?.next().is_none())
    })
}

/// cAdvisor counts what has a cgroup, and the kubelet keeps the last end of each container.
fn no_cgroup_of_what_is_over(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("uncounted")?);
    let id = pod.started(&cri::shell("c", "sleep 100000"))?;
    let place = cgroup(&cri, &id)?;
    ensure!(place.exists(), "{} is none", place.display());
    cri.stop(&id, 0)?;
    eventually("the cgroup is gone", || Ok(!place.exists()))?;
    equal("state", cri.container(&id)?.state(), ContainerExited)?;
    cri.remove_ctr(&id)?;
    pod.remove()
}

/// The counter of processes killed for want of memory is never set back: an end of another kind, long after one of them,
/// is not OOMKilled.
fn a_stop_is_no_lack_of_memory(env: &mut Env<'_>) -> Result<()> {
    resources::need(&["memory"])?;
    let (cri, pod) = (env.cri()?, env.pod("memory")?);
    let script = "trap '' TERM; (x=a; while :; do x=$x$x; done); touch /met; while :; do sleep 1; done";
    let mut config = cri::shell("c", script);
    config.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        memory_limit_in_bytes: 24 * resources::MIB,
        // The child alone is killed.
        unified: HashMap::from([("memory.oom.group".to_owned(), "0".to_owned())]),
        ..Default::default()
    });
    let id = pod.started(&config)?;
    // Looked at from the node: what an exec needs may be what is killed.
    let events = cgroup(&cri, &id)?.join("memory.events");
    eventually("a child is killed", || {
        Ok(!fs::read_to_string(&events)?.contains("oom_kill 0\n"))
    })?;
    eventually("the first process goes on", || {
        Ok(cri.sh(&id, "test -e /met").is_ok())
    })?;
    cri.stop(&id, 1)?;
    let status = cri.container(&id)?;
    equal("end", (status.exit_code, status.reason.as_str()), (137, "Error"))?;
    pod.remove()
}

/// What a container may use is what its application may use: to build it may take more.
fn a_limit_smaller_than_the_set_up(env: &mut Env<'_>) -> Result<()> {
    resources::need(&["memory"])?;
    let pod = env.pod("floor")?;
    let mut config = cri::command("c", &["echo", "runs"]);
    config.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        memory_limit_in_bytes: resources::MIB,
        ..Default::default()
    });
    equal("output", pod.output(&config)?.as_str(), "runs\n")?;
    pod.remove()
}
