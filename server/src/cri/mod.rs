//! The two services of the CRI: every RPC delegates in one line to the file of its family.
//!
//! Owns the edge: messages come in and go out here and nowhere else. Decides nothing; a message becomes a
//! checked value of the model, the engine carries it out or the snapshot answers it.

pub mod container;
pub mod convert;
pub mod deadline;
pub mod events;
pub mod exec;
pub mod fault;
pub mod filter;
pub mod image;
pub mod layers;
pub mod list;
pub mod metrics;
pub mod pod;
pub mod request;
pub mod stats;
pub mod streaming;
pub mod version_status;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use podd_proto::v1;
use podd_proto::v1::image_service_server::ImageService;
use podd_proto::v1::runtime_service_server::RuntimeService;
use tonic::{Request, Response, Status, async_trait};

use crate::engine::Engine;
use crate::streaming::Streaming;
use fault::Fault;

/// A stream of messages, as tonic wants it.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Both services.
#[derive(Debug, Clone)]
pub struct Cri {
    engine: Arc<Engine>,
    streaming: Arc<Streaming>,
}

impl Cri {
    /// The services on top of an engine, and the server that their streaming calls name.
    #[must_use]
    pub fn new(engine: Arc<Engine>, streaming: Arc<Streaming>) -> Self {
        Self { engine, streaming }
    }
}

/// An answer, or what the client is told instead.
fn answer<T>(result: Result<T, Fault>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(Status::from)
}

/// The answer of an RPC that podd does not have yet.
fn unimplemented<T>(rpc: &'static str) -> Result<Response<T>, Status> {
    answer(Err(Fault::Unimplemented(rpc)))
}

#[async_trait]
impl RuntimeService for Cri {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Result<Response<v1::VersionResponse>, Status> {
        answer(Ok(version_status::version()))
    }

    async fn status(&self, r: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        answer(Ok(version_status::status(&self.engine, r.into_inner().verbose)))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        answer(Ok(version_status::runtime_config(&self.engine)))
    }

    async fn update_runtime_config(
        &self,
        r: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        answer(version_status::update_runtime_config(&self.engine, r.into_inner()).await)
    }

    async fn run_pod_sandbox(
        &self,
        r: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        answer(pod::run(&self.engine, r.into_inner()).await)
    }

    async fn stop_pod_sandbox(
        &self,
        r: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        answer(pod::stop(&self.engine, &r.into_inner().pod_sandbox_id).await)
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        answer(pod::remove(&self.engine, &r.into_inner().pod_sandbox_id).await)
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        answer(pod::status(&self.engine, &r.into_inner()).await)
    }

    async fn list_pod_sandbox(
        &self,
        r: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        answer(pod::list(&self.engine, r.into_inner().filter))
    }

    type StreamPodSandboxesStream = Messages<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        r: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        answer(Ok(pod::stream(&self.engine, r.into_inner().filter)))
    }

    async fn create_container(
        &self,
        r: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        answer(container::create(&self.engine, r.into_inner()).await)
    }

    async fn start_container(
        &self,
        r: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        answer(container::start(&self.engine, &r.into_inner().container_id).await)
    }

    async fn stop_container(
        &self,
        r: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        answer(container::stop(&self.engine, &r.into_inner()).await)
    }

    async fn remove_container(
        &self,
        r: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        answer(container::remove(&self.engine, &r.into_inner().container_id).await)
    }

    async fn list_containers(
        &self,
        r: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        answer(container::list(&self.engine, r.into_inner().filter))
    }

    type StreamContainersStream = Messages<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        r: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        answer(Ok(container::stream(&self.engine, r.into_inner().filter)))
    }

    async fn container_status(
        &self,
        r: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        answer(container::status(&self.engine, &r.into_inner()).await)
    }

    async fn update_container_resources(
        &self,
        r: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        answer(container::update(&self.engine, &r.into_inner()).await)
    }

    async fn update_pod_sandbox_resources(
        &self,
        r: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        answer(pod::update(&self.engine, &r.into_inner()).await)
    }

    async fn reopen_container_log(
        &self,
        r: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        answer(container::reopen_log(&self.engine, &r.into_inner().container_id).await)
    }

    async fn exec_sync(
        &self,
        r: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        answer(exec::exec_sync(&self.engine, r.into_inner()).await)
    }

    async fn exec(&self, r: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        answer(streaming::exec(&self.engine, &self.streaming, r.into_inner()))
    }

    async fn attach(&self, r: Request<v1::AttachRequest>) -> Result<Response<v1::AttachResponse>, Status> {
        answer(streaming::attach(&self.engine, &self.streaming, &r.into_inner()))
    }

    async fn port_forward(
        &self,
        r: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        answer(streaming::port_forward(
            &self.engine,
            &self.streaming,
            &r.into_inner(),
        ))
    }

    async fn container_stats(
        &self,
        r: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        answer(stats::container(&self.engine, &r.into_inner()).await)
    }

    async fn list_container_stats(
        &self,
        r: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        answer(stats::list_containers(&self.engine, r.into_inner().filter).await)
    }

    type StreamContainerStatsStream = Messages<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        r: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        answer(Ok(stats::stream_containers(&self.engine, r.into_inner().filter)))
    }

    async fn pod_sandbox_stats(
        &self,
        r: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        answer(stats::pod(&self.engine, &r.into_inner()).await)
    }

    async fn list_pod_sandbox_stats(
        &self,
        r: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        answer(stats::list_pods(&self.engine, r.into_inner().filter).await)
    }

    type StreamPodSandboxStatsStream = Messages<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        r: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        answer(Ok(stats::stream_pods(&self.engine, r.into_inner().filter)))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        unimplemented("CheckpointContainer")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        unimplemented("CheckpointPod")
    }

    async fn restore_pod(
        &self,
        _: Request<v1::RestorePodRequest>,
    ) -> Result<Response<v1::RestorePodResponse>, Status> {
        unimplemented("RestorePod")
    }

    type GetContainerEventsStream = Messages<v1::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        answer(Ok(events::stream(&self.engine)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        answer(Ok(metrics::describe()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        answer(metrics::list(&self.engine).await)
    }

    type StreamPodSandboxMetricsStream = Messages<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        answer(Ok(metrics::stream(&self.engine)))
    }
}

#[async_trait]
impl ImageService for Cri {
    async fn list_images(
        &self,
        r: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        answer(image::list(&self.engine, r.into_inner().filter))
    }

    type StreamImagesStream = Messages<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        r: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        answer(Ok(image::stream(&self.engine, r.into_inner().filter)))
    }

    async fn image_status(
        &self,
        r: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        answer(image::status(&self.engine, r.into_inner()).await)
    }

    async fn pull_image(
        &self,
        r: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        answer(image::pull(&self.engine, r.into_inner()).await)
    }

    async fn remove_image(
        &self,
        r: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        answer(image::remove(&self.engine, r.into_inner()).await)
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        answer(Ok(image::fs_info(&self.engine)))
    }
}
