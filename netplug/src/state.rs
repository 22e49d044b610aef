//! What a network knows in memory: leases, ports, the state of the host's side.
//!
//! Owns: the life of an address. Never: blocks, asks the kernel, or is held across an await.
//!
//! ```text
//!            reserve            confirm             detach              link gone
//!   (free) ---------> Attaching -------> Attached ---------> draining -----------> (free)
//!                         | abandon          | link gone          ^
//!                         v                  v                    |
//!                      (free)        Attached, link gone --detach-+-> (free) at once
//! ```

use std::collections::HashMap;

use crate::address::{InterfaceAddress, Subnet};
use crate::error::Error;
use crate::hostport::{self, PortElement, PortMapping, PortRegistry};
use crate::ipam::{Ipam, Refused};
use crate::network::Attachment;

/// What this kernel can do for pods; probed when the host's side was set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) bridge_index: u32,
    pub(crate) mtu: u32,
    pub(crate) ipv6: bool,
    /// Why the kernel refused the masquerade rules, if it did.
    pub(crate) masquerade_missing: Option<String>,
    /// Why the kernel refused the host port rules, if it did.
    pub(crate) ports_missing: Option<String>,
}

/// One pod's claim.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) addresses: Vec<InterfaceAddress>,
    pub(crate) ports: Vec<PortMapping>,
    pub(crate) elements: Vec<PortElement>,
    pub(crate) host_index: Option<u32>,
    link_gone: bool,
}

/// An address that waits for its link to vanish.
#[derive(Debug)]
struct Draining {
    id: String,
    addresses: Vec<InterfaceAddress>,
}

/// What detaching a pod leaves to do.
#[derive(Debug, Default)]
pub(crate) struct Released {
    /// Host ports to give back after that.
    pub(crate) ports: Vec<PortMapping>,
    /// Host ports to remove from the table.
    pub(crate) elements: Vec<PortElement>,
    /// Whether the link still exists as far as is known.
    pub(crate) link_exists: bool,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ipam: Ipam,
    pub(crate) host: Option<Host>,
    pub(crate) host_failure: Option<String>,
    leases: HashMap<String, Lease>,
    by_index: HashMap<u32, String>,
    draining: HashMap<u32, Draining>,
    ports: PortRegistry,
}

impl State {
    pub(crate) fn new(subnets: Vec<Subnet>) -> Self {
        Self {
            ipam: Ipam::new(subnets),
            host: None,
            host_failure: None,
            leases: HashMap::new(),
            by_index: HashMap::new(),
            draining: HashMap::new(),
            ports: PortRegistry::default(),
        }
    }

    /// Claims addresses and host ports for a new pod, or nothing.
    pub(crate) fn reserve(
        &mut self,
        id: &str,
        ports: &[PortMapping],
        ipv6: bool,
    ) -> Result<(Vec<InterfaceAddress>, Vec<PortElement>), Error> {
        if self.leases.contains_key(id) {
            return Err(Error::AlreadyAttached { id: id.to_owned() });
        }
        self.ports.claim(id, ports)?;
        let addresses = match self.ipam.reserve(id) {
            Ok(addresses) => addresses,
            Err(refused) => {
                self.ports.release(id, ports);
                return Err(self.refusal(id, refused));
            }
        };
        let (usable, unusable): (Vec<_>, Vec<_>) = addresses
            .into_iter()
            .partition(|address| ipv6 || address.address.is_ipv4());
        self.ipam.release(id, &unusable);
        let elements = hostport::elements(id, ports, &usable);
        let lease = Lease {
            addresses: usable.clone(),
            ports: ports.to_vec(),
            elements: elements.clone(),
            host_index: None,
            link_gone: false,
        };
        self.leases.insert(id.to_owned(), lease);
        Ok((usable, elements))
    }

    /// Notes which link belongs to a pod, so that its end is recognised.
    pub(crate) fn link_created(&mut self, id: &str, index: u32) {
        if let Some(lease) = self.leases.get_mut(id) {
            lease.host_index = Some(index);
            self.by_index.insert(index, id.to_owned());
        }
    }

    /// Frees the addresses of a pod that turned out not to have them (no IPv6 in its namespace); returns the
    /// port elements that lead nowhere now.
    pub(crate) fn keep_only(&mut self, id: &str, addresses: &[InterfaceAddress]) -> Vec<PortElement> {
        let Some(lease) = self.leases.get_mut(id) else {
            return Vec::new();
        };
        let (kept, lost): (Vec<_>, Vec<_>) = lease
            .addresses
            .drain(..)
            .partition(|address| addresses.contains(address));
        lease.addresses = kept;
        self.ipam.release(id, &lost);
        lease.elements = hostport::elements(id, &lease.ports, &lease.addresses);
        lease.elements.clone()
    }

