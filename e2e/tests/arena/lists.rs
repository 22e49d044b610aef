//! Long lists: one message up to the limit, streams beyond it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::cri::{self, Cri};
use podd_e2e::podd::STATE_DIR;
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, eventually, refused};

cases!("lists": streams_have_what_lists_have, twenty_thousand_containers);

const PATIENCE: Duration = Duration::from_secs(60);

fn ids<T>(items: Vec<T>, id: fn(T) -> String) -> Vec<String> {
    let mut ids: Vec<_> = items.into_iter().map(id).collect();
    ids.sort();
    ids
}

fn streams_have_what_lists_have(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (one, two) = (env.pod("one")?, env.pod("two")?);
    for name in ["a", "b", "c"] {
        one.started(&cri::shell(name, "sleep 1000"))?;
    }
    let mut labelled = cri::shell("d", "sleep 1000");
    labelled.labels.insert("tier".to_owned(), "gold".to_owned());
    let gold = two.started(&labelled)?;

    let pods = cri
        .stream_pod_sandboxes(pb::StreamPodSandboxesRequest { filter: None })?
        .all()?;
    ensure!(pods.iter().all(|m| m.pod_sandboxes.len() == 1), "not one in each");
    let listed = cri
        .list_pod_sandbox(pb::ListPodSandboxRequest { filter: None })?
        .items;
    let streamed = pods.into_iter().flat_map(|m| m.pod_sandboxes).collect();
    equal("pods", ids(streamed, |p| p.id), ids(listed, |p| p.id))?;

    let containers = cri
        .stream_containers(pb::StreamContainersRequest { filter: None })?
        .all()?;
    ensure!(
        containers.iter().all(|m| m.containers.len() == 1),
        "not one in each"
    );
    let mut streamed: Vec<_> = containers.into_iter().flat_map(|m| m.containers).collect();
    let mut listed = cri
        .list_containers(pb::ListContainersRequest { filter: None })?
        .containers;
    streamed.sort_by(|a, b| a.id.cmp(&b.id));
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    equal("containers", streamed, listed.clone())?;

    let filter = Some(pb::ContainerFilter {
        label_selector: HashMap::from([("tier".to_owned(), "gold".to_owned())]),
        ..Default::default()
    });
    let found = cri
        .stream_containers(pb::StreamContainersRequest { filter })?
        .all()?;
    let found = found.into_iter().flat_map(|m| m.containers).collect();
    equal("by label", ids(found, |c| c.id), vec![gold])?;

    let stats = cri
        .stream_container_stats(pb::StreamContainerStatsRequest { filter: None })?
        .all()?;
    let streamed = stats.into_iter().flat_map(|m| m.container_stats).collect();
    let id = |s: pb::ContainerStats| s.attributes.map(|a| a.id).unwrap_or_default();
    equal("stats", ids(streamed, id), ids(listed, |c| c.id))?;
    let stats = cri
        .stream_pod_sandbox_stats(pb::StreamPodSandboxStatsRequest { filter: None })?
        .all()?;
    let streamed = stats.into_iter().flat_map(|m| m.pod_sandbox_stats).collect();
    let id = |s: pb::PodSandboxStats| s.attributes.map(|a| a.id).unwrap_or_default();
    let expected = vec![one.id.clone(), two.id.clone()];
    equal("stats of pods", ids(streamed, id), ids(expected, |id| id))?;

    let images = cri
        .stream_images(pb::StreamImagesRequest { filter: None })?
        .all()?;
    ensure!(images.iter().all(|m| m.images.len() == 1), "not one in each");
    let streamed = images.into_iter().flat_map(|m| m.images).collect();
    let listed = cri.list_images(pb::ListImagesRequest { filter: None })?.images;
    equal("images", ids(streamed, |i| i.id), ids(listed, |i| i.id))?;
    one.remove()?;
    two.remove()
}

/// A container with the labels and annotations that the kubelet gives each.
fn of_kubelet() -> pb::ContainerConfig {
    let mut config = cri::shell("application", "exit 0");
    let labels = [
        ("container.name", "application"),
        ("pod.name", "application-5f6d8c7b9d-x2x7k"),
        ("pod.namespace", "production-europe-west"),
        ("pod.uid", "0b7c1c3e-6f5d-4b1e-9f3e-5d2a7c9e8b41"),
    ];
    let ports = r#"[{"name":"http","containerPort":8080,"protocol":"TCP"}]"#;
    let annotations = [
        ("container.hash", "6f3a9c1d"),
        ("container.ports", ports),
        ("container.restartCount", "17"),
        ("container.terminationMessagePath", "/dev/termination-log"),
        ("container.terminationMessagePolicy", "File"),
        ("pod.terminationGracePeriod", "30"),
        (
            "container.preStopHandler",
            r#"{"exec":{"command":["/bin/sh","-c","sleep 10"]}}"#,
        ),
    ];
    let pair = |(key, value): (&str, &str)| (format!("io.kubernetes.{key}"), value.to_owned());
    config.labels = labels.map(pair).into();
    config.annotations = annotations.map(pair).into();
    config
}

