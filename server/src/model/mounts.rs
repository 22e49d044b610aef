//! Mounts and devices of a container.

use super::{IdMaps, ImageSpec};

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// An absolute path of the host; symbolic links are followed.
    Host(String),
    /// A part of an image, always read-only (KEP-4639).
    Image {
        /// The image, pulled before.
        image: ImageSpec,
        /// Directory or file in the image; relative, without `..`. Empty is the root.
        sub_path: String,
    },
}

/// How far a mount is read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnly {
    /// Writable.
    No,
    /// The mount itself; submounts stay as they are.
    Top,
    /// With every submount, or not at all (KEP-3857).
    Recursive,
}

/// Which mount events cross between host and container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// None: rprivate.
    Private,
    /// From the host to the container: rslave.
    HostToContainer,
    /// Both ways: rshared.
    Bidirectional,
}

/// Further restrictions of a bind mount (`Mount.mount_options`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Refuse to execute programs.
    pub noexec: bool,
    /// Ignore device nodes.
    pub nodev: bool,
    /// Ignore set-id bits.
    pub nosuid: bool,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the container, normal form: no `.`, `..`, or doubled slash; never `/` itself.
    pub container_path: String,
    /// What is mounted.
    pub source: MountSource,
    /// Whether it may be written.
    pub readonly: ReadOnly,
    /// Whether mounts come and go through it.
    pub propagation: Propagation,
    /// noexec, nodev, nosuid.
    pub options: MountOptions,
    /// The source shows the ids of the container's user namespace, by these maps, which are the pod's.
    pub ids: Option<IdMaps>,
    /// Label the source for the container (only means something on a host with SELinux).
    pub selinux_relabel: bool,
}

/// A device of the host, or a directory of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Absolute path in the container.
    pub container_path: String,
    /// Absolute path on the host.
    pub host_path: String,
    /// What the device cgroup allows, any of `r`, `w`, `m`, in this order.
    pub permissions: String,
}
