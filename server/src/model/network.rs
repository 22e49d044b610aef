//! What a pod asks of the network: host ports and name resolution.

use std::net::IpAddr;

/// Transport protocol of a host port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the pod that the request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod; `None` only when there is no host port either.
    pub container_port: Option<u16>,
    /// Port on the node; `None` means that none is wanted, never that podd may choose one.
    pub host_port: Option<u16>,
    /// Address of the node to bind; `None` means all. An unspecified address (`0.0.0.0`, `::`) is kept.
    pub host_ip: Option<IpAddr>,
}

/// Content of the pod's resolv.conf. Each word is free of white space and control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Addresses for the `nameserver` lines; an IPv6 address may carry a zone.
    pub servers: Vec<String>,
    /// Domains for the `search` line.
    pub searches: Vec<String>,
    /// Words for the `options` line.
    pub options: Vec<String>,
}
