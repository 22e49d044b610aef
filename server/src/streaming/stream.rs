//! The two ends of a stream, whatever carries it: what the client sends, and what it is sent.
//!
//! A connection reads for all its streams and holds at most [`ROOM`] bytes that nobody has taken yet. Then it
//! stops reading, so that TCP stops the client: neither SPDY as Kubernetes speaks it nor the WebSocket channels
//! can hold back one stream alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Most bytes of one message in either direction.
pub const CHUNK: usize = 32 * 1024;

/// Bytes from the client that wait in one connection.
const ROOM: usize = 4 << 20;
/// What a chunk counts at least, so that tiny ones are bounded as well.
const LEAST: usize = 128;
/// Messages to the client that wait in one connection.
const QUEUE: usize = 16;

/// How long a client may take to close a connection whose session is over.
pub const LINGER: Duration = Duration::from_secs(10);

/// What comes of a stream next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Bytes, never empty.
    Data(Bytes),
    /// The client has sent all it will.
    End,
    /// The client has given the stream up, or is gone.
    Reset,
}

enum Item {
    Data(Bytes, OwnedSemaphorePermit),
    End,
}

/// What the client sends on one stream.
#[derive(Debug)]
pub struct Incoming(mpsc::UnboundedReceiver<Item>);

impl Incoming {
    /// Waits for what comes next.
    pub async fn next(&mut self) -> Next {
        match self.0.recv().await {
            Some(Item::Data(bytes, _room)) => Next::Data(bytes),
            Some(Item::End) => Next::End,
            None => Next::Reset,
        }
    }
}

/// The connection's end of an [`Incoming`]. Dropped before [`Feed::end`], it is a reset.
#[derive(Debug)]
pub struct Feed {
    items: mpsc::UnboundedSender<Item>,
    room: Room,
}

impl Feed {
    /// Passes bytes on, when there is room. Nobody may want them any more: then they are dropped.
    pub async fn push(&self, bytes: Bytes) {
        let size = u32::try_from(bytes.len().clamp(LEAST, ROOM)).unwrap_or(u32::MAX);
        if bytes.is_empty() || self.items.is_closed() {
            return;
        }
        tokio::select! {
            room = Arc::clone(&self.room.0).acquire_many_owned(size) => {
                if let Ok(room) = room {
                    let _ = self.items.send(Item::Data(bytes, room));
                }
            }
            () = self.items.closed() => {}
        }
    }

    /// Says that the client has sent all it will.
    pub fn end(self) {
        let _ = self.items.send(Item::End);
    }
}

/// The room that all incoming streams of a connection share.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }
}

impl Room {
    /// Both ends of a new stream.
    #[must_use]
    pub fn stream(&self) -> (Feed, Incoming) {
        let (items, receiver) = mpsc::unbounded_channel();
        let room = self.clone();
        (Feed { items, room }, Incoming(receiver))
    }
}

/// What a connection is told to send.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Accept a stream that the client has opened.
    Accept(u32),
    /// Bytes of a stream.
    Data(u32, Bytes),
    /// No more bytes will come.
    End(u32),
    /// The stream is given up.
    Reset(u32),
    /// The answer to a ping.
    Pong(u32),
}

/// Sends commands to a connection.
pub type Commands = mpsc::Sender<Command>;

/// Both ends of a connection's queue.
#[must_use]
pub fn commands() -> (Commands, mpsc::Receiver<Command>) {
    mpsc::channel(QUEUE)
}

/// The client is gone.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
pub struct Gone;

/// What the client is sent on one stream.
#[derive(Debug, Clone)]
pub struct Outgoing {
    stream: u32,
    commands: Commands,
    /// Its place among the streams of a connection, where those are counted.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

impl Outgoing {
    /// The sending end of a stream.
    #[must_use]
    pub fn new(stream: u32, commands: Commands, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            commands,
            _place: place.map(Arc::new),
        }
    }

