//! The listeners: what answers which path, and to whom.
//!
//! The unix socket is for root: it answers everything and takes orders. On TCP anybody may come who reaches the address,
//! so that answers questions alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;

use super::health::{Checks, Subject};
use super::{cadvisor, scrape};
use crate::config::Observe;
use crate::http::{self, Answer, Head};
use crate::serve::{self, ServeError};
use crate::telemetry::LogLevel;
use crate::trace::Tracer;

/// Most connections to one listener at a time.
const CLIENTS: usize = 16;
/// How long one of them may take from its first byte to the last of the answer.
const WHOLE: Duration = Duration::from_secs(30);
/// Longest filter that is taken for a log level, in bytes.
const LEVEL: usize = 1024;

/// Who is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Who may open the unix socket.
    Root,
    /// Who reaches a TCP address.
    Anybody,
}

/// Sockets that listen, before there is anything to tell.
#[derive(Debug)]
pub struct Listeners {
    unix: Option<UnixListener>,
    tcp: Vec<TcpListener>,
    cadvisor: Option<UnixListener>,
}

impl Listeners {
    /// Listens where the configuration says.
    ///
    /// # Errors
    /// The socket cannot be made, or an address is not the node's or taken.
    pub async fn bind(config: &Observe) -> Result<Self, ServeError> {
        let unix = at(&config.socket)?;
        let cadvisor = at(&config.cadvisor_socket)?;
        let mut tcp = Vec::new();
        for address in &config.listen {
            let listening = TcpListener::bind(address).await;
            tcp.push(listening.map_err(|source| ServeError::Observe {
                address: *address,
                source,
            })?);
        }
        Ok(Self { unix, tcp, cadvisor })
    }

    /// Begins to answer; that ends with the value.
    #[must_use]
    pub fn start(self, subject: Subject, level: LogLevel, tracer: Option<Tracer>) -> Observing {
        let cadvisor = self
            .cadvisor
            .map(|listener| cadvisor::start(listener, &subject.engine));
        if self.unix.is_none() && self.tcp.is_empty() {
            return Observing(cadvisor.into_iter().collect());
        }
        let server = Arc::new(Server {
            registry: scrape::registry(&subject.engine, tracer),
            health: Checks::health(),
            readiness: Checks::readiness(),
            subject,
            level,
        });
        let unix = self.unix.map(|listener| serve(listener, &server, Who::Root));
        let tcp = self
            .tcp
            .into_iter()
            .map(|listener| serve(listener, &server, Who::Anybody));
        Observing(unix.into_iter().chain(tcp).chain(cadvisor).collect())
    }
}

/// Listens on a socket for root alone, if there is to be one.
fn at(socket: &Path) -> Result<Option<UnixListener>, ServeError> {
    if socket.as_os_str().is_empty() {
        return Ok(None);
    }
    let listener = serve::bind(socket, 0o600)?;
    listener.set_nonblocking(true).map_err(ServeError::Runtime)?;
    UnixListener::from_std(listener)
        .map(Some)
        .map_err(ServeError::Runtime)
}

/// The tasks that answer.
#[derive(Debug)]
pub struct Observing(Vec<JoinHandle<()>>);

impl Drop for Observing {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

fn serve<L: http::Listen + Sync>(listener: L, server: &Arc<Server>, who: Who) -> JoinHandle<()> {
    let server = Arc::clone(server);
    tokio::spawn(http::accept(listener, CLIENTS, move |mut stream, place| {
        let server = Arc::clone(&server);
        async move {
            // A client that does not read its answer is left, like one that does not send its request.
            let _ = tokio::time::timeout(WHOLE, server.serve(&mut stream, who)).await;
            drop(place);
        }
    }))
}

#[derive(Debug)]
struct Server {
    registry: Registry,
    health: Checks,
    readiness: Checks,
    subject: Subject,
    level: LogLevel,
}

impl Server {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self: &Arc<Self>, stream: &mut S, who: Who) {
        let Some((head, rest)) = http::request(stream).await else {
            return;
        };
        let answer = match head.path.as_str() {
            "/log" => self.log(stream, &head, rest, who).await,
            _ if head.method != "GET" => only("GET"),
            "/metrics" => self.metrics(&head).await,
            "/healthz" => checked(&self.health, &self.subject).await,
            "/readyz" => checked(&self.readiness, &self.subject).await,
            _ => Answer::new("404 Not Found", "there are /metrics, /healthz, /readyz and /log"),
        };
        let _ = answer.send(stream).await;
    }

    async fn metrics(self: &Arc<Self>, head: &Head) -> Answer {
        // Prometheus asks for OpenMetrics first; whoever does not know it gets what everybody reads.
        let open = head
            .values("Accept")
            .any(|kind| kind.starts_with("application/openmetrics-text"));
        let server = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            let mut page = String::new();
            let written = match open {
                true => text::encode(&mut page, &server.registry),
                false => prometheus_text::encode(&mut page, &server.registry),
            };
            written.map(|()| page)
        });
        let Ok(Ok(body)) = written.await else {
            return Answer::new(
                "500 Internal Server Error",
                "the metrics cannot be written, see podd's log",
            );
        };
        Answer {
            status: "200 OK",
            content_type: match open {
                true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
                false => "text/plain; version=0.0.4; charset=utf-8",
            },
            headers: Vec::new(),
            body,
        }
    }

    /// Reads and changes the level of podd's own log.
    async fn log<S: AsyncRead + Unpin>(&self, stream: &mut S, head: &Head, rest: Bytes, who: Who) -> Answer {
        if who == Who::Anybody {
            return Answer::new(
                "403 Forbidden",
                "the log level is told and changed on the unix socket alone",
            );
        }
        match head.method.as_str() {
            "GET" => {}
            "DELETE" => self.level.reset(),
            "PUT" | "POST" => {
                let body = match head.body(stream, &rest, LEVEL).await {
                    Ok(body) => body,
                    Err(e) => return Answer::new("400 Bad Request", e.to_string()),
                };
                let wanted = String::from_utf8_lossy(&body);
                if let Err(e) = self.level.set(wanted.trim()) {
                    return Answer::new("400 Bad Request", e.to_string());
                }
            }
            _ => return only("GET, PUT, POST, DELETE"),
        }
        Answer::new("200 OK", self.level.current())
    }
}

async fn checked(checks: &Checks, subject: &Subject) -> Answer {
    let report = checks.run(subject).await;
    let status = match report.is_good() {
        true => "200 OK",
        false => "503 Service Unavailable",
    };
    Answer::new(status, report.text())
}

fn only(methods: &str) -> Answer {
    Answer {
        headers: vec![("Allow", methods.to_owned())],
        ..Answer::new("405 Method Not Allowed", format!("use {methods}"))
    }
}
