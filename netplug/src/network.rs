//! The handle of a pod network.
//!
//! Owns: the public calls, the host's side (set up once, when the first pod needs it), and the tasks that watch
//! links. Never: does per-pod kernel work itself (`attach`) or start-up repair (`reconcile`).

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use crate::address::{InterfaceAddress, MacAddress, Subnet};
use crate::attach;
use crate::conntrack::{self, Stale};
use crate::error::Error;
use crate::hostport::{PortElement, PortMapping};
use crate::monitor::{Monitor, Notice};
use crate::netlink::Socket;
use crate::reconcile::{self, Reconciled};
use crate::state::{Host, State};
use crate::table::{self, Missing, Wanted};
use crate::{bridge, netlink, netns, nft, sysctl};

/// How long a detached pod's link may live on before it is deleted. Normally it dies with the namespace, within
/// milliseconds; a process stuck in the namespace can hold it.
const LINGER: Duration = Duration::from_secs(5);

/// How a pod network is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The bridge's name.
    pub bridge: String,
    /// At most one subnet per family; none until the pod CIDR is known ([`Network::set_pod_cidr`]).
    pub subnets: Vec<Subnet>,
    /// `None` takes that of the uplink (the interface of the default route), or else 1500.
    pub mtu: Option<u32>,
    /// Whether pods reach the outside with the host's address.
    pub masquerade: bool,
    /// Whether the bridge may send a frame back through the port it came from.
    pub hairpin: bool,
}

impl Default for NetConfig {
    /// A stand-alone node's network: `podd0`, `10.88.0.0/16`, `fd00:10:88::/64`.
    fn default() -> Self {
        let subnets = ["10.88.0.0/16", "fd00:10:88::/64"];
        Self {
            bridge: "podd0".to_owned(),
            subnets: subnets.iter().filter_map(|subnet| subnet.parse().ok()).collect(),
            mtu: None,
            masquerade: true,
            hairpin: true,
        }
    }
}

/// A request to connect a pod.
#[derive(Debug, Clone, Copy)]
pub struct AttachRequest<'a> {
    /// The pod's id: opaque, unique.
    pub id: &'a str,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// Its host ports.
    pub ports: &'a [PortMapping],
    /// The interface's name inside the pod.
    pub interface: &'a str,
}

/// A connected pod. The caller keeps it in the pod's record and gives it back to [`Network::detach`] and, after
/// a restart, to [`Network::reconcile`]. Nothing else stores an address, so none can leak; after a reboot the
/// caller simply forgets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod's id.
    pub id: String,
    /// The host end of the pod's cable.
    pub host_link: String,
    /// Its index, which the kernel never gives to another link.
    pub host_link_index: u32,
    /// The interface's name inside the pod.
    pub interface: String,
    /// The pod's addresses, IPv4 first where both exist.
    pub addresses: Vec<InterfaceAddress>,
    /// The next hop of each family's default route.
    pub gateways: Vec<IpAddr>,
    /// The pod's hardware address.
    pub mac: MacAddress,
    /// The pod's host ports.
    pub ports: Vec<PortMapping>,
}

/// Whether pods can be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Whether [`Network::attach`] is expected to work.
    pub ready: bool,
    /// One sentence: why not, when not.
    pub problem: Option<String>,
    /// What works only in part: features this kernel lacks.
    pub warnings: Vec<String>,
    /// Where new pods get their addresses from.
    pub subnets: Vec<Subnet>,
    /// Addresses in use or waiting for their link to vanish.
    pub addresses_in_use: usize,
}

/// A pod network. Cheap to clone; all clones are the same network.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

