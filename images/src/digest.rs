//! Content digests (`sha256:<hex>`, `sha512:<hex>`) and the hasher that produces them.
//!
//! Owns the grammar of OCI image-spec descriptor.md, "Digests". A [`Digest`] that exists is well formed:
//! lower-case hex of the right length. Never compares prefixes and never reads files.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A registered digest algorithm of the OCI image specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256, 64 hex digits. The only one used for image ids and diff ids.
    Sha256,
    /// SHA-512, 128 hex digits. Accepted in references and descriptors.
    Sha512,
}

/// A validated content digest, printed as `algorithm:hex`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Parses `sha256:<64 hex>` or `sha512:<128 hex>`; hex must be lower case.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (algorithm, hex) = text
            .split_once(':')
            .ok_or("a digest has the form algorithm:hex")?;
        let want = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err("only sha256 and sha512 digests are supported"),
        };
        if hex.len() != want {
            return Err("the digest has the wrong length for its algorithm");
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("a digest is lower-case hexadecimal");
        }
        Ok(Digest(text.to_owned()))
    }

    /// SHA-256 of `bytes`.
    pub fn sha256_of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm named before the colon.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") {
            Algorithm::Sha512
        } else {
            Algorithm::Sha256
        }
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The whole digest, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Digest::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

/// Incremental hasher for one algorithm. The `sha2` crate picks SHA-NI at run time where the CPU has it.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(h) => Digest(format!("sha256:{}", hex(&h.finalize()))),
            Hasher::Sha512(h) => Digest(format!("sha512:{}", hex(&h.finalize()))),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let nibble = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
    bytes.iter().flat_map(|b| [nibble(b >> 4), nibble(*b)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_only_well_formed_digests() {
        let a64 = "a".repeat(64);
        let cases = [
            (format!("sha256:{a64}"), true),
            (format!("sha512:{}", "0".repeat(128)), true),
            (format!("sha256:{}", "A".repeat(64)), false),
            (format!("sha256:{}", "a".repeat(63)), false),
            (format!("sha512:{a64}"), false),
            (format!("md5:{}", "a".repeat(32)), false),
            (a64, false),
            (format!("sha256:{}/../x", "a".repeat(58)), false),
        ];
        for (text, ok) in cases {
            assert_eq!(Digest::parse(&text).is_ok(), ok, "{text}");
        }
    }

    #[test]
    fn hashes_known_vectors() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::sha256_of(b"").as_str(), empty);
        let abc = Hasher::new(Algorithm::Sha512);
        assert!(abc.finish().as_str().starts_with("sha512:cf83e1357eefb8bd"));
    }
}
