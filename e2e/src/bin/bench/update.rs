//! UpdateContainerResources of one running container, again and again: what a resize in place or a CPU manager costs.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use podd_proto::v1 as pb;
use serde_json::{Value, json};

use crate::measure::{Bench, summary};

/// Controllers whose files an update writes, where the container's cgroup has them.
const USED: [&str; 4] = ["cpu", "memory", "pids", "hugetlb"];
const MIB: i64 = 1 << 20;

/// What the `round`th update asks for; each is another one, so that each is written and recorded.
fn change(controllers: &[&str], round: i64) -> pb::LinuxContainerResources {
    let mut wire = pb::LinuxContainerResources {
        oom_score_adj: 500 + round % 2,
        ..Default::default()
    };
    for name in controllers {
        match *name {
            "cpu" => (wire.cpu_shares, wire.cpu_quota) = (1000 + round, 10_000 + round),
            "memory" => wire.memory_limit_in_bytes = 64 * MIB + round * 4096,
            "pids" => {
                _ = wire
                    .unified
                    .insert("pids.max".to_owned(), (100 + round).to_string())
            }
            _ => wire.hugepage_limits.push(pb::HugepageLimit {
                page_size: "2MB".to_owned(),
                limit: (2 * MIB * (1 + round)).cast_unsigned(),
            }),
        }
    }
    wire
}

impl Bench<'_> {
    /// Updates one after another. `version_ms` is what a request costs that does nothing.
    pub fn updates(&self) -> Result<Value> {
        let up = self.up("update")?;
        let measured = self.updates_of(up.ctr());
        self.down(&up)?;
        measured
    }

    fn updates_of(&self, id: &str) -> Result<Value> {
        let have = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let controllers: Vec<_> = USED
            .into_iter()
            .filter(|name| have.split_whitespace().any(|it| it == *name))
            .collect();
        let (mut times, mut floor) = (Vec::new(), Vec::new());
        let mut last = pb::LinuxContainerResources::default();
        for round in 1..=self.options.updates {
            last = change(&controllers, i64::from(round));
            let request = pb::UpdateContainerResourcesRequest {
                container_id: id.to_owned(),
                linux: Some(last.clone()),
                ..Default::default()
            };
            let begun = Instant::now();
            self.cri.update_container_resources(request)?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            let begun = Instant::now();
            self.cri.version(pb::VersionRequest::default())?;
            floor.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let now = self
            .cri
            .container(id)?
            .resources
            .and_then(|resources| resources.linux);
        let now = now.context("no resources in the status")?;
        ensure!(
            (now.cpu_shares, now.cpu_quota, now.memory_limit_in_bytes)
                == (last.cpu_shares, last.cpu_quota, last.memory_limit_in_bytes),
            "the last update is not in force: {now:?}"
        );
        Ok(
            json!({"updates": self.options.updates, "controllers": controllers,
            "ms": summary(&times), "version_ms": summary(&floor)}),
        )
    }
}
