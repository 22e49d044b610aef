//! The image store: which layers and images exist, who uses them, and what they are called.
//!
//! ```text
//! <root>/layers/<n>/        an unpacked layer; the directory is the layer's root, mode 0755
//! <root>/layers/<n>.json    its record (`record.rs`)
//! <root>/layers/<n>.sums    checksums of its files (`sums.rs`)
//! <root>/images/<hex>.json  an image, or what is left of a removed one whose layers are still in use
//! <root>/tmp/               work in progress, emptied at start
//! <root>/quarantine/        what could not be read, kept for a human
//! ```
//!
//! Memory mirrors the records: queries take one short lock and do no I/O. Writers (commit, remove) are serial under
//! `writer` and change the disk before memory. Everything here blocks; nothing knows registries, pods or CRI.
//!
//! A layer has users: every image that lists it (removed ones too while held), every hold, every pull in progress.
//! Without users it is deleted: at once when a container or an image let go of it, after a grace period when a failed
//! pull left it behind.

mod commit;
mod erase;
mod fixup;
mod images;
mod open;
mod record;

pub use erase::erase_tree;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) use commit::NewLayer;
use commit::{Flusher, lock};
pub(crate) use images::Draft;

use crate::config::Durability;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Image, ImageId};

/// Disk use of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of files and directories in whole blocks.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Something found wrong when the store was opened. Nothing is ever deleted without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A record or layer was moved to the quarantine directory.
    Quarantined {
        /// Where it was.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The rest of an interrupted commit or removal was deleted.
    Leftover {
        /// What was deleted.
        path: PathBuf,
    },
}

#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    durability: Durability,
    grace: Duration,
    state: Mutex<State>,
    /// Serialises everything that changes image records.
    writer: Mutex<()>,
    /// Serialises the renames that publish layers.
    layer_commit: Mutex<()>,
    flusher: Flusher,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<ImageId, Arc<Image>>,
    /// Removed images whose layers containers still use.
    removed: BTreeMap<ImageId, Vec<u64>>,
    /// Tags and digests to images.
    names: HashMap<String, ImageId>,
    layers: BTreeMap<u64, Layer>,
    by_diff: HashMap<Digest, u64>,
    /// Holds of containers by image.
    holds: HashMap<ImageId, usize>,
    usage: Usage,
    next_number: u64,
    next_sequence: u64,
}

#[derive(Debug)]
struct Layer {
    diff_id: Digest,
    bytes: u64,
    inodes: u64,
    users: usize,
    /// Since when a layer that a pull left behind has no users.
    idle_since: Option<Instant>,
    has_implicit: bool,
}

impl State {
    fn insert_layer(&mut self, number: u64, layer: Layer) {
        self.usage.bytes += layer.bytes;
        self.usage.inodes += layer.inodes;
        self.by_diff.insert(layer.diff_id.clone(), number);
        self.layers.insert(number, layer);
    }

    fn forget_layer(&mut self, number: u64) {
        if let Some(layer) = self.layers.remove(&number) {
            self.usage.bytes -= layer.bytes;
            self.usage.inodes -= layer.inodes;
            if self.by_diff.get(&layer.diff_id) == Some(&number) {
                self.by_diff.remove(&layer.diff_id);
            }
        }
    }

    fn take(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some(layer) = self.layers.get_mut(number) {
                layer.users += 1;
                layer.idle_since = None;
            }
        }
    }

    /// Drops one user of each layer. Those without users are forgotten and returned, or kept for `grace`.
    #[must_use]
    fn release(&mut self, numbers: &[u64], grace: Grace) -> Vec<u64> {
        let mut doomed = Vec::new();
        for number in numbers {
            let Some(layer) = self.layers.get_mut(number) else {
                continue;
            };
            layer.users -= 1;
            if layer.users > 0 {
                continue;
            }
            match grace {
                Grace::Keep => layer.idle_since = Some(Instant::now()),
                Grace::Delete => {
                    doomed.push(*number);
                    self.forget_layer(*number);
                }
            }
        }
        doomed
    }
}

/// What happens to a layer whose last user leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grace {
    Keep,
    Delete,
}

/// Keeps layers from being deleted: while a container runs on them, or while a pull assembles an image.
#[derive(Debug)]
pub struct LayerHold {
    store: Arc<Store>,
    /// The image that a container runs; none for a pull.
    image: Option<ImageId>,
    layers: Vec<u64>,
}

impl LayerHold {
    /// Directory names below [`crate::Images::layers_dir`], bottom first.
    pub fn layers(&self) -> &[u64] {
        &self.layers
    }
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        self.store.let_go(self.image.as_ref(), &self.layers);
    }
}

impl Store {
    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn image_path(&self, id: &ImageId) -> PathBuf {
        self.images_dir().join(format!("{}.json", id.hex()))
    }

    fn next_number(&self) -> u64 {
        let mut state = lock(&self.state);
        state.next_number += 1;
        state.next_number
    }

