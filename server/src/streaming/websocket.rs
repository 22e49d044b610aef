//! WebSocket: the channel protocols of exec and attach and of port-forward, and byte streams through a tunnel.
//!
//! A message of a channel protocol is one byte, the channel, and what is sent on it; the base64 variants write the
//! channel as a digit and the rest in base64. Version 5 adds that the client can end a channel: `255 CHANNEL`.
//! In port-forward channel 2n is data of the port that was named at place n, and 2n + 1 what failed there.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::remote::{Sizes, Streams};
use super::stream::{CHUNK, Command, Feed, Idle, Incoming, LINGER, Link, Outgoing, Room, commands};
use super::tls::Socket;
use crate::engine::session::Wanted;

/// Largest message from a client; Kubernetes' own send 32 KiB.
const MAX_MESSAGE: usize = 1 << 20;

/// The channels.
mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
    /// Version 5: the channel in the next byte ends.
    pub const END: u8 = 255;
}

/// A channel protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// As the client asks for it.
    pub name: &'static str,
    base64: bool,
    /// The client can end one channel.
    ends: bool,
    /// The last word on the error channel is JSON.
    pub json_status: bool,
}

/// The protocols for exec and attach. The last one is for clients that name none.
pub const PROTOCOLS: [Protocol; 6] = [
    Protocol::new("v5.channel.k8s.io", false, true, true),
    Protocol::new("v4.channel.k8s.io", false, false, true),
    Protocol::new("v4.base64.channel.k8s.io", true, false, true),
    Protocol::new("channel.k8s.io", false, false, false),
    Protocol::new("base64.channel.k8s.io", true, false, false),
    Protocol::new("", false, false, false),
];

/// The protocols for port-forward.
pub const PORT_PROTOCOLS: [Protocol; 2] = [
    Protocol::new("v4.channel.k8s.io", false, false, false),
    Protocol::new("v4.base64.channel.k8s.io", true, false, false),
];

/// Most ports of a session: each has two channels, and in base64 a channel is one character of ASCII.
pub const MOST_PORTS: usize = 32;

impl Protocol {
    const fn new(name: &'static str, base64: bool, ends: bool, json_status: bool) -> Self {
        Self {
            name,
            base64,
            ends,
            json_status,
        }
    }

    fn message(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            STANDARD.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(bytes);
        Message::binary(message)
    }

    /// The channel of a message and what was sent on it; `None` for what is no message of this protocol.
    fn parse(self, message: Message) -> Option<(u8, Bytes)> {
        match message {
            Message::Binary(mut bytes) if !self.base64 && !bytes.is_empty() => {
                let rest = bytes.split_off(1);
                Some((bytes[0], rest))
            }
            Message::Text(text) if self.base64 => {
                let (channel, rest) = text.as_bytes().split_first()?;
                let bytes = STANDARD.decode(rest).ok()?;
                Some((channel.checked_sub(b'0')?, bytes.into()))
            }
            _ => None,
        }
    }
}

/// A connection whose handshake is over; `rest` was read behind it.
pub async fn accept(stream: Socket, rest: Bytes) -> WebSocketStream<Socket> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_partially_read(stream, rest.into(), Role::Server, Some(config)).await
}

/// The streams of an exec or attach over `socket`.
pub fn streams(
    socket: WebSocketStream<Socket>,
    protocol: Protocol,
    wanted: Wanted,
    idle: &Arc<Idle>,
) -> (Streams, Link) {
    let (room, (commands, queue)) = (Room::default(), commands());
    let (stdin_feed, stdin) = room.stream();
    let (resize_feed, resize) = room.stream();
    let outgoing = |channel: u8| Outgoing::new(channel.into(), commands.clone(), None);
    let streams = Streams {
        stdin: wanted.stdin.then_some(stdin),
        stdout: wanted.stdout.then(|| outgoing(channel::STDOUT)),
        stderr: wanted.stderr.then(|| outgoing(channel::STDERR)),
        resize: wanted.terminal.then(|| Sizes::of(resize)),
        error: outgoing(channel::ERROR),
    };
    let first = streams
        .stdout
        .as_ref()
        .map_or(channel::ERROR, |_| channel::STDOUT);
    let (sink, source) = socket.split();
    let feeds = Feeds::from([(channel::STDIN, stdin_feed), (channel::RESIZE, resize_feed)]);
    let reading = read(source, protocol, feeds, Arc::clone(idle));
    let writing = write(sink, protocol, Some(first), queue, Arc::clone(idle));
    (streams, Link::start(Arc::clone(idle), reading, writing))
}

/// The channels of a forwarded port.
#[derive(Debug)]
pub struct PortChannels {
    /// The port.
    pub port: u16,
    /// What the client sends to it.
    pub incoming: Incoming,
    /// What it sends to the client.
    pub data: Outgoing,
    /// What the client is told where it fails.
    pub error: Outgoing,
}

