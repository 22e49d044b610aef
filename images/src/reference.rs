//! Image references: parsing and normalising names such as `busybox` or `host:5000/a/b:tag@sha256:…`.
//!
//! Owns the grammar of the distribution project's reference package: the docker.io defaults, how a registry host is
//! told from a path, and the length limits. A [`Reference`] that exists is normalised. Never talks to a registry and
//! never looks into the store.

use std::fmt;

use crate::digest::Digest;
use crate::error::Error;

/// Longest accepted repository path in bytes (distribution: `RepositoryNameTotalLengthMax`).
const NAME_MAX: usize = 255;
/// Longest accepted tag in bytes.
const TAG_MAX: usize = 128;
/// Longest accepted reference in bytes: host, path, tag and digest together.
const REFERENCE_MAX: usize = 1024;
const DEFAULT_HOST: &str = "docker.io";

/// A normalised image reference: registry host, repository path, and a tag or a digest.
///
/// A reference with both a tag and a digest keeps the digest only, because the digest alone decides the content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    target: Target,
}

/// What a reference selects inside its repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A mutable tag.
    Tag(String),
    /// An immutable digest of the manifest or index.
    Digest(Digest),
}

impl Reference {
    /// Parses and normalises `text`; a missing tag becomes `latest`, a missing host `docker.io`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |reason| Error::InvalidReference {
            reference: printable(text),
            reason,
        };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > REFERENCE_MAX {
            return Err(bad("it is longer than 1024 bytes"));
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad("a bare image id is not a reference"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest).map_err(bad)?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(bad)?;
        }
        let (host, repository) = split_host(name);
        check_host(&host).map_err(bad)?;
        check_repository(&repository).map_err(bad)?;
        let target = match (digest, tag) {
            (Some(digest), _) => Target::Digest(digest),
            (None, Some(tag)) => Target::Tag(tag.to_owned()),
            (None, None) => Target::Tag("latest".to_owned()),
        };
        Ok(Reference {
            host,
            repository,
            target,
        })
    }

    /// Registry host with optional port, as it appears in normalised names (`docker.io`, not its API host).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Repository path inside the registry, for example `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The tag, where the reference has no digest.
    pub fn tag(&self) -> Option<&str> {
        match &self.target {
            Target::Tag(tag) => Some(tag),
            Target::Digest(_) => None,
        }
    }

    /// `host/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `host/repository@digest` for a manifest of this repository.
    pub(crate) fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.host, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

/// Cuts and escapes foreign text for an error message.
pub(crate) fn printable(text: &str) -> String {
    let mut out: String = text.chars().take(256).flat_map(char::escape_debug).collect();
    if text.chars().nth(256).is_some() {
        out.push('…');
    }
    out
}

/// The first component is a host if it could not be a path component: a dot, a colon, `localhost` or upper case.
fn split_host(name: &str) -> (String, String) {
    let (host, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == "index.docker.io" {
        DEFAULT_HOST
    } else {
        host
    };
    if host == DEFAULT_HOST && !path.contains('/') {
        return (host.to_owned(), format!("library/{path}"));
    }
    (host.to_owned(), path.to_owned())
}

fn check_host(host: &str) -> Result<(), &'static str> {
    const BAD: &str = "the registry host is malformed";
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            address.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
            if port.is_empty() {
                return Ok(());
            }
            ("", Some(port.strip_prefix(':').ok_or(BAD)?))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return Err("the registry port is not a number up to 65535");
    }
    let label = |l: &str| {
        let bytes = l.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    };
    if !host.starts_with('[') && !name.split('.').all(label) {
        return Err(BAD);
    }
    Ok(())
}

fn check_repository(path: &str) -> Result<(), &'static str> {
    if path.len() > NAME_MAX {
        return Err("the repository name is longer than 255 bytes");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository name must be lower case");
    }
    if path.split('/').all(component) {
        Ok(())
    } else {
        Err("the repository name is malformed")
    }
}

/// `[a-z0-9]+` joined by one `.`, one or two `_`, or any number of `-`.
fn component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alnum(*first) || !alnum(*last) {
        return false;
    }
    text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    if tag.is_empty() || tag.len() > TAG_MAX {
        return Err("a tag has 1 to 128 characters");
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    if !word(bytes[0]) || !bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-')) {
        return Err("the tag has a character outside [A-Za-z0-9_.-]");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises() {
        let d = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("index.docker.io/a", "docker.io/library/a:latest".to_owned()),
            ("docker.io/a", "docker.io/library/a:latest".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest".to_owned()),
            ("[::1]:5000/a:b", "[::1]:5000/a:b".to_owned()),
            (
                "registry.k8s.io/pause:3.10",
                "registry.k8s.io/pause:3.10".to_owned(),
            ),
            ("Foo/bar", "Foo/bar:latest".to_owned()),
            ("a__b/c-----d.e_f", "docker.io/a__b/c-----d.e_f:latest".to_owned()),
        ];
        for (text, want) in cases {
            assert_eq!(Reference::parse(text).unwrap().to_string(), want, "{text}");
        }
        for text in [format!("busybox@{d}"), format!("busybox:tag@{d}")] {
            let r = Reference::parse(&text).unwrap();
            assert_eq!(r.to_string(), format!("docker.io/library/busybox@{d}"));
            assert_eq!(r.tag(), None);
        }
    }

    #[test]
    fn refuses() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_name = "a".repeat(256);
        let id = "0123456789abcdef".repeat(4);
        let cases = [
            "",
            "Busybox",
            "a:",
            "a:-x",
            "a@sha256:zz",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a.",
            "-a",
            "a___b",
            "a..b",
            "host.io:99999/a",
            "host.io:/a",
            "ho_st.io/a",
            "x/../y",
            "[::zz]/a",
            "[::1/a",
            "a\0b",
            "a:b:c",
            "host.io/",
            "a@b@c",
            &long_tag,
            &long_name,
            &id,
            "http://host/a",
        ];
        for text in cases {
            assert!(
                matches!(Reference::parse(text), Err(Error::InvalidReference { .. })),
                "{text}"
            );
        }
    }
}
