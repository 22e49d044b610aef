//! Every metric: its name, what it means, and how a sample of it is made.
//!
//! The names are those of KEP-2371, of what the kubelet served from cAdvisor, and what critest asks for. Of those are
//! left out what a cgroup of version 2 does not count: the times and merges of disks, sectors, load averages, the
//! states of tasks, and the peak of huge pages. Values are whole numbers, as the CRI has them; a time in seconds
//! loses its fraction. What the machine cannot tell has no sample.

use podd_proto::v1::MetricType::{self, Counter, Gauge};
use runtime_core::cgroup::{Bound, CpuStats, IoStats, MemoryStats, Pressure};

use super::{Samples, Source};
use crate::engine::metrics::Processes;
use crate::engine::stats::{GroupUsage, LinkUsage};

/// A metric.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    pub(super) help: &'static str,
    pub(super) read: Read,
}

/// How samples of a metric are made.
pub(super) enum Read {
    /// One of each object, or none.
    One(fn(&Source<'_>) -> Option<u64>),
    /// Several, which differ in these labels.
    Each(&'static [&'static str], fn(&Source<'_>, &mut Samples<'_>)),
}

use Read::{Each, One};

impl Family {
    /// The labels that it adds to those of every metric.
    pub(super) fn labels(&self) -> &'static [&'static str] {
        match self.read {
            One(_) => &[],
            Each(labels, _) => labels,
        }
    }
}

const fn family(name: &'static str, kind: MetricType, help: &'static str, read: Read) -> Family {
    Family {
        name,
        kind,
        help,
        read,
    }
}

impl Source<'_> {
    fn group(&self) -> Option<&GroupUsage> {
        self.reading.group.as_ref()
    }

    fn cpu(&self) -> Option<&CpuStats> {
        self.group().map(|group| &group.cpu)
    }

    fn memory(&self) -> Option<&MemoryStats> {
        self.group().map(|group| &group.memory)
    }

    fn processes(&self) -> Option<Processes> {
        self.reading.processes
    }

    fn each_device(&self, mut sample: impl FnMut(&str, &IoStats)) {
        for io in &self.reading.account.io {
            let name = self.devices.get(&io.device).map_or("", String::as_str);
            sample(name, io);
        }
    }

    fn link(&self, samples: &mut Samples<'_>, count: fn(&LinkUsage) -> u64) {
        if let Some(link) = &self.reading.link {
            samples.add(&[self.interface], count(link));
        }
    }

    /// A figure of the file system, which is the same for all containers and none of a pod's.
    fn disk(&self, samples: &mut Samples<'_>, count: fn(&crate::engine::metrics::Disk) -> u64) {
        if let (Some(disk), Some(_)) = (self.disk, self.reading.layer) {
            samples.add(&[&disk.device], count(disk));
        }
    }
}

/// Whole seconds.
fn seconds(usec: Option<u64>) -> Option<u64> {
    usec.map(|usec| usec / 1_000_000)
}

fn whole_seconds(nanos: i64) -> Option<u64> {
    u64::try_from(nanos / 1_000_000_000).ok()
}

fn some(pressure: Option<Pressure>) -> Option<u64> {
    seconds(pressure.map(|pressure| pressure.some.total_usec))
}

fn full(pressure: Option<Pressure>) -> Option<u64> {
    seconds(pressure.map(|pressure| pressure.full.total_usec))
}

/// A limit as cAdvisor writes it: 0 where there is none.
fn limit(bound: Option<Bound>) -> Option<u64> {
    bound.map(|bound| match bound {
        Bound::At(value) => value,
        Bound::None => 0,
    })
}

