//! Where a pod lives in the cgroup hierarchy, and who makes that place.
//!
//! ```text
//! cgroupfs                              systemd
//! <parent>/                 client's    kubepods.slice/…/kubepods-burstable-pod1.slice/    client's
//!   <container>                           podd-<pod>.scope/         systemd's, delegated to podd
//! <default_parent>/                         podinit                 podinit, which keeps the scope alive
//!   <pod>/                  podd's          pod/                    podd's; limits of the pod
//!     <container>                             <container>
//! ```
//!
//! systemd writes the files of the scope itself whenever it likes, and nothing below it: so podd's limits are below.

use std::sync::Arc;
use std::time::Instant;

use runtime_core::cgroup::{CgroupPath, CgroupPathError, CgroupRoot};

use super::native::NativeError;
use super::systemd::{Scope, SystemdError};
use super::{Engine, EngineError, blocking};
use crate::config::CgroupDriver;
use crate::model::{CgroupParent, PodId};
use crate::observe::metrics::Leak;
use crate::state::store::Pod;

/// The cgroup of podinit in a pod's scope.
const LEAF: &str = "podinit";
/// The cgroup of the pod's containers in its scope.
const INNER: &str = "pod";

/// A pod's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory that the client named: it is there before and after the pod.
    Named(CgroupPath),
    /// A directory of podd's own.
    Own(CgroupPath),
    /// A scope of systemd.
    Scope(ScopePlace),
}

/// A scope and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopePlace {
    /// The unit's name.
    pub unit: String,
    /// The slice around it.
    pub slice: String,
    /// Its cgroup.
    pub scope: CgroupPath,
    /// The cgroup of the containers.
    pub inner: CgroupPath,
}

impl Place {
    /// The place of a pod whose request names this parent, or none.
    ///
    /// # Errors
    /// The parent has the shape of the other driver.
    pub fn of(
        driver: CgroupDriver,
        default: &CgroupParent,
        pod: &PodId,
        parent: Option<&CgroupParent>,
    ) -> Result<Self, NativeError> {
        let systemd = driver == CgroupDriver::Systemd;
        match (parent, parent.unwrap_or(default)) {
            (None, CgroupParent::Path(path)) if !systemd => {
                Ok(Self::Own(path.parse::<CgroupPath>()?.join(pod.as_str())?))
            }
            (Some(_), CgroupParent::Path(path)) if !systemd => Ok(Self::Named(path.parse()?)),
            (_, CgroupParent::Slice(slice)) if systemd => {
                let unit = unit(pod);
                let scope = slice_path(slice)?.join(&unit)?;
                Ok(Self::Scope(ScopePlace {
                    inner: scope.join(INNER)?,
                    unit,
                    slice: slice.clone(),
                    scope,
                }))
            }
            (_, CgroupParent::Path(path)) => Err(NativeError::CgroupShape {
                parent: format!("/{path}"),
                is: "a path",
                driver: "systemd",
            }),
            (_, CgroupParent::Slice(slice)) => Err(slice_without_systemd(slice.clone())),
        }
    }

    /// The cgroup that containers live below.
    #[must_use]
    pub fn cgroup(&self) -> &CgroupPath {
        match self {
            Self::Named(path) | Self::Own(path) => path,
            Self::Scope(scope) => &scope.inner,
        }
    }

    /// The scope's unit, where there is one.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        match self {
            Self::Scope(scope) => Some(&scope.unit),
            Self::Named(_) | Self::Own(_) => None,
        }
    }
}

/// The parent of pods that name none, in the shape of the driver: with systemd `/a/b` is `a-b.slice`, as the name of
/// a slice says where it is (systemd.slice(5)).
///
/// # Errors
/// It is a slice, and the driver is not systemd.
pub fn in_shape_of(driver: CgroupDriver, parent: CgroupParent) -> Result<CgroupParent, NativeError> {
    Ok(match (driver, parent) {
        (CgroupDriver::Systemd, CgroupParent::Path(path)) if !path.is_empty() => {
            let names: Vec<String> = path.split('/').map(|name| name.replace('-', "\\x2d")).collect();
            CgroupParent::Slice(format!("{}.slice", names.join("-")))
        }
        (CgroupDriver::Systemd, CgroupParent::Path(_)) => CgroupParent::Slice("-.slice".to_owned()),
        (CgroupDriver::Cgroupfs | CgroupDriver::Auto, CgroupParent::Slice(slice)) => {
            return Err(slice_without_systemd(slice));
        }
        (_, parent) => parent,
    })
}

fn slice_without_systemd(parent: String) -> NativeError {
    NativeError::CgroupShape {
        parent,
        is: "a systemd slice",
        driver: "cgroupfs",
    }
}

fn unit(pod: &PodId) -> String {
    format!("podd-{pod}.scope")
}

