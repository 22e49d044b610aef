//! As much of HTTP/1.1 as podd serves: one request, then an answer that ends the connection or changes its protocol.
//!
//! Owns the bounds that every listener needs: of connections that have not shown what they want, of the time and the
//! bytes of a request. Knows neither streaming nor metrics.

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Largest request head in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Most headers of a request.
const MAX_HEADERS: usize = 100;
/// How long a client may take to send the head of its request.
const HEAD: Duration = Duration::from_secs(10);
/// Most bytes that are read of a request after its answer.
const MAX_UNREAD: u64 = 64 * 1024;
/// How long a client may take to close the connection after its answer.
const LINGER: Duration = Duration::from_secs(1);
/// How long to wait when the kernel has no more files for connections.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What accepts connections.
pub trait Listen: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Answers are small, and their ends must not wait for more.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves connections for ever, each in a task of its own.
///
/// `serve` is given the connection and its place among the `most` that may be open at a time; the place is free again
/// when that is dropped.
pub async fn accept<L, F>(listener: L, most: usize, serve: impl Fn(L::Stream, OwnedSemaphorePermit) -> F)
where
    L: Listen,
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(most));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.next().await {
            Ok(stream) => drop(tokio::spawn(serve(stream, place))),
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a client");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// The head of a request, and what was read behind it; `None` where no request came in time, or none that is one, which
/// the client was told.
pub async fn request<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Option<(Head, Bytes)> {
    match tokio::time::timeout(HEAD, Head::read(stream)).await {
        Ok(Ok(read)) => Some(read),
        Ok(Err(e)) if e.kind() == io::ErrorKind::InvalidData => {
            let _ = Answer::new("400 Bad Request", e.to_string()).send(stream).await;
            None
        }
        _ => None,
    }
}

/// A request without its body: an upgrade has none.
#[derive(Debug)]
pub struct Head {
    /// The method.
    pub method: String,
    /// The path, without query.
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Reads a request; also what was read behind it.
    ///
    /// # Errors
    /// The client is gone, or does not speak HTTP/1.1.
    pub async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(Self, Bytes)> {
        let mut bytes = BytesMut::with_capacity(1024);
        loop {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some((head, length)) = Self::parse(&bytes)? {
                return Ok((head, bytes.split_off(length).freeze()));
            }
            if bytes.len() > MAX_HEAD {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the request head is too long",
                ));
            }
        }
    }

    /// The request at the beginning of `bytes` and its length; `None` while it is not whole.
    ///
    /// # Errors
    /// The bytes are no request.
    pub fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let malformed = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        let length = match request.parse(bytes).map_err(malformed)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(None),
        };
        let target = request.path.unwrap_or_default();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = request.headers.iter();
        let head = Self {
            method: request.method.unwrap_or_default().to_owned(),
            path: target.split('?').next().unwrap_or_default().to_owned(),
            headers: headers.map(|h| (h.name.to_owned(), text(h.value))).collect(),
        };
        Ok(Some((head, length)))
    }

    /// Values of a header: repeated headers and lists in one header mean the same (RFC 9110, 5.3).
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
    }

    /// Reads the body of the request, of which `rest` was read with the head; it must say its length.
    ///
    /// # Errors
    /// It does not, the body is longer than `most` bytes, or the client is gone.
    pub async fn body<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        rest: &[u8],
        most: usize,
    ) -> io::Result<Vec<u8>> {
        let refused = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let length = self.values("Content-Length").next();
        let length: usize = length
            .and_then(|length| length.parse().ok())
            .ok_or_else(|| refused("the request does not say how long its body is".to_owned()))?;
        if length > most {
            return Err(refused(format!("the body is longer than {most} bytes")));
        }
        let mut body = rest[..rest.len().min(length)].to_vec();
        let read = body.len();
        body.resize(length, 0);
        stream.read_exact(&mut body[read..]).await?;
        Ok(body)
    }

    /// Whether a header has this value among others, in any case.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.values(name).any(|found| found.eq_ignore_ascii_case(value))
    }
}

