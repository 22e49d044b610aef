//! What a client is told when something fails: the only place that makes a `tonic::Status`.
//!
//! Owns the mapping of every error to a gRPC code and a sentence an operator can act on. It is exhaustive: a new
//! error cannot be added without choosing its code. Logs nothing; `layers` does, once per request.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};

use super::list::TooLong;
use crate::cdi::CdiError;
use crate::engine::EngineError;
use crate::engine::error::sentence;
use crate::engine::native::Kind;
use crate::model::{Invalid, Refused};
use crate::selinux::SelinuxError;
use crate::state::feed::Lost;
use crate::state::store::LookupError;
use crate::streaming::TokenError;

/// How the kubelet knows that a pull failed for want of the registry, which it shows as the reason why the container
/// waits: the message begins with this word, and the code is Unknown. With every other code it reads no message
/// (k8s.io/cri-api/pkg/errors, ErrRegistryUnavailable; k8s.io/cri-client, PullImage).
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The request itself.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Carrying it out.
    #[error(transparent)]
    Engine(#[from] Arc<EngineError>),
    /// An image could not be pulled, found, or removed.
    #[error(transparent)]
    Image(#[from] podd_images::Error),
    /// A streaming session could not be offered.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A list that does not fit into one message.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// A stream of events that cannot go on.
    #[error(transparent)]
    Events(#[from] Lost),
    /// podd does not have this RPC yet.
    #[error("{0} is not implemented by podd {version}", version = env!("CARGO_PKG_VERSION"))]
    Unimplemented(&'static str),
    /// The handler of this RPC panicked.
    #[error("{0} ran into a defect of podd, see its log")]
    Panicked(String),
    /// The client had set a time for this RPC, and that is over.
    #[error("{0} takes longer than the {given} s that its client gave it", given = .1.as_secs_f32())]
    ClientDeadline(String, Duration),
}

impl Fault {
    /// A field of a request that is wrong.
    #[must_use]
    pub fn invalid(field: &str, reason: &str) -> Self {
        Self::Refused(Refused::Invalid(Invalid {
            field: field.to_owned(),
            reason: reason.to_owned(),
        }))
    }

    fn code(&self) -> Code {
        match self {
            Self::Refused(e) => refused(e),
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Engine(e) => engine(e),
            Self::Image(podd_images::Error::Unreachable { .. }) => Code::Unknown,
            Self::Image(e) => image(e),
            Self::Token(TokenError::Full) => Code::ResourceExhausted,
            Self::Token(TokenError::Random(_)) => Code::Internal,
            Self::TooLong(_) => Code::ResourceExhausted,
            Self::Events(Lost::Missed(_)) => Code::DataLoss,
            Self::Events(Lost::Closed) => Code::Unavailable,
            Self::Panicked(_) => Code::Internal,
            Self::ClientDeadline(..) => Code::DeadlineExceeded,
        }
    }
}

fn refused(e: &Refused) -> Code {
    match e {
        Refused::Invalid(_) => Code::InvalidArgument,
        Refused::Unsupported(_) => Code::Unimplemented,
    }
}

fn engine(e: &EngineError) -> Code {
    match e {
        EngineError::FindPod(e) | EngineError::FindContainer(e) => match e {
            LookupError::Unknown(_) => Code::NotFound,
            LookupError::Ambiguous(_) => Code::InvalidArgument,
        },
        EngineError::PodGone(_) | EngineError::ContainerGone(_) | EngineError::ImageUnknown(_) => {
            Code::NotFound
        }
        EngineError::PodNameTaken { .. } | EngineError::ContainerNameTaken { .. } => Code::AlreadyExists,
        EngineError::InFlight { .. }
        | EngineError::PodPhase { .. }
        | EngineError::ContainerPhase { .. }
        | EngineError::NotRunning { .. } => Code::FailedPrecondition,
        EngineError::Spec(_) | EngineError::Device(_) | EngineError::Seccomp(_) => Code::InvalidArgument,
        EngineError::Cdi(e) => cdi(e),
        EngineError::NoAppArmorProfile(_) => Code::FailedPrecondition,
        EngineError::Selinux(e) => selinux(e),
        EngineError::UnknownHandler(_) | EngineError::PodCidr(_) | EngineError::NotInPod(_) => {
            Code::InvalidArgument
        }
        EngineError::Image(e) => image(e),
        EngineError::Refused(e) => refused(e),
        EngineError::NetworkNotReady(_) => Code::Unavailable,
        EngineError::WillNotDie { .. } => Code::DeadlineExceeded,
        EngineError::Native(e) => match e.kind() {
            Kind::InvalidArgument => Code::InvalidArgument,
            Kind::FailedPrecondition => Code::FailedPrecondition,
            Kind::AlreadyExists => Code::AlreadyExists,
            Kind::ResourceExhausted => Code::ResourceExhausted,
            Kind::DeadlineExceeded => Code::DeadlineExceeded,
            Kind::Unavailable => Code::Unavailable,
            Kind::Unimplemented => Code::Unimplemented,
            Kind::Internal => Code::Internal,
        },
        EngineError::Unwound { source, .. } => engine(source),
        EngineError::Record(e) if e.lacks_room() => Code::ResourceExhausted,
        EngineError::Record(_) | EngineError::MakeId(_) | EngineError::Panicked(_) => Code::Internal,
    }
}

fn selinux(e: &SelinuxError) -> Code {
    match e {
        SelinuxError::Unknown(_) | SelinuxError::TooLong(_) => Code::InvalidArgument,
        SelinuxError::NoContainers(_) => Code::FailedPrecondition,
        SelinuxError::NoLevel(_) => Code::ResourceExhausted,
        SelinuxError::Io { .. } => Code::Internal,
    }
}

fn cdi(e: &CdiError) -> Code {
    match e {
        CdiError::Unknown { .. } => Code::NotFound,
        CdiError::Unsupported { .. } => Code::Unimplemented,
        CdiError::Conflict { .. } | CdiError::Node { .. } | CdiError::OtherKind { .. } => {
            Code::FailedPrecondition
        }
    }
}

fn image(e: &podd_images::Error) -> Code {
    use podd_images::ErrorKind;
    match e.kind() {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let told = sentence(&fault);
        let told = match &fault {
            Fault::Image(podd_images::Error::Unreachable { .. }) => format!("{REGISTRY_UNAVAILABLE}: {told}"),
            _ => told,
        };
        Self::new(fault.code(), told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::undo::UndoFailure;

    #[test]
    fn faults_become_codes_and_sentences() {
        for (fault, code, message) in [
            (
                Fault::invalid("config.metadata.name", "must not be empty"),
                Code::InvalidArgument,
                "config.metadata.name: must not be empty",
            ),
            (
                Fault::Unimplemented("CheckpointContainer"),
                Code::Unimplemented,
                concat!(
                    "CheckpointContainer is not implemented by podd ",
                    env!("CARGO_PKG_VERSION")
                ),
            ),
            (
                podd_images::Error::Unreachable {
                    host: "example.org".to_owned(),
                    reason: "connection refused".to_owned(),
                }
                .into(),
                Code::Unknown,
                "RegistryUnavailable: registry example.org unreachable: connection refused",
            ),
            (
                Lost::Missed(12).into(),
                Code::DataLoss,
                "12 events came faster than they were read and are lost: list pods and containers, then \
                 subscribe again",
            ),
            (
                Arc::new(EngineError::FindPod(LookupError::Unknown("abc".to_owned()))).into(),
                Code::NotFound,
                "pod: nothing has the id \"abc\"",
            ),
            (
                Arc::new(EngineError::Unwound {
                    source: Box::new(EngineError::ImageUnknown("a:1".to_owned())),
                    undo: vec![UndoFailure {
                        name: "remove the cgroup",
                        source: Box::new(std::io::Error::other("it is busy")),
                    }],
                })
                .into(),
                Code::NotFound,
                "image \"a:1\" is not in the local store: pull it first; moreover cannot remove the cgroup: \
                 it is busy",
            ),
        ] {
            let status = Status::from(fault);
            assert_eq!((status.code(), status.message()), (code, message));
        }
    }
}
