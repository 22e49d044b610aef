//! A pull, from reference to stored image.
//!
//! Order: manifest (through at most two indexes), config, then all layers at once. Each layer has one blocking thread
//! that inflates, hashes and unpacks what the async side downloads and hashes; a bounded channel connects them. A
//! layer whose diff id the store has is not downloaded. Equal pulls and equal layers run once (`flight`).
//!
//! Nothing of a failed layer remains. Whole layers of a failed pull stay for the retry, for a while.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::auth::Auth;
use crate::config::{Durability, Limits};
use crate::decode::{ChunkReader, Decoder};
use crate::digest::Digest;
use crate::error::Error;
use crate::flight::Flights;
use crate::image::{Image, ImageConfig, ImageId};
use crate::manifest::{self, Descriptor, Document, Platform};
use crate::reference::{Reference, Target};
use crate::registry::{RawManifest, Registry, Session, Stop};
use crate::store::{Draft, LayerHold, NewLayer, Store};
use crate::unpack;

/// Chunks of at most 128 KiB under way between download and unpacking of one layer.
const CHUNKS: usize = 8;
/// Ratio guard: below this many unpacked bytes no ratio is suspicious.
const RATIO_FREE: u64 = 256 << 20;
/// An index may name another index, which may not.
const INDEX_DEPTH: usize = 2;

/// What all pulls share.
#[derive(Debug)]
pub(crate) struct Puller {
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub limits: Limits,
    pub durability: Durability,
    pub permits: Arc<Semaphore>,
    pub images: Flights<(Reference, Option<Auth>), Arc<Image>>,
    /// By diff id and blob digest: the same bytes.
    pub layers: Arc<Flights<(Digest, Digest), Arc<LayerHold>>>,
}

impl Puller {
    pub(crate) async fn pull(
        self: &Arc<Self>,
        reference: Reference,
        auth: Option<Auth>,
    ) -> Result<Arc<Image>, Error> {
        // Credentials are part of the key: nobody gets an image by joining a pull that others may make.
        let key = (reference.clone(), auth.clone());
        self.images
            .run(key, || {
                let (puller, reference, auth) = (Arc::clone(self), reference.clone(), auth.clone());
                async move { puller.run(reference, auth).await }
            })
            .await
    }

    async fn run(self: Arc<Self>, reference: Reference, auth: Option<Auth>) -> Result<Arc<Image>, Error> {
        let session = Arc::new(self.registry.session(&reference, auth).await?);
        let result = self.run_session(&reference, &session).await.map_err(|e| match e {
            // The registry client knows the repository only.
            Error::NotFound { .. } => Error::NotFound {
                reference: reference.to_string(),
            },
            other => other,
        });
        let store = Arc::clone(&self.store);
        // Not waited for: what earlier failures left.
        tokio::task::spawn_blocking(move || store.sweep(false));
        result
    }

    async fn run_session(&self, reference: &Reference, session: &Arc<Session>) -> Result<Arc<Image>, Error> {
        let top = session.manifest(reference.target()).await?;
        let name = reference.with_digest(&top.digest);
        let (config, layers, manifest_size) = self.image_manifest(session, top).await?;
        let config_json = self.config(session, &config).await?;
        let parsed = ImageConfig::parse(config_json.as_bytes())?;
        let host = manifest::host_platform();
        if !manifest::fits(&parsed.os, &parsed.architecture, &host) {
            return Err(no_match(&host));
        }
        if parsed.diff_ids().len() != layers.len() {
            let reason = format!("{} diff ids for {} layers", parsed.diff_ids().len(), layers.len());
            return Err(Error::BadDocument {
                document: "image config",
                reason,
            });
        }
        let size = layers.iter().map(|l| l.size).sum::<u64>() + config.size + manifest_size;
        let layers = self.all_layers(session, parsed.diff_ids(), layers).await?;
        let draft = Draft {
            config_json,
            config: parsed,
            tag: reference.tag().map(|_| reference.to_string()),
            digest: name,
            size,
            layers,
        };
        let store = Arc::clone(&self.store);
        blocking(move || store.commit_image(draft)).await
    }

    /// Follows indexes to the manifest for this machine. Returns config, layers, and the manifest's size.
    async fn image_manifest(
        &self,
        session: &Session,
        top: RawManifest,
    ) -> Result<(Descriptor, Vec<Descriptor>, u64), Error> {
        let host = manifest::host_platform();
        let mut raw = top;
        for _ in 0..=INDEX_DEPTH {
            let size = raw.bytes.len() as u64;
            match Document::parse(&raw.bytes, raw.content_type.as_deref(), &self.limits)? {
                Document::Manifest { config, layers } => return Ok((config, layers, size)),
                Document::Index(entries) => {
                    let entry = manifest::select(&entries, &host).ok_or_else(|| no_match(&host))?;
                    raw = session.manifest(&Target::Digest(entry.digest.clone())).await?;
                    if raw.bytes.len() as u64 != entry.size {
                        let got = raw.bytes.len() as u64;
                        return Err(Error::Truncated {
                            digest: entry.digest.clone(),
                            got,
                            want: entry.size,
                        });
                    }
                }
            }
        }
        Err(Error::BadDocument {
            document: "index",
            reason: "indexes are nested too deeply".to_owned(),
        })
    }

