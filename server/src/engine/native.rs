//! The host as the engine sees it: podinit connections, cgroups, network, and what was probed of the kernel.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use podd_images::LayerHold;
use podd_netplug::{NetConfig, Network};
use runtime_core::cgroup::{CgroupPath, CgroupRoot, DeviceControl, DeviceRules};
use runtime_core::pod::{self, Programs, UserNamespaces};

use super::basis::ExecBases;
use super::build::Filters;
use super::keeper::Keeper;
use super::labels::label_store;
use super::place::{self, Place};
use super::systemd::Systemd;
use crate::apparmor;
use crate::config::{self, CgroupDriver, Config, Subnet, SubnetSource};
use crate::model::{CgroupParent, ContainerId, PodId};
use crate::selinux::Selinux;
use crate::spec::{HostFacts, devices};
use crate::state::record::ProcessRef;
use crate::state::store::Pod;

pub use super::native_error::{Kind, NativeError};

/// podinit and stage, built with this binary (build.rs).
const PODINIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podinit"));
const STAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stage"));

/// What a running pod has that its record must name.
#[derive(Debug, Clone)]
pub struct ProcessAndNetwork {
    /// Its place in the network, none for host-network pods.
    pub attachment: Option<podd_netplug::Attachment>,
    /// Its podinit.
    pub podinit: ProcessRef,
}

/// What this host can do, probed when podd started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Mounts that are read-only with all mounts below them.
    pub recursive_read_only_mounts: bool,
    /// Pods with a user namespace of their own.
    pub user_namespaces: bool,
    /// Pods with a user namespace and the host's network.
    pub user_namespaces_host_network: bool,
    /// The policy about supplementary groups is obeyed.
    pub supplemental_groups_policy: bool,
    /// Options such as noexec on mounts of a container.
    pub mount_options: bool,
}

/// The host.
#[derive(Debug)]
pub struct Native {
    driver: CgroupDriver,
    default_parent: CgroupParent,
    /// Cgroups of containers are named as CRI-O names them.
    crio_names: bool,
    /// systemd, asked only where it is the driver or where a pod has a scope.
    pub(super) systemd: Systemd,
    /// podinit, stage and the nest.
    pub(super) programs: Arc<Programs>,
    /// The cgroup hierarchy.
    pub(super) cgroups: CgroupRoot,
    /// What the kernel can do about devices of containers.
    pub(super) devices: DeviceControl,
    /// Whether pods can have user namespaces and on which file systems, or why not.
    pub(super) user_namespaces: Result<UserNamespaces, String>,
    /// The pod network.
    pub(super) network: Network,
    /// Facts of the node that specs are made of.
    pub(super) host: HostFacts,
    /// The policy, on a node with SELinux.
    pub(super) selinux: Option<Selinux>,
    /// Held from the choice of a pod's level until its record is known.
    pub(super) levels: Mutex<()>,
    /// Compiled seccomp filters.
    pub(super) filters: Filters,
    /// What execs need.
    pub(super) execs: ExecBases,
    sockets: PathBuf,
    keepers: Mutex<HashMap<PodId, Arc<Keeper>>>,
    holds: Mutex<HashMap<ContainerId, Vec<LayerHold>>>,
}

impl Native {
    /// Probes the host and opens the network.
    ///
    /// # Errors
    /// Something podd cannot do without is missing.
    pub async fn open(config: &Config) -> Result<Self, NativeError> {
        let systemd = Systemd::default();
        let driver = choose_driver(config.cgroup.driver, &systemd).await?;
        let default_parent = CgroupParent::of_field("cgroup.default_parent", &config.cgroup.default_parent);
        let default_parent = place::in_shape_of(driver, default_parent?)?;
        let sockets = config.run_dir.join("pods");
        let (state_dir, run_dir, root) = (
            config.state_dir.clone(),
            config.run_dir.clone(),
            config.cgroup.root.clone(),
        );
        let directory = sockets.clone();
        let selinux = config.selinux;
        let nofile = (config.limits.nofile_soft, config.limits.nofile_hard);
        let host = move || -> Result<_, NativeError> {
            make_private(&directory)?;
            let selinux = Selinux::open(selinux)?;
            if let Some(selinux) = &selinux {
                label_store(&state_dir.join(IMAGES), &selinux.layers())?;
            }
            let context = selinux.as_ref().map(Selinux::shared).unwrap_or_default();
            let programs = Programs::prepare(PODINIT, STAGE, &state_dir, &run_dir, &context)?;
            let mut host = HostFacts::probe(nofile, &root).map_err(|source| NativeError::Kernel {
                operation: "look at this host",
                source,
            })?;
            host.apparmor = apparmor::load().map_err(|source| NativeError::Kernel {
                operation: "load the AppArmor profile podd-default",
                source,
            })?;
            let devices = DeviceControl::probe(DeviceRules::from_oci(&devices::usual_rules())?);
            let users = pod::probe_user_namespaces(&programs, &state_dir).map_err(|e| e.to_string());
            Ok((programs, CgroupRoot::open(&root)?, devices, host, users, selinux))
        };
        let opened = tokio::task::spawn_blocking(host).await;
        let (programs, cgroups, devices, host, user_namespaces, selinux) =
            opened.map_err(|_| NativeError::Panicked("probing the host"))??;
        let network = Network::open(network_config(&config.network)).await?;
        Ok(Self {
            driver,
            default_parent,
            crio_names: !config.observe.cadvisor_socket.as_os_str().is_empty(),
            systemd,
            programs: Arc::new(programs),
            cgroups,
            devices,
            user_namespaces,
            network,
            host,
            selinux,
            levels: Mutex::default(),
            filters: Filters::default(),
            execs: ExecBases::default(),
            sockets,
            keepers: Mutex::default(),
            holds: Mutex::default(),
        })
    }

