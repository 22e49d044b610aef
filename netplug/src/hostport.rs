//! Host ports: who has which, and the map elements that make them work.
//!
//! Owns: the port mapping type, conflicts between pods, and the translation of a mapping into elements of the
//! table's four maps. Never: talks to the kernel (`nft` does).

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::address::InterfaceAddress;
use crate::error::Error;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub container_port: u16,
    /// The port of the host.
    pub host_port: u16,
    /// The host's address it is bound to; `None`, `0.0.0.0` and `::` mean every address (of both families,
    /// of IPv4, of IPv6).
    pub host_ip: Option<IpAddr>,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}/{}", self.host_port, self.protocol),
            Some(ip) => write!(f, "{ip}:{}/{}", self.host_port, self.protocol),
            None => write!(f, "{}/{}", self.host_port, self.protocol),
        }
    }
}

/// Which addresses of the host a mapping answers on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Every,
    EveryV4,
    EveryV6,
    One(IpAddr),
}

impl Scope {
    fn of(mapping: &PortMapping) -> Self {
        match mapping.host_ip {
            None => Self::Every,
            Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Self::EveryV4,
            Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Self::EveryV6,
            Some(address) => Self::One(address),
        }
    }

    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Every, _) | (_, Self::Every) => true,
            (Self::One(a), Self::One(b)) => a == b,
            (Self::EveryV4, other) | (other, Self::EveryV4) => other.serves(true),
            (Self::EveryV6, other) | (other, Self::EveryV6) => other.serves(false),
        }
    }

    fn serves(self, ipv4: bool) -> bool {
        match self {
            Self::Every => true,
            Self::EveryV4 => ipv4,
            Self::EveryV6 => !ipv4,
            Self::One(address) => address.is_ipv4() == ipv4,
        }
    }
}

/// One element of one of the maps: where packets to this port are sent instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortElement {
    /// The host address, for elements of the bound maps.
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) protocol: Protocol,
    pub(crate) host_port: u16,
    /// The pod's address; its family chooses the map.
    pub(crate) target: IpAddr,
    pub(crate) target_port: u16,
    /// The pod, kept as the element's comment.
    pub(crate) owner: String,
}

/// The elements that map `ports` to a pod with `addresses`.
pub(crate) fn elements(id: &str, ports: &[PortMapping], addresses: &[InterfaceAddress]) -> Vec<PortElement> {
    let mut elements = Vec::new();
    for mapping in ports {
        let scope = Scope::of(mapping);
        for target in addresses.iter().map(|address| address.address) {
            if !scope.serves(target.is_ipv4()) {
                continue;
            }
            let host_ip = if let Scope::One(address) = scope {
                Some(address)
            } else {
                None
            };
            elements.push(PortElement {
                host_ip,
                protocol: mapping.protocol,
                host_port: mapping.host_port,
                target,
                target_port: mapping.container_port,
                owner: id.to_owned(),
            });
        }
    }
    elements
}

/// Whether a mapping answers on the IPv4 loopback, which needs `route_localnet` on the bridge.
pub(crate) fn answers_on_loopback(mapping: &PortMapping) -> bool {
    match Scope::of(mapping) {
        Scope::Every | Scope::EveryV4 => true,
        Scope::One(IpAddr::V4(address)) => address.is_loopback(),
        Scope::EveryV6 | Scope::One(IpAddr::V6(_)) => false,
    }
}

/// All host ports in use.
#[derive(Debug, Default)]
pub(crate) struct PortRegistry {
    taken: HashMap<(Protocol, u16), Vec<(Scope, String)>>,
}

impl PortRegistry {
    /// Claims all `ports` for pod `id`, or none.
    pub(crate) fn claim(&mut self, id: &str, ports: &[PortMapping]) -> Result<(), Error> {
        for (position, port) in ports.iter().enumerate() {
            let refuse = |reason| Error::PortInvalid { port: *port, reason };
            if port.host_port == 0 || port.container_port == 0 {
                return Err(refuse("ports start at 1"));
            }
            if port.host_ip.is_some_and(|ip| ip.is_ipv6() && ip.is_loopback()) {
                return Err(refuse("the kernel cannot translate connections to ::1"));
            }
            let scope = Scope::of(port);
            let twin = |other: &&PortMapping| {
                (other.protocol, other.host_port) == (port.protocol, port.host_port)
                    && Scope::of(other).overlaps(scope)
            };
            if ports[..position].iter().any(|other| twin(&other)) {
                return Err(refuse("the pod maps this host port twice"));
            }
            let holders = self
                .taken
                .get(&(port.protocol, port.host_port))
                .into_iter()
                .flatten();
            if let Some((_, owner)) = holders.into_iter().find(|(taken, _)| taken.overlaps(scope)) {
                return Err(Error::PortConflict {
                    port: *port,
                    owner: owner.clone(),
                });
            }
        }
        for port in ports {
            let holders = self.taken.entry((port.protocol, port.host_port)).or_default();
            holders.push((Scope::of(port), id.to_owned()));
        }
        Ok(())
    }

