//! Connecting one pod.
//!
//! Owns: the order of the steps, their undoing, and the thread they run on, which ends up inside the pod's
//! namespace and dies there. Never: leaves half a pod behind, not even when the caller goes away.
//!
//! Steps: reserve addresses and ports (memory), create the veth pair (one send on the host), configure the pod's
//! side (one send in the pod), add host ports (one nftables transaction, only for pods that have some).

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::address::{InterfaceAddress, MacAddress, Subnet};
use crate::error::Error;
use crate::hostport::{self, PortElement, PortMapping};
use crate::network::{AttachRequest, Attachment, Inner};
use crate::state::Host;
use crate::veth::{self, Pair, VethPlan};
use crate::{sysctl, table};

const THREAD: &str = "attach";

/// A request that owns everything, for the worker.
#[derive(Debug)]
struct Job {
    id: String,
    netns: OwnedFd,
    ports: Vec<PortMapping>,
    interface: String,
}

/// What was done so far, for undoing it.
#[derive(Debug, Default)]
struct Done {
    pair: Option<Pair>,
    ports: Vec<PortElement>,
}

/// See [`crate::Network::attach`].
pub(crate) async fn attach(inner: &Arc<Inner>, request: AttachRequest<'_>) -> Result<Attachment, Error> {
    let netns = request
        .netns
        .try_clone_to_owned()
        .map_err(|source| Error::DuplicateNetns { source })?;
    let job = Job {
        id: request.id.to_owned(),
        netns,
        ports: request.ports.to_vec(),
        interface: request.interface.to_owned(),
    };
    let mut host = inner.ensure_host().await?;
    let mut job = Some(job);
    for last in [false, true] {
        let Some(current) = job.take() else { break };
        match run(inner, host.clone(), current).await {
            // The bridge vanished before its notice was read: make it anew and try once more.
            (Err(Error::CreateVeth { source, .. }), Some(again))
                if !last && (veth::is(&source, Errno::NODEV) || veth::is(&source, Errno::INVAL)) =>
            {
                inner.state().link_gone(host.bridge_index);
                host = inner.ensure_host().await?;
                job = Some(again);
            }
            (result, _) => return result,
        }
    }
    Err(Error::WorkerLost { operation: "attach" })
}

/// Runs the job on a thread of its own and waits for it.
async fn run(inner: &Arc<Inner>, host: Host, job: Job) -> (Result<Attachment, Error>, Option<Job>) {
    let (sender, receiver) = oneshot::channel();
    let mut pending = Pending {
        inner: Arc::clone(inner),
        receiver: Some(receiver),
    };
    let worker = Arc::clone(inner);
    let spawned = thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
        let result = connect(&worker, &host, &job);
        if let Err((Ok(attachment), _)) = sender.send((result, job)) {
            disconnect(&worker, &attachment);
        }
    });
    if let Err(source) = spawned {
        return (Err(Error::Thread { name: THREAD, source }), None);
    }
    match pending.wait().await {
        Some((result, job)) => (result, Some(job)),
        None => (Err(Error::WorkerLost { operation: "attach" }), None),
    }
}

type Reply = (Result<Attachment, Error>, Job);

/// Waits for the worker; when dropped instead, sees to it that a result nobody takes is undone.
#[derive(Debug)]
struct Pending {
    inner: Arc<Inner>,
    receiver: Option<oneshot::Receiver<Reply>>,
}

impl Pending {
    async fn wait(&mut self) -> Option<Reply> {
        let reply = self.receiver.as_mut()?.await.ok();
        self.receiver = None;
        reply
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(mut receiver) = self.receiver.take() else {
            return;
        };
        receiver.close();
        if let Ok((Ok(attachment), _)) = receiver.try_recv() {
            let inner = Arc::clone(&self.inner);
            let undo = move || disconnect(&inner, &attachment);
            if let Err(error) = thread::Builder::new().name(THREAD.to_owned()).spawn(undo) {
                tracing::warn!(%error, "an attachment nobody waited for stays until the next start");
            }
        }
    }
}

