//! A blocking client of the CRI socket, and what podd tells beyond the CRI when it is asked to be verbose.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podd_client::MESSAGE;
use podd_proto::v1;
use podd_proto::v1::image_service_client::ImageServiceClient;
use podd_proto::v1::runtime_service_client::RuntimeServiceClient;
use serde::Deserialize;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::failure::Failure;

/// How long podd may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both services behind one socket.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// One method per call: takes the request, blocks, answers.
macro_rules! calls {
    ($client:ident: $($name:ident($call:literal, $request:ident) -> $response:ident;)*) => {
        impl Cri {
            $(
                /// The call of this name.
                ///
                /// # Errors
                /// What podd answered.
                pub fn $name(&self, request: v1::$request) -> Result<v1::$response, Failure> {
                    let mut client = $client::new(self.channel.clone()).max_decoding_message_size(MESSAGE);
                    let mut request = tonic::Request::new(request);
                    request.set_timeout(PATIENCE);
                    let answer = self.runtime.block_on(client.$name(request));
                    answer.map(tonic::Response::into_inner).map_err(|e| Failure::call($call, &e))
                }
            )*
        }
    };
}

calls! { RuntimeServiceClient:
    version("Version", VersionRequest) -> VersionResponse;
    status("Status", StatusRequest) -> StatusResponse;
    list_pod_sandbox("ListPodSandbox", ListPodSandboxRequest) -> ListPodSandboxResponse;
    pod_sandbox_status("PodSandboxStatus", PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    list_containers("ListContainers", ListContainersRequest) -> ListContainersResponse;
    container_status("ContainerStatus", ContainerStatusRequest) -> ContainerStatusResponse;
    list_container_stats("ListContainerStats", ListContainerStatsRequest) -> ListContainerStatsResponse;
    list_pod_sandbox_stats("ListPodSandboxStats", ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    exec("Exec", ExecRequest) -> ExecResponse;
    attach("Attach", AttachRequest) -> AttachResponse;
}

calls! { ImageServiceClient:
    list_images("ListImages", ListImagesRequest) -> ListImagesResponse;
}

impl Cri {
    /// A client of the podd behind `socket`.
    ///
    /// # Errors
    /// Nobody listens there, or not for this user.
    pub fn connect(socket: &Path) -> Result<Self, Failure> {
        // The channel connects by itself and tells less of what is wrong.
        UnixStream::connect(socket).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Failure::NoDaemon(socket.to_owned())
            }
            io::ErrorKind::PermissionDenied => Failure::NotAllowed(socket.to_owned()),
            _ => Failure::Connect {
                socket: socket.to_owned(),
                source,
            },
        })?;
        // One thread beside the main one: it drives the connection while that one waits for a terminal or a file.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Failure::SetUp)?;
        let guard = runtime.enter();
        let channel = podd_client::connect(socket);
        drop(guard);
        Ok(Self { runtime, channel })
    }

    /// The runtime, for signals.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Gives every event to `take`, until it fails or podd ends the stream.
    ///
    /// # Errors
    /// What `take` answered, or why podd tells no more.
    pub fn events(
        &self,
        mut take: impl FnMut(v1::ContainerEventResponse) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let failed = |e: tonic::Status| Failure::call("GetContainerEvents", &e);
        let mut client = RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE);
        let begun = self
            .runtime
            .block_on(client.get_container_events(v1::GetEventsRequest::default()));
        let mut stream = begun.map_err(failed)?.into_inner();
        while let Some(event) = self.runtime.block_on(stream.message()).map_err(failed)? {
            take(event)?;
        }
        Ok(())
    }

    /// A container in full.
    ///
    /// # Errors
    /// It is gone.
    pub fn container(&self, id: &str) -> Result<(v1::ContainerStatus, Kept), Failure> {
        let answer = self.container_status(v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        })?;
        Ok((answer.status.unwrap_or_default(), Kept::of(&answer.info)))
    }

    /// A pod in full.
    ///
    /// # Errors
    /// It is gone.
    pub fn pod(&self, id: &str) -> Result<(v1::PodSandboxStatus, Kept), Failure> {
        let answer = self.pod_sandbox_status(v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        })?;
        Ok((answer.status.unwrap_or_default(), Kept::of(&answer.info)))
    }

    /// Where cgroup v2 is mounted, as podd is configured.
    ///
    /// # Errors
    /// podd does not answer.
    pub fn cgroup_root(&self) -> Result<PathBuf, Failure> {
        let answer = self.status(v1::StatusRequest { verbose: true })?;
        let config = answer.info.get("config");
        let config: Option<serde_json::Value> = config.and_then(|text| serde_json::from_str(text).ok());
        let root = config
            .as_ref()
            .and_then(|config| config["cgroup"]["root"].as_str());
        Ok(PathBuf::from(root.unwrap_or("/sys/fs/cgroup")))
    }
}

/// What podd tells of a container or pod when it is asked to be verbose.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// The container's first process, or the pod's podinit, while it lives.
    pub pid: Option<i32>,
    /// The cgroup, below where cgroup v2 is mounted.
    pub cgroup: Option<String>,
}

impl Kept {
    fn of(info: &HashMap<String, String>) -> Self {
        let text = info.get("info").map_or("{}", String::as_str);
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The cgroup's directory below `root`.
    #[must_use]
    pub fn directory(&self, root: &Path) -> Option<PathBuf> {
        let cgroup = self.cgroup.as_deref()?;
        Some(root.join(cgroup.trim_start_matches('/')))
    }
}
