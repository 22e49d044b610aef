//! `[observe]` and `[tracing]`: where podd tells about itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Metrics, health and the log level, over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Observe {
    /// Unix socket for root alone; empty for none.
    pub socket: PathBuf,
    /// Addresses and ports on which everybody may read metrics and health.
    pub listen: Vec<SocketAddr>,
}

impl Default for Observe {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/podd/observe.sock"),
            listen: Vec::new(),
        }
    }
}

impl Observe {
    /// The first key whose value makes no sense, and why.
    pub(super) fn objection(&self) -> Option<(&'static str, String)> {
        if !self.socket.as_os_str().is_empty() && !self.socket.is_absolute() {
            let reason = format!("{} is not an absolute path", self.socket.display());
            return Some(("observe.socket", reason));
        }
        let port = self.listen.iter().find(|address| address.port() == 0)?;
        Some(("observe.listen", format!("{port} names no port")))
    }
}

/// Traces of requests, by OTLP over gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// The collector, `http://HOST:PORT`; empty for no traces.
    pub endpoint: String,
    /// How many of a million requests are traced whose client says nothing about it.
    pub samples_per_million: u32,
}

impl Tracing {
    /// The first key whose value makes no sense, and why.
    pub(super) fn objection(&self) -> Option<(&'static str, String)> {
        let uri = self.endpoint.parse::<tonic::codegen::http::Uri>().ok();
        let plain = uri.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.port().is_some());
        if !self.endpoint.is_empty() && !plain {
            return Some((
                "tracing.endpoint",
                "must be http://HOST:PORT, without TLS".to_owned(),
            ));
        }
        (self.samples_per_million > 1_000_000).then(|| {
            (
                "tracing.samples_per_million",
                "must be at most 1000000".to_owned(),
            )
        })
    }
}
