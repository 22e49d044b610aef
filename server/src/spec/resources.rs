//! Resources in the form of an OCI spec; from there they become cgroup files.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::model::{CpuQuota, Resources, SwapLimit};

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
