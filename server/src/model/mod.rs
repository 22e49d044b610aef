//! What a request means once it has been checked: pods, containers and their parts as plain values.
//!
//! A value that exists is valid. Every rule that a request alone can break is enforced while it is made from
//! the wire ([`parse`]), with the path of the field at fault; nothing here touches the kernel, the disk or a
//! clock. Rules that need the host (does it have SELinux?) belong to [`crate::spec`], rules that need the store
//! (does the pod exist?) to the engine.

mod cdi;
mod container;
mod ids;
mod mounts;
mod network;
pub mod parse;
mod pod;
mod refused;
mod resources;
mod security;
mod signal;

pub use cdi::{CdiName, is_device as is_cdi_device, is_kind as is_cdi_kind};
pub use container::{ContainerConfig, ContainerMetadata, EnvVar, ImageSpec};
pub use ids::{ContainerId, IdError, PodId};
pub use mounts::{Device, Mount, MountOptions, MountSource, Propagation, ReadOnly};
pub use network::{DnsConfig, PortMapping, Protocol};
pub use pod::{
    CgroupParent, IdMaps, IdRange, PodConfig, PodMetadata, PodNamespaces, PodPid, PodSecurity, Share, Sysctl,
};
pub use refused::{Invalid, Refused, Unsupported};
pub use resources::{CpuQuota, HugepageLimit, Resources, SwapLimit};
pub use security::{
    AppArmor, CapabilityChanges, ContainerPid, ContainerSecurity, ContainerUsers, Groups, GroupsPolicy,
    RunAs, Seccomp, SelinuxLabel, User,
};
pub use signal::StopSignal;
