//! A collector of OpenTelemetry traces: takes what is exported by OTLP over gRPC, and remembers it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
pub use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::runtime::Runtime;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A running collector; it ends with the value.
#[derive(Debug)]
pub struct Collector {
    received: Received,
    _runtime: Runtime,
}

/// The attributes of what sent a span, and the span.
pub type Sent = (BTreeMap<String, String>, Span);

#[derive(Debug, Clone, Default)]
struct Received(Arc<Mutex<Vec<Sent>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for group in request.into_inner().resource_spans {
            let resource = group
                .resource
                .map(|r| attributes(&r.attributes))
                .unwrap_or_default();
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            received.extend(spans.map(|span| (resource.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on `address`.
    ///
    /// # Errors
    /// The address is taken.
    pub fn start(address: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let received = Received::default();
        let service = TraceServiceServer::new(received.clone());
        let guard = runtime.enter();
        let incoming = TcpIncoming::bind(address).with_context(|| format!("listen on {address}"))?;
        drop(guard);
        runtime.spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        Ok(Self {
            received,
            _runtime: runtime,
        })
    }

    /// Every span that has come.
    #[must_use]
    pub fn spans(&self) -> Vec<Sent> {
        self.received
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Attributes whose values are texts or numbers, as texts.
#[must_use]
pub fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    };
    pairs
        .iter()
        .filter_map(|pair| Some((pair.key.clone(), text(pair)?)))
        .collect()
}
