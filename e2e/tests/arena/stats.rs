//! Statistics agree with the kernel's files, and say nothing where those say nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, Pod, cases, equal, eventually, refused};

cases!("stats":
    counters_agree_with_the_cgroup, rate_of_a_busy_container, containers_that_are_over_are_left_out, filters,
    unknown_ids, writable_layer, pod_counters, network_as_the_pod_sees_it, host_network_has_none,
    a_second_daemon_goes_on);

pub(crate) fn stats(cri: &Cri, id: &str) -> Result<pb::ContainerStats> {
    let request = pb::ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    cri.container_stats(request)?
        .stats
        .context("no stats in the answer")
}

fn list(cri: &Cri, filter: pb::ContainerStatsFilter) -> Result<Vec<String>> {
    let request = pb::ListContainerStatsRequest { filter: Some(filter) };
    let stats = cri.list_container_stats(request)?.stats;
    let ids = stats.into_iter().map(|s| s.attributes.map(|a| a.id));
    let mut ids: Vec<String> = ids.collect::<Option<_>>().context("stats without attributes")?;
    ids.sort();
    Ok(ids)
}

pub(crate) fn linux(cri: &Cri, pod: &Pod) -> Result<pb::LinuxPodSandboxStats> {
    let request = pb::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let stats = cri
        .pod_sandbox_stats(request)?
        .stats
        .context("no stats in the answer")?;
    equal(
        "id",
        stats.attributes.context("no attributes")?.id,
        pod.id.clone(),
    )?;
    stats.linux.context("no linux stats")
}

/// The cgroup of a container, from the verbose status.
pub fn cgroup(cri: &Cri, id: &str) -> Result<PathBuf> {
    let request = pb::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let info = cri.container_status(request)?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    let path = info["cgroup"].as_str().context("no cgroup")?;
    Ok(Path::new("/sys/fs/cgroup").join(path))
}

/// A key of a flat keyed file, or the whole of a file with one number; `None` where there is no such file.
fn counter(dir: &Path, file: &str, key: Option<&str>) -> Result<Option<u64>> {
    let Ok(text) = fs::read_to_string(dir.join(file)) else {
        return Ok(None);
    };
    let value = match key {
        None => Some(text.trim()),
        Some(key) => text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')),
    };
    Ok(Some(
        value.with_context(|| format!("no {key:?} in {file}"))?.parse()?,
    ))
}

pub(crate) fn value(number: Option<pb::UInt64Value>) -> Option<u64> {
    number.map(|n| n.value)
}

const BUSY: &str = "while :; do :; done";

fn counters_agree_with_the_cgroup(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("agree")?);
    let id = pod.started(&cri::shell("c", BUSY))?;
    let dir = cgroup(&cri, &id)?;
    std::thread::sleep(Duration::from_millis(100));

    let usec = || counter(&dir, "cpu.stat", Some("usage_usec"));
    let before = usec()?.context("no cpu.stat")?;
    let stats = stats(&cri, &id)?;
    let after = usec()?.context("no cpu.stat")?;
    let attributes = stats.attributes.context("no attributes")?;
    equal("id", attributes.id, id.clone())?;
    equal(
        "name",
        attributes.metadata.context("no metadata")?.name.as_str(),
        "c",
    )?;
    let cpu = stats.cpu.context("no cpu")?;
    let nanos = value(cpu.usage_core_nano_seconds).context("no cpu time")?;
    ensure!(
        (before * 1000..=after * 1000).contains(&nanos),
        "{before} us before, {after} us after, and {nanos} ns"
    );
    ensure!(cpu.timestamp > 0, "no time of reading");
    equal(
        "cpu pressure",
        cpu.psi.is_some(),
        dir.join("cpu.pressure").exists(),
    )?;
    equal(
        "io pressure",
        stats.io.is_some(),
        dir.join("io.pressure").exists(),
    )?;

    let memory = stats.memory.context("no memory")?;
    ensure!(memory.timestamp > 0, "no time of reading");
    equal(
        "memory pressure",
        memory.psi.is_some(),
        dir.join("memory.pressure").exists(),
    )?;
    let current = counter(&dir, "memory.current", None)?;
    let used = value(memory.usage_bytes);
    equal("usage is there", used.is_some(), current.is_some())?;
    if let (Some(used), Some(set), Some(current)) = (used, value(memory.working_set_bytes), current) {
        ensure!(set <= used, "working set {set} of {used}");
        ensure!(used.abs_diff(current) < 16 << 20, "{used} and {current} bytes");
        let anon = counter(&dir, "memory.stat", Some("anon"))?;
        equal("rss", value(memory.rss_bytes).is_some(), anon.is_some())?;
    }
    pod.remove()
}

