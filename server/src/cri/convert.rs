//! From what podd remembers to the messages of the CRI. Pure: a snapshot's object in, a message out.

use std::collections::{BTreeMap, HashMap};

use oci_spec::runtime::{LinuxNamespace, Spec};
use podd_proto::v1;
use prost::Message as _;

use crate::model::{CpuQuota, HugepageLimit, ImageSpec, PodMetadata, Resources, Share, SwapLimit};
use crate::state::phase::{ContainerPhase, Exit, PodPhase};
use crate::state::store::{Container, Pod};

/// The state of a pod in the words of the CRI.
#[must_use]
pub fn pod_state(pod: &Pod) -> v1::PodSandboxState {
    match pod.record.phase {
        PodPhase::Ready => v1::PodSandboxState::SandboxReady,
        PodPhase::Creating | PodPhase::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

/// The state of a container in the words of the CRI.
#[must_use]
pub fn container_state(container: &Container) -> v1::ContainerState {
    match container.record.phase {
        ContainerPhase::Creating => v1::ContainerState::ContainerUnknown,
        ContainerPhase::Created { .. } => v1::ContainerState::ContainerCreated,
        ContainerPhase::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerPhase::Exited(_) => v1::ContainerState::ContainerExited,
    }
}

/// A pod in a list.
#[must_use]
pub fn pod(pod: &Pod) -> v1::PodSandbox {
    v1::PodSandbox {
        id: pod.record.id.to_string(),
        metadata: Some(pod_metadata(&pod.config.metadata)),
        state: pod_state(pod).into(),
        created_at: pod.record.created_at,
        labels: map(&pod.config.labels),
        annotations: map(&pod.config.annotations),
        runtime_handler: pod.record.runtime_handler.clone(),
    }
}

/// A pod in full.
#[must_use]
pub fn pod_status(pod: &Pod) -> v1::PodSandboxStatus {
    // What is in a record was read once already, when the pod was made or recovered.
    let request = v1::RunPodSandboxRequest::decode(&*pod.record.request.0).unwrap_or_default();
    let linux = request
        .config
        .and_then(|c| c.linux)
        .and_then(|l| l.security_context);
    let options = linux.and_then(|s| s.namespace_options).unwrap_or_default();
    v1::PodSandboxStatus {
        id: pod.record.id.to_string(),
        metadata: Some(pod_metadata(&pod.config.metadata)),
        state: pod_state(pod).into(),
        created_at: pod.record.created_at,
        network: Some(network(pod)),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(options),
            }),
        }),
        labels: map(&pod.config.labels),
        annotations: map(&pod.config.annotations),
        runtime_handler: pod.record.runtime_handler.clone(),
    }
}

/// The pod's addresses. A host-network pod has none of its own, and says so by an empty text.
fn network(pod: &Pod) -> v1::PodSandboxNetworkStatus {
    if pod.config.namespaces.network == Share::Node {
        return v1::PodSandboxNetworkStatus::default();
    }
    let mut addresses = pod
        .record
        .attachment
        .iter()
        .flat_map(|a| &a.addresses)
        .map(|a| a.address.to_string());
    let ip = addresses.next().unwrap_or_default();
    v1::PodSandboxNetworkStatus {
        ip,
        additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
    }
}

/// What `verbose` adds to the status of a pod. It has no OCI spec; what people look for in one is told as such.
#[must_use]
pub fn pod_info(pod: &Pod, resources: &Resources, namespaces: &[LinuxNamespace]) -> HashMap<String, String> {
    let record = &pod.record;
    let sysctls = pod.config.sysctls.iter();
    let sysctls: BTreeMap<_, _> = sysctls.map(|it| (&it.key, &it.value)).collect();
    info(&serde_json::json!({
        "pid": record.podinit.map(|p| p.pid),
        "cgroup": record.cgroup,
        "bootId": record.boot_id,
        "attachment": record.attachment,
        "resources": resources,
        "leftover": record.leftover,
        "runtimeSpec": {
            "hostname": pod.config.hostname,
            "annotations": pod.config.annotations,
            "linux": { "namespaces": namespaces, "sysctl": sysctls },
        },
    }))
}

