//! Resource limits of pods and containers. `None` is "not given", never zero: the CRI sends zero for it.
//!
//! They are kept in records once they were updated, so their names here are a format.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// CPU time per period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuQuota {
    /// No limit, explicitly.
    Unlimited,
    /// Microseconds per period.
    Micros(u64),
}

/// Limit of memory plus swap, on the scale of cgroup v1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapLimit {
    /// No limit, explicitly.
    Unlimited,
    /// Bytes of memory plus swap; at least the memory limit.
    Bytes(u64),
}

/// Limit of huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HugepageLimit {
    /// Size as it stands in the cgroup's file names: `64KB`, `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// What `LinuxContainerResources` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// CFS period in microseconds, 1000 to 1000000 (Documentation/scheduler/sched-bwc.rst).
    pub cpu_period: Option<u64>,
    /// CFS quota.
    pub cpu_quota: Option<CpuQuota>,
    /// CPU weight on the scale of cgroup v1, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// Memory plus swap.
    pub memory_swap_limit: Option<SwapLimit>,
    /// Value for oom_score_adj, -1000 to 1000; zero is a value here (proc(5)).
    pub oom_score_adj: i32,
    /// CPUs in list form (cpuset(7)).
    pub cpuset_cpus: Option<String>,
    /// NUMA nodes in list form.
    pub cpuset_mems: Option<String>,
    /// Huge pages, one entry per size.
    pub hugepages: Vec<HugepageLimit>,
    /// cgroup v2 files and what to write there.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// These with a change: what the change does not give stays. A score of zero is none given, as the CPU manager
    /// sends nothing but processors.
    #[must_use]
    pub fn changed_by(&self, change: &Self) -> Self {
        let mut hugepages = self.hugepages.clone();
        for limit in &change.hugepages {
            match hugepages
                .iter_mut()
                .find(|known| known.page_size == limit.page_size)
            {
                Some(known) => known.limit = limit.limit,
                None => hugepages.push(limit.clone()),
            }
        }
        let mut unified = self.unified.clone();
        unified.extend(change.unified.clone());
        Self {
            cpu_period: change.cpu_period.or(self.cpu_period),
            cpu_quota: change.cpu_quota.or(self.cpu_quota),
            cpu_shares: change.cpu_shares.or(self.cpu_shares),
            memory_limit: change.memory_limit.or(self.memory_limit),
            memory_swap_limit: change.memory_swap_limit.or(self.memory_swap_limit),
            oom_score_adj: match change.oom_score_adj {
                0 => self.oom_score_adj,
                score => score,
            },
            cpuset_cpus: change.cpuset_cpus.clone().or_else(|| self.cpuset_cpus.clone()),
            cpuset_mems: change.cpuset_mems.clone().or_else(|| self.cpuset_mems.clone()),
            hugepages,
            unified,
        }
    }

    /// These and a pod's overhead. What is not limited here stays so: a limit of the overhead alone would be one of
    /// the containers too.
    #[must_use]
    pub fn with_overhead(&self, overhead: &Self) -> Self {
        let period = self.cpu_period.unwrap_or(CPU_PERIOD);
        let quota = match (self.cpu_quota, overhead.cpu_quota) {
            (Some(CpuQuota::Micros(own)), Some(CpuQuota::Micros(more))) => {
                let of_period = overhead.cpu_period.unwrap_or(CPU_PERIOD);
                let more = u128::from(more) * u128::from(period) / u128::from(of_period);
                let more = u64::try_from(more).unwrap_or(u64::MAX);
                Some(CpuQuota::Micros(own.saturating_add(more)))
            }
            (quota, _) => quota,
        };
        let plus = |own: Option<u64>, more: Option<u64>| own.map(|own| own.saturating_add(more.unwrap_or(0)));
        let swap = match (self.memory_swap_limit, overhead.memory_limit) {
            (Some(SwapLimit::Bytes(own)), Some(more)) => Some(SwapLimit::Bytes(own.saturating_add(more))),
            (swap, _) => swap,
        };
        Self {
            cpu_quota: quota,
            cpu_shares: plus(self.cpu_shares, overhead.cpu_shares),
            memory_limit: plus(self.memory_limit, overhead.memory_limit),
            memory_swap_limit: swap,
            ..self.clone()
        }
    }
}

/// Microseconds: what the kernel uses where nobody says (`default_cfs_period`).
const CPU_PERIOD: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_give() {
        let hugepage = |size: &str, limit| HugepageLimit {
            page_size: size.to_owned(),
            limit,
        };
        let before = Resources {
            cpu_shares: Some(512),
            memory_limit: Some(1 << 20),
            oom_score_adj: 500,
            hugepages: vec![hugepage("2MB", 0), hugepage("1GB", 0)],
            unified: [("pids.max".to_owned(), "5".to_owned())].into(),
            ..Resources::default()
        };
        assert_eq!(before.changed_by(&Resources::default()), before);
        let after = before.changed_by(&Resources {
            cpuset_cpus: Some("0".to_owned()),
            hugepages: vec![hugepage("2MB", 4 << 20)],
            unified: [("memory.high".to_owned(), "9".to_owned())].into(),
            ..Resources::default()
        });
        assert_eq!(after.cpuset_cpus.as_deref(), Some("0"));
        assert_eq!((after.cpu_shares, after.oom_score_adj), (Some(512), 500));
        assert_eq!(after.hugepages, [hugepage("2MB", 4 << 20), hugepage("1GB", 0)]);
        assert_eq!(after.unified.len(), 2);
    }

    #[test]
    fn overhead_adds_to_limits_and_makes_none() {
        let overhead = Resources {
            cpu_period: Some(50_000),
            cpu_quota: Some(CpuQuota::Micros(5_000)),
            cpu_shares: Some(102),
            memory_limit: Some(10),
            ..Resources::default()
        };
        let none = Resources::default();
        assert_eq!(none.with_overhead(&overhead), none);
        let limited = Resources {
            cpu_quota: Some(CpuQuota::Micros(20_000)),
            cpu_shares: Some(205),
            memory_limit: Some(100),
            memory_swap_limit: Some(SwapLimit::Bytes(150)),
            ..Resources::default()
        };
        let sum = limited.with_overhead(&overhead);
        assert_eq!(sum.cpu_quota, Some(CpuQuota::Micros(30_000)));
        assert_eq!((sum.cpu_shares, sum.memory_limit), (Some(307), Some(110)));
        assert_eq!(sum.memory_swap_limit, Some(SwapLimit::Bytes(160)));
    }
}
