//! The measurements of the benchmark, each one key of the report.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podd_e2e::census;
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;
use serde_json::{Map, Value, json};

use crate::Options;

/// Named durations in milliseconds.
type Times = BTreeMap<&'static str, f64>;

/// Everything, in the order of the report.
pub fn all(cri: &Cri, options: &Options, big: Option<&str>) -> Result<Value> {
    let mut out = Map::new();
    out.insert("name".to_owned(), json!(options.name));
    let version = cri.version(pb::VersionRequest::default())?;
    out.insert(
        "runtime".to_owned(),
        json!(format!("{} {}", version.runtime_name, version.runtime_version)),
    );
    cri.pull(&options.image)?;
    let bench = Bench { cri, options };
    let warm = bench.up("warm")?;
    bench.down(&warm)?;
    out.insert("memory_idle".to_owned(), bench.memory().report());
    bench.serial(&mut out)?;
    if options.storm > 0 {
        out.insert("storm".to_owned(), bench.storm()?);
    }
    if options.density > 0 {
        bench.density(&mut out)?;
    }
    if let Some(image) = big {
        out.insert("pull_big_ms".to_owned(), bench.pull(image)?);
    }
    Ok(Value::Object(out))
}

struct Bench<'a> {
    cri: &'a Cri,
    options: &'a Options,
}

/// A running pod and what it took.
struct Up {
    pod: String,
    ctr: String,
    logs: String,
    times: Times,
}

#[derive(Default)]
struct Memory {
    daemon_rss: u64,
    daemon_pss: u64,
    procs: u64,
    rss: u64,
    pss: u64,
}

impl Memory {
    fn report(&self) -> Value {
        json!({"daemon_rss": self.daemon_rss, "daemon_pss": self.daemon_pss, "procs": self.procs,
            "rss": self.rss, "pss": self.pss})
    }
}

fn timed<T, E>(times: &mut Times, name: &'static str, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let begun = Instant::now();
    let done = call();
    times.insert(name, begun.elapsed().as_secs_f64() * 1e3);
    done
}