fn rate_of_a_busy_container(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("busy")?);
    let id = pod.started(&cri::shell("c", BUSY))?;
    let sample = || -> Result<(u64, i64, Option<u64>)> {
        let cpu = stats(&cri, &id)?.cpu.context("no cpu")?;
        let time = value(cpu.usage_core_nano_seconds).context("no cpu time")?;
        Ok((time, cpu.timestamp, value(cpu.usage_nano_cores)))
    };
    let first = sample()?;
    equal("a rate of one sample", first.2, None)?;
    std::thread::sleep(Duration::from_millis(1100));
    let second = sample()?;
    let rate = second.2.context("no rate after two samples")?;
    let elapsed = u64::try_from(second.1 - first.1)?;
    let expected = (second.0 - first.0) as f64 * 1e9 / elapsed as f64;
    ensure!(
        (rate as f64 - expected).abs() < expected * 0.1,
        "{rate}, expected about {expected}"
    );
    // Asked again at once, the rate of the last window stays.
    equal("rate", sample()?.2, Some(rate))?;
    pod.remove()
}

fn containers_that_are_over_are_left_out(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("over")?);
    let running = pod.started(&cri::shell("running", "sleep 1000"))?;
    let created = pod.created(&cri::shell("created", "sleep 1000"))?;
    let over = pod.started(&cri::shell("over", "exit 3"))?;
    cri.wait_exit(&over)?;
    let of_pod = pb::ContainerStatsFilter {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    let mut expected = [running, created];
    expected.sort();
    equal("listed", list(&cri, of_pod)?.as_slice(), expected.as_slice())?;
    let over = cri.container_stats(pb::ContainerStatsRequest { container_id: over });
    refused("one that is over", Code::FailedPrecondition, over)?;
    pod.remove()
}

fn filters(env: &mut Env<'_>) -> Result<()> {
    let (cri, one, two) = (env.cri()?, env.pod("one")?, env.pod("two")?);
    let mut labelled = cri::shell("c", "sleep 1000");
    labelled.labels.insert("tier".to_owned(), "gold".to_owned());
    let first = one.started(&labelled)?;
    let second = two.started(&cri::shell("c", "sleep 1000"))?;
    let of = |id: &str, pod: &str, tier: Option<&str>| pb::ContainerStatsFilter {
        id: id.to_owned(),
        pod_sandbox_id: pod.to_owned(),
        label_selector: tier
            .map(|t| ("tier".to_owned(), t.to_owned()))
            .into_iter()
            .collect(),
    };
    let ids = |of: &[&String]| {
        let mut ids: Vec<String> = of.iter().map(|id| (*id).clone()).collect();
        ids.sort();
        ids
    };
    for (what, filter, expected) in [
        ("all", of("", "", None), ids(&[&first, &second])),
        ("id", of(&first, "", None), ids(&[&first])),
        ("beginning of an id", of(&second[..13], "", None), ids(&[&second])),
        ("pod", of("", &two.id, None), ids(&[&second])),
        ("label", of("", "", Some("gold")), ids(&[&first])),
        ("other value", of("", "", Some("tin")), ids(&[])),
        ("pod and label", of("", &two.id, Some("gold")), ids(&[])),
    ] {
        equal(what, list(&cri, filter)?, expected)?;
    }
    let without = cri.list_container_stats(pb::ListContainerStatsRequest::default())?;
    equal("without a filter", without.stats.len(), 2)?;
    let pods = |id: &str| -> Result<usize> {
        let filter = Some(pb::PodSandboxStatsFilter {
            id: id.to_owned(),
            ..Default::default()
        });
        Ok(cri
            .list_pod_sandbox_stats(pb::ListPodSandboxStatsRequest { filter })?
            .stats
            .len())
    };
    equal("pods", (pods("")?, pods(&one.id)?, pods("none")?), (2, 1, 0))?;
    one.remove()?;
    two.remove()
}

fn unknown_ids(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let container = cri.container_stats(pb::ContainerStatsRequest {
        container_id: "0123".repeat(16),
    });
    refused("container", Code::NotFound, container)?;
    let pod = cri.pod_sandbox_stats(pb::PodSandboxStatsRequest {
        pod_sandbox_id: "0123".repeat(16),
    });
    refused("pod", Code::NotFound, pod)?;
    Ok(())
}

fn writable_layer(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("layer")?);
    let measured = |id: &str| -> Result<(u64, u64, String)> {
        let mut found = None;
        eventually("the layer is measured", || {
            found = stats(&cri, id)?.writable_layer;
            Ok(found.is_some())
        })?;
        let layer = found.context("no layer")?;
        ensure!(layer.timestamp > 0, "no time of reading");
        let bytes = value(layer.used_bytes).context("no bytes")?;
        let inodes = value(layer.inodes_used).context("no inodes")?;
        Ok((bytes, inodes, layer.fs_id.context("no file system")?.mountpoint))
    };
    let fresh = measured(&pod.started(&cri::shell("fresh", "sleep 1000"))?)?;
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    cri.sh(
        &id,
        "mkdir -p /data && cd /data && touch a b c && head -c 3000000 /dev/zero >d && sync",
    )?;
    let written = measured(&id)?;
    let bytes = written.0 - fresh.0;
    ensure!((3_000_000..4_000_000).contains(&bytes), "{bytes} bytes");
    // The directory and four files, beside what the mounts of any container need.
    equal("inodes", written.1 - fresh.1, 5)?;
    let info = cri.image_fs_info(pb::ImageFsInfoRequest::default())?;
    let of_containers = info.container_filesystems.into_iter().find_map(|f| f.fs_id);
    equal(
        "mount point",
        Some(written.2),
        of_containers.map(|f| f.mountpoint),
    )?;
    pod.remove()
}