/// An answer that is no upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code and reason phrase.
    pub status: &'static str,
    /// What the body is.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// A sentence for people, without further headers.
    #[must_use]
    pub fn new(status: &'static str, sentence: impl Into<String>) -> Self {
        let mut body = sentence.into();
        body.push('\n');
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            headers: Vec::new(),
            body,
        }
    }

    /// Sends the answer and ends the connection.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> io::Result<()> {
        let mut text = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        append(&mut text, &self.headers);
        text.push_str(&self.body);
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        // The kernel resets a connection that is closed with something unread, and the client may lose the answer.
        let (mut rest, mut nowhere) = (stream.take(MAX_UNREAD), tokio::io::sink());
        let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut nowhere)).await;
        Ok(())
    }
}

/// Tells the client that the connection speaks another protocol from now on.
///
/// # Errors
/// The client is gone.
pub async fn switch<S: AsyncWrite + Unpin>(
    stream: &mut S,
    headers: &[(&'static str, String)],
) -> io::Result<()> {
    let mut text = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n".to_owned();
    append(&mut text, headers);
    stream.write_all(text.as_bytes()).await
}

fn append(text: &mut String, headers: &[(&'static str, String)]) {
    for (name, value) in headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_when_whole() {
        let text = b"POST /exec/abc?x=1 HTTP/1.1\r\nHost: a\r\nconnection: keep-alive, Upgrade\r\n\
            X-Stream-Protocol-Version: v5\r\nX-Stream-Protocol-Version: v4,v3\r\n\r\nrest";
        assert!(Head::parse(&text[..40]).unwrap().is_none());
        let (head, length) = Head::parse(text).unwrap().unwrap();
        assert_eq!(&text[length..], b"rest");
        assert_eq!((head.method.as_str(), head.path.as_str()), ("POST", "/exec/abc"));
        assert!(head.has("Connection", "upgrade") && !head.has("Connection", "close"));
        let offered: Vec<_> = head.values("x-stream-protocol-version").collect();
        assert_eq!(offered, ["v5", "v4", "v3"]);
        assert!(Head::parse(b"\x80\x03\0\x01").is_err());
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_length_and_no_further() {
        let read = async |text: &str, most| {
            let (mut client, mut server) = tokio::io::duplex(1024);
            client.write_all(text.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let (head, rest) = Head::read(&mut server).await.unwrap();
            head.body(&mut server, &rest, most).await
        };
        let put = |headers: &str, body: &str| format!("PUT /log HTTP/1.1\r\n{headers}\r\n{body}");
        assert_eq!(
            read(&put("Content-Length: 5\r\n", "debug, more"), 9)
                .await
                .unwrap(),
            b"debug"
        );
        for (headers, kind) in [
            ("", io::ErrorKind::InvalidData),
            ("Content-Length: -1\r\n", io::ErrorKind::InvalidData),
            ("Content-Length: 10\r\n", io::ErrorKind::InvalidData),
            ("Content-Length: 9\r\n", io::ErrorKind::UnexpectedEof),
        ] {
            let e = read(&put(headers, "debug"), 9).await.unwrap_err();
            assert_eq!(e.kind(), kind, "{headers}");
        }
    }

    #[tokio::test]
    async fn more_clients_than_places_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (served, mut begun) = tokio::sync::mpsc::channel(8);
        let accepting = tokio::spawn(accept(listener, 1, move |mut stream: UnixStream, place| {
            let served = served.clone();
            async move {
                let _ = served.send(()).await;
                let _ = stream.read_u8().await;
                drop(place);
            }
        }));
        let first = UnixStream::connect(&path).await.unwrap();
        let _second = UnixStream::connect(&path).await.unwrap();
        begun.recv().await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), begun.recv()).await;
        assert!(early.is_err(), "the second was served beside the first");
        drop(first);
        begun.recv().await.unwrap();
        accepting.abort();
    }
}
