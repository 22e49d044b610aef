//! Confinement of a container: capabilities, seccomp, AppArmor, namespaces.

use oci_spec::runtime::{LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp};
use runtime_core::compile::{CapSet, joined_namespace_path, target_namespace_path};
use runtime_core::seccomp;

use super::{Inputs, SpecError};
use crate::model::{AppArmor, ContainerPid, PodPid, Seccomp, Share};

/// The set that the first process is bounded by.
fn granted(inputs: &Inputs<'_>) -> Result<CapSet, SpecError> {
    let (security, host) = (&inputs.container.security, inputs.host.capabilities);
    if security.privileged {
        return Ok(host);
    }
    let changes = &security.capabilities;
    let named = changes.add.union(changes.ambient).difference(changes.drop);
    let missing = named.difference(host);
    // ALL means all that there are; a name means this one.
    if !missing.is_empty() && changes.ambient != CapSet::ALL {
        return Err(SpecError::Capabilities(
            missing.names().collect::<Vec<_>>().join(", "),
        ));
    }
    Ok(changes.apply(CapSet::DEFAULT, host).intersection(host))
}

/// Bounding, permitted and effective sets. The inheritable set stays empty, or any file with inheritable
/// capabilities would raise them again (CVE-2022-24769), unless ambient capabilities need it.
pub(super) fn capabilities(inputs: &Inputs<'_>) -> Result<LinuxCapabilities, SpecError> {
    let security = &inputs.container.security;
    let set = granted(inputs)?;
    let ambient = if security.privileged {
        CapSet::EMPTY
    } else {
        security.capabilities.ambient.intersection(set)
    };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.to_oci()))
        .set_effective(Some(set.to_oci()))
        .set_permitted(Some(set.to_oci()))
        .set_inheritable(Some(ambient.to_oci()))
        .set_ambient(Some(ambient.to_oci()));
    Ok(sets)
}

/// The seccomp profile; a privileged container has none.
pub(super) fn seccomp(inputs: &Inputs<'_>) -> Result<Option<LinuxSeccomp>, SpecError> {
    if inputs.container.security.privileged {
        return Ok(None);
    }
    match &inputs.container.security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(Some(seccomp::default_profile(
            granted(inputs)?,
            inputs.host.kernel,
        ))),
        Seccomp::Localhost(path) => match inputs.seccomp {
            Some(profile) => Ok(Some(profile.clone())),
            None => Err(SpecError::SeccompProfile(path.clone())),
        },
    }
}

/// The AppArmor profile; a privileged container has none, and no host without AppArmor does.
pub(super) fn apparmor(inputs: &Inputs<'_>) -> Option<String> {
    if inputs.container.security.privileged {
        return None;
    }
    match &inputs.container.security.apparmor {
        AppArmor::Unconfined => None,
        AppArmor::RuntimeDefault => inputs.host.apparmor.clone(),
        AppArmor::Localhost(name) => Some(name.clone()),
    }
}

/// Namespaces: those of the pod are joined, a missing entry is the node's.
pub(super) fn namespaces(inputs: &Inputs<'_>) -> Vec<LinuxNamespace> {
    let (pod, security) = (&inputs.pod.namespaces, &inputs.container.security);
    let mut list = vec![new(LinuxNamespaceType::Mount)];
    // As under containerd on cgroup v2: a privileged container sees the node's hierarchy.
    if !security.privileged {
        list.push(new(LinuxNamespaceType::Cgroup));
    }
    if pod.network == Share::Pod {
        list.push(joined(LinuxNamespaceType::Network));
        list.push(joined(LinuxNamespaceType::Uts));
    }
    if pod.ipc == Share::Pod {
        list.push(joined(LinuxNamespaceType::Ipc));
    }
    if pod.user.is_some() {
        list.push(joined(LinuxNamespaceType::User));
    }
    match (security.pid, pod.pid) {
        (ContainerPid::Container, _) => list.push(new(LinuxNamespaceType::Pid)),
        (ContainerPid::Pod, PodPid::Pod | PodPid::Container) => {
            list.push(joined(LinuxNamespaceType::Pid));
        }
        (ContainerPid::Target(_), _) => {
            let mut target = new(LinuxNamespaceType::Pid);
            target.set_path(Some(target_namespace_path()));
            list.push(target);
        }
        (ContainerPid::Pod, PodPid::Node) | (ContainerPid::Node, _) => {}
    }
    list
}

fn new(kind: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(None);
    namespace
}

fn joined(kind: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(joined_namespace_path(kind));
    namespace
}
