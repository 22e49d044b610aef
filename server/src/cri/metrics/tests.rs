use std::collections::HashSet;

use runtime_core::cgroup::{Account, Bound, CpuStats, IoStats, MemoryStats, Pressure, PressureLine};

use super::*;
use crate::engine::metrics::Processes;
use crate::engine::stats::{GroupUsage, LayerUsage, LinkUsage};
use crate::state::record::tests;

fn pressure() -> Option<Pressure> {
    let line = |total_usec| PressureLine {
        total_usec,
        ..PressureLine::default()
    };
    Some(Pressure {
        some: line(9_000_000),
        full: line(8_500_000),
    })
}

/// An object of which everything is known.
fn full() -> Reading {
    let memory = MemoryStats {
        usage: Some(1000),
        limit: Some(1500),
        inactive_file: Some(400),
        active_file: Some(150),
        file_mapped: Some(60),
        file: Some(550),
        anon: Some(200),
        kernel: Some(70),
        page_faults: Some(8),
        major_page_faults: Some(1),
        swap_usage: Some(30),
        swap_limit: Some(50),
        pressure: pressure(),
    };
    let cpu = CpuStats {
        usage_usec: Some(12_900_000),
        user_usec: Some(10_000_000),
        system_usec: Some(2_900_000),
        periods: Some(20),
        throttled_periods: Some(5),
        throttled_usec: Some(1_999_999),
        pressure: pressure(),
    };
    let io = IoStats {
        device: (8, 1),
        read_bytes: 4096,
        written_bytes: 8192,
        reads: 1,
        writes: 2,
    };
    Reading {
        at: 77_000_000_001,
        group: Some(GroupUsage {
            at: 5,
            cpu,
            nano_cores: None,
            memory,
            io: pressure(),
        }),
        account: Account {
            io: vec![io],
            memory_peak: Some(1200),
            memory_limit_hits: Some(3),
            oom_kills: Some(2),
            huge_pages: vec![("2MB".to_owned(), 2 << 20)],
            tasks: Some(7),
            tasks_max: Some(Bound::At(100)),
            cpu_quota: Some(Bound::At(20_000)),
            cpu_period: Some(100_000),
            cpu_shares: Some(1024),
            memory_max: Some(Bound::At(1500)),
            memory_high: Some(Bound::None),
            swap_max: Some(Bound::At(50)),
        },
        failed: false,
        processes: Some(Processes {
            count: 4,
            descriptors: Some(30),
            sockets: Some(6),
        }),
        open_files_max: Some(1024),
        layer: Some(LayerUsage {
            at: 66,
            bytes: 4096,
            inodes: 2,
        }),
        link: Some(LinkUsage {
            at: 6,
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 5,
            tx_packets: 6,
            tx_errors: 7,
            tx_dropped: 8,
        }),
    }
}

fn samples(reading: &Reading) -> Vec<v1::Metric> {
    let disk = Disk {
        device: "/dev/sda1".to_owned(),
        bytes: 1 << 30,
        inodes: 1000,
        inodes_free: 900,
    };
    let source = Source {
        reading,
        began: 55_999_999_999,
        interface: "eth0",
        disk: Some(&disk),
        devices: &[((8, 1), "/dev/sda1".to_owned())].into(),
        labels: ["/pod/c", "1234", "busybox:1", "c", "a", "default"],
    };
    source.samples()
}

/// Value of the sample with this name and these values of the family's own labels.
fn value(samples: &[v1::Metric], name: &str, labels: &[&str]) -> Option<u64> {
    let mut found = samples
        .iter()
        .filter(|m| m.name == name && m.label_values[LABELS.len()..] == *labels);
    let value = found.next()?.value.map(|v| v.value);
    assert!(found.next().is_none(), "{name} {labels:?} twice");
    value
}

#[test]
fn descriptors_and_samples_agree() {
    let descriptors = descriptors();
    let keys: HashMap<_, _> = descriptors
        .iter()
        .map(|d| (d.name.as_str(), d.label_keys.len()))
        .collect();
    assert_eq!(keys.len(), descriptors.len(), "a name twice");
    let (samples, mut seen) = (samples(&full()), HashSet::new());
    for sample in &samples {
        assert_eq!(
            keys.get(sample.name.as_str()),
            Some(&sample.label_values.len()),
            "{}",
            sample.name
        );
        seen.insert((sample.name.as_str(), &sample.label_values));
    }
    assert_eq!(seen.len(), samples.len(), "Prometheus takes no sample twice");
    for descriptor in &descriptors {
        assert!(
            samples.iter().any(|s| s.name == descriptor.name),
            "nothing of {}",
            descriptor.name
        );
        assert!(descriptor.name.starts_with("container_"), "{}", descriptor.name);
        assert!(!descriptor.help.is_empty());
        let distinct: HashSet<_> = descriptor.label_keys.iter().collect();
        assert_eq!(distinct.len(), descriptor.label_keys.len(), "{}", descriptor.name);
        let counter = match descriptor.name.as_str() {
            "container_fs_inodes_total" => false,
            name => name.ends_with("_total") || name.ends_with("failcnt"),
        };
        let kind = samples
            .iter()
            .find(|s| s.name == descriptor.name)
            .unwrap()
            .metric_type();
        assert_eq!(kind == v1::MetricType::Counter, counter, "{}", descriptor.name);
    }
}

