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
    /// Unix socket on which cAdvisor may ask whose a cgroup is, as it asks CRI-O; empty for none.
    pub cadvisor_socket: PathBuf,
}

impl Default for Observe {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/podd/observe.sock"),
            listen: Vec::new(),
            cadvisor_socket: PathBuf::new(),
        }
    }
}

impl Observe {
    /// The first key whose value makes no sense, and why.
    pub(super) fn objection(&self) -> Option<(&'static str, String)> {
        let sockets = [
            ("observe.socket", &self.socket),
            ("observe.cadvisor_socket", &self.cadvisor_socket),
        ];
        for (key, path) in sockets {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return Some((key, format!("{} is not an absolute path", path.display())));
            }
        }
        if !self.socket.as_os_str().is_empty() && self.socket == self.cadvisor_socket {
            let reason = "must not be the socket of observe.socket".to_owned();
            return Some(("observe.cadvisor_socket", reason));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_absolute_and_two() {
        let objection = |cadvisor: &str| {
            let config = Observe {
                cadvisor_socket: PathBuf::from(cadvisor),
                ..Observe::default()
            };
            config.objection().map(|(key, _)| key)
        };
        assert_eq!(objection(""), None);
        assert_eq!(objection("/var/run/crio/crio.sock"), None);
        for wrong in ["crio.sock", "/run/podd/observe.sock"] {
            assert_eq!(objection(wrong), Some("observe.cadvisor_socket"), "{wrong}");
        }
    }
}
