//! podd's nftables table as netlink messages, and the batches that change it.
//!
//! Owns: encoding of expressions, sets and elements; sending a batch atomically. Never: decides what the rules
//! are (`ruleset`) or who has which port (`hostport`).
//!
//! `netlink-packet-netfilter` has the messages and most expressions; `ct`, `fib`, `nat` and `masq` are encoded
//! here on its generic attribute type.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, HookNumber, Immediate,
    InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
    RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementFlags, SetElementList,
    SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::error::Error;
use crate::hostport::PortElement;
use crate::netlink::{Request, Socket};

/// The table; ours alone.
pub(crate) const TABLE: &str = "podd";

/// nfnetlink's number of the nftables subsystem, named by the begin and end of a batch.
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// One step of a batch with its name for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    name: String,
    message: NfTablesMessage,
    flags: u16,
}

/// Expressions in evaluation order.
pub(crate) type Rule = Vec<Expressions>;

/// What a set or map holds; numbers are nft's type ids, kept so that `nft list` prints it well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetPlan {
    pub(crate) name: &'static str,
    pub(crate) key_type: u32,
    pub(crate) key_len: u32,
    /// Type and length of the data, for maps.
    pub(crate) data: Option<(u32, u32)>,
    pub(crate) interval: bool,
}

/// Adds the table; no error when it exists.
pub(crate) fn add_table() -> Step {
    let message = TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    };
    step(
        format!("add table {TABLE}"),
        NfTablesMessage::NewTable(message),
        NLM_F_CREATE,
    )
}

/// Deletes the table with everything in it.
pub(crate) fn delete_table() -> Step {
    let message = TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    };
    step(
        format!("delete table {TABLE}"),
        NfTablesMessage::DeleteTable(message),
        0,
    )
}

/// Adds a base chain.
pub(crate) fn add_chain(name: &str, kind: &str, hook: InetHookNumber, priority: i32) -> Step {
    let message = ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(name.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(hook)),
                Hook::Priority(priority.cast_unsigned()),
            ]),
            ChainAttribute::Type(kind.to_owned()),
        ],
    };
    step(
        format!("add {kind} chain {name}"),
        NfTablesMessage::NewChain(message),
        NLM_F_CREATE,
    )
}

/// Appends a rule to a chain.
pub(crate) fn add_rule(chain: &str, purpose: &str, rule: Rule) -> Step {
    let message = RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(rule.into_iter().map(ListAttribute::from).collect()),
            RuleAttribute::UserData(comment(purpose)),
        ],
    };
    let name = format!("add rule \"{purpose}\" to chain {chain}");
    step(
        name,
        NfTablesMessage::NewRule(message),
        NLM_F_CREATE | NLM_F_APPEND,
    )
}

/// Adds a set or map; `number` is its id within the batch.
pub(crate) fn add_set(plan: &SetPlan, number: u32) -> Step {
    let mut flags = SetFlags::empty();
    let mut attributes = vec![
        SetAttribute::Table(TABLE.to_owned()),
        SetAttribute::Name(plan.name.to_owned()),
        SetAttribute::KeyType(plan.key_type),
        SetAttribute::KeyLen(plan.key_len),
        SetAttribute::Id(number),
    ];
    if plan.interval {
        flags |= SetFlags::Interval;
    }
    if let Some((data_type, data_len)) = plan.data {
        flags |= SetFlags::Map;
        attributes.push(SetAttribute::DataType(data_type));
        attributes.push(SetAttribute::DataLen(data_len));
    }
    attributes.push(SetAttribute::Flags(flags));
    let message = NfTablesMessage::NewSet(SetMessage { attributes });
    step(format!("add set {}", plan.name), message, NLM_F_CREATE)
}

/// Adds the interval from `start` up to but without `end` to a set.
pub(crate) fn add_interval(set: &str, start: IpAddr, end: Option<IpAddr>) -> Step {
    let mut elements = vec![ListAttribute::Element(vec![key(octets(start))])];
    if let Some(end) = end {
        let flags = SetElementAttribute::Flags(SetElementFlags::IntervalEnd);
        elements.push(ListAttribute::Element(vec![key(octets(end)), flags]));
    }
    let message = NfTablesMessage::NewSetElement(element_list(set, Some(elements)));
    step(
        format!("add interval from {start} to set {set}"),
        message,
        NLM_F_CREATE,
    )
}

