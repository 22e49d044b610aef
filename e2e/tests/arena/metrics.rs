//! Metrics: descriptors and samples agree, and samples agree with the kernel's files.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;

use crate::case::{Env, Pod, cases, equal, eventually, skip};
use crate::stats::cgroup;

cases!("metrics":
    descriptors_and_samples_agree, nothing_that_is_asked_for_is_missing, labels_of_pods_and_containers,
    counters_agree_with_the_cgroup, limits, processes_and_what_they_have_open, network_as_the_pod_sees_it,
    what_is_over_is_left_out, the_stream_has_the_same);

/// What was sampled of one object.
pub(crate) struct Samples {
    keys: HashMap<String, Vec<String>>,
    all: Vec<pb::Metric>,
}

impl Samples {
    /// The samples of one metric: the values of its labels by name, and the value.
    pub(crate) fn of(&self, name: &str) -> Vec<(HashMap<&str, &str>, u64)> {
        let keys = self.keys.get(name).map_or(&[][..], Vec::as_slice);
        let labelled = |m: &pb::Metric| m.value.map(|v| v.value).unwrap_or_default();
        self.all
            .iter()
            .filter(|m| m.name == name)
            .map(|m| {
                let values = m.label_values.iter().map(String::as_str);
                let labels = keys.iter().map(String::as_str).zip(values).collect();
                (labels, labelled(m))
            })
            .collect()
    }

    /// The value of a metric that has one sample.
    pub(crate) fn value(&self, name: &str) -> Result<u64> {
        match self.of(name).as_slice() {
            [(_, value)] => Ok(*value),
            many => anyhow::bail!("{} samples of {name}", many.len()),
        }
    }
}

fn descriptors(cri: &Cri) -> Result<Vec<pb::MetricDescriptor>> {
    Ok(cri
        .list_metric_descriptors(pb::ListMetricDescriptorsRequest {})?
        .descriptors)
}

fn list(cri: &Cri) -> Result<Vec<pb::PodSandboxMetrics>> {
    Ok(cri
        .list_pod_sandbox_metrics(pb::ListPodSandboxMetricsRequest {})?
        .pod_metrics)
}

/// The samples of a pod, and of each of its containers by id.
pub(crate) fn read(cri: &Cri, pod: &Pod) -> Result<(Samples, HashMap<String, Samples>)> {
    let keys: HashMap<_, _> = descriptors(cri)?
        .into_iter()
        .map(|d| (d.name, d.label_keys))
        .collect();
    let found = list(cri)?.into_iter().find(|m| m.pod_sandbox_id == pod.id);
    let found = found.context("no metrics of the pod")?;
    let samples = |all| Samples {
        keys: keys.clone(),
        all,
    };
    let containers = found.container_metrics.into_iter();
    Ok((
        samples(found.metrics),
        containers.map(|c| (c.container_id, samples(c.metrics))).collect(),
    ))
}

fn of_container(cri: &Cri, pod: &Pod, id: &str) -> Result<Samples> {
    read(cri, pod)?
        .1
        .remove(id)
        .context("no metrics of the container")
}

fn descriptors_and_samples_agree(env: &mut Env<'_>) -> Result<()> {
    let (cri, one, two) = (env.cri()?, env.pod("one")?, env.pod("two")?);
    for pod in [&one, &two] {
        pod.started(&cri::shell("first", "sleep 1000"))?;
        pod.created(&cri::shell("second", "sleep 1000"))?;
    }
    let known = descriptors(&cri)?;
    let by_name: HashMap<_, _> = known.iter().map(|d| (d.name.as_str(), d)).collect();
    equal("descriptors of distinct names", by_name.len(), known.len())?;
    ensure!(
        known.iter().all(|d| !d.help.is_empty()),
        "a descriptor without help"
    );
    let mut seen = HashSet::new();
    for pod in list(&cri)? {
        let inside = pod.container_metrics.into_iter().flat_map(|c| c.metrics);
        for sample in pod.metrics.into_iter().chain(inside) {
            let keys = by_name
                .get(sample.name.as_str())
                .with_context(|| format!("{} is not described", sample.name))?;
            equal(&sample.name, sample.label_values.len(), keys.label_keys.len())?;
            ensure!(sample.value.is_some(), "{} without a value", sample.name);
            // Prometheus refuses all where one comes twice.
            let text = format!("{} {:?}", sample.name, sample.label_values);
            ensure!(seen.insert(text.clone()), "{text} comes twice");
        }
    }
    equal("descriptors, asked again", descriptors(&cri)?, known)?;
    one.remove()?;
    two.remove()
}

