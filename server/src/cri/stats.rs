//! ContainerStats, ListContainerStats, PodSandboxStats, ListPodSandboxStats, and what the streams of them send.
//!
//! Owns which counter becomes which field. A message has a timestamp above 0 wherever it is present, and a counter
//! that could not be read is absent, as the CRI wants it: 0 would be a measurement.

use std::sync::Arc;

use podd_proto::v1;
use runtime_core::cgroup::{MemoryStats, Pressure, PressureLine};
use tracing::Span;

use super::fault::Fault;
use super::list::{self, Calls};
use super::{Messages, convert, filter, image};
use crate::engine::stats::{self, ContainerUsage, GroupUsage, LayerUsage, LinkUsage, PodUsage};
use crate::engine::{Engine, EngineError};
use crate::state::phase::PodPhase;
use crate::state::store::{Container, Pod};

/// ContainerStats.
pub async fn container(
    engine: &Arc<Engine>,
    request: &v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse, Fault> {
    Span::current().record("container", &request.container_id);
    let found = engine.find_container(&request.container_id)?;
    if !stats::counts(&found) {
        return Err(Arc::new(EngineError::NotRunning {
            container: found.record.id,
            phase: found.record.phase.name(),
        })
        .into());
    }
    let usage = engine.containers_usage(vec![found]).await.map_err(Arc::new)?;
    let mountpoint = image::mountpoints(engine).1;
    Ok(v1::ContainerStatsResponse {
        stats: usage.iter().map(|u| container_stats(u, &mountpoint)).next(),
    })
}

/// ListContainerStats: of containers that are not over.
pub async fn list_containers(
    engine: &Arc<Engine>,
    wanted: Option<v1::ContainerStatsFilter>,
) -> Result<v1::ListContainerStatsResponse, Fault> {
    let calls = Calls {
        whole: "ListContainerStats",
        stream: "StreamContainerStats",
    };
    let stats = read_containers(Arc::clone(engine), select_containers(engine, wanted)).await?;
    let stats = calls.whole(engine, stats.into_iter())?;
    Ok(v1::ListContainerStatsResponse { stats })
}

/// StreamContainerStats, likewise.
pub fn stream_containers(
    engine: &Arc<Engine>,
    wanted: Option<v1::ContainerStatsFilter>,
) -> Messages<v1::StreamContainerStatsResponse> {
    let found = select_containers(engine, wanted);
    list::each_read(engine, found, read_containers, |stats| {
        v1::StreamContainerStatsResponse {
            container_stats: vec![stats],
        }
    })
}

fn select_containers(engine: &Engine, wanted: Option<v1::ContainerStatsFilter>) -> Vec<Arc<Container>> {
    let wanted = wanted.unwrap_or_default();
    engine
        .snapshot()
        .containers()
        .filter(|c| stats::counts(c) && filter::container_stats(&wanted, c))
        .cloned()
        .collect()
}

async fn read_containers(
    engine: Arc<Engine>,
    found: Vec<Arc<Container>>,
) -> Result<Vec<v1::ContainerStats>, Fault> {
    let usage = engine.containers_usage(found).await.map_err(Arc::new)?;
    let mountpoint = image::mountpoints(&engine).1;
    Ok(usage.iter().map(|u| container_stats(u, &mountpoint)).collect())
}

/// PodSandboxStats.
pub async fn pod(
    engine: &Arc<Engine>,
    request: &v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse, Fault> {
    Span::current().record("pod", &request.pod_sandbox_id);
    let found = engine.find_pod(&request.pod_sandbox_id)?;
    let usage = engine.pods_usage(vec![found]).await.map_err(Arc::new)?;
    let mountpoint = image::mountpoints(engine).1;
    Ok(v1::PodSandboxStatsResponse {
        stats: usage.iter().map(|u| pod_stats(u, &mountpoint)).next(),
    })
}

/// ListPodSandboxStats: of pods that are ready.
pub async fn list_pods(
    engine: &Arc<Engine>,
    wanted: Option<v1::PodSandboxStatsFilter>,
) -> Result<v1::ListPodSandboxStatsResponse, Fault> {
    let calls = Calls {
        whole: "ListPodSandboxStats",
        stream: "StreamPodSandboxStats",
    };
    let stats = read_pods(Arc::clone(engine), select_pods(engine, wanted)).await?;
    let stats = calls.whole(engine, stats.into_iter())?;
    Ok(v1::ListPodSandboxStatsResponse { stats })
}

/// StreamPodSandboxStats, likewise.
pub fn stream_pods(
    engine: &Arc<Engine>,
    wanted: Option<v1::PodSandboxStatsFilter>,
) -> Messages<v1::StreamPodSandboxStatsResponse> {
    let found = select_pods(engine, wanted);
    list::each_read(engine, found, read_pods, |stats| {
        v1::StreamPodSandboxStatsResponse {
            pod_sandbox_stats: vec![stats],
        }
    })
}

/// The pods that statistics and metrics are of: those that are ready.
pub(super) fn select_pods(engine: &Engine, wanted: Option<v1::PodSandboxStatsFilter>) -> Vec<Arc<Pod>> {
    let wanted = wanted.unwrap_or_default();
    engine
        .snapshot()
        .pods()
        .filter(|p| p.record.phase == PodPhase::Ready && filter::pod_stats(&wanted, p))
        .cloned()
        .collect()
}

async fn read_pods(engine: Arc<Engine>, found: Vec<Arc<Pod>>) -> Result<Vec<v1::PodSandboxStats>, Fault> {
    let usage = engine.pods_usage(found).await.map_err(Arc::new)?;
    let mountpoint = image::mountpoints(&engine).1;
    Ok(usage.iter().map(|u| pod_stats(u, &mountpoint)).collect())
}

fn pod_stats(usage: &PodUsage, mountpoint: &str) -> v1::PodSandboxStats {
    let pod = &usage.pod;
    let (group, attachment) = (usage.group.as_ref(), pod.record.attachment.as_ref());
    let interface = attachment.zip(usage.link).map(|(attachment, link)| {
        let others = usage.other_links.iter();
        v1::NetworkUsage {
            timestamp: link.at,
            default_interface: Some(interface_usage(&attachment.interface, link)),
            interfaces: others.map(|(name, link)| interface_usage(name, *link)).collect(),
        }
    });
    let containers = usage.containers.iter();
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: pod.record.id.to_string(),
            metadata: Some(convert::pod_metadata(&pod.config.metadata)),
            labels: convert::map(&pod.config.labels),
            annotations: convert::map(&pod.config.annotations),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: group.map(cpu),
            memory: group.map(memory),
            network: interface,
            process: usage.processes.map(|(timestamp, count)| v1::ProcessUsage {
                timestamp,
                process_count: number(Some(count)),
            }),
            containers: containers.map(|u| container_stats(u, mountpoint)).collect(),
            io: group.and_then(io),
        }),
        windows: None,
    }
}

