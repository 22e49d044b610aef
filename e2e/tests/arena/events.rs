//! Container events: what is told, when, with what, to whom, and what becomes of slow readers.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use podd_e2e::cri::{self, Cri, Messages};
use podd_e2e::observe::Metrics;
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, eventually, refused};

cases!("events":
    a_whole_life, status_shows_what_was_announced, all_containers_of_the_pod, what_cannot_start,
    kept_while_nobody_listens, exits_while_podd_is_away, told_again_after_a_crash, slow_reader,
    orderly_stop_ends_the_stream, status_is_ordered_among_events);

use pb::ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};

type Events = Messages<pb::ContainerEventResponse>;

const PATIENCE: Duration = Duration::from_secs(10);

fn listen(cri: &Cri) -> Result<Events> {
    Ok(cri.get_container_events(pb::GetEventsRequest {})?)
}

/// The next event of one pod. Others may be told of tests that ran before.
fn next(events: &mut Events, pod: &str) -> Result<pb::ContainerEventResponse> {
    loop {
        let event = events.next(PATIENCE)?.context("the stream ended")?;
        let status = event
            .pod_sandbox_status
            .as_ref()
            .context("no status of the pod")?;
        if status.id == pod {
            return Ok(event);
        }
    }
}

/// The next events of a pod have to be these.
fn expect(
    events: &mut Events,
    pod: &str,
    expected: &[(&str, pb::ContainerEventType)],
) -> Result<Vec<pb::ContainerEventResponse>> {
    let mut found = Vec::new();
    for (subject, kind) in expected {
        let event = next(events, pod)?;
        let told = (event.container_id.as_str(), event.container_event_type());
        ensure!(
            told == (*subject, *kind),
            "event {}: {told:?}, expected {:?}",
            found.len(),
            (subject, kind)
        );
        found.push(event);
    }
    Ok(found)
}

fn a_whole_life(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut events = listen(&cri)?;
    let pod = env.pod("life")?;
    let id = pod.started(&cri::shell("c", "exit 3"))?;
    cri.wait_exit(&id)?;
    cri.remove_ctr(&id)?;
    let (pod_id, uid) = (
        pod.id.clone(),
        pod.config.metadata.clone().context("no name")?.uid,
    );
    let running = pod.status()?;
    pod.remove()?;
    let life = [
        (pod_id.as_str(), Created),
        (&pod_id, Started),
        (&id, Created),
        (&id, Started),
        (&id, Stopped),
        (&id, Deleted),
        (&pod_id, Stopped),
        (&pod_id, Deleted),
    ];
    let found = expect(&mut events, &pod_id, &life)?;
    ensure!(
        found.windows(2).all(|two| two[0].created_at < two[1].created_at),
        "times do not grow"
    );
    let exit = &found[4].containers_statuses[0];
    equal("exit code told", exit.exit_code, 3)?;
    equal("reason told", exit.reason.as_str(), "Error")?;
    ensure!(exit.finished_at > 0, "no time of the end");
    equal(
        "status of the running pod",
        found[3].pod_sandbox_status.as_ref(),
        Some(&running),
    )?;
    let last = found[7].pod_sandbox_status.as_ref().context("no last status")?;
    equal("last state", last.state(), pb::PodSandboxState::SandboxNotready)?;
    equal("uid", last.metadata.as_ref().map(|m| m.uid.clone()), Some(uid))?;
    equal(
        "containers of a removed pod",
        found[7].containers_statuses.len(),
        0,
    )
}

/// Each event is followed at once by the question after what it announced.
fn status_shows_what_was_announced(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut events = listen(&cri)?;
    let worker = {
        let cri = cri.clone();
        std::thread::spawn(move || -> Result<(String, String)> {
            let pod = Pod::run(&cri, cri::pod_config("shows"))?;
            let id = pod.started(&cri::shell("c", "exit 0"))?;
            cri.wait_exit(&id)?;
            cri.remove_ctr(&id)?;
            let pod_id = pod.id.clone();
            pod.remove()?;
            Ok((pod_id, id))
        })
    };
    let mut seen = 0;
    while seen < 8 {
        let event = events.next(PATIENCE)?.context("the stream ended")?;
        let pod = event.pod_sandbox_status.as_ref().context("no status")?;
        if pod.metadata.as_ref().is_none_or(|m| m.name != "shows") {
            continue;
        }
        seen += 1;
        let (kind, subject) = (event.container_event_type(), event.container_id.as_str());
        if subject == pod.id {
            match (kind, cri.pod(subject)) {
                (Deleted, Ok(_)) => bail!("a deleted pod has a status"),
                (Stopped, Ok(now)) => {
                    equal("state", now.state(), pb::PodSandboxState::SandboxNotready)?;
                }
                _ => {}
            }
            continue;
        }
        // What is told is the least that the status shows: life goes on meanwhile.
        match (kind, cri.container(subject)) {
            (Deleted, Ok(_)) => bail!("a deleted container has a status"),
            (Stopped, Ok(now)) => equal("state", now.state(), pb::ContainerState::ContainerExited)?,
            (Started, Ok(now)) => ensure!(now.started_at > 0, "not started in the status"),
            _ => {}
        }
    }
    let (pod, _) = worker.join().expect("the worker does not panic")?;
    refused(
        "status of the removed pod",
        Code::NotFound,
        cri.pod_sandbox_status(pb::PodSandboxStatusRequest {
            pod_sandbox_id: pod,
            verbose: false,
        }),
    )
    .map(drop)
}

