//! The measurements of the benchmark, each one key of the report.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podd_e2e::census::{self, Census};
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;
use serde_json::{Map, Value, json};

use crate::Options;
use crate::target::Target;

/// How long a pod of the serial pass lives. The kernel works on for some 20 ms after the network namespace of the pod
/// before is gone to every eye, and takes the next one only then: without this pause `teardown_to_zero` would time the
/// end of two pods.
const SETTLE: Duration = Duration::from_millis(100);

/// Named durations in milliseconds.
pub type Times = BTreeMap<&'static str, f64>;

/// Everything, in the order of the report.
pub fn all(target: &Target, options: &Options, big: Option<&str>) -> Result<Value> {
    let mut out = Map::new();
    out.insert("name".to_owned(), json!(target.name));
    let version = target.cri.version(pb::VersionRequest::default())?;
    out.insert(
        "runtime".to_owned(),
        json!(format!("{} {}", version.runtime_name, version.runtime_version)),
    );
    target.cri.pull(&options.image)?;
    let bench = Bench {
        cri: &target.cri,
        target,
        options,
    };
    let warm = bench.up("warm")?;
    bench.down(&warm)?;
    out.insert("memory_idle".to_owned(), target.processes.memory().report());
    bench.serial(&mut out)?;
    if options.storm > 0 {
        out.insert("storm".to_owned(), bench.storm()?);
    }
    if options.density > 0 {
        bench.density(&mut out)?;
    }
    if options.list > 0 {
        out.insert("list".to_owned(), bench.lists_alone()?);
    }
    if options.updates > 0 {
        // A peer may refuse what it cannot write.
        let measured = bench.updates();
        let said = measured.unwrap_or_else(|e| json!(format!("cannot be measured here: {e:#}")));
        out.insert("update".to_owned(), said);
    }
    if options.logs > 0 {
        out.insert("logs".to_owned(), bench.logs()?);
    }
    if options.sustained > 0 {
        out.insert("sustained".to_owned(), bench.sustained()?);
    }
    if let Some(image) = big {
        out.insert("pull_big_ms".to_owned(), bench.pull(image)?);
    }
    Ok(Value::Object(out))
}

/// One runtime being measured.
pub struct Bench<'a> {
    /// A client of it.
    pub cri: &'a Cri,
    /// The runtime.
    pub target: &'a Target,
    /// How much of everything.
    pub options: &'a Options,
}

/// A running pod and what it took.
pub struct Up {
    pod: String,
    ctr: String,
    logs: String,
    times: Times,
}

impl Up {
    /// Id of the container.
    pub fn ctr(&self) -> &str {
        &self.ctr
    }
}

/// What the kernel still holds of a pod after its removal was answered, in counts that are cheap to take.
#[derive(Debug, PartialEq, Eq)]
struct Residue {
    processes: usize,
    links: usize,
    cgroups: usize,
    mounts: usize,
    trash: usize,
}

impl Residue {
    fn now() -> Self {
        Self {
            processes: census::pids().len(),
            links: census::links(),
            cgroups: census::cgroups(),
            mounts: census::mounts(),
            trash: census::trash(),
        }
    }

    /// Waits until there is this again, at most until `deadline`.
    fn again(&self, deadline: Instant) {
        while Self::now() != *self && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

fn timed<T, E>(times: &mut Times, name: &'static str, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let begun = Instant::now();
    let done = call();
    times.insert(name, begun.elapsed().as_secs_f64() * 1e3);
    done
}

/// A figure with two decimals.
pub fn rounded(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

/// Median, 95th percentile and least of some milliseconds.
pub fn summary(values: &[f64]) -> Value {
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
pub fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

impl Bench<'_> {
    pub fn pod_config(&self, name: &str) -> pb::PodSandboxConfig {
        let mut config = cri::pod_config(name);
        config.labels.insert("app".to_owned(), "bench".to_owned());
        // Nothing but the parent: the runtime's own defaults are measured, a shared process namespace among them.
        config.linux = Some(pb::LinuxPodSandboxConfig {
            cgroup_parent: self.target.cgroup_parent.clone(),
            ..Default::default()
        });
        config
    }

    pub fn up(&self, name: &str) -> Result<Up> {
        let pod_config = self.pod_config(name);
        fs::create_dir_all(&pod_config.log_directory)?;
        let mut config = cri::command("c", &["sleep", "100000"]);
        config.image = Some(cri::spec(&self.options.image));
        config.linux = Some(pb::LinuxContainerConfig::default());
        let mut times = Times::new();
        let pod = timed(&mut times, "run_pod", || {
            self.cri.run_pod_with(&pod_config, &self.target.handler)
        })?;
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

    pub fn down(&self, up: &Up) -> Result<Times> {
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
        // The pod before this is going still.
        std::thread::sleep(Duration::from_secs(1));
        let zero = Residue::now();
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
            std::thread::sleep(SETTLE);
            let begun = Instant::now();
            let mut down = self.down(&up)?;
            zero.again(begun + Duration::from_secs(10));
            down.insert("teardown_to_zero", begun.elapsed().as_secs_f64() * 1e3);
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
    pub fn many(&self, count: usize, workers: usize) -> Result<Vec<Up>> {
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

    pub fn many_down(&self, all: &[Up], workers: usize) -> Result<()> {
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
        let (cpu, begun) = (self.target.processes.cpu(), Instant::now());
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
            "cpu_s": rounded(self.target.processes.cpu() - cpu)}),
        )
    }

    /// Pods up and down again without a pause, from all clients, for a time: pods per second in each tenth of it, and
    /// what is left at the end.
    fn sustained(&self) -> Result<Value> {
        const PARTS: usize = 10;
        let before = Census::settled(None, Duration::from_secs(10));
        let memory = self.target.processes.memory().report();
        let length = Duration::from_secs(self.options.sustained);
        let (begun, made) = (Instant::now(), Mutex::new([0_usize; PARTS]));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.options.workers)
                .map(|worker| {
                    let made = &made;
                    scope.spawn(move || -> Result<()> {
                        loop {
                            let part = begun.elapsed().as_secs_f64() / length.as_secs_f64();
                            if part >= 1.0 {
                                return Ok(());
                            }
                            let up = self.up(&format!("r{worker}"))?;
                            self.down(&up)?;
                            let part = (0..PARTS)
                                .rfind(|&p| float(p) <= part * float(PARTS))
                                .unwrap_or(0);
                            made.lock().expect("no holder panics")[part] += 1;
                        }
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|t| t.join().expect("a client does not panic"))
        })?;
        let ended = Instant::now();
        let left = before.difference(None, Duration::from_secs(30));
        let settled = ended.elapsed();
        let made = made.into_inner().expect("no holder panics");
        let rates: Vec<_> = made
            .iter()
            .map(|&count| rounded(float(count) * float(PARTS) / length.as_secs_f64()))
            .collect();
        let total: usize = made.iter().sum();
        Ok(json!({"seconds": self.options.sustained, "pods": total,
            "pods_per_s": rounded(float(total) / length.as_secs_f64()), "pods_per_s_by_tenth": rates,
            "left": left, "to_zero_ms": rounded(settled.as_secs_f64() * 1e3),
            "memory_before": memory, "memory_after": self.target.processes.memory().report()}))
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
}
