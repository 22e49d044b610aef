//! The server behind Exec, Attach and PortForward.
//!
//! The CRI call leaves a request here and answers with a URL; whoever connects to it within a minute gets the
//! session, over SPDY/3.1 or WebSocket (`docs/streaming.md`).
//!
//! ```text
//! http ──upgrade──▶ spdy ───────────┬─▶ remote ──▶ engine::session   (exec, attach)
//!               └─▶ websocket ──────┤
//!                       └─tunnel─spdy─▶ portforward ──▶ engine::dial
//! ```
//!
//! Owns the listener, the tokens and every byte between a client and a process. Knows no message of the CRI.

mod portforward;
mod remote;
mod session;
mod spdy;
mod status;
mod stream;
mod tls;
mod tokens;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::config;
use crate::engine::Engine;
use crate::engine::session::Wanted;
use crate::http::{self, Answer, Head};
use crate::model::{ContainerId, PodId};
use stream::Idle;
use tls::Socket;
use tokens::Tokens;

pub use tls::{TlsError, load as load_tls};
pub use tokens::TokenError;

/// Most connections that have not shown a token yet. Anybody on the node may connect, and none of them may take the
/// files that podd needs.
const STRANGERS: usize = 256;

/// How long a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A command in a container.
    Exec {
        /// The container.
        container: ContainerId,
        /// The command.
        argv: Vec<String>,
        /// Its streams.
        wanted: Wanted,
    },
    /// A container's own process.
    Attach {
        /// The container.
        container: ContainerId,
        /// Its streams.
        wanted: Wanted,
    },
    /// Connections to a pod.
    PortForward {
        /// The pod.
        pod: PodId,
        /// Its ports, for clients whose protocol cannot name them; the others name them stream by stream.
        ports: Vec<u16>,
    },
}

impl Request {
    /// The first part of the URL's path.
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// The listening socket, before there is anything to serve.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    idle: Duration,
    tls: Option<Arc<ServerConfig>>,
}

impl Listener {
    /// Listens where the configuration says, for connections that `tls` encrypts.
    ///
    /// # Errors
    /// The address is not the node's, or the port is taken.
    pub async fn bind(config: &config::Streaming, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let listener = TcpListener::bind((config.address, config.port)).await?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            idle: Duration::from_secs(config.idle_seconds.into()),
            tls,
        })
    }
}

/// The streaming server; it ends with the value, and sessions end with podd.
#[derive(Debug)]
pub struct Streaming {
    tokens: Arc<Tokens<Request>>,
    scheme: &'static str,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Streaming {
    /// Begins to serve.
    #[must_use]
    pub fn start(listener: Listener, engine: Arc<Engine>) -> Self {
        let Listener {
            listener,
            address,
            idle,
            tls,
        } = listener;
        let tokens = Arc::new(Tokens::default());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = Server {
            tokens: Arc::clone(&tokens),
            engine,
            idle,
            tls,
        };
        Self {
            tokens,
            scheme,
            address,
            accepting: tokio::spawn(server.accept(listener)),
        }
    }

    /// Whether clients are still accepted.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.accepting.is_finished()
    }

    /// An absolute URL for a request, good for one use within a minute.
    ///
    /// # Errors
    /// Too many URLs wait for their clients.
    pub fn url(&self, request: Request) -> Result<String, TokenError> {
        let verb = request.verb();
        let token = self.tokens.issue(request, Instant::now())?;
        Ok(format!("{}://{}/{verb}/{token}", self.scheme, self.address))
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Debug, Clone)]
struct Server {
    tokens: Arc<Tokens<Request>>,
    engine: Arc<Engine>,
    idle: Duration,
    tls: Option<Arc<ServerConfig>>,
}

impl Server {
    async fn accept(self, listener: TcpListener) {
        http::accept(listener, STRANGERS, |stream, place| {
            let server = self.clone();
            async move { server.serve(stream, place).await }
        })
        .await;
    }

    /// Serves one connection; `stranger` is its place among those without a token.
    async fn serve(&self, stream: TcpStream, stranger: OwnedSemaphorePermit) {
        let Some(mut stream) = self.greet(stream).await else {
            return;
        };
        let Some((head, rest)) = http::request(&mut stream).await else {
            return;
        };
        let negotiated = self.redeem(&head).and_then(|request| {
            let wire = session::negotiate(&head, &request)?;
            Ok((request, wire))
        });
        match negotiated {
            Ok((request, wire)) => {
                drop(stranger);
                if http::switch(&mut stream, &wire.headers(&head)).await.is_ok() {
                    let idle = Idle::after(self.idle);
                    session::run(&self.engine, request, wire, stream, rest, &idle).await;
                }
            }
            Err(refusal) => {
                tracing::debug!(
                    status = refusal.status,
                    "refused a streaming client: {}",
                    refusal.body.trim_end()
                );
                let _ = refusal.send(&mut stream).await;
            }
        }
    }

    /// The connection as it is spoken through; `None` where the client does not get to that in time.
    async fn greet(&self, stream: TcpStream) -> Option<Socket> {
        let Some(tls) = &self.tls else {
            return Some(Socket::Plain(stream));
        };
        match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(Arc::clone(tls)).accept(stream)).await {
            Ok(Ok(stream)) => Some(Socket::Tls(Box::new(stream))),
            Ok(Err(e)) => {
                tracing::debug!(error = %e, "a streaming client did not get through the TLS handshake");
                None
            }
            Err(_) => None,
        }
    }

    /// What the URL stands for.
    fn redeem(&self, head: &Head) -> Result<Request, Answer> {
        if !matches!(head.method.as_str(), "GET" | "POST") {
            let mut refusal = Answer::new("405 Method Not Allowed", "use GET or POST");
            refusal.headers.push(("Allow", "GET, POST".to_owned()));
            return Err(refusal);
        }
        let unknown = || {
            Answer::new(
                "404 Not Found",
                "no session waits here: its URL is used, older than a minute, or wrong",
            )
        };
        let mut parts = head.path.trim_start_matches('/').splitn(2, '/');
        let (verb, token) = (
            parts.next().unwrap_or_default(),
            parts.next().ok_or_else(unknown)?,
        );
        let request = self.tokens.redeem(token, Instant::now()).ok_or_else(unknown)?;
        if request.verb() == verb {
            Ok(request)
        } else {
            Err(unknown())
        }
    }
}