    /// Takes the port elements of a pod out of what the table should hold, before they are removed from it.
    pub(crate) fn withdraw_elements(&mut self, id: &str) {
        if let Some(lease) = self.leases.get_mut(id) {
            lease.elements.clear();
        }
    }

    /// Takes over a pod that was attached before this process started.
    pub(crate) fn adopt(&mut self, attachment: &Attachment, link_gone: bool) -> Result<(), Error> {
        let id = &attachment.id;
        if self.leases.contains_key(id) {
            return Ok(());
        }
        if let Err(refused) = self.ipam.adopt(id, &attachment.addresses) {
            return Err(self.refusal(id, refused));
        }
        if let Err(conflict) = self.ports.claim(id, &attachment.ports) {
            self.ipam.release(id, &attachment.addresses);
            return Err(conflict);
        }
        let lease = Lease {
            addresses: attachment.addresses.clone(),
            ports: attachment.ports.clone(),
            elements: hostport::elements(id, &attachment.ports, &attachment.addresses),
            host_index: Some(attachment.host_link_index),
            link_gone,
        };
        self.by_index.insert(attachment.host_link_index, id.clone());
        self.leases.insert(id.clone(), lease);
        Ok(())
    }

    /// Ends a pod's claim. Its addresses are free when the link is gone, its ports at [`Self::release_ports`].
    ///
    /// A pod this network does not know is not an error: the call is repeated after restarts.
    pub(crate) fn detach(&mut self, id: &str, host_index: u32) -> Released {
        if self
            .leases
            .get(id)
            .is_none_or(|lease| lease.host_index != Some(host_index))
        {
            return Released {
                link_exists: true,
                ..Released::default()
            };
        }
        let Some(lease) = self.leases.remove(id) else {
            return Released::default();
        };
        self.by_index.remove(&host_index);
        if lease.link_gone {
            self.ipam.release(id, &lease.addresses);
        } else {
            self.draining.insert(
                host_index,
                Draining {
                    id: id.to_owned(),
                    addresses: lease.addresses,
                },
            );
        }
        Released {
            ports: lease.ports,
            elements: lease.elements,
            link_exists: !lease.link_gone,
        }
    }

    /// Gives host ports back, once their elements are gone from the table.
    pub(crate) fn release_ports(&mut self, id: &str, ports: &[PortMapping]) {
        self.ports.release(id, ports);
    }

    /// Ends the claim of a pod whose attachment failed. Addresses stay blocked while its link exists.
    pub(crate) fn abandon(&mut self, id: &str, link_exists: bool) {
        let Some(lease) = self.leases.remove(id) else {
            return;
        };
        self.ports.release(id, &lease.ports);
        match lease.host_index {
            Some(index) if link_exists && !lease.link_gone => {
                self.by_index.remove(&index);
                self.draining.insert(
                    index,
                    Draining {
                        id: id.to_owned(),
                        addresses: lease.addresses,
                    },
                );
            }
            index => {
                index.map(|index| self.by_index.remove(&index));
                self.ipam.release(id, &lease.addresses);
            }
        }
    }

    /// A link vanished.
    pub(crate) fn link_gone(&mut self, index: u32) {
        if let Some(draining) = self.draining.remove(&index) {
            self.ipam.release(&draining.id, &draining.addresses);
        }
        if let Some(lease) = self
            .by_index
            .remove(&index)
            .and_then(|id| self.leases.get_mut(&id))
        {
            lease.link_gone = true;
        }
        // Somebody removed the bridge: the next pod makes a new one.
        self.host.take_if(|host| host.bridge_index == index);
    }

    /// The links whose end matters.
    pub(crate) fn watched(&self) -> Vec<u32> {
        let bridge = self.host.iter().map(|host| host.bridge_index);
        self.by_index
            .keys()
            .chain(self.draining.keys())
            .copied()
            .chain(bridge)
            .collect()
    }

    /// Whether this link's addresses still wait for its end.
    #[cfg(test)]
    pub(crate) fn is_draining(&self, index: u32) -> bool {
        self.draining.contains_key(&index)
    }

    /// Whether a pod of this network uses this link.
    pub(crate) fn is_attached(&self, index: u32) -> bool {
        self.by_index.contains_key(&index)
    }

