//! The validated form of `PodSandboxConfig`.

use std::collections::BTreeMap;

use super::{AppArmor, DnsConfig, PortMapping, Resources, RunAs, Seccomp, SelinuxLabel};

/// What identifies a pod to the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodMetadata {
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Counts the sandboxes made for this pod.
    pub attempt: u32,
}

/// A cgroup parent in the shape of one of the two drivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupParent {
    /// cgroupfs driver: a path below the hierarchy's root, without leading slash, `.` or `..`.
    Path(String),
    /// systemd driver: a slice unit such as `kubepods-burstable.slice`.
    Slice(String),
}

/// One sysctl of the namespaced allow-list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below /proc/sys: `net/ipv4/ip_forward`.
    pub key: String,
    /// What is written.
    pub value: String,
}

/// Whether a namespace is the pod's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// One namespace for the pod.
    #[default]
    Pod,
    /// The node's.
    Node,
}

/// How a pod's containers see each other's processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodPid {
    /// One shared namespace; what an absent option means in the CRI.
    #[default]
    Pod,
    /// One per container.
    Container,
    /// The node's.
    Node,
}

/// A range of ids, from 0 in the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The host's number of 0. Not 0 itself: the root of the node stays out of every pod's namespace.
    pub host: u32,
    /// How many; the last one on the host is a valid id.
    pub length: u32,
}

/// User and group ids of a pod with a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMaps {
    /// User ids.
    pub users: IdRange,
    /// Group ids.
    pub groups: IdRange,
}

/// Namespaces of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodNamespaces {
    /// Network; the uts namespace follows it, as a host-network pod carries the host's name.
    pub network: Share,
    /// Processes.
    pub pid: PodPid,
    /// ipc.
    pub ipc: Share,
    /// The pod's own user namespace; `None` is the node's.
    pub user: Option<IdMaps>,
}

/// What `LinuxSandboxSecurityContext` asks for, beside namespaces. podd has no sandbox container, so most of it
/// has nothing to apply to; it is checked all the same and returned in status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSecurity {
    /// Privileged containers are allowed.
    pub privileged: bool,
    /// SELinux label that containers inherit.
    pub selinux: Option<SelinuxLabel>,
    /// Identity of the sandbox process of other runtimes.
    pub run_as: RunAs,
    /// Root file system of the sandbox process of other runtimes.
    pub readonly_rootfs: bool,
    /// seccomp profile of the sandbox process of other runtimes.
    pub seccomp: Seccomp,
    /// AppArmor profile of the sandbox process of other runtimes.
    pub apparmor: AppArmor,
}

/// A pod as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodConfig {
    /// Who it is.
    pub metadata: PodMetadata,
    /// Host name, 64 bytes at most; `None` leaves the choice to podd (the host's on a host-network pod).
    pub hostname: Option<String>,
    /// Absolute directory of the containers' logs.
    pub log_directory: Option<String>,
    /// Name resolution; `None` copies the host's.
    pub dns: Option<DnsConfig>,
    /// Ports.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, verbatim.
    pub labels: BTreeMap<String, String>,
    /// Annotations, verbatim. They steer nothing.
    pub annotations: BTreeMap<String, String>,
    /// Parent cgroup; `None` means the configured default.
    pub cgroup_parent: Option<CgroupParent>,
    /// Namespaced sysctls.
    pub sysctls: Vec<Sysctl>,
    /// Namespaces.
    pub namespaces: PodNamespaces,
    /// Security context.
    pub security: PodSecurity,
    /// Resources of the pod beside its containers.
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources.
    pub resources: Option<Resources>,
}
