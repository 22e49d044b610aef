//! What is counted as it happens: durations of RPCs, stages and pulls, retries, and what a start found.
//!
//! Series come into being with their first event, so that a podd that does nothing has none. Every label has a fixed
//! set of values: nothing that a client sends becomes one.

use std::future::Future;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::trace::context::part;

/// Upper bounds in seconds, for what takes from less than a millisecond to a grace period.
const BRIEF: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0,
];

/// Upper bounds in seconds, for what depends on a network and a disk.
const LONG: &[f64] = &[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];

/// A part of an operation whose time is worth knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The record of a pod or a container is written before anything is made.
    Record,
    /// The cgroup of a pod, or its scope.
    PodCgroup,
    /// podinit is started.
    Podinit,
    /// podinit makes the pod's namespaces.
    Namespaces,
    /// The pod is connected to the network.
    Network,
    /// /etc/hosts, /etc/hostname and /etc/resolv.conf of the pod.
    PodFiles,
    /// The files of CDI devices are read.
    CdiDevices,
    /// The cgroup of a container.
    ContainerCgroup,
    /// A request becomes a plan; volumes are opened.
    Plan,
    /// The plan is carried out, up to the start gate.
    Launch,
    /// createRuntime hooks, while the container's first process waits in [`Stage::Launch`].
    CreateRuntimeHooks,
    /// From the opening of the gate to the application's execve.
    Start,
    /// poststart hooks.
    PoststartHooks,
    /// poststop hooks.
    PoststopHooks,
    /// Processes of a container are killed, until its exit is recorded.
    Kill,
    /// podinit ends.
    PodinitEnd,
    /// The pod's network is given back.
    NetworkEnd,
    /// What a dead container has outside its directory.
    ContainerRemoval,
    /// What a stopped pod has outside its directory.
    PodRemoval,
}

impl Stage {
    /// The stage as metrics and traces name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::PodCgroup => "pod_cgroup",
            Self::Podinit => "podinit",
            Self::Namespaces => "namespaces",
            Self::Network => "network",
            Self::PodFiles => "pod_files",
            Self::CdiDevices => "cdi_devices",
            Self::ContainerCgroup => "container_cgroup",
            Self::Plan => "plan",
            Self::Launch => "launch",
            Self::CreateRuntimeHooks => "create_runtime_hooks",
            Self::Start => "start",
            Self::PoststartHooks => "poststart_hooks",
            Self::PoststopHooks => "poststop_hooks",
            Self::Kill => "kill",
            Self::PodinitEnd => "podinit_end",
            Self::NetworkEnd => "network_end",
            Self::ContainerRemoval => "container_removal",
            Self::PodRemoval => "pod_removal",
        }
    }
}

impl EncodeLabelValue for Stage {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.name().encode(encoder)
    }
}

/// What a starting podd finds that an earlier one should not have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leak {
    /// A pod that was being made.
    Pod,
    /// A container that was being made.
    Container,
    /// A record that describes nothing.
    Record,
    /// A record that nobody can read.
    Unreadable,
    /// A network link of no pod.
    Link,
    /// A scope of systemd of no pod.
    Scope,
    /// A podinit of no pod.
    Podinit,
    /// A cgroup of no pod.
    Cgroup,
    /// A part of the image store.
    Image,
}

impl Leak {
    fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Container => "container",
            Self::Record => "record",
            Self::Unreadable => "unreadable_record",
            Self::Link => "link",
            Self::Scope => "scope",
            Self::Podinit => "podinit",
            Self::Cgroup => "cgroup",
            Self::Image => "image",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    rpc: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageResult {
    stage: Stage,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result_ {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Retried {
    rpc: &'static str,
    found: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Leaked {
    kind: &'static str,
    result: &'static str,
}

/// Makes histograms with these bounds.
#[derive(Debug, Clone, Copy)]
struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Durations<S> = Family<S, Histogram, Bounds>;

/// Everything that is counted as it happens. Cheap to clone: clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    rpcs: Durations<Rpc>,
    in_progress: Gauge,
    stages: Durations<StageResult>,
    pulls: Durations<Result_>,
    retries: Family<Retried, Counter>,
    leaks: Family<Leaked, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            rpcs: Family::new_with_constructor(Bounds(BRIEF)),
            in_progress: Gauge::default(),
            stages: Family::new_with_constructor(Bounds(BRIEF)),
            pulls: Family::new_with_constructor(Bounds(LONG)),
            retries: Family::default(),
            leaks: Family::default(),
        }
    }
}

/// An RPC that is being answered; dropped without an answer, its client has gone.
#[derive(Debug)]
pub struct Call {
    metrics: Metrics,
    rpc: &'static str,
    began: Instant,
    code: Code,
}

impl Call {
    /// Notes what the client is told.
    pub fn answered(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.metrics.in_progress.dec();
        let labels = Rpc {
            rpc: self.rpc,
            code: code_name(self.code),
        };
        let took = self.began.elapsed().as_secs_f64();
        self.metrics.rpcs.get_or_create(&labels).observe(took);
    }
}

impl Metrics {
    /// Begins to measure an RPC, named as in its URI. A name that is none of the CRI counts as `unknown`.
    #[must_use]
    pub fn call(&self, rpc: &str) -> Call {
        let known = podd_proto::RPCS.iter().find(|known| **known == rpc);
        self.in_progress.inc();
        Call {
            metrics: self.clone(),
            rpc: known.copied().unwrap_or("unknown"),
            began: Instant::now(),
            // Nobody waits for the answer any more.
            code: Code::Cancelled,
        }
    }

