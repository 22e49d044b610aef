//! Carries out what the CRI asks for.
//!
//! Owns the order of things: names, joining of retries, locks, intent on disk before the kernel is asked, taking
//! back what failed. What is done to processes, cgroups and the network is in `native`, `pod`, `container` and
//! `exec`; this file and its siblings `pods` and `containers` never touch the kernel.

mod basis;
pub mod build;
pub mod container;
pub mod containers;
pub mod dial;
pub mod error;
pub mod exec;
mod exits;
mod hooks;
pub mod inflight;
mod keeper;
mod labels;
mod log;
pub mod metrics;
mod named;
pub mod native;
mod native_error;
mod orphans;
pub mod place;
mod plans;
pub mod pod;
pub mod pods;
mod reconcile;
pub mod resources;
pub mod session;
mod skeleton;
pub mod stats;
pub mod systemd;
pub mod undo;
mod verbose;
mod verify;
mod writable;

use std::sync::Arc;
use std::time::Duration;

use podd_images::Images;
use podd_netplug::Subnet;

pub use crate::state::now;
pub use error::EngineError;
use inflight::{Fingerprint, Inflight, JoinError};
use native::Native;

use crate::config::Config;
use crate::model::{ContainerConfig, ContainerId, ContainerMetadata, PodConfig, PodId, PodMetadata};
use crate::observe::metrics::{Leak, Metrics};
use crate::state::State;
use crate::state::recover::{self, Decode, Recovered};
use crate::state::store::{Container, Pod, Snapshot};
use crate::trace::context as trace;

/// The result of an operation; all who joined it share the error.
pub type Outcome<T> = Result<T, Arc<EngineError>>;

/// A checked RunPodSandboxRequest.
#[derive(Debug)]
pub struct RunPod {
    /// What is asked for.
    pub config: PodConfig,
    /// The runtime handler, empty for the default.
    pub handler: String,
    /// The request as it will be kept on disk.
    pub encoded: Vec<u8>,
    /// Tells a retry from a changed request.
    pub fingerprint: Fingerprint,
}

/// A checked CreateContainerRequest.
#[derive(Debug)]
pub struct CreateContainer {
    /// Id of the pod, or its unique beginning.
    pub pod: String,
    /// What is asked for.
    pub config: ContainerConfig,
    /// The request as it will be kept on disk.
    pub encoded: Vec<u8>,
    /// Tells a retry from a changed request.
    pub fingerprint: Fingerprint,
}

/// What a command run by ExecSync left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, cut at the configured length.
    pub stdout: Vec<u8>,
    /// Standard error, cut at the configured length.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 plus the signal.
    pub code: i32,
}

/// Operations that have no result but success, by what they are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Act {
    /// StopPodSandbox.
    StopPod(PodId),
    /// RemovePodSandbox.
    RemovePod(PodId),
    /// StartContainer.
    Start(ContainerId),
    /// RemoveContainer.
    Remove(ContainerId),
}

impl Act {
    /// The RPC, for people.
    fn name(self) -> &'static str {
        match self {
            Self::StopPod(_) => "StopPodSandbox",
            Self::RemovePod(_) => "RemovePodSandbox",
            Self::Start(_) => "StartContainer",
            Self::Remove(_) => "RemoveContainer",
        }
    }
}

