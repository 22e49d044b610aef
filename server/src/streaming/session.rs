//! From an HTTP request to a session: which protocol both sides speak, and what is done with it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::spdy::Connection;
use super::status::Status;
use super::stream::Idle;
use super::tls::Socket;
use super::{Request, portforward, remote, websocket};
use crate::engine::dial::Target;
use crate::engine::error::sentence;
use crate::engine::session::{self, Attached, Exited, Wanted};
use crate::engine::{Engine, EngineError};
use crate::http::{Answer, Head};
use crate::model::{ContainerId, PodId};

/// Names what a SPDY connection is used for.
const STREAM_PROTOCOL: &str = "X-Stream-Protocol-Version";

/// What both sides have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// SPDY, for exec and attach.
    Spdy(remote::Protocol),
    /// WebSocket channels, for exec and attach.
    Channels(websocket::Protocol),
    /// SPDY, for port-forward.
    Forward,
    /// SPDY through WebSocket messages, for port-forward.
    Tunnel,
    /// WebSocket channels, for port-forward.
    Ports(websocket::Protocol),
}

impl Wire {
    /// Headers of the answer that changes the protocol.
    pub fn headers(self, head: &Head) -> Vec<(&'static str, String)> {
        let spdy = |name: &str| {
            vec![
                ("Upgrade", "SPDY/3.1".to_owned()),
                (STREAM_PROTOCOL, name.to_owned()),
            ]
        };
        let websocket = |name: &str| {
            let key = head.values("Sec-WebSocket-Key").next().unwrap_or_default();
            let mut headers = vec![
                ("Upgrade", "websocket".to_owned()),
                ("Sec-WebSocket-Accept", derive_accept_key(key.as_bytes())),
            ];
            if !name.is_empty() {
                headers.push(("Sec-WebSocket-Protocol", name.to_owned()));
            }
            headers
        };
        match self {
            Self::Spdy(protocol) => spdy(protocol.name),
            Self::Forward => spdy(portforward::PROTOCOL),
            Self::Channels(protocol) | Self::Ports(protocol) => websocket(protocol.name),
            Self::Tunnel => websocket(portforward::TUNNELLED),
        }
    }
}

/// Finds the protocol for a request: the first that the client names and podd speaks.
///
/// # Errors
/// There is none, or the client asks for no upgrade.
pub fn negotiate(head: &Head, request: &Request) -> Result<Wire, Answer> {
    let upgrade = head.has("Connection", "Upgrade");
    if upgrade && head.has("Upgrade", "SPDY/3.1") {
        negotiate_spdy(head, request)
    } else if upgrade && head.has("Upgrade", "websocket") {
        negotiate_websocket(head, request)
    } else {
        Err(bad_request("only upgrades to SPDY/3.1 and websocket are served"))
    }
}

fn bad_request(message: &str) -> Answer {
    Answer::new("400 Bad Request", message)
}

fn negotiate_spdy(head: &Head, request: &Request) -> Result<Wire, Answer> {
    let wires: Vec<(&str, Wire)> = match request {
        Request::PortForward { .. } => vec![(portforward::PROTOCOL, Wire::Forward)],
        Request::Exec { .. } | Request::Attach { .. } => remote::PROTOCOLS
            .iter()
            .map(|protocol| (protocol.name, Wire::Spdy(*protocol)))
            .collect(),
    };
    if head.values(STREAM_PROTOCOL).next().is_none() {
        return Err(bad_request(&format!("the header {STREAM_PROTOCOL} is missing")));
    }
    choose(head, STREAM_PROTOCOL, &wires).ok_or_else(|| {
        let accepted = wires.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let mut refusal = Answer::new(
            "403 Forbidden",
            "none of the stream protocols offered is spoken here",
        );
        refusal
            .headers
            .push(("X-Accepted-Stream-Protocol-Versions", accepted));
        refusal
    })
}

fn negotiate_websocket(head: &Head, request: &Request) -> Result<Wire, Answer> {
    const NAME: &str = "Sec-WebSocket-Protocol";
    if head.method != "GET"
        || !head.has("Sec-WebSocket-Version", "13")
        || head.values("Sec-WebSocket-Key").next().is_none()
    {
        return Err(bad_request("not a WebSocket handshake of RFC 6455"));
    }
    let (wires, unnamed): (Vec<(&str, Wire)>, _) = match request {
        Request::PortForward { ports, .. } => {
            let fit = (1..=websocket::MOST_PORTS).contains(&ports.len());
            let channels = websocket::PORT_PROTOCOLS.iter().filter(|_| fit);
            let channels = channels.map(|protocol| (protocol.name, Wire::Ports(*protocol)));
            let tunnel = (portforward::TUNNELLED, Wire::Tunnel);
            (std::iter::once(tunnel).chain(channels).collect(), None)
        }
        Request::Exec { .. } | Request::Attach { .. } => {
            let all = websocket::PROTOCOLS.map(|protocol| (protocol.name, Wire::Channels(protocol)));
            (all.to_vec(), all.last().map(|(_, wire)| *wire))
        }
    };
    let chosen = match head.values(NAME).next() {
        Some(_) => choose(head, NAME, &wires),
        None => unnamed,
    };
    chosen.ok_or_else(|| {
        Answer::new(
            "403 Forbidden",
            "none of the WebSocket protocols offered is spoken here",
        )
    })
}

