//! Subnets, interface addresses and MAC addresses as validated values.
//!
//! Owns: parsing, printing, and the arithmetic that turns a host number into an address.
//! Never: asks the kernel anything, or decides which address a pod gets (`ipam`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not an address, subnet or MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct ParseError {
    text: String,
    wanted: &'static str,
}

impl ParseError {
    fn new(text: &str, wanted: &'static str) -> Self {
        Self {
            text: text.to_owned(),
            wanted,
        }
    }
}

/// A network with room for a gateway and at least one pod; host bits are zero.
///
/// Host number 1 is the gateway; pods get the numbers from 2 upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The network that contains `address`; refused when it has no room for a pod.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, ParseError> {
        let longest = if address.is_ipv4() { 30 } else { 126 };
        if prefix == 0 || prefix > longest {
            return Err(ParseError::new(
                &format!("{address}/{prefix}"),
                "a subnet with room for pods",
            ));
        }
        Ok(Self {
            network: mask(address, prefix),
            prefix,
        })
    }

    /// The first address, with all host bits zero.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// The number of leading network bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether this is an IPv4 subnet.
    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    /// Whether `address` lies in this subnet.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && mask(address, self.prefix) == self.network
    }

    /// The address of the bridge in this subnet: host number 1.
    pub fn gateway(&self) -> IpAddr {
        self.host(1)
    }

    /// The highest host number a pod may have (the one below broadcast).
    pub fn last_host(&self) -> u32 {
        let bits = u32::from(if self.is_ipv4() {
            32 - self.prefix
        } else {
            128 - self.prefix
        });
        u32::MAX
            .checked_shr(32_u32.saturating_sub(bits))
            .unwrap_or(u32::MAX)
            - 1
    }

    /// The address with host number `number`, which must be at most [`Self::last_host`] + 1.
    pub fn host(&self, number: u32) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | number)),
            IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() | u128::from(number))),
        }
    }

    /// The host number of `address`, when it lies in this subnet and the number fits 32 bits.
    pub fn number(&self, address: IpAddr) -> Option<u32> {
        if !self.contains(address) {
            return None;
        }
        match (address, self.network) {
            (IpAddr::V4(address), IpAddr::V4(network)) => Some(address.to_bits() ^ network.to_bits()),
            (IpAddr::V6(address), IpAddr::V6(network)) => {
                u32::try_from(address.to_bits() ^ network.to_bits()).ok()
            }
            _ => None,
        }
    }

    /// The first address behind this subnet, or `None` when it ends the address space.
    pub(crate) fn end(&self) -> Option<IpAddr> {
        match self.network {
            IpAddr::V4(network) => network
                .to_bits()
                .checked_add(1 << (32 - self.prefix))
                .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
            IpAddr::V6(network) => network
                .to_bits()
                .checked_add(1 << (128 - self.prefix))
                .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        }
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

/// An address of an interface with the prefix length of its network: `10.88.0.2/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// The number of leading network bits.
    pub prefix: u8,
}

/// A hardware address, printed as `0e:70:0a:58:00:02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A locally administered unicast address derived from `address`, so that a pod which inherits an
    /// address inherits the MAC address too and no neighbour cache goes stale.
    pub fn derived(address: IpAddr) -> Self {
        let [a, b, c, d] = match address {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => {
                let octets = v6.octets();
                [octets[12], octets[13], octets[14], octets[15]]
            }
        };
        Self([0x0e, if address.is_ipv4() { 0x70 } else { 0x76 }, a, b, c, d])
    }
}

fn split<'a>(text: &'a str, wanted: &'static str) -> Result<(IpAddr, u8, &'a str), ParseError> {
    let refuse = || ParseError::new(text, wanted);
    let (address, prefix) = text.trim().split_once('/').ok_or_else(refuse)?;
    let address: IpAddr = address.parse().map_err(|_| refuse())?;
    let prefix: u8 = prefix.parse().map_err(|_| refuse())?;
    if prefix > if address.is_ipv4() { 32 } else { 128 } {
        return Err(refuse());
    }
    Ok((address, prefix, text))
}

impl FromStr for Subnet {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (address, prefix, text) = split(text, "a subnet such as 10.88.0.0/16")?;
        Self::new(address, prefix).map_err(|_| ParseError::new(text, "a subnet with room for pods"))
    }
}

impl FromStr for InterfaceAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (address, prefix, _) = split(text, "an address such as 10.88.0.2/16")?;
        Ok(Self { address, prefix })
    }
}

impl FromStr for MacAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || ParseError::new(text, "a MAC address");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .ok_or_else(refuse)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() {
            Err(refuse())
        } else {
            Ok(Self(octets))
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

macro_rules! string_serde {
    ($($kind:ty),*) => {$(
        impl TryFrom<String> for $kind {
            type Error = ParseError;

            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.to_string()
            }
        }
    )*};
}

string_serde!(Subnet, InterfaceAddress, MacAddress);

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn host_bits_are_cleared_and_numbers_round_trip() {
        for (text, canonical, gateway, last) in [
            ("10.88.3.4/16", "10.88.0.0/16", "10.88.0.1", 65534),
            ("10.1.2.64/30", "10.1.2.64/30", "10.1.2.65", 2),
            ("192.168.5.9/24", "192.168.5.0/24", "192.168.5.1", 254),
            ("fd00:1::5/64", "fd00:1::/64", "fd00:1::1", u32::MAX - 1),
            ("fd00::40/122", "fd00::40/122", "fd00::41", 62),
        ] {
            let subnet = subnet(text);
            assert_eq!(subnet.to_string(), canonical);
            assert_eq!(subnet.gateway().to_string(), gateway);
            assert_eq!(subnet.last_host(), last, "{text}");
            assert_eq!(subnet.number(subnet.host(last)), Some(last));
            assert!(subnet.contains(subnet.host(last)));
        }
    }

    #[test]
    fn subnets_without_room_and_nonsense_are_refused() {
        for text in [
            "10.0.0.0/31",
            "10.0.0.1/32",
            "10.0.0.0/33",
            "0.0.0.0/0",
            "fd00::/127",
            "10.0.0.0",
            "x/8",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_end_is_the_next_network() {
        assert_eq!(subnet("10.88.0.0/16").end(), Some("10.89.0.0".parse().unwrap()));
        assert_eq!(subnet("255.255.0.0/16").end(), None);
        assert_eq!(subnet("fd00::/64").end(), Some("fd00:0:0:1::".parse().unwrap()));
    }

    #[test]
    fn mac_addresses_are_local_unicast_and_round_trip() {
        let mac = MacAddress::derived("10.88.0.2".parse().unwrap());
        assert_eq!(mac.to_string(), "0e:70:0a:58:00:02");
        assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
        assert_eq!(mac.0[0] & 3, 2);
        for text in ["", "0e:70", "0e:70:0a:58:00:02:03", "0e:70:0a:58:00:+2"] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
