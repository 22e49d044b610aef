//! Which pod has which address, in memory.
//!
//! Owns: choosing and reserving addresses. Never: stores anything (an address is a field of the pod's record;
//! `Network::reconcile` rebuilds this from the live records) and never talks to the kernel.
//!
//! One host number serves both families: pod 7 of `10.88.0.0/16` and `fd00::/64` is `10.88.0.7` and
//! `fd00::7`. Numbers are given out round robin, so an address is reused as late as possible.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::address::{InterfaceAddress, Subnet};

/// The lowest number a pod may have: 0 is the network, 1 the gateway.
const FIRST_POD: u32 = 2;

/// Why an address could not be reserved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No subnet is configured.
    NoSubnet,
    /// All numbers are taken.
    Exhausted,
    /// The address belongs to another pod.
    Taken { address: IpAddr, owner: String },
}

/// The reservations of one network.
#[derive(Debug, Default)]
pub(crate) struct Ipam {
    subnets: Vec<Subnet>,
    next: u32,
    taken: HashMap<IpAddr, String>,
}

impl Ipam {
    /// An empty set of reservations over `subnets` (at most one per family).
    pub(crate) fn new(subnets: Vec<Subnet>) -> Self {
        Self {
            subnets,
            next: FIRST_POD,
            taken: HashMap::new(),
        }
    }

    /// The subnets new addresses come from.
    pub(crate) fn subnets(&self) -> &[Subnet] {
        &self.subnets
    }

    /// Takes new addresses from `subnets` from now on; reservations elsewhere stay.
    pub(crate) fn set_subnets(&mut self, subnets: Vec<Subnet>) {
        if self.subnets != subnets {
            self.subnets = subnets;
            self.next = FIRST_POD;
        }
    }

    /// Reserves one address of every subnet for pod `id`.
    pub(crate) fn reserve(&mut self, id: &str) -> Result<Vec<InterfaceAddress>, Refused> {
        let last = self
            .subnets
            .iter()
            .map(Subnet::last_host)
            .min()
            .ok_or(Refused::NoSubnet)?;
        // A taken address rules out one number, so this many tries find a free one if there is one.
        let tries = u32::try_from(self.taken.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1)
            .min(last - 1);
        for _ in 0..tries {
            let number = if (FIRST_POD..=last).contains(&self.next) {
                self.next
            } else {
                FIRST_POD
            };
            self.next = number.wrapping_add(1);
            let addresses = self.addresses(number);
            if addresses
                .iter()
                .all(|address| !self.taken.contains_key(&address.address))
            {
                for address in &addresses {
                    self.taken.insert(address.address, id.to_owned());
                }
                return Ok(addresses);
            }
        }
        Err(Refused::Exhausted)
    }

    /// Reserves the addresses a live pod has already, all or none.
    pub(crate) fn adopt(&mut self, id: &str, addresses: &[InterfaceAddress]) -> Result<(), Refused> {
        for InterfaceAddress { address, .. } in addresses {
            if let Some(owner) = self.taken.get(address).filter(|owner| *owner != id) {
                return Err(Refused::Taken {
                    address: *address,
                    owner: owner.clone(),
                });
            }
        }
        for InterfaceAddress { address, .. } in addresses {
            self.taken.insert(*address, id.to_owned());
            let number = self.subnets.iter().find_map(|subnet| subnet.number(*address));
            self.next = number.map_or(self.next, |number| self.next.max(number.wrapping_add(1)));
        }
        Ok(())
    }

    /// Makes the addresses of pod `id` free again.
    pub(crate) fn release(&mut self, id: &str, addresses: &[InterfaceAddress]) {
        for InterfaceAddress { address, .. } in addresses {
            if self.taken.get(address).is_some_and(|owner| owner == id) {
                self.taken.remove(address);
            }
        }
    }

    /// The number of reserved addresses.
    pub(crate) fn reserved(&self) -> usize {
        self.taken.len()
    }

    fn addresses(&self, number: u32) -> Vec<InterfaceAddress> {
        let one = |subnet: &Subnet| InterfaceAddress {
            address: subnet.host(number),
            prefix: subnet.prefix(),
        };
        self.subnets.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam(subnets: &[&str]) -> Ipam {
        Ipam::new(subnets.iter().map(|subnet| subnet.parse().unwrap()).collect())
    }

    fn texts(addresses: &[InterfaceAddress]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_families_share_the_number_and_the_gateway_is_never_given() {
        let mut ipam = ipam(&["10.88.0.0/16", "fd00::/64"]);
        assert_eq!(texts(&ipam.reserve("a").unwrap()), ["10.88.0.2/16", "fd00::2/64"]);
        assert_eq!(texts(&ipam.reserve("b").unwrap()), ["10.88.0.3/16", "fd00::3/64"]);
    }

    #[test]
    fn reuse_is_late_and_wraps() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        let first = ipam.reserve("a").unwrap();
        ipam.release("a", &first);
        let numbers: Vec<_> = (0..5)
            .map(|n| texts(&ipam.reserve(&format!("p{n}")).unwrap())[0].clone())
            .collect();
        assert_eq!(
            numbers,
            [
                "10.0.0.3/29",
                "10.0.0.4/29",
                "10.0.0.5/29",
                "10.0.0.6/29",
                "10.0.0.2/29"
            ]
        );
        assert_eq!(ipam.reserve("full"), Err(Refused::Exhausted));
    }

    #[test]
    fn the_smallest_subnet_has_one_pod() {
        let mut ipam = ipam(&["10.0.0.4/30", "fd00::/64"]);
        let only = ipam.reserve("a").unwrap();
        assert_eq!(texts(&only), ["10.0.0.6/30", "fd00::2/64"]);
        assert_eq!(ipam.reserve("b"), Err(Refused::Exhausted));
        ipam.release("b", &only);
        assert_eq!(
            ipam.reserve("b"),
            Err(Refused::Exhausted),
            "only the owner releases"
        );
        ipam.release("a", &only);
        assert_eq!(ipam.reserve("b").unwrap(), only);
    }

    #[test]
    fn adopted_addresses_are_skipped_and_conflicts_named() {
        let mut ipam = ipam(&["10.0.0.0/24"]);
        let live = ["10.0.0.9/24".parse().unwrap()];
        ipam.adopt("live", &live).unwrap();
        ipam.adopt("live", &live).unwrap();
        let conflict = Refused::Taken {
            address: live[0].address,
            owner: "live".into(),
        };
        assert_eq!(ipam.adopt("other", &live), Err(conflict));
        assert_eq!(texts(&ipam.reserve("new").unwrap()), ["10.0.0.10/24"]);
        assert_eq!(ipam.reserved(), 2);
    }

    #[test]
    fn a_new_cidr_keeps_old_reservations() {
        let mut ipam = ipam(&["10.0.0.0/24"]);
        let old = ipam.reserve("old").unwrap();
        ipam.set_subnets(vec!["10.1.0.0/24".parse().unwrap()]);
        assert_eq!(texts(&ipam.reserve("new").unwrap()), ["10.1.0.2/24"]);
        ipam.set_subnets(vec!["10.0.0.0/24".parse().unwrap()]);
        assert_eq!(texts(&ipam.reserve("more").unwrap()), ["10.0.0.3/24"]);
        assert_eq!(texts(&old), ["10.0.0.2/24"]);
    }

    #[test]
    fn no_subnet_is_its_own_refusal() {
        assert_eq!(ipam(&[]).reserve("a"), Err(Refused::NoSubnet));
    }
}