/// What all clones, workers and tasks share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: NetConfig,
    pub(crate) handle: rtnetlink::Handle,
    /// The namespace of the host's side, whatever thread a worker is started from.
    netns: OwnedFd,
    state: Mutex<State>,
    route: Mutex<Socket<RouteNetlinkMessage>>,
    filter: Mutex<Socket<NetfilterMessage>>,
    setup: tokio::sync::Mutex<()>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Network {
    /// Connects to the kernel in the calling thread's network namespace, which becomes the host's side. Creates
    /// nothing. Must be called inside a tokio runtime.
    pub async fn open(config: NetConfig) -> Result<Self, Error> {
        validate(&config)?;
        let connect = |what| move |source| Error::Connect { what, source };
        let netns =
            std::fs::File::open("/proc/thread-self/ns/net").map_err(|source| Error::EnterNetns { source })?;
        let (connection, handle, _) = rtnetlink::new_connection().map_err(connect("links and addresses"))?;
        let route = Socket::open(netlink::ROUTE).map_err(connect("pod links"))?;
        let filter = nft::open().map_err(connect("nftables"))?;
        let (links, tables) = (Monitor::links()?, Monitor::tables()?);
        let inner = Arc::new(Inner {
            state: Mutex::new(State::new(sorted(&config.subnets))),
            config,
            handle,
            netns: netns.into(),
            route: Mutex::new(route),
            filter: Mutex::new(filter),
            setup: tokio::sync::Mutex::new(()),
            tasks: Mutex::new(Vec::new()),
        });
        let weak = || Arc::downgrade(&inner);
        let tasks = [
            tokio::spawn(connection),
            tokio::spawn(watch(links, weak())),
            tokio::spawn(watch(tables, weak())),
        ];
        lock(&inner.tasks).extend(tasks.map(|task| task.abort_handle()));
        Ok(Self { inner })
    }

    /// Sets up what all pods share: the bridge, its addresses, forwarding, the nftables table. Idempotent, and
    /// free once done; `attach` calls it.
    ///
    /// It replaces an nftables table left by an earlier process: after a restart call [`Self::reconcile`] first,
    /// or the host ports of live pods are missing until then.
    pub async fn ensure_host(&self) -> Result<(), Error> {
        self.inner.ensure_host().await.map(|_| ())
    }

    /// Whether notices of links and tables that vanish are still heard.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        lock(&self.inner.tasks).iter().all(|task| !task.is_finished())
    }

    /// Connects a pod: link, addresses, routes, host ports.
    ///
    /// A failed attach undoes what it did. Dropping the future does not stop the work; it is undone when done.
    pub async fn attach(&self, request: AttachRequest<'_>) -> Result<Attachment, Error> {
        attach::attach(&self.inner, request).await
    }

    /// Disconnects a pod. Idempotent; needs neither the pod's namespace nor its link to exist.
    ///
    /// Host ports are gone when this returns. The link is left to die with the namespace (deleting it would cost
    /// tens of milliseconds); its addresses are free again when the kernel reports its end. A link that outlives
    /// its detach by five seconds is deleted.
    pub async fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        let released = self
            .inner
            .state()
            .detach(&attachment.id, attachment.host_link_index);
        if released.link_exists {
            let weak = Arc::downgrade(&self.inner);
            tokio::spawn(linger(
                weak,
                attachment.host_link_index,
                attachment.host_link.clone(),
            ));
        }
        if released.ports.is_empty() {
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        let id = attachment.id.clone();
        let worker = tokio::task::spawn_blocking(move || {
            let result = inner.remove_ports(&id, &released.elements);
            inner.state().release_ports(&id, &released.ports);
            result
        });
        worker
            .await
            .map_err(|_| Error::WorkerLost { operation: "detach" })?
    }

    /// Makes memory and kernel agree with the pods that are alive. Call once at start, before any attach.
    ///
    /// Live attachments keep their addresses and ports; links and nftables elements of nobody are removed.
    pub async fn reconcile(&self, live: &[Attachment]) -> Result<Reconciled, Error> {
        reconcile::reconcile(&self.inner, live).await
    }

    /// Takes the pod CIDR from whoever assigns it. The same CIDR again costs nothing; with another one new pods
    /// get new addresses while old ones keep theirs.
    pub async fn set_pod_cidr(&self, cidrs: &[Subnet]) -> Result<(), Error> {
        let cidrs = sorted(cidrs);
        validate_subnets(&cidrs)?;
        let was_set_up = {
            let mut state = self.inner.state();
            if state.ipam.subnets() == cidrs {
                return Ok(());
            }
            state.ipam.set_subnets(cidrs);
            state.host_failure = None;
            state.host.take().is_some() || state.has_pods()
        };
        if was_set_up {
            self.ensure_host().await
        } else {
            Ok(())
        }
    }

    /// Whether pods can be connected, and what this kernel lacks. Asks memory only.
    pub fn ready(&self) -> NetworkStatus {
        let state = self.inner.state();
        let subnets = state.ipam.subnets().to_vec();
        let problem = if subnets.is_empty() {
            Some(Error::NotReady.to_string())
        } else {
            state.host_failure.clone()
        };
        let mut warnings = Vec::new();
        if let Some(host) = &state.host {
            let missing = |what: &str, why: &String| format!("{what} does not work on this kernel: {why}");
            warnings.extend(
                host.masquerade_missing
                    .as_ref()
                    .map(|why| missing("masquerade", why)),
            );
            warnings.extend(
                host.ports_missing
                    .as_ref()
                    .map(|why| missing("host port mapping", why)),
            );
            if !host.ipv6 && subnets.iter().any(|subnet| !subnet.is_ipv4()) {
                warnings.push("IPv6 is off on this host: pods get IPv4 only".to_owned());
            }
        }
        let addresses_in_use = state.ipam.reserved();
        NetworkStatus {
            ready: problem.is_none(),
            problem,
            warnings,
            subnets,
            addresses_in_use,
        }
    }
}

