//! [`Images`]: what the rest of podd uses.
//!
//! Only hands on: queries to the store's memory, pulls to the puller.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::Semaphore;

use crate::auth::Auth;
use crate::config::Config;
use crate::error::Error;
use crate::image::{Image, ImageId};
use crate::pull::Puller;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::store::{LayerHold, Store, Usage, Warning};

/// Fewest hex digits taken as a truncated id.
const PREFIX_MIN: usize = 4;

/// The image service. A cheap handle: clones share everything.
#[derive(Clone, Debug)]
pub struct Images {
    puller: Arc<Puller>,
    layers: Arc<Path>,
}

impl Images {
    /// Opens the store and loads all records. Blocks. What could not be read was moved aside and is reported.
    ///
    /// Removed images whose layers containers used are kept until [`Images::sweep`]: hold what runs first.
    pub fn open(config: Config) -> Result<(Images, Vec<Warning>), Error> {
        let (store, warnings) = Store::open(&config)?;
        let layers: PathBuf = store.layers_dir();
        let puller = Puller {
            store,
            permits: Arc::new(Semaphore::new(config.parallel_layers())),
            registry: Arc::new(Registry::new(config.registries, config.limits.clone())),
            limits: config.limits,
            durability: config.durability,
            images: Default::default(),
            layers: Default::default(),
        };
        Ok((
            Images {
                puller: Arc::new(puller),
                layers: layers.into(),
            },
            warnings,
        ))
    }

    /// Pulls an image, or makes sure that the stored one is what the reference names now.
    ///
    /// Equal pulls share one download. Dropping the future leaves it; when all have left, it is cancelled and its
    /// temporary files are removed. There is no deadline on the whole; the caller may set one. Needs a tokio runtime.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<Arc<Image>, Error> {
        self.puller.pull(Reference::parse(reference)?, auth).await
    }

    /// Finds an image by id (`sha256:…`, bare, or an unambiguous prefix of at least four hex digits), tag or digest
    /// reference. No I/O.
    pub fn resolve(&self, name_or_id: &str) -> Option<Arc<Image>> {
        let store = &self.puller.store;
        if let Some(id) = ImageId::parse(name_or_id) {
            return store.by_id(&id);
        }
        if let Ok(reference) = Reference::parse(name_or_id)
            && let Some(image) = store.by_name(&reference.to_string())
        {
            return Some(image);
        }
        let hex = name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id);
        let hexadecimal = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() < PREFIX_MIN || !hexadecimal {
            return None;
        }
        store.by_prefix(hex)
    }

    /// All images, by id. No I/O.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.puller.store.list()
    }

    /// Removes an image with all its names; false if there is none. Blocks while layers are deleted. Layers that other
    /// images or containers use stay.
    pub fn remove(&self, name_or_id: &str) -> Result<bool, Error> {
        match self.resolve(name_or_id) {
            Some(image) => self.puller.store.remove_image(&image.id),
            None => Ok(false),
        }
    }

    /// Disk use of all layers, from counters. No I/O.
    pub fn usage(&self) -> Usage {
        self.puller.store.usage()
    }

    /// Bytes of layers that registries have sent since the store was opened. No I/O.
    pub fn downloaded(&self) -> u64 {
        self.puller.registry.received.load(Ordering::Relaxed)
    }

    /// Keeps the layers of `image` until the hold is dropped. [`Error::NotFound`] if it was removed meanwhile: an
    /// [`Image`] is only a snapshot.
    pub fn hold(&self, image: &Image) -> Result<LayerHold, Error> {
        let gone = || Error::NotFound {
            reference: image.id.to_string(),
        };
        self.puller.store.hold_image(&image.id, false).ok_or_else(gone)
    }

    /// Like [`Images::hold`] for a container found at start, whose image may have been removed while it ran.
    pub fn hold_by_id(&self, id: &ImageId) -> Option<LayerHold> {
        self.puller.store.hold_image(id, true)
    }

    /// Deletes layers that no image, no hold and no running pull uses, and forgets removed images that nobody holds.
    /// To be called once after recovery. Blocks.
    pub fn sweep(&self) -> Result<(), Error> {
        self.puller.store.sweep_all()
    }

    /// The image's config blob as it came, for verbose status. Reads one record; blocks.
    pub fn config_json(&self, id: &ImageId) -> Result<String, Error> {
        self.puller.store.config_json(id)
    }

    /// Checks one layer against the checksums recorded when it was unpacked. Returns paths that differ, at most 100.
    /// Reads the whole layer; blocks. Meant for after an unclean boot.
    pub fn verify(&self, layer: u64) -> Result<Vec<String>, Error> {
        self.puller.store.verify_layer(layer)
    }

    /// Moves a damaged layer aside and forgets the images on it, so that the next pull repairs them. Blocks.
    pub fn quarantine(&self, layer: u64) -> Result<Vec<ImageId>, Error> {
        self.puller.store.quarantine_layer(layer)
    }

    /// The directory that holds the layers: `<root>/layers`.
    pub fn layers_dir(&self) -> &Path {
        &self.layers
    }
}
