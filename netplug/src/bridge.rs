//! The host's side that all pods share: the bridge, its gateway addresses, the uplink's MTU.
//!
//! Owns: bringing these to the wanted state, idempotently, through the long-lived `rtnetlink` handle. Never:
//! touches a pod's namespace; the per-pod path is `veth`.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;

use crate::address::{InterfaceAddress, MacAddress};
use crate::error::Error;
use crate::{route, veth};

/// The MTU where no uplink says otherwise.
const ETHERNET_MTU: u32 = 1500;

/// A link as far as this crate cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) controller: Option<u32>,
    is_bridge: bool,
    is_up: bool,
    mtu: Option<u32>,
}

impl Link {
    fn new(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            controller: None,
            is_bridge: false,
            is_up: message.header.flags.contains(LinkFlags::Up),
            mtu: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        link
    }
}

/// Creates the bridge or brings an existing one into shape; returns its index.
///
/// The MAC address is given at creation: the kernel then never takes that of a port, which would change, and
/// break every pod's neighbour cache, as pods come and go.
pub(crate) async fn ensure(handle: &Handle, name: &str, mac: MacAddress, mtu: u32) -> Result<u32, Error> {
    let failed = |error| Error::CreateBridge {
        bridge: name.to_owned(),
        source: to_io(error),
    };
    let existing = find(handle, name).await?;
    let link = match existing {
        Some(link) => link,
        None => {
            let message = LinkBridge::new(name)
                .address(mac.0.to_vec())
                .mtu(mtu)
                .up()
                .build();
            match handle.link().add(message).execute().await {
                Err(error) if !is(&error, Errno::EXIST) => return Err(failed(error)),
                _ => {}
            }
            find(handle, name).await?.ok_or_else(|| Error::LookUpLink {
                link: name.to_owned(),
                source: Errno::NODEV.into(),
            })?
        }
    };
    if !link.is_bridge {
        return Err(Error::NotABridge {
            name: name.to_owned(),
        });
    }
    if !link.is_up || link.mtu != Some(mtu) {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).up().build();
        handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(|error| Error::ConfigureLink {
                link: name.to_owned(),
                source: to_io(error),
            })?;
    }
    Ok(link.index)
}

/// Gives the bridge an address; no error when it has it.
pub(crate) async fn add_gateway(
    handle: &Handle,
    bridge: &str,
    index: u32,
    gateway: InterfaceAddress,
) -> Result<(), Error> {
    let mut request = handle
        .address()
        .add(index, gateway.address, gateway.prefix)
        .replace();
    *request.message_mut() = route::address(index, gateway);
    request.execute().await.map_err(|error| Error::AddAddress {
        address: gateway,
        link: bridge.to_owned(),
        source: to_io(error),
    })
}

/// The MTU of the interface that carries the default route (the preferred one, IPv4 first).
pub(crate) async fn uplink_mtu(handle: &Handle) -> Result<u32, Error> {
    for message in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let routes: Vec<RouteMessage> = match handle.route().get(message).execute().try_collect().await {
            Ok(routes) => routes,
            Err(error) if is(&error, Errno::OPNOTSUPP) || is(&error, Errno::AFNOSUPPORT) => continue,
            Err(error) => return Err(Error::ListRoutes { source: to_io(error) }),
        };
        let best = routes
            .iter()
            .filter_map(default_route)
            .min_by_key(|(priority, _)| *priority);
        let Some((_, index)) = best else { continue };
        let links: Result<Vec<LinkMessage>, _> = handle
            .link()
            .get()
            .match_index(index)
            .execute()
            .try_collect()
            .await;
        if let Some(mtu) = links
            .ok()
            .and_then(|links| links.first().and_then(|link| Link::new(link).mtu))
        {
            return Ok(mtu);
        }
    }
    Ok(ETHERNET_MTU)
}

/// (priority, interface) of a default route of the main table.
fn default_route(route: &RouteMessage) -> Option<(u32, u32)> {
    if route.header.destination_prefix_length != 0
        || route.header.table != RouteHeader::RT_TABLE_MAIN
        || route.header.kind != RouteType::Unicast
    {
        return None;
    }
    let (mut priority, mut interface) = (0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(value) => priority = *value,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                interface = interface.or_else(|| hops.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    interface.map(|interface| (priority, interface))
}

/// The link of this name.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, Error> {
    let links: Result<Vec<LinkMessage>, _> =
        handle.link().get().match_name(name).execute().try_collect().await;
    match links {
        Ok(links) => Ok(links.first().map(Link::new)),
        Err(error) if is(&error, Errno::NODEV) => Ok(None),
        Err(error) => Err(Error::LookUpLink {
            link: name.to_owned(),
            source: to_io(error),
        }),
    }
}

/// All links of the namespace.
pub(crate) async fn list(handle: &Handle) -> Result<Vec<Link>, Error> {
    let links: Result<Vec<LinkMessage>, _> = handle.link().get().execute().try_collect().await;
    let links = links.map_err(|error| Error::LookUpLink {
        link: "(all)".to_owned(),
        source: to_io(error),
    })?;
    Ok(links.iter().map(Link::new).collect())
}

/// Deletes a link if it (still) has this name; no error when it is gone.
pub(crate) async fn delete(handle: &Handle, index: u32, name: &str) -> Result<(), Error> {
    match find(handle, name).await? {
        Some(link) if link.index == index => {}
        _ => return Ok(()),
    }
    match handle.link().del(index).execute().await {
        Err(error) if !is(&error, Errno::NODEV) => Err(Error::DeleteLink {
            link: name.to_owned(),
            source: to_io(error),
        }),
        _ => Ok(()),
    }
}

/// Whether `link` is a pod's host end on this bridge.
pub(crate) fn is_ours(link: &Link, bridge_index: u32) -> bool {
    link.controller == Some(bridge_index) && link.name.starts_with(veth::PREFIX)
}

/// The gateway of an address' network as an interface address.
pub(crate) fn gateway(subnet: &crate::address::Subnet) -> InterfaceAddress {
    InterfaceAddress {
        address: subnet.gateway(),
        prefix: subnet.prefix(),
    }
}

/// The first address a MAC address can be derived from.
pub(crate) fn mac(subnets: &[crate::address::Subnet]) -> MacAddress {
    let first: Option<IpAddr> = subnets.first().map(crate::address::Subnet::gateway);
    first.map_or(MacAddress([0x0e, 0x70, 0, 0, 0, 1]), MacAddress::derived)
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
