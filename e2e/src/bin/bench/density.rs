//! Many pods alive at once: memory for each, lists, idle load, and what a restart of the daemon takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podd_proto::v1 as pb;
use serde_json::{Map, Value, json};

use crate::measure::{Bench, float, rounded, summary};

impl Bench<'_> {
    /// Figures with `options.density` pods alive, then with `options.alive`.
    pub fn density(&self, out: &mut Map<String, Value>) -> Result<()> {
        let count = self.options.density;
        let before = self.target.processes.memory();
        let all = self.many(count, 4)?;
        std::thread::sleep(Duration::from_secs(2));
        let after = self.target.processes.memory();
        let each =
            |after: u64, before: u64| (after.saturating_sub(before)) / u64::try_from(count).unwrap_or(1);
        let (pss, rss) = (
            each(after.pss + after.daemon_pss, before.pss + before.daemon_pss),
            each(after.rss + after.daemon_rss, before.rss + before.daemon_rss),
        );
        let mut lists = self.lists()?;
        lists["stats_ms"] = self.stats()?;
        out.insert("list".to_owned(), lists);
        let cpu = self.target.processes.cpu();
        std::thread::sleep(Duration::from_secs(10));
        let idle = rounded(self.target.processes.cpu() - cpu);
        let procs = float(usize::try_from(after.procs - before.procs.min(after.procs))?) / float(count);
        let mut said = json!({"pods": count, "memory": after.report(), "per_pod_pss_kib": pss,
            "per_pod_rss_kib": rss, "procs_per_pod": rounded(procs), "idle_cpu_s_per_10s": idle});
        if self.target.restart.is_some() {
            said["restart_ms"] = self.restart(count)?;
            std::thread::sleep(Duration::from_secs(2));
            said["memory_after_restart"] = self.target.processes.memory().report();
        }
        out.insert("density".to_owned(), said);
        let more = self.options.alive.saturating_sub(count);
        if more > 0 {
            let further = self.many(more, 4)?;
            let mut said = self.lists()?;
            said["pods"] = json!(count + more);
            said["memory"] = self.target.processes.memory().report();
            if self.target.restart.is_some() {
                said["restart_ms"] = self.restart(count + more)?;
            }
            out.insert("alive".to_owned(), said);
            self.many_down(&further, 4)?;
        }
        self.many_down(&all, 4)
    }

    /// Milliseconds of the lists with `options.list` pods alive.
    pub fn lists_alone(&self) -> Result<Value> {
        let all = self.many(self.options.list, 4)?;
        let mut said = self.lists()?;
        said["stats_ms"] = self.stats()?;
        said["pods"] = json!(all.len());
        self.many_down(&all, 4)?;
        Ok(said)
    }

    /// Milliseconds of the two list calls.
    fn lists(&self) -> Result<Value> {
        let containers = repeated(|| {
            Ok(self
                .cri
                .list_containers(pb::ListContainersRequest::default())
                .map(drop)?)
        })?;
        let sandboxes = repeated(|| {
            Ok(self
                .cri
                .list_pod_sandbox(pb::ListPodSandboxRequest::default())
                .map(drop)?)
        })?;
        Ok(json!({"containers_ms": containers, "sandboxes_ms": sandboxes}))
    }

    fn stats(&self) -> Result<Value> {
        let list = || {
            self.cri
                .list_container_stats(pb::ListContainerStatsRequest::default())
        };
        match list() {
            Ok(_) => repeated(|| Ok(list().map(drop)?)),
            Err(status) => Ok(json!(format!("{:?}", status.code()))),
        }
    }

    /// Kills the daemon and starts it again: milliseconds until it lists all of `count` running containers.
    fn restart(&self, count: usize) -> Result<Value> {
        let restart = self.target.restart.as_ref().context("cannot be restarted")?;
        let mut times = Vec::new();
        for _ in 0..5 {
            let begun = Instant::now();
            restart()?;
            let state = Some(pb::ContainerStateValue {
                state: pb::ContainerState::ContainerRunning.into(),
            });
            let filter = Some(pb::ContainerFilter {
                state,
                ..Default::default()
            });
            let listed = self.cri.list_containers(pb::ListContainersRequest { filter })?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            let found = listed.containers.len();
            ensure!(
                found == count,
                "{found} of {count} containers run after a restart"
            );
        }
        Ok(summary(&times))
    }
}

/// Milliseconds of twenty calls.
fn repeated(call: impl Fn() -> Result<()>) -> Result<Value> {
    let mut times = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        call()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(summary(&times))
}
