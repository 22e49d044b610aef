//! Client of the distribution (docker registry v2) API: manifests and blobs, from mirrors and the registry itself.
//!
//! Owns endpoints, authorization, retries and the verification of every byte against its digest. Knows neither the
//! store nor what is in a layer.
//!
//! Endpoints of a registry host are tried in order: configured mirrors, then the host. One that could not be reached
//! is tried last for a while (`breaker`). Any failure moves on to the next endpoint; the answer of the last one, the
//! registry itself, is reported.

mod blob;
mod breaker;
mod http;
mod token;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::Mutex;

pub(crate) use blob::Stop;

use crate::auth::{Auth, Challenge, basic_header};
use crate::config::{Limits, RegistryConfig};
use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::manifest::{self, Descriptor};
use crate::reference::{Reference, Target};
use breaker::Breaker;

/// Rounds over all endpoints when the failures are transient, and the pause before the second round.
const ROUNDS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(400);

/// Shared by all pulls.
#[derive(Debug)]
pub(crate) struct Registry {
    config: RegistryConfig,
    limits: Limits,
    client: OnceLock<Client>,
    breaker: Breaker,
    /// Bytes of layers received so far, wrong ones and repeated ones included.
    pub(crate) received: AtomicU64,
}

/// One repository, for the time of one pull: tokens are not kept longer.
#[derive(Debug)]
pub(crate) struct Session {
    registry: Arc<Registry>,
    client: Client,
    host: String,
    repository: String,
    auth: Option<Auth>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug)]
struct Endpoint {
    /// `scheme://host/[prefix/]v2/`.
    base: Url,
    origin: String,
    /// May see the credentials.
    trusted: bool,
    authorization: Mutex<Option<HeaderValue>>,
    /// Delivered bytes with a wrong digest in this session.
    distrusted: std::sync::atomic::AtomicBool,
}

/// A manifest as it came.
#[derive(Debug)]
pub(crate) struct RawManifest {
    pub bytes: Vec<u8>,
    pub content_type: Option<String>,
    pub digest: Digest,
}

/// Failure at one endpoint.
#[derive(Debug)]
struct Fault {
    error: Error,
    transient: bool,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let transient = matches!(error, Error::RateLimited { .. });
        Fault { error, transient }
    }
}

impl Registry {
    pub(crate) fn new(config: RegistryConfig, limits: Limits) -> Registry {
        Registry {
            config,
            limits,
            client: OnceLock::new(),
            breaker: Breaker::default(),
            received: AtomicU64::new(0),
        }
    }

    /// Loading the system's certificates takes some milliseconds and memory, so it waits for the first pull.
    async fn client(&self) -> Result<Client, Error> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let timeouts = self.config.timeouts.clone();
        let client = tokio::task::spawn_blocking(move || http::client(&timeouts))
            .await
            .map_err(|e| Error::Client {
                reason: e.to_string(),
            })??;
        Ok(self.client.get_or_init(|| client).clone())
    }

    pub(crate) async fn session(
        self: &Arc<Self>,
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<Session, Error> {
        let mut endpoints = Vec::new();
        for mirror in self.config.mirrors.get(reference.host()).into_iter().flatten() {
            endpoints.push(Endpoint::new(&mirror.url, mirror.forward_credentials)?);
        }
        let upstream = match reference.host() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let own = Endpoint::new(&format!("https://{upstream}"), true)?;
        // A "mirror" with the registry's own address says how it is to be reached.
        let same = endpoints
            .iter_mut()
            .find(|e| http::host(&e.base) == http::host(&own.base));
        match same {
            Some(endpoint) => endpoint.trusted = true,
            None => endpoints.push(own),
        }
        Ok(Session {
            registry: Arc::clone(self),
            client: self.client().await?,
            host: reference.host().to_owned(),
            repository: reference.repository().to_owned(),
            auth,
            endpoints,
        })
    }
}