/// What critest asks for at Kubernetes 1.37, but for the peak of huge pages, which version 2 does not count.
#[test]
fn nothing_that_is_asked_for_is_missing() {
    let known: HashSet<_> = descriptors().into_iter().map(|d| d.name).collect();
    let families = [
        ("blkio", "device_usage_total"),
        (
            "cpu",
            "cfs_periods_total cfs_throttled_periods_total cfs_throttled_seconds_total system_seconds_total \
             usage_seconds_total user_seconds_total",
        ),
        (
            "fs",
            "inodes_free inodes_total limit_bytes reads_bytes_total reads_total usage_bytes writes_bytes_total \
             writes_total",
        ),
        ("hugetlb", "usage_bytes"),
        (
            "memory",
            "cache failcnt failures_total kernel_usage mapped_file max_usage_bytes rss swap usage_bytes \
             working_set_bytes",
        ),
        (
            "network",
            "receive_bytes_total receive_errors_total receive_packets_dropped_total receive_packets_total \
             transmit_bytes_total transmit_errors_total transmit_packets_dropped_total transmit_packets_total",
        ),
        (
            "pressure",
            "cpu_stalled_seconds_total cpu_waiting_seconds_total io_stalled_seconds_total io_waiting_seconds_total \
             memory_stalled_seconds_total memory_waiting_seconds_total",
        ),
        (
            "spec",
            "cpu_period cpu_quota cpu_shares memory_limit_bytes memory_reservation_limit_bytes \
             memory_swap_limit_bytes",
        ),
    ];
    let single = "container_file_descriptors container_last_seen container_oom_events_total container_processes \
                  container_sockets container_start_time_seconds container_threads container_threads_max \
                  container_ulimits_soft container_scrape_error";
    let grouped = families.iter().flat_map(|(group, names)| {
        names
            .split_whitespace()
            .map(move |name| format!("container_{group}_{name}"))
    });
    for name in grouped.chain(single.split_whitespace().map(str::to_owned)) {
        assert!(known.contains(&name), "{name}");
    }
}

#[test]
fn counters_land_in_their_samples() {
    let samples = samples(&full());
    for (name, labels, expected) in [
        ("container_cpu_usage_seconds_total", &["total"][..], 12),
        ("container_cpu_cfs_throttled_seconds_total", &[], 1),
        ("container_memory_working_set_bytes", &[], 600),
        ("container_memory_max_usage_bytes", &[], 1200),
        ("container_memory_failures_total", &["pgmajfault", "hierarchy"], 1),
        ("container_oom_events_total", &[], 2),
        ("container_hugetlb_usage_bytes", &["2MB"], 2 << 20),
        ("container_pressure_io_waiting_seconds_total", &[], 9),
        ("container_pressure_memory_stalled_seconds_total", &[], 8),
        ("container_fs_usage_bytes", &["/dev/sda1"], 4096),
        ("container_fs_inodes_free", &["/dev/sda1"], 900),
        ("container_fs_writes_total", &["/dev/sda1"], 2),
        (
            "container_blkio_device_usage_total",
            &["/dev/sda1", "8", "1", "Write"],
            8192,
        ),
        ("container_network_receive_packets_dropped_total", &["eth0"], 4),
        ("container_network_transmit_errors_total", &["eth0"], 7),
        ("container_threads_max", &[], 100),
        ("container_sockets", &[], 6),
        ("container_ulimits_soft", &["max_open_files"], 1024),
        ("container_spec_cpu_quota", &[], 20_000),
        ("container_spec_memory_reservation_limit_bytes", &[], 0),
        ("container_start_time_seconds", &[], 55),
        ("container_last_seen", &[], 77),
        ("container_scrape_error", &[], 0),
    ] {
        assert_eq!(value(&samples, name, labels), Some(expected), "{name} {labels:?}");
    }
    let first = &samples[0];
    assert_eq!(
        first.label_values[..LABELS.len()],
        ["/pod/c", "1234", "busybox:1", "c", "a", "default"]
    );
    let at = |name: &str| samples.iter().find(|s| s.name == name).unwrap().timestamp;
    assert_eq!(
        (at("container_fs_usage_bytes"), at("container_memory_rss")),
        (66, 0)
    );
}

#[test]
fn what_was_not_read_has_no_sample() {
    let nothing = Reading {
        failed: true,
        ..Reading::default()
    };
    let samples = samples(&nothing);
    let mut names: Vec<_> = samples.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "container_last_seen",
            "container_scrape_error",
            "container_start_time_seconds"
        ]
    );
    assert_eq!(value(&samples, "container_scrape_error", &[]), Some(1));
}

#[test]
fn a_pod_is_told_from_its_containers() {
    let mut parent = tests::pod("a", 0);
    parent.record.cgroup = Some("kubepods/pod1".to_owned());
    let mut child = tests::container(&parent, "c");
    child.record.cgroup = Some("kubepods/pod1/c".to_owned());
    let readings = Readings {
        pods: vec![PodReading {
            pod: Arc::new(parent),
            whole: full(),
            containers: vec![(Arc::new(child), full())],
        }],
        ..Readings::default()
    };
    let message = messages(&readings).next().unwrap();
    let pod = &readings.pods[0].pod.record.id;
    assert_eq!(message.pod_sandbox_id, pod.as_str());
    assert_eq!(
        message.metrics[0].label_values[..LABELS.len()],
        ["/kubepods/pod1", pod.as_str(), "", "", "a", "default"]
    );
    let inside = &message.container_metrics[0];
    assert_eq!(
        inside.metrics[0].label_values[..LABELS.len()],
        [
            "/kubepods/pod1/c",
            &inside.container_id,
            "busybox:1",
            "c",
            "a",
            "default"
        ]
    );
}
