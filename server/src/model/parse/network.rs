//! Host ports and name resolution.

use std::net::{IpAddr, Ipv6Addr};

use podd_proto::v1;

use super::{At, given};
use crate::model::{DnsConfig, PortMapping, Protocol, Refused};

/// Longest word of a resolv.conf line.
const WORD_MAX: usize = 255;

pub(super) fn ports(at: &At<'_>, mappings: &[v1::PortMapping]) -> Result<Vec<PortMapping>, Refused> {
    mappings
        .iter()
        .enumerate()
        .map(|(n, mapping)| port(&at.index(n), mapping))
        .collect()
}

fn port(at: &At<'_>, mapping: &v1::PortMapping) -> Result<PortMapping, Refused> {
    let number = |name, value: i32| match u16::try_from(value) {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => Err(at
            .field(name)
            .invalid(format!("{value} is not a port, 1 to 65535 (0 means none)"))),
    };
    let protocol = match at.field("protocol").choice(mapping.protocol)? {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
        v1::Protocol::Sctp => Protocol::Sctp,
    };
    let container_port = number("container_port", mapping.container_port)?;
    let host_port = number("host_port", mapping.host_port)?;
    if host_port.is_some() && container_port.is_none() {
        return Err(at
            .field("container_port")
            .invalid("is missing, and there is a host port"));
    }
    let ip = |text: &str| {
        text.parse::<IpAddr>().map_err(|_| {
            at.field("host_ip")
                .invalid(format!("{text:?} is not an IP address"))
        })
    };
    let host_ip = given(&mapping.host_ip).map(ip).transpose()?;
    Ok(PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip,
    })
}

pub(super) fn dns(at: &At<'_>, dns: &v1::DnsConfig) -> Result<DnsConfig, Refused> {
    let list = |name, words: &[String], check: fn(&At<'_>, &str) -> Result<String, Refused>| {
        let at = at.field(name);
        words
            .iter()
            .enumerate()
            .map(|(n, text)| check(&at.index(n), text))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(DnsConfig {
        servers: list("servers", &dns.servers, server)?,
        searches: list("searches", &dns.searches, word)?,
        options: list("options", &dns.options, word)?,
    })
}

/// An address; an IPv6 one may say on which link it is (`fe80::1%eth0`, RFC 4007).
fn server(at: &At<'_>, text: &str) -> Result<String, Refused> {
    let valid = match text.split_once('%') {
        None => text.parse::<IpAddr>().is_ok(),
        Some((ip, zone)) => {
            ip.parse::<Ipv6Addr>().is_ok()
                && !zone.is_empty()
                && zone.len() < 16
                && zone
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        }
    };
    if valid {
        Ok(text.to_owned())
    } else {
        Err(at.invalid(format!("{text:?} is not an IP address")))
    }
}

/// One word of a line: a line break in it would make a line of its own.
fn word(at: &At<'_>, text: &str) -> Result<String, Refused> {
    if text.is_empty()
        || text.len() > WORD_MAX
        || text.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return Err(at.invalid(format!("{text:?} is not one word of at most {WORD_MAX} bytes")));
    }
    Ok(text.to_owned())
}