/// The scope of a pod whose podinit is in the cgroup `of_podinit`, if it is in one.
pub fn scope_of(of_podinit: &str, pod: &PodId) -> Option<CgroupPath> {
    let scope = of_podinit.strip_suffix(LEAF)?.strip_suffix('/')?;
    let name = scope.rsplit('/').next()?;
    (name == unit(pod)).then(|| scope.parse().ok())?
}

/// Where systemd puts a slice: `a.slice/a-b.slice` for `a-b.slice`, and the root for `-.slice`.
fn slice_path(slice: &str) -> Result<CgroupPath, CgroupPathError> {
    let stem = slice.trim_end_matches(".slice");
    if stem == "-" {
        return Ok(CgroupPath::root());
    }
    let dashes = stem.match_indices('-').map(|(at, _)| at);
    let mut path = CgroupPath::root();
    for end in dashes.chain([stem.len()]) {
        path = path.join(&format!("{}.slice", stem.get(..end).unwrap_or_default()))?;
    }
    Ok(path)
}

impl Engine {
    /// Makes the scope of a pod around its podinit, and the cgroup of its containers below.
    ///
    /// # Errors
    /// systemd or the kernel refuses; what was made is taken back by [`Engine::remove_scope`].
    pub(super) async fn make_scope(
        &self,
        pod: &Pod,
        place: &ScopePlace,
        podinit: u32,
    ) -> Result<(), NativeError> {
        let metadata = &pod.config.metadata;
        let description = format!("pod {}/{}{}", metadata.namespace, metadata.name, self.mark());
        let scope = Scope {
            unit: &place.unit,
            slice: &place.slice,
            description: &description,
            pid: podinit,
        };
        self.native.systemd.start_scope(scope).await?;
        let (root, place) = (self.native.cgroups.clone(), place.clone());
        let below = move || -> Result<(), NativeError> {
            let elsewhere = || SystemdError::Elsewhere {
                unit: place.unit.clone(),
                expected: place.scope.to_string(),
            };
            root.find(&place.scope)?.ok_or_else(elsewhere)?;
            // Only a cgroup without processes of its own hands controllers down (cgroup-v2.rst, "No Internal Process").
            root.create_leaf(&place.scope, LEAF)?.attach(podinit)?;
            root.create(&place.inner)?;
            Ok(())
        };
        match tokio::task::spawn_blocking(below).await {
            Ok(made) => made,
            Err(_) => Err(NativeError::Panicked("making a scope")),
        }
    }

    /// Removes the scope of a pod whose podinit and containers have ended; what is left in it is killed.
    ///
    /// systemd removes an empty scope by itself, which then costs no call.
    ///
    /// # Errors
    /// A process will not die, or systemd fails or takes too long.
    pub(super) async fn remove_scope(&self, unit: &str, scope: CgroupPath) -> Result<(), EngineError> {
        let (root, deadline) = (self.native.cgroups.clone(), Instant::now() + self.kill_wait());
        let (killer, path) = (root.clone(), scope.clone());
        let there = blocking("RemovePodSandbox", move || kill(&killer, &path, deadline)).await?;
        if !there {
            return Ok(());
        }
        self.native
            .systemd
            .stop_scope(unit)
            .await
            .map_err(NativeError::from)?;
        blocking("RemovePodSandbox", move || -> Result<(), NativeError> {
            Ok(root.remove(&scope, deadline)?)
        })
        .await
    }

