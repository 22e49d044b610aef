//! One SPDY connection: streams as the client opens them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{Semaphore, mpsc};

use super::frame::{self, FLAG_FIN, HEADER, Header, Kind};
use super::headers::{Deflater, Headers, Inflater, MAX_BLOCK};
use crate::streaming::stream::{
    CHUNK, Command, Commands, Feed, Idle, Incoming, Link, Outgoing, Room, commands,
};

/// Most streams that are open at a time: two for each forwarded connection.
const MAX_STREAMS: usize = 1024;

/// Opened streams that wait for the session to look at them.
const BACKLOG: usize = 16;

/// Bytes of SYN_STREAM before its headers: two stream numbers, priority, slot.
const SYN_STREAM_FIXED: usize = 10;

/// A stream that the client has opened.
#[derive(Debug)]
pub struct Opened {
    /// Its number.
    pub id: u32,
    /// What it was opened with.
    pub headers: Headers,
    /// What the client sends.
    pub incoming: Incoming,
    /// What the client is sent.
    pub outgoing: Outgoing,
}

/// A connection and the streams that come.
#[derive(Debug)]
pub struct Connection {
    opened: mpsc::Receiver<Opened>,
    /// Keeps the writer waiting while there is no stream.
    _commands: Commands,
    link: Link,
}

impl Connection {
    /// Speaks SPDY over a pair of byte streams.
    pub fn start<R, W>(from: R, to: W, idle: &Arc<Idle>) -> Self
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (commands, queue) = commands();
        let (sender, opened) = mpsc::channel(BACKLOG);
        let reader = Reader {
            from: BufReader::with_capacity(CHUNK, from),
            idle: Arc::clone(idle),
            commands: commands.downgrade(),
            opened: sender,
            streams: HashMap::new(),
            last: 0,
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
            room: Room::default(),
            inflater: Inflater::default(),
        };
        let reading = async move {
            if let Err(e) = reader.run().await {
                tracing::debug!(error = %e, "a streaming client is gone");
            }
        };
        let writing = write(to, queue, Arc::clone(idle));
        Self {
            opened,
            _commands: commands,
            link: Link::start(Arc::clone(idle), reading, writing),
        }
    }

    /// The next stream that the client opens; `None` when it is gone.
    pub async fn next(&mut self) -> Option<Opened> {
        self.opened.recv().await
    }

    /// Takes no more streams: those that the client still opens are refused.
    #[must_use]
    pub fn into_link(self) -> Link {
        self.link
    }
}

struct Reader<R> {
    from: BufReader<R>,
    idle: Arc<Idle>,
    /// Weak, so that the writer ends when nobody else has anything to say.
    commands: mpsc::WeakSender<Command>,
    opened: mpsc::Sender<Opened>,
    streams: HashMap<u32, Feed>,
    last: u32,
    places: Arc<Semaphore>,
    room: Room,
    inflater: Inflater,
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) -> io::Result<()> {
        loop {
            let mut header = [0; HEADER];
            self.from.read_exact(&mut header).await?;
            self.idle.touch();
            let header = Header::decode(header).ok_or_else(|| malformed("not a frame of SPDY/3"))?;
            match header.kind {
                Kind::Data(stream) => self.data(stream, header).await?,
                _ => self.control(header).await?,
            }
        }
    }

    /// A frame of data may have 16 MiB: it is passed on in pieces.
    async fn data(&mut self, stream: u32, header: Header) -> io::Result<()> {
        let mut left = header.length;
        while left > 0 {
            let mut piece = BytesMut::zeroed(left.min(CHUNK));
            self.from.read_exact(&mut piece).await?;
            self.idle.touch();
            left -= piece.len();
            if let Some(feed) = self.streams.get(&stream) {
                feed.push(piece.freeze()).await;
            }
        }
        if header.flags & FLAG_FIN != 0
            && let Some(feed) = self.streams.remove(&stream)
        {
            feed.end();
        }
        Ok(())
    }

    async fn control(&mut self, header: Header) -> io::Result<()> {
        if header.length > MAX_BLOCK {
            return Err(malformed("a control frame is too long"));
        }
        let mut payload = vec![0; header.length];
        self.from.read_exact(&mut payload).await?;
        let number = frame::number(&payload);
        match (header.kind, number) {
            (Kind::SynStream, Some(stream)) => self.open(stream, header.flags, &payload).await?,
            (Kind::RstStream, Some(stream)) => drop(self.streams.remove(&stream)),
            // An answer that finds no room is no loss: the client asks again.
            (Kind::Ping, Some(id)) => {
                if let Some(commands) = self.commands.upgrade() {
                    let _ = commands.try_send(Command::Pong(id));
                }
            }
            (Kind::Headers, Some(_)) => {
                let block = payload.get(4..).unwrap_or_default();
                self.inflater.read(block).map_err(io::Error::other)?;
            }
            (Kind::Other, _) => {}
            _ => return Err(malformed("a control frame is too short")),
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, flags: u8, payload: &[u8]) -> io::Result<()> {
        let block = payload
            .get(SYN_STREAM_FIXED..)
            .ok_or_else(|| malformed("a control frame is too short"))?;
        let headers = self.inflater.read(block).map_err(io::Error::other)?;
        if id.is_multiple_of(2) || id <= self.last {
            return Err(malformed("a stream has a number that it cannot have"));
        }
        self.last = id;
        let Some(commands) = self.commands.upgrade() else {
            return Ok(());
        };
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        let Some(place) = place.filter(|_| !self.opened.is_closed()) else {
            let _ = commands.send(Command::Reset(id)).await;
            return Ok(());
        };
        let (feed, incoming) = self.room.stream();
        if flags & FLAG_FIN == 0 {
            self.streams.insert(id, feed);
        } else {
            feed.end();
        }
        // Before anybody can send on the stream: the client drops what comes before the reply.
        let _ = commands.send(Command::Accept(id)).await;
        let outgoing = Outgoing::new(id, commands, Some(place));
        let opened = Opened {
            id,
            headers,
            incoming,
            outgoing,
        };
        let _ = self.opened.send(opened).await;
        Ok(())
    }
}

async fn write(mut to: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Command>, idle: Arc<Idle>) {
    let (mut deflater, mut out) = (Deflater::default(), BytesMut::new());
    while let Some(command) = queue.recv().await {
        out.clear();
        let bytes = encode(command, &mut deflater, &mut out);
        let sent = async {
            to.write_all(&out).await?;
            to.write_all(&bytes).await?;
            to.flush().await
        };
        if sent.await.is_err() {
            return;
        }
        idle.touch();
    }
}

/// Appends a frame, and returns what has to follow it.
fn encode(command: Command, deflater: &mut Deflater, out: &mut BytesMut) -> Bytes {
    match command {
        Command::Accept(stream) => frame::syn_reply(out, stream, &deflater.empty_block()),
        Command::Data(stream, bytes) => {
            frame::data(out, stream, bytes.len(), 0);
            return bytes;
        }
        Command::End(stream) => frame::data(out, stream, 0, FLAG_FIN),
        Command::Reset(stream) => frame::rst_stream(out, stream),
        Command::Pong(id) => frame::ping(out, id),
    }
    Bytes::new()
}
