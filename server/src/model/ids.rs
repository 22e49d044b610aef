//! Ids of pods and containers: 64 lower-case hexadecimal digits from the kernel's random source.
//!
//! Ids become file names, cgroup names and log fields, so nothing else may ever be one (pains.md, class
//! "symlink as host dir": ids are validated before they meet a path).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Length of an id in digits.
const DIGITS: usize = 64;

/// A string is not an id.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("an id is 64 lower-case hexadecimal digits")]
pub struct IdError;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Id([u8; DIGITS]);

impl Id {
    fn random() -> std::io::Result<Self> {
        let mut bytes = [0u8; DIGITS / 2];
        let mut filled = 0;
        while filled < bytes.len() {
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        let digit = |nibble: u8| {
            if nibble < 10 {
                b'0' + nibble
            } else {
                b'a' + nibble - 10
            }
        };
        let mut digits = [0u8; DIGITS];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
        }
        Ok(Self(digits))
    }

    fn parse(text: &str) -> Result<Self, IdError> {
        let digits: [u8; DIGITS] = text.as_bytes().try_into().map_err(|_| IdError)?;
        let valid = digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(digits)) } else { Err(IdError) }
    }

    fn as_str(&self) -> &str {
        // Only ASCII digits are ever stored, so the fallback cannot be reached.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Id);

        impl $name {
            /// Makes a new id.
            ///
            /// # Errors
            /// The kernel's random source failed, which Linux does not do once it has booted.
            pub fn random() -> std::io::Result<Self> {
                Id::random().map(Self)
            }

            /// The digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The first 13 digits, as people are shown (crictl does the same).
            #[must_use]
            pub fn short(&self) -> &str {
                self.as_str().get(..13).unwrap_or_default()
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Id::parse(text).map(Self)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.as_str().as_ref()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id_type! {
    /// Id of a pod.
    PodId
}
id_type! {
    /// Id of a container.
    ContainerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_valid_and_differ() {
        let (a, b) = (PodId::random().unwrap(), PodId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse(), Ok(a));
        assert_eq!(a.short().len(), 13);
    }

    #[test]
    fn only_64_lower_case_hex_digits_are_an_id() {
        assert!("0123456789abcdef".repeat(4).parse::<ContainerId>().is_ok());
        for bad in [
            "",
            "0123456789abcdef",
            &"A".repeat(64),
            &"g".repeat(64),
            &"a".repeat(65),
            &"../".repeat(22),
        ] {
            assert_eq!(bad.parse::<ContainerId>(), Err(IdError), "{bad}");
        }
    }

    #[test]
    fn ids_survive_json() {
        let id = PodId::random().unwrap();
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<PodId>(&text).unwrap(), id);
        assert!(serde_json::from_str::<PodId>("\"..\"").is_err());
    }
}
