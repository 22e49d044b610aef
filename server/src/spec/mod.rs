//! From a checked request to an OCI runtime spec: what a container of this pod, this image and this host is.
//!
//! Pure, so that tests compare values and people can read on disk what was decided. The spec says everything
//! but what OCI has no words for (names that only the image resolves, environment that is not UTF-8, paths of
//! the nest); that comes beside it in [`Built`]. Never opens, looks up or mounts anything; only [`devices`] and
//! [`HostFacts::probe`] look at the host, once, before.

mod command;
pub mod devices;
mod error;
mod host;
mod image;
mod mounts;
pub mod podfiles;
mod process;
mod resources;
mod security;
#[cfg(test)]
mod tests;
mod user;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxBuilder, LinuxSeccomp, Root, Spec};
use runtime_core::compile::{Identity, ImageMount, NestMount};

pub use error::SpecError;
pub use host::HostFacts;
pub use image::ImageDefaults;
pub use resources::{Change, linux_resources, read_back};

use crate::cdi::Edits;
use crate::model::{ContainerConfig, PodConfig};
use crate::selinux::Labels;

/// Version of the OCI runtime spec that podd writes.
pub const OCI_VERSION: &str = "1.2.0";

/// Directories of a pod's own files (hosts, hostname, resolv.conf), by the host's and by the nest's path.
#[derive(Clone, Copy, Debug)]
pub struct PodFiles<'a> {
    /// On the host, for people who read the spec.
    pub host_dir: &'a str,
    /// In the nest, where the stage finds them.
    pub nest_dir: &'a str,
}

/// Everything a spec is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The pod.
    pub pod: &'a PodConfig,
    /// The container; it was checked against the pod.
    pub container: &'a ContainerConfig,
    /// What the image says.
    pub image: &'a ImageDefaults<'a>,
    /// The node.
    pub host: &'a HostFacts,
    /// The pod's own files.
    pub files: PodFiles<'a>,
    /// The devices that the request names, looked up by [`devices::find`].
    pub devices: &'a [devices::Found],
    /// What its CDI devices add.
    pub cdi: &'a Edits,
    /// The SELinux contexts that it gets, on a node with SELinux.
    pub labels: Option<&'a Labels>,
    /// The localhost seccomp profile, if the request names one and it was read.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// Layers of the images that mounts name, from top to bottom, by the mount's path in the container.
    pub images: &'a BTreeMap<String, Vec<String>>,
    /// Path of the container's cgroup below the hierarchy's root.
    pub cgroup: &'a str,
}

/// A container, decided.
#[derive(Clone, Debug)]
pub struct Built {
    /// The spec.
    pub spec: Spec,
    /// Who the process is to be, names unresolved.
    pub identity: Identity,
    /// Its environment, `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Bind mounts of the spec that come from the nest, by destination.
    pub nest: BTreeMap<PathBuf, NestMount>,
    /// Mounts of the spec that come from images, by destination.
    pub images: BTreeMap<PathBuf, ImageMount>,
    /// Directories that the process gets where the image has none.
    pub directories: Vec<PathBuf>,
}

/// Makes the spec of a container.
///
/// # Errors
/// The image or the host lacks what the request needs.
pub fn build(inputs: &Inputs<'_>) -> Result<Built, SpecError> {
    let container = inputs.container;
    let env = command::environment(inputs);
    let (mounts, nest) = mounts::mounts(inputs)?;
    let images = mounts::images(inputs)?;

    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"))
        .set_readonly(Some(container.security.readonly_rootfs));

    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_hostname(None)
        .set_root(Some(root))
        .set_process(Some(process::process(inputs, &env)?))
        .set_mounts(Some(mounts))
        .set_annotations(Some(
            container
                .annotations
                .clone()
                .into_iter()
                .collect::<HashMap<_, _>>(),
        ))
        .set_linux(Some(linux(inputs)?));
    if let Some(hooks) = &inputs.cdi.hooks {
        spec.set_hooks(Some(hooks.clone()));
    }
    Ok(Built {
        spec,
        identity: user::identity(inputs)?,
        env,
        nest,
        images,
        directories: command::volumes(inputs)?,
    })
}

fn linux(inputs: &Inputs<'_>) -> Result<oci_spec::runtime::Linux, SpecError> {
    let security = &inputs.container.security;
    let mut resources = linux_resources(&inputs.container.resources, Change::Create);
    resources.set_devices(Some(devices::rules(inputs)));
    let hidden = |paths: &[String]| {
        if security.privileged {
            Vec::new()
        } else {
            paths.to_vec()
        }
    };
    let mut linux = LinuxBuilder::default()
        .namespaces(security::namespaces(inputs))
        .resources(resources)
        .cgroups_path(PathBuf::from(inputs.cgroup))
        .devices(devices::nodes(inputs)?)
        .masked_paths(hidden(&security.masked_paths))
        .readonly_paths(hidden(&security.readonly_paths))
        .build()
        .map_err(|error| SpecError::Oci(error.to_string()))?;
    linux
        .set_seccomp(security::seccomp(inputs)?)
        .set_mount_label(inputs.labels.map(|labels| labels.mount.clone()));
    if let Some(ids) = inputs.pod.namespaces.user {
        linux
            .set_uid_mappings(Some(mounts::mapping(ids.users)?))
            .set_gid_mappings(Some(mounts::mapping(ids.groups)?));
    }
    Ok(linux)
}
