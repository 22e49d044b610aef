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
//! By `cargo test --release --test lifecycle how_long -- --nocapture`, IPv4 and IPv6, two busy cores, Linux 6.18:
//!
//! | what                                        | median  | p95     |
//! |---------------------------------------------|---------|---------|
//! | `ensure_host`, first time                   | 3 ms    |         |
//! | `attach` without ports                      | 0.7 ms  | 1.1 ms  |
//! | `attach` with a host port                   | 0.8 ms  | 1.3 ms  |
//! | `detach` without ports                      | 3 us    | 18 us   |
//! | `detach` with a host port                   | 70 us   | 125 us  |
//! | 200 attaches, ten at a time, all together   | 0.2 s   |         |
//! | 200 namespaces closed, all addresses free   | 0.12 s  |         |

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
