//! Version, Status, RuntimeConfig, UpdateRuntimeConfig.

use std::collections::HashMap;
use std::sync::Arc;

use podd_proto::v1;

use super::fault::Fault;
use crate::config::CgroupDriver;
use crate::engine::Engine;

/// What the kubelet insists on for `version`; it is not the version of podd.
const KUBELET_API: &str = "0.1.0";

/// Version.
#[must_use]
pub fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "podd".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// Status: conditions as they are now, features as they were probed.
#[must_use]
pub fn status(engine: &Arc<Engine>, verbose: bool) -> v1::StatusResponse {
    let features = engine.native.features();
    let conditions = vec![
        condition("RuntimeReady", "RuntimeNotReady", engine.native.runtime_ready()),
        condition("NetworkReady", "NetworkNotReady", engine.native.network_ready()),
    ];
    let handler = v1::RuntimeHandler {
        name: String::new(),
        features: Some(v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: features.recursive_read_only_mounts,
            user_namespaces: features.user_namespaces,
        }),
    };
    v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions }),
        info: if verbose { info(engine) } else { HashMap::new() },
        runtime_handlers: vec![handler],
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: features.supplemental_groups_policy,
            user_namespaces_host_network: features.user_namespaces_host_network,
            mount_options: features.mount_options,
        }),
    }
}

fn condition(kind: &str, reason: &str, ready: Result<(), String>) -> v1::RuntimeCondition {
    let (status, reason, message) = match ready {
        Ok(()) => (true, "", String::new()),
        Err(message) => (false, reason, message),
    };
    v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
    }
}

/// What podd tells of itself, and under `config`, where clients of other runtimes look, how it is configured; with the
/// names that those know for what podd has too.
fn info(engine: &Engine) -> HashMap<String, String> {
    let snapshot = engine.snapshot();
    let mut config = serde_json::json!(*engine.config);
    config["maxContainerLogLineSize"] = runtime_core::pod::MAX_CONTENT.into();
    config["rootDir"] = engine.config.state_dir.to_string_lossy().into();
    config["stateDir"] = engine.config.run_dir.to_string_lossy().into();
    let info = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "bootId": engine.state.boot_id(),
        "noUserNamespaces": engine.native.user_namespaces_ready().err(),
        "pods": snapshot.pods().count(),
        "containers": snapshot.containers().count(),
    });
    [("info", info), ("config", config)]
        .map(|(key, value)| (key.to_owned(), value.to_string()))
        .into()
}

/// RuntimeConfig: the driver that the kubelet has to use.
#[must_use]
pub fn runtime_config(engine: &Arc<Engine>) -> v1::RuntimeConfigResponse {
    let driver = match engine.native.cgroup_driver() {
        CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
        CgroupDriver::Cgroupfs | CgroupDriver::Auto => v1::CgroupDriver::Cgroupfs,
    };
    let linux = v1::LinuxRuntimeConfiguration {
        cgroup_driver: driver.into(),
    };
    v1::RuntimeConfigResponse { linux: Some(linux) }
}

/// UpdateRuntimeConfig: the kubelet's way to say which addresses the node's pods have.
pub async fn update_runtime_config(
    engine: &Arc<Engine>,
    request: v1::UpdateRuntimeConfigRequest,
) -> Result<v1::UpdateRuntimeConfigResponse, Fault> {
    let network = request
        .runtime_config
        .and_then(|c| c.network_config)
        .unwrap_or_default();
    engine.update_runtime_config(&network.pod_cidr).await?;
    Ok(v1::UpdateRuntimeConfigResponse {})
}
