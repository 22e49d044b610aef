//! Every field of statistics and every metric of a cgroup is what the kernel's file says in the same moment.
//!
//! A container works, so that there is something to count, and then sleeps. The files are read before and after the
//! question: where nothing changed in between, the answer has to be exactly theirs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use podd_e2e::cri;
use podd_proto::v1 as pb;

use crate::case::{Env, Pod, cases, equal, eventually, log_lines, skip};
use crate::metrics::{Samples, read};
use crate::stats::{cgroup, linux, stats, value};

cases!("agreement": statistics, metrics);

const FILES: [&str; 18] = [
    "cpu.stat",
    "cpu.max",
    "cpu.weight",
    "cpu.pressure",
    "memory.current",
    "memory.stat",
    "memory.max",
    "memory.high",
    "memory.peak",
    "memory.events",
    "memory.swap.current",
    "memory.swap.max",
    "memory.pressure",
    "io.stat",
    "io.pressure",
    "pids.current",
    "pids.max",
    "hugetlb.2MB.current",
];

/// The files of a cgroup at one moment; those that it does not have are absent.
#[derive(Debug, PartialEq, Eq)]
struct Files(BTreeMap<&'static str, String>);

impl Files {
    fn read(dir: &Path) -> Self {
        let text = |file: &&'static str| Some((*file, fs::read_to_string(dir.join(file)).ok()?));
        Self(FILES.iter().filter_map(text).collect())
    }

    fn text(&self, file: &str) -> Result<&str> {
        Ok(self.0.get(file).with_context(|| format!("no {file}"))?.trim())
    }

    /// A file with one number; `None` for `max`.
    fn number(&self, file: &str) -> Result<Option<u64>> {
        match self.text(file)? {
            "max" => Ok(None),
            number => Ok(Some(number.parse()?)),
        }
    }

    fn key(&self, file: &str, key: &str) -> Result<u64> {
        let lines = self.text(file)?.lines();
        let found = lines
            .filter_map(|line| line.split_once(' '))
            .find(|(name, _)| *name == key);
        Ok(found.with_context(|| format!("no {key} in {file}"))?.1.parse()?)
    }

    fn working_set(&self) -> Result<u64> {
        let current = self.number("memory.current")?.context("no number")?;
        Ok(current.saturating_sub(self.key("memory.stat", "inactive_file")?))
    }

    /// `some` and `full` of a pressure file.
    fn pressure(&self, file: &str) -> Result<pb::PsiStats> {
        let line = |kind: &str| -> Result<pb::PsiData> {
            let mut lines = self.text(file)?.lines();
            let line = lines.find_map(|l| l.strip_prefix(kind)).context("no line")?;
            let field = |key: &str| {
                let mut words = line.split_whitespace();
                words
                    .find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
                    .context("no field")
            };
            Ok(pb::PsiData {
                total: field("total")?.parse::<u64>()? * 1000,
                avg10: field("avg10")?.parse()?,
                avg60: field("avg60")?.parse()?,
                avg300: field("avg300")?.parse()?,
            })
        };
        Ok(pb::PsiStats {
            full: Some(line("full")?),
            some: Some(line("some")?),
        })
    }

    /// Total of a line of a pressure file, in microseconds.
    fn stalled(&self, file: &str, full: bool) -> Result<u64> {
        let pressure = self.pressure(file)?;
        let line = if full { pressure.full } else { pressure.some };
        Ok(line.context("no line")?.total / 1000)
    }

    /// The devices of io.stat with their counters.
    fn devices(&self) -> Result<Vec<(String, BTreeMap<String, u64>)>> {
        let mut devices = Vec::new();
        for line in self.text("io.stat")?.lines() {
            let (device, rest) = line.split_once(' ').unwrap_or((line, ""));
            let pairs = rest.split_whitespace().filter_map(|word| word.split_once('='));
            let counters = pairs.map(|(key, value)| Ok((key.to_owned(), value.parse()?)));
            let counters: BTreeMap<_, _> = counters.collect::<Result<_>>()?;
            if !counters.is_empty() {
                devices.push((device.to_owned(), counters));
            }
        }
        Ok(devices)
    }
}

/// Asks between two readings of the files that are the same.
fn quiet<T>(dirs: &[PathBuf], mut ask: impl FnMut() -> Result<T>) -> Result<(Vec<Files>, T)> {
    let read = || dirs.iter().map(|dir| Files::read(dir)).collect::<Vec<_>>();
    for _ in 0..300 {
        let before = read();
        let answer = ask()?;
        if before == read() {
            return Ok((before, answer));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    bail!("the counters of a container that sleeps do not come to rest");
}

/// A pod with a container that has used some of everything, within limits of everything, and sleeps now.
fn worked(env: &mut Env<'_>, name: &str) -> Result<(Pod, String, Vec<PathBuf>)> {
    let (cri, pod) = (env.cri()?, env.pod(name)?);
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let has = |wanted: &&str| !controllers.split_whitespace().any(|c| c == *wanted);
    let missing: Vec<_> = ["cpu", "memory", "io", "pids"].into_iter().filter(has).collect();
    if !missing.is_empty() {
        pod.remove()?;
        return skip(&format!("no controllers {}", missing.join(", ")));
    }
    let busy = "timeout 2 sh -c 'while :; do :; done' & ";
    let script = format!(
        "{busy}{busy}dd if=/dev/zero of=/data bs=65536 count=64 2>/dev/null; sync; cat /data >/dev/null; wait; \
         echo worked; exec sleep 100000"
    );
    let mut config = cri::shell("c", &script);
    config.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 80_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 96 << 20,
        ..Default::default()
    });
    let id = pod.started(&config)?;
    eventually("the work is done", || {
        Ok(log_lines(&pod.config, &config)?
            .iter()
            .any(|line| line.content == "worked"))
    })?;
    let dir = cgroup(&cri, &id)?;
    let of_pod = dir.parent().context("a container's cgroup is its pod's child")?;
    let dirs = vec![of_pod.to_owned(), dir];
    Ok((pod, id, dirs))
}

fn statistics(env: &mut Env<'_>) -> Result<()> {
    let (pod, id, dirs) = worked(env, "fields")?;
    let cri = env.cri()?;
    let (files, of_container) = quiet(&dirs[1..], || stats(&cri, &id))?;
    let io = of_container.io;
    same_group(&files[0], of_container.cpu, of_container.memory, io)?;
    let swap = of_container.swap.context("no swap")?;
    let (used, most) = (
        files[0].number("memory.swap.current")?,
        files[0].number("memory.swap.max")?,
    );
    equal("swap", value(swap.swap_usage_bytes), used)?;
    let left = most.zip(used).map(|(most, used)| most - used);
    equal("swap left", value(swap.swap_available_bytes), left)?;

    let (files, of_pod) = quiet(&dirs[..1], || linux(&cri, &pod))?;
    same_group(&files[0], of_pod.cpu, of_pod.memory, of_pod.io)?;
    let processes = of_pod.process.context("no processes")?;
    equal(
        "processes",
        value(processes.process_count),
        files[0].number("pids.current")?,
    )?;
    equal("containers", of_pod.containers.len(), 1)?;
    pod.remove()
}

/// All that statistics of a container and of a pod have in common.
fn same_group(
    files: &Files,
    cpu: Option<pb::CpuUsage>,
    memory: Option<pb::MemoryUsage>,
    io: Option<pb::IoUsage>,
) -> Result<()> {
    let cpu = cpu.context("no cpu")?;
    let used = files.key("cpu.stat", "usage_usec")?;
    ensure!(used > 500_000, "it has worked for {used} us only");
    equal(
        "processor time",
        value(cpu.usage_core_nano_seconds),
        Some(used * 1000),
    )?;
    equal("cpu pressure", cpu.psi, Some(files.pressure("cpu.pressure")?))?;
    ensure!(
        files.stalled("cpu.pressure", false)? > 0,
        "two did not wait for each other"
    );
    let memory = memory.context("no memory")?;
    let set = files.working_set()?;
    let limit = files.number("memory.max")?;
    for (what, told, expected) in [
        ("usage", memory.usage_bytes, files.number("memory.current")?),
        ("working set", memory.working_set_bytes, Some(set)),
        (
            "available",
            memory.available_bytes,
            limit.map(|limit| limit - set),
        ),
        ("rss", memory.rss_bytes, Some(files.key("memory.stat", "anon")?)),
        (
            "faults",
            memory.page_faults,
            Some(files.key("memory.stat", "pgfault")?),
        ),
        (
            "major faults",
            memory.major_page_faults,
            Some(files.key("memory.stat", "pgmajfault")?),
        ),
    ] {
        equal(what, value(told), expected)?;
    }
    equal(
        "memory pressure",
        memory.psi,
        Some(files.pressure("memory.pressure")?),
    )?;
    let io = io.context("no io")?;
    equal("io pressure", io.psi, Some(files.pressure("io.pressure")?))
}

fn metrics(env: &mut Env<'_>) -> Result<()> {
    let (pod, id, dirs) = worked(env, "metrics")?;
    let cri = env.cri()?;
    let (files, (of_pod, mut inside)) = quiet(&dirs, || read(&cri, &pod))?;
    let of_container = inside.remove(&id).context("no metrics of the container")?;
    for (what, files, samples) in [
        ("the pod", &files[0], &of_pod),
        ("the container", &files[1], &of_container),
    ] {
        same_numbers(files, samples).context(what)?;
        same_devices(files, samples).context(what)?;
    }
    let (periods, written) = (
        of_container.value("container_cpu_cfs_periods_total")?,
        of_container.of("container_fs_writes_bytes_total"),
    );
    ensure!(periods > 0, "no period of the quota");
    ensure!(written.iter().any(|(_, bytes)| *bytes >= 4 << 20), "{written:?}");
    pod.remove()
}

/// Metrics of one number: the file and the key that it is from, and by what it is divided. A file without keys has one
/// number; the keys of a pressure file are its lines.
#[rustfmt::skip]
const NUMBERS: [(&str, &str, &str, u64); 27] = [
    ("cpu_usage_seconds_total", "cpu.stat", "usage_usec", 1_000_000),
    ("cpu_user_seconds_total", "cpu.stat", "user_usec", 1_000_000),
    ("cpu_system_seconds_total", "cpu.stat", "system_usec", 1_000_000),
    ("cpu_cfs_periods_total", "cpu.stat", "nr_periods", 1),
    ("cpu_cfs_throttled_periods_total", "cpu.stat", "nr_throttled", 1),
    ("cpu_cfs_throttled_seconds_total", "cpu.stat", "throttled_usec", 1_000_000),
    ("memory_usage_bytes", "memory.current", "", 1),
    ("memory_rss", "memory.stat", "anon", 1),
    ("memory_cache", "memory.stat", "file", 1),
    ("memory_total_active_file_bytes", "memory.stat", "active_file", 1),
    ("memory_total_inactive_file_bytes", "memory.stat", "inactive_file", 1),
    ("memory_mapped_file", "memory.stat", "file_mapped", 1),
    ("memory_kernel_usage", "memory.stat", "kernel", 1),
    ("memory_swap", "memory.swap.current", "", 1),
    ("memory_failcnt", "memory.events", "max", 1),
    ("oom_events_total", "memory.events", "oom_kill", 1),
    ("threads", "pids.current", "", 1),
    ("threads_max", "pids.max", "", 1),
    ("spec_memory_limit_bytes", "memory.max", "", 1),
    ("spec_memory_reservation_limit_bytes", "memory.high", "", 1),
    ("spec_memory_swap_limit_bytes", "memory.swap.max", "", 1),
    ("pressure_cpu_waiting_seconds_total", "cpu.pressure", "some", 1_000_000),
    ("pressure_cpu_stalled_seconds_total", "cpu.pressure", "full", 1_000_000),
    ("pressure_memory_waiting_seconds_total", "memory.pressure", "some", 1_000_000),
    ("pressure_memory_stalled_seconds_total", "memory.pressure", "full", 1_000_000),
    ("pressure_io_waiting_seconds_total", "io.pressure", "some", 1_000_000),
    ("pressure_io_stalled_seconds_total", "io.pressure", "full", 1_000_000),
];

fn same_numbers(files: &Files, samples: &Samples) -> Result<()> {
    for (name, file, key, unit) in NUMBERS {
        let expected = match key {
            "" => files.number(file)?.unwrap_or(0),
            "some" | "full" => files.stalled(file, key == "full")?,
            key => files.key(file, key)?,
        };
        let told = samples.value(&format!("container_{name}"))?;
        equal(name, told, expected / unit)?;
    }
    equal(
        "working set",
        samples.value("container_memory_working_set_bytes")?,
        files.working_set()?,
    )?;
    // From Linux 5.19 on.
    if let Some(peak) = files.0.get("memory.peak") {
        equal(
            "peak",
            samples.value("container_memory_max_usage_bytes")?,
            peak.trim().parse()?,
        )?;
    }
    for (labels, faults) in samples.of("container_memory_failures_total") {
        let kind = labels.get("failure_type").context("no type")?;
        equal(kind, faults, files.key("memory.stat", kind)?)?;
    }
    if let Some(pages) = files.0.get("hugetlb.2MB.current") {
        let told = samples.of("container_hugetlb_usage_bytes");
        let told = told
            .iter()
            .find(|(labels, _)| labels.get("pagesize") == Some(&"2MB"));
        equal(
            "huge pages",
            told.map(|(_, bytes)| *bytes),
            Some(pages.trim().parse()?),
        )?;
    }
    let quota = files.text("cpu.max")?.split_once(' ').context("no period")?;
    equal(
        "period",
        samples.value("container_spec_cpu_period")?,
        quota.1.parse()?,
    )?;
    if quota.0 != "max" {
        equal(
            "quota",
            samples.value("container_spec_cpu_quota")?,
            quota.0.parse()?,
        )?;
    }
    Ok(())
}

/// Metrics of block devices.
fn same_devices(files: &Files, samples: &Samples) -> Result<()> {
    let devices = files.devices()?;
    ensure!(!devices.is_empty(), "no device was used");
    let usage = samples.of("container_blkio_device_usage_total");
    equal("samples of devices", usage.len(), devices.len() * 2)?;
    for (device, counters) in &devices {
        let (major, minor) = device.split_once(':').context("no numbers")?;
        let mut name = "";
        for (operation, key) in [("Read", "rbytes"), ("Write", "wbytes")] {
            let found = usage.iter().find(|(labels, _)| {
                labels.get("major") == Some(&major)
                    && labels.get("minor") == Some(&minor)
                    && labels.get("operation") == Some(&operation)
            });
            let (labels, bytes) = found.with_context(|| format!("no {operation} of {device}"))?;
            equal(operation, *bytes, counters[key])?;
            name = labels.get("device").copied().context("no name")?;
        }
        for (metric, key) in [
            ("container_fs_reads_bytes_total", "rbytes"),
            ("container_fs_reads_total", "rios"),
            ("container_fs_writes_bytes_total", "wbytes"),
            ("container_fs_writes_total", "wios"),
        ] {
            let all = samples.of(metric);
            let found = all.iter().find(|(labels, _)| labels.get("device") == Some(&name));
            equal(metric, found.map(|(_, count)| *count), Some(counters[key]))?;
        }
    }
    Ok(())
}
