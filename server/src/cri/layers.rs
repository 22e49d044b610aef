//! What every RPC gets without asking: a span, one line in the log, a place in the metrics, and an answer even when its
//! handler panics or its client's deadline passes.
//!
//! Owns the logging of requests and their failures: no handler logs an error that it returns. The span carries
//! the ids of the pod and the container, which the handlers record.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::FutureExt as _;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use super::deadline::Deadline;
use super::fault::Fault;
use crate::observe::metrics::Metrics;
use crate::trace::{Root, Tracer};

/// Wraps the services with [`Observed`].
#[derive(Debug, Clone, Default)]
pub struct Observe {
    metrics: Metrics,
    tracer: Option<Tracer>,
}

impl Observe {
    /// Counts in `metrics`, and traces where there is somebody to send traces to.
    #[must_use]
    pub fn new(metrics: Metrics, tracer: Option<Tracer>) -> Self {
        Self { metrics, tracer }
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed {
            inner,
            metrics: self.metrics.clone(),
            tracer: self.tracer.clone(),
        }
    }
}

/// A service whose requests run in a span of their own.
#[derive(Debug, Clone)]
pub struct Observed<S> {
    inner: S,
    metrics: Metrics,
    tracer: Option<Tracer>,
}

impl<S, B> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let rpc = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let call = self.metrics.call(&rpc);
        let span = info_span!("rpc", name = rpc, pod = Empty, container = Empty, trace = Empty);
        let root = Root::begin(self.tracer.as_ref(), request.headers());
        let method = root.as_ref().map(|root| {
            span.record("trace", tracing::field::display(root.trace()));
            request.uri().path().trim_start_matches('/').to_owned()
        });
        let deadline = Deadline::of(request.headers());
        // The service that was polled ready is the one that must be called.
        let other = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, other);
        let work = async move {
            let began = Instant::now();
            let answer = AssertUnwindSafe(async move { inner.call(request).await }).catch_unwind();
            let response = match Deadline::within(deadline, answer).await {
                Ok(Ok(Ok(response))) => response,
                Ok(Err(_)) => Status::from(Fault::Panicked(rpc.clone())).into_http(),
                Err(patience) => Status::from(Fault::ClientDeadline(rpc.clone(), patience)).into_http(),
            };
            let status = Status::from_header_map(response.headers());
            call.answered(status.as_ref().map_or(Code::Ok, Status::code));
            report(&rpc, status, began);
            Ok(response)
        };
        let Some((root, method)) = root.zip(method) else {
            return Box::pin(work.instrument(span));
        };
        let told = |answer: &Result<Response<Body>, Infallible>| {
            Status::from_header_map(answer.as_ref().ok()?.headers())
        };
        Box::pin(root.around(method, work, told).instrument(span))
    }
}

/// Writes the one line that a request gets. Questions are answered too often for more than a debug line.
fn report(rpc: &str, status: Option<Status>, began: Instant) {
    let ms = began.elapsed().as_micros() as f64 / 1000.0;
    let Some(status) = status.filter(|s| s.code() != Code::Ok) else {
        if asks_only(rpc) {
            debug!(ms, "done");
        } else {
            info!(ms, "done");
        }
        return;
    };
    let (code, message) = (status.code(), status.message());
    match code {
        Code::Internal | Code::Unknown | Code::DataLoss => error!(ms, ?code, "failed: {message}"),
        // The kubelet asks after what it has just removed, and for statistics that podd does not have.
        Code::NotFound | Code::Unimplemented if asks_only(rpc) => debug!(ms, ?code, "failed: {message}"),
        _ => warn!(ms, ?code, "failed: {message}"),
    }
}

/// Whether an RPC changes nothing.
fn asks_only(rpc: &str) -> bool {
    ["List", "Stream", "Get"].iter().any(|p| rpc.starts_with(p))
        || ["Status", "Stats"].iter().any(|s| rpc.ends_with(s))
        || ["Version", "RuntimeConfig", "ImageFsInfo", "ExecSync"].contains(&rpc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let service = tower::service_fn(|_: Request<()>| async move {
            if true {
                panic!("defect");
            }
            Ok::<_, Infallible>(Response::new(Body::default()))
        });
        let mut service = Observe::default().layer(service);
        let request = Request::builder()
            .uri("/runtime.v1.RuntimeService/Version")
            .body(())
            .unwrap();
        let response = service.call(request).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::Internal);
        assert!(
            status.message().starts_with("Version ran into a defect"),
            "{}",
            status.message()
        );
    }

    #[tokio::test]
    async fn a_client_that_has_no_time_left_is_told() {
        let (client, server) = tokio::net::UnixStream::pair().unwrap();
        let service = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
        let server = tonic::transport::Server::builder().layer(Observe::default());
        tokio::spawn(server.serve_with_incoming(service, incoming));
        // A client without a timer of its own, so that what is read is what podd says.
        let (mut send, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        let asked = (0..20).map(|_| {
            let request = Request::post("http://localhost/runtime.v1.RuntimeService/Version")
                .header("grpc-timeout", "50m")
                .body(())
                .unwrap();
            send.send_request(request, true).unwrap().0
        });
        for response in asked.collect::<Vec<_>>() {
            let response = response.await.unwrap();
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
            assert!(status.message().contains("0.05 s"), "{}", status.message());
        }
    }

    #[test]
    fn questions_are_told_from_orders() {
        for rpc in [
            "ListContainers",
            "ContainerStatus",
            "Status",
            "PodSandboxStats",
            "Version",
            "ImageStatus",
        ] {
            assert!(asks_only(rpc), "{rpc}");
        }
        for rpc in [
            "RunPodSandbox",
            "StopContainer",
            "PullImage",
            "UpdateRuntimeConfig",
            "RemoveImage",
        ] {
            assert!(!asks_only(rpc), "{rpc}");
        }
    }
}
