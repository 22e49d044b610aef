//! Why a record is not what it should be.

use std::io;
use std::path::{Path, PathBuf};

use super::VERSION;

/// Why a record could not be written, read or deleted.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record is no JSON of the expected shape.
    #[error("cannot make sense of {}: {source}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The record was written by a newer podd.
    #[error("{} has version {found}, this podd reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The record is about something else than its directory says.
    #[error("{} is the record of another id", path.display())]
    Misplaced {
        /// The file.
        path: PathBuf,
    },
}

impl RecordError {
    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            verb,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the disk is full, which passes.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// The file or directory it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::Shape { path, .. }
            | Self::Version { path, .. }
            | Self::Misplaced { path } => path,
        }
    }
}