    /// Ends scopes that a podd on this state directory made and no record knows. Those of records that cannot be
    /// read stay, as their pods do: somebody has to look at them.
    pub(super) async fn sweep_scopes(self: &Arc<Self>) {
        if self.native.cgroup_driver() != CgroupDriver::Systemd {
            return;
        }
        let units = match self.native.systemd.units("podd-*.scope").await {
            Ok(units) => units,
            Err(e) => {
                let e: &(dyn std::error::Error + 'static) = &e;
                tracing::warn!(error = e, "cannot look for scopes that nobody knows");
                return;
            }
        };
        let (mark, snapshot) = (self.mark(), self.snapshot());
        let known: Vec<&str> = snapshot
            .pods()
            .filter_map(|pod| pod.record.scope.as_deref())
            .collect();
        for (unit, description) in units {
            if known.contains(&unit.as_str()) || !description.ends_with(&mark) {
                continue;
            }
            if self.is_quarantined(&unit) {
                tracing::error!(
                    unit,
                    "the record of this scope's pod cannot be read: its processes are left alone"
                );
                continue;
            }
            tracing::warn!(unit, "ending a scope that no record knows");
            let systemd = &self.native.systemd;
            let ended = match systemd.kill_scope(&unit).await {
                Ok(()) => systemd.stop_scope(&unit).await,
                Err(e) => Err(e),
            };
            self.metrics.leaked(Leak::Scope, 1, ended.is_ok());
            if let Err(e) = ended {
                let e: &(dyn std::error::Error + 'static) = &e;
                tracing::error!(unit, error = e, "cannot end a scope that no record knows");
            }
        }
    }

    /// The end of the description of every scope of this podd's: another one on this machine has other records.
    fn mark(&self) -> String {
        format!(", of podd in {}", self.config.state_dir.display())
    }

    fn is_quarantined(&self, unit: &str) -> bool {
        let id = unit
            .strip_prefix("podd-")
            .and_then(|rest| rest.strip_suffix(".scope"));
        // Who cannot look leaves it alone.
        id.is_none_or(|id| self.state.records().is_quarantined(id).unwrap_or(true))
    }
}

/// Kills what is in a scope; whether the scope is there.
fn kill(root: &CgroupRoot, scope: &CgroupPath, deadline: Instant) -> Result<bool, NativeError> {
    let Some(cgroup) = root.find(scope)? else {
        return Ok(false);
    };
    if cgroup.populated()? {
        cgroup.kill()?;
        cgroup.wait_empty(deadline)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> PodId {
        PodId::random().unwrap()
    }

    #[test]
    fn a_scope_is_below_its_slice() {
        let (pod, default) = (id(), CgroupParent::Slice("podd.slice".to_owned()));
        let parent = CgroupParent::Slice("kubepods-burstable-pod1_2.slice".to_owned());
        let place = Place::of(CgroupDriver::Systemd, &default, &pod, Some(&parent)).unwrap();
        let above = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        assert_eq!(
            place.cgroup().to_string(),
            format!("{above}/podd-{pod}.scope/pod")
        );
        assert_eq!(place.unit(), Some(format!("podd-{pod}.scope").as_str()));
        let place = Place::of(CgroupDriver::Systemd, &default, &pod, None).unwrap();
        assert_eq!(
            place.cgroup().to_string(),
            format!("/podd.slice/podd-{pod}.scope/pod")
        );
        assert_eq!(slice_path("-.slice").unwrap(), CgroupPath::root());
    }

    #[test]
    fn podinit_is_in_the_scope_of_its_pod_or_in_none() {
        let pod = id();
        let scope = format!("a.slice/a-b.slice/podd-{pod}.scope");
        let of = |path: &str| scope_of(path, &pod).map(|path| path.as_str().to_owned());
        assert_eq!(of(&format!("{scope}/podinit")), Some(scope.clone()));
        assert_eq!(of(&scope), None);
        assert_eq!(of(&format!("a.slice/podd-{}.scope/podinit", id())), None);
        assert_eq!(of("system.slice/podd.service"), None);
        assert_eq!(of("podinit"), None);
    }

    #[test]
    fn a_directory_is_the_clients_or_the_pods_own() {
        let (pod, default) = (id(), CgroupParent::Path("podd".to_owned()));
        let parent = CgroupParent::Path("kubepods/pod1".to_owned());
        let named = Place::of(CgroupDriver::Cgroupfs, &default, &pod, Some(&parent)).unwrap();
        assert_eq!(named, Place::Named("kubepods/pod1".parse().unwrap()));
        let own = Place::of(CgroupDriver::Cgroupfs, &default, &pod, None).unwrap();
        assert_eq!(own, Place::Own(format!("podd/{pod}").parse().unwrap()));
        assert_eq!(own.unit(), None);
    }

    #[test]
    fn the_other_drivers_shape_is_refused_in_one_sentence() {
        let (pod, default) = (id(), CgroupParent::Path("podd".to_owned()));
        let slice = CgroupParent::Slice("kubepods.slice".to_owned());
        let refused = Place::of(CgroupDriver::Cgroupfs, &default, &pod, Some(&slice)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cgroup parent \"kubepods.slice\" is a systemd slice, but podd's cgroup driver is cgroupfs: the kubelet \
             has to use the driver that RuntimeConfig names, or cgroup.driver has to be changed"
        );
        let refused = Place::of(CgroupDriver::Systemd, &slice, &pod, Some(&default)).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("cgroup parent \"/podd\" is a path, but"),
            "{refused}"
        );
    }

    #[test]
    fn the_default_parent_takes_the_drivers_shape() {
        let path = |path: &str| CgroupParent::Path(path.to_owned());
        let slice = |slice: &str| CgroupParent::Slice(slice.to_owned());
        for (from, to) in [
            (path("podd"), slice("podd.slice")),
            (path("a/b-c"), slice("a-b\\x2dc.slice")),
            (path(""), slice("-.slice")),
            (slice("x.slice"), slice("x.slice")),
        ] {
            assert_eq!(in_shape_of(CgroupDriver::Systemd, from).unwrap(), to);
        }
        assert_eq!(in_shape_of(CgroupDriver::Cgroupfs, path("a")).unwrap(), path("a"));
        assert!(in_shape_of(CgroupDriver::Cgroupfs, slice("a.slice")).is_err());
    }
}
