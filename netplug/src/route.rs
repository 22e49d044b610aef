//! Route netlink messages this crate sends, as plain constructors.
//!
//! Owns: the shape of each message. Never: sends one.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::address::InterfaceAddress;
use crate::netlink::Request;
use crate::veth::VethPlan;

/// A route request.
pub(crate) type RouteRequest = Request<RouteNetlinkMessage>;

/// The loopback interface's index in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// One queue each way in place of one for each processor, which a veth makes objects in sysfs for, at a third of its cost
/// with two processors. It sends without a lock and receives on the sender's processor, with one queue as with many.
const ONE_SENDER: LinkAttribute = LinkAttribute::NumTxQueues(1);
const ONE_RECEIVER: LinkAttribute = LinkAttribute::NumRxQueues(1);

/// Creates the pair: host end on the bridge, pod end in the namespace `netns`.
pub(crate) fn create_veth(plan: &VethPlan, host_link: &str, netns: i32) -> RouteRequest {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(plan.interface.clone()),
        LinkAttribute::Mtu(plan.mtu),
        ONE_SENDER,
        ONE_RECEIVER,
        LinkAttribute::Address(plan.mac.0.to_vec()),
        LinkAttribute::NetNsFd(netns),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(host_link.to_owned()),
        LinkAttribute::Mtu(plan.mtu),
        ONE_SENDER,
        ONE_RECEIVER,
        LinkAttribute::Controller(plan.bridge_index),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    Request::new(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// What cannot be said at creation: no IPv6 address of its own, hairpin mode, and the pod's id for operators.
pub(crate) fn configure_host_link(plan: &VethPlan, host_link: &str) -> RouteRequest {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(host_link.to_owned()),
        LinkAttribute::IfAlias(plan.id.clone()),
    ];
    if plan.ipv6 {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        link.attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    }
    if plan.hairpin {
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]));
    }
    Request::new(RouteNetlinkMessage::NewLink(link), 0)
}

/// Sets the link of this name up.
pub(crate) fn up_by_name(name: &str) -> RouteRequest {
    let mut link = up();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    Request::new(RouteNetlinkMessage::SetLink(link), 0)
}

/// Sets the link of this index up.
pub(crate) fn up_by_index(index: u32) -> RouteRequest {
    let mut link = up();
    link.header.index = index;
    Request::new(RouteNetlinkMessage::SetLink(link), 0)
}

fn up() -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

/// Asks for the link of this name, without its counters.
pub(crate) fn get_link(name: &str) -> RouteRequest {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
    ];
    Request::new(RouteNetlinkMessage::GetLink(link), 0)
}

/// Deletes a link.
pub(crate) fn delete_link(index: u32) -> RouteRequest {
    let mut link = LinkMessage::default();
    link.header.index = index;
    Request::new(RouteNetlinkMessage::DelLink(link), 0)
}

/// An address, usable at once: podd never gives one out twice, so duplicate detection has nothing to find.
pub(crate) fn address(index: u32, address: InterfaceAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.address);
    message.header.prefix_len = address.prefix;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.address),
        AddressAttribute::Address(address.address),
    ];
    match address.address {
        IpAddr::V4(v4) => {
            let hosts = u32::MAX.checked_shr(u32::from(address.prefix)).unwrap_or(0);
            let broadcast = std::net::Ipv4Addr::from_bits(v4.to_bits() | hosts);
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        IpAddr::V6(_) => message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
}

/// Adds an address.
pub(crate) fn add_address(index: u32, wanted: InterfaceAddress) -> RouteRequest {
    let message = RouteNetlinkMessage::NewAddress(address(index, wanted));
    Request::new(message, NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds the default route of the gateway's family.
pub(crate) fn add_default_route(index: u32, gateway: IpAddr) -> RouteRequest {
    let mut route = RouteMessage::default();
    route.header.address_family = family(gateway);
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![
        RouteAttribute::Gateway(gateway.into()),
        RouteAttribute::Oif(index),
    ];
    Request::new(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
