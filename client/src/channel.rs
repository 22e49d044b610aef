//! gRPC over a unix socket.

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// Largest message in bytes: what the kubelet allows is 16 MiB, two capped exec streams need more.
pub const MESSAGE: usize = 80 << 20;

/// A channel to the runtime behind `socket`; connects at the first call and again after each loss. It belongs to
/// the tokio runtime that it is made in.
#[must_use]
pub fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    // The kubelet sends this authority too: the socket's path is none that HTTP/2 accepts.
    Endpoint::from_static("http://localhost")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(connector)
}