fn choose(head: &Head, header: &str, wires: &[(&str, Wire)]) -> Option<Wire> {
    head.values(header)
        .find_map(|offered| wires.iter().find(|(name, _)| *name == offered))
        .map(|(_, wire)| *wire)
}

/// Runs a session to its end.
pub async fn run(
    engine: &Arc<Engine>,
    request: Request,
    wire: Wire,
    stream: Socket,
    rest: Bytes,
    idle: &Arc<Idle>,
) {
    match request {
        Request::Exec {
            container,
            argv,
            wanted,
        } => {
            if let Some(session) = remote_session(wire, wanted, stream, rest, idle).await {
                exec(engine, container, argv, wanted, session).await;
            }
        }
        Request::Attach { container, wanted } => {
            if let Some(session) = remote_session(wire, wanted, stream, rest, idle).await {
                attach(engine, container, wanted, session).await;
            }
        }
        Request::PortForward { pod, ports } => match target(engine, pod) {
            Ok(target) => forward(wire, stream, rest, idle, &ports, target).await,
            Err(e) => tracing::debug!(%pod, error = %e, "nothing to forward to"),
        },
    }
}

/// What was read behind the request, and then what still comes.
fn behind(
    rest: Bytes,
    stream: impl AsyncRead + Send + Unpin + 'static,
) -> impl AsyncRead + Send + Unpin + 'static {
    std::io::Cursor::new(rest).chain(stream)
}

fn spdy(stream: Socket, rest: Bytes, idle: &Arc<Idle>) -> Connection {
    let (read, write) = tokio::io::split(stream);
    Connection::start(behind(rest, read), write, idle)
}

async fn remote_session(
    wire: Wire,
    wanted: Wanted,
    stream: Socket,
    rest: Bytes,
    idle: &Arc<Idle>,
) -> Option<remote::Session> {
    match wire {
        Wire::Spdy(protocol) => {
            let mut connection = spdy(stream, rest, idle);
            let streams = remote::gather(&mut connection, protocol, wanted).await?;
            Some(remote::Session {
                streams,
                link: connection.into_link(),
                json_status: protocol.json_status,
            })
        }
        Wire::Channels(protocol) => {
            let socket = websocket::accept(stream, rest).await;
            let (streams, link) = websocket::streams(socket, protocol, wanted, idle);
            Some(remote::Session {
                streams,
                link,
                json_status: protocol.json_status,
            })
        }
        Wire::Forward | Wire::Tunnel | Wire::Ports(_) => None,
    }
}

async fn forward(wire: Wire, stream: Socket, rest: Bytes, idle: &Arc<Idle>, ports: &[u16], target: Target) {
    match wire {
        Wire::Ports(protocol) => {
            let socket = websocket::accept(stream, rest).await;
            let (channels, link) = websocket::ports(socket, protocol, ports, idle);
            portforward::run_channels(channels, link, target).await;
        }
        Wire::Tunnel => {
            let tunnel = websocket::tunnel(websocket::accept(stream, rest).await);
            let (read, write) = tokio::io::split(tunnel);
            portforward::run(Connection::start(read, write, idle), target).await;
        }
        _ => portforward::run(spdy(stream, rest, idle), target).await,
    }
}

async fn exec(
    engine: &Arc<Engine>,
    container: ContainerId,
    argv: Vec<String>,
    wanted: Wanted,
    mut session: remote::Session,
) {
    let begun = async {
        let container = engine.enterable(container.as_str())?;
        let size = session.streams.first_size().await;
        Ok::<_, Arc<EngineError>>(session::exec(engine, &container, argv, wanted, size).await?)
    };
    match begun.await {
        Ok((stdio, exited)) => session.run(stdio, remote::Life::Process(code(exited))).await,
        Err(e) => {
            session
                .fail(failure("execute the command in the container", &e))
                .await
        }
    }
}

async fn code(exited: Exited) -> Status {
    match exited.code().await {
        Ok(code) => Status::of_code(code),
        Err(e) => Status::Failure(failure("learn how the command ended", &e)),
    }
}

async fn attach(engine: &Arc<Engine>, container: ContainerId, wanted: Wanted, session: remote::Session) {
    let begun = async {
        let container = engine.running(container.as_str())?;
        Ok::<_, Arc<EngineError>>(session::attach(engine, &container, wanted).await?)
    };
    match begun.await {
        Ok((stdio, attached)) => session.run(stdio, remote::Life::Output(verdict(attached))).await,
        Err(e) => session.fail(failure("attach to the container", &e)).await,
    }
}