    /// Sends bytes, at most [`CHUNK`], when the connection has room for them.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.command(Command::Data(self.stream, bytes)).await
    }

    /// Says that no more bytes will come.
    pub async fn end(&self) {
        let _ = self.command(Command::End(self.stream)).await;
    }

    /// Gives the stream up.
    pub async fn reset(&self) {
        let _ = self.command(Command::Reset(self.stream)).await;
    }

    /// Waits until the client is gone.
    pub async fn closed(&self) {
        self.commands.closed().await;
    }

    async fn command(&self, command: Command) -> Result<(), Gone> {
        self.commands.send(command).await.map_err(|_| Gone)
    }
}

/// Ends a connection on which nothing moves.
#[derive(Debug)]
pub struct Idle {
    limit: Duration,
    since: Mutex<Instant>,
}

impl Idle {
    /// Begins to count.
    #[must_use]
    pub fn after(limit: Duration) -> Arc<Self> {
        Arc::new(Self {
            limit,
            since: Mutex::new(Instant::now()),
        })
    }

    /// Something has moved.
    pub fn touch(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has moved for as long as is allowed.
    pub async fn expired(&self) {
        loop {
            let end = *self.since.lock().unwrap_or_else(PoisonError::into_inner) + self.limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// The two tasks of a connection. Dropped, it is closed at once.
#[derive(Debug)]
pub struct Link {
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Link {
    /// Runs what reads from a client until it is gone, and what writes to it until nobody has anything to say.
    /// When one finds the client gone, the other ends as well.
    pub fn start(
        idle: Arc<Idle>,
        reading: impl Future<Output = ()> + Send + 'static,
        writing: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (reads, gone) = oneshot::channel::<()>();
        let reader = tokio::spawn(async move {
            tokio::select! {
                () = reading => {}
                () = idle.expired() => tracing::info!("a streaming session was silent for too long and is ended"),
            }
            drop(reads);
        });
        let writer = tokio::spawn(async move {
            tokio::select! {
                () = writing => {}
                _ = gone => {}
            }
        });
        Self { reader, writer }
    }

    /// Ends a session whose streams are all dropped: the client reads what was sent and closes the connection. To
    /// close it first could take from the client what it has not read yet (RFC 9293, 3.10.4).
    pub async fn finish(mut self) {
        let _ = (&mut self.writer).await;
        let _ = tokio::time::timeout(LINGER, &mut self.reader).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_takes_is_bounded() {
        let room = Room::default();
        let (feed, mut incoming) = room.stream();
        for _ in 0..ROOM / CHUNK {
            feed.push(Bytes::from(vec![0; CHUNK])).await;
        }
        let blocked = feed.push(Bytes::from_static(b"more"));
        tokio::pin!(blocked);
        let short = Duration::from_millis(20);
        assert!(tokio::time::timeout(short, &mut blocked).await.is_err());
        assert!(matches!(incoming.next().await, Next::Data(bytes) if bytes.len() == CHUNK));
        blocked.await;
        let (other, gone) = room.stream();
        drop(gone);
        other.push(Bytes::from(vec![0; CHUNK])).await;
    }

    #[tokio::test]
    async fn what_moves_is_not_idle() {
        let patience = Duration::from_millis(200);
        let (idle, begun) = (Idle::after(patience), Instant::now());
        let expired = idle.expired();
        tokio::pin!(expired);
        tokio::time::sleep(patience / 2).await;
        idle.touch();
        expired.await;
        assert!(begun.elapsed() >= patience * 3 / 2, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn an_end_is_no_reset() {
        let room = Room::default();
        let (feed, mut incoming) = room.stream();
        feed.push(Bytes::from_static(b"a")).await;
        feed.end();
        assert_eq!(incoming.next().await, Next::Data(Bytes::from_static(b"a")));
        assert_eq!(incoming.next().await, Next::End);
        let (feed, mut incoming) = room.stream();
        drop(feed);
        assert_eq!(incoming.next().await, Next::Reset);
    }
}
