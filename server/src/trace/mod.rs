//! OpenTelemetry traces: a span for each RPC and for each stage of it, sent to a collector by OTLP.
//!
//! ```text
//! cri::layers ──begin──▶ context ──▶ engine: stages ──spans──▶ export ──OTLP/gRPC──▶ collector
//! ```
//!
//! Owns which requests are traced and what becomes of their spans. Off, as it is by default, nothing here exists but a
//! task-local variable that is not set; on, no request ever waits for a collector.

pub mod context;
mod export;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::Tracing;
use context::{Parent, SpanId, TraceId};

/// Spans that wait for the collector; what comes when there are so many is dropped and counted.
const QUEUE: usize = 4096;

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counts {
    /// The collector has them.
    pub exported: AtomicU64,
    /// The queue was full.
    pub dropped: AtomicU64,
    /// The collector did not answer, or refused them.
    pub failed: AtomicU64,
}

/// A span that has ended.
#[derive(Debug)]
struct Ended {
    trace: TraceId,
    id: SpanId,
    parent: Option<SpanId>,
    state: String,
    name: String,
    /// Whether it answers a client, or is a part of that.
    serves: bool,
    began: SystemTime,
    took: Duration,
    attributes: Vec<(&'static str, Value)>,
    /// What went wrong.
    error: Option<String>,
}

/// The value of an attribute.
#[derive(Debug, Clone)]
enum Value {
    Text(String),
    Number(i64),
}

/// Decides what is traced and takes spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer {
    queue: mpsc::Sender<Ended>,
    counts: Arc<Counts>,
    per_million: u32,
}

/// What sends spans on.
#[derive(Debug)]
pub struct Exporting(JoinHandle<()>);

impl Tracer {
    /// Begins to send spans to the configured collector; `None` where there is none. Needs a tokio runtime.
    ///
    /// # Errors
    /// The endpoint is no URI; the configuration was checked for that.
    pub fn start(config: &Tracing) -> Result<Option<(Self, Exporting)>, tonic::transport::Error> {
        if config.endpoint.is_empty() {
            return Ok(None);
        }
        let (queue, spans) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let exporting = export::run(export::connect(&config.endpoint)?, spans, Arc::clone(&counts));
        let tracer = Self {
            queue,
            counts,
            per_million: config.samples_per_million,
        };
        Ok(Some((tracer, Exporting(tokio::spawn(exporting)))))
    }

    /// What became of spans so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Begins the span of an RPC where it is to be traced: as the client decided, or by the configured rate where the
    /// client says nothing.
    fn begin(&self, parent: Option<Parent>) -> Option<Root> {
        let (trace, above, state) = match parent {
            Some(parent) if parent.sampled => (parent.trace, Some(parent.span), parent.state),
            Some(_) => return None,
            None if self.per_million == 0 => return None,
            None => (TraceId::random_below(self.per_million)?, None, String::new()),
        };
        Some(Root {
            tracer: self.clone(),
            trace,
            id: SpanId::random()?,
            above,
            state,
            clock: Clock::start(),
        })
    }

    fn take(&self, span: Ended) {
        if self.queue.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Exporting {
    /// Sends what is waiting, for at most `patience`; all tracers are gone then.
    pub async fn finish(self, patience: Duration) {
        let abort = self.0.abort_handle();
        if tokio::time::timeout(patience, self.0).await.is_err() {
            abort.abort();
        }
    }
}

/// A beginning, as both clocks have it: one for people, one for durations.
#[derive(Debug, Clone, Copy)]
struct Clock(SystemTime, Instant);

impl Clock {
    fn start() -> Self {
        Self(SystemTime::now(), Instant::now())
    }
}

/// The span of an RPC that is being answered.
#[derive(Debug)]
pub struct Root {
    tracer: Tracer,
    trace: TraceId,
    id: SpanId,
    above: Option<SpanId>,
    state: String,
    clock: Clock,
}