fn all_containers_of_the_pod(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut events = listen(&cri)?;
    let pod = env.pod("all")?;
    let mut first = cri::shell("first", "sleep 1000");
    first.labels.insert("tier".to_owned(), "gold".to_owned());
    let one = pod.started(&first)?;
    let two = pod.created(&cri::shell("second", "sleep 1000"))?;
    let told = [
        (pod.id.as_str(), Created),
        (&pod.id, Started),
        (&one, Created),
        (&one, Started),
        (&two, Created),
    ];
    let found = expect(&mut events, &pod.id, &told)?;
    let mut statuses = found[4].containers_statuses.clone();
    let mut expected = vec![cri.container(&one)?, cri.container(&two)?];
    statuses.sort_by(|a, b| a.id.cmp(&b.id));
    expected.sort_by(|a, b| a.id.cmp(&b.id));
    equal("statuses", statuses, expected)?;
    let request = pb::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let status = cri.pod_sandbox_status(request)?;
    equal(
        "status of the pod",
        found[4].pod_sandbox_status.clone(),
        status.status,
    )?;
    equal(
        "containers in the pod's status",
        status.containers_statuses.len(),
        2,
    )?;
    pod.remove()
}

fn what_cannot_start(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut events = listen(&cri)?;
    let pod = env.pod("cannot")?;
    // It is there and may be executed, and is no program.
    let file = Path::new(&pod.config.log_directory).join("program");
    fs::write(&file, [0; 64])?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    let mut nothing = cri::command("c", &["/program"]);
    nothing.mounts = vec![pb::Mount {
        container_path: "/program".to_owned(),
        host_path: file.display().to_string(),
        readonly: true,
        ..Default::default()
    }];
    let id = pod.created(&nothing)?;
    ensure!(cri.start(&id).is_err(), "zeros were executed");
    let told = [
        (pod.id.as_str(), Created),
        (&pod.id, Started),
        (&id, Created),
        (&id, Stopped),
    ];
    let found = expect(&mut events, &pod.id, &told)?;
    let status = found[3].containers_statuses.first().context("no status")?;
    equal("reason", status.reason.as_str(), "StartError")?;
    // What is not made is not told of.
    nothing.image = Some(cri::spec("registry.k8s.io/no-such-image:1"));
    nothing.metadata.get_or_insert_default().name = "other".to_owned();
    ensure!(
        pod.created(&nothing).is_err(),
        "a container of a missing image was made"
    );
    let pod_id = pod.id.clone();
    pod.remove()?;
    expect(
        &mut events,
        &pod_id,
        &[(&pod_id, Stopped), (&id, Deleted), (&pod_id, Deleted)],
    )
    .map(drop)
}

fn kept_while_nobody_listens(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("kept")?;
    let told = [(pod.id.as_str(), Created), (&pod.id, Started)];
    ensure!(
        Metrics::scrape()?.told("podd_events_kept")? >= 2.0,
        "nothing is kept"
    );
    expect(&mut listen(&cri)?, &pod.id, &told)?;
    // Whoever comes in time gets them; what somebody heard at once is not kept.
    let mut second = listen(&cri)?;
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    let more = [told[0], told[1], (&id, Created), (&id, Started)];
    expect(&mut second, &pod.id, &more)?;
    expect(&mut listen(&cri)?, &pod.id, &told)?;
    pod.remove()
}

fn exits_while_podd_is_away(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("away")?;
    let ids = [0, 7].map(|code| {
        let script = format!("sleep 0.3; exit {code}");
        pod.started(&cri::shell(&format!("c{code}"), &script))
            .map(|id| (id, code))
    });
    let ids: Vec<_> = ids.into_iter().collect::<Result<_>>()?;
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    std::thread::sleep(Duration::from_millis(700));
    podd.start_again()?;
    // Two readers, and both are told.
    for reader in ["first", "second"] {
        let mut events = listen(&cri)?;
        for _ in &ids {
            let event = next(&mut events, &pod.id)?;
            equal(reader, event.container_event_type(), Stopped)?;
            let (id, code) = ids
                .iter()
                .find(|(id, _)| *id == event.container_id)
                .context("of an unknown container")?;
            let statuses = &event.containers_statuses;
            equal("containers", statuses.len(), ids.len())?;
            let status = statuses.iter().find(|s| s.id == *id).context("no status")?;
            equal("exit code", status.exit_code, *code)?;
        }
    }
    pod.remove()
}