fn container_stats(usage: &ContainerUsage, mountpoint: &str) -> v1::ContainerStats {
    let container = &usage.container;
    let group = usage.group.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: container.record.id.to_string(),
            metadata: Some(convert::metadata(container)),
            labels: convert::map(&container.config.labels),
            annotations: convert::map(&container.config.annotations),
        }),
        cpu: group.map(cpu),
        memory: group.map(memory),
        writable_layer: usage.layer.map(|layer| writable_layer(layer, mountpoint)),
        swap: group.and_then(swap),
        io: group.and_then(io),
    }
}

fn cpu(group: &GroupUsage) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: group.at,
        usage_core_nano_seconds: number(group.cpu.usage_usec.map(|usec| usec.saturating_mul(1000))),
        usage_nano_cores: number(group.nano_cores),
        psi: group.cpu.pressure.map(psi),
    }
}

fn memory(group: &GroupUsage) -> v1::MemoryUsage {
    let memory = &group.memory;
    v1::MemoryUsage {
        timestamp: group.at,
        working_set_bytes: number(memory.working_set()),
        available_bytes: number(available(memory)),
        usage_bytes: number(memory.usage),
        rss_bytes: number(memory.anon),
        page_faults: number(memory.page_faults),
        major_page_faults: number(memory.major_page_faults),
        psi: memory.pressure.map(psi),
    }
}

