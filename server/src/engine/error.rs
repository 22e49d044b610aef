//! Why an operation of the engine failed.
//!
//! Owns the error type and its sentences; `cri::fault` decides what a client is told. Logs nothing.

use std::time::Duration;

use super::native::NativeError;
use super::undo::UndoFailure;
use crate::model::{ContainerId, PodId};
use crate::state::ChangeError;
use crate::state::phase::Refused;
use crate::state::record::RecordError;
use crate::state::store::LookupError;

/// Why an operation of the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The id of a pod names none, or several.
    #[error("pod: {0}")]
    FindPod(#[source] LookupError),
    /// The id of a container names none, or several.
    #[error("container: {0}")]
    FindContainer(#[source] LookupError),
    /// The pod was removed while the operation ran.
    #[error("pod {0} was removed meanwhile")]
    PodGone(PodId),
    /// The container was removed while the operation ran.
    #[error("container {0} was removed meanwhile")]
    ContainerGone(ContainerId),
    /// A pod of this name exists, made by another request or stopped.
    #[error(
        "the name {name} belongs to pod {holder}, which is {phase}: remove that pod or ask for another attempt"
    )]
    PodNameTaken {
        /// namespace/name, uid and attempt.
        name: String,
        /// The pod in the way.
        holder: PodId,
        /// Its phase in a word.
        phase: &'static str,
    },
    /// A container of this name exists in the pod, made by another request.
    #[error(
        "the name {name} belongs to container {holder}, which is {phase}: remove it or ask for another attempt"
    )]
    ContainerNameTaken {
        /// Name and attempt.
        name: String,
        /// The container in the way.
        holder: ContainerId,
        /// Its phase in a word.
        phase: &'static str,
    },
    /// Another request for the same name is being carried out.
    #[error(
        "another request for {name} is being carried out and differs from this one: retry when it is done"
    )]
    InFlight {
        /// What both are about.
        name: String,
    },
    /// The runtime handler is not known.
    #[error("runtime handler {0:?} is not known: podd has the default handler, named \"\", only")]
    UnknownHandler(String),
    /// The pod's phase does not allow it.
    #[error("pod {pod} is {phase}")]
    PodPhase {
        /// The pod.
        pod: PodId,
        /// Its phase in a word.
        phase: &'static str,
    },
    /// The container's phase does not allow it.
    #[error("container {container} {refused}")]
    ContainerPhase {
        /// The container.
        container: ContainerId,
        /// What is not possible.
        #[source]
        refused: Refused,
    },
    /// The container has no running process.
    #[error("container {container} is {phase}, not running")]
    NotRunning {
        /// The container.
        container: ContainerId,
        /// Its phase in a word.
        phase: &'static str,
    },
    /// An AppArmor profile of the request.
    #[error("the AppArmor profile {0:?} is not loaded on this node: load it with apparmor_parser")]
    NoAppArmorProfile(String),
    /// SELinux contexts of the request, or of the node.
    #[error(transparent)]
    Selinux(#[from] crate::selinux::SelinuxError),
    /// A container that another one names is not in its pod.
    #[error("container {0} is not in this pod")]
    NotInPod(ContainerId),
    /// The image is not in the local store.
    #[error("image {0:?} is not in the local store: pull it first")]
    ImageUnknown(String),
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] podd_images::Error),
    /// The container does not fit its pod.
    #[error(transparent)]
    Refused(#[from] crate::model::Refused),
    /// A device of the request.
    #[error(transparent)]
    Device(#[from] crate::spec::devices::DeviceError),
    /// A CDI device of the request.
    #[error(transparent)]
    Cdi(#[from] crate::cdi::CdiError),
    /// The image or the host lacks what the request needs.
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    /// A seccomp profile that cannot become a filter.
    #[error("seccomp profile: {0}")]
    Seccomp(#[source] runtime_core::seccomp::SeccompError),
    /// Pods cannot be given a network now.
    #[error("the pod network is not ready: {0}")]
    NetworkNotReady(String),
    /// The pod range that a client sent cannot be used.
    #[error("pod_cidr: {0}")]
    PodCidr(String),
    /// A record cannot be written or deleted.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The kernel gave no random bytes for an id.
    #[error("cannot make an id")]
    MakeId(#[source] std::io::Error),
    /// Killed processes did not vanish in time.
    #[error("container {container} still has processes {} s after it was killed: one may hang in the kernel", waited.as_secs())]
    WillNotDie {
        /// The container.
        container: ContainerId,
        /// How long podd waited.
        waited: Duration,
    },
    /// Processes, cgroups, namespaces or the network.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The operation failed and could not take back all it had done; removing the object tries again.
    #[error("{source}; moreover {}", list(undo))]
    Unwound {
        /// Why the operation failed.
        source: Box<EngineError>,
        /// What is left over.
        undo: Vec<UndoFailure>,
    },
    /// A defect in podd.
    #[error("{0} ran into a defect of podd, see its log")]
    Panicked(&'static str),
}

impl EngineError {
    /// What a refused change of a pod means.
    #[must_use]
    pub fn of_pod(pod: PodId, e: ChangeError) -> Self {
        match e {
            ChangeError::Gone => Self::PodGone(pod),
            ChangeError::Refused(refused) => Self::PodPhase {
                pod,
                phase: refused.phase,
            },
            ChangeError::Record(e) => Self::Record(e),
        }
    }

    /// What a refused change of a container means.
    #[must_use]
    pub fn of_container(container: ContainerId, e: ChangeError) -> Self {
        match e {
            ChangeError::Gone => Self::ContainerGone(container),
            ChangeError::Refused(refused) => Self::ContainerPhase { container, refused },
            ChangeError::Record(e) => Self::Record(e),
        }
    }
}

fn list(undo: &[UndoFailure]) -> String {
    undo.iter()
        .map(|f| format!("{f}: {}", f.source))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A cause in words: of an answer of the kernel those of strerror(3) without a capital, as all other messages are, and
/// without its number.
fn said(e: &(dyn std::error::Error + 'static)) -> String {
    let text = e.to_string();
    let of_kernel = e
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error);
    let Some(number) = of_kernel else { return text };
    let words = text.trim_end_matches(&format!(" (os error {number})"));
    let mut letters = words.chars();
    match (letters.next(), letters.clone().next()) {
        // A name stays as it is: "RFS specific error".
        (Some(first), Some(next)) if next.is_lowercase() || next == ' ' => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => words.to_owned(),
    }
}

/// An error with its causes, each said once.
#[must_use]
pub fn sentence(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let said = said(e);
        if !text.contains(&said) && !text.contains(&e.to_string()) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = e.source();
    }
    text
}
