//! Namespaces of a spec: which are made, which are the pod's, which are the host's.

use std::path::PathBuf;

use linux_raw_sys::general as sys;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::CompileError;
use crate::plan::{Namespaces, Slot, Step};

/// Fixed descriptors of a stage (docs/process-model.md).
pub mod slot {
    use crate::plan::Slot;
    /// The cgroup directory.
    pub const CGROUP: Slot = 5;
    /// The pod's network namespace.
    pub const NET: Slot = 6;
    /// The pod's ipc namespace.
    pub const IPC: Slot = 7;
    /// The pod's uts namespace.
    pub const UTS: Slot = 8;
    /// The pod's user namespace.
    pub const USER: Slot = 9;
    /// The pod's pid namespace.
    pub const PID: Slot = 10;
    /// The pidfd of the container that an exec joins.
    pub const TARGET: Slot = 11;
    /// The first volume.
    pub const FIRST_MOUNT: Slot = 12;
}

/// The path that marks the pid namespace of a spec as that of another container of the pod.
#[must_use]
pub fn target_namespace_path() -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", slot::TARGET))
}

/// The path that marks a namespace of a spec as the pod's; `None` for types that no pod holds.
#[must_use]
pub fn joined_namespace_path(kind: LinuxNamespaceType) -> Option<PathBuf> {
    pod_slot(kind).map(|slot| PathBuf::from(format!("/proc/self/fd/{slot}")))
}

fn pod_slot(kind: LinuxNamespaceType) -> Option<Slot> {
    match kind {
        LinuxNamespaceType::Network => Some(slot::NET),
        LinuxNamespaceType::Ipc => Some(slot::IPC),
        LinuxNamespaceType::Uts => Some(slot::UTS),
        LinuxNamespaceType::Pid => Some(slot::PID),
        LinuxNamespaceType::User => Some(slot::USER),
        _ => None,
    }
}

fn flag(kind: LinuxNamespaceType) -> Option<Namespaces> {
    let bit = match kind {
        LinuxNamespaceType::Mount => sys::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => sys::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => sys::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => sys::CLONE_NEWIPC,
        LinuxNamespaceType::Pid => sys::CLONE_NEWPID,
        LinuxNamespaceType::Network => sys::CLONE_NEWNET,
        LinuxNamespaceType::User => sys::CLONE_NEWUSER,
        // Time namespaces belong to no CRI field.
        LinuxNamespaceType::Time => return None,
    };
    Some(Namespaces::from(bit))
}

/// The namespaces of one container, sorted by how it comes to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The pod's, in the order in which they are joined.
    pub joined: Vec<(Slot, Namespaces)>,
    /// Made by the clone that makes the container.
    pub cloned: Namespaces,
    /// The pod has a user namespace, which is joined last: what comes after happens with its privileges only.
    pub user: bool,
    /// A cgroup namespace, unshared after the clone: before it, the root would be the stage's cgroup.
    pub cgroup: bool,
}

impl Layout {
    /// Reads a spec's namespaces. A mount namespace of its own is what makes a container.
    pub fn of(spec: &Spec) -> Result<Self, CompileError> {
        let listed = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        let mut layout = Self::default();
        for namespace in listed.into_iter().flatten() {
            let kind = namespace.typ();
            let unsupported = |value: String| CompileError::Unsupported {
                what: "namespace",
                value,
            };
            let bit = flag(kind).ok_or_else(|| unsupported(kind.to_string()))?;
            match namespace.path() {
                None if bit == Namespaces::from(sys::CLONE_NEWCGROUP) => layout.cgroup = true,
                None if kind == LinuxNamespaceType::User => return Err(unsupported(kind.to_string())),
                Some(path) if kind == LinuxNamespaceType::Pid && *path == target_namespace_path() => {
                    layout.joined.push((slot::TARGET, bit));
                }
                Some(path)
                    if kind == LinuxNamespaceType::User
                        && Some(path) == joined_namespace_path(kind).as_ref() =>
                {
                    layout.user = true;
                }
                None => layout.cloned |= bit,
                Some(path) if Some(path) == joined_namespace_path(kind).as_ref() => {
                    // A descriptor marked as the pod's has a slot: the comparison above found its path.
                    layout.joined.extend(pod_slot(kind).map(|slot| (slot, bit)));
                }
                Some(path) => return Err(unsupported(format!("{kind}:{}", path.display()))),
            }
        }
        if layout.cloned & Namespaces::from(sys::CLONE_NEWNS) == 0 {
            return Err(CompileError::Missing("mount namespace of its own"));
        }
        layout.joined.sort_unstable();
        layout.joined.dedup();
        Ok(layout)
    }

    /// What a process has to enter to be in the container: everything that is not the host's.
    pub fn all(&self) -> Namespaces {
        let user = if self.user {
            Namespaces::from(sys::CLONE_NEWUSER)
        } else {
            0
        };
        self.joined
            .iter()
            .fold(self.cloned | self.cgroup() | user, |all, (_, bit)| all | bit)
    }

    /// The container's cgroup namespace, where it has one.
    pub fn cgroup(&self) -> Namespaces {
        if self.cgroup {
            Namespaces::from(sys::CLONE_NEWCGROUP)
        } else {
            0
        }
    }

    /// The steps that join what is the pod's.
    pub fn joins(&self) -> impl Iterator<Item = Step<'static>> {
        self.joined
            .iter()
            .map(|&(slot, namespaces)| Step::Join { slot, namespaces })
    }
}