async fn verdict(attached: Attached) -> Status {
    match attached.runs().await {
        Ok(false) => Status::Success,
        Ok(true) => {
            Status::Failure("detached, as this client read too slowly; the container goes on".to_owned())
        }
        Err(e) => Status::Failure(failure("learn why the output ended", &e)),
    }
}

fn target(engine: &Engine, pod: PodId) -> Result<Target, Arc<EngineError>> {
    let pod = engine.find_pod(pod.as_str())?;
    Ok(Target::new(engine, &pod)?)
}

/// An error with its causes.
fn failure(doing: &str, e: &(dyn std::error::Error + 'static)) -> String {
    format!("cannot {doing}: {}", sentence(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        let text = format!("GET /x HTTP/1.1\r\nConnection: Upgrade\r\n{text}\r\n");
        Head::parse(text.as_bytes()).unwrap().unwrap().0
    }

    fn attach() -> Request {
        Request::Attach {
            container: "0".repeat(64).parse().unwrap(),
            wanted: Wanted::default(),
        }
    }

    fn forward(ports: usize) -> Request {
        Request::PortForward {
            pod: "0".repeat(64).parse().unwrap(),
            ports: vec![80; ports],
        }
    }

    #[test]
    fn channels_are_for_ports_that_are_named() {
        let websocket = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n";
        for protocol in websocket::PORT_PROTOCOLS {
            let offered = head(&format!(
                "{websocket}Sec-WebSocket-Protocol: v5.channel.k8s.io, {}\r\n",
                protocol.name
            ));
            for ports in [1, websocket::MOST_PORTS] {
                assert_eq!(negotiate(&offered, &forward(ports)), Ok(Wire::Ports(protocol)));
            }
            for ports in [0, websocket::MOST_PORTS + 1] {
                let refused = negotiate(&offered, &forward(ports)).unwrap_err();
                assert!(refused.status.starts_with("403"), "{refused:?}");
            }
        }
    }

    #[test]
    fn the_first_protocol_that_both_know_is_spoken() {
        let websocket = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n";
        let cases = [
            (
                "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v5.channel.k8s.io,v4.channel.k8s.io",
                "v4.channel.k8s.io",
            ),
            (
                "Upgrade: spdy/3.1\r\nX-Stream-Protocol-Version: v2.channel.k8s.io\r\nX-Stream-Protocol-Version: v4.channel.k8s.io",
                "v2.channel.k8s.io",
            ),
        ];
        for (text, name) in cases {
            let wire = negotiate(&head(&format!("{text}\r\n")), &attach()).unwrap();
            assert!(
                matches!(wire, Wire::Spdy(protocol) if protocol.name == name),
                "{text}: {wire:?}"
            );
        }
        for (offered, name) in [
            (
                "Sec-WebSocket-Protocol: v9, v5.channel.k8s.io, v4.channel.k8s.io\r\n",
                "v5.channel.k8s.io",
            ),
            (
                "Sec-WebSocket-Protocol: base64.channel.k8s.io\r\n",
                "base64.channel.k8s.io",
            ),
            ("", ""),
        ] {
            let wire = negotiate(&head(&format!("{websocket}{offered}")), &attach()).unwrap();
            assert!(
                matches!(wire, Wire::Channels(protocol) if protocol.name == name),
                "{offered}: {wire:?}"
            );
        }
        let tunnel = format!(
            "{websocket}Sec-WebSocket-Protocol: {}\r\n",
            portforward::TUNNELLED
        );
        assert_eq!(negotiate(&head(&tunnel), &forward(0)), Ok(Wire::Tunnel));
        let spdy = format!(
            "Upgrade: SPDY/3.1\r\n{STREAM_PROTOCOL}: {}\r\n",
            portforward::PROTOCOL
        );
        assert_eq!(negotiate(&head(&spdy), &forward(0)), Ok(Wire::Forward));
    }

    #[test]
    fn what_is_not_spoken_is_refused_with_a_reason() {
        let websocket = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n";
        for (text, request, status) in [
            ("Upgrade: h2c\r\n".to_owned(), attach(), "400"),
            ("Upgrade: SPDY/3.1\r\n".to_owned(), attach(), "400"),
            ("Upgrade: websocket\r\n".to_owned(), attach(), "400"),
            (
                format!("Upgrade: SPDY/3.1\r\n{STREAM_PROTOCOL}: v9\r\n"),
                attach(),
                "403",
            ),
            (
                format!("{websocket}Sec-WebSocket-Protocol: v9\r\n"),
                attach(),
                "403",
            ),
            (websocket.to_owned(), forward(0), "403"),
        ] {
            let refusal = negotiate(&head(&text), &request).unwrap_err();
            assert!(refusal.status.starts_with(status), "{text}: {refusal:?}");
        }
    }
}
