//! A blocking CRI client, and the shortest way to write requests.
//!
//! Knows the wire and nothing of podd: the same tests can be pointed at another runtime's socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podd_client::MESSAGE;
use podd_proto::v1::image_service_client::ImageServiceClient;
use podd_proto::v1::runtime_service_client::RuntimeServiceClient;
use podd_proto::v1::{self as pb};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::PATIENCE;
use crate::session::Wanted;

/// Largest message that the kubelet and crictl take.
pub const KUBELET: usize = 16 << 20;

/// Both services of one runtime; cheap to clone, usable from any thread that is not a runtime's own.
#[derive(Debug, Clone)]
pub struct Cri {
    runtime: Arc<Runtime>,
    channel: Channel,
    /// W3C Trace Context of every request.
    traceparent: Option<MetadataValue<Ascii>>,
}

/// One method per call: takes the request, blocks, answers.
macro_rules! calls {
    ($client:ident: $($name:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {
            $(
                /// The call of this name.
                ///
                /// # Errors
                /// What the runtime answered instead, or `Unavailable` where it does not answer.
                pub fn $name(&self, request: pb::$request) -> Result<pb::$response, Box<Status>> {
                    let mut client = $client::new(self.channel.clone())
                        .max_decoding_message_size(MESSAGE)
                        .max_encoding_message_size(MESSAGE);
                    let mut request = tonic::Request::new(request);
                    request.set_timeout(Duration::from_secs(130));
                    if let Some(parent) = &self.traceparent {
                        request.metadata_mut().insert("traceparent", parent.clone());
                    }
                    self.runtime
                        .block_on(client.$name(request))
                        .map(tonic::Response::into_inner)
                        .map_err(Box::new)
                }
            )*
        }
    };
}

calls! { RuntimeServiceClient:
    version(VersionRequest) -> VersionResponse;
    status(StatusRequest) -> StatusResponse;
    runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    start_container(StartContainerRequest) -> StartContainerResponse;
    stop_container(StopContainerRequest) -> StopContainerResponse;
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    list_containers(ListContainersRequest) -> ListContainersResponse;
    container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
    restore_pod(RestorePodRequest) -> RestorePodResponse;
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    attach(AttachRequest) -> AttachResponse;
    port_forward(PortForwardRequest) -> PortForwardResponse;
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
}

calls! { ImageServiceClient:
    list_images(ListImagesRequest) -> ListImagesResponse;
    image_status(ImageStatusRequest) -> ImageStatusResponse;
    pull_image(PullImageRequest) -> PullImageResponse;
    remove_image(RemoveImageRequest) -> RemoveImageResponse;
    image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

/// One method per call that answers with a stream: takes the request, blocks until the stream is open.
macro_rules! streams {
    ($client:ident: $($name:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {
            $(
                /// The call of this name. Messages are at most as large as the kubelet takes them.
                ///
                /// # Errors
                /// What the runtime answered instead.
                pub fn $name(&self, request: pb::$request) -> Result<Messages<pb::$response>, Box<Status>> {
                    let mut client = $client::new(self.channel.clone()).max_decoding_message_size(KUBELET);
                    let stream = self.runtime.block_on(client.$name(request))?.into_inner();
                    Ok(Messages { runtime: Arc::clone(&self.runtime), stream })
                }
            )*
        }
    };
}

streams! { RuntimeServiceClient:
    get_container_events(GetEventsRequest) -> ContainerEventResponse;
    stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse;
    stream_containers(StreamContainersRequest) -> StreamContainersResponse;
    stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse;
    stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse;
    stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse;
}

streams! { ImageServiceClient:
    stream_images(StreamImagesRequest) -> StreamImagesResponse;
}

/// The answer of a call that streams. What is not asked for stays with the runtime.
#[derive(Debug)]
pub struct Messages<T> {
    runtime: Arc<Runtime>,
    stream: tonic::Streaming<T>,
}

impl<T> Messages<T> {
    /// The next message; `None` at the end of the stream.
    ///
    /// # Errors
    /// The status that ended the stream, or `DeadlineExceeded` where nothing comes in time.
    pub fn next(&mut self, patience: Duration) -> Result<Option<T>, Box<Status>> {
        let next = async { tokio::time::timeout(patience, self.stream.message()).await };
        let late = || Status::deadline_exceeded(format!("no message in {patience:?}"));
        Ok(self.runtime.block_on(next).map_err(|_| late())??)
    }

    /// All messages up to the end.
    ///
    /// # Errors
    /// As for [`Messages::next`].
    pub fn all(mut self) -> Result<Vec<T>, Box<Status>> {
        let mut all = Vec::new();
        while let Some(message) = self.next(Duration::from_secs(60))? {
            all.push(message);
        }
        Ok(all)
    }
}

impl Cri {
    /// A client of the runtime behind `socket`; connects at the first call and again after each loss.
    ///
    /// # Errors
    /// Where no runtime for the client itself can be made.
    pub fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let guard = runtime.enter();
        let channel = podd_client::connect(socket);
        drop(guard);
        Ok(Self {
            runtime: Arc::new(runtime),
            channel,
            traceparent: None,
        })
    }

    /// The same client, all of whose requests belong to a trace.
    ///
    /// # Errors
    /// No header can say this.
    pub fn traced(&self, traceparent: &str) -> Result<Self> {
        Ok(Self {
            traceparent: Some(traceparent.parse()?),
            ..self.clone()
        })
    }

    /// Pulls `image` and returns its id.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn pull(&self, image: &str) -> Result<String, Box<Status>> {
        let request = pb::PullImageRequest {
            image: Some(spec(image)),
            ..Default::default()
        };
        Ok(self.pull_image(request)?.image_ref)
    }

    /// What is known of `image`; `None` where it is not present.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn image(&self, image: &str) -> Result<Option<pb::Image>, Box<Status>> {
        Ok(self
            .image_status(pb::ImageStatusRequest {
                image: Some(spec(image)),
                verbose: false,
            })?
            .image)
    }

    /// Removes `image`; one that is not present is no error.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn remove(&self, image: &str) -> Result<(), Box<Status>> {
        self.remove_image(pb::RemoveImageRequest {
            image: Some(spec(image)),
        })
        .map(drop)
    }

    /// Runs a pod and returns its id.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn run_pod(&self, config: &pb::PodSandboxConfig) -> Result<String, Box<Status>> {
        self.run_pod_with(config, "")
    }

    /// Runs a pod with a runtime handler and returns its id.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn run_pod_with(&self, config: &pb::PodSandboxConfig, handler: &str) -> Result<String, Box<Status>> {
        let request = pb::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        Ok(self.run_pod_sandbox(request)?.pod_sandbox_id)
    }

    /// The status of a pod.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn pod(&self, id: &str) -> Result<pb::PodSandboxStatus> {
        let request = pb::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        self.pod_sandbox_status(request)?
            .status
            .context("the answer holds no status")
    }

    /// Stops and removes a pod with all its containers.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn remove_pod(&self, id: &str) -> Result<(), Box<Status>> {
        self.stop_pod_sandbox(pb::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        })?;
        self.remove_pod_sandbox(pb::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        })
        .map(drop)
    }

    /// Creates a container and returns its id.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn create(
        &self,
        pod: &str,
        pod_config: &pb::PodSandboxConfig,
        config: &pb::ContainerConfig,
    ) -> Result<String, Box<Status>> {
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.create_container(request)?.container_id)
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn start(&self, id: &str) -> Result<(), Box<Status>> {
        self.start_container(pb::StartContainerRequest {
            container_id: id.to_owned(),
        })
        .map(drop)
    }

    /// Stops a container, giving it `grace` seconds.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn stop(&self, id: &str, grace: i64) -> Result<(), Box<Status>> {
        let request = pb::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace,
        };
        self.stop_container(request).map(drop)
    }

    /// Removes a container.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn remove_ctr(&self, id: &str) -> Result<(), Box<Status>> {
        self.remove_container(pb::RemoveContainerRequest {
            container_id: id.to_owned(),
        })
        .map(drop)
    }

    /// The status of a container.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn container(&self, id: &str) -> Result<pb::ContainerStatus> {
        let request = pb::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        self.container_status(request)?
            .status
            .context("the answer holds no status")
    }

    /// Waits until a container has exited and returns its status.
    ///
    /// # Errors
    /// Where it still runs after [`PATIENCE`].
    pub fn wait_exit(&self, id: &str) -> Result<pb::ContainerStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.container(id)?;
            if status.state() == pb::ContainerState::ContainerExited {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the container is still {:?} after {PATIENCE:?}", status.state());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs a command in a container, with a time limit in seconds (0: none).
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn exec(&self, id: &str, cmd: &[&str], timeout: i64) -> Result<pb::ExecSyncResponse, Box<Status>> {
        let cmd = cmd.iter().map(|&c| c.to_owned()).collect();
        self.exec_sync(pb::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd,
            timeout,
        })
    }

    /// The URL of an exec session.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn exec_url(&self, id: &str, cmd: &[&str], wanted: Wanted) -> Result<String, Box<Status>> {
        let request = pb::ExecRequest {
            container_id: id.to_owned(),
            cmd: cmd.iter().map(|&c| c.to_owned()).collect(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: true,
            stderr: !wanted.tty,
        };
        // The name of the call belongs to the method above.
        let mut client = RuntimeServiceClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.exec(request))?;
        Ok(answer.into_inner().url)
    }

    /// The URL of an attach session.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn attach_url(&self, id: &str, wanted: Wanted) -> Result<String, Box<Status>> {
        let request = pb::AttachRequest {
            container_id: id.to_owned(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: true,
            stderr: !wanted.tty,
        };
        Ok(self.attach(request)?.url)
    }

    /// The URL of a port-forward session.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn forward_url(&self, pod: &str) -> Result<String, Box<Status>> {
        let request = pb::PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: Vec::new(),
        };
        Ok(self.port_forward(request)?.url)
    }

    /// Runs a shell script in a container and returns its standard output; any failure is an error.
    ///
    /// # Errors
    /// What the runtime answered, or the script's own failure with its standard error.
    pub fn sh(&self, id: &str, script: &str) -> Result<String> {
        let done = self
            .exec(id, &["sh", "-c", script], 20)
            .with_context(|| format!("exec {script:?}"))?;
        let (out, err) = (
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr),
        );
        if done.exit_code != 0 {
            bail!("{script:?} ended with {}: {out}{err}", done.exit_code);
        }
        Ok(out.into_owned())
    }
}

