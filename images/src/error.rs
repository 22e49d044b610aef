//! The one error type of this crate and its coarse classes.
//!
//! Errors are cloneable because several waiters of one pull get the same one. They never carry credentials.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;

/// What went wrong, named by operation.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The image name cannot be parsed.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference {
        /// The text as given, escaped and cut.
        reference: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The credentials cannot be used.
    #[error("invalid credentials: {reason}")]
    InvalidCredentials {
        /// Which rule they break.
        reason: &'static str,
    },
    /// Registry or store does not know the image.
    #[error("image {reference} not found")]
    NotFound {
        /// The reference or digest asked for.
        reference: String,
    },
    /// The registry refused the credentials, or asked for some when none were given.
    #[error("registry {host} denied access to {repository}")]
    Unauthorized {
        /// Registry host.
        host: String,
        /// Repository path.
        repository: String,
    },
    /// No endpoint could be reached or kept delivering.
    #[error("registry {host} unreachable: {reason}")]
    Unreachable {
        /// Host of the endpoint.
        host: String,
        /// What happened, with the chain of causes.
        reason: String,
    },
    /// The registry asked to slow down (429) and still did after the retries.
    #[error("registry {host} limits the request rate")]
    RateLimited {
        /// Host of the endpoint.
        host: String,
    },
    /// The registry answered something the protocol does not allow.
    #[error("registry {host} broke the protocol: {reason}")]
    Protocol {
        /// Host of the endpoint.
        host: String,
        /// What it did.
        reason: String,
    },
    /// Bytes do not have the digest that named them.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// Digest of the descriptor or reference.
        expected: Digest,
        /// Digest of the bytes received.
        actual: Digest,
    },
    /// The unpacked layer does not have the diff id that the image config promises.
    #[error("diff id mismatch: expected {expected}, got {actual}")]
    DiffIdMismatch {
        /// Diff id of the image config.
        expected: Digest,
        /// Digest of the uncompressed tar stream.
        actual: Digest,
    },
    /// Fewer bytes arrived than the descriptor says.
    #[error("{digest} is truncated: {got} of {want} bytes")]
    Truncated {
        /// Digest of the blob.
        digest: Digest,
        /// Bytes received.
        got: u64,
        /// Bytes promised.
        want: u64,
    },
    /// A configured limit was exceeded.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit, in the unit of `what`.
        limit: u64,
    },
    /// A tar entry points outside the layer.
    #[error("tar entry {path:?} escapes the layer")]
    EntryEscapes {
        /// Name of the entry, escaped and cut.
        path: String,
    },
    /// The layer archive is malformed.
    #[error("malformed layer archive: {reason}")]
    BadArchive {
        /// Which rule it breaks.
        reason: String,
    },
    /// The archive has an entry that cannot be unpacked into a layer.
    #[error("tar entry {path:?}: {reason}")]
    UnsupportedEntry {
        /// Name of the entry, escaped and cut.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// A manifest, config or layer has a media type this runtime does not accept.
    #[error("unsupported media type {media_type:?}: {reason}")]
    UnsupportedMediaType {
        /// The media type, escaped and cut.
        media_type: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The document could be read in two ways (GHSA-5j5w-g665-5m35).
    #[error("ambiguous manifest: {reason}")]
    AmbiguousManifest {
        /// What is ambiguous.
        reason: &'static str,
    },
    /// Manifest or config is not what the specification asks for.
    #[error("malformed {document}: {reason}")]
    BadDocument {
        /// Which document.
        document: &'static str,
        /// Which rule it breaks.
        reason: String,
    },
    /// The image has nothing for this machine.
    #[error("no image for {wanted}")]
    NoMatchingPlatform {
        /// The platform of this machine, `os/arch`.
        wanted: String,
    },
    /// An operation on the image store failed.
    #[error("store: {op} {}: {source}", path.display())]
    Store {
        /// The operation, a verb.
        op: &'static str,
        /// What it was applied to.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The HTTP client could not be set up.
    #[error("http client: {reason}")]
    Client {
        /// What failed.
        reason: String,
    },
    /// A thread or task of this crate could not start or panicked.
    #[error("worker: {reason}")]
    Worker {
        /// What happened.
        reason: String,
    },
    /// The pull ended because nobody waits for it any more.
    #[error("pull cancelled")]
    Cancelled,
}

/// Coarse class of an [`Error`], for mapping to gRPC codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong and will stay wrong.
    InvalidArgument,
    /// The image does not exist.
    NotFound,
    /// The credentials do not suffice.
    PermissionDenied,
    /// A limit, the disk or the request rate is exhausted.
    ResourceExhausted,
    /// Try again later.
    Unavailable,
    /// The content is corrupt or hostile.
    DataLoss,
    /// A fault of this machine or this program.
    Internal,
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::InvalidReference { .. } | Error::InvalidCredentials { .. } => ErrorKind::InvalidArgument,
            Error::NotFound { .. } | Error::NoMatchingPlatform { .. } => ErrorKind::NotFound,
            Error::Unauthorized { .. } => ErrorKind::PermissionDenied,
            Error::TooLarge { .. } | Error::RateLimited { .. } => ErrorKind::ResourceExhausted,
            Error::Unreachable { .. } | Error::Cancelled | Error::Protocol { .. } => ErrorKind::Unavailable,
            Error::DigestMismatch { .. }
            | Error::DiffIdMismatch { .. }
            | Error::Truncated { .. }
            | Error::EntryEscapes { .. }
            | Error::BadArchive { .. } => ErrorKind::DataLoss,
            Error::UnsupportedEntry { .. }
            | Error::UnsupportedMediaType { .. }
            | Error::AmbiguousManifest { .. }
            | Error::BadDocument { .. } => ErrorKind::InvalidArgument,
            Error::Store { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::ResourceExhausted,
                _ => ErrorKind::Internal,
            },
            Error::Client { .. } | Error::Worker { .. } => ErrorKind::Internal,
        }
    }

    pub(crate) fn store(op: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::Store {
            op,
            path: path.as_ref().to_owned(),
            source: Arc::new(source.into()),
        }
    }
}

/// Joins an error and its causes into one line: library errors often hide the reason in the chain.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let text = c.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        cause = c.source();
    }
    out
}