/// Adds a host port; an error when the key exists.
pub(crate) fn add_port(element: &PortElement) -> Step {
    let mut data = octets(element.target);
    push_port(&mut data, element.target_port);
    let attributes = vec![
        key(port_key(element)),
        SetElementAttribute::Data(DataAttribute::Value(data)),
        SetElementAttribute::UserData(comment(&element.owner)),
    ];
    let list = element_list(port_map(element), Some(vec![ListAttribute::Element(attributes)]));
    let name = format!("map {} port {}", element.protocol, element.host_port);
    step(
        name,
        NfTablesMessage::NewSetElement(list),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Removes a host port.
pub(crate) fn delete_port(element: &PortElement) -> Step {
    let attributes = vec![key(port_key(element))];
    let list = element_list(port_map(element), Some(vec![ListAttribute::Element(attributes)]));
    let name = format!("unmap {} port {}", element.protocol, element.host_port);
    step(name, NfTablesMessage::DeleteSetElement(list), 0)
}

/// Sends `steps` as one transaction: all of it happens or nothing.
pub(crate) fn commit(socket: &mut Socket<NetfilterMessage>, steps: &[Step]) -> Result<(), Error> {
    let mut requests = vec![Request::silent(control(ControlMessage::BatchBegin))];
    let inet = |message: &NfTablesMessage| {
        NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0),
            message.clone(),
        )
    };
    requests.extend(
        steps
            .iter()
            .map(|step| Request::new(inet(&step.message), step.flags)),
    );
    requests.push(Request::silent(control(ControlMessage::BatchEnd)));
    let outcomes = socket.batch(requests).map_err(|source| Error::Exchange {
        what: "an nftables batch",
        source,
    })?;
    let last = outcomes.len() - 1;
    let mut first_failure = None;
    for (position, outcome) in outcomes.into_iter().enumerate() {
        let Err(source) = outcome.result else { continue };
        let whole = position == 0 || position == last;
        if whole || first_failure.is_none() {
            let step = if whole {
                "start or commit a batch".to_owned()
            } else {
                steps[position - 1].name.clone()
            };
            first_failure = Some(Error::Nft { step, source });
        }
        if position == 0 {
            break;
        }
    }
    first_failure.map_or(Ok(()), Err)
}

/// Asks for the table; ENOENT when there is none.
pub(crate) fn find_table(socket: &mut Socket<NetfilterMessage>) -> io::Result<()> {
    let message = TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    };
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let message = NetfilterMessage::new(header, NfTablesMessage::GetTable(message));
    socket
        .batch(vec![Request::new(message, 0)])?
        .into_iter()
        .try_for_each(|outcome| outcome.result)
}

/// The error number of a refused batch.
pub(crate) fn refusal(error: &Error) -> Option<rustix::io::Errno> {
    match error {
        Error::Nft { source, .. } => rustix::io::Errno::from_io_error(source),
        _ => None,
    }
}

fn control(message: ControlMessage) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
    NetfilterMessage::new(header, message)
}

fn step(name: String, message: NfTablesMessage, flags: u16) -> Step {
    Step { name, message, flags }
}

fn element_list(set: &str, elements: Option<Vec<ListAttribute<SetElementAttribute>>>) -> SetElementMessage {
    let mut attributes = vec![
        SetElementList::Table(TABLE.to_owned()),
        SetElementList::Set(set.to_owned()),
    ];
    attributes.extend(elements.map(SetElementList::Elements));
    SetElementMessage { attributes }
}

fn key(bytes: Vec<u8>) -> SetElementAttribute {
    SetElementAttribute::Key(DataAttribute::Value(bytes))
}

fn port_map(element: &PortElement) -> &'static str {
    match (element.host_ip.is_some(), element.target.is_ipv4()) {
        (false, true) => "ports4",
        (false, false) => "ports6",
        (true, true) => "bound4",
        (true, false) => "bound6",
    }
}

fn port_key(element: &PortElement) -> Vec<u8> {
    let mut key = element.host_ip.map(octets).unwrap_or_default();
    key.extend([element.protocol.number(), 0, 0, 0]);
    push_port(&mut key, element.host_port);
    key
}

/// Parts of a concatenation take whole 32-bit registers.
fn push_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// User data in nft's format: type 0 is a comment, a C string of at most 128 bytes.
fn comment(text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().filter(|byte| *byte != 0).take(127).collect();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![0, length];
    data.extend(text);
    data.push(0);
    data
}

/// Expressions, as functions named like nft prints them.
pub(crate) mod expr {
    use super::{
        Bitwise, Cmp, DataAttribute, DefaultNla, Expressions, Immediate, Lookup, Meta, MetaKey, Operator,
        Payload, Register, Verdict, VerdictAttribute,
    };

    const NF_DROP: u32 = 0;
    const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
    const NFT_NAT_DNAT: u32 = 1;
    const NFTA_FIB_F_DADDR: u32 = 1 << 1;
    const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
    const NFT_LOOKUP_F_INV: u32 = 1;
    const RTN_LOCAL: u32 = 2;
    const IPS_DST_NAT: u32 = 1 << 5;
    const IP_CT_DIR_ORIGINAL: u8 = 0;