fn rounded(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

/// Median, 95th percentile and least of some milliseconds.
fn summary(values: &[f64]) -> Value {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (count, middle) = (sorted.len(), sorted.len() / 2);
    if count == 0 {
        return Value::Null;
    }
    let median = if count % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    let p95 = sorted[(count * 95 / 100).saturating_sub(1)];
    json!({"median": rounded(median), "p95": rounded(p95), "min": rounded(sorted[0])})
}

/// A small number as a float: counts of pods, never large.
fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

impl Bench<'_> {
    fn up(&self, name: &str) -> Result<Up> {
        let mut pod_config = cri::pod_config(name);
        pod_config.labels.insert("app".to_owned(), "bench".to_owned());
        fs::create_dir_all(&pod_config.log_directory)?;
        let mut config = cri::command("c", &["sleep", "100000"]);
        config.image = Some(cri::spec(&self.options.image));
        let mut times = Times::new();
        let pod = timed(&mut times, "run_pod", || self.cri.run_pod(&pod_config))?;
        let ctr = timed(&mut times, "create", || {
            self.cri.create(&pod, &pod_config, &config)
        })?;
        timed(&mut times, "start", || self.cri.start(&ctr))?;
        let ready = times.values().sum();
        times.insert("pod_ready", ready);
        Ok(Up {
            pod,
            ctr,
            logs: pod_config.log_directory,
            times,
        })
    }

    fn down(&self, up: &Up) -> Result<Times> {
        let mut times = Times::new();
        let id = || up.pod.clone();
        timed(&mut times, "stop", || self.cri.stop(&up.ctr, 0))?;
        timed(&mut times, "rm", || self.cri.remove_ctr(&up.ctr))?;
        timed(&mut times, "stop_pod", || {
            self.cri
                .stop_pod_sandbox(pb::StopPodSandboxRequest { pod_sandbox_id: id() })
        })?;
        timed(&mut times, "rm_pod", || {
            self.cri
                .remove_pod_sandbox(pb::RemovePodSandboxRequest { pod_sandbox_id: id() })
        })?;
        let teardown = times.values().sum();
        times.insert("teardown", teardown);
        fs::remove_dir_all(&up.logs)?;
        Ok(times)
    }

    /// Pods one after another; the last one is also exec'd in.
    fn serial(&self, out: &mut Map<String, Value>) -> Result<()> {
        let mut per: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for i in 0..self.options.serial {
            let up = self.up(&format!("p{i}"))?;
            if i + 1 == self.options.serial && self.options.execs > 0 {
                let (mut times, mut failures) = (Vec::new(), 0);
                for _ in 0..self.options.execs {
                    let begun = Instant::now();
                    let done = self.cri.exec(&up.ctr, &["true"], 10)?;
                    times.push(begun.elapsed().as_secs_f64() * 1e3);
                    failures += usize::from(done.exit_code != 0);
                }
                let mut said = summary(&times);
                said["failures"] = json!(failures);
                out.insert("exec_sync".to_owned(), said);
            }
            let down = self.down(&up)?;
            for (name, value) in up.times.iter().chain(&down) {
                per.entry(name).or_default().push(*value);
            }
        }
        let said: Map<_, _> = per
            .iter()
            .map(|(name, values)| ((*name).to_owned(), summary(values)))
            .collect();
        out.insert("serial".to_owned(), Value::Object(said));
        Ok(())
    }

    /// `count` pods up, by `workers` clients.
    fn many(&self, count: usize, workers: usize) -> Result<Vec<Up>> {
        let (next, all) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        loop {
                            let i = next.fetch_add(1, Ordering::Relaxed);
                            if i >= count {
                                return Ok(());
                            }
                            let up = self.up(&format!("s{i}"))?;
                            all.lock().expect("no holder panics").push(up);
                        }
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|t| t.join().expect("a client does not panic"))
        })?;
        Ok(all.into_inner().expect("no holder panics"))
    }

    fn many_down(&self, all: &[Up], workers: usize) -> Result<()> {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        while let Some(up) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                            self.down(up)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|t| t.join().expect("a client does not panic"))
        })
    }

    fn storm(&self) -> Result<Value> {
        let (count, workers) = (self.options.storm, self.options.workers);
        let (cpu, begun) = (self.cpu(), Instant::now());
        let all = self.many(count, workers)?;
        let up = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        self.many_down(&all, workers)?;
        let down = begun.elapsed().as_secs_f64();
        let latencies: Vec<_> = all
            .iter()
            .filter_map(|up| up.times.get("pod_ready").copied())
            .collect();
        Ok(
            json!({"pods": count, "workers": workers, "up_per_s": rounded(float(count) / up),
            "up_ms": summary(&latencies), "down_per_s": rounded(float(count) / down),
            "cpu_s": rounded(self.cpu() - cpu)}),
        )
    }

    fn density(&self, out: &mut Map<String, Value>) -> Result<()> {
        let count = self.options.density;
        let before = self.memory();
        let all = self.many(count, 4)?;
        std::thread::sleep(Duration::from_secs(2));
        let after = self.memory();
        let each =
            |after: u64, before: u64| (after.saturating_sub(before)) / u64::try_from(count).unwrap_or(1);
        let (pss, rss) = (
            each(after.pss + after.daemon_pss, before.pss + before.daemon_pss),
            each(after.rss + after.daemon_rss, before.rss + before.daemon_rss),
        );
        let call = |list: &dyn Fn() -> Result<()>| -> Result<Value> {
            let mut times = Vec::new();
            for _ in 0..20 {
                let begun = Instant::now();
                list()?;
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            Ok(summary(&times))
        };
        let containers = call(&|| {
            Ok(self
                .cri
                .list_containers(pb::ListContainersRequest::default())
                .map(drop)?)
        })?;
        let sandboxes = call(&|| {
            Ok(self
                .cri
                .list_pod_sandbox(pb::ListPodSandboxRequest::default())
                .map(drop)?)
        })?;
        let stats = match self
            .cri
            .list_container_stats(pb::ListContainerStatsRequest::default())
        {
            Ok(_) => call(&|| {
                Ok(self
                    .cri
                    .list_container_stats(pb::ListContainerStatsRequest::default())
                    .map(drop)?)
            })?,
            Err(status) => json!(format!("{:?}", status.code())),
        };
        let lists = json!({"containers_ms": containers, "sandboxes_ms": sandboxes, "stats_ms": stats});
        out.insert("list".to_owned(), lists);
        let cpu = self.cpu();
        std::thread::sleep(Duration::from_secs(10));
        let procs = float(usize::try_from(after.procs - before.procs.min(after.procs))?) / float(count);
        let said = json!({"pods": count, "memory": after.report(), "per_pod_pss_kib": pss, "per_pod_rss_kib": rss,
            "procs_per_pod": rounded(procs), "idle_cpu_s_per_10s": rounded(self.cpu() - cpu)});
        out.insert("density".to_owned(), said);
        self.many_down(&all, 4)
    }

    fn pull(&self, image: &str) -> Result<Value> {
        let mut times = Vec::new();
        for _ in 0..3 {
            self.cri.remove(image)?;
            std::thread::sleep(Duration::from_secs(1));
            let begun = Instant::now();
            self.cri.pull(image).context("pull")?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        self.cri.remove(image)?;
        Ok(summary(&times))
    }

    /// Every process with its command line, where it is the runtime's: true for the daemon.
    fn processes(&self) -> impl Iterator<Item = (u32, bool)> {
        let own = std::process::id();
        census::pids()
            .into_iter()
            .filter(move |pid| *pid != own)
            .filter_map(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                let daemon = line.contains(&self.options.daemon);
                (daemon || line.contains(&self.options.procs)).then_some((pid, daemon))
            })
    }

    fn memory(&self) -> Memory {
        let mut total = Memory::default();
        for (pid, daemon) in self.processes() {
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue;
            };
            let value = |name: &str| -> u64 {
                let line = text
                    .lines()
                    .find_map(|l| l.strip_prefix(name))
                    .unwrap_or_default();
                line.split_whitespace()
                    .next()
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(0)
            };
            let (rss, pss) = (value("Rss:"), value("Pss:"));
            if daemon {
                total.daemon_rss += rss;
                total.daemon_pss += pss;
            } else {
                total.procs += 1;
                total.rss += rss;
                total.pss += pss;
            }
        }
        total
    }

    /// User and system seconds of the daemon and its helpers, ended children included.
    fn cpu(&self) -> f64 {
        let ticks = |pid: u32| -> u32 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            // proc_pid_stat(5): utime, stime, cutime and cstime are fields 14 to 17.
            rest.split(' ')
                .skip(11)
                .take(4)
                .filter_map(|n| n.parse::<u32>().ok())
                .sum()
        };
        // USER_HZ is 100 on every architecture podd supports.
        f64::from(self.processes().map(|(pid, _)| ticks(pid)).sum::<u32>()) / 100.0
    }
}