fn available(memory: &MemoryStats) -> Option<u64> {
    Some(memory.limit?.saturating_sub(memory.working_set()?))
}

fn swap(group: &GroupUsage) -> Option<v1::SwapUsage> {
    let used = group.memory.swap_usage?;
    let left = group.memory.swap_limit.map(|limit| limit.saturating_sub(used));
    Some(v1::SwapUsage {
        timestamp: group.at,
        swap_available_bytes: number(left),
        swap_usage_bytes: number(Some(used)),
    })
}

fn io(group: &GroupUsage) -> Option<v1::IoUsage> {
    let stalled = group.io?;
    Some(v1::IoUsage {
        timestamp: group.at,
        psi: Some(psi(stalled)),
    })
}

fn writable_layer(layer: LayerUsage, mountpoint: &str) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: layer.at,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: mountpoint.to_owned(),
        }),
        used_bytes: number(Some(layer.bytes)),
        inodes_used: number(Some(layer.inodes)),
    }
}

fn psi(pressure: Pressure) -> v1::PsiStats {
    let line = |line: PressureLine| v1::PsiData {
        total: line.total_usec.saturating_mul(1000),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    v1::PsiStats {
        full: Some(line(pressure.full)),
        some: Some(line(pressure.some)),
    }
}

fn interface_usage(name: &str, link: LinkUsage) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: name.to_owned(),
        rx_bytes: number(Some(link.rx_bytes)),
        rx_errors: number(Some(link.rx_errors)),
        tx_bytes: number(Some(link.tx_bytes)),
        tx_errors: number(Some(link.tx_errors)),
    }
}

