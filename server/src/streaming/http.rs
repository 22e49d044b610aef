//! As much of HTTP/1.1 as upgrades need: one request head, then an answer that ends the connection or changes
//! its protocol.

use std::fmt::Write as _;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Largest request head in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Most headers of a request.
const MAX_HEADERS: usize = 100;

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
    pub async fn read(stream: &mut TcpStream) -> io::Result<(Self, Bytes)> {
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
    pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
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

    /// Whether a header has this value among others, in any case.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.values(name).any(|found| found.eq_ignore_ascii_case(value))
    }
}

/// An answer that is no upgrade: status, further headers, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status code and reason phrase.
    pub status: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub message: String,
}

impl Refusal {
    /// A refusal without further headers.
    #[must_use]
    pub fn new(status: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            message: message.into(),
        }
    }

    /// Sends the refusal and ends the connection.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send(&self, stream: &mut TcpStream) -> io::Result<()> {
        let body = format!("{}\n", self.message);
        let mut text = format!(
            "HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n",
            self.status,
            body.len()
        );
        append(&mut text, &self.headers);
        text.push_str(&body);
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    }
}

/// Tells the client that the connection speaks another protocol from now on.
///
/// # Errors
/// The client is gone.
pub async fn switch(stream: &mut TcpStream, headers: &[(&'static str, String)]) -> io::Result<()> {
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
}
