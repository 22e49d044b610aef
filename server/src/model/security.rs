//! Who a container runs as and how it is confined.

use super::{ContainerId, IdMaps, Share};
use runtime_core::compile::CapSet;

/// A user as the request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A number, at most 2^31-1 (CVE-2024-40635: larger ones have wrapped to root elsewhere).
    Id(u32),
    /// A name in the image's /etc/passwd.
    Name(String),
}

/// How the image's /etc/group adds to the supplementary groups (KEP-3619).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// The groups that list the user are added.
    #[default]
    Merge,
    /// Only the groups of the request count.
    Strict,
}

/// Supplementary groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// Group ids of the request.
    pub ids: Vec<u32>,
    /// Whether the image's are added.
    pub policy: GroupsPolicy,
}

/// Identity of a first process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunAs {
    /// User; `None` leaves it to the image.
    pub user: Option<User>,
    /// Primary group; only ever set together with `user`.
    pub group: Option<u32>,
    /// Supplementary groups.
    pub groups: Groups,
}

/// Where a seccomp profile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// No filter; also what an absent profile means in the CRI.
    Unconfined,
    /// podd's own.
    RuntimeDefault,
    /// A JSON file on the node, absolute path.
    Localhost(String),
}

/// Where an AppArmor profile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppArmor {
    /// podd's own; also what an absent profile means (kubernetes#51746).
    RuntimeDefault,
    /// No profile.
    Unconfined,
    /// A profile loaded in the kernel.
    Localhost(String),
}

/// An SELinux label; empty parts are the host's choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelinuxLabel {
    /// User part.
    pub user: String,
    /// Role part.
    pub role: String,
    /// Type part.
    pub kind: String,
    /// Level part.
    pub level: String,
}

/// Changes to the default capability set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilityChanges {
    /// `ALL` is among the additions.
    pub add_all: bool,
    /// Added to the bounding, effective and permitted sets.
    pub add: CapSet,
    /// `ALL` is among the removals.
    pub drop_all: bool,
    /// Removed from all sets.
    pub drop: CapSet,
    /// Added to all five sets (KEP-2763).
    pub ambient: CapSet,
}

impl CapabilityChanges {
    /// What a container gets, of what podd gives by `default` and what the host has at `most`.
    ///
    /// The order is that of containerd, which kubelets rely on: `ALL` chooses the ground (dropping it wins),
    /// single additions come next, single removals last.
    #[must_use]
    pub fn apply(&self, default: CapSet, most: CapSet) -> CapSet {
        let ground = match (self.drop_all, self.add_all) {
            (true, _) => CapSet::EMPTY,
            (false, true) => most,
            (false, false) => default,
        };
        ground.union(self.add).union(self.ambient).difference(self.drop)
    }
}

/// pid namespace of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerPid {
    /// The pod's shared one.
    Pod,
    /// Its own.
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod.
    Target(ContainerId),
}

/// The user namespace that a container asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerUsers {
    /// It says nothing: the pod's.
    Unset,
    /// The host's.
    Node,
    /// One with these ids.
    Ids(IdMaps),
}

impl ContainerUsers {
    /// The ids, where there are any.
    #[must_use]
    pub fn ids(self) -> Option<IdMaps> {
        match self {
            Self::Ids(ids) => Some(ids),
            Self::Unset | Self::Node => None,
        }
    }
}

/// What `LinuxContainerSecurityContext` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSecurity {
    /// Identity of the first process.
    pub run_as: RunAs,
    /// Changes to the capability set; without effect when `privileged`.
    pub capabilities: CapabilityChanges,
    /// No confinement at all.
    pub privileged: bool,
    /// Network namespace as asked; the pod's is what it gets.
    pub network: Share,
    /// ipc namespace as asked; the pod's is what it gets.
    pub ipc: Share,
    /// pid namespace.
    pub pid: ContainerPid,
    /// User namespace as asked, which has to be the pod's.
    pub user: ContainerUsers,
    /// SELinux label.
    pub selinux: Option<SelinuxLabel>,
    /// Root file system read-only.
    pub readonly_rootfs: bool,
    /// Set no_new_privs.
    pub no_new_privs: bool,
    /// Paths to hide; empty means that nothing is hidden.
    pub masked_paths: Vec<String>,
    /// Paths to make read-only; empty means none.
    pub readonly_paths: Vec<String>,
    /// seccomp profile.
    pub seccomp: Seccomp,
    /// AppArmor profile.
    pub apparmor: AppArmor,
}
