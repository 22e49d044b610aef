//! What status calls add where they are asked to be verbose: the OCI spec of a container as it is now, and where the
//! namespaces of a pod are.
//!
//! For people and their scripts, which know it from other runtimes; podd itself reads none of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use super::basis::exec_base;
use super::plans::start_time;
use super::{Engine, EngineError, blocking, build};
use crate::model::{ContainerPid, Resources};
use crate::spec::{Change, linux_resources};
use crate::state::phase::ContainerPhase;
use crate::state::record::ProcessRef;
use crate::state::store::{Container, Pod};

impl Engine {
    /// The OCI spec that a container was made from, with `resources`, what it is held to now, and with paths of the
    /// node to the namespaces that it has joined. None of one that failed before a spec was decided.
    ///
    /// # Errors
    /// A defect of podd.
    pub async fn container_spec(
        self: &Arc<Self>,
        container: &Arc<Container>,
        resources: &Resources,
    ) -> Result<Option<Spec>, EngineError> {
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        let resources = resources.clone();
        blocking("ContainerStatus", move || -> Result<_, EngineError> {
            let Ok(base) = exec_base(&engine, &container) else {
                return Ok(None);
            };
            let mut spec = build::with_score(&engine, &container, base.spec()).into_owned();
            if let Some(linux) = spec.linux_mut() {
                let mut now = linux_resources(&resources, Change::Create);
                now.set_devices(linux.resources().as_ref().and_then(|made| made.devices().clone()));
                linux.set_resources(Some(now));
                let joined = joined(&engine, &container);
                for namespace in linux.namespaces_mut().iter_mut().flatten() {
                    if namespace.path().is_some() {
                        let at = joined.iter().find(|it| it.typ() == namespace.typ());
                        namespace.set_path(at.and_then(|it| it.path().clone()));
                    }
                }
            }
            Ok(Some(spec))
        })
        .await
    }

    /// The namespaces of a pod, with paths by which the node can open them; none where its podinit is gone.
    ///
    /// # Errors
    /// A defect of podd.
    pub async fn pod_namespaces(&self, pod: &Pod) -> Result<Vec<LinuxNamespace>, EngineError> {
        let podinit = pod.record.podinit;
        blocking("PodSandboxStatus", move || -> Result<_, EngineError> {
            Ok(podinit.map(|podinit| held(&podinit)).unwrap_or_default())
        })
        .await
    }
}

/// The namespaces that a container may share. Blocks.
fn joined(engine: &Engine, container: &Container) -> Vec<LinuxNamespace> {
    let snapshot = engine.snapshot();
    let pod = snapshot.pod(&container.record.pod);
    let podinit = pod.and_then(|pod| pod.record.podinit);
    let mut namespaces = podinit.map(|podinit| held(&podinit)).unwrap_or_default();
    if let ContainerPid::Target(target) = container.config.security.pid {
        namespaces.retain(|it| it.typ() != LinuxNamespaceType::Pid);
        if let Some(ContainerPhase::Running { pid, .. }) =
            snapshot.container(&target).map(|target| &target.record.phase)
        {
            let path = PathBuf::from(format!("/proc/{pid}/ns/pid"));
            namespaces.push(namespace(LinuxNamespaceType::Pid, path));
        }
    }
    namespaces
}

/// The namespaces that a podinit holds: it is in none of them, so that they are among its descriptors. Blocks.
fn held(podinit: &ProcessRef) -> Vec<LinuxNamespace> {
    /// podinit has some for itself and a few for each container and exec.
    const MOST: usize = 4096;
    let Ok(entries) = std::fs::read_dir(format!("/proc/{}/fd", podinit.pid)) else {
        return Vec::new();
    };
    let links = entries.take(MOST).flatten().map(|entry| entry.path());
    let found: Vec<_> = links
        .filter_map(|link| Some(namespace(kind(&link)?, link)))
        .collect();
    // Looked at last: if the number is another process's by now, so were the descriptors.
    let same = u32::try_from(podinit.pid)
        .is_ok_and(|pid| start_time(pid).is_ok_and(|started| started == podinit.start_time));
    if same { found } else { Vec::new() }
}

/// Which namespace a descriptor is of.
fn kind(link: &Path) -> Option<LinuxNamespaceType> {
    let target = std::fs::read_link(link).ok()?;
    let (kind, _) = target.to_str()?.split_once(":[")?;
    LinuxNamespaceType::try_from(kind).ok()
}

fn namespace(kind: LinuxNamespaceType, path: PathBuf) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(Some(path));
    namespace
}
