//! Create-, Start-, Stop- and RemoveContainer, ContainerStatus, ListContainers, UpdateContainerResources,
//! ReopenContainerLog.

use std::sync::Arc;
use std::time::Duration;

use podd_proto::v1;
use tracing::{Span, info};

use super::fault::Fault;
use super::list::{self, Calls};
use super::{Messages, convert, filter, request};
use crate::engine::Engine;
use crate::state::store::Container;

/// CreateContainer.
pub async fn create(
    engine: &Arc<Engine>,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Fault> {
    Span::current().record("pod", &request.pod_sandbox_id);
    let request = request::create_container(request)?;
    let name = request.config.metadata.clone();
    let id = engine.create_container(request).await?;
    Span::current().record("container", id.as_str());
    info!(name = name.name, attempt = name.attempt, "container is created");
    Ok(v1::CreateContainerResponse {
        container_id: id.to_string(),
    })
}

/// StartContainer.
pub async fn start(engine: &Arc<Engine>, id: &str) -> Result<v1::StartContainerResponse, Fault> {
    Span::current().record("container", id);
    engine.start_container(id).await?;
    Ok(v1::StartContainerResponse {})
}

/// StopContainer. A negative grace period is none at all.
pub async fn stop(
    engine: &Arc<Engine>,
    request: &v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, Fault> {
    Span::current().record("container", &request.container_id);
    let grace = Duration::from_secs(request.timeout.try_into().unwrap_or_default());
    engine.stop_container(&request.container_id, grace).await?;
    Ok(v1::StopContainerResponse {})
}

/// RemoveContainer.
pub async fn remove(engine: &Arc<Engine>, id: &str) -> Result<v1::RemoveContainerResponse, Fault> {
    Span::current().record("container", id);
    engine.remove_container(id).await?;
    Ok(v1::RemoveContainerResponse {})
}

/// ContainerStatus, from the snapshot; resources as the kernel has them.
pub async fn status(
    engine: &Arc<Engine>,
    request: &v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Fault> {
    Span::current().record("container", &request.container_id);
    let container = engine.find_container(&request.container_id)?;
    let held_to = engine.container_resources(vec![Arc::clone(&container)]);
    let resources = held_to.await.map_err(Arc::new)?.pop().unwrap_or_default();
    Ok(v1::ContainerStatusResponse {
        status: Some(convert::container_status(&container, &resources)),
        info: if request.verbose {
            let spec = engine.container_spec(&container, &resources);
            convert::container_info(&container, spec.await.map_err(Arc::new)?.as_ref())
        } else {
            Default::default()
        },
    })
}

/// ListContainers, from the snapshot.
pub fn list(
    engine: &Engine,
    wanted: Option<v1::ContainerFilter>,
) -> Result<v1::ListContainersResponse, Fault> {
    let calls = Calls {
        whole: "ListContainers",
        stream: "StreamContainers",
    };
    let found = select(engine, wanted);
    let containers = calls.whole(engine, found.iter().map(|c| convert::container(c)))?;
    Ok(v1::ListContainersResponse { containers })
}

/// StreamContainers, from the snapshot.
pub fn stream(
    engine: &Engine,
    wanted: Option<v1::ContainerFilter>,
) -> Messages<v1::StreamContainersResponse> {
    list::each(select(engine, wanted), |c| v1::StreamContainersResponse {
        containers: vec![convert::container(&c)],
    })
}

fn select(engine: &Engine, wanted: Option<v1::ContainerFilter>) -> Vec<Arc<Container>> {
    let wanted = wanted.unwrap_or_default();
    let snapshot = engine.snapshot();
    let containers = snapshot.containers().filter(|c| filter::container(&wanted, c));
    containers.cloned().collect()
}

/// UpdateContainerResources. What is zero or empty stays as it is. Annotations are hints for experiments.
pub async fn update(
    engine: &Arc<Engine>,
    request: &v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, Fault> {
    Span::current().record("container", &request.container_id);
    let change = request::resources("linux", request.linux.as_ref())?;
    if request.windows.is_some() {
        return Err(Fault::invalid("windows", "this is a Linux node"));
    }
    engine.update_container(&request.container_id, change).await?;
    Ok(v1::UpdateContainerResourcesResponse {})
}

/// ReopenContainerLog.
pub async fn reopen_log(engine: &Arc<Engine>, id: &str) -> Result<v1::ReopenContainerLogResponse, Fault> {
    Span::current().record("container", id);
    engine.reopen_log(id).await?;
    Ok(v1::ReopenContainerLogResponse {})
}