/// The channels of a port-forward over `socket`, to at most [`MOST_PORTS`] ports.
pub fn ports(
    socket: WebSocketStream<Socket>,
    protocol: Protocol,
    ports: &[u16],
    idle: &Arc<Idle>,
) -> (Vec<PortChannels>, Link) {
    let (room, (commands, queue)) = (Room::default(), commands());
    let mut feeds = Feeds::new();
    let channels = (0..).step_by(2).zip(ports).map(|(channel, port)| {
        let (feed, incoming) = room.stream();
        feeds.insert(channel, feed);
        let outgoing = |channel: u8| Outgoing::new(channel.into(), commands.clone(), None);
        PortChannels {
            port: *port,
            incoming,
            data: outgoing(channel),
            error: outgoing(channel + 1),
        }
    });
    let channels = channels.collect();
    let (sink, source) = socket.split();
    let reading = read(source, protocol, feeds, Arc::clone(idle));
    let writing = write(sink, protocol, None, queue, Arc::clone(idle));
    (channels, Link::start(Arc::clone(idle), reading, writing))
}

/// Where what comes on the channels goes.
type Feeds = BTreeMap<u8, Feed>;

async fn read(
    mut source: SplitStream<WebSocketStream<Socket>>,
    protocol: Protocol,
    mut feeds: Feeds,
    idle: Arc<Idle>,
) {
    while let Some(Ok(message)) = source.next().await {
        idle.touch();
        match message {
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) => {}
            message => match protocol.parse(message) {
                Some((channel::END, rest)) if protocol.ends => {
                    if let Some(feed) = rest.first().and_then(|channel| feeds.remove(channel)) {
                        feed.end();
                    }
                }
                Some((channel, bytes)) => {
                    if let Some(feed) = feeds.get(&channel) {
                        feed.push(bytes).await;
                    }
                }
                None => {
                    tracing::debug!(
                        protocol = protocol.name,
                        "a streaming client sent no message of its protocol"
                    );
                    break;
                }
            },
        }
    }
}

async fn write(
    mut sink: SplitSink<WebSocketStream<Socket>, Message>,
    protocol: Protocol,
    first: Option<u8>,
    mut queue: mpsc::Receiver<Command>,
    idle: Arc<Idle>,
) {
    // Clients wait for a first message to know that the session has begun.
    if let Some(first) = first
        && sink.send(protocol.message(first, b"")).await.is_err()
    {
        return;
    }
    while let Some(command) = queue.recv().await {
        #[expect(clippy::cast_possible_truncation, reason = "channels are bytes")]
        let message = match command {
            Command::Data(channel, bytes) => protocol.message(channel as u8, &bytes),
            // Only clients end channels; the server's end with the connection.
            Command::End(_) | Command::Accept(_) | Command::Reset(_) | Command::Pong(_) => continue,
        };
        if sink.send(message).await.is_err() {
            return;
        }
        idle.touch();
    }
    let _ = sink.send(normal_close()).await;
}

/// Clients take any other close for a failure, and what they have not read for lost.
fn normal_close() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: Utf8Bytes::default(),
    }))
}

/// A byte stream through binary messages.
pub fn tunnel(socket: WebSocketStream<Socket>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(CHUNK);
    let (sink, source) = socket.split();
    let (from, to) = tokio::io::split(far);
    tokio::spawn(async move {
        let up = up(source, to);
        tokio::pin!(up);
        tokio::select! {
            () = &mut up => {}
            // The client is told; then it is its turn to close.
            () = down(from, sink) => drop(tokio::time::timeout(LINGER, up).await),
        }
    });
    near
}

async fn up(mut source: SplitStream<WebSocketStream<Socket>>, mut to: WriteHalf<DuplexStream>) {
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Binary(bytes) if to.write_all(&bytes).await.is_ok() => {}
            Message::Ping(_) | Message::Pong(_) => {}
            _ => break,
        }
    }
}

async fn down(mut from: ReadHalf<DuplexStream>, mut sink: SplitSink<WebSocketStream<Socket>, Message>) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        if sink.send(Message::binary(buffer.split())).await.is_err() {
            return;
        }
        buffer.reserve(CHUNK);
    }
    let _ = sink.send(normal_close()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Protocol {
        *PROTOCOLS.iter().find(|protocol| protocol.name == name).unwrap()
    }

    #[test]
    fn messages_name_their_channel() {
        let plain = named("v4.channel.k8s.io");
        assert_eq!(plain.message(1, b"hi"), Message::binary(b"\x01hi".to_vec()));
        assert_eq!(
            plain.parse(Message::binary(b"\x00abc".to_vec())),
            Some((0, Bytes::from_static(b"abc")))
        );
        assert_eq!(plain.parse(Message::binary(b"".to_vec())), None);
        assert_eq!(plain.parse(Message::text("0YWJj")), None);
        let base64 = named("base64.channel.k8s.io");
        assert_eq!(base64.message(3, b"abc"), Message::text("3YWJj"));
        assert_eq!(
            base64.parse(Message::text("4YWJj")),
            Some((4, Bytes::from_static(b"abc")))
        );
        assert_eq!(base64.parse(Message::text("!YWJj")), None);
        assert_eq!(base64.parse(Message::text("0*")), None);
    }
}
