//! Manifests and indexes: parsed strictly, or refused.
//!
//! Owns the media types of docker schema 2 and OCI, and the rule that a document has exactly one reading: not both
//! `manifests` and `layers`, and no contradiction between the HTTP content type, `mediaType` and the fields
//! (GHSA-5j5w-g665-5m35). Pure.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config::Limits;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::object;
use crate::reference::printable;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Value of the `Accept` header of a manifest request.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// Names a blob or manifest by digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// Platform of a manifest in an index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// A document that a registry calls a manifest.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Manifest,
    Index,
}

impl Document {
    /// Parses `bytes`, which the caller has bounded, under the content type of the answer that carried them.
    pub(crate) fn parse(
        bytes: &[u8],
        content_type: Option<&str>,
        limits: &Limits,
    ) -> Result<Document, Error> {
        let content_type = content_type.map(|t| t.split(';').next().unwrap_or_default().trim());
        let by_header = content_type.map(shape).transpose()?.flatten();
        let raw: Raw = object(bytes, "manifest")?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(unsupported("docker manifest schema 1", SCHEMA1));
        }
        if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
            return Err(Error::AmbiguousManifest {
                reason: "it has both manifests and layers",
            });
        }
        let by_field = raw.media_type.as_deref().map(shape).transpose()?.flatten();
        if let (Some(_), Some(_), Some(header), Some(field)) =
            (by_header, by_field, content_type, raw.media_type.as_deref())
            && header != field
        {
            return Err(Error::AmbiguousManifest {
                reason: "content type and mediaType differ",
            });
        }
        let declared = by_header.or(by_field);
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) if declared != Some(Shape::Index) => {
                check_manifest(&config, &layers, limits)?;
                Ok(Document::Manifest { config, layers })
            }
            (None, None, Some(manifests)) if declared != Some(Shape::Manifest) => {
                Ok(Document::Index(manifests))
            }
            (Some(_), Some(_), None) | (None, None, Some(_)) => Err(Error::AmbiguousManifest {
                reason: "the media type does not fit the fields",
            }),
            _ => Err(Error::BadDocument {
                document: "manifest",
                reason: "it has neither config and layers nor manifests".to_owned(),
            }),
        }
    }
}

const SCHEMA1: &str = "docker schema 1 images are not supported, push the image again with a current tool";

/// The shape a media type promises; none for generic types.
fn shape(media_type: &str) -> Result<Option<Shape>, Error> {
    match media_type {
        OCI_MANIFEST | DOCKER_MANIFEST => Ok(Some(Shape::Manifest)),
        OCI_INDEX | DOCKER_LIST => Ok(Some(Shape::Index)),
        "" | "application/json" | "application/octet-stream" | "text/plain" => Ok(None),
        t if t.starts_with("application/vnd.docker.distribution.manifest.v1+") => {
            Err(unsupported(t, SCHEMA1))
        }
        t => Err(unsupported(t, "not an image manifest or index")),
    }
}

fn check_manifest(config: &Descriptor, layers: &[Descriptor], limits: &Limits) -> Result<(), Error> {
    match config.media_type.as_str() {
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {}
        t => return Err(unsupported(t, "the config is not that of a container image")),
    }
    if config.size > limits.config_bytes {
        return Err(Error::TooLarge {
            what: "bytes of an image config",
            limit: limits.config_bytes,
        });
    }
    if layers.len() > limits.layers {
        return Err(Error::TooLarge {
            what: "layers of an image",
            limit: limits.layers as u64,
        });
    }
    for layer in layers {
        check_layer_type(&layer.media_type)?;
        if layer.size > limits.layer_compressed_bytes {
            let limit = limits.layer_compressed_bytes;
            return Err(Error::TooLarge {
                what: "compressed bytes of a layer",
                limit,
            });
        }
    }
    Ok(())
}

