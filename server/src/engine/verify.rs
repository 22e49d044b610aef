//! Layers after a crash of the machine: their files are compared with the checksums taken when they were unpacked.
//!
//! Layers are flushed before they are committed, so that none should be torn; a disk that lies about that is found
//! here. It is done in the background, as the pods of a node that comes back cannot wait for all of its disk to be read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use crate::observe::metrics::Leak;

/// How long layers are read at most; what was pulled last is read first, as it was most recently written.
const BUDGET: Duration = Duration::from_secs(600);

impl Engine {
    /// Begins to verify layers; those that are damaged are moved aside, and the images on them forgotten: a pull brings
    /// them back.
    pub(super) fn verify_images(self: &Arc<Self>) {
        let engine = Arc::clone(self);
        let thread = std::thread::Builder::new().name("podd-verify".to_owned());
        if let Err(e) = thread.spawn(move || engine.verify_all()) {
            tracing::warn!("cannot start the thread that verifies image layers: {e}");
        }
    }

    fn verify_all(&self) {
        let (begin, mut seen) = (Instant::now(), BTreeSet::new());
        let mut images = self.images.list();
        images.sort_by_key(|image| std::cmp::Reverse(image.layers.iter().max().copied()));
        let mut damaged = 0;
        for image in &images {
            // Held, so that a layer that is gone was not removed meanwhile.
            let Ok(_held) = self.images.hold(image) else {
                continue;
            };
            for layer in image.layers.iter().rev() {
                if !seen.insert(*layer) {
                    continue;
                }
                if begin.elapsed() > BUDGET {
                    tracing::warn!(
                        layers = seen.len(),
                        damaged,
                        "not all image layers were verified after a crash"
                    );
                    return;
                }
                let began = Instant::now();
                damaged += usize::from(!self.verify_layer(*layer));
                // Half of the time the disk is for others.
                std::thread::sleep(began.elapsed());
            }
        }
        tracing::info!(
            layers = seen.len(),
            damaged,
            "image layers were verified after a crash"
        );
    }

    /// Whether a layer is as it was unpacked.
    fn verify_layer(&self, layer: u64) -> bool {
        let reason = match self.images.verify(layer) {
            Ok(differ) if differ.is_empty() => return true,
            Ok(differ) => differ.join(", "),
            Err(e) => e.to_string(),
        };
        match self.images.quarantine(layer) {
            Ok(images) => {
                self.metrics.leaked(Leak::Image, 1, true);
                let images: Vec<String> = images.iter().map(ToString::to_string).collect();
                let images = images.join(", ");
                tracing::error!(
                    layer,
                    images,
                    "a layer was damaged when the machine crashed, pull these images again: {reason}"
                );
            }
            Err(e) => {
                self.metrics.leaked(Leak::Image, 1, false);
                tracing::error!(
                    layer,
                    error = &e as &dyn std::error::Error,
                    "cannot move a damaged layer aside: {reason}"
                );
            }
        }
        false
    }
}