/// Undoes a complete attachment whose caller went away.
fn disconnect(inner: &Inner, attachment: &Attachment) {
    let pair = Pair {
        host_link: attachment.host_link.clone(),
        host_index: attachment.host_link_index,
        pod_index: 0,
    };
    let ports = hostport::elements(&attachment.id, &attachment.ports, &attachment.addresses);
    for error in undo(
        inner,
        &attachment.id,
        Done {
            pair: Some(pair),
            ports,
        },
    ) {
        tracing::warn!(%error, pod = attachment.id, "undoing an attachment nobody waited for");
    }
}

fn connect(inner: &Inner, host: &Host, job: &Job) -> Result<Attachment, Error> {
    if let (false, Some(reason)) = (job.ports.is_empty(), &host.ports_missing) {
        return Err(Error::HostPortsUnsupported {
            reason: reason.clone(),
        });
    }
    let (addresses, elements) = inner.state().reserve(&job.id, &job.ports, host.ipv6)?;
    let mut done = Done::default();
    steps(inner, host, job, addresses, elements, &mut done)
        .map_err(|cause| cause.with_undo(undo(inner, &job.id, done)))
}

fn steps(
    inner: &Inner,
    host: &Host,
    job: &Job,
    addresses: Vec<InterfaceAddress>,
    mut elements: Vec<PortElement>,
    done: &mut Done,
) -> Result<Attachment, Error> {
    if job.ports.iter().any(hostport::answers_on_loopback) {
        inner.on_host(|| sysctl::route_localnet(&inner.config.bridge))??;
    }
    let plan = plan(inner, host, job, addresses)?;
    let pair = veth::create(&mut inner.route(), &job.netns, &plan)?;
    inner.state().link_created(&job.id, pair.host_index);
    done.pair = Some(pair.clone());
    let configured = veth::configure_pod(&job.netns, &plan, pair.pod_index)?;
    if configured != plan.addresses {
        elements = inner.state().keep_only(&job.id, &configured);
    }
    if !elements.is_empty() {
        let mut filter = inner.filter();
        table::add_ports(&mut filter, &elements, || inner.wanted(host.ipv6))?;
        done.ports.clone_from(&elements);
        let flushed = table::flush_mapped(&mut filter, &mut inner.route(), &job.id, &elements)?;
        tracing::debug!(
            pod = job.id,
            ports = elements.len(),
            flushed,
            "host ports are mapped"
        );
    }
    let has = |gateway: &IpAddr| {
        configured
            .iter()
            .any(|own| own.address.is_ipv4() == gateway.is_ipv4())
    };
    Ok(Attachment {
        id: job.id.clone(),
        host_link: pair.host_link,
        host_link_index: pair.host_index,
        interface: plan.interface,
        gateways: plan.gateways.into_iter().filter(has).collect(),
        addresses: configured,
        mac: plan.mac,
        ports: job.ports.clone(),
    })
}

fn plan(inner: &Inner, host: &Host, job: &Job, addresses: Vec<InterfaceAddress>) -> Result<VethPlan, Error> {
    let first = addresses.first().ok_or(Error::NotReady)?;
    let gateway = |own: &InterfaceAddress| Subnet::new(own.address, own.prefix).ok().map(|net| net.gateway());
    Ok(VethPlan {
        id: job.id.clone(),
        bridge_index: host.bridge_index,
        mtu: host.mtu,
        mac: MacAddress::derived(first.address),
        interface: job.interface.clone(),
        gateways: addresses.iter().filter_map(gateway).collect(),
        addresses,
        hairpin: inner.config.hairpin,
        ipv6: host.ipv6,
    })
}

/// Undoes steps in reverse; returns what could not be undone.
fn undo(inner: &Inner, id: &str, done: Done) -> Vec<Error> {
    let mut failures = Vec::new();
    inner.state().withdraw_elements(id);
    if !done.ports.is_empty() {
        failures.extend(inner.remove_ports(id, &done.ports).err());
    }
    let mut link_exists = false;
    if let Some(pair) = &done.pair
        && let Err(error) = veth::delete(&mut inner.route(), pair.host_index, &pair.host_link)
    {
        failures.push(error);
        link_exists = true;
    }
    inner.state().abandon(id, link_exists);
    failures
}