/// An exit was recorded, and podd killed: the one after it cannot know whether anybody was told.
fn told_again_after_a_crash(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("again")?;
    let id = pod.started(&cri::shell("c", "exit 4"))?;
    cri.wait_exit(&id)?;
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    podd.start_again()?;
    let event = next(&mut listen(&cri)?, &pod.id)?;
    equal(
        "event",
        (event.container_id.clone(), event.container_event_type()),
        (id, Stopped),
    )?;
    equal("exit code", event.containers_statuses[0].exit_code, 4)?;
    pod.remove()
}

/// One reader does not read while another does: the first is told how much it missed, the second misses nothing.
fn slow_reader(env: &mut Env<'_>) -> Result<()> {
    const PODS: usize = 320;
    let cri = env.cri()?;
    let start = Metrics::scrape()?;
    let (mut slow, mut fast) = (listen(&cri)?, listen(&cri)?);
    eventually("both are counted", || {
        Ok(Metrics::scrape()?.told("podd_event_readers")? == 2.0)
    })?;
    let counter = {
        let begun = Instant::now();
        std::thread::spawn(move || -> Result<usize> {
            let mut deleted = 0;
            while deleted < PODS {
                ensure!(
                    begun.elapsed() < Duration::from_secs(120),
                    "{deleted} pods told of"
                );
                let event = fast.next(PATIENCE)?.context("the stream ended")?;
                let status = event.pod_sandbox_status.context("no status")?;
                let mine = status.metadata.is_some_and(|m| m.name == "slow");
                deleted += usize::from(mine && event.container_event_type == i32::from(Deleted));
            }
            Ok(deleted)
        })
    };
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while made.fetch_add(1, Ordering::Relaxed) < PODS {
                        let mut config = cri::pod_config("slow");
                        // What the kubelet keeps there may be large, and fills the stream to the slow reader.
                        config.annotations.insert("note".to_owned(), "x".repeat(32 << 10));
                        Pod::run(&cri, config)?.remove()?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().expect("a worker does not panic"))
    })?;
    counter.join().expect("the reader does not panic")?;
    let mut before = 0;
    let end = loop {
        match slow.next(PATIENCE) {
            Ok(Some(_)) => before += 1,
            Ok(None) => bail!("the stream ended as if nothing were missing"),
            Err(status) => break status,
        }
        ensure!(before <= PODS * 4 + 1024, "nothing was missed");
    };
    equal("code", end.code(), Code::DataLoss)?;
    let missed: usize = end.message().split(' ').next().unwrap_or_default().parse()?;
    ensure!(missed > 0, "{}", end.message());
    let after = Metrics::scrape()?;
    let grew = |series: &str| Ok::<_, anyhow::Error>(after.told(series)? - start.told(series)?);
    equal("missed", grew("podd_events_missed_total")?, missed as f64)?;
    ensure!(grew("podd_events_total")? >= (PODS * 4) as f64, "{after:?}");
    contains("what to do", end.message(), "list pods and containers")?;
    // It comes back and goes on.
    let mut again = listen(&cri)?;
    let pod = env.pod("after")?;
    expect(&mut again, &pod.id, &[(&pod.id, Created), (&pod.id, Started)])?;
    pod.remove()
}

fn orderly_stop_ends_the_stream(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut events = listen(&cri)?;
    let podd = env.podd()?;
    let begun = Instant::now();
    let status = podd.end(Signal::SIGTERM)?;
    ensure!(status.success(), "podd ended with {status}");
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(5), "podd took {took:?} to stop");
    let end = loop {
        match events.next(PATIENCE) {
            Ok(Some(_)) => {}
            Ok(None) => bail!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    equal("code", end.code(), Code::Unavailable)?;
    contains("reason", end.message(), "podd is stopping")?;
    podd.start_again()?;
    // Without pods the new podd has nothing to connect; the first pod brings bridge and table back.
    env.pod("first")?.remove()
}

/// The kubelet keeps, of an event and a status, the one with the later time.
fn status_is_ordered_among_events(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut events = listen(&cri)?;
    let pod = env.pod("order")?;
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    let request = pb::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let before = cri.pod_sandbox_status(request.clone())?.timestamp;
    cri.stop(&id, 0)?;
    let after = cri.pod_sandbox_status(request)?;
    let told = [
        (pod.id.as_str(), Created),
        (&pod.id, Started),
        (&id, Created),
        (&id, Started),
        (&id, Stopped),
    ];
    let times: Vec<_> = expect(&mut events, &pod.id, &told)?
        .iter()
        .map(|e| e.created_at)
        .collect();
    ensure!(
        times[3] <= before && before < times[4] && times[4] <= after.timestamp,
        "events at {times:?}, statuses at {before} and {}",
        after.timestamp
    );
    equal(
        "state in the later status",
        after.containers_statuses[0].state(),
        pb::ContainerState::ContainerExited,
    )?;
    let pod_id = pod.id.clone();
    pod.remove()?;
    eventually("the pod is gone", || Ok(cri.pod(&pod_id).is_err()))
}
