//! What a plan needs and an OCI spec cannot say.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{CapSet, HookInputs};
use crate::plan::{FileKind, GroupsPolicy, TerminalSize};
use crate::seccomp::Filter;

/// A user or group before it is looked up in the container's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// Not given.
    #[default]
    Unset,
    /// A number.
    Id(u32),
    /// A name.
    Name(String),
}

/// Who the process is to be, names unresolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub user: Who,
    /// Primary group; unset means the one of the user's /etc/passwd entry, else 0.
    pub group: Who,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Whether the image's /etc/group adds to them.
    pub policy: GroupsPolicy,
}

/// The container's root: an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootLayers {
    /// Directory of the nest that layer names start from, such as `/store/layers`.
    pub base: String,
    /// Layer directories relative to `base`, from top to bottom; at least one.
    pub lowers: Vec<String>,
    /// Upper directory in the nest.
    pub upper: String,
    /// Work directory in the nest.
    pub work: String,
}

/// A mount whose source is a path of the nest rather than a volume that the caller opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NestMount {
    /// Absolute path in the nest, such as `/shm` or `/store/pods/<id>/hosts`.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
}

/// A mount whose source is an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMount {
    /// Layer directories relative to [`RootLayers::base`], from top to bottom; at least one.
    pub lowers: Vec<String>,
    /// Directory or file of the image, relative; empty means all of it.
    pub sub_path: String,
}

/// What containers and execs have in common.
#[derive(Clone, Debug)]
pub struct ProcessInputs {
    /// Identity; `None` takes the numbers of the spec's `process.user`.
    pub identity: Option<Identity>,
    /// Environment as `NAME=value` bytes in place of the spec's, which can only hold UTF-8.
    pub env: Option<Vec<Vec<u8>>>,
    /// Capabilities that this host's kernel has; others are left out.
    pub host_caps: CapSet,
    /// The compiled form of the spec's seccomp profile, when the caller keeps it.
    pub seccomp: Option<Arc<Filter>>,
    /// The caller gives a cgroup in slot 5.
    pub into_cgroup: bool,
}

impl Default for ProcessInputs {
    fn default() -> Self {
        Self {
            identity: None,
            env: None,
            host_caps: CapSet::ALL,
            seccomp: None,
            into_cgroup: false,
        }
    }
}

/// Inputs of a container plan.
#[derive(Clone, Debug)]
pub struct ContainerInputs {
    /// Root file system.
    pub root: RootLayers,
    /// Bind mounts of the spec that come from the nest, by destination.
    pub nest: BTreeMap<PathBuf, NestMount>,
    /// Mounts of the spec that come from images, by destination.
    pub images: BTreeMap<PathBuf, ImageMount>,
    /// Directories that are made where the image has nothing, for who the process is to be.
    pub directories: Vec<PathBuf>,
    /// What the volumes are, in the order of [`super::volumes`]; volume n is in slot 12 + n.
    pub volumes: Vec<FileKind>,
    /// SELinux context that the pod's /dev/shm has to get for this container.
    pub shm_context: Option<String>,
    /// What hooks need, where the spec has any. The host's tree for those of `createContainer` is in the slot behind
    /// the volumes ([`super::needs_host_tree`]).
    pub hooks: Option<HookInputs>,
    /// The process.
    pub process: ProcessInputs,
}

/// Inputs of an exec plan. Working directory, limits, capabilities and the like are the container's.
#[derive(Clone, Debug)]
pub struct ExecInputs {
    /// Command and arguments.
    pub args: Vec<String>,
    /// Give it a terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// The process.
    pub process: ProcessInputs,
}

/// Inputs of a pod plan.
#[derive(Clone, Debug, Default)]
pub struct PodInputs {
    /// Make a network namespace.
    pub network: bool,
    /// Make an ipc namespace.
    pub ipc: bool,
    /// Make a uts namespace.
    pub uts: bool,
    /// Make a pid namespace for the containers to share; the process that holds it stays as its pid 1, in the cgroup
    /// that is sent along.
    pub pid: bool,
    /// Host name; needs `uts`.
    pub hostname: Option<String>,
    /// The pod has a user namespace, which comes as the first mount fd; its root is user and group so of the host.
    pub user: Option<(u32, u32)>,
    /// Path below /proc/sys and value, written in order.
    pub sysctls: Vec<(String, String)>,
    /// SELinux context of the pod's /dev/shm.
    pub context: Option<String>,
}
