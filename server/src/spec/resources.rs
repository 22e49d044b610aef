//! Resources in the form of an OCI spec, from where they become cgroup files, and read again from those files.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};
use runtime_core::cgroup::{shares_of_weight, weight_of_shares};

use crate::model::{CpuQuota, HugepageLimit, Resources, SwapLimit};

/// What memory.max and its like are rounded down to.
const PAGE: u64 = 4096;

/// Whether the limits are a container's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new container: a memory limit without a word on swap means no swap.
    Create,
    /// A running one: what is not given stays.
    Update,
}

/// Translates resources; what is not given is absent.
#[must_use]
pub fn linux_resources(resources: &Resources, change: Change) -> LinuxResources {
    let mut linux = LinuxResources::default();
    linux
        .set_devices(None)
        .set_cpu(cpu(resources))
        .set_memory(memory(resources, change));
    if !resources.hugepages.is_empty() {
        let limits = resources.hugepages.iter().map(|limit| {
            let mut oci = LinuxHugepageLimit::default();
            oci.set_page_size(limit.page_size.clone())
                .set_limit(signed(limit.limit));
            oci
        });
        linux.set_hugepage_limits(Some(limits.collect()));
    }
    if !resources.unified.is_empty() {
        let files = resources
            .unified
            .iter()
            .map(|(file, value)| (file.clone(), value.clone()));
        linux.set_unified(Some(files.collect::<HashMap<_, _>>()));
    }
    linux
}

fn cpu(resources: &Resources) -> Option<LinuxCpu> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(resources.cpu_shares)
        .set_period(resources.cpu_period)
        .set_quota(resources.cpu_quota.map(|quota| match quota {
            CpuQuota::Unlimited => -1,
            CpuQuota::Micros(micros) => signed(micros),
        }))
        .set_cpus(resources.cpuset_cpus.clone())
        .set_mems(resources.cpuset_mems.clone());
    (cpu != LinuxCpu::default()).then_some(cpu)
}

fn memory(resources: &Resources, change: Change) -> Option<LinuxMemory> {
    let swap = match (resources.memory_swap_limit, resources.memory_limit, change) {
        (Some(SwapLimit::Unlimited), ..) => Some(-1),
        (Some(SwapLimit::Bytes(bytes)), ..) => Some(signed(bytes)),
        // Memory and swap together as much as memory alone: no swap, as under containerd.
        (None, Some(limit), Change::Create) => Some(signed(limit)),
        (None, ..) => None,
    };
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(resources.memory_limit.map(signed))
        .set_swap(swap);
    (memory != LinuxMemory::default()).then_some(memory)
}

/// OCI counts in signed numbers; every value here came from one.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What the files of a cgroup say, in the words of the CRI; `read` is `None` where there is no such file.
///
/// A file says less than was asked for: weights are coarser than shares, sizes are whole pages. Where what a file
/// says is what becomes of `asked`, the answer is `asked`, which is what a client compares with.
#[must_use]
pub fn read_back(asked: &Resources, read: impl Fn(&str) -> Option<String>) -> Resources {
    let read = |file: &str| read(file).map(|text| text.trim().to_owned());
    let list = |file: &str, asked: &Option<String>| match read(file) {
        Some(list) => (!list.is_empty()).then_some(list),
        None => asked.clone(),
    };
    let (cpu_quota, cpu_period) = match read("cpu.max") {
        Some(text) => quota_and_period(&text),
        None => (asked.cpu_quota, asked.cpu_period),
    };
    let memory = read("memory.max");
    let memory_limit = match &memory {
        Some(text) => text
            .parse()
            .ok()
            .map(|limit| unrounded(limit, asked.memory_limit, PAGE)),
        None => asked.memory_limit,
    };
    let of_hugepage = |limit: &HugepageLimit| HugepageLimit {
        page_size: limit.page_size.clone(),
        limit: read(&format!("hugetlb.{}.max", limit.page_size))
            .and_then(|text| text.parse().ok())
            .unwrap_or(limit.limit),
    };
    let of_file = |(file, value): (&String, &String)| {
        let now = read(file).filter(|now| !now.is_empty());
        (file.clone(), now.unwrap_or_else(|| value.clone()))
    };
    Resources {
        cpu_period,
        cpu_quota,
        cpu_shares: match read("cpu.weight").and_then(|text| text.parse().ok()) {
            Some(weight) => match asked.cpu_shares {
                Some(shares) if weight_of_shares(shares) == weight => Some(shares),
                _ => Some(shares_of_weight(weight)),
            },
            None => asked.cpu_shares,
        },
        memory_limit,
        memory_swap_limit: match read("memory.swap.max") {
            Some(swap) => swap_limit(asked, memory.as_deref(), &swap),
            None => asked.memory_swap_limit,
        },
        oom_score_adj: asked.oom_score_adj,
        cpuset_cpus: list("cpuset.cpus", &asked.cpuset_cpus),
        cpuset_mems: list("cpuset.mems", &asked.cpuset_mems),
        hugepages: asked.hugepages.iter().map(of_hugepage).collect(),
        unified: asked.unified.iter().map(of_file).collect(),
    }
}

