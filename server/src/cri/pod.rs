//! RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox.

use std::sync::Arc;

use podd_proto::v1;
use tracing::{Span, info};

use super::fault::Fault;
use super::{convert, filter, request};
use crate::engine::{Engine, now};

/// RunPodSandbox.
pub async fn run(
    engine: &Arc<Engine>,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, Fault> {
    let request = request::run_pod(request)?;
    let name = request.config.metadata.clone();
    let id = engine.run_pod(request).await?;
    Span::current().record("pod", id.as_str());
    info!(
        namespace = name.namespace,
        name = name.name,
        attempt = name.attempt,
        "pod is ready"
    );
    Ok(v1::RunPodSandboxResponse {
        pod_sandbox_id: id.to_string(),
    })
}

/// StopPodSandbox.
pub async fn stop(engine: &Arc<Engine>, id: &str) -> Result<v1::StopPodSandboxResponse, Fault> {
    Span::current().record("pod", id);
    engine.stop_pod(id).await?;
    Ok(v1::StopPodSandboxResponse {})
}

/// RemovePodSandbox.
pub async fn remove(engine: &Arc<Engine>, id: &str) -> Result<v1::RemovePodSandboxResponse, Fault> {
    Span::current().record("pod", id);
    engine.remove_pod(id).await?;
    Ok(v1::RemovePodSandboxResponse {})
}

/// PodSandboxStatus, from the snapshot.
pub fn status(
    engine: &Arc<Engine>,
    request: &v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Fault> {
    Span::current().record("pod", &request.pod_sandbox_id);
    let pod = engine.find_pod(&request.pod_sandbox_id)?;
    let snapshot = engine.snapshot();
    let containers = snapshot.containers_of(&pod.record.id).filter(|c| c.is_listed());
    Ok(v1::PodSandboxStatusResponse {
        status: Some(convert::pod_status(&pod)),
        info: if request.verbose {
            convert::pod_info(&pod)
        } else {
            Default::default()
        },
        containers_statuses: containers.map(|c| convert::container_status(c)).collect(),
        timestamp: now(),
    })
}

/// ListPodSandbox, from the snapshot.
pub fn list(engine: &Arc<Engine>, wanted: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
    let wanted = wanted.unwrap_or_default();
    let snapshot = engine.snapshot();
    snapshot
        .pods()
        .filter(|p| filter::pod(&wanted, p))
        .map(|p| convert::pod(p))
        .collect()
}
