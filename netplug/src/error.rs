//! The one error type of this crate.
//!
//! Owns: a variant per operation with its subject and source, and the coarse kind a caller maps to a
//! status code. Never: decides whether to retry or log.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::address::{InterfaceAddress, Subnet};
use crate::hostport::PortMapping;

/// What went wrong, by operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used.
    #[error("network configuration: {reason}")]
    Config {
        /// What is wrong with it.
        reason: String,
    },
    /// No pod subnet is known yet.
    #[error("the pod network has no pod CIDR yet")]
    NotReady,
    /// Every address of the pod subnets is in use or waits for its old link to vanish.
    #[error("no free pod address in {}", list(subnets))]
    Exhausted {
        /// The subnets that are full.
        subnets: Vec<Subnet>,
    },
    /// The pod is attached already, or its last attachment is still being removed.
    #[error("pod {id} already has a network attachment")]
    AlreadyAttached {
        /// The pod.
        id: String,
    },
    /// An adopted attachment has an address that another one has too.
    #[error("address {address} of pod {id} belongs to pod {owner}")]
    AddressConflict {
        /// The address in question.
        address: IpAddr,
        /// The pod that was refused.
        id: String,
        /// The pod that has it.
        owner: String,
    },
    /// A host port is taken.
    #[error("host port {port} is in use by pod {owner}")]
    PortConflict {
        /// The refused mapping.
        port: PortMapping,
        /// The pod that has it.
        owner: String,
    },
    /// A port mapping cannot work.
    #[error("port mapping {port}: {reason}")]
    PortInvalid {
        /// The refused mapping.
        port: PortMapping,
        /// Why.
        reason: &'static str,
    },
    /// The kernel lacks what host ports need.
    #[error("this kernel cannot map host ports: {reason}")]
    HostPortsUnsupported {
        /// What the kernel said when the table was made.
        reason: String,
    },
    /// A netlink socket could not be opened.
    #[error("open netlink socket for {what}")]
    Connect {
        /// What the socket is for.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("start thread {name}")]
    Thread {
        /// The thread.
        name: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The worker of an operation died (it panicked, or the runtime is shutting down).
    #[error("the worker of {operation} vanished")]
    WorkerLost {
        /// What it was doing.
        operation: &'static str,
    },
    /// The network namespace could not be entered.
    #[error("enter network namespace")]
    EnterNetns {
        /// The cause.
        source: io::Error,
    },
    /// A descriptor could not be duplicated.
    #[error("duplicate network namespace descriptor")]
    DuplicateNetns {
        /// The cause.
        source: io::Error,
    },
    /// The bridge could not be created.
    #[error("create bridge {bridge}")]
    CreateBridge {
        /// The bridge.
        bridge: String,
        /// The cause.
        source: io::Error,
    },
    /// An interface of the bridge's name exists and is something else.
    #[error("interface {name} exists and is not a bridge")]
    NotABridge {
        /// The interface.
        name: String,
    },
    /// The veth pair could not be created.
    #[error("create veth {host_link} of pod {id}")]
    CreateVeth {
        /// The pod.
        id: String,
        /// The host end.
        host_link: String,
        /// The cause.
        source: io::Error,
    },
    /// A link could not be configured.
    #[error("configure link {link}")]
    ConfigureLink {
        /// The link.
        link: String,
        /// The cause.
        source: io::Error,
    },
    /// A link could not be brought up.
    #[error("set link {link} up")]
    LinkUp {
        /// The link.
        link: String,
        /// The cause.
        source: io::Error,
    },
    /// A link could not be found or listed.
    #[error("look up link {link}")]
    LookUpLink {
        /// The link.
        link: String,
        /// The cause.
        source: io::Error,
    },
    /// A link could not be deleted.
    #[error("delete link {link}")]
    DeleteLink {
        /// The link.
        link: String,
        /// The cause.
        source: io::Error,
    },
    /// An address could not be added.
    #[error("add address {address} to {link}")]
    AddAddress {
        /// The address.
        address: InterfaceAddress,
        /// The link.
        link: String,
        /// The cause.
        source: io::Error,
    },
    /// A default route could not be added.
    #[error("add default route via {gateway} on {link}")]
    AddRoute {
        /// The next hop.
        gateway: IpAddr,
        /// The link.
        link: String,
        /// The cause.
        source: io::Error,
    },
    /// The default route could not be read.
    #[error("list routes")]
    ListRoutes {
        /// The cause.
        source: io::Error,
    },
    /// A sysctl could not be written.
    #[error("write {value:?} to {}", path.display())]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// The value.
        value: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A netlink exchange broke below the level of a single request.
    #[error("netlink exchange for {what}")]
    Exchange {
        /// What it was for.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// An nftables batch was refused; nothing of it happened.
    #[error("nftables: {step}")]
    Nft {
        /// The first refused step.
        step: String,
        /// The cause.
        source: io::Error,
    },
    /// Connection tracking entries could not be listed or deleted.
    #[error("flush connection tracking entries of pod {id}")]
    Conntrack {
        /// The pod.
        id: String,
        /// The cause.
        source: io::Error,
    },
    /// An operation failed, and so did part of its undoing.
    #[error("{cause}; undoing it failed too: {}", list(failures))]
    Undo {
        /// Why the operation failed.
        #[source]
        cause: Box<Error>,
        /// What could not be undone.
        failures: Vec<Error>,
    },
}

/// What a caller can do about an error; maps one to one to gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request or the configuration is wrong.
    InvalidArgument,
    /// No address is free.
    ResourceExhausted,
    /// The pod is attached already.
    AlreadyExists,
    /// The request conflicts with another pod or with what the kernel can do.
    FailedPrecondition,
    /// The network is not ready; try again later.
    Unavailable,
    /// The kernel refused.
    Internal,
}

impl Error {
    /// The coarse kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config { .. } | Self::PortInvalid { .. } => ErrorKind::InvalidArgument,
            Self::NotReady => ErrorKind::Unavailable,
            Self::Exhausted { .. } => ErrorKind::ResourceExhausted,
            Self::AlreadyAttached { .. } => ErrorKind::AlreadyExists,
            Self::AddressConflict { .. }
            | Self::PortConflict { .. }
            | Self::HostPortsUnsupported { .. }
            | Self::NotABridge { .. } => ErrorKind::FailedPrecondition,
            Self::Undo { cause, .. } => cause.kind(),
            Self::Connect { .. }
            | Self::Thread { .. }
            | Self::WorkerLost { .. }
            | Self::EnterNetns { .. }
            | Self::DuplicateNetns { .. }
            | Self::CreateBridge { .. }
            | Self::CreateVeth { .. }
            | Self::ConfigureLink { .. }
            | Self::LinkUp { .. }
            | Self::LookUpLink { .. }
            | Self::DeleteLink { .. }
            | Self::AddAddress { .. }
            | Self::AddRoute { .. }
            | Self::ListRoutes { .. }
            | Self::Sysctl { .. }
            | Self::Exchange { .. }
            | Self::Nft { .. }
            | Self::Conntrack { .. } => ErrorKind::Internal,
        }
    }

    /// This error, joined by what went wrong while undoing.
    pub(crate) fn with_undo(self, failures: Vec<Error>) -> Self {
        if failures.is_empty() {
            self
        } else {
            Self::Undo {
                cause: Box::new(self),
                failures,
            }
        }
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
