//! Pod networks of podd: a bridge on the host, a veth pair per pod created directly inside the pod's network
//! namespace, IPv4 and IPv6 addresses, and masquerade and host ports in podd's own nftables table.
//!
//! Everything is done by netlink from this process; no `ip`, `nft` or `iptables` is ever started. This crate
//! knows no CRI types and nothing of pods but an opaque id.
//!
//! Order of calls: [`Network::open`], then [`Network::reconcile`] with the attachments of live pods, then any
//! number of [`Network::attach`] and [`Network::detach`].
//!
//! Read in this order: `network` (the handle and what it does), `attach`, `veth`, `state` (the life of an
//! address), `ruleset` (the nftables table), `hostport`, `conntrack`.
//!
//! # Measured
//!
//! FIGURES

mod address;
mod attach;
mod bridge;
mod conntrack;
mod error;
mod hostport;
mod ipam;
mod monitor;
mod netlink;
mod netns;
mod network;
mod nft;
mod reconcile;
mod route;
mod ruleset;
mod state;
mod sysctl;
mod table;
mod veth;

pub use address::{InterfaceAddress, MacAddress, ParseError, Subnet};
pub use error::{Error, ErrorKind};
pub use hostport::{PortMapping, Protocol};
pub use netns::enter;
pub use network::{AttachRequest, Attachment, NetConfig, Network, NetworkStatus};
pub use reconcile::Reconciled;
pub use veth::loopback_up;
