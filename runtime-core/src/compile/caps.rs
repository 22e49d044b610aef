//! Capabilities by number and by name. Never looks at what a process holds.

use std::fmt;
use std::str::FromStr;

use oci_spec::runtime::{Capabilities, Capability};
use thiserror::Error;

/// Names in the order of their numbers, from linux/capability.h of Linux 6.12 (the last addition is 5.9's).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A name is no capability of any kernel podd knows.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a capability")]
pub struct UnknownCap(pub String);

/// A set of capabilities; bit n is capability number n (capabilities(7)).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapSet(u64);

impl CapSet {
    /// No capability.
    pub const EMPTY: Self = Self(0);
    /// Every capability that has a name here.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);
    /// What a container gets unless it asks otherwise, the same fourteen as under Docker and containerd: CHOWN,
    /// DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT,
    /// MKNOD, AUDIT_WRITE, SETFCAP.
    pub const DEFAULT: Self = Self(
        1 | 1 << 1
            | 1 << 3
            | 1 << 4
            | 1 << 5
            | 1 << 6
            | 1 << 7
            | 1 << 8
            | 1 << 10
            | 1 << 13
            | 1 << 18
            | 1 << 27
            | 1 << 29
            | 1 << 31,
    );

    /// Capabilities 0 to `last`, as /proc/sys/kernel/cap_last_cap counts; those without a name here are left out.
    #[must_use]
    pub fn up_to(last: u32) -> Self {
        let all = if last >= 63 {
            u64::MAX
        } else {
            (1 << (last + 1)) - 1
        };
        Self(all & Self::ALL.0)
    }

    /// The set of a bit mask; bits without a name here are left out.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// Bit mask.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Both sets together.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is only in `self`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether every member of `other` is in `self`.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set has no member.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Names without `CAP_`, by number.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES
            .iter()
            .enumerate()
            .filter(move |(n, _)| self.0 >> n & 1 == 1)
            .map(|(_, name)| *name)
    }

    /// The set in the form of an OCI spec.
    #[must_use]
    pub fn to_oci(self) -> Capabilities {
        self.names()
            .filter_map(|name| Capability::from_str(name).ok())
            .collect()
    }

    /// The set that an OCI spec names.
    #[must_use]
    pub fn from_oci(set: &Capabilities) -> Self {
        let bit = |cap: &Capability| cap.to_string().parse().unwrap_or(Self::EMPTY);
        set.iter().map(bit).fold(Self::EMPTY, Self::union)
    }
}

/// One capability by name: any case, with or without `CAP_`. `ALL` is not one.
impl FromStr for CapSet {
    type Err = UnknownCap;
    fn from_str(text: &str) -> Result<Self, UnknownCap> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES.iter().position(|known| *known == name);
        number
            .map(|n| Self(1 << n))
            .ok_or_else(|| UnknownCap(text.to_owned()))
    }
}

impl fmt::Debug for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_kernel_header() {
        for (name, number) in [
            ("CHOWN", 0),
            ("NET_RAW", 13),
            ("SYS_ADMIN", 21),
            ("CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(name.parse::<CapSet>().unwrap().bits(), 1 << number, "{name}");
        }
    }

    #[test]
    fn names_are_read_in_any_usual_form() {
        let net_raw: CapSet = "NET_RAW".parse().unwrap();
        for form in ["CAP_NET_RAW", "cap_net_raw", "net_raw", "Net_Raw"] {
            assert_eq!(form.parse(), Ok(net_raw), "{form}");
        }
        for bad in ["", "CAP_", "ALL", "NETRAW", "CAP_CAP_NET_RAW", "NET_RAW "] {
            assert!(bad.parse::<CapSet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_set_is_the_known_fourteen() {
        let names: Vec<_> = CapSet::DEFAULT.names().collect();
        assert_eq!(
            names.join(" "),
            "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT \
             MKNOD AUDIT_WRITE SETFCAP"
        );
    }

    #[test]
    fn every_capability_survives_the_oci_form() {
        assert_eq!(CapSet::from_oci(&CapSet::ALL.to_oci()), CapSet::ALL);
        assert_eq!(CapSet::up_to(40), CapSet::ALL);
        assert_eq!(CapSet::up_to(63), CapSet::ALL);
        assert_eq!(CapSet::up_to(0).names().collect::<Vec<_>>(), ["CHOWN"]);
    }
}
