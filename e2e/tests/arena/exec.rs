//! ExecSync: output, codes, identity, limits of time and size.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podd_e2e::cri;
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, cases, contains, equal, eventually, refused};
use crate::lifecycle::{running, sleeper};

cases!("exec":
    streams_and_code, same_world_as_the_container, command_that_is_not_there, timeout_kills_everything,
    background_child_does_not_hold_the_answer, output_is_capped, many_at_once, killed_by_signal, in_exited_container,
    identity_and_limits, input_is_empty);

fn streams_and_code(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "exec")?;
    let done = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"], 10)?;
    equal("stdout", done.stdout, b"out\n".to_vec())?;
    equal("stderr", done.stderr, b"err\n".to_vec())?;
    equal("code", done.exit_code, 3)?;
    let binary = cri.exec(&id, &["printf", "\\377\\000"], 10)?;
    equal("bytes", binary.stdout, vec![0xff, 0])?;
    pod.remove()
}

fn same_world_as_the_container(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("world")?;
    let mut config = cri::shell("c", "sleep 100000 & wait");
    config.working_dir = "/usr".to_owned();
    config.envs = vec![pb::KeyValue {
        key: "FROM".to_owned(),
        value: b"config".to_vec(),
    }];
    let id = pod.started(&config)?;
    let list = "for n in net ipc uts pid mnt cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] \
        || echo differs $n; done; pwd; echo $FROM; hostname; echo $HOSTNAME";
    equal(
        "world",
        cri.sh(&id, list)?.as_str(),
        "/usr\nconfig\nworld\nworld\n",
    )?;
    let cgroups = cri.sh(
        &id,
        "cat /proc/1/cgroup /proc/self/cgroup | grep ^0:: | sort -u | wc -l",
    )?;
    equal("distinct cgroups", cgroups.trim(), "1")?;
    pod.remove()
}

fn command_that_is_not_there(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "nocommand")?;
    match cri.exec(&id, &["/no/such/command"], 10) {
        // A shell would answer 127, and so may a runtime; an error that names the command is as good.
        Ok(done) => ensure!(
            [126, 127].contains(&done.exit_code),
            "exit code {}",
            done.exit_code
        ),
        Err(e) => contains("error", e.message(), "/no/such/command")?,
    }
    refused("no command at all", Code::InvalidArgument, cri.exec(&id, &[], 10))?;
    pod.remove()
}

fn timeout_kills_everything(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "timeout")?;
    let begun = Instant::now();
    let script = "setsid sleep 5551 & sh -c 'sleep 5552 & sleep 5553' & sleep 5554";
    refused(
        "exec",
        Code::DeadlineExceeded,
        cri.exec(&id, &["sh", "-c", script], 1),
    )?;
    let took = begun.elapsed();
    ensure!(
        (900..5000).contains(&took.as_millis()),
        "a limit of 1 s took {took:?}"
    );
    eventually("no process of the exec is left", || Ok(running("sleep 555") == 0))?;
    equal(
        "the container",
        cri.container(&id)?.state(),
        pb::ContainerState::ContainerRunning,
    )?;
    equal("the next exec", cri.sh(&id, "echo fine")?.as_str(), "fine\n")?;
    pod.remove()
}

fn background_child_does_not_hold_the_answer(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "background")?;
    let begun = Instant::now();
    // The child keeps the exec's standard output open.
    let done = cri.exec(&id, &["sh", "-c", "sleep 30 & echo started"], 20)?;
    equal("output", done.stdout, b"started\n".to_vec())?;
    ensure!(
        begun.elapsed() < Duration::from_secs(10),
        "the answer waited {:?} for a child",
        begun.elapsed()
    );
    // A probe's timeout is a second. The command has ended long before it, whatever holds its output.
    let probe = cri.exec(&id, &["sh", "-c", "sleep 30 & exit 4"], 1)?;
    equal("code of a command that ended in time", probe.exit_code, 4)?;
    cri.stop(&id, 0)?;
    pod.remove()
}

fn output_is_capped(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "flood")?;
    let done = cri.exec(
        &id,
        &[
            "sh",
            "-c",
            "head -c 20000000 /dev/zero; head -c 5 /dev/zero >&2; exit 4",
        ],
        60,
    )?;
    equal("bytes of stdout", done.stdout.len(), 16 << 20)?;
    equal("bytes of stderr", done.stderr.len(), 5)?;
    equal("code", done.exit_code, 4)?;
    pod.remove()
}

fn many_at_once(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "many")?;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..16)
            .map(|i| {
                let (cri, id) = (&cri, &id);
                scope.spawn(move || -> Result<()> {
                    for j in 0..5 {
                        let text = format!("{i}.{j}");
                        equal(
                            "output",
                            cri.sh(id, &format!("echo {text}"))?.trim(),
                            text.as_str(),
                        )?;
                    }
                    Ok(())
                })
            })
            .collect();
        all.into_iter()
            .try_for_each(|t| t.join().expect("an exec does not panic"))
    })?;
    pod.remove()
}

fn killed_by_signal(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "signal")?;
    equal(
        "code",
        cri.exec(&id, &["sh", "-c", "kill -9 $$"], 10)?.exit_code,
        137,
    )?;
    pod.remove()
}

fn in_exited_container(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("exited")?);
    let id = pod.started(&cri::shell("c", "true"))?;
    cri.wait_exit(&id)?;
    refused("exec", Code::FailedPrecondition, cri.exec(&id, &["true"], 5))?;
    pod.remove()
}

fn identity_and_limits(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("identity")?);
    let mut config = cri::shell("c", "sleep 100000 & wait");
    let security = cri::security(&mut config);
    security.run_as_user = Some(pb::Int64Value { value: 1234 });
    security.run_as_group = Some(pb::Int64Value { value: 2345 });
    security.supplemental_groups = vec![77];
    security.no_new_privs = true;
    security.capabilities = Some(pb::Capability {
        drop_capabilities: vec!["ALL".to_owned()],
        ..Default::default()
    });
    let id = pod.started(&config)?;
    let filter = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)'";
    let of_init = cri.sh(&id, &format!("{filter} /proc/1/status"))?;
    let of_exec = cri.sh(&id, &format!("{filter} /proc/self/status"))?;
    equal("identity of an exec", &of_exec, &of_init)?;
    contains("user", &of_exec, "1234\t1234")?;
    pod.remove().context("remove")
}

fn input_is_empty(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "input")?;
    equal("bytes read", cri.sh(&id, "wc -c")?.trim(), "0")?;
    pod.remove()
}
