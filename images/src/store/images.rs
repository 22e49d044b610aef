//! Changes of image records: commit of a pulled image, moving tags, removal, quarantine of damaged layers.
//!
//! Serial under the store's `writer` lock; disk first, then memory. Never touches layer content.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::commit::lock;
use super::record::{self, ImageRecord};
use super::{Grace, LayerHold, Store, move_to};
use crate::error::Error;
use crate::image::{Image, ImageConfig, ImageId};
use crate::sums;

/// A pulled image, ready to be recorded.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The config blob.
    pub config_json: String,
    pub config: ImageConfig,
    /// `host/repository:tag`, if it was pulled by tag.
    pub tag: Option<String>,
    /// `host/repository@digest`.
    pub digest: String,
    pub size: u64,
    /// Layers bottom first, one hold each, kept until the record exists.
    pub layers: Vec<Arc<LayerHold>>,
}

impl Store {
    /// Records an image under its names. A tag that another image had moves; that image keeps its digests.
    pub(crate) fn commit_image(self: &Arc<Self>, draft: Draft) -> Result<Arc<Image>, Error> {
        let _serial = lock(&self.writer);
        let id = ImageId::of(draft.config_json.as_bytes());
        let mut layers = without_repeats(draft.layers.iter().flat_map(|hold| hold.layers().iter().copied()));
        let fixup = self.fixup(&layers)?;
        layers.extend(fixup.iter().flat_map(|hold| hold.layers().iter().copied()));
        let existing = self.by_id(&id);
        let mut image = Image {
            id: id.clone(),
            layers,
            repo_tags: existing.as_ref().map(|i| i.repo_tags.clone()).unwrap_or_default(),
            repo_digests: existing
                .as_ref()
                .map(|i| i.repo_digests.clone())
                .unwrap_or_default(),
            size: draft.size,
            pinned: existing.as_ref().is_some_and(|i| i.pinned),
            config: Arc::new(draft.config),
        };
        add(&mut image.repo_digests, draft.digest.clone());
        if let Some(tag) = &draft.tag {
            add(&mut image.repo_tags, tag.clone());
        }
        let loser = draft
            .tag
            .as_ref()
            .and_then(|tag| self.by_name(tag))
            .filter(|other| other.id != id);
        if let Some(old) = &existing
            && loser.is_none()
            && (&old.layers, &old.repo_tags, &old.repo_digests)
                == (&image.layers, &image.repo_tags, &image.repo_digests)
        {
            return Ok(Arc::clone(old));
        }
        record::sync_dir(&self.layers_dir())?;
        self.write_image(&image, draft.config_json, false)?;
        let loser = match loser {
            Some(other) => Some(self.untag(&other, draft.tag.as_deref().unwrap_or_default())?),
            None => None,
        };
        let image = Arc::new(image);
        let mut state = lock(&self.state);
        if let Some(other) = loser {
            state.images.insert(other.id.clone(), other);
        }
        state.take(&image.layers);
        let before = match state.images.insert(id.clone(), Arc::clone(&image)) {
            Some(old) => old.layers.clone(),
            None => state.removed.remove(&id).unwrap_or_default(),
        };
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            state.names.insert(name.clone(), id.clone());
        }
        let doomed = state.release(&before, Grace::Delete);
        drop(state);
        self.erase_layers(&doomed);
        Ok(image)
    }

    /// Writes the record of an image that loses `tag` and returns the new value.
    fn untag(&self, image: &Image, tag: &str) -> Result<Arc<Image>, Error> {
        let mut image = image.clone();
        image.repo_tags.retain(|t| t != tag);
        let config = self.config_json(&image.id)?;
        self.write_image(&image, config, false)?;
        Ok(Arc::new(image))
    }

    /// The config blob of an image, from its record.
    pub(crate) fn config_json(&self, id: &ImageId) -> Result<String, Error> {
        let path = self.image_path(id);
        let bad = |reason: String| Error::store("read", &path, std::io::Error::other(reason));
        record::read::<ImageRecord>(&path).map(|r| r.config).map_err(bad)
    }

    fn write_image(&self, image: &Image, config: String, removed: bool) -> Result<(), Error> {
        let sequence = {
            let mut state = lock(&self.state);
            state.next_sequence += 1;
            state.next_sequence
        };
        let names = |names: &Vec<String>| if removed { Vec::new() } else { names.clone() };
        let record = ImageRecord {
            version: record::VERSION,
            sequence,
            id: image.id.clone(),
            layers: image.layers.clone(),
            repo_tags: names(&image.repo_tags),
            repo_digests: names(&image.repo_digests),
            size: image.size,
            pinned: image.pinned,
            removed,
            config,
        };
        record::replace(
            &self.image_path(&image.id),
            &self.tmp_dir().join("image.json"),
            &record,
        )
    }

    /// Removes an image with all its names. While containers hold it, its layers and a nameless record stay.
    /// False if there is no such image.
    pub(crate) fn remove_image(&self, id: &ImageId) -> Result<bool, Error> {
        let serial = lock(&self.writer);
        let (image, held) = {
            let mut state = lock(&self.state);
            let Some(image) = state.images.remove(id) else {
                return Ok(false);
            };
            state.names.retain(|_, owner| owner != id);
            // From here no new hold can come, as only images can be held.
            state.removed.insert(id.clone(), image.layers.clone());
            (image, state.holds.contains_key(id))
        };
        let done = if held {
            self.config_json(id)
                .and_then(|config| self.write_image(&image, config, true))
        } else {
            record::remove(&self.image_path(id))
        };
        let mut state = lock(&self.state);
        if let Err(error) = done {
            state.removed.remove(id);
            for name in image.repo_tags.iter().chain(&image.repo_digests) {
                state.names.insert(name.clone(), id.clone());
            }
            state.images.insert(id.clone(), image);
            return Err(error);
        }
        // The last hold may have gone while the record was written.
        let bury = held && !state.holds.contains_key(id);
        let doomed = if held {
            Vec::new()
        } else {
            state.removed.remove(id);
            state.release(&image.layers, Grace::Delete)
        };
        drop(state);
        drop(serial);
        self.erase_layers(&doomed);
        if bury {
            self.bury(id)?;
        }
        // Space is wanted: what failed pulls left goes, too.
        self.sweep(true);
        Ok(true)
    }

    /// Forgets a removed image that nobody holds any more.
    pub(super) fn bury(&self, id: &ImageId) -> Result<(), Error> {
        let serial = lock(&self.writer);
        let layers = {
            let mut state = lock(&self.state);
            if state.holds.contains_key(id) {
                return Ok(());
            }
            let Some(layers) = state.removed.remove(id) else {
                return Ok(());
            };
            layers
        };
        let result = record::remove(&self.image_path(id));
        let doomed = lock(&self.state).release(&layers, Grace::Delete);
        drop(serial);
        self.erase_layers(&doomed);
        result
    }

    /// Forgets every removed image that nobody holds, and every unused layer.
    pub(crate) fn sweep_all(&self) -> Result<(), Error> {
        let removed: Vec<ImageId> = lock(&self.state).removed.keys().cloned().collect();
        for id in removed {
            self.bury(&id)?;
        }
        self.sweep(true);
        Ok(())
    }

    /// Checks the files of a layer against the checksums taken when it was unpacked; paths that differ, at most 100.
    pub(crate) fn verify_layer(&self, number: u64) -> Result<Vec<String>, Error> {
        let path = self.layers_dir().join(number.to_string());
        let sums = self.layers_dir().join(format!("{number}.sums"));
        let root: OwnedFd = fs::File::open(&path)
            .map_err(|e| Error::store("open", &path, e))?
            .into();
        sums::verify(&sums, &root, 100).map_err(|e| Error::store("verify", path, e))
    }

    /// Moves a damaged layer to the quarantine and forgets the images on it, so that the next pull repairs them.
    /// Returns the ids of these images.
    pub(crate) fn quarantine_layer(&self, number: u64) -> Result<Vec<ImageId>, Error> {
        let _serial = lock(&self.writer);
        let mut doomed = Vec::new();
        let victims: Vec<Arc<Image>> = lock(&self.state)
            .images
            .values()
            .filter(|i| i.layers.contains(&number))
            .cloned()
            .collect();
        for image in &victims {
            record::remove(&self.image_path(&image.id))?;
            let mut state = lock(&self.state);
            state.images.remove(&image.id);
            state.names.retain(|_, owner| *owner != image.id);
            let others: Vec<u64> = image.layers.iter().copied().filter(|n| *n != number).collect();
            doomed.extend(state.release(&others, Grace::Delete));
        }
        lock(&self.state).forget_layer(number);
        for suffix in [".json", ".sums", ""] {
            let name = format!("{number}{suffix}");
            move_to(
                &self.layers_dir().join(&name),
                &self.root.join("quarantine").join(&name),
            )?;
        }
        self.erase_layers(&doomed);
        Ok(victims.iter().map(|i| i.id.clone()).collect())
    }
}

fn add(names: &mut Vec<String>, name: String) {
    if let Err(at) = names.binary_search(&name) {
        names.insert(at, name);
    }
}

/// Keeps the topmost of equal layers: overlayfs refuses a directory twice (ELOOP), and everything the lower one says
/// the upper one says again.
fn without_repeats(layers: impl DoubleEndedIterator<Item = u64>) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<u64> = layers.rev().filter(|n| seen.insert(*n)).collect();
    kept.reverse();
    kept
}
