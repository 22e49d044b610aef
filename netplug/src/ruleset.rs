//! The rules of podd's table. They are fixed when the table is made; pods only add and remove map elements.
//!
//! Owns: the shape of the table. Never: talks to the kernel.
//!
//! ```text
//! table inet podd
//!   set  pods4, pods6     the pod subnets (intervals)
//!   map  ports4, ports6   protocol . host port            -> pod address . pod port
//!   map  bound4, bound6   host address . protocol . port  -> pod address . pod port
//!   chain guard (raw prerouting)     from the bridge, to or from 127.0.0.0/8          drop
//!   chain prerouting, output (dstnat) to this host, port found in bound*, then ports*   dnat
//!   chain postrouting (srcnat)
//!     from a loopback address to a pod                                                masquerade
//!     pod to pod through a host port (else the answer would not pass the host)        masquerade
//!     pod to anything but pods and multicast                                          masquerade
//! ```
//!
//! `guard` is there because host ports on 127.0.0.1 need `route_localnet` on the bridge, which alone would let
//! pods reach services that the host bound to its loopback. It runs before connection tracking, so answers of
//! translated connections, which carry the bridge's address at that point, pass.

use netlink_packet_netfilter::nftables::{InetHookNumber, MetaKey, Operator, Register};

use crate::address::Subnet;
use crate::hostport::PortElement;
use crate::nft::{self, Rule, SetPlan, Step, expr};

const PRIORITY_RAW: i32 = -300;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_SRCNAT: i32 = 100;

const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
/// nft packs the types of a concatenation six bits each.
const TYPE_BITS: u32 = 6;

/// What differs between the two families.
struct Family {
    nfproto: u8,
    pods: &'static str,
    ports: &'static str,
    bound: &'static str,
    source_offset: u32,
    destination_offset: u32,
    address_len: u32,
    address_type: u32,
    ct_destination: u32,
    /// Registers behind an address that starts at `Reg32_00`.
    after_address: [Register; 2],
}

const IPV4: Family = Family {
    nfproto: 2,
    pods: "pods4",
    ports: "ports4",
    bound: "bound4",
    source_offset: 12,
    destination_offset: 16,
    address_len: 4,
    address_type: TYPE_IPV4,
    ct_destination: expr::CT_DST_IP,
    after_address: [Register::Reg32_01, Register::Reg32_02],
};

const IPV6: Family = Family {
    nfproto: 10,
    pods: "pods6",
    ports: "ports6",
    bound: "bound6",
    source_offset: 8,
    destination_offset: 24,
    address_len: 16,
    address_type: TYPE_IPV6,
    ct_destination: expr::CT_DST_IP6,
    after_address: [Register::Reg32_04, Register::Reg32_05],
};

/// What the table shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RulesetPlan<'a> {
    pub(crate) bridge: &'a str,
    pub(crate) subnets: &'a [Subnet],
    pub(crate) masquerade: bool,
    /// `None` leaves out everything that host ports need, for kernels without it.
    pub(crate) ports: Option<&'a [PortElement]>,
}

/// The batch that replaces the table, whatever it was before.
pub(crate) fn replace(plan: &RulesetPlan<'_>) -> Vec<Step> {
    let mut steps = vec![nft::add_table(), nft::delete_table(), nft::add_table()];
    let mut number = 0;
    for family in [&IPV4, &IPV6] {
        let mut sets = vec![pods_set(family)];
        if plan.ports.is_some() {
            sets.extend([ports_map(family), bound_map(family)]);
        }
        for set in sets {
            number += 1;
            steps.push(nft::add_set(&set, number));
        }
    }
    steps.extend(pod_subnets(plan.subnets));
    if plan.ports.is_some() {
        steps.extend(port_chains(plan.bridge));
    }
    steps.push(nft::add_chain(
        "postrouting",
        "nat",
        InetHookNumber::PostRouting,
        PRIORITY_SRCNAT,
    ));
    if plan.ports.is_some() {
        for family in [&IPV4, &IPV6] {
            steps.push(nft::add_rule(
                "postrouting",
                "pod to pod by bound host port",
                hairpin(family, true),
            ));
            steps.push(nft::add_rule(
                "postrouting",
                "pod to pod by host port",
                hairpin(family, false),
            ));
        }
        steps.push(nft::add_rule(
            "postrouting",
            "host loopback to pod",
            loopback_source(),
        ));
    }
    if plan.masquerade {
        for family in [&IPV4, &IPV6] {
            steps.push(nft::add_rule("postrouting", "pod to outside", masquerade(family)));
        }
    }
    steps.extend(plan.ports.into_iter().flatten().map(nft::add_port));
    steps
}

