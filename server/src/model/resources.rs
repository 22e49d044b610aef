//! Resource limits of pods and containers. `None` is "not given", never zero: the CRI sends zero for it.

use std::collections::BTreeMap;

/// CPU time per period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuQuota {
    /// No limit, explicitly.
    Unlimited,
    /// Microseconds per period.
    Micros(u64),
}

/// Limit of memory plus swap, on the scale of cgroup v1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapLimit {
    /// No limit, explicitly.
    Unlimited,
    /// Bytes of memory plus swap; at least the memory limit.
    Bytes(u64),
}

/// Limit of huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugepageLimit {
    /// Size as it stands in the cgroup's file names: `64KB`, `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// What `LinuxContainerResources` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
