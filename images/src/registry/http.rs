//! One HTTP exchange: deadlines, redirects that never carry credentials elsewhere, and bounded bodies.
//!
//! Knows nothing of manifests, tokens or retries. The client follows the proxy variables of the environment
//! (`HTTPS_PROXY`, `NO_PROXY`, …) and trusts the system's certificates (or `SSL_CERT_FILE`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::time::timeout;

use crate::config::Timeouts;
use crate::error::{Error, chain};

const REDIRECTS_MAX: usize = 8;

/// Builds the client: system certificates, no redirects of its own, HTTP/1.1 (one connection per layer is faster
/// than one shared HTTP/2 connection, and the code is smaller).
pub(super) fn client(timeouts: &Timeouts) -> Result<Client, Error> {
    let fail = |reason: String| Error::Client { reason };
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (_, ignored) = roots.add_parsable_certificates(native.certs);
    if roots.is_empty() || ignored > 0 {
        tracing::warn!(
            found = roots.len(),
            ignored,
            errors = native.errors.len(),
            "system certificates"
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("podd/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeouts.connect)
        .pool_idle_timeout(Duration::from_secs(15))
        .pool_max_idle_per_host(4)
        .http1_only()
        .build()
        .map_err(|e| fail(chain(&e)))
}

/// Why no answer came.
#[derive(Debug)]
pub(super) struct NoAnswer {
    /// Origin that did not answer, and whether it could not be reached at all.
    pub origin: String,
    pub dead: bool,
    pub error: Error,
}

/// Sends a GET and follows redirects. `authorization` goes to the origin of `url` only.
pub(super) async fn get(
    client: &Client,
    timeouts: &Timeouts,
    url: Url,
    headers: &HeaderMap,
    authorization: Option<&HeaderValue>,
) -> Result<Response, NoAnswer> {
    let home = url.origin();
    let mut url = url;
    for _ in 0..=REDIRECTS_MAX {
        let mut request = client.request(Method::GET, url.clone()).headers(headers.clone());
        if let Some(value) = authorization.filter(|_| url.origin() == home) {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let response = answer(request, timeouts, &url).await?;
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(response);
        }
        url = redirect(&url, &response).map_err(|reason| NoAnswer {
            origin: origin(&url),
            dead: false,
            error: Error::Protocol {
                host: host(&url),
                reason: reason.to_owned(),
            },
        })?;
    }
    let error = Error::Protocol {
        host: host(&url),
        reason: "too many redirects".to_owned(),
    };
    Err(NoAnswer {
        origin: origin(&url),
        dead: false,
        error,
    })
}

/// Waits for the head of the answer.
pub(super) async fn answer(
    request: reqwest::RequestBuilder,
    timeouts: &Timeouts,
    url: &Url,
) -> Result<Response, NoAnswer> {
    let lost = |reason: String| NoAnswer {
        origin: origin(url),
        dead: true,
        error: Error::Unreachable {
            host: host(url),
            reason,
        },
    };
    match timeout(timeouts.connect + timeouts.first_byte, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        // Without the URL: those of CDNs carry signatures.
        Ok(Err(e)) => Err(lost(chain(&e.without_url()))),
        Err(_) => Err(lost(format!("no answer within {:?}", timeouts.first_byte))),
    }
}

fn redirect(from: &Url, response: &Response) -> Result<Url, &'static str> {
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|l| l.to_str().ok())
        .ok_or("redirect without target")?;
    let to = from.join(location).map_err(|_| "redirect to a malformed URL")?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        _ => Err("redirect from https to another scheme"),
    }
}

pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

pub(super) fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

/// Measures throughput over windows of waiting time: what the caller does between chunks does not count.
#[derive(Debug)]
pub(super) struct Meter {
    window: Duration,
    wanted: u64,
    waited: Duration,
    got: u64,
}

impl Meter {
    pub(super) fn new(timeouts: &Timeouts) -> Meter {
        Meter {
            window: timeouts.window,
            wanted: timeouts.window_bytes,
            waited: Duration::ZERO,
            got: 0,
        }
    }

    /// The next chunk of the body. Errors are texts for [`Error::Unreachable`].
    pub(super) async fn chunk(&mut self, response: &mut Response) -> Result<Option<Bytes>, String> {
        let begin = Instant::now();
        let left = self.window.saturating_sub(self.waited);
        let chunk = timeout(left, response.chunk()).await;
        self.waited += begin.elapsed();
        match chunk {
            Ok(Ok(Some(bytes))) => {
                self.got += bytes.len() as u64;
                if self.waited < self.window {
                    return Ok(Some(bytes));
                }
                if self.got < self.wanted {
                    return Err(self.slow());
                }
                self.waited = Duration::ZERO;
                self.got = 0;
                Ok(Some(bytes))
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(e)) => Err(chain(&e.without_url())),
            // The window ended while waiting.
            Err(_) if self.got >= self.wanted => {
                self.waited = Duration::ZERO;
                self.got = 0;
                // A cancelled `chunk` loses nothing: the connection buffers.
                Box::pin(self.chunk(response)).await
            }
            Err(_) => Err(self.slow()),
        }
    }

    fn slow(&self) -> String {
        format!(
            "{} bytes in {:?}, at least {} wanted",
            self.got, self.window, self.wanted
        )
    }
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn body(
    mut response: Response,
    timeouts: &Timeouts,
    what: &'static str,
    limit: u64,
) -> Result<Vec<u8>, Error> {
    let host = host(response.url());
    if response.content_length().is_some_and(|n| n > limit) {
        return Err(Error::TooLarge { what, limit });
    }
    let read = async {
        let mut meter = Meter::new(timeouts);
        let mut bytes = Vec::new();
        while let Some(chunk) = meter
            .chunk(&mut response)
            .await
            .map_err(|reason| Error::Unreachable {
                host: host.clone(),
                reason,
            })?
        {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(Error::TooLarge { what, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    timeout(timeouts.document, read).await.unwrap_or_else(|_| {
        let reason = format!("{what} not complete within {:?}", timeouts.document);
        Err(Error::Unreachable {
            host: host.clone(),
            reason,
        })
    })
}

/// Answers worth another try later.
pub(super) fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}
