//! Port-forward: pairs of streams, each pair one connection to a port of the pod. Over SPDY clients open pairs as they
//! want them; over WebSocket channels there is one for each port, from the beginning to the end.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::spdy::{Connection, Opened};
use super::stream::{CHUNK, Incoming, Link, Next, Outgoing};
use super::websocket::PortChannels;
use crate::engine::dial::Target;

/// The protocol over SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";

/// The same, with SPDY tunnelled through a WebSocket.
pub const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";

/// How long one stream of a pair may wait for the other.
const PAIR: Duration = Duration::from_secs(30);

/// How long a client may still send to a port whose side has closed.
const HALF_CLOSED: Duration = Duration::from_secs(30);

/// The same where the client cannot know: a channel of WebSocket has no end.
const UNTOLD: Duration = Duration::from_secs(1);

/// Streams of a pair that is not complete, by the id of their request.
#[derive(Debug, Default)]
struct Pairs(HashMap<String, (Half, Instant)>);

#[derive(Debug)]
struct Half {
    kind: Kind,
    port: u16,
    opened: Opened,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

#[derive(Debug)]
struct Pair {
    port: u16,
    data: Opened,
    error: Opened,
}

impl Pairs {
    /// Adds a stream; the pair if it is complete, or why the stream is refused.
    fn add(&mut self, opened: Opened, now: Instant) -> Result<Option<Pair>, Opened> {
        let Some((kind, port)) = describe(&opened) else {
            return Err(opened);
        };
        let id = request_id(&opened, kind);
        match self.0.remove(&id) {
            None => {
                self.0.insert(id, (Half { kind, port, opened }, now));
                Ok(None)
            }
            Some((other, since)) if other.kind == kind || other.port != port => {
                self.0.insert(id, (other, since));
                Err(opened)
            }
            Some((other, _)) => {
                let (data, error) = match kind {
                    Kind::Data => (opened, other.opened),
                    Kind::Error => (other.opened, opened),
                };
                Ok(Some(Pair { port, data, error }))
            }
        }
    }

    /// Gives up what has waited for too long.
    async fn expire(&mut self, now: Instant) {
        let late: Vec<_> = self
            .0
            .extract_if(|_, (_, since)| now.duration_since(*since) >= PAIR)
            .collect();
        for (_, (half, _)) in late {
            half.opened.outgoing.reset().await;
        }
    }
}

fn describe(opened: &Opened) -> Option<(Kind, u16)> {
    let kind = match opened.headers.get("streamtype")? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let port = opened
        .headers
        .get("port")?
        .parse()
        .ok()
        .filter(|port| *port != 0)?;
    Some((kind, port))
}

/// Old clients send no id, but open the stream for data right after the one for errors.
fn request_id(opened: &Opened, kind: Kind) -> String {
    match opened.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if kind == Kind::Error => format!("stream {}", opened.id),
        None => format!("stream {}", opened.id.wrapping_sub(2)),
    }
}

/// Serves a client until it is gone, or the pod is.
pub async fn run(mut connection: Connection, target: Target) {
    let (mut pairs, mut forwards) = (Pairs::default(), JoinSet::new());
    let mut ticks = tokio::time::interval(PAIR / 3);
    let gone = {
        let target = target.clone();
        async move { target.gone().await }
    };
    tokio::pin!(gone);
    loop {
        tokio::select! {
            opened = connection.next() => {
                let Some(opened) = opened else { break };
                match pairs.add(opened, Instant::now()) {
                    Ok(None) => {}
                    Ok(Some(pair)) => {
                        let data = (pair.data.incoming, pair.data.outgoing);
                        let (target, error) = (target.clone(), pair.error.outgoing);
                        drop(forwards.spawn(forward(target, pair.port, data, error, HALF_CLOSED)));
                    }
                    Err(refused) => refused.outgoing.reset().await,
                }
            }
            Some(_) = forwards.join_next() => {}
            _ = ticks.tick() => pairs.expire(Instant::now()).await,
            () = &mut gone => break,
        }
    }
}

/// Serves a client that speaks channels until all connections are over, it is gone, or the pod is.
pub async fn run_channels(channels: Vec<PortChannels>, link: Link, target: Target) {
    let gone = {
        let target = target.clone();
        async move { target.gone().await }
    };
    let mut forwards = JoinSet::new();
    for PortChannels {
        port,
        incoming,
        data,
        error,
    } in channels
    {
        let target = target.clone();
        forwards.spawn(async move {
            // The first word on both channels is the port, so that the client knows which channels are whose.
            let name = Bytes::copy_from_slice(&port.to_le_bytes());
            if data.send(name.clone()).await.is_ok() && error.send(name).await.is_ok() {
                forward(target, port, (incoming, data), error, UNTOLD).await;
            }
        });
    }
    tokio::select! {
        () = async { while forwards.join_next().await.is_some() {} } => {}
        () = gone => {}
    }
    forwards.shutdown().await;
    link.finish().await;
}

/// Carries one connection, for no longer than `half_closed` after the port's side has closed. What fails is told on its
/// error stream and nowhere else.
async fn forward(
    target: Target,
    port: u16,
    data: (Incoming, Outgoing),
    error: Outgoing,
    half_closed: Duration,
) {
    let (incoming, data) = data;
    let carried = match target.connect(port).await {
        Ok(stream) => carry(stream, incoming, &data, half_closed)
            .await
            .map_err(|e| format!("the connection to port {port} in the pod failed: {e}")),
        Err(e) => {
            let e: &(dyn std::error::Error + 'static) = &e;
            Err(e.to_string())
        }
    };
    if let Err(message) = carried {
        let _ = error.send(Bytes::from(message)).await;
        data.reset().await;
    }
    error.end().await;
}

async fn carry(stream: TcpStream, from: Incoming, to: &Outgoing, half_closed: Duration) -> io::Result<()> {
    // What comes in small pieces is somebody typing, or a protocol that waits for an answer.
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let (up, down) = (send(from, write), receive(read, to));
    tokio::pin!(up, down);
    tokio::select! {
        sent = &mut up => match sent? {
            Sent::All => down.await,
            Sent::GivenUp => Ok(()),
        },
        received = &mut down => {
            received?;
            // An error now only means that nobody reads what the client still sends.
            let _ = tokio::time::timeout(half_closed, up).await;
            Ok(())
        }
    }
}

enum Sent {
    /// The client has ended its side.
    All,
    /// The client is no longer interested in the connection.
    GivenUp,
}

async fn send(mut from: Incoming, mut to: OwnedWriteHalf) -> io::Result<Sent> {
    loop {
        match from.next().await {
            Next::Data(bytes) => to.write_all(&bytes).await?,
            Next::End => {
                to.shutdown().await?;
                return Ok(Sent::All);
            }
            Next::Reset => return Ok(Sent::GivenUp),
        }
    }
}

async fn receive(mut from: OwnedReadHalf, to: &Outgoing) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    while from.read_buf(&mut buffer).await? > 0 {
        if to.send(buffer.split().freeze()).await.is_err() {
            return Ok(());
        }
        buffer.reserve(CHUNK);
    }
    to.end().await;
    Ok(())
}