fn pod_counters(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("counters")?);
    let mut ids = vec![
        pod.started(&cri::shell("busy", BUSY))?,
        pod.started(&cri::shell("idle", "sleep 1000"))?,
    ];
    ids.sort();
    let dir = cgroup(&cri, &ids[0])?;
    let dir = dir.parent().context("a container's cgroup is its pod's child")?;
    let usec = || counter(dir, "cpu.stat", Some("usage_usec"));
    let before = usec()?.context("no cpu.stat")?;
    let linux = linux(&cri, &pod)?;
    let after = usec()?.context("no cpu.stat")?;
    let nanos = value(linux.cpu.context("no cpu")?.usage_core_nano_seconds).context("no cpu time")?;
    ensure!(
        (before * 1000..=after * 1000).contains(&nanos),
        "{before} us before, {after} us after, and {nanos} ns"
    );
    ensure!(linux.memory.is_some_and(|m| m.timestamp > 0), "no memory");
    let inside: Vec<String> = linux
        .containers
        .into_iter()
        .filter_map(|c| Some(c.attributes?.id))
        .collect();
    equal("containers", inside, ids)?;
    let processes = value(linux.process.context("no processes")?.process_count);
    equal("processes", processes, Some(2))?;
    pod.remove()
}

fn network_as_the_pod_sees_it(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("traffic")?);
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    // Received 1 MB in large parts, sent little: the two directions cannot be taken for each other.
    let listener = std::net::TcpListener::bind("0.0.0.0:7071")?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        use std::io::Write as _;
        listener.accept()?.0.write_all(&vec![b'x'; 1 << 20])
    });
    let script = "nc $(ip route | awk '/default/{print $3}') 7071 </dev/null | wc -c";
    let got = cri.sh(&id, script);
    if got.is_err() {
        drop(std::net::TcpStream::connect("127.0.0.1:7071"));
    }
    let _ = sender.join();
    equal("received", got?.trim(), "1048576")?;

    let inside = || -> Result<(u64, u64)> {
        let text = cri.sh(&id, "cat /sys/class/net/eth0/statistics/[rt]x_bytes")?;
        let mut numbers = text.split_whitespace().map(str::parse);
        Ok((
            numbers.next().context("no rx")??,
            numbers.next().context("no tx")??,
        ))
    };
    let before = inside()?;
    let network = linux(&cri, &pod)?.network.context("no network")?;
    let after = inside()?;
    let names: Vec<&str> = network.interfaces.iter().map(|i| i.name.as_str()).collect();
    equal("the other interfaces", names.as_slice(), ["lo"].as_slice())?;
    let interface = network.default_interface.context("no interface")?;
    equal("name", interface.name.as_str(), "eth0")?;
    let (rx, tx) = (value(interface.rx_bytes), value(interface.tx_bytes));
    let (rx, tx) = (rx.context("no rx")?, tx.context("no tx")?);
    ensure!(rx > 1 << 20 && tx < 1 << 19, "received {rx}, sent {tx}");
    ensure!(
        (before.0..=after.0).contains(&rx),
        "received {rx}, {before:?} to {after:?}"
    );
    ensure!(
        (before.1..=after.1).contains(&tx),
        "sent {tx}, {before:?} to {after:?}"
    );
    pod.remove()
}

fn host_network_has_none(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut config = cri::pod_config("host");
    config.hostname = String::new();
    let security = config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = pb::NamespaceMode::Node.into();
    let pod = Pod::run(&cri, config)?;
    ensure!(
        linux(&cri, &pod)?.network.is_none(),
        "a network that is not the pod's"
    );
    pod.remove()
}

fn a_second_daemon_goes_on(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("again")?);
    let id = pod.started(&cri::shell("c", BUSY))?;
    let time = || -> Result<u64> {
        let cpu = stats(&cri, &id)?.cpu.context("no cpu")?;
        value(cpu.usage_core_nano_seconds).context("no cpu time")
    };
    let before = time()?;
    env.podd()?.end(nix::sys::signal::Signal::SIGTERM)?;
    env.podd()?.start_again()?;
    ensure!(time()? >= before, "processor time went back");
    pod.remove()
}
