//! Opening a store: directories, records, and what a crash left behind.
//!
//! Assumptions: a layer with a readable record and a directory is whole (`commit.rs`); anything else in `layers/` is
//! the rest of an interrupted commit or removal and is deleted with a warning. A record that cannot be read, and the
//! layer of such a record, and an image that lacks a layer are moved to `quarantine/`, never deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::commit::{Flusher, lock};
use super::record::{self, ImageRecord, LayerRecord};
use super::{Layer, State, Store, Warning, erase};
use crate::config::Config;
use crate::error::Error;
use crate::image::{Image, ImageConfig, ImageId};

impl Store {
    pub(crate) fn open(config: &Config) -> Result<(Arc<Store>, Vec<Warning>), Error> {
        let root = &config.root;
        // 0711 on the way to the layers: user-namespace pods must traverse, nobody may list.
        for (name, mode) in [
            ("", 0o711),
            ("layers", 0o711),
            ("images", 0o700),
            ("tmp", 0o700),
            ("quarantine", 0o700),
        ] {
            let path = root.join(name);
            DirBuilder::new()
                .recursive(name.is_empty())
                .mode(mode)
                .create(&path)
                .or_else(|e| if path.is_dir() { Ok(()) } else { Err(e) })
                .map_err(|e| Error::store("make directory", &path, e))?;
            // Whatever the umask was. The root itself may be shared: left as it is when it existed.
            if !name.is_empty() {
                rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(mode))
                    .map_err(|e| Error::store("chmod", &path, e))?;
            }
        }
        let flusher = Flusher::new(&root.join("layers"))?;
        let mut load = Load {
            root: root.clone(),
            state: State::default(),
            warnings: Vec::new(),
        };
        for name in names(&root.join("tmp"))? {
            erase::erase(&root.join("tmp"), &name)?;
        }
        load.layers()?;
        load.images()?;
        let store = Store {
            root: root.clone(),
            durability: config.durability,
            grace: config.unreferenced_grace,
            state: Mutex::new(load.state),
            writer: Mutex::new(()),
            layer_commit: Mutex::new(()),
            flusher,
        };
        Ok((Arc::new(store), load.warnings))
    }

    /// Directories of a layer that no entry of its archive describes.
    pub(super) fn implicit(&self, number: u64) -> Result<Vec<Vec<u8>>, Error> {
        if lock(&self.state)
            .layers
            .get(&number)
            .is_none_or(|l| !l.has_implicit)
        {
            return Ok(Vec::new());
        }
        let path = self.layers_dir().join(format!("{number}.json"));
        let record: LayerRecord =
            record::read(&path).map_err(|e| Error::store("read", &path, std::io::Error::other(e)))?;
        Ok(record::decode_paths(&record.implicit))
    }
}

struct Load {
    root: PathBuf,
    state: State,
    warnings: Vec<Warning>,
}

impl Load {
    fn layers(&mut self) -> Result<(), Error> {
        let dir = self.root.join("layers");
        let found: BTreeSet<String> = names(&dir)?.into_iter().collect();
        for name in &found {
            let number = name.split('.').next().and_then(|n| n.parse::<u64>().ok());
            // Also those of broken layers: a number is never given twice while something may still use it.
            self.state.next_number = self.state.next_number.max(number.unwrap_or(0));
            let Some((number, true)) = number.map(|n| (n, *name == format!("{n}.json"))) else {
                continue;
            };
            let whole = found.contains(&number.to_string());
            match record::read::<LayerRecord>(&dir.join(name)) {
                Ok(record) if whole => self.state.insert_layer(
                    number,
                    Layer {
                        diff_id: record.diff_id,
                        bytes: record.bytes,
                        inodes: record.inodes,
                        users: 0,
                        idle_since: Some(Instant::now()),
                        has_implicit: !record.implicit.is_empty(),
                    },
                ),
                Ok(_) => self.quarantine(&dir.join(name), "the layer directory is missing")?,
                Err(reason) => {
                    self.quarantine(&dir.join(name), &reason)?;
                    for other in [number.to_string(), format!("{number}.sums")] {
                        if found.contains(&other) {
                            self.quarantine(&dir.join(other), "the layer record is unreadable")?;
                        }
                    }
                }
            }
        }
        for name in found {
            // Other names (lost+found) are not ours.
            let Some(number) = name.split('.').next().and_then(|n| n.parse::<u64>().ok()) else {
                continue;
            };
            if !self.state.layers.contains_key(&number) && dir.join(&name).symlink_metadata().is_ok() {
                // Deleting happens in tmp, whose names are ours alone.
                let tmp = self.root.join("tmp");
                super::move_to(&dir.join(&name), &tmp.join("leftover"))?;
                erase::erase(&tmp, "leftover")?;
                self.warnings.push(Warning::Leftover { path: dir.join(name) });
            }
        }
        for name in names(&self.root.join("quarantine"))? {
            let number = name.split('.').next().and_then(|n| n.parse::<u64>().ok());
            self.state.next_number = self.state.next_number.max(number.unwrap_or(0));
        }
        Ok(())
    }

