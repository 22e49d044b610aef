//! Requests that are kept: how they are checked, fingerprinted, encoded and read again.
//!
//! Owns what makes two requests the same. A retry comes over the wire again, and neither the client nor prost
//! encodes a map in a fixed order, so maps are sorted before anything is hashed.

use std::collections::{BTreeMap, HashMap};

use podd_proto::v1;
use prost::Message as _;

use super::fault::Fault;
use crate::engine::inflight::Fingerprint;
use crate::engine::{CreateContainer, RunPod};
use crate::model::{ContainerConfig, PodConfig, Resources, Share};
use crate::state::recover::Decode;

/// How the requests kept in records are read again.
pub const DECODE: Decode = Decode {
    pod: decode_pod,
    container: decode_container,
};

/// Checks a RunPodSandboxRequest.
///
/// # Errors
/// The field that is wrong, or asks for what podd does not do.
pub fn run_pod(request: v1::RunPodSandboxRequest) -> Result<RunPod, Fault> {
    let run = read_pod(request)?;
    // Not asked of the record of a pod that runs: no restart of podd may lose one.
    if run.config.namespaces.network == Share::Node && run.config.hostname.is_some() {
        let what = "is given, but the pod has the node's name, as it has its network";
        return Err(Fault::invalid("config.hostname", what));
    }
    Ok(run)
}

fn read_pod(request: v1::RunPodSandboxRequest) -> Result<RunPod, Fault> {
    let encoded = request.encode_to_vec();
    let fingerprint = pod_fingerprint(request.clone());
    let handler = request.runtime_handler.clone();
    let config = request
        .config
        .ok_or_else(|| Fault::invalid("config", "is missing"))?;
    Ok(RunPod {
        config: PodConfig::try_from(config)?,
        handler,
        encoded,
        fingerprint,
    })
}

/// Checks a CreateContainerRequest. The pod is known by its id; the copy of its configuration is not looked at.
///
/// # Errors
/// The field that is wrong, or asks for what podd does not do.
pub fn create_container(mut request: v1::CreateContainerRequest) -> Result<CreateContainer, Fault> {
    request.sandbox_config = None;
    let encoded = request.encode_to_vec();
    let fingerprint = container_fingerprint(request.clone());
    let config = request
        .config
        .ok_or_else(|| Fault::invalid("config", "is missing"))?;
    let config = ContainerConfig::try_from(config)?;
    Ok(CreateContainer {
        pod: request.pod_sandbox_id,
        config,
        encoded,
        fingerprint,
    })
}

/// Checks the resources of an update; none ask for nothing.
///
/// # Errors
/// The part that is wrong.
pub fn resources(
    field: &'static str,
    wire: Option<&v1::LinuxContainerResources>,
) -> Result<Resources, Fault> {
    let of_field = wire.map(|wire| Resources::of_field(field, wire)).transpose()?;
    Ok(of_field.unwrap_or_default())
}

fn decode_pod(bytes: &[u8]) -> Result<PodConfig, String> {
    let request = v1::RunPodSandboxRequest::decode(bytes).map_err(|e| e.to_string())?;
    read_pod(request).map(|r| r.config).map_err(|e| e.to_string())
}

fn decode_container(bytes: &[u8]) -> Result<ContainerConfig, String> {
    let request = v1::CreateContainerRequest::decode(bytes).map_err(|e| e.to_string())?;
    create_container(request)
        .map(|r| r.config)
        .map_err(|e| e.to_string())
}

fn pod_fingerprint(mut request: v1::RunPodSandboxRequest) -> Fingerprint {
    let mut bytes = Vec::new();
    if let Some(config) = &mut request.config {
        drain(&mut config.labels, &mut bytes);
        drain(&mut config.annotations, &mut bytes);
        if let Some(linux) = &mut config.linux {
            drain(&mut linux.sysctls, &mut bytes);
            for resources in [&mut linux.overhead, &mut linux.resources].into_iter().flatten() {
                drain(&mut resources.unified, &mut bytes);
            }
        }
    }
    bytes.extend(request.encode_to_vec());
    Fingerprint::of(&bytes)
}

fn container_fingerprint(mut request: v1::CreateContainerRequest) -> Fingerprint {
    let mut bytes = Vec::new();
    if let Some(config) = &mut request.config {
        drain(&mut config.labels, &mut bytes);
        drain(&mut config.annotations, &mut bytes);
        let of_mounts = config.mounts.iter_mut().filter_map(|m| m.image.as_mut());
        for image in config.image.iter_mut().chain(of_mounts) {
            drain(&mut image.annotations, &mut bytes);
        }
        let resources = config.linux.as_mut().and_then(|l| l.resources.as_mut());
        if let Some(resources) = resources {
            drain(&mut resources.unified, &mut bytes);
        }
    }
    bytes.extend(request.encode_to_vec());
    Fingerprint::of(&bytes)
}

/// Moves a map into `bytes`, sorted, each text with its length.
fn drain(map: &mut HashMap<String, String>, bytes: &mut Vec<u8>) {
    let sorted: BTreeMap<String, String> = map.drain().collect();
    bytes.extend(sorted.len().to_le_bytes());
    for text in sorted.into_iter().flat_map(|(key, value)| [key, value]) {
        bytes.extend(text.len().to_le_bytes());
        bytes.extend(text.into_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> v1::RunPodSandboxRequest {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<HashMap<_, _>>()
        };
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "a".to_owned(),
                uid: "u".to_owned(),
                namespace: "n".to_owned(),
                attempt: 0,
            }),
            labels: map(labels),
            annotations: map(annotations),
            ..Default::default()
        };
        v1::RunPodSandboxRequest {
            config: Some(config),
            ..Default::default()
        }
    }

    #[test]
    fn the_order_of_a_map_makes_no_difference() {
        let many: Vec<_> = ('a'..='z').map(|c| (c.to_string(), c.to_string())).collect();
        let pairs: Vec<_> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let first = pod_fingerprint(request(&pairs, &[]));
        for _ in 0..20 {
            assert_eq!(pod_fingerprint(request(&pairs, &[])), first);
        }
    }

    #[test]
    fn a_changed_request_has_another_fingerprint() {
        let prints = [
            pod_fingerprint(request(&[], &[])),
            pod_fingerprint(request(&[("a", "b")], &[])),
            pod_fingerprint(request(&[("ab", "")], &[])),
            pod_fingerprint(request(&[], &[("a", "b")])),
            pod_fingerprint(v1::RunPodSandboxRequest {
                runtime_handler: "x".to_owned(),
                ..request(&[], &[])
            }),
        ];
        for (i, a) in prints.iter().enumerate() {
            assert!(prints[i + 1..].iter().all(|b| a != b), "{i}");
        }
    }

    #[test]
    fn a_kept_request_reads_back() {
        let run = run_pod(request(&[("a", "b")], &[])).unwrap();
        assert_eq!((DECODE.pod)(&run.encoded).unwrap(), run.config);
        assert!((DECODE.pod)(b"\xff").is_err());
    }
}
