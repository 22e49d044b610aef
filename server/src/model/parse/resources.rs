//! `LinuxContainerResources`.

use std::collections::BTreeMap;

use podd_proto::v1;

use super::{At, given, sorted};
use crate::model::{CpuQuota, HugepageLimit, Refused, Resources, SwapLimit};

impl TryFrom<&v1::LinuxContainerResources> for Resources {
    type Error = Refused;
    fn try_from(wire: &v1::LinuxContainerResources) -> Result<Self, Refused> {
        resources(&At::Root("linux"), wire)
    }
}

impl Resources {
    /// Reads the resources in the field of a request that has this name.
    ///
    /// # Errors
    /// The part that is wrong.
    pub fn of_field(field: &'static str, wire: &v1::LinuxContainerResources) -> Result<Self, Refused> {
        resources(&At::Root(field), wire)
    }
}

pub(super) fn resources(at: &At<'_>, wire: &v1::LinuxContainerResources) -> Result<Resources, Refused> {
    let memory_at = at.field("memory_limit_in_bytes");
    let memory_limit = match u64::try_from(wire.memory_limit_in_bytes) {
        Ok(0) => None,
        Ok(bytes) => Some(bytes),
        Err(_) => return Err(memory_at.invalid("is negative")),
    };
    if !(-1000..=1000).contains(&wire.oom_score_adj) {
        return Err(at
            .field("oom_score_adj")
            .invalid(format!("{} is not -1000 to 1000", wire.oom_score_adj)));
    }
    let list = |name, text: &str| given(text).map(|text| id_list(&at.field(name), text)).transpose();
    Ok(Resources {
        cpu_period: period(&at.field("cpu_period"), wire.cpu_period)?,
        cpu_quota: quota(&at.field("cpu_quota"), wire.cpu_quota)?,
        cpu_shares: match u64::try_from(wire.cpu_shares) {
            Ok(0) => None,
            Ok(shares) => Some(shares),
            Err(_) => return Err(at.field("cpu_shares").invalid("is negative")),
        },
        memory_limit,
        memory_swap_limit: swap(&at.field("memory_swap_limit_in_bytes"), wire, memory_limit)?,
        // Checked above: it is between -1000 and 1000.
        oom_score_adj: i32::try_from(wire.oom_score_adj).unwrap_or_default(),
        cpuset_cpus: list("cpuset_cpus", &wire.cpuset_cpus)?,
        cpuset_mems: list("cpuset_mems", &wire.cpuset_mems)?,
        hugepages: hugepages(&at.field("hugepage_limits"), &wire.hugepage_limits)?,
        unified: unified(&at.field("unified"), sorted(&wire.unified))?,
    })
}

/// The range that the kernel takes (kernel/sched/core.c, `min_cfs_quota_period` and `max_cfs_quota_period`).
fn period(at: &At<'_>, value: i64) -> Result<Option<u64>, Refused> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(period @ 1_000..=1_000_000) => Ok(Some(period)),
        _ => Err(at.invalid(format!("{value} is not 1000 to 1000000 microseconds"))),
    }
}

/// At least a millisecond, as the kernel insists (`min_cfs_quota_period`).
fn quota(at: &At<'_>, value: i64) -> Result<Option<CpuQuota>, Refused> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(micros @ 1_000..) => Ok(Some(CpuQuota::Micros(micros))),
        Ok(micros) => Err(at.invalid(format!(
            "{micros} is less than the 1000 microseconds that the kernel takes"
        ))),
        Err(_) => Ok(Some(CpuQuota::Unlimited)),
    }
}

fn swap(
    at: &At<'_>,
    wire: &v1::LinuxContainerResources,
    memory: Option<u64>,
) -> Result<Option<SwapLimit>, Refused> {
    match u64::try_from(wire.memory_swap_limit_in_bytes) {
        Ok(0) => Ok(None),
        Ok(bytes) if memory.is_some_and(|memory| bytes < memory) => {
            Err(at.invalid("counts memory and swap, and is less than the memory limit"))
        }
        Ok(bytes) => Ok(Some(SwapLimit::Bytes(bytes))),
        Err(_) => Ok(Some(SwapLimit::Unlimited)),
    }
}

/// Numbers and ranges joined by commas (cpuset(7), "List format").
fn id_list(at: &At<'_>, text: &str) -> Result<String, Refused> {
    let number = |text: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
    };
    let item = |item: &str| match item.split_once('-') {
        None => number(item).is_some(),
        Some((low, high)) => number(low)
            .zip(number(high))
            .is_some_and(|(low, high)| low <= high),
    };
    let text = text.trim();
    if text.split(',').all(item) {
        Ok(text.to_owned())
    } else {
        Err(at.invalid(format!("{text:?} is not a list such as 0-3,7")))
    }
}

fn hugepages(at: &At<'_>, wire: &[v1::HugepageLimit]) -> Result<Vec<HugepageLimit>, Refused> {
    let mut limits: Vec<HugepageLimit> = Vec::with_capacity(wire.len());
    for (n, limit) in wire.iter().enumerate() {
        let at = at.index(n);
        let size = &limit.page_size;
        let digits = ["KB", "MB", "GB"]
            .iter()
            .find_map(|unit| size.strip_suffix(unit))
            .unwrap_or_default();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(at
                .field("page_size")
                .invalid(format!("{size:?} is not a size such as 2MB")));
        }
        if i64::try_from(limit.limit).is_err() {
            return Err(at
                .field("limit")
                .invalid(format!("{} bytes are too many", limit.limit)));
        }
        if limits.iter().any(|known| known.page_size == *size) {
            return Err(at.field("page_size").invalid(format!("{size} is given twice")));
        }
        limits.push(HugepageLimit {
            page_size: size.clone(),
            limit: limit.limit,
        });
    }
    Ok(limits)
}

/// Files of a controller: the core files (`cgroup.procs`) move processes and are nobody's limit.
fn unified(at: &At<'_>, files: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refused> {
    for (file, value) in &files {
        let at = at.key(file);
        let name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let shaped = file.split_once('.').is_some_and(|(controller, rest)| {
            !controller.is_empty() && !rest.is_empty() && controller != "cgroup"
        });
        if !shaped || !file.bytes().all(name) {
            return Err(at.invalid("is not a file of a cgroup v2 controller"));
        }
        if value.contains(['\0', '\n']) {
            return Err(at.invalid(format!("{value:?} is more than one value")));
        }
    }
    Ok(files)
}
