//! A client of podd's own metrics, health and log level: one request per connection, over the unix socket or TCP.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Where podd tells root about itself.
pub const SOCKET: &str = "/run/podd/observe.sock";

/// How long an answer may take: longer than podd allows any client.
const PATIENCE: Duration = Duration::from_secs(40);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Value of the header Content-Type.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// Asks over the unix socket.
///
/// # Errors
/// No answer, or none in HTTP.
pub fn ask(method: &str, path: &str, body: &str) -> Result<Answer> {
    let stream = UnixStream::connect(SOCKET).with_context(|| format!("connect to {SOCKET}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, &request(method, path, body))
}

/// Asks over TCP.
///
/// # Errors
/// As for [`ask`].
pub fn ask_tcp(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer> {
    let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, &request(method, path, body))
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = match body {
        "" => String::new(),
        body => format!("Content-Length: {}\r\n", body.len()),
    };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: podd\r\nAccept: application/openmetrics-text\r\n{length}\r\n{body}"
    )
}

/// Sends any bytes and reads an answer.
///
/// # Errors
/// As for [`ask`].
pub fn exchange(mut stream: impl Read + Write, request: &str) -> Result<Answer> {
    stream.write_all(request.as_bytes()).context("send a request")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read an answer")?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("no HTTP: {text:?}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let length: usize = header("Content-Length").context("no length")?.parse()?;
    ensure!(length == body.len(), "{} bytes in place of {length}", body.len());
    Ok(Answer {
        status,
        content_type: header("Content-Type").unwrap_or_default().to_owned(),
        body: body.to_owned(),
    })
}

/// One scrape: series, with labels as they are written, and their values.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Scrapes podd.
    ///
    /// # Errors
    /// No answer, or a page that is not OpenMetrics: a series without a type, one told twice, a value that is no number,
    /// no end.
    pub fn scrape() -> Result<Self> {
        let answer = ask("GET", "/metrics", "")?;
        ensure!(answer.status == 200, "{answer:?}");
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ensure!(answer.content_type == kind, "{}", answer.content_type);
        Self::parse(&answer.body)
    }

    /// Reads a page in the format of OpenMetrics.
    ///
    /// # Errors
    /// As for [`Metrics::scrape`].
    pub fn parse(page: &str) -> Result<Self> {
        ensure!(page.ends_with("# EOF\n"), "the page has no end");
        let (mut types, mut series) = (BTreeMap::new(), BTreeMap::new());
        for line in page.lines() {
            if let Some(about) = line.strip_prefix("# ") {
                let words: Vec<_> = about.splitn(3, ' ').collect();
                if let ["TYPE", name, kind] = words[..] {
                    let told = types.insert(name.to_owned(), kind.to_owned());
                    ensure!(told.is_none(), "{name} has two types");
                }
                continue;
            }
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
            let value: f64 = value.parse().with_context(|| format!("{line:?}"))?;
            let family = name.split('{').next().unwrap_or_default();
            let suffixes = ["", "_total", "_info", "_count", "_sum", "_bucket"];
            let known = suffixes.iter().any(|suffix| {
                family
                    .strip_suffix(suffix)
                    .is_some_and(|name| types.contains_key(name))
            });
            ensure!(known, "{family} has no type");
            ensure!(
                series.insert(name.to_owned(), value).is_none(),
                "{name} is told twice"
            );
        }
        Ok(Self(series))
    }

    /// The value of a series; one that is not told has not happened.
    #[must_use]
    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// The value of a series that must be told.
    ///
    /// # Errors
    /// It is not.
    pub fn told(&self, series: &str) -> Result<f64> {
        let value = self.0.get(series).copied();
        value.with_context(|| format!("{series} is not told; there are {:?}", self.0.keys()))
    }

    /// How many series there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_strictly() {
        let page = "# HELP a_b Text with spaces.\n# TYPE a_b counter\na_b_total{c=\"d e\"} 7\n# EOF\n";
        let metrics = Metrics::parse(page).unwrap();
        assert_eq!((metrics.get("a_b_total{c=\"d e\"}"), metrics.len()), (7.0, 1));
        for broken in [
            "# TYPE a gauge\na 1\n",
            "a 1\n# EOF\n",
            "# TYPE a gauge\na 1\na 2\n# EOF\n",
            "# TYPE a gauge\na b\n# EOF\n",
        ] {
            assert!(Metrics::parse(broken).is_err(), "{broken}");
        }
    }
}
