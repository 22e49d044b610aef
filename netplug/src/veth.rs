//! The cable between a pod and the bridge.
//!
//! Owns: making the veth pair and configuring both ends, with two sends in all. Never: chooses addresses or
//! remembers pods.
//!
//! Order matters for readiness: the host end is up before the pod end, so the moment the pod end comes up both
//! carriers rise; the pod's addresses are in place before that and need no duplicate address detection.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use rustix::io::Errno;

use crate::address::{InterfaceAddress, MacAddress};
use crate::error::Error;
use crate::netlink::{Outcome, Socket};
use crate::{netlink, netns, route, sysctl};

/// First letters of the names of our host ends; the rest is a hash of the pod's id.
pub(crate) const PREFIX: &str = "pd";

/// How many further names are tried for a host end whose name is taken.
const LAST_SALT: u8 = 3;

/// Everything resolved that a pod's link needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VethPlan {
    pub(crate) id: String,
    pub(crate) bridge_index: u32,
    pub(crate) mtu: u32,
    pub(crate) mac: MacAddress,
    pub(crate) interface: String,
    pub(crate) addresses: Vec<InterfaceAddress>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) hairpin: bool,
    pub(crate) ipv6: bool,
}

/// A created pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) host_link: String,
    pub(crate) host_index: u32,
    pub(crate) pod_index: u32,
}

/// The name of the host end for pod `id`; `salt` makes another one when that is still taken.
pub(crate) fn host_link_name(id: &str, salt: u8) -> String {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = id.bytes().chain([salt]).fold(0xcbf2_9ce4_8422_2325, fold);
    format!("{PREFIX}{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff)
}

/// Creates the pair and brings the host end up.
pub(crate) fn create(
    host: &mut Socket<RouteNetlinkMessage>,
    netns: impl AsFd,
    plan: &VethPlan,
) -> Result<Pair, Error> {
    let netns = netns.as_fd().as_raw_fd();
    let mut salt = 0;
    loop {
        let host_link = host_link_name(&plan.id, salt);
        match create_named(host, netns, plan, &host_link) {
            // Either the link of an earlier attachment of this id is still on its way out, which another name
            // cures, or the pod has an interface of the wanted name already, which nothing cures.
            Err(Error::CreateVeth { source, .. }) if is(&source, Errno::EXIST) && salt < LAST_SALT => {
                salt += 1
            }
            other => return other,
        }
    }
}

fn create_named(
    host: &mut Socket<RouteNetlinkMessage>,
    netns: i32,
    plan: &VethPlan,
    host_link: &str,
) -> Result<Pair, Error> {
    let requests = vec![
        route::create_veth(plan, host_link, netns),
        route::configure_host_link(plan, host_link),
        route::up_by_name(host_link),
        route::get_link(host_link),
    ];
    let outcomes = host.batch(requests).map_err(|source| Error::Exchange {
        what: "a veth pair",
        source,
    })?;
    let [create, configure, up, get] = four(outcomes)?;
    let link = || host_link.to_owned();
    create.result.map_err(|source| Error::CreateVeth {
        id: plan.id.clone(),
        host_link: link(),
        source,
    })?;
    let looked_up = get
        .result
        .map_err(|source| Error::LookUpLink { link: link(), source })
        .and_then(|()| indices(&get.messages, host_link));
    let checked = configure
        .result
        .map_err(|source| Error::ConfigureLink { link: link(), source })
        .and_then(|()| up.result.map_err(|source| Error::LinkUp { link: link(), source }));
    match (looked_up, checked) {
        (Ok((host_index, pod_index)), Ok(())) => Ok(Pair {
            host_link: link(),
            host_index,
            pod_index,
        }),
        (Ok((host_index, _)), Err(cause)) => {
            Err(cause.with_undo(delete(host, host_index, host_link).err().into_iter().collect()))
        }
        // Without an index the link is found again by its name at the next reconcile.
        (Err(cause), _) => Err(cause),
    }
}

fn four(outcomes: Vec<Outcome<RouteNetlinkMessage>>) -> Result<[Outcome<RouteNetlinkMessage>; 4], Error> {
    outcomes.try_into().map_err(|_| Error::Exchange {
        what: "a veth pair",
        source: io::Error::other("one outcome per request was expected"),
    })
}

/// The index of the link and of its peer.
fn indices(messages: &[RouteNetlinkMessage], host_link: &str) -> Result<(u32, u32), Error> {
    let found = messages.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => {
            let peer = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Link(peer) => Some(*peer),
                _ => None,
            });
            peer.map(|peer| (link.header.index, peer))
        }
        _ => None,
    });
    found.ok_or_else(|| Error::LookUpLink {
        link: host_link.to_owned(),
        source: io::Error::other("the kernel named no peer"),
    })
}

