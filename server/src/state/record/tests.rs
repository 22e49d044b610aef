//! Tests of the records, and the pods and containers that other tests of this crate are about.

use std::sync::Arc;

use super::*;
use crate::cri::request;
use crate::engine::inflight::Fingerprint;
use crate::model::StopSignal;
use crate::state::recover::Decode;
use crate::state::store::{Container, Pod};
use podd_proto::v1;
use prost::Message as _;

/// How tests read requests: as the daemon does.
pub(crate) const DECODE: Decode = request::DECODE;

/// A pod that is being created.
pub(crate) fn pod(name: &str, attempt: u32) -> Pod {
    let metadata = v1::PodSandboxMetadata {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        namespace: "default".to_owned(),
        attempt,
    };
    let config = v1::PodSandboxConfig {
        metadata: Some(metadata),
        labels: [("app".to_owned(), name.to_owned())].into(),
        log_directory: "/var/log/pods/x".to_owned(),
        ..Default::default()
    };
    let request = v1::RunPodSandboxRequest {
        config: Some(config),
        ..Default::default()
    }
    .encode_to_vec();
    let config = (DECODE.pod)(&request).unwrap();
    let record = PodRecord {
        version: VERSION,
        id: PodId::random().unwrap(),
        boot_id: "boot".to_owned(),
        name: name.to_owned(),
        namespace: "default".to_owned(),
        uid: format!("uid-{name}"),
        attempt,
        runtime_handler: String::new(),
        created_at: 1_000,
        phase: PodPhase::Creating,
        leftover: false,
        fingerprint: Fingerprint::of(&request).to_string(),
        request: Encoded(request.into()),
        cgroup: None,
        scope: None,
        selinux_level: None,
        attachment: None,
        podinit: None,
        next_handle: IgnoredAny,
        updated: None,
    };
    Pod {
        record,
        config: Arc::new(config),
        lock: Arc::default(),
    }
}

/// A container that is being created.
pub(crate) fn container(pod: &Pod, name: &str) -> Container {
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: "busybox:1".to_owned(),
            ..Default::default()
        }),
        labels: [("role".to_owned(), name.to_owned())].into(),
        log_path: format!("{name}/0.log"),
        ..Default::default()
    };
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.record.id.to_string(),
        config: Some(config),
        sandbox_config: None,
    }
    .encode_to_vec();
    let config = (DECODE.container)(&request).unwrap();
    let record = ContainerRecord {
        version: VERSION,
        id: ContainerId::random().unwrap(),
        pod: pod.record.id,
        boot_id: "boot".to_owned(),
        handle: 0,
        name: name.to_owned(),
        attempt: 0,
        created_at: 2_000,
        phase: ContainerPhase::Creating,
        leftover: false,
        fingerprint: Fingerprint::of(&request).to_string(),
        request: Encoded(request.into()),
        image_id: format!("sha256:{}", "1".repeat(64)),
        image_ref: format!("docker.io/library/busybox@sha256:{}", "2".repeat(64)),
        layers: vec![],
        image_volumes: Vec::new(),
        cdi: None,
        log_path: Some(PathBuf::from(format!("/var/log/pods/x/{name}/0.log"))),
        cgroup: None,
        stop_signal: StopSignal::TERM,
        identity: None,
        updated: None,
    };
    Container {
        record,
        config: Arc::new(config),
        lock: Arc::default(),
    }
}

#[test]
fn records_read_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let pod = pod("a", 3);
    let container = container(&pod, "c");
    records.save_pod(&pod.record).unwrap();
    records.save_container(&container.record).unwrap();
    assert_eq!(records.pod_names().unwrap(), [pod.record.id.as_str()]);
    assert_eq!(records.load_pod(pod.record.id.as_str()).unwrap(), pod.record);
    let loaded = records
        .load_container(&pod.record.id, container.record.id.as_str())
        .unwrap();
    assert_eq!(loaded, container.record);
    let text = std::fs::read_to_string(records.pod_dir(&pod.record.id).join("pod.json")).unwrap();
    assert!(
        text.starts_with("{\"version\":1,") && text.contains("\"name\":\"a\""),
        "{text}"
    );
}

