//! Spans on their way to the collector: in batches, by OTLP over gRPC, and never back into the way of a request.
//!
//! A batch that cannot be delivered is given up and counted. Trying again would need memory for as long as a collector is
//! away; what is lost is a view of what happened, not what happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint, Error};

use super::{Counts, Ended, Value};

/// Most spans in one request.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the collector may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection that is made with the first batch, and made again after each loss.
pub(super) fn connect(endpoint: &str) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    Ok(endpoint.connect_timeout(CONNECT).timeout(ANSWER).connect_lazy())
}

/// Sends spans until there is nobody left who could make any.
pub(super) async fn run(channel: Channel, mut spans: mpsc::Receiver<Ended>, counts: Arc<Counts>) {
    let mut client = TraceServiceClient::new(channel);
    let (resource, mut reachable) = (resource(), true);
    while let Some(batch) = batch(&mut spans).await {
        let count = batch.len() as u64;
        let request = request(resource.clone(), batch);
        let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
        match client.export(request).await {
            Ok(answer) => {
                let refused = answer
                    .into_inner()
                    .partial_success
                    .map_or(0, |p| p.rejected_spans);
                let refused = u64::try_from(refused).unwrap_or(0).min(count);
                add(&counts.failed, refused);
                add(&counts.exported, count - refused);
                reachable = true;
            }
            Err(e) => {
                add(&counts.failed, count);
                // Once, not with every batch.
                if std::mem::replace(&mut reachable, false) {
                    tracing::warn!(spans = count, error = %e, "the collector of traces does not take spans");
                }
            }
        }
    }
}

/// What has come within a moment of the first; `None` when nothing can come any more.
async fn batch(spans: &mut mpsc::Receiver<Ended>) -> Option<Vec<Ended>> {
    let mut batch = vec![spans.recv().await?];
    let deadline = tokio::time::Instant::now() + LINGER;
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        match tokio::time::timeout_at(deadline, spans.recv_many(&mut batch, room)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    Some(batch)
}

fn request(resource: Resource, batch: Vec<Ended>) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "podd".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans: batch.into_iter().map(span).collect(),
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

/// Who sends, in the names of OpenTelemetry's semantic conventions.
fn resource() -> Resource {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let attributes = [
        ("service.name", "podd".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("host.name", host),
    ];
    let attributes = attributes.map(|(key, value)| attribute(key, Value::Text(value)));
    Resource {
        attributes: attributes.into(),
        ..Default::default()
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text),
        Value::Number(number) => any_value::Value::IntValue(number),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

fn span(ended: Ended) -> Span {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let began = ended
        .began
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let kind = match ended.serves {
        true => SpanKind::Server,
        false => SpanKind::Internal,
    };
    let attributes = ended.attributes.into_iter();
    Span {
        trace_id: ended.trace.0.into(),
        span_id: ended.id.0.into(),
        parent_span_id: ended.parent.map(|parent| parent.0.into()).unwrap_or_default(),
        trace_state: ended.state,
        // W3C: sampled.
        flags: 1,
        name: ended.name,
        kind: kind.into(),
        start_time_unix_nano: nanos(began),
        end_time_unix_nano: nanos(began + ended.took),
        attributes: attributes.map(|(key, value)| attribute(key, value)).collect(),
        status: ended.error.map(|message| Status {
            message,
            code: StatusCode::Error.into(),
        }),
        ..Default::default()
    }
}