/// A container in a list.
#[must_use]
pub fn container(container: &Container) -> v1::Container {
    let (record, config) = (&container.record, &container.config);
    v1::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.pod.to_string(),
        metadata: Some(metadata(container)),
        image: Some(image_spec(&config.image)),
        image_ref: record.image_ref.clone(),
        state: container_state(container).into(),
        created_at: record.created_at,
        labels: map(&config.labels),
        annotations: map(&config.annotations),
        image_id: record.image_id.clone(),
    }
}

/// A container in full; `resources` is what it is held to.
#[must_use]
pub fn container_status(container: &Container, resources: &Resources) -> v1::ContainerStatus {
    let (record, config) = (&container.record, &container.config);
    let request = v1::CreateContainerRequest::decode(&*record.request.0).unwrap_or_default();
    let asked = request.config.unwrap_or_default();
    let times = times(&record.phase);
    let user = record.identity.as_ref().map(|identity| v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: identity.uid.into(),
            gid: identity.gid.into(),
            supplemental_groups: identity.groups.iter().map(|g| i64::from(*g)).collect(),
        }),
    });
    v1::ContainerStatus {
        id: record.id.to_string(),
        metadata: Some(metadata(container)),
        state: container_state(container).into(),
        created_at: record.created_at,
        started_at: times.started_at,
        finished_at: times.finished_at,
        exit_code: times.code,
        image: Some(image_spec(&config.image)),
        image_ref: record.image_ref.clone(),
        reason: times.reason.to_owned(),
        message: times.message.to_owned(),
        labels: map(&config.labels),
        annotations: map(&config.annotations),
        mounts: mounts(asked.mounts, container),
        log_path: record
            .log_path
            .as_ref()
            .map(|p| p.display().to_string())
            .unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(linux_resources(resources)),
            windows: None,
        }),
        image_id: record.image_id.clone(),
        user,
        stop_signal: record.stop_signal.to_cri(),
    }
}

/// Resources as the CRI writes them: what is not given is zero or empty, and no limit of memory too.
fn linux_resources(resources: &Resources) -> v1::LinuxContainerResources {
    let limit = |it: &HugepageLimit| v1::HugepageLimit {
        page_size: it.page_size.clone(),
        limit: it.limit,
    };
    v1::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period),
        cpu_quota: match resources.cpu_quota {
            Some(CpuQuota::Unlimited) => -1,
            Some(CpuQuota::Micros(micros)) => signed(Some(micros)),
            None => 0,
        },
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: signed(resources.memory_limit),
        oom_score_adj: resources.oom_score_adj.into(),
        cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: resources.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: resources.hugepages.iter().map(limit).collect(),
        unified: map(&resources.unified),
        memory_swap_limit_in_bytes: match resources.memory_swap_limit {
            Some(SwapLimit::Unlimited) => -1,
            Some(SwapLimit::Bytes(bytes)) => signed(Some(bytes)),
            None => 0,
        },
    }
}

fn signed(value: Option<u64>) -> i64 {
    i64::try_from(value.unwrap_or(0)).unwrap_or(i64::MAX)
}

/// The mounts as asked for, and which image each image volume is of (KEP-5365).
fn mounts(mut asked: Vec<v1::Mount>, container: &Container) -> Vec<v1::Mount> {
    for (mount, known) in asked.iter_mut().zip(&container.config.mounts) {
        let mut volumes = container.record.image_volumes.iter();
        let volume = volumes.find(|volume| volume.path == known.container_path);
        if let (Some(image), Some(volume)) = (&mut mount.image, volume) {
            image.image_ref.clone_from(&volume.image_id);
            // A kubelet keeps the images from its garbage collection that it finds under this name.
            image.image.clone_from(&volume.image_id);
        }
    }
    asked
}

/// What `verbose` adds to the status of a container; `spec` is its OCI spec, if one was decided.
#[must_use]
pub fn container_info(container: &Container, spec: Option<&Spec>) -> HashMap<String, String> {
    let record = &container.record;
    let pid = match record.phase {
        ContainerPhase::Created { pid } | ContainerPhase::Running { pid, .. } => Some(pid),
        ContainerPhase::Creating | ContainerPhase::Exited(_) => None,
    };
    info(&serde_json::json!({
        "sandboxID": record.pod,
        "pid": pid,
        "handle": record.handle,
        "cgroup": record.cgroup,
        "bootId": record.boot_id,
        "layers": record.layers,
        "leftover": record.leftover,
        "privileged": container.config.security.privileged,
        "runtimeSpec": spec,
    }))
}