/// `QUOTA PERIOD` of cpu.max.
fn quota_and_period(text: &str) -> (Option<CpuQuota>, Option<u64>) {
    let mut words = text.split_ascii_whitespace();
    let quota = words.next().map(|quota| match quota.parse() {
        Ok(micros) => CpuQuota::Micros(micros),
        Err(_) => CpuQuota::Unlimited,
    });
    (quota, words.next().and_then(|period| period.parse().ok()))
}

/// Swap and memory together, which v2 does not know. Without a limit of memory there is no such sum.
fn swap_limit(asked: &Resources, memory: Option<&str>, swap: &str) -> Option<SwapLimit> {
    let Ok(swap) = swap.parse::<u64>() else {
        return Some(SwapLimit::Unlimited);
    };
    let memory: u64 = memory?.parse().ok()?;
    let both = memory.saturating_add(swap);
    Some(match asked.memory_swap_limit {
        // Both parts are rounded down.
        Some(SwapLimit::Bytes(asked)) => SwapLimit::Bytes(unrounded(both, Some(asked), 2 * PAGE)),
        None if swap == 0 => SwapLimit::Bytes(unrounded(both, asked.memory_limit, PAGE)),
        _ => SwapLimit::Bytes(both),
    })
}

/// What was asked for, if rounding it down gives `found`.
fn unrounded(found: u64, asked: Option<u64>, unit: u64) -> u64 {
    asked
        .filter(|asked| *asked >= found && asked - found < unit)
        .unwrap_or(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        let pairs = pairs.to_vec();
        move |file| {
            let found = pairs.iter().find(|(name, _)| *name == file);
            found.map(|(_, text)| format!("{text}\n"))
        }
    }

    #[test]
    fn what_was_asked_for_is_reported_where_the_files_say_what_became_of_it() {
        let asked = Resources {
            cpu_shares: Some(102),
            memory_limit: Some(100_000_000),
            oom_score_adj: 7,
            ..Resources::default()
        };
        let now = read_back(
            &asked,
            files(&[
                ("cpu.weight", "17"),
                ("cpu.max", "max 100000"),
                ("memory.max", "99999744"),
                ("memory.swap.max", "0"),
                ("cpuset.cpus", ""),
            ]),
        );
        let expected = Resources {
            cpu_quota: Some(CpuQuota::Unlimited),
            cpu_period: Some(100_000),
            memory_swap_limit: Some(SwapLimit::Bytes(100_000_000)),
            ..asked
        };
        assert_eq!(now, expected);
    }

    #[test]
    fn the_files_win_where_somebody_else_wrote_them() {
        let asked = Resources {
            cpu_shares: Some(1024),
            memory_limit: Some(1 << 20),
            memory_swap_limit: Some(SwapLimit::Bytes(2 << 20)),
            unified: [("pids.max".to_owned(), "10".to_owned())].into(),
            ..Resources::default()
        };
        let now = read_back(
            &asked,
            files(&[
                ("cpu.weight", "10000"),
                ("cpu.max", "20000 50000"),
                ("memory.max", "max"),
                ("memory.swap.max", "max"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "11"),
            ]),
        );
        let expected = Resources {
            cpu_shares: Some(261_960),
            cpu_quota: Some(CpuQuota::Micros(20_000)),
            cpu_period: Some(50_000),
            memory_limit: None,
            memory_swap_limit: Some(SwapLimit::Unlimited),
            cpuset_cpus: Some("0-1".to_owned()),
            unified: [("pids.max".to_owned(), "11".to_owned())].into(),
            ..Resources::default()
        };
        assert_eq!(weight_of_shares(now.cpu_shares.unwrap()), 10_000);
        assert_eq!(
            Resources {
                cpu_shares: expected.cpu_shares,
                ..now
            },
            expected
        );
    }

    #[test]
    fn without_controllers_the_request_is_all_there_is() {
        let asked = Resources {
            cpu_shares: Some(2),
            cpuset_cpus: Some("0".to_owned()),
            ..Resources::default()
        };
        assert_eq!(read_back(&asked, |_| None), asked);
    }
}