fn pod_subnets(subnets: &[Subnet]) -> impl Iterator<Item = Step> {
    subnets.iter().map(|subnet| {
        let set = if subnet.is_ipv4() { IPV4.pods } else { IPV6.pods };
        nft::add_interval(set, subnet.network(), subnet.end())
    })
}

fn pods_set(family: &Family) -> SetPlan {
    SetPlan {
        name: family.pods,
        key_type: family.address_type,
        key_len: family.address_len,
        data: None,
        interval: true,
    }
}

fn ports_map(family: &Family) -> SetPlan {
    SetPlan {
        name: family.ports,
        key_type: concat(&[TYPE_PROTOCOL, TYPE_PORT]),
        key_len: 8,
        data: Some((concat(&[family.address_type, TYPE_PORT]), family.address_len + 4)),
        interval: false,
    }
}

fn bound_map(family: &Family) -> SetPlan {
    SetPlan {
        name: family.bound,
        key_type: concat(&[family.address_type, TYPE_PROTOCOL, TYPE_PORT]),
        key_len: family.address_len + 8,
        data: Some((concat(&[family.address_type, TYPE_PORT]), family.address_len + 4)),
        interval: false,
    }
}

fn concat(types: &[u32]) -> u32 {
    types.iter().fold(0, |packed, kind| packed << TYPE_BITS | kind)
}

fn port_chains(bridge: &str) -> Vec<Step> {
    let mut steps = vec![
        nft::add_chain("guard", "filter", InetHookNumber::PreRouting, PRIORITY_RAW),
        nft::add_chain("prerouting", "nat", InetHookNumber::PreRouting, PRIORITY_DSTNAT),
        nft::add_chain("output", "nat", InetHookNumber::LocalOut, PRIORITY_DSTNAT),
    ];
    for offset in [IPV4.source_offset, IPV4.destination_offset] {
        steps.push(nft::add_rule(
            "guard",
            "no loopback from pods",
            guard(bridge, offset),
        ));
    }
    for chain in ["prerouting", "output"] {
        for family in [&IPV4, &IPV6] {
            steps.push(nft::add_rule(
                chain,
                "host port of one address",
                dnat(family, true),
            ));
            steps.push(nft::add_rule(chain, "host port", dnat(family, false)));
        }
    }
    steps
}

fn guard(bridge: &str, offset: u32) -> Rule {
    let mut name = [0; 16];
    for (slot, byte) in name.iter_mut().zip(bridge.bytes()) {
        *slot = byte;
    }
    let register = Register::Reg32_00;
    let mut rule = Rule::from(expr::family(IPV4.nfproto));
    rule.extend([
        expr::meta(MetaKey::Iifname, Register::Reg1),
        expr::cmp(Operator::Equal, Register::Reg1, &name),
        expr::payload(expr::NETWORK, offset, 1, register),
        expr::cmp(Operator::Equal, register, &[127]),
        expr::drop(),
    ]);
    rule
}