fn number(value: Option<u64>) -> Option<v1::UInt64Value> {
    value.map(|value| v1::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime_core::cgroup::CpuStats;

    use crate::state::record::tests;

    fn value(number: Option<v1::UInt64Value>) -> Option<u64> {
        number.map(|n| n.value)
    }

    fn group() -> GroupUsage {
        let some = PressureLine {
            total_usec: 7,
            avg10: 1.5,
            avg60: 0.5,
            avg300: 0.25,
        };
        let pressure = Some(Pressure {
            some,
            full: PressureLine::default(),
        });
        GroupUsage {
            at: 5,
            cpu: CpuStats {
                usage_usec: Some(12),
                pressure,
                ..CpuStats::default()
            },
            nano_cores: Some(3),
            memory: MemoryStats {
                usage: Some(1000),
                limit: Some(1500),
                inactive_file: Some(400),
                anon: Some(200),
                page_faults: Some(8),
                major_page_faults: Some(1),
                swap_usage: Some(30),
                swap_limit: Some(50),
                ..MemoryStats::default()
            },
            io: pressure,
        }
    }

    #[test]
    fn counters_land_in_their_fields() {
        let pod = tests::pod("a", 0);
        let usage = ContainerUsage {
            container: Arc::new(tests::container(&pod, "c")),
            group: Some(group()),
            layer: Some(LayerUsage {
                at: 9,
                bytes: 4096,
                inodes: 2,
            }),
        };
        let stats = container_stats(&usage, "/var/lib/podd");
        let attributes = stats.attributes.unwrap();
        assert_eq!(attributes.id, usage.container.record.id.as_str());
        assert_eq!(attributes.metadata.unwrap().name, "c");
        assert_eq!(attributes.labels["role"], "c");
        let cpu = stats.cpu.unwrap();
        assert_eq!(cpu.timestamp, 5);
        assert_eq!(value(cpu.usage_core_nano_seconds), Some(12_000));
        assert_eq!(value(cpu.usage_nano_cores), Some(3));
        let some = cpu.psi.unwrap().some.unwrap();
        assert_eq!((some.total, some.avg10, some.avg300), (7000, 1.5, 0.25));
        let memory = stats.memory.unwrap();
        assert_eq!(value(memory.working_set_bytes), Some(600));
        assert_eq!(value(memory.available_bytes), Some(900));
        assert_eq!(value(memory.usage_bytes), Some(1000));
        assert_eq!(value(memory.rss_bytes), Some(200));
        assert_eq!(value(memory.page_faults), Some(8));
        assert_eq!(value(memory.major_page_faults), Some(1));
        assert!(memory.psi.is_none());
        let swap = stats.swap.unwrap();
        assert_eq!(value(swap.swap_usage_bytes), Some(30));
        assert_eq!(value(swap.swap_available_bytes), Some(20));
        assert_eq!(stats.io.unwrap().psi.unwrap().some.unwrap().total, 7000);
        let layer = stats.writable_layer.unwrap();
        assert_eq!(layer.fs_id.unwrap().mountpoint, "/var/lib/podd");
        assert_eq!(
            (value(layer.used_bytes), value(layer.inodes_used)),
            (Some(4096), Some(2))
        );
    }

    #[test]
    fn what_was_not_read_is_absent() {
        let mut group = group();
        group.memory = MemoryStats {
            usage: Some(10),
            inactive_file: Some(20),
            ..MemoryStats::default()
        };
        group.cpu = CpuStats::default();
        assert_eq!(value(memory(&group).working_set_bytes), Some(0));
        assert_eq!(memory(&group).available_bytes, None, "no limit");
        assert_eq!(swap(&group), None);
        assert_eq!(cpu(&group).usage_core_nano_seconds, None);
        assert_eq!(cpu(&group).timestamp, 5, "critest asks for it");

        let pod = tests::pod("a", 0);
        let usage = ContainerUsage {
            container: Arc::new(tests::container(&pod, "c")),
            group: None,
            layer: None,
        };
        let stats = container_stats(&usage, "/");
        assert!(stats.attributes.is_some() && stats.cpu.is_none() && stats.writable_layer.is_none());
    }

    #[test]
    fn a_pod_has_a_network_only_of_its_own() {
        let mut usage = PodUsage {
            pod: Arc::new(tests::pod("a", 0)),
            group: Some(group()),
            link: Some(LinkUsage {
                at: 6,
                rx_bytes: 1,
                rx_packets: 5,
                rx_errors: 2,
                rx_dropped: 6,
                tx_bytes: 3,
                tx_packets: 7,
                tx_errors: 4,
                tx_dropped: 8,
            }),
            other_links: Vec::new(),
            processes: Some((8, 2)),
            containers: Vec::new(),
        };
        let linux = pod_stats(&usage, "/").linux.unwrap();
        assert!(linux.network.is_none(), "no attachment");
        assert_eq!(value(linux.process.unwrap().process_count), Some(2));
        let mut pod = tests::pod("a", 0);
        pod.record.attachment = Some(podd_netplug::Attachment {
            id: "a".to_owned(),
            host_link: "veth0".to_owned(),
            host_link_index: 7,
            interface: "eth0".to_owned(),
            gateways: Vec::new(),
            addresses: Vec::new(),
            mac: podd_netplug::MacAddress([2, 0, 0, 0, 0, 1]),
            ports: Vec::new(),
        });
        usage.pod = Arc::new(pod);
        let stats = pod_stats(&usage, "/");
        assert_eq!(stats.attributes.unwrap().labels["app"], "a");
        let network = stats.linux.unwrap().network.unwrap();
        let interface = network.default_interface.unwrap();
        assert_eq!((network.timestamp, interface.name.as_str()), (6, "eth0"));
        assert_eq!(
            (value(interface.rx_bytes), value(interface.tx_bytes)),
            (Some(1), Some(3))
        );
    }
}