impl Inner {
    /// The state; held for moments, never across an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The route socket of the host's side.
    pub(crate) fn route(&self) -> MutexGuard<'_, Socket<RouteNetlinkMessage>> {
        lock(&self.route)
    }

    /// The nftables socket. Lock order: this before `route` before `state`.
    pub(crate) fn filter(&self) -> MutexGuard<'_, Socket<NetfilterMessage>> {
        lock(&self.filter)
    }

    /// Runs `work` in the host's namespace.
    pub(crate) fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        netns::enter(self.netns.as_fd(), work)
    }

    /// What the nftables table should hold now.
    pub(crate) fn wanted(&self, ipv6: bool) -> Wanted {
        let state = self.state();
        Wanted {
            bridge: self.config.bridge.clone(),
            subnets: state
                .pod_subnets()
                .into_iter()
                .filter(|subnet| ipv6 || subnet.is_ipv4())
                .collect(),
            masquerade: self.config.masquerade,
            elements: state.elements(),
        }
    }

    /// The host's side, set up if it is not.
    pub(crate) async fn ensure_host(self: &Arc<Self>) -> Result<Host, Error> {
        if let Some(host) = &self.state().host {
            return Ok(host.clone());
        }
        let _one_at_a_time = self.setup.lock().await;
        if let Some(host) = &self.state().host {
            return Ok(host.clone());
        }
        let result = self.set_up_host().await;
        let mut state = self.state();
        match &result {
            Ok(host) => {
                state.host = Some(host.clone());
                state.host_failure = None;
            }
            // No subnet yet is no failure of the host, and `ready` sees it by itself.
            Err(Error::NotReady) => {}
            Err(error) => state.host_failure = Some(error.to_string()),
        }
        result
    }

    async fn set_up_host(self: &Arc<Self>) -> Result<Host, Error> {
        let subnets = self.state().ipam.subnets().to_vec();
        if subnets.is_empty() {
            return Err(Error::NotReady);
        }
        let bridge = &self.config.bridge;
        let mtu = match self.config.mtu {
            Some(mtu) => mtu,
            None => bridge::uplink_mtu(&self.handle).await?,
        };
        let bridge_index = bridge::ensure(&self.handle, bridge, bridge::mac(&subnets), mtu).await?;
        let inner = Arc::clone(self);
        let (ipv4, ipv6) = (
            subnets.iter().any(Subnet::is_ipv4),
            subnets.iter().any(|subnet| !subnet.is_ipv4()),
        );
        let worker = tokio::task::spawn_blocking(move || inner.set_up_kernel(ipv4, ipv6));
        let (ipv6, missing) = worker.await.map_err(|_| Error::WorkerLost {
            operation: "setting up the host",
        })??;
        for subnet in subnets.iter().filter(|subnet| ipv6 || subnet.is_ipv4()) {
            bridge::add_gateway(&self.handle, bridge, bridge_index, bridge::gateway(subnet)).await?;
        }
        for reason in [&missing.masquerade, &missing.ports].into_iter().flatten() {
            tracing::warn!(reason, "this kernel lacks part of what pods need");
        }
        let Missing { masquerade, ports } = missing;
        Ok(Host {
            bridge_index,
            mtu,
            ipv6,
            masquerade_missing: masquerade,
            ports_missing: ports,
        })
    }

    /// Switches and table. Returns whether IPv6 works here.
    fn set_up_kernel(&self, ipv4: bool, ipv6: bool) -> Result<(bool, Missing), Error> {
        let ipv6 = self.on_host(|| {
            let ipv6 = ipv6 && sysctl::has_ipv6();
            if ipv6 {
                sysctl::prepare_bridge(&self.config.bridge)?;
            }
            sysctl::enable_forwarding(ipv4, ipv6).map(|()| ipv6)
        })??;
        let mut filter = self.filter();
        let wanted = self.wanted(ipv6);
        table::rebuild(&mut filter, &wanted).map(|missing| (ipv6, missing))
    }

    /// Removes the host ports of a pod, and the connections that still use them.
    pub(crate) fn remove_ports(&self, id: &str, elements: &[PortElement]) -> Result<(), Error> {
        let mut filter = self.filter();
        table::delete_ports(&mut filter, elements, || self.wanted(true))?;
        conntrack::flush(&mut filter, id, elements, Stale::Unmapped).map(|_| ())
    }

    /// Makes podd's table again when it is needed and gone. Restarting a firewall flushes the whole ruleset, and
    /// with it every pod's way out.
    async fn restore_table(self: &Arc<Self>) {
        let Some(host) = self.state().host.clone() else {
            return;
        };
        let inner = Arc::clone(self);
        let worker = tokio::task::spawn_blocking(move || {
            let mut filter = inner.filter();
            if table::exists(&mut filter)? {
                return Ok(());
            }
            tracing::warn!("podd's nftables table was removed by someone else and is made again");
            table::rebuild(&mut filter, &inner.wanted(host.ipv6)).map(|_| ())
        });
        if let Ok(Err(error)) = worker.await {
            tracing::warn!(%error, "podd's nftables table cannot be made again");
        }
    }

    /// Looks which links are gone, after notices of it may have been missed.
    pub(crate) async fn resynchronise(&self) {
        match bridge::list(&self.handle).await {
            Ok(links) => {
                let mut state = self.state();
                for index in state.watched() {
                    if links.iter().all(|link| link.index != index) {
                        state.link_gone(index);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "link notices were lost and links cannot be listed"),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows notices as long as the network exists.
async fn watch(mut monitor: Monitor, inner: Weak<Inner>) {
    loop {
        let notices = match monitor.next().await {
            Ok(notices) => notices,
            Err(error) => {
                tracing::error!(%error, "notices end: addresses of stopped pods stay reserved, a flushed table stays gone");
                return;
            }
        };
        let Some(inner) = inner.upgrade() else { return };
        for notice in notices {
            match notice {
                Notice::Gone(index) => inner.state().link_gone(index),
                Notice::TableGone => inner.restore_table().await,
                Notice::Lost => {
                    inner.resynchronise().await;
                    inner.restore_table().await;
                }
            }
        }
    }
}

/// Deletes a link that has not died with its namespace.
async fn linger(inner: Weak<Inner>, index: u32, name: String) {
    tokio::time::sleep(LINGER).await;
    let Some(inner) = inner.upgrade() else { return };
    if inner.state().is_attached(index) {
        return;
    }
    match bridge::delete(&inner.handle, index, &name).await {
        Ok(()) => inner.state().link_gone(index),
        Err(error) => tracing::warn!(%error, link = name, "a stopped pod's link cannot be deleted"),
    }
}

/// IPv4 first: the first address is the one Kubernetes calls the pod's address.
fn sorted(subnets: &[Subnet]) -> Vec<Subnet> {
    let mut subnets = subnets.to_vec();
    subnets.sort_by_key(|subnet| !subnet.is_ipv4());
    subnets
}

fn validate(config: &NetConfig) -> Result<(), Error> {
    let name = &config.bridge;
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    if name.is_empty() || name.len() > 15 || !name.bytes().all(plain) || name == "." || name == ".." {
        return Err(Error::Config {
            reason: format!("{name:?} is not an interface name"),
        });
    }
    if config.mtu.is_some_and(|mtu| !(1280..=65535).contains(&mtu)) {
        return Err(Error::Config {
            reason: "the MTU must be between 1280 and 65535".to_owned(),
        });
    }
    validate_subnets(&config.subnets)
}

fn validate_subnets(subnets: &[Subnet]) -> Result<(), Error> {
    for ipv4 in [true, false] {
        if subnets.iter().filter(|subnet| subnet.is_ipv4() == ipv4).count() > 1 {
            return Err(Error::Config {
                reason: "more than one pod subnet of a family".to_owned(),
            });
        }
    }
    Ok(())
}
