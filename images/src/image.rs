//! An image as the rest of podd sees it: id, names, layer numbers and the parts of its config a runtime needs.
//!
//! The config is foreign data and only data: no field of it steers anything in this crate beyond the diff ids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{Algorithm, Digest};
use crate::error::Error;

/// Identity of an image: the SHA-256 of its config blob, printed `sha256:<hex>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(Digest);

impl ImageId {
    /// Parses `sha256:<hex>` or the bare 64 hex digits.
    pub fn parse(text: &str) -> Option<ImageId> {
        let digest = if text.contains(':') {
            Digest::parse(text)
        } else {
            Digest::parse(&format!("sha256:{text}"))
        };
        digest
            .ok()
            .filter(|d| d.algorithm() == Algorithm::Sha256)
            .map(ImageId)
    }

    /// The id of the image with this config.
    pub(crate) fn of(config: &[u8]) -> ImageId {
        ImageId(Digest::sha256_of(config))
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        self.0.hex()
    }

    /// `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A stored image. Immutable: a change of its names makes a new value.
#[derive(Clone, Debug)]
pub struct Image {
    /// Identity.
    pub id: ImageId,
    /// Directory names below [`crate::Images::layers_dir`], bottom first. Never empty, no number twice.
    ///
    /// May have one layer more than the config: see `store/fixup.rs`.
    pub layers: Vec<u64>,
    /// `host/repository:tag` for every tag that points here, sorted.
    pub repo_tags: Vec<String>,
    /// `host/repository@digest` for every manifest it was pulled by, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes to download: manifest, config and compressed layers, as containerd reports it.
    pub size: u64,
    /// Exempt from garbage collection by the kubelet.
    pub pinned: bool,
    /// What the image says about running it.
    pub config: Arc<ImageConfig>,
}

/// The parts of an OCI image config that a runtime needs (OCI image-spec config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// CPU architecture in Go's naming.
    #[serde(default, deserialize_with = "or_null")]
    pub architecture: String,
    /// CPU variant.
    #[serde(default, deserialize_with = "or_null")]
    pub variant: String,
    /// Operating system.
    #[serde(default, deserialize_with = "or_null")]
    pub os: String,
    /// RFC 3339 creation time, as given.
    #[serde(default, deserialize_with = "or_null")]
    pub created: String,
    /// Execution parameters.
    #[serde(default, deserialize_with = "or_null")]
    pub config: Execution,
    #[serde(default, deserialize_with = "or_null")]
    rootfs: RootFs,
}

/// Execution parameters of an image config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    #[serde(default, deserialize_with = "or_null")]
    pub user: String,
    /// `NAME=value` pairs.
    #[serde(default, deserialize_with = "or_null")]
    pub env: Vec<String>,
    /// Entry point.
    #[serde(default, deserialize_with = "or_null")]
    pub entrypoint: Vec<String>,
    /// Default arguments.
    #[serde(default, deserialize_with = "or_null")]
    pub cmd: Vec<String>,
    /// Working directory; empty means `/`.
    #[serde(default, deserialize_with = "or_null")]
    pub working_dir: String,
    /// Signal that stops the container, a name or a number; empty means SIGTERM.
    #[serde(default, deserialize_with = "or_null")]
    pub stop_signal: String,
    /// Paths meant as volumes.
    #[serde(default, deserialize_with = "keys")]
    pub volumes: BTreeSet<String>,
    /// `port/protocol` entries.
    #[serde(default, deserialize_with = "keys")]
    pub exposed_ports: BTreeSet<String>,
    /// Labels.
    #[serde(default, deserialize_with = "or_null")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_null")]
    diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Parses a config blob, which the caller has bounded.
    pub(crate) fn parse(json: &[u8]) -> Result<ImageConfig, Error> {
        object(json, "image config")
    }

    /// Digests of the uncompressed layers, bottom first.
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }
}

/// Parses a JSON object. A list is refused, which serde would take as the fields in their order of declaration.
pub(crate) fn object<T: serde::de::DeserializeOwned>(
    json: &[u8],
    document: &'static str,
) -> Result<T, Error> {
    let bad = |reason: String| Error::BadDocument { document, reason };
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err(bad("it is no JSON object".to_owned()));
    }
    serde_json::from_slice(json).map_err(|e| bad(e.to_string()))
}

/// Go writes nil slices, maps and structs as `null`.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// A set written as an object with empty values.
fn keys<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeSet<String>, D::Error> {
    let map = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(d)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_absent_fields_are_empty() {
        let c = ImageConfig::parse(
            br#"{"architecture":"amd64","os":"linux","created":null,
                "config":{"User":"1:2","Env":null,"Cmd":["a"],"Volumes":{"/v":{}},"Labels":null,"Healthcheck":{}},
                "rootfs":{"type":"layers","diff_ids":null},"history":[{"x":1}]}"#,
        )
        .unwrap();
        assert_eq!(c.config.user, "1:2");
        assert_eq!(c.config.cmd, ["a"]);
        assert!(c.config.volumes.contains("/v") && c.config.env.is_empty() && c.diff_ids().is_empty());
        assert_eq!(ImageConfig::parse(b"{}").unwrap(), ImageConfig::default());
        assert_eq!(
            ImageConfig::parse(br#"{"config":null}"#).unwrap(),
            ImageConfig::default()
        );
        for bad in [
            &b"[]"[..],
            b"",
            b"{\"rootfs\":{\"diff_ids\":[\"sha256:../x\"]}}",
            b"{\"os\":\"a\",\"os\":\"b\"}",
        ] {
            assert!(ImageConfig::parse(bad).is_err());
        }
    }

    #[test]
    fn ids() {
        let hex = "ab".repeat(32);
        assert_eq!(ImageId::parse(&hex).unwrap().as_str(), format!("sha256:{hex}"));
        assert_eq!(ImageId::parse(&format!("sha256:{hex}")).unwrap().hex(), hex);
        assert!(ImageId::parse("abc").is_none());
        assert!(ImageId::parse(&format!("sha512:{}", "ab".repeat(64))).is_none());
    }
}
