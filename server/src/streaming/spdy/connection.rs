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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::stream::Next;
    use flate2::{Compress, Compression, FlushCompress};
    use std::time::Duration;
    use tokio::io::DuplexStream;

    fn served() -> (Connection, DuplexStream) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(server);
        let idle = Idle::after(Duration::from_secs(60));
        (Connection::start(read, write, &idle), client)
    }

    /// SYN_STREAM with the header `a: b`, or several in one stream of headers.
    fn syn(compress: &mut Compress, id: u32, flags: u8) -> Vec<u8> {
        let mut block = Vec::with_capacity(256);
        let headers = b"\0\0\0\x01\0\0\0\x01a\0\0\0\x01b";
        compress
            .compress_vec(headers, &mut block, FlushCompress::Sync)
            .unwrap();
        let length = u32::try_from(SYN_STREAM_FIXED + block.len())
            .unwrap()
            .to_be_bytes();
        let head = [0x80, 3, 0, 1, flags, length[1], length[2], length[3]];
        [&head[..], &id.to_be_bytes(), &[0; 6], &block].concat()
    }

    async fn frame(client: &mut DuplexStream) -> ([u8; 4], u8, Vec<u8>) {
        let mut header = [0; HEADER];
        client.read_exact(&mut header).await.unwrap();
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut payload = vec![0; length];
        client.read_exact(&mut payload).await.unwrap();
        ([header[0], header[1], header[2], header[3]], header[4], payload)
    }

    #[tokio::test]
    async fn a_stream_lives_from_syn_to_fin() {
        let ((mut connection, mut client), mut compress) =
            (served(), Compress::new(Compression::fast(), true));
        client.write_all(&syn(&mut compress, 1, 0)).await.unwrap();
        let mut stream = connection.next().await.unwrap();
        assert_eq!((stream.id, stream.headers.get("a")), (1, Some("b")));
        assert_eq!(frame(&mut client).await.0, [0x80, 3, 0, 2]);
        client
            .write_all(&[0, 0, 0, 1, 1, 0, 0, 2, b'h', b'i'])
            .await
            .unwrap();
        assert_eq!(
            stream.incoming.next().await,
            Next::Data(Bytes::from_static(b"hi"))
        );
        assert_eq!(stream.incoming.next().await, Next::End);
        client
            .write_all(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9])
            .await
            .unwrap();
        assert_eq!(frame(&mut client).await, ([0x80, 3, 0, 6], 0, vec![0, 0, 0, 9]));
        stream.outgoing.send(Bytes::from_static(b"yes")).await.unwrap();
        stream.outgoing.end().await;
        assert_eq!(frame(&mut client).await, ([0, 0, 0, 1], 0, b"yes".to_vec()));
        assert_eq!(frame(&mut client).await, ([0, 0, 0, 1], FLAG_FIN, Vec::new()));
        drop(client);
        assert!(connection.next().await.is_none());
        stream.outgoing.closed().await;
    }

    #[tokio::test]
    async fn streams_are_counted_and_given_up() {
        let ((mut connection, mut client), mut compress) =
            (served(), Compress::new(Compression::fast(), true));
        let mut held = Vec::new();
        for n in 0..u32::try_from(MAX_STREAMS).unwrap() {
            client
                .write_all(&syn(&mut compress, 2 * n + 1, FLAG_FIN))
                .await
                .unwrap();
            held.push(connection.next().await.unwrap());
            frame(&mut client).await;
        }
        client.write_all(&syn(&mut compress, 4097, 0)).await.unwrap();
        assert_eq!(frame(&mut client).await.0, [0x80, 3, 0, 3]);
        held.pop();
        client.write_all(&syn(&mut compress, 4099, 0)).await.unwrap();
        let mut last = connection.next().await.unwrap();
        client
            .write_all(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0x10, 0x03, 0, 0, 0, 5])
            .await
            .unwrap();
        assert_eq!(last.incoming.next().await, Next::Reset);
    }

    #[tokio::test]
    async fn malformed_frames_end_the_connection() {
        let compress = || Compress::new(Compression::fast(), true);
        let twice = {
            let mut both = compress();
            [syn(&mut both, 3, 0), syn(&mut both, 3, 0)].concat()
        };
        let cases = [
            syn(&mut compress(), 2, 0),
            twice,
            vec![0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1],
            vec![0x80, 3, 0, 6, 0, 0, 0, 0],
            vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
            vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
            vec![0x80, 3, 0, 8, 0, 0, 0, 6, 0, 0, 0, 1, 0xff, 0xff],
        ];
        for bytes in cases {
            let (mut connection, mut client) = served();
            client.write_all(&bytes).await.unwrap();
            let ended = async { while connection.next().await.is_some() {} };
            let ended = tokio::time::timeout(Duration::from_secs(5), ended).await;
            assert!(ended.is_ok(), "{bytes:?}");
        }
    }
}