/// Every metric has a sample where the kernel has the file behind it.
fn nothing_that_is_asked_for_is_missing(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("whole")?);
    let mut config = cri::shell("c", "sleep 1000");
    let dir = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    if controllers.split_whitespace().any(|c| c == "cpu") {
        config.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 20_000,
            ..Default::default()
        });
    }
    let id = pod.started(&config)?;
    let dir = cgroup(&cri, &id)?;
    let behind = |name: &str| -> Option<&str> {
        let rest = name.strip_prefix("container_")?;
        Some(match rest {
            _ if rest.contains("max_usage") => "memory.peak",
            _ if rest.starts_with("memory_swap") || rest.contains("swap_limit") => "memory.swap.current",
            _ if rest.starts_with("memory") || rest.contains("_memory_") && !rest.starts_with("pressure") => {
                "memory.current"
            }
            "oom_events_total" => "memory.current",
            "threads" | "threads_max" => "pids.current",
            _ if rest.contains("cfs") || rest.starts_with("spec_cpu") => "cpu.max",
            _ if rest.starts_with("pressure") => "cpu.pressure",
            _ if rest.starts_with("hugetlb") => "hugetlb.2MB.current",
            // What a device was used for comes with the first use.
            _ if rest.starts_with("fs_reads") || rest.starts_with("fs_writes") => "none",
            _ if rest.starts_with("blkio") => "none",
            _ => return None,
        })
    };
    let (whole, mut inside) = read(&cri, &pod)?;
    let inside = inside.remove(&id).context("no metrics of the container")?;
    for descriptor in descriptors(&cri)? {
        let name = descriptor.name.as_str();
        if behind(name).is_some_and(|file| !dir.join(file).exists()) {
            continue;
        }
        let samples = if name.starts_with("container_network") {
            &whole
        } else {
            &inside
        };
        ensure!(!samples.of(name).is_empty(), "no sample of {name}");
    }
    pod.remove()
}

fn labels_of_pods_and_containers(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("labels")?);
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    let (whole, inside) = read(&cri, &pod)?;
    let usage = "container_cpu_usage_seconds_total";
    let inside = inside.get(&id).context("no metrics of the container")?;
    let of_container = inside.of(usage);
    let labels = &of_container.first().context("no processor time")?.0;
    let path = cgroup(&cri, &id)?;
    let path = path.strip_prefix("/sys/fs/cgroup")?.display().to_string();
    let expected = HashMap::from([
        ("id", format!("/{path}")),
        ("name", id.clone()),
        ("image", podd_e2e::podd::IMAGE.to_owned()),
        ("container", "c".to_owned()),
        ("pod", "labels".to_owned()),
        ("namespace", "e2e".to_owned()),
        ("cpu", "total".to_owned()),
    ]);
    for (key, value) in &expected {
        equal(key, labels.get(key), Some(&value.as_str()))?;
    }
    equal("labels", labels.len(), expected.len())?;
    let of_pod = whole.of(usage);
    let labels = &of_pod.first().context("no processor time of the pod")?.0;
    for (key, value) in [
        ("name", pod.id.as_str()),
        ("image", ""),
        ("container", ""),
        ("pod", "labels"),
    ] {
        equal(key, labels.get(key), Some(&value))?;
    }
    pod.remove()
}

fn counters_agree_with_the_cgroup(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("agree")?);
    let id = pod.started(&cri::shell(
        "c",
        "head -c 5000 /dev/zero >/written; while :; do :; done",
    ))?;
    let file = cgroup(&cri, &id)?.join("cpu.stat");
    let usec = || -> Result<u64> {
        let text = std::fs::read_to_string(&file)?;
        let found = text.lines().find_map(|l| l.strip_prefix("usage_usec "));
        Ok(found.context("no usage_usec")?.parse()?)
    };
    eventually("a second of processor time", || Ok(usec()? > 1_200_000))?;
    let before = usec()? / 1_000_000;
    let samples = of_container(&cri, &pod, &id)?;
    let after = usec()? / 1_000_000;
    let used = samples.value("container_cpu_usage_seconds_total")?;
    ensure!((before..=after).contains(&used), "{used}, {before} to {after}");
    let started = cri.container(&id)?.started_at / 1_000_000_000;
    equal(
        "start",
        samples.value("container_start_time_seconds")?,
        u64::try_from(started)?,
    )?;
    equal("errors", samples.value("container_scrape_error")?, 0)?;
    // The first question waits for the first walk.
    let written = samples.value("container_fs_usage_bytes")?;
    ensure!((4096..1 << 20).contains(&written), "{written} bytes written");
    let disk = samples.value("container_fs_limit_bytes")?;
    let inodes = samples.value("container_fs_inodes_total")?;
    let free = samples.value("container_fs_inodes_free")?;
    ensure!(
        disk > written && free <= inodes,
        "{disk} bytes, {free} of {inodes} inodes"
    );
    pod.remove()
}