#[test]
fn deleting_takes_all_and_is_idempotent() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let pod = pod("a", 0);
    let container = container(&pod, "c");
    records.save_pod(&pod.record).unwrap();
    records.save_container(&container.record).unwrap();
    let upper = records
        .container_dir(&pod.record.id, &container.record.id)
        .join("upper/x/y");
    std::fs::create_dir_all(upper).unwrap();
    records
        .delete_container(&pod.record.id, &container.record.id)
        .unwrap();
    records
        .delete_container(&pod.record.id, &container.record.id)
        .unwrap();
    assert!(records.container_names(&pod.record.id).unwrap().is_empty());
    records.delete_pod(&pod.record.id).unwrap();
    records.delete_pod(&pod.record.id).unwrap();
    assert!(records.pod_names().unwrap().is_empty());
    records.trash().wait_empty();
    assert_eq!(std::fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
}

#[test]
fn a_record_in_the_wrong_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let pod = pod("a", 0);
    records.save_pod(&pod.record).unwrap();
    let other = PodId::random().unwrap();
    std::fs::rename(records.pod_dir(&pod.record.id), records.pod_dir(&other)).unwrap();
    assert!(matches!(
        records.load_pod(other.as_str()),
        Err(RecordError::Misplaced { .. })
    ));
}

/// Pods outlive podd: what the first podd wrote, with all that was in it, is read by every later one; and what a later
/// one writes of the same pod an earlier one understands, which refuses fields that it does not know.
#[test]
fn records_of_the_first_podd_are_read_and_written_as_they_were() {
    let pod = include_str!("v1/pod.json");
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let same = |record: serde_json::Value, text: &str| {
        assert_eq!(record, serde_json::from_str::<serde_json::Value>(text).unwrap());
    };
    for (container, phase) in [
        (include_str!("v1/running.json"), "running"),
        (include_str!("v1/exited.json"), "exited"),
    ] {
        let id = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
        let (pod_id, container_id) = (id(pod)["id"].clone(), id(container)["id"].clone());
        let pod_id: PodId = serde_json::from_value(pod_id).unwrap();
        let container_id: ContainerId = serde_json::from_value(container_id).unwrap();
        let place = records.container_dir(&pod_id, &container_id);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(records.pod_dir(&pod_id).join("pod.json"), pod).unwrap();
        std::fs::write(place.join("container.json"), container).unwrap();

        let found = records.load_pod(pod_id.as_str()).unwrap();
        assert_eq!(found.phase, PodPhase::Ready);
        assert!(found.attachment.is_some());
        let config = (DECODE.pod)(&found.request.0).unwrap();
        assert_eq!((config.metadata.name.as_str(), config.sysctls.len()), ("web", 1));
        let mut written = serde_json::to_value(&found).unwrap();
        written["next_handle"] = 1.into();
        same(written, pod);

        let found = records.load_container(&pod_id, container_id.as_str()).unwrap();
        assert_eq!(found.phase.name(), phase);
        let config = (DECODE.container)(&found.request.0).unwrap();
        assert_eq!(config.metadata.name, "c");
        same(serde_json::to_value(&found).unwrap(), container);
    }
}

#[test]
fn pods_are_set_apart_on_ext4() {
    // Beside the test itself: /tmp is often in memory.
    let exe = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
    let pods = Records::open(dir.path()).unwrap().pods_dir();
    Records::open(dir.path()).unwrap();
    let flags = File::open(&pods).map(|dir| ioctl_getflags(&dir).unwrap_or(IFlags::empty()));
    // EXT4_SUPER_MAGIC of statfs(2).
    let is_ext4 = rustix::fs::statfs(&pods).unwrap().f_type == 0xef53;
    assert_eq!(flags.unwrap().contains(IFlags::TOPDIR), is_ext4);
}
