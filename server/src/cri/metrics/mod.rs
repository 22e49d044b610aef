//! ListMetricDescriptors, ListPodSandboxMetrics, and what the stream of the latter sends.
//!
//! Owns the labels and how a sample is made; `table` has the metrics themselves. A metric is one row of that table,
//! from which both its descriptor and its samples are made, so the two cannot differ.
//!
//! The labels are those of the kubelet's own /metrics/cadvisor, so that rules and dashboards go on working: `id` is
//! the path of the cgroup, `name` the id in the CRI. Samples of a pod as a whole have neither container nor image.

mod table;

use std::collections::HashMap;
use std::sync::Arc;

use podd_proto::v1;

use super::fault::Fault;
use super::list::{self, Calls};
use super::{Messages, convert, stats};
use crate::engine::Engine;
use crate::engine::metrics::{Disk, PodReading, Reading, Readings};
use crate::state::phase::{ContainerPhase, Nanos};
use crate::state::store::{Container, Pod};
use table::{Family, Read, TABLE};

/// Labels that every metric has, in the order of [`Source::labels`].
const LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// ListMetricDescriptors.
#[must_use]
pub fn describe() -> v1::ListMetricDescriptorsResponse {
    v1::ListMetricDescriptorsResponse {
        descriptors: descriptors(),
    }
}

fn descriptors() -> Vec<v1::MetricDescriptor> {
    let describe = |family: &Family| v1::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: LABELS
            .iter()
            .chain(family.labels())
            .map(|&key| key.to_owned())
            .collect(),
    };
    TABLE.iter().map(describe).collect()
}

/// ListPodSandboxMetrics: of pods that are ready, and their containers that are not over.
pub async fn list(engine: &Arc<Engine>) -> Result<v1::ListPodSandboxMetricsResponse, Fault> {
    let calls = Calls {
        whole: "ListPodSandboxMetrics",
        stream: "StreamPodSandboxMetrics",
    };
    let metrics = read(Arc::clone(engine), stats::select_pods(engine, None)).await?;
    let pod_metrics = calls.whole(engine, metrics.into_iter())?;
    Ok(v1::ListPodSandboxMetricsResponse { pod_metrics })
}

/// StreamPodSandboxMetrics, likewise.
pub fn stream(engine: &Arc<Engine>) -> Messages<v1::StreamPodSandboxMetricsResponse> {
    let found = stats::select_pods(engine, None);
    list::each_read(engine, found, read, |metrics| {
        v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics: vec![metrics],
        }
    })
}

async fn read(engine: Arc<Engine>, found: Vec<Arc<Pod>>) -> Result<Vec<v1::PodSandboxMetrics>, Fault> {
    let readings = engine.read_metrics(found).await.map_err(Arc::new)?;
    Ok(messages(&readings).collect())
}

/// What one object's samples are made of.
struct Source<'a> {
    reading: &'a Reading,
    /// When it began, in nanoseconds since 1970.
    began: Nanos,
    /// Name of the interface that the counters of the link are of.
    interface: &'a str,
    disk: Option<&'a Disk>,
    devices: &'a HashMap<(u32, u32), String>,
    /// Values of [`LABELS`].
    labels: [&'a str; 6],
}

/// Takes the samples of one family.
struct Samples<'a> {
    family: &'a Family,
    labels: &'a [&'a str; 6],
    out: &'a mut Vec<v1::Metric>,
}

impl Samples<'_> {
    /// A sample that was read just now, with the values of the labels that the family adds.
    fn add(&mut self, labels: &[&str], value: u64) {
        self.add_read(labels, value, 0);
    }

    /// A sample that was read at a time, in nanoseconds since 1970.
    fn add_read(&mut self, labels: &[&str], value: u64, at: Nanos) {
        debug_assert_eq!(labels.len(), self.family.labels().len(), "{}", self.family.name);
        self.out.push(v1::Metric {
            name: self.family.name.to_owned(),
            timestamp: at,
            metric_type: self.family.kind.into(),
            label_values: self
                .labels
                .iter()
                .chain(labels)
                .map(|&value| value.to_owned())
                .collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }
}

impl Source<'_> {
    fn samples(&self) -> Vec<v1::Metric> {
        let mut out = Vec::with_capacity(TABLE.len());
        for family in TABLE {
            let mut samples = Samples {
                family,
                labels: &self.labels,
                out: &mut out,
            };
            match family.read {
                Read::One(read) => {
                    if let Some(value) = read(self) {
                        samples.add(&[], value);
                    }
                }
                Read::Each(_, read) => read(self, &mut samples),
            }
        }
        out
    }
}

fn messages(readings: &Readings) -> impl Iterator<Item = v1::PodSandboxMetrics> {
    readings.pods.iter().map(|pod| message(pod, readings))
}

fn message(of: &PodReading, readings: &Readings) -> v1::PodSandboxMetrics {
    let (pod, metadata) = (&of.pod, &of.pod.config.metadata);
    let attachment = pod.record.attachment.as_ref();
    let path = cgroup(pod.record.cgroup.as_deref());
    let whole = Source {
        reading: &of.whole,
        began: pod.record.created_at,
        interface: attachment.map_or("", |attachment| attachment.interface.as_str()),
        disk: readings.disk.as_ref(),
        devices: &readings.devices,
        labels: [
            &path,
            pod.record.id.as_str(),
            "",
            "",
            &metadata.name,
            &metadata.namespace,
        ],
    };
    let containers = of.containers.iter().map(|(container, reading)| {
        let path = cgroup(container.record.cgroup.as_deref());
        let source = Source {
            reading,
            began: began(container),
            labels: [
                &path,
                container.record.id.as_str(),
                convert::image_name(&container.config.image),
                &container.config.metadata.name,
                &metadata.name,
                &metadata.namespace,
            ],
            ..whole
        };
        v1::ContainerMetrics {
            container_id: container.record.id.to_string(),
            metrics: source.samples(),
        }
    });
    v1::PodSandboxMetrics {
        pod_sandbox_id: pod.record.id.to_string(),
        container_metrics: containers.collect(),
        metrics: whole.samples(),
    }
}

/// The path of a cgroup as cAdvisor writes it.
fn cgroup(path: Option<&str>) -> String {
    let path = path.unwrap_or_default();
    format!("/{}", path.strip_prefix('/').unwrap_or(path))
}

fn began(container: &Container) -> Nanos {
    match container.record.phase {
        ContainerPhase::Running { started_at, .. } => started_at,
        _ => container.record.created_at,
    }
}

#[cfg(test)]
mod tests;
