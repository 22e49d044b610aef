//! Stale connection tracking entries of UDP host ports.
//!
//! Owns: finding and deleting them. Never: touches TCP or SCTP, whose connections end by themselves.
//!
//! UDP "connections" live as long as packets flow. An entry made before a host port existed keeps bypassing it;
//! one made for a pod that is gone keeps sending packets to its old address.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as CtProtocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rustix::io::Errno;

use crate::error::Error;
use crate::hostport::{PortElement, Protocol};
use crate::netlink::{Request, Socket};
use crate::veth::is;

const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// Compare protocol and destination port of the original direction.
const FILTER_PROTOCOL_AND_DESTINATION_PORT: u32 = 1 << 3 | 1 << 5;

/// Which entries of a host port are stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stale<'a> {
    /// The port was just mapped: entries to one of the host's own addresses (given) that go elsewhere.
    Mapped(&'a HashSet<IpAddr>),
    /// The port was just unmapped: entries that lead to the pod.
    Unmapped,
}

/// Deletes the stale entries of all UDP `elements`; returns how many.
pub(crate) fn flush(
    socket: &mut Socket<NetfilterMessage>,
    id: &str,
    elements: &[PortElement],
    stale: Stale<'_>,
) -> Result<usize, Error> {
    let failed = |source| Error::Conntrack {
        id: id.to_owned(),
        source,
    };
    let mut deleted = 0;
    for element in elements
        .iter()
        .filter(|element| element.protocol == Protocol::Udp)
    {
        let family = family(element.target);
        let doomed = find(socket, family, element, stale).map_err(failed)?;
        for tuple in doomed {
            let message = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(tuple)]);
            for outcome in socket
                .batch(vec![Request::new(wrap(family, message), 0)])
                .map_err(failed)?
            {
                match outcome.result {
                    Ok(()) => deleted += 1,
                    Err(error) if is(&error, Errno::NOENT) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
    }
    Ok(deleted)
}

/// The original tuples of the stale entries of one port.
fn find(
    socket: &mut Socket<NetfilterMessage>,
    family: NetfilterProtoFamily,
    element: &PortElement,
    stale: Stale<'_>,
) -> io::Result<Vec<Vec<Tuple>>> {
    let mut doomed = Vec::new();
    let mut collect = |message: NetfilterMessage| {
        if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner
            && let Some(entry) = Entry::new(&attributes)
            && entry.is_stale(element, stale)
        {
            doomed.push(entry.original_tuple);
        }
    };
    let filtered = ConntrackMessage::Get(vec![
        ConntrackAttribute::CtaTupleOrig(vec![Tuple::Proto(vec![
            ProtoTuple::Protocol(CtProtocol::Udp),
            ProtoTuple::DestinationPort(element.host_port),
        ])]),
        ConntrackAttribute::Other(DefaultNla::new(CTA_FILTER | NLA_F_NESTED, filter_flags())),
    ]);
    match socket.dump(wrap(family, filtered), &mut collect) {
        // A kernel that cannot filter: look at everything.
        Err(error) if is(&error, Errno::INVAL) || is(&error, Errno::OPNOTSUPP) => {
            socket.dump(wrap(family, ConntrackMessage::Get(Vec::new())), &mut collect)?;
        }
        other => other?,
    }
    Ok(doomed)
}

/// The nested attribute CTA_FILTER_ORIG_FLAGS in host byte order.
fn filter_flags() -> Vec<u8> {
    let mut bytes = 8_u16.to_ne_bytes().to_vec();
    bytes.extend(CTA_FILTER_ORIG_FLAGS.to_ne_bytes());
    bytes.extend(FILTER_PROTOCOL_AND_DESTINATION_PORT.to_ne_bytes());
    bytes
}

/// What is read of an entry.
struct Entry {
    original_tuple: Vec<Tuple>,
    destination: IpAddr,
    port: u16,
    answers_from: IpAddr,
}

impl Entry {
    fn new(attributes: &[ConntrackAttribute]) -> Option<Self> {
        let original = attributes.iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
            _ => None,
        })?;
        let reply = attributes.iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaTupleReply(tuple) => Some(tuple),
            _ => None,
        })?;
        let destination = addresses(original).find_map(|part| match part {
            IPTuple::DestinationAddress(address) => Some(*address),
            _ => None,
        })?;
        let answers_from = addresses(reply).find_map(|part| match part {
            IPTuple::SourceAddress(address) => Some(*address),
            _ => None,
        })?;
        let mut is_udp = false;
        let mut port = None;
        for part in original.iter().flat_map(|tuple| {
            if let Tuple::Proto(parts) = tuple {
                &parts[..]
            } else {
                &[]
            }
        }) {
            match part {
                ProtoTuple::Protocol(protocol) => is_udp = *protocol == CtProtocol::Udp,
                ProtoTuple::DestinationPort(number) => port = Some(*number),
                _ => {}
            }
        }
        let port = port.filter(|_| is_udp)?;
        Some(Self {
            original_tuple: original.clone(),
            destination,
            port,
            answers_from,
        })
    }

    fn is_stale(&self, element: &PortElement, stale: Stale<'_>) -> bool {
        if self.port != element.host_port || element.host_ip.is_some_and(|ip| ip != self.destination) {
            return false;
        }
        match stale {
            Stale::Mapped(local) => {
                let to_host = local.contains(&self.destination) || self.destination.is_loopback();
                to_host && self.answers_from != element.target
            }
            Stale::Unmapped => self.answers_from == element.target,
        }
    }
}

fn addresses(tuple: &[Tuple]) -> impl Iterator<Item = &IPTuple> {
    tuple.iter().flat_map(|part| {
        if let Tuple::Ip(parts) = part {
            &parts[..]
        } else {
            &[]
        }
    })
}

fn family(address: IpAddr) -> NetfilterProtoFamily {
    if address.is_ipv4() {
        NetfilterProtoFamily::IPv4
    } else {
        NetfilterProtoFamily::IPv6
    }
}

fn wrap(family: NetfilterProtoFamily, message: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(destination: &str, port: u16, answers_from: &str) -> Entry {
        Entry {
            original_tuple: Vec::new(),
            destination: destination.parse().unwrap(),
            port,
            answers_from: answers_from.parse().unwrap(),
        }
    }

    #[test]
    fn only_entries_of_the_port_are_stale() {
        let local = HashSet::from(["192.0.2.1".parse().unwrap()]);
        let element = PortElement {
            host_ip: None,
            protocol: Protocol::Udp,
            host_port: 53,
            target: "10.88.0.2".parse().unwrap(),
            target_port: 5353,
            owner: "a".into(),
        };
        let mapped = Stale::Mapped(&local);
        for (entry, on_map, on_unmap) in [
            (entry("192.0.2.1", 53, "192.0.2.1"), true, false),
            (entry("192.0.2.1", 53, "10.88.0.9"), true, false),
            (entry("192.0.2.1", 53, "10.88.0.2"), false, true),
            (entry("127.0.0.1", 53, "127.0.0.1"), true, false),
            (entry("8.8.8.8", 53, "8.8.8.8"), false, false),
            (entry("192.0.2.1", 54, "192.0.2.1"), false, false),
        ] {
            assert_eq!(entry.is_stale(&element, mapped), on_map);
            assert_eq!(entry.is_stale(&element, Stale::Unmapped), on_unmap);
        }
    }
}
