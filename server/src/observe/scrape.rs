//! What is counted when somebody asks: pods and containers, events and who reads them, what waits to be deleted, this
//! process.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;

use super::process::Usage;
use crate::engine::Engine;
use crate::state::feed::Counts;
use crate::state::phase::{ContainerPhase, PodPhase};
use crate::trace::Tracer;

/// Every metric of podd.
#[must_use]
pub fn registry(engine: &Arc<Engine>, tracer: Option<Tracer>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process));
    let podd = registry.sub_registry_with_prefix("podd");
    engine.metrics.register(podd);
    podd.register_collector(Box::new(World(Arc::clone(engine), tracer)));
    registry
}

/// Writes metrics whose values are at hand.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Result<(), Error> {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    /// `name` is without `_total`.
    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter(&value, None::<&Exemplar<NoLabelSet, f64>>)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[(&'static str, usize)],
    ) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.iter().try_for_each(|(of, count)| {
            let labels = [(label, *of)];
            metric.encode_family(&labels)?.encode_gauge(&(*count as u64))
        })
    }
}

#[derive(Debug)]
struct World(Arc<Engine>, Option<Tracer>);

impl Collector for World {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (engine, mut page) = (&self.0, Page(encoder));
        build(&mut page)?;
        objects(engine, &mut page)?;
        events(&engine.state.feed().counts(), &mut page)?;
        if let Some(tracer) = &self.1 {
            spans(tracer, &mut page)?;
        }
        if let Ok(runtime) = Handle::try_current() {
            page.gauge(
                "tasks",
                "Tasks of podd: of connections, requests, sessions, and in the background",
                runtime.metrics().num_alive_tasks() as u64,
            )?;
        }
        page.gauge(
            "podinits",
            "Processes podinit that podd is connected to",
            engine.native.podinits() as u64,
        )?;
        page.gauge(
            "operations_in_progress",
            "Operations that run, whether or not somebody waits for them",
            engine.operations() as u64,
        )?;
        if let Ok(waiting) = engine.state.records().trash().waiting() {
            page.gauge(
                "trash_directories",
                "Directories of removed pods and containers that are still to be deleted",
                waiting as u64,
            )?;
        }
        let images = engine.images.usage();
        page.gauge(
            "images",
            "Images in the local store",
            engine.images.list().len() as u64,
        )?;
        page.gauge("image_layers_bytes", "Bytes on disk of all layers", images.bytes)?;
        page.counter(
            "image_pull_bytes",
            "Bytes of layers that registries have sent, compressed as they were",
            engine.images.downloaded(),
        )
    }
}

fn build(page: &mut Page<'_>) -> Result<(), Error> {
    let mut metric = page
        .0
        .encode_descriptor("build", "This podd", None, MetricType::Info)?;
    metric.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
}

fn spans(tracer: &Tracer, page: &mut Page<'_>) -> Result<(), Error> {
    let counts = tracer.counts();
    let mut metric = page.0.encode_descriptor(
        "trace_spans",
        "Spans by what became of them: the collector has them, it did not take them, or too many waited for it",
        None,
        MetricType::Counter,
    )?;
    for (result, count) in [
        ("exported", &counts.exported),
        ("failed", &counts.failed),
        ("dropped", &counts.dropped),
    ] {
        let labels = [("result", result)];
        let count = count.load(Ordering::Relaxed);
        metric
            .encode_family(&labels)?
            .encode_counter(&count, None::<&Exemplar<NoLabelSet, f64>>)?;
    }
    Ok(())
}

/// Pods and containers by phase; a phase without any is told as zero.
fn objects(engine: &Engine, page: &mut Page<'_>) -> Result<(), Error> {
    let snapshot = engine.snapshot();
    let mut pods = [("creating", 0), ("ready", 0), ("not_ready", 0)];
    for pod in snapshot.pods() {
        pods[match pod.record.phase {
            PodPhase::Creating => 0,
            PodPhase::Ready => 1,
            PodPhase::NotReady => 2,
        }]
        .1 += 1;
    }
    let mut containers = [("creating", 0), ("created", 0), ("running", 0), ("exited", 0)];
    for container in snapshot.containers() {
        containers[match container.record.phase {
            ContainerPhase::Creating => 0,
            ContainerPhase::Created { .. } => 1,
            ContainerPhase::Running { .. } => 2,
            ContainerPhase::Exited(_) => 3,
        }]
        .1 += 1;
    }
    page.gauges("pods", "Pods by phase", "phase", &pods)?;
    page.gauges("containers", "Containers by phase", "phase", &containers)
}

/// GetContainerEvents.
fn events(counts: &Counts, page: &mut Page<'_>) -> Result<(), Error> {
    page.counter("events", "Events of pods and containers", counts.told)?;
    page.gauge(
        "event_readers",
        "Clients that read events now",
        counts.listeners as u64,
    )?;
    page.gauge(
        "event_queue_depth",
        "Events that the slowest reader has not taken yet",
        counts.waiting as u64,
    )?;
    page.gauge(
        "events_kept",
        "Events that are kept for the next reader, as there is none",
        counts.kept as u64,
    )?;
    page.counter(
        "events_missed",
        "Events that readers were cut off from because they were too slow",
        counts.missed,
    )
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let usage = match Usage::read() {
            Ok(usage) => usage,
            Err(e) => {
                tracing::warn!(error = %e, "cannot read what podd itself uses");
                return Ok(());
            }
        };
        let mut page = Page(encoder);
        page.counter("process_cpu_seconds", "User and system time of podd", usage.cpu)?;
        page.gauge("process_resident_memory_bytes", "Memory of podd", usage.resident)?;
        page.gauge(
            "process_virtual_memory_bytes",
            "Address space of podd",
            usage.virtual_memory,
        )?;
        page.gauge(
            "process_start_time_seconds",
            "When podd began, since 1970",
            usage.start,
        )?;
        page.gauge("process_open_fds", "Open files of podd", usage.open_files)?;
        page.gauge("process_max_fds", "How many files podd may open", usage.max_files)?;
        page.gauge("process_threads", "Threads of podd", usage.threads)
    }
}