struct Times<'a> {
    started_at: i64,
    finished_at: i64,
    code: i32,
    reason: &'a str,
    message: &'a str,
}

fn times(phase: &ContainerPhase) -> Times<'_> {
    let never = Times {
        started_at: 0,
        finished_at: 0,
        code: 0,
        reason: "",
        message: "",
    };
    match phase {
        ContainerPhase::Creating | ContainerPhase::Created { .. } => never,
        ContainerPhase::Running { started_at, .. } => Times {
            started_at: *started_at,
            ..never
        },
        ContainerPhase::Exited(Exit {
            code,
            reason,
            message,
            started_at,
            finished_at,
        }) => Times {
            started_at: *started_at,
            finished_at: *finished_at,
            code: *code,
            reason: reason.as_str(),
            message,
        },
    }
}

fn info(value: &serde_json::Value) -> HashMap<String, String> {
    [("info".to_owned(), value.to_string())].into()
}

/// A pod's name as the kubelet gave it.
pub(super) fn pod_metadata(metadata: &PodMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

/// A container's name as the kubelet gave it.
pub(super) fn metadata(container: &Container) -> v1::ContainerMetadata {
    let metadata = &container.config.metadata;
    v1::ContainerMetadata {
        name: metadata.name.clone(),
        attempt: metadata.attempt,
    }
}

/// The image as the user named it: the kubelet sends an id with the name beside it.
pub(super) fn image_name(image: &ImageSpec) -> &str {
    match image.user_specified_image.as_str() {
        "" => &image.image,
        named => named,
    }
}

/// The image in the words of the CRI.
fn image_spec(image: &ImageSpec) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image_name(image).to_owned(),
        annotations: map(&image.annotations),
        user_specified_image: image.user_specified_image.clone(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: image.image_ref.clone(),
    }
}

/// Labels or annotations.
pub(super) fn map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::phase::Reason;
    use crate::state::record::{Identity, tests};

    #[test]
    fn a_pod_is_shown_as_it_was_asked_for() {
        let mut it = tests::pod("a", 2);
        it.record.phase = PodPhase::Ready;
        let status = pod_status(&it);
        assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
        assert_eq!(status.metadata, pod(&it).metadata);
        assert_eq!(status.metadata.unwrap().attempt, 2);
        assert_eq!(status.created_at, 1_000);
        assert_eq!(status.labels["app"], "a");
        assert_eq!(status.network.unwrap().ip, "");
        it.record.phase = PodPhase::NotReady;
        assert_eq!(pod_state(&it), v1::PodSandboxState::SandboxNotready);
    }

    #[test]
    fn a_container_is_shown_through_its_life() {
        let parent = tests::pod("a", 0);
        let mut it = tests::container(&parent, "c");
        it.record.phase = ContainerPhase::Running {
            pid: 7,
            started_at: 5,
        };
        it.record.identity = Some(Identity {
            uid: 1000,
            gid: 3,
            groups: vec![3, 4],
        });
        let status = container_status(&it, &it.config.resources);
        assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
        assert_eq!((status.started_at, status.finished_at), (5, 0));
        assert_eq!(status.log_path, "/var/log/pods/x/c/0.log");
        assert_eq!(status.stop_signal(), v1::Signal::Sigterm);
        assert_eq!(status.image.as_ref().unwrap().image, "busybox:1");
        assert_eq!(status.image_id, container(&it).image_id);
        assert_eq!(status.user.unwrap().linux.unwrap().supplemental_groups, [3, 4]);
        it.record.phase = ContainerPhase::Exited(Exit {
            code: 137,
            reason: Reason::OOMKilled,
            message: String::new(),
            started_at: 5,
            finished_at: 6,
        });
        let status = container_status(&it, &it.config.resources);
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
        assert_eq!((status.started_at, status.finished_at), (5, 6));
    }
}
