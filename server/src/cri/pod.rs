//! RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox, UpdatePodSandboxResources.

use std::sync::Arc;

use podd_proto::v1;
use tracing::{Span, info};

use super::fault::Fault;
use super::list::{self, Calls};
use super::{Messages, convert, filter, request};
use crate::engine::Engine;
use crate::state::record::PodResources;
use crate::state::store::Pod;

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

/// PodSandboxStatus, from the snapshot; resources as the kernel has them.
pub async fn status(
    engine: &Arc<Engine>,
    request: &v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Fault> {
    Span::current().record("pod", &request.pod_sandbox_id);
    // Before the snapshot is read: the kubelet orders this status among the events by it.
    let timestamp = engine.state.feed().moment();
    let pod = engine.find_pod(&request.pod_sandbox_id)?;
    let snapshot = engine.snapshot();
    let listed = snapshot.containers_of(&pod.record.id).filter(|c| c.is_listed());
    let containers: Vec<_> = listed.cloned().collect();
    let held_to = engine.container_resources(containers.clone());
    let resources = held_to.await.map_err(Arc::new)?;
    let statuses = containers.iter().zip(&resources);
    Ok(v1::PodSandboxStatusResponse {
        status: Some(convert::pod_status(&pod)),
        info: if request.verbose {
            let resources = engine.pod_resources(&pod).await.map_err(Arc::new)?;
            let namespaces = engine.pod_namespaces(&pod).await.map_err(Arc::new)?;
            convert::pod_info(&pod, &resources, &namespaces)
        } else {
            Default::default()
        },
        containers_statuses: statuses.map(|(c, r)| convert::container_status(c, r)).collect(),
        timestamp,
    })
}

/// UpdatePodSandboxResources. What is zero or empty stays as it is.
pub async fn update(
    engine: &Arc<Engine>,
    request: &v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse, Fault> {
    Span::current().record("pod", &request.pod_sandbox_id);
    let change = PodResources {
        resources: request::resources("resources", request.resources.as_ref())?,
        overhead: request::resources("overhead", request.overhead.as_ref())?,
    };
    engine.update_pod(&request.pod_sandbox_id, change).await?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}

/// ListPodSandbox, from the snapshot.
pub fn list(
    engine: &Engine,
    wanted: Option<v1::PodSandboxFilter>,
) -> Result<v1::ListPodSandboxResponse, Fault> {
    let calls = Calls {
        whole: "ListPodSandbox",
        stream: "StreamPodSandboxes",
    };
    let found = select(engine, wanted);
    let items = calls.whole(engine, found.iter().map(|p| convert::pod(p)))?;
    Ok(v1::ListPodSandboxResponse { items })
}

/// StreamPodSandboxes, from the snapshot.
pub fn stream(
    engine: &Engine,
    wanted: Option<v1::PodSandboxFilter>,
) -> Messages<v1::StreamPodSandboxesResponse> {
    list::each(select(engine, wanted), |p| v1::StreamPodSandboxesResponse {
        pod_sandboxes: vec![convert::pod(&p)],
    })
}

fn select(engine: &Engine, wanted: Option<v1::PodSandboxFilter>) -> Vec<Arc<Pod>> {
    let wanted = wanted.unwrap_or_default();
    let snapshot = engine.snapshot();
    let pods = snapshot.pods().filter(|p| filter::pod(&wanted, p));
    pods.cloned().collect()
}