    /// Bases of payload offsets.
    pub(crate) const NETWORK: u32 = 1;
    pub(crate) const TRANSPORT: u32 = 2;

    /// Connection tracking keys.
    pub(crate) const CT_STATUS: u32 = 2;
    pub(crate) const CT_PROTO_DST: u32 = 12;
    pub(crate) const CT_DST_IP: u32 = 20;
    pub(crate) const CT_DST_IP6: u32 = 22;

    pub(crate) fn payload(base: u32, offset: u32, len: u32, to: Register) -> Expressions {
        Expressions::Payload(vec![
            Payload::DestinationRegister(to),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(len),
        ])
    }

    pub(crate) fn meta(key: MetaKey, to: Register) -> Expressions {
        Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(to)])
    }

    pub(crate) fn cmp(op: Operator, register: Register, data: &[u8]) -> Expressions {
        Expressions::Cmp(vec![
            Cmp::SourceRegister(register),
            Cmp::Op(op),
            Cmp::Data(DataAttribute::Value(data.to_vec())),
        ])
    }

    pub(crate) fn mask(register: Register, mask: &[u8]) -> Expressions {
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(register),
            Bitwise::DestinationRegister(register),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        ])
    }

    pub(crate) fn in_set(register: Register, set: &str) -> Expressions {
        Expressions::Lookup(vec![
            Lookup::Set(set.to_owned()),
            Lookup::SourceRegister(register),
        ])
    }

    pub(crate) fn not_in_set(register: Register, set: &str) -> Expressions {
        Expressions::Lookup(vec![
            Lookup::Set(set.to_owned()),
            Lookup::SourceRegister(register),
            Lookup::Flags(NFT_LOOKUP_F_INV),
        ])
    }

    pub(crate) fn map(register: Register, map: &str, to: Register) -> Expressions {
        Expressions::Lookup(vec![
            Lookup::Set(map.to_owned()),
            Lookup::SourceRegister(register),
            Lookup::DestinationRegister(to),
        ])
    }

    pub(crate) fn drop() -> Expressions {
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
                Verdict::Other(NF_DROP),
            )])),
        ])
    }

    /// Matches the family of the packet in an `inet` table.
    pub(crate) fn family(nfproto: u8) -> [Expressions; 2] {
        let register = Register::Reg32_00;
        [
            meta(MetaKey::Nfproto, register),
            cmp(Operator::Equal, register, &[nfproto]),
        ]
    }

    /// Matches packets to an address of this host.
    pub(crate) fn to_this_host() -> [Expressions; 2] {
        let register = Register::Reg32_00;
        let fib = other(
            "fib",
            [
                (1, u32::from(register)),
                (2, NFT_FIB_RESULT_ADDRTYPE),
                (3, NFTA_FIB_F_DADDR),
            ],
        );
        [fib, cmp(Operator::Equal, register, &RTN_LOCAL.to_ne_bytes())]
    }

    /// Matches packets of connections whose destination was translated.
    pub(crate) fn was_dnatted() -> [Expressions; 3] {
        let register = Register::Reg32_00;
        [
            other("ct", [(1, u32::from(register)), (2, CT_STATUS)]),
            mask(register, &IPS_DST_NAT.to_ne_bytes()),
            cmp(Operator::NotEqual, register, &[0; 4]),
        ]
    }

    /// Loads a key of the connection's original direction.
    pub(crate) fn ct_original(key: u32, to: Register) -> Expressions {
        let mut attributes = words([(1, u32::from(to)), (2, key)]);
        attributes.push(DefaultNla::new(3, vec![IP_CT_DIR_ORIGINAL]));
        Expressions::Other {
            expression_type: "ct".to_owned(),
            attributes,
        }
    }

    pub(crate) fn dnat(nfproto: u8, address: Register, port: Register) -> Expressions {
        other(
            "nat",
            [
                (1, NFT_NAT_DNAT),
                (2, u32::from(nfproto)),
                (3, u32::from(address)),
                (5, u32::from(port)),
            ],
        )
    }

    /// Masquerade with random ports: sequential ones collide under load.
    pub(crate) fn masquerade() -> Expressions {
        other("masq", [(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY)])
    }

    fn other<const N: usize>(name: &str, attributes: [(u16, u32); N]) -> Expressions {
        Expressions::Other {
            expression_type: name.to_owned(),
            attributes: words(attributes),
        }
    }

    fn words<const N: usize>(attributes: [(u16, u32); N]) -> Vec<DefaultNla> {
        attributes
            .into_iter()
            .map(|(kind, value)| DefaultNla::new(kind, value.to_be_bytes().to_vec()))
            .collect()
    }
}

/// Opens the socket batches are sent through.
pub(crate) fn open() -> io::Result<Socket<NetfilterMessage>> {
    Socket::open(crate::netlink::NETFILTER)
}
