//! Keeping podd's nftables table equal to what memory says.
//!
//! Owns: making the table (with a fallback for kernels that lack parts of it), adding and removing the elements
//! of one pod, and healing a table that somebody flushed. Never: decides who has which port.

use std::collections::HashSet;
use std::net::IpAddr;

use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rustix::io::Errno;

use crate::address::Subnet;
use crate::conntrack::{self, Stale};
use crate::error::Error;
use crate::hostport::PortElement;
use crate::netlink::Socket;
use crate::nft::{self, Step};
use crate::ruleset::{self, RulesetPlan};
use crate::veth::is;

/// What the table should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) bridge: String,
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) masquerade: bool,
    pub(crate) elements: Vec<PortElement>,
}

/// What the kernel refused of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) masquerade: Option<String>,
    pub(crate) ports: Option<String>,
}

/// Makes the table anew, in one transaction.
pub(crate) fn rebuild(socket: &mut Socket<NetfilterMessage>, wanted: &Wanted) -> Result<Missing, Error> {
    let mut plan = RulesetPlan {
        bridge: &wanted.bridge,
        subnets: &wanted.subnets,
        masquerade: wanted.masquerade,
        ports: Some(&wanted.elements),
    };
    let Err(without_ports) = capable(nft::commit(socket, &ruleset::replace(&plan)))? else {
        return Ok(Missing::default());
    };
    plan.ports = None;
    let masquerade = capable(nft::commit(socket, &ruleset::replace(&plan)))?.err();
    Ok(Missing {
        masquerade: masquerade.filter(|_| wanted.masquerade),
        ports: Some(without_ports),
    })
}

/// Removes the table, if there is one.
pub(crate) fn remove(socket: &mut Socket<NetfilterMessage>) -> Result<(), Error> {
    match capable(nft::commit(socket, &[nft::add_table(), nft::delete_table()]))? {
        Ok(()) => Ok(()),
        Err(reason) => {
            tracing::debug!(reason, "no nftables, so no table to remove");
            Ok(())
        }
    }
}

/// Whether the table is there.
pub(crate) fn exists(socket: &mut Socket<NetfilterMessage>) -> Result<bool, Error> {
    match nft::find_table(socket) {
        Ok(()) => Ok(true),
        Err(source) if is(&source, Errno::NOENT) => Ok(false),
        Err(source) => Err(Error::Exchange {
            what: "podd's nftables table",
            source,
        }),
    }
}

/// Adds the elements of one pod. `wanted` (with them included) is what a table that was flushed or is out of
/// step is made anew from.
pub(crate) fn add_ports(
    socket: &mut Socket<NetfilterMessage>,
    elements: &[PortElement],
    wanted: impl FnOnce() -> Wanted,
) -> Result<(), Error> {
    let steps: Vec<Step> = elements.iter().map(nft::add_port).collect();
    heal(socket, &steps, wanted)
}

/// Removes the elements of one pod. `wanted` is without them.
pub(crate) fn delete_ports(
    socket: &mut Socket<NetfilterMessage>,
    elements: &[PortElement],
    wanted: impl FnOnce() -> Wanted,
) -> Result<(), Error> {
    let steps: Vec<Step> = elements.iter().map(nft::delete_port).collect();
    heal(socket, &steps, wanted)
}

/// Deletes stale UDP connection tracking entries after `elements` were added.
pub(crate) fn flush_mapped(
    filter: &mut Socket<NetfilterMessage>,
    route: &mut Socket<RouteNetlinkMessage>,
    id: &str,
    elements: &[PortElement],
) -> Result<usize, Error> {
    if !elements
        .iter()
        .any(|element| element.protocol == crate::Protocol::Udp)
    {
        return Ok(0);
    }
    let local = local_addresses(route).map_err(|source| Error::Conntrack {
        id: id.to_owned(),
        source,
    })?;
    conntrack::flush(filter, id, elements, Stale::Mapped(&local))
}

fn heal(
    socket: &mut Socket<NetfilterMessage>,
    steps: &[Step],
    wanted: impl FnOnce() -> Wanted,
) -> Result<(), Error> {
    let Err(error) = nft::commit(socket, steps) else {
        return Ok(());
    };
    match nft::refusal(&error) {
        // Somebody flushed the ruleset, or the table is one of an earlier life: memory knows what belongs there.
        Some(Errno::NOENT | Errno::EXIST) => {
            tracing::warn!(%error, "podd's nftables table is out of step and is made anew");
            rebuild(socket, &wanted()).map(|_| ())
        }
        _ => Err(error),
    }
}

/// Sorts "the kernel does not have that" (inner error, with the kernel's words) from real failures.
fn capable(result: Result<(), Error>) -> Result<Result<(), String>, Error> {
    const LACKING: [Errno; 5] = [
        Errno::NOENT,
        Errno::OPNOTSUPP,
        Errno::AFNOSUPPORT,
        Errno::PROTONOSUPPORT,
        Errno::PROTOTYPE,
    ];
    match result {
        Ok(()) => Ok(Ok(())),
        Err(Error::Nft { step, source }) if LACKING.iter().any(|errno| is(&source, *errno)) => {
            Ok(Err(format!("{step}: {source}")))
        }
        Err(other) => Err(other),
    }
}

fn local_addresses(route: &mut Socket<RouteNetlinkMessage>) -> std::io::Result<HashSet<IpAddr>> {
    let mut local = HashSet::new();
    route.dump(
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        |message| {
            if let RouteNetlinkMessage::NewAddress(address) = message {
                local.extend(address.attributes.iter().filter_map(|attribute| match attribute {
                    AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                }));
            }
        },
    )?;
    Ok(local)
}
