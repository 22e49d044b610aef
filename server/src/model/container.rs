//! The validated form of `ContainerConfig`.

use std::collections::BTreeMap;
use std::fmt;

use super::{CdiName, ContainerSecurity, Device, Mount, Resources, StopSignal};

/// What identifies a container within its pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerMetadata {
    /// Container name.
    pub name: String,
    /// Counts the containers made under this name.
    pub attempt: u32,
}

/// An image as a request names it; resolving it is the engine's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSpec {
    /// Reference or image id; not empty.
    pub image: String,
    /// What the user wrote in the pod.
    pub user_specified_image: String,
    /// Runtime handler the image was pulled for.
    pub runtime_handler: String,
    /// Resolved reference (ImageVolumeWithDigest).
    pub image_ref: String,
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
}

/// One environment variable. Values are often secrets and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Name: not empty, no `=`, no NUL.
    pub key: String,
    /// Value: any bytes but NUL.
    pub value: Vec<u8>,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.key)
    }
}

/// A container as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerConfig {
    /// Who it is.
    pub metadata: ContainerMetadata,
    /// Image.
    pub image: ImageSpec,
    /// Replaces the image's entrypoint and drops its cmd.
    pub command: Vec<String>,
    /// Replaces the image's cmd.
    pub args: Vec<String>,
    /// Absolute working directory; `None` leaves it to the image.
    pub working_dir: Option<String>,
    /// Environment, added to the image's.
    pub envs: Vec<EnvVar>,
    /// Mounts in request order.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Devices of the Container Device Interface, by CDI_devices and by annotations, each once.
    pub cdi_devices: Vec<CdiName>,
    /// Labels, verbatim.
    pub labels: BTreeMap<String, String>,
    /// Annotations, verbatim. Those of device plugins that name CDI devices are also in `cdi_devices`; no other
    /// steers anything.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the pod's log directory and beneath it; `None` keeps no log.
    pub log_path: Option<String>,
    /// Keep stdin open for attach.
    pub stdin: bool,
    /// Close stdin when the first attach ends.
    pub stdin_once: bool,
    /// Give the process a terminal.
    pub tty: bool,
    /// Signal that asks it to stop; `None` leaves it to the image.
    pub stop_signal: Option<StopSignal>,
    /// Resource limits.
    pub resources: Resources,
    /// Identity and confinement.
    pub security: ContainerSecurity,
}