/// All metrics.
#[rustfmt::skip]
pub(super) const TABLE: &[Family] = &[
    family("container_cpu_usage_seconds_total", Counter, "Processor time used, in seconds.",
        Each(&["cpu"], |s, out| if let Some(used) = seconds(s.cpu().and_then(|c| c.usage_usec)) {
            out.add(&["total"], used);
        })),
    family("container_cpu_user_seconds_total", Counter, "Processor time used by applications, in seconds.",
        One(|s| seconds(s.cpu()?.user_usec))),
    family("container_cpu_system_seconds_total", Counter, "Processor time used by the kernel, in seconds.",
        One(|s| seconds(s.cpu()?.system_usec))),
    family("container_cpu_cfs_periods_total", Counter, "Periods in which the processor quota was in force.",
        One(|s| s.cpu()?.periods)),
    family("container_cpu_cfs_throttled_periods_total", Counter, "Periods in which the processor quota ran out.",
        One(|s| s.cpu()?.throttled_periods)),
    family("container_cpu_cfs_throttled_seconds_total", Counter, "Time without processor for want of quota, in seconds.",
        One(|s| seconds(s.cpu()?.throttled_usec))),

    family("container_memory_usage_bytes", Gauge, "Memory in use, caches included, in bytes.",
        One(|s| s.memory()?.usage)),
    family("container_memory_working_set_bytes", Gauge, "Memory in use less what is cheap to take away, in bytes.",
        One(|s| s.memory()?.working_set())),
    family("container_memory_max_usage_bytes", Gauge, "Most memory in use at once, in bytes.",
        One(|s| s.reading.account.memory_peak)),
    family("container_memory_rss", Gauge, "Anonymous memory, in bytes.",
        One(|s| s.memory()?.anon)),
    family("container_memory_cache", Gauge, "Memory that caches files, in bytes.",
        One(|s| s.memory()?.file)),
    family("container_memory_total_active_file_bytes", Gauge, "File cache in active use, in bytes.",
        One(|s| s.memory()?.active_file)),
    family("container_memory_total_inactive_file_bytes", Gauge, "File cache not used lately, in bytes.",
        One(|s| s.memory()?.inactive_file)),
    family("container_memory_mapped_file", Gauge, "Files mapped into memory, in bytes.",
        One(|s| s.memory()?.file_mapped)),
    family("container_memory_kernel_usage", Gauge, "Memory of the kernel's own, in bytes.",
        One(|s| s.memory()?.kernel)),
    family("container_memory_swap", Gauge, "Swap in use, in bytes.",
        One(|s| s.memory()?.swap_usage)),
    family("container_memory_failcnt", Counter, "How often the limit of memory was reached.",
        One(|s| s.reading.account.memory_limit_hits)),
    family("container_memory_failures_total", Counter, "Page faults; cgroup v2 counts them with those of cgroups below.",
        Each(&["failure_type", "scope"], |s, out| if let Some(memory) = s.memory() {
            let kinds = [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)];
            for (kind, faults) in kinds {
                for scope in ["container", "hierarchy"] {
                    if let Some(faults) = faults {
                        out.add(&[kind, scope], faults);
                    }
                }
            }
        })),
    family("container_oom_events_total", Counter, "Processes killed for want of memory.",
        One(|s| s.reading.account.oom_kills)),
    family("container_hugetlb_usage_bytes", Gauge, "Huge pages in use, in bytes.",
        Each(&["pagesize"], |s, out| for (size, bytes) in &s.reading.account.huge_pages {
            out.add(&[size], *bytes);
        })),

    family("container_pressure_cpu_waiting_seconds_total", Counter, "Time in which some task waited for a processor, in seconds.",
        One(|s| some(s.cpu()?.pressure))),
    family("container_pressure_cpu_stalled_seconds_total", Counter, "Time in which all tasks waited for a processor, in seconds.",
        One(|s| full(s.cpu()?.pressure))),
    family("container_pressure_memory_waiting_seconds_total", Counter, "Time in which some task waited for memory, in seconds.",
        One(|s| some(s.memory()?.pressure))),
    family("container_pressure_memory_stalled_seconds_total", Counter, "Time in which all tasks waited for memory, in seconds.",
        One(|s| full(s.memory()?.pressure))),
    family("container_pressure_io_waiting_seconds_total", Counter, "Time in which some task waited for a disk, in seconds.",
        One(|s| some(s.group()?.io))),
    family("container_pressure_io_stalled_seconds_total", Counter, "Time in which all tasks waited for a disk, in seconds.",
        One(|s| full(s.group()?.io))),

    family("container_fs_usage_bytes", Gauge, "What was written to the root of the container, in bytes.",
        Each(&["device"], |s, out| if let (Some(disk), Some(layer)) = (s.disk, s.reading.layer) {
            out.add_read(&[&disk.device], layer.bytes, layer.at);
        })),
    family("container_fs_limit_bytes", Gauge, "Size of the file system that containers write to, in bytes.",
        Each(&["device"], |s, out| s.disk(out, |disk| disk.bytes))),
    family("container_fs_inodes_total", Gauge, "Inodes of the file system that containers write to.",
        Each(&["device"], |s, out| s.disk(out, |disk| disk.inodes))),
    family("container_fs_inodes_free", Gauge, "Free inodes of the file system that containers write to.",
        Each(&["device"], |s, out| s.disk(out, |disk| disk.inodes_free))),
    family("container_fs_reads_bytes_total", Counter, "Bytes read from a block device.",
        Each(&["device"], |s, out| s.each_device(|name, io| out.add(&[name], io.read_bytes)))),
    family("container_fs_reads_total", Counter, "Reads from a block device.",
        Each(&["device"], |s, out| s.each_device(|name, io| out.add(&[name], io.reads)))),
    family("container_fs_writes_bytes_total", Counter, "Bytes written to a block device.",
        Each(&["device"], |s, out| s.each_device(|name, io| out.add(&[name], io.written_bytes)))),
    family("container_fs_writes_total", Counter, "Writes to a block device.",
        Each(&["device"], |s, out| s.each_device(|name, io| out.add(&[name], io.writes)))),
    family("container_blkio_device_usage_total", Counter, "Bytes read from and written to a block device.",
        Each(&["device", "major", "minor", "operation"], |s, out| s.each_device(|name, io| {
            let (major, minor) = (io.device.0.to_string(), io.device.1.to_string());
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
                out.add(&[name, &major, &minor, operation], bytes);
            }
        }))),

    family("container_network_receive_bytes_total", Counter, "Bytes received.",
        Each(&["interface"], |s, out| s.link(out, |link| link.rx_bytes))),
    family("container_network_receive_packets_total", Counter, "Packets received.",
        Each(&["interface"], |s, out| s.link(out, |link| link.rx_packets))),
    family("container_network_receive_packets_dropped_total", Counter, "Packets not received for want of room.",
        Each(&["interface"], |s, out| s.link(out, |link| link.rx_dropped))),
    family("container_network_receive_errors_total", Counter, "Errors on receipt.",
        Each(&["interface"], |s, out| s.link(out, |link| link.rx_errors))),
    family("container_network_transmit_bytes_total", Counter, "Bytes sent.",
        Each(&["interface"], |s, out| s.link(out, |link| link.tx_bytes))),
    family("container_network_transmit_packets_total", Counter, "Packets sent.",
        Each(&["interface"], |s, out| s.link(out, |link| link.tx_packets))),
    family("container_network_transmit_packets_dropped_total", Counter, "Packets not sent for want of room.",
        Each(&["interface"], |s, out| s.link(out, |link| link.tx_dropped))),
    family("container_network_transmit_errors_total", Counter, "Errors on sending.",
        Each(&["interface"], |s, out| s.link(out, |link| link.tx_errors))),

    family("container_processes", Gauge, "Processes.",
        One(|s| Some(s.processes()?.count))),
    family("container_threads", Gauge, "Threads, here and in cgroups below.",
        One(|s| s.reading.account.tasks)),
    family("container_threads_max", Gauge, "Most threads allowed; 0 without a limit.",
        One(|s| limit(s.reading.account.tasks_max))),
    family("container_file_descriptors", Gauge, "Open files, sockets among them.",
        One(|s| s.processes()?.descriptors)),
    family("container_sockets", Gauge, "Open sockets.",
        One(|s| s.processes()?.sockets)),
    family("container_ulimits_soft", Gauge, "Soft limits of the first process of the container.",
        Each(&["ulimit"], |s, out| if let Some(most) = s.reading.open_files_max {
            out.add(&["max_open_files"], most);
        })),

    family("container_spec_cpu_period", Gauge, "Period of the processor quota, in microseconds.",
        One(|s| s.reading.account.cpu_period)),
    family("container_spec_cpu_quota", Gauge, "Processor time allowed in each period, in microseconds.",
        One(|s| match s.reading.account.cpu_quota? {
            Bound::At(quota) => Some(quota),
            Bound::None => None,
        })),
    family("container_spec_cpu_shares", Gauge, "Weight among others that want a processor.",
        One(|s| s.reading.account.cpu_shares)),
    family("container_spec_memory_limit_bytes", Gauge, "Limit of memory in bytes; 0 without one.",
        One(|s| limit(s.reading.account.memory_max))),
    family("container_spec_memory_reservation_limit_bytes", Gauge, "Memory from which on allocation is slowed, in bytes; 0 without one.",
        One(|s| limit(s.reading.account.memory_high))),
    family("container_spec_memory_swap_limit_bytes", Gauge, "Limit of swap in bytes; 0 without one.",
        One(|s| limit(s.reading.account.swap_max))),

    family("container_start_time_seconds", Gauge, "When it was started, in seconds since 1970.",
        One(|s| whole_seconds(s.began))),
    family("container_last_seen", Gauge, "When it was looked at last, in seconds since 1970.",
        One(|s| whole_seconds(s.reading.at))),
    family("container_scrape_error", Gauge, "1 where its counters could not be read, else 0.",
        One(|s| Some(s.reading.failed.into()))),
];