    /// Gives back all ports of pod `id` among `ports`; whether there were any.
    pub(crate) fn release(&mut self, id: &str, ports: &[PortMapping]) -> bool {
        let mut any = false;
        for port in ports {
            let key = (port.protocol, port.host_port);
            let Some(holders) = self.taken.get_mut(&key) else {
                continue;
            };
            let before = holders.len();
            holders.retain(|(scope, owner)| owner != id || *scope != Scope::of(port));
            any |= holders.len() != before;
            if holders.is_empty() {
                self.taken.remove(&key);
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(protocol: Protocol, host_port: u16, host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping {
            protocol,
            container_port: 8080,
            host_port,
            host_ip,
        }
    }

    #[test]
    fn conflicts_name_the_owner_and_claim_nothing() {
        use Protocol::{Tcp, Udp};
        let cases = [
            (port(Tcp, 80, None), port(Tcp, 80, None), true),
            (port(Tcp, 80, None), port(Udp, 80, None), false),
            (port(Tcp, 80, None), port(Tcp, 81, None), false),
            (
                port(Tcp, 80, Some("10.0.0.1")),
                port(Tcp, 80, Some("10.0.0.2")),
                false,
            ),
            (
                port(Tcp, 80, Some("10.0.0.1")),
                port(Tcp, 80, Some("10.0.0.1")),
                true,
            ),
            (
                port(Tcp, 80, Some("0.0.0.0")),
                port(Tcp, 80, Some("10.0.0.1")),
                true,
            ),
            (port(Tcp, 80, Some("0.0.0.0")), port(Tcp, 80, Some("::")), false),
            (port(Tcp, 80, Some("::")), port(Tcp, 80, Some("fd00::5")), true),
            (port(Tcp, 80, None), port(Tcp, 80, Some("127.0.0.1")), true),
        ];
        for (first, second, conflict) in cases {
            let mut registry = PortRegistry::default();
            registry.claim("one", &[first]).unwrap();
            let free = port(Tcp, 9999, None);
            match registry.claim("two", &[free, second]) {
                Ok(()) => assert!(!conflict, "{first} and {second}"),
                Err(Error::PortConflict { owner, .. }) => {
                    assert!(conflict, "{first} and {second}");
                    assert_eq!(owner, "one");
                    registry.claim("three", &[free]).unwrap();
                }
                Err(other) => panic!("{other}"),
            }
            assert!(registry.release("one", &[first]));
            assert!(!registry.release("one", &[first]));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut registry = PortRegistry::default();
        let twice = [
            port(Protocol::Tcp, 80, None),
            port(Protocol::Tcp, 80, Some("10.0.0.1")),
        ];
        assert!(matches!(
            registry.claim("a", &twice),
            Err(Error::PortInvalid { .. })
        ));
        let zero = [port(Protocol::Tcp, 0, None)];
        assert!(matches!(
            registry.claim("a", &zero),
            Err(Error::PortInvalid { .. })
        ));
        let loopback = [port(Protocol::Tcp, 80, Some("::1"))];
        assert!(matches!(
            registry.claim("a", &loopback),
            Err(Error::PortInvalid { .. })
        ));
    }

    #[test]
    fn elements_follow_the_families() {
        let addresses = ["10.88.0.2/16".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        let count = |ip| elements("a", &[port(Protocol::Tcp, 80, ip)], &addresses).len();
        assert_eq!(count(None), 2);
        assert_eq!(count(Some("0.0.0.0")), 1);
        assert_eq!(count(Some("fd00::77")), 1);
        let bound = elements("a", &[port(Protocol::Tcp, 80, Some("192.0.2.1"))], &addresses);
        assert_eq!(bound[0].host_ip, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(bound[0].target.to_string(), "10.88.0.2");
    }

    #[test]
    fn only_ipv4_loopback_needs_route_localnet() {
        for (ip, expected) in [
            (None, true),
            (Some("0.0.0.0"), true),
            (Some("127.0.0.5"), true),
            (Some("::"), false),
            (Some("1.2.3.4"), false),
        ] {
            assert_eq!(answers_on_loopback(&port(Protocol::Tcp, 80, ip)), expected);
        }
    }
}