    fn images(&mut self) -> Result<(), Error> {
        let dir = self.root.join("images");
        let mut found: BTreeMap<u64, (ImageRecord, Image)> = BTreeMap::new();
        for name in names(&dir)? {
            let path = dir.join(&name);
            match self.image(&path, &name) {
                Ok((record, image)) => {
                    self.state.next_sequence = self.state.next_sequence.max(record.sequence);
                    found.insert(record.sequence, (record, image));
                }
                Err(reason) => self.quarantine(&path, &reason)?,
            }
        }
        // Newest last: a tag that two records claim after a crash belongs to the one written later.
        for (record, image) in found.into_values() {
            self.state.take(&image.layers);
            if record.removed {
                self.state.removed.insert(image.id, image.layers);
                continue;
            }
            for name in image.repo_tags.iter().chain(&image.repo_digests) {
                if let Some(loser) = self.state.names.insert(name.clone(), image.id.clone())
                    && let Some(old) = self.state.images.get_mut(&loser)
                {
                    Arc::make_mut(old).repo_tags.retain(|t| t != name);
                    Arc::make_mut(old).repo_digests.retain(|d| d != name);
                }
            }
            self.state.images.insert(image.id.clone(), Arc::new(image));
        }
        Ok(())
    }

    fn image(&self, path: &Path, name: &str) -> Result<(ImageRecord, Image), String> {
        let mut record: ImageRecord = record::read(path)?;
        if ImageId::of(record.config.as_bytes()) != record.id || name != format!("{}.json", record.id.hex()) {
            return Err("the config does not belong to the image id".to_owned());
        }
        if let Some(missing) = record.layers.iter().find(|n| !self.state.layers.contains_key(n)) {
            return Err(format!("layer {missing} is missing"));
        }
        let config = ImageConfig::parse(record.config.as_bytes()).map_err(|e| e.to_string())?;
        record.config.clear();
        let image = Image {
            id: record.id.clone(),
            layers: record.layers.clone(),
            repo_tags: std::mem::take(&mut record.repo_tags),
            repo_digests: std::mem::take(&mut record.repo_digests),
            size: record.size,
            pinned: record.pinned,
            config: Arc::new(config),
        };
        Ok((record, image))
    }

    fn quarantine(&mut self, path: &Path, reason: &str) -> Result<(), Error> {
        let name = path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let dir = self.root.join("quarantine");
        let free = (0..).map(|k| {
            if k == 0 {
                name.clone()
            } else {
                format!("{name}.{k}")
            }
        });
        if let Some(target) = free.map(|n| dir.join(n)).find(|p| p.symlink_metadata().is_err()) {
            super::move_to(path, &target)?;
        }
        self.warnings.push(Warning::Quarantined {
            path: path.to_owned(),
            reason: reason.to_owned(),
        });
        Ok(())
    }
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let fail = |e| Error::store("list", dir, e);
    let entries = fs::read_dir(dir).map_err(fail)?;
    entries
        .map(|e| {
            e.map(|e| e.file_name().to_string_lossy().into_owned())
                .map_err(fail)
        })
        .collect()
}