    pub(crate) fn usage(&self) -> Usage {
        lock(&self.state).usage
    }

    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        lock(&self.state).images.values().cloned().collect()
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<Image>> {
        let state = lock(&self.state);
        state.images.get(state.names.get(name)?).cloned()
    }

    pub(crate) fn by_id(&self, id: &ImageId) -> Option<Arc<Image>> {
        lock(&self.state).images.get(id).cloned()
    }

    /// The only image whose id starts with these hex digits.
    pub(crate) fn by_prefix(&self, hex: &str) -> Option<Arc<Image>> {
        let state = lock(&self.state);
        let mut found = state
            .images
            .values()
            .filter(|image| image.id.hex().starts_with(hex));
        let first = found.next()?;
        found.next().is_none().then(|| Arc::clone(first))
    }

    /// Holds the layer with this diff id, if the store has it.
    pub(crate) fn hold_diff(self: &Arc<Self>, diff_id: &Digest) -> Option<LayerHold> {
        let mut state = lock(&self.state);
        let number = *state.by_diff.get(diff_id)?;
        state.take(&[number]);
        Some(LayerHold {
            store: Arc::clone(self),
            image: None,
            layers: vec![number],
        })
    }

    /// Holds the layers of an image; of a removed one only where `removed` allows it.
    pub(crate) fn hold_image(self: &Arc<Self>, id: &ImageId, removed: bool) -> Option<LayerHold> {
        let mut state = lock(&self.state);
        let layers = match state.images.get(id) {
            Some(image) => image.layers.clone(),
            None if removed => state.removed.get(id)?.clone(),
            None => return None,
        };
        state.take(&layers);
        *state.holds.entry(id.clone()).or_default() += 1;
        Some(LayerHold {
            store: Arc::clone(self),
            image: Some(id.clone()),
            layers,
        })
    }

    fn adopt(self: &Arc<Self>, number: u64, mut layer: Layer) -> LayerHold {
        layer.users = 1;
        lock(&self.state).insert_layer(number, layer);
        LayerHold {
            store: Arc::clone(self),
            image: None,
            layers: vec![number],
        }
    }

    fn let_go(self: &Arc<Self>, image: Option<&ImageId>, layers: &[u64]) {
        let Some(id) = image else {
            // Keep: nothing is returned.
            let _ = lock(&self.state).release(layers, Grace::Keep);
            return;
        };
        let (doomed, last) = {
            let mut state = lock(&self.state);
            let doomed = state.release(layers, Grace::Delete);
            let left = state.holds.get_mut(id).map_or(0, |n| {
                *n = n.saturating_sub(1);
                *n
            });
            if left == 0 {
                state.holds.remove(id);
            }
            (doomed, left == 0 && state.removed.contains_key(id))
        };
        if doomed.is_empty() && !last {
            return;
        }
        // Deleting takes time, and the last hold may be dropped anywhere.
        let store = Arc::clone(self);
        let id = id.clone();
        let work = move || {
            store.erase_layers(&doomed);
            if last && let Err(error) = store.bury(&id) {
                tracing::warn!(image = %id, %error, "removed image not cleaned up until the next sweep");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("podd-erase".into()).spawn(work) {
            tracing::warn!(%error, "no thread to delete layers, left to the next start");
        }
    }

    /// Deletes layers that were taken out of the state. A failure leaves garbage for the next start, not a broken
    /// store, so it is logged here.
    fn erase_layers(&self, numbers: &[u64]) {
        if numbers.is_empty() {
            return;
        }
        if let Err(error) = self.try_erase_layers(numbers) {
            tracing::warn!(?numbers, %error, "layers not deleted until the next start");
        }
    }

    fn try_erase_layers(&self, numbers: &[u64]) -> Result<(), Error> {
        let layers = self.layers_dir();
        // Durable first: a record without its layer must not come back.
        for number in numbers {
            erase::erase(&layers, &format!("{number}.json"))?;
        }
        record::sync_dir(&layers)?;
        for number in numbers {
            erase::erase(&layers, &format!("{number}.sums"))?;
            let gone = format!("gone-{number}");
            move_to(&layers.join(number.to_string()), &self.tmp_dir().join(&gone))?;
            erase::erase(&self.tmp_dir(), &gone)?;
        }
        Ok(())
    }

    /// Deletes layers that nobody has used for the grace period, or all unused ones.
    pub(crate) fn sweep(&self, all: bool) {
        let doomed: Vec<u64> = {
            let mut state = lock(&self.state);
            let idle = |layer: &Layer| {
                layer.users == 0
                    && (all || layer.idle_since.is_none_or(|since| since.elapsed() >= self.grace))
            };
            let doomed: Vec<u64> = state
                .layers
                .iter()
                .filter(|(_, l)| idle(l))
                .map(|(n, _)| *n)
                .collect();
            for number in &doomed {
                state.forget_layer(*number);
            }
            doomed
        };
        self.erase_layers(&doomed);
    }
}

fn move_to(from: &Path, to: &Path) -> Result<(), Error> {
    match std::fs::rename(from, to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::store("rename", from, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