/// An image named in a request.
#[must_use]
pub fn spec(image: &str) -> pb::ImageSpec {
    pb::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

/// A pod with its own network, logs below `/var/log/pods`, and a uid no other pod has.
#[must_use]
pub fn pod_config(name: &str) -> pb::PodSandboxConfig {
    let uid = unique();
    pb::PodSandboxConfig {
        log_directory: format!("/var/log/pods/e2e_{name}_{uid}"),
        metadata: Some(pb::PodSandboxMetadata {
            name: name.to_owned(),
            uid,
            namespace: "e2e".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        linux: Some(pb::LinuxPodSandboxConfig {
            security_context: Some(pb::LinuxSandboxSecurityContext {
                namespace_options: Some(own_processes()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What the kubelet asks for unless a pod says otherwise; without it a pod shares its process ids.
fn own_processes() -> pb::NamespaceOption {
    pb::NamespaceOption {
        pid: pb::NamespaceMode::Container.into(),
        ..Default::default()
    }
}

/// A container that runs `script` in the base image's shell and logs to `<name>.log`.
#[must_use]
pub fn shell(name: &str, script: &str) -> pb::ContainerConfig {
    command(name, &["sh", "-c", script])
}

/// A container of the base image that runs `argv` and logs to `<name>.log`.
#[must_use]
pub fn command(name: &str, argv: &[&str]) -> pb::ContainerConfig {
    pb::ContainerConfig {
        metadata: Some(pb::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(spec(crate::podd::IMAGE)),
        command: argv.iter().map(|&a| a.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(pb::LinuxContainerConfig {
            security_context: Some(pb::LinuxContainerSecurityContext {
                namespace_options: Some(own_processes()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The security context of a container configuration made here.
pub fn security(config: &mut pb::ContainerConfig) -> &mut pb::LinuxContainerSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}

/// The path of a container's log.
#[must_use]
pub fn log_path(pod: &pb::PodSandboxConfig, container: &pb::ContainerConfig) -> PathBuf {
    Path::new(&pod.log_directory).join(&container.log_path)
}

/// A string no other call in this run returns.
#[must_use]
pub fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(1);
    format!(
        "{:08x}-{:08x}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}