/// Configures the pod's side. Moves the calling thread into `netns` for good.
///
/// Returns the addresses the pod really has: without IPv6 inside the namespace these are fewer.
pub(crate) fn configure_pod(
    netns: impl AsFd,
    plan: &VethPlan,
    pod_index: u32,
) -> Result<Vec<InterfaceAddress>, Error> {
    netns::join(netns.as_fd())?;
    let mut socket = Socket::open(netlink::ROUTE).map_err(|source| Error::Connect {
        what: "the pod's network namespace",
        source,
    })?;
    if plan.addresses.iter().any(|address| address.address.is_ipv6()) {
        sysctl::ignore_router_advertisements(&plan.interface);
    }
    let mut requests: Vec<_> = plan
        .addresses
        .iter()
        .map(|address| route::add_address(pod_index, *address))
        .collect();
    requests.push(route::up_by_index(route::LOOPBACK));
    requests.push(route::up_by_index(pod_index));
    requests.extend(
        plan.gateways
            .iter()
            .map(|gateway| route::add_default_route(pod_index, *gateway)),
    );
    let outcomes = socket.batch(requests).map_err(|source| Error::Exchange {
        what: "the pod's network",
        source,
    })?;
    let mut results = outcomes.into_iter().map(|outcome| outcome.result);
    let mut next = || {
        results
            .next()
            .unwrap_or_else(|| Err(io::Error::other("an outcome is missing")))
    };
    let link = || plan.interface.clone();
    let mut addresses = Vec::new();
    for address in &plan.addresses {
        match next() {
            Ok(()) => addresses.push(*address),
            Err(source) if address.address.is_ipv6() && ipv6_is_off(&source) => {}
            Err(source) => {
                return Err(Error::AddAddress {
                    address: *address,
                    link: link(),
                    source,
                });
            }
        }
    }
    next().map_err(|source| Error::LinkUp {
        link: "lo".to_owned(),
        source,
    })?;
    next().map_err(|source| Error::LinkUp { link: link(), source })?;
    for gateway in &plan.gateways {
        let has_family = addresses
            .iter()
            .any(|address| address.address.is_ipv4() == gateway.is_ipv4());
        match next() {
            Err(source) if has_family => {
                return Err(Error::AddRoute {
                    gateway: *gateway,
                    link: link(),
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(addresses)
}

/// Brings the loopback interface of `netns` up, for pods without any other network.
pub fn loopback_up(netns: std::os::fd::BorrowedFd<'_>) -> Result<(), Error> {
    netns::enter(netns, || {
        let mut socket =
            Socket::<RouteNetlinkMessage>::open(netlink::ROUTE).map_err(|source| Error::Connect {
                what: "the pod's network namespace",
                source,
            })?;
        let outcomes = socket
            .batch(vec![route::up_by_index(route::LOOPBACK)])
            .map_err(|source| Error::Exchange {
                what: "the loopback interface",
                source,
            })?;
        let failed = |source| Error::LinkUp {
            link: "lo".to_owned(),
            source,
        };
        outcomes
            .into_iter()
            .try_for_each(|outcome| outcome.result.map_err(failed))
    })?
}

/// Deletes a link now; no error when it is gone already. Costs tens of milliseconds (an RCU grace period).
pub(crate) fn delete(host: &mut Socket<RouteNetlinkMessage>, index: u32, name: &str) -> Result<(), Error> {
    let failed = |source| Error::DeleteLink {
        link: name.to_owned(),
        source,
    };
    for outcome in host.batch(vec![route::delete_link(index)]).map_err(failed)? {
        match outcome.result {
            Err(source) if !is(&source, Errno::NODEV) => return Err(failed(source)),
            _ => {}
        }
    }
    Ok(())
}

fn ipv6_is_off(error: &io::Error) -> bool {
    [Errno::ACCESS, Errno::OPNOTSUPP, Errno::AFNOSUPPORT]
        .into_iter()
        .any(|errno| is(error, errno))
}

/// Whether `error` is `errno`.
pub(crate) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_stable_and_salted() {
        let name = host_link_name("3f1c0a", 0);
        assert_eq!(name, host_link_name("3f1c0a", 0));
        assert_eq!(name.len(), 14);
        assert!(name.starts_with(PREFIX));
        assert_ne!(name, host_link_name("3f1c0a", 1));
        assert_ne!(name, host_link_name("3f1c0b", 0));
    }
}