fn check_layer_type(media_type: &str) -> Result<(), Error> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(()),
        t if t.contains(".foreign.") || t.contains(".nondistributable.") => Err(unsupported(
            t,
            "layers that the registry does not serve are not supported",
        )),
        t => Err(unsupported(t, "unknown layer type")),
    }
}

fn unsupported(media_type: &str, reason: &'static str) -> Error {
    Error::UnsupportedMediaType {
        media_type: printable(media_type),
        reason,
    }
}

/// This machine in the naming of the Go toolchain.
pub(crate) fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "x86" => ("386", None),
        "powerpc64" => ("ppc64le", None),
        other => (other, None),
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.map(str::to_owned),
    }
}

/// The entry of an index to use on `host`: same os and architecture, the best variant that still runs. Entries without
/// a platform come last; the config decides about them. `None` where nothing fits.
pub(crate) fn select<'a>(entries: &'a [Descriptor], host: &Platform) -> Option<&'a Descriptor> {
    entries
        .iter()
        .filter(|d| matches!(shape(&d.media_type), Ok(Some(_))))
        .filter_map(|d| rank(d.platform.as_ref(), host).map(|rank| (rank, d)))
        // The first of equals.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, d)| d)
}

/// Preference of a platform on `host`, higher is better.
fn rank(platform: Option<&Platform>, host: &Platform) -> Option<u32> {
    let Some(p) = platform else { return Some(0) };
    if p.os != host.os || p.architecture != host.architecture {
        return None;
    }
    let variant = p.variant.as_deref().filter(|v| !v.is_empty());
    match (host.architecture.as_str(), variant) {
        // The baseline runs everywhere. v2 and above are refused: that this CPU has them is not known here.
        ("amd64", None | Some("v1")) | ("arm64", None | Some("v8")) => Some(2),
        ("arm", v) => {
            let level = |v: &str| v.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
            let wanted = v.map_or(Some(7), level)?;
            let have = host.variant.as_deref().and_then(level).unwrap_or(7);
            (wanted <= have).then_some(1 + wanted)
        }
        ("amd64" | "arm64", Some(_)) => None,
        (_, v) => (v == host.variant.as_deref() || v.is_none()).then_some(1),
    }
}