fn limits(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("limits")?);
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let has = |wanted: &str| controllers.split_whitespace().any(|c| c == wanted);
    if !has("cpu") || !has("memory") || !has("pids") {
        pod.remove()?;
        return skip("no controllers of processor, memory and pids");
    }
    let mut config = cri::shell("c", "sleep 1000");
    config.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let id = pod.started(&config)?;
    let samples = of_container(&cri, &pod, &id)?;
    for (name, expected) in [
        ("container_spec_cpu_period", 100_000),
        ("container_spec_cpu_quota", 20_000),
        ("container_spec_memory_limit_bytes", 64 << 20),
        ("container_spec_memory_reservation_limit_bytes", 0),
        ("container_oom_events_total", 0),
    ] {
        equal(name, samples.value(name)?, expected)?;
    }
    let shares = samples.value("container_spec_cpu_shares")?;
    ensure!((1000..1050).contains(&shares), "{shares} shares");
    ensure!(
        samples.value("container_memory_usage_bytes")? > 0,
        "no memory in use"
    );
    pod.remove()
}

fn processes_and_what_they_have_open(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("open")?);
    let script = "nc -l -p 4000 </dev/null & sleep 1000 3</dev/null 4</dev/null & echo up; wait";
    let id = pod.started(&cri::shell("c", script))?;
    // Three times the standard ones, the socket, and two more; a shell may keep one or two for itself.
    eventually("both children have what they open", || {
        let samples = of_container(&cri, &pod, &id)?;
        let open = samples.value("container_file_descriptors")?;
        Ok(samples.value("container_processes")? == 3
            && samples.value("container_sockets")? == 1
            && (12..=16).contains(&open))
    })?;
    let (whole, inside) = read(&cri, &pod)?;
    let inside = inside.get(&id).context("no metrics of the container")?;
    let open = inside.value("container_file_descriptors")?;
    equal(
        "open files of the pod",
        whole.value("container_file_descriptors")?,
        open,
    )?;
    equal("processes of the pod", whole.value("container_processes")?, 3)?;
    let limit: u64 = cri.sh(&id, "ulimit -Sn")?.trim().parse()?;
    let told = inside.of("container_ulimits_soft");
    let (labels, value) = told.first().context("no limit of open files")?;
    equal("limit", labels.get("ulimit"), Some(&"max_open_files"))?;
    equal("open files allowed", *value, limit)?;
    pod.remove()
}

fn network_as_the_pod_sees_it(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("net")?);
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    cri.sh(
        &id,
        "ping -c 3 -W 2 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')",
    )?;
    let inside = |counter: &str| -> Result<u64> {
        let text = cri.sh(&id, &format!("cat /sys/class/net/eth0/statistics/{counter}"))?;
        Ok(text.trim().parse()?)
    };
    for (name, counter) in [
        ("container_network_receive_packets_total", "rx_packets"),
        ("container_network_transmit_packets_total", "tx_packets"),
        ("container_network_receive_bytes_total", "rx_bytes"),
        ("container_network_transmit_bytes_total", "tx_bytes"),
    ] {
        let before = inside(counter)?;
        let (whole, _) = read(&cri, &pod)?;
        let after = inside(counter)?;
        let told = whole.value(name)?;
        ensure!(
            (before..=after).contains(&told),
            "{name}: {told}, {before} to {after}"
        );
        ensure!(told > 0, "nothing was counted");
        equal("interface", whole.of(name)[0].0.get("interface"), Some(&"eth0"))?;
    }
    pod.remove()?;
    let mut config = cri::pod_config("host");
    config.hostname = String::new();
    let linux = config.linux.get_or_insert_default();
    let options = linux.security_context.get_or_insert_default();
    options.namespace_options.get_or_insert_default().network = pb::NamespaceMode::Node.into();
    let host = Pod::run(&cri, config)?;
    let (whole, _) = read(&cri, &host)?;
    let network = whole
        .all
        .iter()
        .filter(|m| m.name.starts_with("container_network"));
    equal("samples of the host's network", network.count(), 0)?;
    host.remove()
}

fn what_is_over_is_left_out(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("over")?);
    let running = pod.started(&cri::shell("running", "sleep 1000"))?;
    let over = pod.started(&cri::shell("over", "exit 3"))?;
    cri.wait_exit(&over)?;
    let (_, inside) = read(&cri, &pod)?;
    equal(
        "containers",
        inside.keys().collect::<Vec<_>>().as_slice(),
        &[&running],
    )?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    })?;
    let found = list(&cri)?.into_iter().any(|m| m.pod_sandbox_id == pod.id);
    ensure!(!found, "a stopped pod has metrics");
    pod.remove()
}

fn the_stream_has_the_same(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pods = (0..20)
        .map(|i| env.pod(&format!("p{i}")))
        .collect::<Result<Vec<_>>>()?;
    let messages = cri
        .stream_pod_sandbox_metrics(pb::StreamPodSandboxMetricsRequest {})?
        .all()?;
    ensure!(
        messages.iter().all(|m| m.pod_sandbox_metrics.len() == 1),
        "not one pod in each message"
    );
    let mut streamed: Vec<_> = messages
        .into_iter()
        .flat_map(|m| m.pod_sandbox_metrics)
        .map(|m| m.pod_sandbox_id)
        .collect();
    let mut expected: Vec<_> = pods.iter().map(|p| p.id.clone()).collect();
    streamed.sort();
    expected.sort();
    equal("pods", streamed, expected)?;
    pods.into_iter().try_for_each(Pod::remove)
}
