//! Why the CDI devices of a request are not to be had.

use std::io;
use std::path::PathBuf;

use super::library::Broken;
use crate::model::CdiName;

/// A CDI device is not to be had. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// No spec file has it.
    #[error("CDI device {name} is not known: {}", missing(*.kind_known, .dirs, .broken))]
    Unknown {
        /// The device.
        name: CdiName,
        /// Where spec files were looked for.
        dirs: Vec<PathBuf>,
        /// Some file is about its kind and has other devices.
        kind_known: bool,
        /// Files that could not be read, which may have been about its kind; none where another one is.
        broken: Vec<Broken>,
    },
    /// Two spec files of one directory have it, and neither is better than the other.
    #[error("CDI device {name} is in two spec files, {} and {}: remove one", .files[0].display(), .files[1].display())]
    Conflict {
        /// The device.
        name: CdiName,
        /// The files.
        files: [PathBuf; 2],
    },
    /// Its edits ask for something that podd does not do.
    #[error("CDI device {name} needs {what}, which podd does not support")]
    Unsupported {
        /// The device.
        name: CdiName,
        /// The field of `containerEdits`.
        what: &'static str,
    },
    /// A device node that its spec leaves to the host is not there.
    #[error("CDI device {name} needs the device node {}", path.display())]
    Node {
        /// The device.
        name: CdiName,
        /// Path on the host.
        path: PathBuf,
        /// Why it cannot be had.
        source: io::Error,
    },
    /// The host's device node is of another type than the spec says.
    #[error("CDI device {name}: the device node {} is of another type than its spec file says", path.display())]
    OtherKind {
        /// The device.
        name: CdiName,
        /// Path on the host.
        path: PathBuf,
    },
}

/// How many broken files an error names.
const NAMED: usize = 3;

fn missing(kind_known: bool, dirs: &[PathBuf], broken: &[Broken]) -> String {
    if kind_known {
        return "the spec files of its kind have other devices only".to_owned();
    }
    let list = |items: Vec<String>| items.join(", ");
    let mut text = match dirs {
        [] => "cdi.spec_dirs is empty".to_owned(),
        dirs => format!(
            "no spec file in {} is about its kind",
            list(dirs.iter().map(|dir| dir.display().to_string()).collect())
        ),
    };
    if !broken.is_empty() {
        let named = broken.iter().take(NAMED);
        let named = named.map(|file| format!("{}: {}", file.path.display(), file.reason));
        text.push_str("; files that cannot be used: ");
        text.push_str(&named.collect::<Vec<_>>().join("; "));
        if broken.len() > NAMED {
            text.push_str(&format!("; and {} more", broken.len() - NAMED));
        }
    }
    text
}