    /// The cgroup driver that the kubelet has to use; never `Auto`.
    #[must_use]
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.driver
    }

    /// What was probed.
    #[must_use]
    pub fn features(&self) -> Features {
        // Read-only for whole trees is mount_setattr(2) of 5.12, below the floor of 6.1; the rest podd does itself.
        let users = self.user_namespaces_ready().is_ok();
        Features {
            user_namespaces: users,
            user_namespaces_host_network: users,
            recursive_read_only_mounts: true,
            supplemental_groups_policy: true,
            mount_options: true,
        }
    }

    /// Whether Status says that pods can have user namespaces, or why not.
    ///
    /// # Errors
    /// A sentence for an operator.
    pub fn user_namespaces_ready(&self) -> Result<(), String> {
        let users = self.user_namespaces.as_ref().map_err(Clone::clone)?;
        // The kubelet's own volumes are on tmpfs: without ids for them nearly no pod could run.
        if users.tmpfs {
            return Ok(());
        }
        Err("tmpfs has no id-mapped mounts on this kernel, as before Linux 6.3".to_owned())
    }

    /// Whether pods of this runtime handler can be run.
    #[must_use]
    pub fn knows_handler(&self, handler: &str) -> bool {
        handler.is_empty()
    }

    /// Whether pods can be run now, or why not.
    ///
    /// # Errors
    /// A sentence for an operator.
    pub fn runtime_ready(&self) -> Result<(), String> {
        self.cgroups.controllers().map_err(|e| e.to_string())?;
        // Nothing but privileged containers could be run: better that pods go to another node.
        self.devices.available().map_err(|e| e.to_string())
    }

    /// Whether pods can be given a network now, or why not.
    ///
    /// # Errors
    /// A sentence for an operator.
    pub fn network_ready(&self) -> Result<(), String> {
        let status = self.network.ready();
        if status.ready {
            Ok(())
        } else {
            Err(status.problem.unwrap_or_default())
        }
    }

    /// Whether podd still hears of links and tables that vanish.
    #[must_use]
    pub fn network_watched(&self) -> bool {
        self.network.is_watched()
    }

    /// Takes over the pod ranges that the kubelet sent.
    ///
    /// # Errors
    /// The network cannot change its ranges.
    pub async fn set_pod_subnets(&self, subnets: &[Subnet]) -> Result<(), NativeError> {
        Ok(self.network.set_pod_cidr(subnets).await?)
    }

    /// Where a new pod is to live.
    ///
    /// # Errors
    /// The parent has the shape of the other cgroup driver.
    pub(super) fn place(&self, pod: &PodId, parent: Option<&CgroupParent>) -> Result<Place, NativeError> {
        Place::of(self.driver, &self.default_parent, pod, parent)
    }

    /// Where a pod's containers live.
    pub(super) fn pod_cgroup(&self, pod: &Pod) -> Result<CgroupPath, NativeError> {
        match &pod.record.cgroup {
            Some(path) => Ok(path.parse()?),
            // A record of a podd that noted the cgroup when it was there.
            None => {
                let place = self.place(&pod.record.id, pod.config.cgroup_parent.as_ref())?;
                Ok(place.cgroup().clone())
            }
        }
    }

    /// Whether cAdvisor is to find pods and containers.
    pub(super) fn asked_by_cadvisor(&self) -> bool {
        self.crio_names
    }

    /// Where a container's cgroup is, within its pod's; one whose record does not say it yet.
    pub(super) fn container_cgroup(&self, pod: &Pod, id: &ContainerId) -> Result<CgroupPath, NativeError> {
        self.cgroup_named(pod, id, self.crio_names)
    }

    /// Where the container's cgroup is if it was made by a podd that named cgroups in the other way.
    pub(super) fn container_cgroup_before(
        &self,
        pod: &Pod,
        id: &ContainerId,
    ) -> Result<CgroupPath, NativeError> {
        self.cgroup_named(pod, id, !self.crio_names)
    }

    fn cgroup_named(&self, pod: &Pod, id: &ContainerId, crio: bool) -> Result<CgroupPath, NativeError> {
        let of_pod = self.pod_cgroup(pod)?;
        // cAdvisor takes no other name for one of a container that it can ask for, nor does the kubelet find the id.
        Ok(match crio {
            true => of_pod.join(&format!("crio-{id}.scope"))?,
            false => of_pod.join(id.as_str())?,
        })
    }

    /// Where a pod's podinit listens.
    pub(super) fn socket_path(&self, pod: &PodId) -> PathBuf {
        self.sockets.join(pod.as_str())
    }

    /// The names of podinits' sockets. Blocks.
    pub(super) fn sockets(&self) -> impl Iterator<Item = String> + use<> {
        let entries = std::fs::read_dir(&self.sockets).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
    }

    /// Where podd makes cgroups for pods that name no place, unless systemd does.
    ///
    /// # Errors
    /// The configured place is no path of a cgroup.
    pub(super) fn own_parent(&self) -> Result<Option<CgroupPath>, NativeError> {
        match &self.default_parent {
            CgroupParent::Path(path) => Ok(Some(path.parse()?)),
            CgroupParent::Slice(_) => Ok(None),
        }
    }

    /// The connection to a pod's podinit.
    ///
    /// # Errors
    /// podinit is gone.
    pub(super) fn keeper(&self, pod: &PodId) -> Result<Arc<Keeper>, NativeError> {
        lock(&self.keepers)
            .get(pod)
            .cloned()
            .ok_or(NativeError::PodinitGone)
    }

    /// How many podinits podd is connected to.
    #[must_use]
    pub fn podinits(&self) -> usize {
        lock(&self.keepers).len()
    }

    pub(super) fn put_keeper(&self, pod: PodId, keeper: Arc<Keeper>) {
        lock(&self.keepers).insert(pod, keeper);
    }

    /// Forgets a podinit, because it is about to end or has ended; `None` if that was done before.
    pub(super) fn take_keeper(&self, pod: &PodId) -> Option<Arc<Keeper>> {
        lock(&self.keepers).remove(pod)
    }

    /// Keeps the layers of a container's images in the store until [`Native::release`].
    pub(super) fn hold(&self, container: ContainerId, holds: Vec<LayerHold>) {
        lock(&self.holds).insert(container, holds);
    }

    pub(super) fn release(&self, container: &ContainerId) {
        let held = lock(&self.holds).remove(container);
        // Dropping the last hold may delete layers: not under the lock.
        drop(held);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Decides between systemd and podd itself as the maker of pods' cgroups. A systemd that is there and does not answer
/// is an error: a driver that changes from one start to the next would restart every pod (kubernetes#111776).
async fn choose_driver(asked: CgroupDriver, systemd: &Systemd) -> Result<CgroupDriver, NativeError> {
    let chosen = match asked {
        CgroupDriver::Auto if Systemd::is_booted() && Systemd::has_bus() => CgroupDriver::Systemd,
        CgroupDriver::Auto => CgroupDriver::Cgroupfs,
        asked => asked,
    };
    if chosen == CgroupDriver::Systemd {
        if !Systemd::is_booted() {
            return Err(NativeError::NoSystemd);
        }
        let version = systemd.version().await?;
        tracing::info!(version, "systemd makes the cgroups of pods");
    }
    Ok(chosen)
}

/// The image store's directory below the state directory.
const IMAGES: &str = "images";

/// Only root may reach the sockets of podinits (CVE-2020-15257).
fn make_private(directory: &Path) -> Result<(), NativeError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let make = || {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700))
    };
    make().map_err(|source| NativeError::File {
        operation: "make",
        path: directory.to_owned(),
        source,
    })
}

fn network_config(config: &config::Network) -> NetConfig {
    let subnets = match config.subnet_source {
        SubnetSource::Config => config.subnets.clone(),
        SubnetSource::Kubelet => Vec::new(),
    };
    NetConfig {
        bridge: config.bridge.clone(),
        subnets,
        mtu: (config.mtu != 0).then_some(config.mtu),
        masquerade: config.masquerade,
        ..NetConfig::default()
    }
}

/// The image store's share of the configuration.
#[must_use]
pub fn images_config(config: &config::Config) -> podd_images::Config {
    let mut images = podd_images::Config::new(config.state_dir.join(IMAGES));
    for (host, mirror) in &config.registries.mirrors {
        let endpoints = mirror.endpoints.iter().map(podd_images::Endpoint::new).collect();
        images.registries.mirrors.insert(host.clone(), endpoints);
    }
    images
}