    /// Does `work` and notes how long it took and whether it failed, in the trace as well where there is one.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn stage<T, E>(&self, stage: Stage, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let began = Instant::now();
        let done = part(stage.name(), work).await;
        let labels = StageResult {
            stage,
            result: result(done.is_ok()),
        };
        let took = began.elapsed().as_secs_f64();
        self.stages.get_or_create(&labels).observe(took);
        done
    }

    /// Notes a pull that a client waited for.
    pub fn pulled(&self, took: Duration, ok: bool) {
        let labels = Result_ { result: result(ok) };
        self.pulls.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Notes a request that was asked before, and found that one still running.
    pub fn joined(&self, rpc: &'static str) {
        self.retried(rpc, "running");
    }

    /// Notes a request that was asked before, and found what that one had made.
    pub fn found_made(&self, rpc: &'static str) {
        self.retried(rpc, "done");
    }

    fn retried(&self, rpc: &'static str, found: &'static str) {
        self.retries.get_or_create(&Retried { rpc, found }).inc();
    }

    /// Notes what a start found and took away (`swept`), or could not.
    pub fn leaked(&self, kind: Leak, count: usize, swept: bool) {
        let labels = Leaked {
            kind: kind.name(),
            result: if swept { "swept" } else { "left" },
        };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.leaks.get_or_create(&labels).inc_by(count);
    }

    /// Gives everything a name and a description.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "rpc_duration_seconds",
            "Time from a request on the CRI socket to its answer; of a stream, to its beginning",
            self.rpcs.clone(),
        );
        registry.register(
            "rpcs_in_progress",
            "Requests on the CRI socket that are not answered yet",
            self.in_progress.clone(),
        );
        registry.register(
            "stage_duration_seconds",
            "Time that one part of an operation took",
            self.stages.clone(),
        );
        registry.register(
            "image_pull_duration_seconds",
            "Time that a client waited for PullImage",
            self.pulls.clone(),
        );
        registry.register(
            "retries",
            "Requests that had been asked before and were given the first one's result",
            self.retries.clone(),
        );
        registry.register(
            "start_leaks",
            "What this podd found at its start that an earlier one had not finished",
            self.leaks.clone(),
        );
    }
}

fn result(ok: bool) -> &'static str {
    if ok { "ok" } else { "error" }
}

/// The code as the gRPC specification spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        let mut registry = Registry::with_prefix("podd");
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn nothing_has_series_before_it_happened() {
        let text = text(&Metrics::default());
        let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(series, ["podd_rpcs_in_progress 0"]);
    }

    #[test]
    fn what_clients_send_is_no_label() {
        let metrics = Metrics::default();
        metrics.call("RunPodSandbox").answered(Code::Ok);
        metrics.call("of a client").answered(Code::Unimplemented);
        drop(metrics.call("StopContainer"));
        let text = text(&metrics);
        for line in [
            "podd_rpc_duration_seconds_count{rpc=\"RunPodSandbox\",code=\"OK\"} 1",
            "podd_rpc_duration_seconds_count{rpc=\"unknown\",code=\"UNIMPLEMENTED\"} 1",
            "podd_rpc_duration_seconds_count{rpc=\"StopContainer\",code=\"CANCELLED\"} 1",
            "podd_rpcs_in_progress 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("of a client"), "{text}");
    }

    #[tokio::test]
    async fn stages_tell_failures_apart() {
        let metrics = Metrics::default();
        assert_eq!(
            metrics.stage(Stage::Network, async { Ok::<_, ()>(1) }).await,
            Ok(1)
        );
        assert_eq!(
            metrics.stage(Stage::Network, async { Err::<(), _>(2) }).await,
            Err(2)
        );
        let text = text(&metrics);
        for result in ["ok", "error"] {
            let line =
                format!("podd_stage_duration_seconds_count{{stage=\"network\",result=\"{result}\"}} 1");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }
}