/// Whether an image config is for this machine. Configs of old tools leave the fields empty.
pub(crate) fn fits(os: &str, architecture: &str, host: &Platform) -> bool {
    (os.is_empty() || os == host.os) && (architecture.is_empty() || architecture == host.architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn desc(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{D}","size":3}}"#)
    }

    fn manifest(media_type: &str, layer: &str) -> String {
        let config = desc("application/vnd.oci.image.config.v1+json");
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{config},"layers":[{}]}}"#,
            desc(layer)
        )
    }

    const GZ: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn accepts_one_reading_only() {
        let good = manifest(OCI_MANIFEST, GZ);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, desc(OCI_MANIFEST));
        let both = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}}"#,
            desc("application/vnd.oci.image.config.v1+json")
        );
        let twice = good.replacen("\"layers\"", "\"layers\":[],\"layers\"", 1);
        let mut many = manifest(OCI_MANIFEST, GZ);
        many = many.replace(
            "\"layers\":[",
            &format!("\"layers\":[{}", format!("{},", desc(GZ)).repeat(300)),
        );
        let ambiguous = |e: &Error| matches!(e, Error::AmbiguousManifest { .. });
        let media = |e: &Error| matches!(e, Error::UnsupportedMediaType { .. });
        let broken = |e: &Error| matches!(e, Error::BadDocument { .. });
        let large = |e: &Error| matches!(e, Error::TooLarge { .. });
        type Check<'a> = Option<&'a dyn Fn(&Error) -> bool>;
        let cases: Vec<(&str, String, Option<&str>, Check<'_>)> = vec![
            ("plain", good.clone(), Some(OCI_MANIFEST), None),
            (
                "charset",
                good.clone(),
                Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
                None,
            ),
            ("json type", good.clone(), Some("application/json"), None),
            ("no type", good.clone(), None, None),
            ("index", index.clone(), Some(OCI_INDEX), None),
            ("index as manifest", index, Some(OCI_MANIFEST), Some(&ambiguous)),
            (
                "manifest as index",
                good.clone(),
                Some(OCI_INDEX),
                Some(&ambiguous),
            ),
            (
                "docker header, oci field",
                good.clone(),
                Some(DOCKER_MANIFEST),
                Some(&ambiguous),
            ),
            (
                "field says index",
                manifest(OCI_INDEX, GZ),
                None,
                Some(&ambiguous),
            ),
            ("both", both, None, Some(&ambiguous)),
            ("duplicate key", twice, None, Some(&broken)),
            ("list", "[2]".into(), None, Some(&broken)),
            ("html", "<html>".into(), None, Some(&broken)),
            ("empty object", "{}".into(), None, Some(&broken)),
            (
                "schema 1",
                r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
                None,
                Some(&media),
            ),
            (
                "schema 1 type",
                "{}".into(),
                Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
                Some(&media),
            ),
            (
                "helm",
                good.replace("image.config.v1", "helm.config.v1"),
                None,
                Some(&media),
            ),
            (
                "foreign",
                manifest(
                    OCI_MANIFEST,
                    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                ),
                None,
                Some(&media),
            ),
            (
                "nondistributable",
                manifest(
                    OCI_MANIFEST,
                    "application/vnd.oci.image.layer.nondistributable.v1.tar",
                ),
                None,
                Some(&media),
            ),
            (
                "unknown layer",
                manifest(OCI_MANIFEST, "application/zip"),
                None,
                Some(&media),
            ),
            ("too many layers", many, None, Some(&large)),
            (
                "negative size",
                good.replace("\"size\":3", "\"size\":-3"),
                None,
                Some(&broken),
            ),
            (
                "bad digest",
                good.replace("sha256:e3", "sha256:/3"),
                None,
                Some(&broken),
            ),
        ];
        for (what, json, header, want) in cases {
            match (Document::parse(json.as_bytes(), header, &Limits::default()), want) {
                (Ok(_), None) => {}
                (Err(e), Some(check)) => assert!(check(&e), "{what}: {e}"),
                (other, _) => panic!("{what}: {other:?}"),
            }
        }
    }

    #[test]
    fn selects_platforms() {
        let entry = |os: &str, arch: &str, variant: Option<&str>| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::sha256_of(format!("{os}{arch}{variant:?}").as_bytes()),
            size: 1,
            platform: (!os.is_empty()).then(|| Platform {
                os: os.into(),
                architecture: arch.into(),
                variant: variant.map(Into::into),
            }),
        };
        let host = |arch: &str, variant: Option<&str>| Platform {
            os: "linux".into(),
            architecture: arch.into(),
            variant: variant.map(Into::into),
        };
        let all = [
            entry("unknown", "unknown", None),
            entry("windows", "amd64", None),
            entry("linux", "amd64", Some("v3")),
            entry("linux", "amd64", None),
            entry("linux", "arm", Some("v5")),
            entry("linux", "arm", Some("v7")),
            entry("linux", "arm64", Some("v8")),
            entry("linux", "riscv64", None),
        ];
        let cases = [
            (host("amd64", None), Some(3)),
            (host("arm64", Some("v8")), Some(6)),
            (host("arm", Some("v7")), Some(5)),
            (host("arm", Some("v6")), Some(4)),
            (host("riscv64", None), Some(7)),
            (host("s390x", None), None),
        ];
        for (host, want) in cases {
            assert_eq!(select(&all, &host), want.map(|i: usize| &all[i]), "{host:?}");
        }
        let unnamed = [entry("", "", None), entry("linux", "amd64", None)];
        assert_eq!(select(&unnamed, &host("amd64", None)), Some(&unnamed[1]));
        assert_eq!(select(&unnamed[..1], &host("amd64", None)), Some(&unnamed[0]));
    }
}