/// Loads the key of a port map, with the port and address of the packet (`original`: of the connection before
/// translation), and looks it up into the registers from `Reg32_08` on.
fn look_up_port(
    family: &Family,
    bound: bool,
    original: bool,
) -> Vec<netlink_packet_netfilter::nftables::Expressions> {
    let (mut rule, [protocol, port]) = (Vec::new(), key_registers(family, bound));
    if bound {
        rule.push(if original {
            expr::ct_original(family.ct_destination, Register::Reg32_00)
        } else {
            expr::payload(
                expr::NETWORK,
                family.destination_offset,
                family.address_len,
                Register::Reg32_00,
            )
        });
    }
    rule.push(expr::meta(MetaKey::L4Proto, protocol));
    rule.push(if original {
        expr::ct_original(expr::CT_PROTO_DST, port)
    } else {
        expr::payload(expr::TRANSPORT, 2, 2, port)
    });
    let map = if bound { family.bound } else { family.ports };
    rule.push(expr::map(Register::Reg32_00, map, Register::Reg32_08));
    rule
}

fn key_registers(family: &Family, bound: bool) -> [Register; 2] {
    if bound {
        family.after_address
    } else {
        [Register::Reg32_00, Register::Reg32_01]
    }
}

fn dnat(family: &Family, bound: bool) -> Rule {
    let mut rule = Rule::from(expr::family(family.nfproto));
    rule.extend(expr::to_this_host());
    if family.nfproto == IPV6.nfproto {
        // A packet from ::1 cannot leave the host: refuse at once instead of timing out.
        let mut loopback = [0; 16];
        loopback[15] = 1;
        rule.push(expr::payload(
            expr::NETWORK,
            family.destination_offset,
            16,
            Register::Reg32_00,
        ));
        rule.push(expr::cmp(Operator::NotEqual, Register::Reg32_00, &loopback));
    }
    rule.extend(look_up_port(family, bound, false));
    let port = if family.address_len == 4 {
        Register::Reg32_09
    } else {
        Register::Reg32_12
    };
    rule.push(expr::dnat(family.nfproto, Register::Reg32_08, port));
    rule
}

fn hairpin(family: &Family, bound: bool) -> Rule {
    let register = Register::Reg32_00;
    let mut rule = Rule::from(expr::family(family.nfproto));
    rule.extend(expr::was_dnatted());
    for offset in [family.source_offset, family.destination_offset] {
        rule.push(expr::payload(expr::NETWORK, offset, family.address_len, register));
        rule.push(expr::in_set(register, family.pods));
    }
    rule.extend(look_up_port(family, bound, true));
    rule.push(expr::masquerade());
    rule
}

fn loopback_source() -> Rule {
    let register = Register::Reg32_00;
    let mut rule = Rule::from(expr::family(IPV4.nfproto));
    rule.extend([
        expr::payload(expr::NETWORK, IPV4.source_offset, 1, register),
        expr::cmp(Operator::Equal, register, &[127]),
        expr::payload(expr::NETWORK, IPV4.destination_offset, IPV4.address_len, register),
        expr::in_set(register, IPV4.pods),
        expr::masquerade(),
    ]);
    rule
}

fn masquerade(family: &Family) -> Rule {
    let register = Register::Reg32_00;
    let mut rule = Rule::from(expr::family(family.nfproto));
    rule.extend([
        expr::payload(expr::NETWORK, family.source_offset, family.address_len, register),
        expr::in_set(register, family.pods),
        expr::payload(
            expr::NETWORK,
            family.destination_offset,
            family.address_len,
            register,
        ),
        expr::not_in_set(register, family.pods),
        expr::payload(expr::NETWORK, family.destination_offset, 1, register),
    ]);
    if family.address_len == 4 {
        rule.push(expr::mask(register, &[0xf0]));
        rule.push(expr::cmp(Operator::NotEqual, register, &[0xe0]));
    } else {
        rule.push(expr::cmp(Operator::NotEqual, register, &[0xff]));
    }
    rule.push(expr::masquerade());
    rule
}