    /// The config blob: from the store where the image is known, else downloaded.
    async fn config(&self, session: &Session, blob: &Descriptor) -> Result<String, Error> {
        if let Some(image) = ImageId::parse(blob.digest.as_str()).and_then(|id| self.store.by_id(&id)) {
            let store = Arc::clone(&self.store);
            if let Ok(json) = blocking(move || store.config_json(&image.id)).await {
                return Ok(json);
            }
        }
        let bytes = session.small_blob(blob, "bytes of an image config").await?;
        String::from_utf8(bytes).map_err(|_| Error::BadDocument {
            document: "image config",
            reason: "it is not UTF-8".to_owned(),
        })
    }

    async fn all_layers(
        &self,
        session: &Arc<Session>,
        diff_ids: &[Digest],
        blobs: Vec<Descriptor>,
    ) -> Result<Vec<Arc<LayerHold>>, Error> {
        // Dropped on any return, which aborts what still runs.
        let mut running = JoinSet::new();
        let mut done: Vec<Option<Arc<LayerHold>>> = vec![None; blobs.len()];
        for (i, (diff_id, blob)) in diff_ids.iter().cloned().zip(blobs).enumerate() {
            let job = Job {
                store: Arc::clone(&self.store),
                session: Arc::clone(session),
                permits: Arc::clone(&self.permits),
                limits: self.limits.clone(),
                durability: self.durability,
                diff_id,
                blob,
            };
            let flights = Arc::clone(&self.layers);
            running.spawn(async move {
                let key = (job.diff_id.clone(), job.blob.digest.clone());
                (i, flights.run(key, || job.clone().run()).await)
            });
        }
        while let Some(joined) = running.join_next().await {
            let (i, hold) = joined.map_err(|e| Error::Worker {
                reason: e.to_string(),
            })?;
            done[i] = Some(hold?);
        }
        Ok(done.into_iter().flatten().collect())
    }
}

fn no_match(host: &Platform) -> Error {
    Error::NoMatchingPlatform {
        wanted: format!("{}/{}", host.os, host.architecture),
    }
}

/// Short disk work of the pull itself.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::Worker {
            reason: e.to_string(),
        })?
}

type Worker = oneshot::Receiver<Result<LayerHold, Error>>;

/// One layer to have.
#[derive(Clone)]
struct Job {
    store: Arc<Store>,
    session: Arc<Session>,
    permits: Arc<Semaphore>,
    limits: Limits,
    durability: Durability,
    diff_id: Digest,
    blob: Descriptor,
}

impl Job {
    async fn run(self) -> Result<Arc<LayerHold>, Error> {
        if let Some(hold) = self.store.hold_diff(&self.diff_id) {
            return Ok(Arc::new(hold));
        }
        let mut wrong = None;
        loop {
            let permits = Arc::clone(&self.permits);
            let permit = permits.acquire_owned().await.map_err(|_| Error::Cancelled)?;
            if let Some(hold) = self.store.hold_diff(&self.diff_id) {
                return Ok(Arc::new(hold));
            }
            let (sink, chunks) = mpsc::channel(CHUNKS);
            let worker = self.start_worker(ChunkReader::new(chunks), permit)?;
            let fed = self.session.blob(&self.blob, sink).await;
            // The worker ends by itself: its source has ended or closed.
            let done = worker.await.map_err(|_| Error::Worker {
                reason: "a layer thread panicked".to_owned(),
            })?;
            match fed {
                Ok(()) | Err(Stop::Receiver) => return done.map(Arc::new),
                // That an endpoint lied says more than that another does not answer.
                Err(Stop::Failed(error)) => return Err(wrong.unwrap_or(error)),
                Err(Stop::Elsewhere(error)) => {
                    tracing::warn!(blob = %self.blob.digest, %error, "trying the next endpoint");
                    wrong = Some(error);
                }
            }
        }
    }

    /// A thread of its own, not one of the runtime's pool: name resolution needs that pool while this one waits.
    fn start_worker(&self, body: ChunkReader, permit: OwnedSemaphorePermit) -> Result<Worker, Error> {
        let (sender, receiver) = oneshot::channel();
        let job = self.clone();
        std::thread::Builder::new()
            .name("podd-layer".to_owned())
            .spawn(move || {
                let result = job.unpack(body, permit);
                // Nobody may be left to hear it; a hold is released by its drop.
                let _ = sender.send(result);
            })
            .map_err(|e| Error::Worker {
                reason: format!("cannot start a layer thread: {e}"),
            })?;
        Ok(receiver)
    }

    fn unpack(&self, body: ChunkReader, permit: OwnedSemaphorePermit) -> Result<LayerHold, Error> {
        let new = NewLayer::begin(&self.store)?;
        let mut limits = self.limits.clone();
        let ratio = self.blob.size.saturating_mul(limits.ratio).max(RATIO_FREE);
        limits.layer_bytes = limits.layer_bytes.min(ratio);
        let unpacked = unpack::unpack(Decoder::new(body), &new.work, &limits, self.durability)?;
        if unpacked.diff_id != self.diff_id {
            return Err(Error::DiffIdMismatch {
                expected: self.diff_id.clone(),
                actual: unpacked.diff_id,
            });
        }
        // The next layer may inflate while this one waits for the disk.
        drop(permit);
        new.commit(&unpacked, Some(&self.blob.digest))
    }
}