const PODS: usize = 200;
const EACH: usize = 100;

/// An id like no other.
fn id(number: usize) -> String {
    format!("{number:064x}")
}

/// Writes copies of a stopped pod and of its container that is over, as a podd before would have left them.
fn copies(pod: &Path, container: &Path) -> Result<()> {
    let text = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let (of_pod, of_container) = (
        text(&pod.join("pod.json"))?,
        text(&container.join("container.json"))?,
    );
    let name = |path: &Path| -> Result<String> {
        let name = path.file_name().and_then(|n| n.to_str()).context("no name")?;
        Ok(name.to_owned())
    };
    let (pod_id, container_id) = (name(pod)?, name(container)?);
    for i in 0..PODS {
        let copy = pod.with_file_name(id(i));
        fs::create_dir_all(&copy)?;
        fs::write(copy.join("pod.json"), of_pod.replace(&pod_id, &id(i)))?;
        let in_copy = of_container.replace(&pod_id, &id(i));
        for j in 0..EACH {
            let new = id(PODS + i * EACH + j);
            let dir = copy.join("containers").join(&new);
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("container.json"), in_copy.replace(&container_id, &new))?;
        }
    }
    Ok(())
}

fn twenty_thousand_containers(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("many")?;
    let first = pod.started(&of_kubelet())?;
    cri.wait_exit(&first)?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    })?;
    let pods = Path::new(STATE_DIR).join("pods");
    let dir = pods.join(&pod.id);
    let result = {
        env.podd()?.end(Signal::SIGTERM)?;
        copies(&dir, &dir.join("containers").join(&first))?;
        env.podd()?.launch_again()?;
        eventually("podd has read all records", || {
            Ok(cri.version(pb::VersionRequest::default()).is_ok())
        })?;
        ask(&cri, &pod)
    };
    env.podd()?.end(Signal::SIGTERM)?;
    let copies: Vec<PathBuf> = (0..PODS).map(|i| pods.join(id(i))).collect();
    copies.iter().try_for_each(fs::remove_dir_all)?;
    env.podd()?.start_again()?;
    result?;
    pod.remove()?;
    // A podd without pods that run has nothing to connect; the first pod brings bridge and table back.
    env.pod("first")?.remove()
}

fn ask(cri: &Cri, pod: &Pod) -> Result<()> {
    let begun = Instant::now();
    let mut stream = cri.stream_containers(pb::StreamContainersRequest { filter: None })?;
    let mut seen = HashSet::new();
    // Whoever has begun sees all that was there, whatever becomes of it.
    let late = id(PODS + PODS * EACH - 1);
    let mut removed = false;
    while let Some(message) = stream.next(PATIENCE)? {
        let [container] = message.containers.as_slice() else {
            anyhow::bail!("{} containers in a message", message.containers.len());
        };
        ensure!(seen.insert(container.id.clone()), "{} comes twice", container.id);
        if !removed {
            cri.remove_ctr(&late)?;
            removed = true;
        }
    }
    equal("containers streamed", seen.len(), PODS * EACH + 1)?;
    ensure!(seen.contains(&late), "the stream changed after it had begun");
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(60), "streaming took {took:?}");

    let message = refused(
        "all in one message",
        Code::ResourceExhausted,
        cri.list_containers(pb::ListContainersRequest { filter: None }),
    )?;
    for part in [
        "ListContainers",
        "16777216 bytes",
        "use StreamContainers",
        "CRIListStreaming",
    ] {
        contains("what to do", &message, part)?;
    }
    let of_one = pb::ContainerFilter {
        pod_sandbox_id: id(7),
        ..Default::default()
    };
    let listed = cri.list_containers(pb::ListContainersRequest { filter: Some(of_one) })?;
    equal("of one pod", listed.containers.len(), EACH)?;
    let pods = cri
        .stream_pod_sandboxes(pb::StreamPodSandboxesRequest { filter: None })?
        .all()?;
    equal("pods", pods.len(), PODS + 1)?;
    // Those that are over have no counters; and podd does its work beside so many.
    let stats = cri
        .stream_container_stats(pb::StreamContainerStatsRequest { filter: None })?
        .all()?;
    equal("statistics", stats.len(), 0)?;
    equal(
        "state of the first pod",
        pod.status()?.state(),
        pb::PodSandboxState::SandboxNotready,
    )
}
