//! SELinux contexts: those of pods and containers, and the files of a pod that containers share. On a node without
//! SELinux nothing here asks anything.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use rustix::fs::{XattrFlags, lsetxattr};
use rustix::io::Errno;

use super::native::NativeError;
use super::{Engine, EngineError, blocking};
use crate::model::{ContainerConfig, PodConfig};
use crate::selinux::{Labels, Selinux};
use crate::spec::podfiles;
use crate::state::store::{Pod, Snapshot};

impl Engine {
    /// Writes the first record of a pod; on a node with SELinux it gets a level that no other has. Blocks.
    ///
    /// # Errors
    /// The request names what the policy has not, every level is taken, or the record cannot be written.
    pub(super) fn insert_pod(&self, mut new: Pod) -> Result<(), EngineError> {
        let Some(selinux) = &self.native.selinux else {
            return Ok(self.state.insert_pod(new)?);
        };
        // Others see the level with the record.
        let _choosing = self.native.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if named_level(&new.config).is_none() {
            let snapshot = self.snapshot();
            let taken = taken(&snapshot);
            new.record.selinux_level = selinux.free_level(|level| taken.contains(level))?;
        }
        context(selinux, &new)?;
        Ok(self.state.insert_pod(new)?)
    }

    /// The SELinux context of what a pod's containers share. Does not wait for any disk.
    ///
    /// # Errors
    /// The policy no longer has it.
    pub(super) fn pod_context(&self, pod: &Pod) -> Result<Option<String>, EngineError> {
        let selinux = self.native.selinux.as_ref();
        selinux.map(|selinux| context(selinux, pod)).transpose()
    }

    /// The SELinux contexts of a container. Does not wait for any disk.
    ///
    /// # Errors
    /// The policy does not have what the request names.
    pub(super) fn labels(&self, pod: &Pod, config: &ContainerConfig) -> Result<Option<Labels>, EngineError> {
        let Some(selinux) = &self.native.selinux else {
            return Ok(None);
        };
        let level = pod.record.selinux_level.as_deref();
        Ok(Some(selinux.labels(&pod.config, level, config)?))
    }

    /// Refuses a container whose contexts the policy does not have, before anything of it is made.
    pub(super) async fn check_labels(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        config: &ContainerConfig,
    ) -> Result<(), EngineError> {
        if self.native.selinux.is_none() {
            return Ok(());
        }
        let (engine, pod, config) = (Arc::clone(self), Arc::clone(pod), config.clone());
        blocking("CreateContainer", move || engine.labels(&pod, &config).map(drop)).await
    }
}

fn context(selinux: &Selinux, pod: &Pod) -> Result<String, EngineError> {
    Ok(selinux.pod_files(&pod.config, pod.record.selinux_level.as_deref())?)
}

fn named_level(config: &PodConfig) -> Option<&str> {
    let named = config.security.selinux.as_ref().map(|label| label.level.as_str());
    named.filter(|level| !level.is_empty())
}

/// The levels of all pods and containers that there are, whoever chose them.
fn taken(snapshot: &Snapshot) -> HashSet<&str> {
    let pods = snapshot.pods().flat_map(|pod| {
        let given = pod.record.selinux_level.as_deref();
        given.into_iter().chain(named_level(&pod.config))
    });
    let named = snapshot.containers().filter_map(|container| {
        let label = container.config.security.selinux.as_ref();
        label.map(|label| label.level.as_str())
    });
    pods.chain(named).collect()
}

/// Labels the files that a pod brings (hosts and the like). They are podd's own, in a directory that no container
/// reaches.
///
/// # Errors
/// The kernel refused.
pub(super) fn label_files(directory: &Path, context: &str) -> Result<(), NativeError> {
    label(directory, &podfiles::NAMES, context)
}

/// Labels the directories of the image store that layers are unpacked in: what is made there has their label, whereas
/// what is there keeps its own.
///
/// # Errors
/// The kernel refused.
pub(super) fn label_store(images: &Path, context: &str) -> Result<(), NativeError> {
    label(images, &["layers", "tmp"], context)
}

/// Follows no link. Where the file system has no labels there is nothing to do.
fn label(directory: &Path, names: &[&str], context: &str) -> Result<(), NativeError> {
    let flags = XattrFlags::empty();
    for name in names {
        let path = directory.join(name);
        match lsetxattr(&path, "security.selinux", context.as_bytes(), flags) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => {
                return Err(NativeError::File {
                    operation: "label",
                    path,
                    source: io::Error::from(errno),
                });
            }
        }
    }
    Ok(())
}
