//! What a request to create a container names: images, devices, a profile, another container. All of it has to be
//! there before anything is made.

use std::sync::Arc;

use podd_images::Image;

use super::native::NativeError;
use super::{Engine, EngineError, blocking};
use crate::apparmor;
use crate::cdi::{self, Edits};
use crate::model::{AppArmor, ContainerConfig, ContainerPid, MountSource};
use crate::observe::metrics::Stage;
use crate::state::phase::ContainerPhase;
use crate::state::record::ImageVolume;
use crate::state::store::Pod;

impl Engine {
    /// A container whose processes another one is to see has to be running, in the same pod.
    pub(super) fn check_target(&self, pod: &Pod, config: &ContainerConfig) -> Result<(), EngineError> {
        let ContainerPid::Target(target) = config.security.pid else {
            return Ok(());
        };
        let snapshot = self.snapshot();
        let found = snapshot
            .container(&target)
            .filter(|found| found.record.pod == pod.record.id);
        match found.map(|found| &found.record.phase) {
            Some(ContainerPhase::Running { .. }) => Ok(()),
            Some(other) => Err(EngineError::NotRunning {
                container: target,
                phase: other.name(),
            }),
            None => Err(EngineError::NotInPod(target)),
        }
    }

    /// The images that a request mounts.
    pub(super) fn image_volumes(&self, config: &ContainerConfig) -> Result<Vec<ImageVolume>, EngineError> {
        let of_images = config.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Image { image, .. } => Some((mount, image)),
            MountSource::Host(_) => None,
        });
        of_images
            .map(|(mount, spec)| {
                let image = self.local_image(&spec.image)?;
                Ok(ImageVolume {
                    path: mount.container_path.clone(),
                    image_id: image.id.to_string(),
                    layers: image.layers.clone(),
                })
            })
            .collect()
    }

    /// What the CDI devices of a request come to; nothing is read where there are none.
    pub(super) async fn cdi_edits(
        &self,
        config: &ContainerConfig,
    ) -> Result<Option<Box<Edits>>, EngineError> {
        if config.cdi_devices.is_empty() {
            return Ok(None);
        }
        let (dirs, names) = (self.config.cdi.spec_dirs.clone(), config.cdi_devices.clone());
        let found = blocking("CreateContainer", move || -> Result<_, EngineError> {
            Ok(cdi::find(&dirs, &names)?)
        });
        let found = self.metrics.stage(Stage::CdiDevices, found).await?;
        Ok(Some(Box::new(found)))
    }

    /// The image that a request names, from the local store.
    pub(super) fn local_image(&self, name: &str) -> Result<Arc<Image>, EngineError> {
        self.images
            .resolve(name)
            .ok_or_else(|| EngineError::ImageUnknown(name.to_owned()))
    }
}

/// A profile that the request names has to be loaded.
pub(super) async fn check_apparmor(config: &ContainerConfig) -> Result<(), EngineError> {
    let AppArmor::Localhost(name) = &config.security.apparmor else {
        return Ok(());
    };
    let name = name.clone();
    blocking("CreateContainer", move || match apparmor::is_loaded(&name) {
        Ok(true) => Ok(()),
        Ok(false) => Err(EngineError::NoAppArmorProfile(name)),
        Err(source) => Err(NativeError::Kernel {
            operation: "list the AppArmor profiles",
            source,
        }
        .into()),
    })
    .await
}