/// Why podd could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// procfs is missing.
    #[error("cannot read the boot id from /proc")]
    BootId(#[source] std::io::Error),
    /// The records cannot be read or written.
    #[error("cannot open the records")]
    Records(#[from] crate::state::record::RecordError),
    /// The image store cannot be opened.
    #[error("cannot open the image store")]
    Images(#[from] podd_images::Error),
    /// Records and host could not be brought together.
    #[error("cannot take over the pods of an earlier podd")]
    Reconcile(#[source] EngineError),
    /// The kernel, the cgroups or the network lack what podd cannot do without.
    #[error("cannot use this host")]
    Native(#[from] native::NativeError),
}

/// Everything podd is while it runs, behind one `Arc`.
#[derive(Debug)]
pub struct Engine {
    /// The configuration podd was started with.
    pub config: Arc<Config>,
    /// Records and snapshot.
    pub state: Arc<State>,
    /// The local image store.
    pub images: Images,
    /// The host: podinit connections, cgroups, network.
    pub native: Native,
    /// What is counted as it happens.
    pub metrics: Metrics,
    pub(super) running_pods: Inflight<PodMetadata, PodId, EngineError>,
    pub(super) running_containers: Inflight<(PodId, ContainerMetadata), ContainerId, EngineError>,
    pub(super) acts: Inflight<Act, (), EngineError>,
    pub(super) stats: stats::Stats,
}

impl Engine {
    /// Reads the records, opens images and network, and finds out which pods are still alive.
    ///
    /// # Errors
    /// The host or the state directory cannot be used.
    pub async fn open(config: Arc<Config>, decode: Decode) -> Result<(Arc<Self>, Recovered), OpenError> {
        let boot_id = recover::boot_id().map_err(OpenError::BootId)?;
        let state = Arc::new(State::open(&config.state_dir, boot_id)?);
        let found = recover::recover(&state, decode, now())?;
        let (images, warnings) = Images::open(native::images_config(&config))?;
        let metrics = Metrics::default();
        metrics.leaked(Leak::Image, warnings.len(), true);
        for warning in warnings {
            tracing::warn!(?warning, "the image store was not as podd had left it");
        }
        let native = Native::open(&config).await?;
        skeleton::make(images.layers_dir())?;
        let engine = Arc::new(Self {
            config,
            state,
            images,
            native,
            metrics,
            running_pods: Inflight::default(),
            running_containers: Inflight::default(),
            acts: Inflight::default(),
            stats: stats::Stats::default(),
        });
        engine.reconcile(&found).await.map_err(OpenError::Reconcile)?;
        engine.sweep_scopes().await;
        let images = engine.images.clone();
        // Only now is every layer held that a container still runs on.
        blocking("opening the image store", move || images.sweep())
            .await
            .map_err(OpenError::Reconcile)?;
        if found.crashed {
            engine.verify_images();
        }
        Ok((engine, found))
    }

    /// What podd knows now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.state.snapshot()
    }

    /// The pod that an id, or its unique beginning, names.
    ///
    /// # Errors
    /// It names none that is listed, or several.
    pub fn find_pod(&self, id: &str) -> Outcome<Arc<Pod>> {
        let found = self.snapshot().find_pod(id).cloned();
        let pod = found.map_err(EngineError::FindPod)?;
        trace::note_pod(&pod.record.namespace, &pod.record.name, &pod.record.uid);
        Ok(pod)
    }

    /// The container that an id, or its unique beginning, names.
    ///
    /// # Errors
    /// It names none that is listed, or several.
    pub fn find_container(&self, id: &str) -> Outcome<Arc<Container>> {
        let snapshot = self.snapshot();
        let found = snapshot.find_container(id).cloned();
        let container = found.map_err(EngineError::FindContainer)?;
        trace::note("container.id", container.record.id);
        if let Some(pod) = snapshot.pod(&container.record.pod) {
            trace::note_pod(&pod.record.namespace, &pod.record.name, &pod.record.uid);
        }
        Ok(container)
    }

    /// Takes the node's pod ranges from the kubelet: a comma-separated list, one of each family at most.
    ///
    /// An empty text changes nothing, as the kubelet sends one when it knows no range.
    ///
    /// # Errors
    /// The text is no such list, or the network cannot change its ranges.
    pub async fn update_runtime_config(&self, pod_cidr: &str) -> Outcome<()> {
        let ranges = pod_cidr.split(',').map(str::trim).filter(|t| !t.is_empty());
        let subnets: Vec<Subnet> = ranges
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|e: podd_netplug::ParseError| EngineError::PodCidr(e.to_string()))?;
        if subnets.is_empty() {
            return Ok(());
        }
        Ok(self
            .native
            .set_pod_subnets(&subnets)
            .await
            .map_err(EngineError::Native)?)
    }

    /// Number of joinable operations that are running.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.running_pods.len() + self.running_containers.len() + self.acts.len()
    }

    /// Runs one of the joinable operations that answer nothing but success.
    pub(super) async fn act(
        &self,
        act: Act,
        body: impl Future<Output = Result<(), EngineError>> + Send + 'static,
    ) -> Outcome<()> {
        // One act on one object has no variants: a retry is always the same request.
        settle(
            self.acts
                .join(act, Fingerprint([0; 32]), body, || {
                    self.metrics.joined(act.name())
                })
                .await,
            act.name(),
            || act.name().to_owned(),
        )
    }

    /// How long to wait for processes that were killed.
    pub(super) fn kill_wait(&self) -> Duration {
        Duration::from_secs(self.config.timeouts.kill_seconds.into())
    }
}

/// Turns what joining brought into what the caller is told.
pub(super) fn settle<T>(
    joined: Result<T, JoinError<EngineError>>,
    operation: &'static str,
    name: impl FnOnce() -> String,
) -> Outcome<T> {
    joined.map_err(|e| match e {
        JoinError::Failed(e) => e,
        JoinError::Conflict => Arc::new(EngineError::InFlight { name: name() }),
        JoinError::Panicked => Arc::new(EngineError::Panicked(operation)),
    })
}

/// Runs what blocks on a thread where that is allowed.
///
/// # Errors
/// The work panicked, or what it answered.
pub async fn blocking<T: Send + 'static, E: Into<EngineError> + Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(EngineError::Panicked(operation)),
    }
}
