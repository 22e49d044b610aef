//! OCI specs to plans: everything that can be wrong is refused here, without touching the kernel.
//!
//! Three kinds of plan: [`pod`] makes a pod's namespaces and holds them, [`container`] becomes a container's
//! first process, [`exec`] becomes a further one. What an OCI spec cannot say (which layers, which inherited
//! descriptors, names that only the container's own files can resolve) comes beside it as inputs.
//!
//! Namespaces: an entry without a path is made, an absent one is the host's, and an entry whose path is that of
//! a fixed descriptor (`/proc/self/fd/6`, see [`joined_namespace_path`]) is the pod's and is joined.

mod caps;
mod container;
mod error;
mod exec;
mod hooks;
mod inputs;
mod mounts;
mod namespaces;
mod pod;
mod process;
#[cfg(test)]
mod tests;
mod text;
mod users;

pub use caps::{CapSet, UnknownCap};
pub use container::container;
pub use error::CompileError;
pub use exec::exec;
pub use hooks::{HookInputs, needs_host_tree, timeout_ms};
pub use inputs::{
    ContainerInputs, ExecInputs, Identity, ImageMount, NestMount, PodInputs, ProcessInputs, RootLayers, Who,
};
pub use mounts::{Volume, volumes};
pub use namespaces::{joined_namespace_path, slot, target_namespace_path};
pub use pod::pod;
pub use process::DEFAULT_PATH;
