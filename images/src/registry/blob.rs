//! Streaming download of one blob: resumed where it breaks, measured, hashed, and ended only when it is right.

use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

use super::{Endpoint, Fault, Session, http};
use crate::decode::Chunk;
use crate::digest::Hasher;
use crate::error::Error;
use crate::manifest::Descriptor;

/// Largest chunk handed on. The HTTP client's buffers grow to several hundred KiB on fast links.
const CHUNK_MAX: usize = 128 << 10;

/// Why a download ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The download failed.
    Failed(Error),
    /// The bytes were wrong, but another endpoint may have the right ones.
    Elsewhere(Error),
    /// The receiver is gone: its own result says why.
    Receiver,
}

impl Session {
    /// Sends the blob to `sink`, then [`Chunk::End`] once size and digest are verified.
    pub(crate) async fn blob(&self, blob: &Descriptor, sink: mpsc::Sender<Chunk>) -> Result<(), Stop> {
        let timeouts = &self.registry.config.timeouts;
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut got = 0;
        let mut used: Vec<&Endpoint> = Vec::new();
        let mut last = Error::Truncated {
            digest: blob.digest.clone(),
            got,
            want: blob.size,
        };
        for attempt in 0..timeouts.attempts.max(1) {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(100 << attempt.min(6))).await;
            }
            if got < blob.size || attempt == 0 {
                match self.open(blob, got).await {
                    Ok((response, skip, endpoint)) => {
                        used.push(endpoint);
                        if let Err(error) =
                            receive(self, blob, response, skip, &mut got, &mut hasher, &sink).await?
                        {
                            last = error;
                        }
                    }
                    Err(Fault {
                        error,
                        transient: true,
                    }) => last = error,
                    Err(Fault {
                        error,
                        transient: false,
                    }) => return Err(Stop::Failed(error)),
                }
            }
            if got == blob.size {
                let actual = hasher.finish();
                if actual == blob.digest {
                    return sink.send(Chunk::End).await.map_err(|_| Stop::Receiver);
                }
                let error = Error::DigestMismatch {
                    expected: blob.digest.clone(),
                    actual,
                };
                used.iter().for_each(|e| e.distrust());
                let others = self.endpoints.iter().any(|e| !e.is_distrusted());
                return Err(if others {
                    Stop::Elsewhere(error)
                } else {
                    Stop::Failed(error)
                });
            }
        }
        if let Error::Truncated { got: at, .. } = &mut last {
            *at = got;
        }
        Err(Stop::Failed(last))
    }

    /// Opens the blob at `offset`. Returns how many bytes of the body to skip: a server may ignore the range.
    async fn open(&self, blob: &Descriptor, offset: u64) -> Result<(Response, u64, &Endpoint), Fault> {
        let path = format!("{}/blobs/{}", self.repository, blob.digest);
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(value) = HeaderValue::try_from(format!("bytes={offset}-"))
        {
            headers.insert(RANGE, value);
        }
        let mut last = None;
        for endpoint in self.order() {
            let result = self.request(endpoint, &path, &headers).await;
            match result.and_then(|response| Ok((skip(&response, offset)?, response))) {
                Ok((skip, response)) => return Ok((response, skip, endpoint)),
                Err(fault) => last = Some(self.worse(last, endpoint, fault)),
            }
        }
        let mut fault = last.unwrap_or_else(|| Fault::from(self.not_found()));
        // What was there a moment ago, or is named by a manifest just read, deserves another try.
        fault.transient |= matches!(fault.error, Error::Unreachable { .. }) && offset > 0;
        Err(fault)
    }
}

/// Bytes of the body that we already have.
fn skip(response: &Response, offset: u64) -> Result<u64, Error> {
    if response.status() == StatusCode::OK {
        return Ok(offset);
    }
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let start = range
        .strip_prefix("bytes ")
        .and_then(|r| r.split('-').next())
        .and_then(|n| n.parse::<u64>().ok());
    if start == Some(offset) {
        return Ok(0);
    }
    let host = http::host(response.url());
    Err(Error::Protocol {
        host,
        reason: "partial content of another range than asked for".to_owned(),
    })
}

/// Passes a body on. The inner error is worth another attempt.
async fn receive(
    session: &Session,
    blob: &Descriptor,
    mut response: Response,
    mut skip: u64,
    got: &mut u64,
    hasher: &mut Hasher,
    sink: &mpsc::Sender<Chunk>,
) -> Result<Result<(), Error>, Stop> {
    let host = http::host(response.url());
    let mut meter = http::Meter::new(&session.registry.config.timeouts);
    loop {
        let mut bytes = match meter.chunk(&mut response).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let (digest, want) = (blob.digest.clone(), blob.size);
                return Ok(if *got < want {
                    Err(Error::Truncated {
                        digest,
                        got: *got,
                        want,
                    })
                } else {
                    Ok(())
                });
            }
            Err(reason) => return Ok(Err(Error::Unreachable { host, reason })),
        };
        let received = &session.registry.received;
        received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
        let _ = bytes.split_to(known);
        skip -= known as u64;
        if *got + bytes.len() as u64 > blob.size {
            return Err(Stop::Failed(Error::TooLarge {
                what: "bytes of a blob beyond its descriptor",
                limit: blob.size,
            }));
        }
        hasher.update(&bytes);
        *got += bytes.len() as u64;
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(CHUNK_MAX));
            sink.send(Chunk::Data(part)).await.map_err(|_| Stop::Receiver)?;
        }
    }
}