    /// All host port elements, for making the table anew.
    pub(crate) fn elements(&self) -> Vec<PortElement> {
        self.leases
            .values()
            .flat_map(|lease| lease.elements.iter().cloned())
            .collect()
    }

    /// Whether a pod has ports.
    pub(crate) fn has_pods(&self) -> bool {
        !self.leases.is_empty()
    }

    /// The subnets pods are in: the configured ones and those of pods that are older than the configuration.
    pub(crate) fn pod_subnets(&self) -> Vec<Subnet> {
        let mut subnets = self.ipam.subnets().to_vec();
        for address in self.leases.values().flat_map(|lease| &lease.addresses) {
            let Ok(subnet) = Subnet::new(address.address, address.prefix) else {
                continue;
            };
            let known = |other: &Subnet| other.contains(subnet.network()) || subnet.contains(other.network());
            if !subnets.iter().any(known) {
                subnets.push(subnet);
            }
        }
        subnets
    }

    fn refusal(&self, id: &str, refused: Refused) -> Error {
        match refused {
            Refused::NoSubnet => Error::NotReady,
            Refused::Exhausted => Error::Exhausted {
                subnets: self.ipam.subnets().to_vec(),
            },
            Refused::Taken { address, owner } => Error::AddressConflict {
                address,
                id: id.to_owned(),
                owner,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new(vec!["10.0.0.0/30".parse().unwrap()])
    }

    #[test]
    fn an_address_is_free_after_detach_and_end_of_link_in_either_order() {
        for link_first in [true, false] {
            let mut state = state();
            state.reserve("a", &[], true).unwrap();
            state.link_created("a", 7);
            if link_first {
                state.link_gone(7);
            }
            assert!(matches!(
                state.reserve("b", &[], true),
                Err(Error::Exhausted { .. })
            ));
            let released = state.detach("a", 7);
            assert_eq!(released.link_exists, !link_first);
            if !link_first {
                assert!(matches!(
                    state.reserve("b", &[], true),
                    Err(Error::Exhausted { .. })
                ));
                assert!(state.is_draining(7));
                state.link_gone(7);
            }
            state.reserve("b", &[], true).unwrap();
            state.detach("a", 7);
            assert!(
                matches!(state.reserve("c", &[], true), Err(Error::Exhausted { .. })),
                "detach is idempotent"
            );
        }
    }

    #[test]
    fn an_abandoned_attach_frees_everything() {
        let mut state = state();
        let port = PortMapping {
            protocol: crate::Protocol::Tcp,
            container_port: 80,
            host_port: 80,
            host_ip: None,
        };
        state.reserve("a", &[port], true).unwrap();
        assert!(matches!(
            state.reserve("a", &[], true),
            Err(Error::AlreadyAttached { .. })
        ));
        assert!(matches!(
            state.reserve("b", &[port], true),
            Err(Error::PortConflict { .. })
        ));
        state.abandon("a", false);
        state.reserve("b", &[port], true).unwrap();
        assert_eq!(state.elements().len(), 1);
    }

    #[test]
    fn ports_are_not_kept_when_addresses_are_exhausted() {
        let mut state = state();
        let port = PortMapping {
            protocol: crate::Protocol::Tcp,
            container_port: 80,
            host_port: 80,
            host_ip: None,
        };
        state.reserve("a", &[], true).unwrap();
        assert!(matches!(
            state.reserve("b", &[port], true),
            Err(Error::Exhausted { .. })
        ));
        state.abandon("a", false);
        state.reserve("c", &[port], true).unwrap();
    }

    #[test]
    fn the_end_of_the_bridge_forgets_the_host() {
        let mut state = state();
        state.host = Some(Host {
            bridge_index: 3,
            mtu: 1500,
            ipv6: true,
            masquerade_missing: None,
            ports_missing: None,
        });
        state.link_gone(4);
        assert!(state.host.is_some());
        state.link_gone(3);
        assert!(state.host.is_none());
    }

    #[test]
    fn without_ipv6_only_the_v4_address_stays() {
        let mut state = State::new(vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()]);
        let (addresses, _) = state.reserve("a", &[], false).unwrap();
        assert_eq!(addresses.len(), 1);
        let (both, _) = state.reserve("b", &[], true).unwrap();
        assert_eq!(both.len(), 2);
        state.keep_only("b", &both[..1]);
        assert_eq!(state.ipam.reserved(), 2);
    }
}