impl Endpoint {
    fn new(url: &str, trusted: bool) -> Result<Endpoint, Error> {
        let bad = || Error::Client {
            reason: format!("{url:?} is not a registry URL"),
        };
        let base = Url::parse(&format!("{}/v2/", url.trim_end_matches('/'))).map_err(|_| bad())?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(bad());
        }
        Ok(Endpoint {
            origin: http::origin(&base),
            base,
            trusted,
            authorization: Mutex::new(None),
            distrusted: false.into(),
        })
    }

    fn distrust(&self) {
        self.distrusted.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    fn is_distrusted(&self) -> bool {
        self.distrusted.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Session {
    /// The manifest or index that the reference names.
    pub(crate) async fn manifest(&self, target: &Target) -> Result<RawManifest, Error> {
        let (name, digest) = match target {
            Target::Tag(tag) => (tag.clone(), None),
            Target::Digest(digest) => (digest.to_string(), Some(digest)),
        };
        let path = format!("{}/manifests/{name}", self.repository);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let limit = self.registry.limits.manifest_bytes;
        let (bytes, head) = self
            .document(&path, &headers, digest, "bytes of a manifest", limit)
            .await?;
        let text = |name: &str| head.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let digest = match digest {
            Some(digest) => digest.clone(),
            None => {
                let actual = Digest::sha256_of(&bytes);
                // What the registry itself thinks it sent, where it says so in a form we know.
                if let Some(said) = text("docker-content-digest").and_then(|t| Digest::parse(&t).ok())
                    && said.algorithm() == actual.algorithm()
                    && said != actual
                {
                    return Err(Error::DigestMismatch {
                        expected: said,
                        actual,
                    });
                }
                actual
            }
        };
        Ok(RawManifest {
            bytes,
            content_type: text(CONTENT_TYPE.as_str()),
            digest,
        })
    }

    /// A small blob as a whole, verified.
    pub(crate) async fn small_blob(&self, blob: &Descriptor, what: &'static str) -> Result<Vec<u8>, Error> {
        let path = format!("{}/blobs/{}", self.repository, blob.digest);
        let bytes = self
            .document(&path, &HeaderMap::new(), Some(&blob.digest), what, blob.size)
            .await?
            .0;
        if bytes.len() as u64 != blob.size {
            let got = bytes.len() as u64;
            return Err(Error::Truncated {
                digest: blob.digest.clone(),
                got,
                want: blob.size,
            });
        }
        Ok(bytes)
    }

    /// Fetches a bounded document from the first endpoint that has it with the right digest.
    async fn document(
        &self,
        path: &str,
        headers: &HeaderMap,
        digest: Option<&Digest>,
        what: &'static str,
        limit: u64,
    ) -> Result<(Vec<u8>, HeaderMap), Error> {
        let mut pause = PAUSE;
        for round in 1.. {
            let mut last = None;
            for endpoint in self.order() {
                let result = self
                    .document_at(endpoint, path, headers, digest, what, limit)
                    .await;
                match result {
                    Ok(document) => return Ok(document),
                    Err(fault) => last = Some(self.worse(last, endpoint, fault)),
                }
            }
            let fault = last.unwrap_or_else(|| Fault::from(self.not_found()));
            if !fault.transient || round >= ROUNDS {
                return Err(fault.error);
            }
            tokio::time::sleep(pause).await;
            pause *= 3;
        }
        Err(self.not_found())
    }

    async fn document_at(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
        digest: Option<&Digest>,
        what: &'static str,
        limit: u64,
    ) -> Result<(Vec<u8>, HeaderMap), Fault> {
        let response = self.request(endpoint, path, headers).await?;
        let head = response.headers().clone();
        let timeouts = &self.registry.config.timeouts;
        let bytes = http::body(response, timeouts, what, limit)
            .await
            .map_err(|error| {
                let transient = matches!(error, Error::Unreachable { .. });
                Fault { error, transient }
            })?;
        if let Some(expected) = digest {
            let mut hasher = Hasher::new(expected.algorithm());
            hasher.update(&bytes);
            let actual = hasher.finish();
            if actual != *expected {
                return Err(Error::DigestMismatch {
                    expected: expected.clone(),
                    actual,
                }
                .into());
            }
        }
        Ok((bytes, head))
    }

    /// Endpoints in the order to try: those that could not be reached lately last.
    fn order(&self) -> impl Iterator<Item = &Endpoint> {
        let good = |e: &&Endpoint| !e.is_distrusted();
        let open = |e: &&Endpoint| self.registry.breaker.is_open(&e.origin);
        let first = self.endpoints.iter().filter(good).filter(move |e| !open(e));
        let last: Vec<&Endpoint> = self.endpoints.iter().filter(good).filter(open).collect();
        first.chain(last)
    }

    /// Chooses what to report after several endpoints failed: the registry's own answer, else the latest.
    fn worse(&self, before: Option<Fault>, endpoint: &Endpoint, fault: Fault) -> Fault {
        tracing::debug!(endpoint = %endpoint.origin, error = %fault.error, "endpoint failed");
        let own = self.endpoints.last().is_some_and(|e| e.origin == endpoint.origin);
        match before {
            // It answered properly before a dead mirror was tried as the last resort.
            Some(before) if !own && !matches!(before.error, Error::Unreachable { .. }) => before,
            _ => fault,
        }
    }

    /// One GET at one endpoint, authorized if it asks for that. Any status but 200 and 206 is a fault.
    async fn request(&self, endpoint: &Endpoint, path: &str, headers: &HeaderMap) -> Result<Response, Fault> {
        let host = http::host(&endpoint.base);
        let url = endpoint.base.join(path).map_err(|_| self.not_found())?;
        let timeouts = &self.registry.config.timeouts;
        let mut authorization = endpoint.authorization.lock().await.clone();
        let mut challenged = false;
        loop {
            let result = http::get(
                &self.client,
                timeouts,
                url.clone(),
                headers,
                authorization.as_ref(),
            )
            .await;
            let response = result.map_err(|no| {
                if no.dead {
                    self.registry.breaker.trip(&no.origin, timeouts.breaker);
                }
                Fault {
                    error: no.error,
                    transient: false,
                }
            })?;
            self.registry.breaker.reset(&endpoint.origin);
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !challenged => {
                    challenged = true;
                    let fresh = self
                        .authorize(endpoint, &response, authorization.as_ref())
                        .await?;
                    authorization = Some(fresh);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.unauthorized().into()),
                StatusCode::NOT_FOUND => return Err(self.not_found().into()),
                StatusCode::TOO_MANY_REQUESTS => return Err(Error::RateLimited { host }.into()),
                _ if http::is_transient(status) => {
                    let error = Error::Unreachable {
                        host,
                        reason: format!("status {status}"),
                    };
                    return Err(Fault {
                        error,
                        transient: true,
                    });
                }
                _ => {
                    return Err(Error::Protocol {
                        host,
                        reason: format!("status {status}"),
                    }
                    .into());
                }
            }
        }
    }

    /// Answers a challenge and remembers the header for the next request to this endpoint.
    async fn authorize(
        &self,
        endpoint: &Endpoint,
        response: &Response,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let mut slot = endpoint.authorization.lock().await;
        // Another layer got one meanwhile.
        if let Some(fresh) = slot.as_ref().filter(|h| Some(*h) != refused) {
            return Ok(fresh.clone());
        }
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = Challenge::choose(values.iter().filter_map(|v| v.to_str().ok()))
            .ok_or_else(|| self.unauthorized())?;
        let auth = self.auth.as_ref().filter(|_| endpoint.trusted);
        let header = match (&challenge, auth) {
            (_, Some(Auth::RegistryToken(token))) => format!("Bearer {token}"),
            (Challenge::Basic, Some(Auth::Basic { username, password })) => basic_header(username, password),
            (Challenge::Basic, _) => return Err(self.unauthorized()),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                auth,
            ) => {
                let own = format!("repository:{}:pull", self.repository);
                let wanted = token::Wanted {
                    realm,
                    service: service.as_deref(),
                    scope: scope.as_deref().unwrap_or(&own),
                    secure: endpoint.base.scheme() == "https",
                    host: &self.host,
                    repository: &self.repository,
                };
                let timeouts = &self.registry.config.timeouts;
                format!(
                    "Bearer {}",
                    token::fetch(&self.client, timeouts, &wanted, auth).await?
                )
            }
        };
        let mut header = HeaderValue::try_from(header).map_err(|_| Error::InvalidCredentials {
            reason: "they contain characters that a header cannot carry",
        })?;
        header.set_sensitive(true);
        *slot = Some(header.clone());
        Ok(header)
    }

    fn not_found(&self) -> Error {
        Error::NotFound {
            reference: format!("{}/{}", self.host, self.repository),
        }
    }

    fn unauthorized(&self) -> Error {
        Error::Unauthorized {
            host: self.host.clone(),
            repository: self.repository.clone(),
        }
    }
}
