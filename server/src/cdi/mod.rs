//! The Container Device Interface (SPEC.md 1.1 of CDI): files in which vendors say what a container needs to use a
//! device, and what a request's devices come to.
//!
//! Reads spec files and looks at device nodes of the host, and changes nothing. A request without such devices comes
//! nowhere near this module. Files are read anew for each request that names a device, so that none is ever stale.
//!
//! The `container-device-interface` crate is not used: docs/architecture.md says why.

mod error;
mod format;
mod library;
#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks};
use serde::{Deserialize, Serialize};

pub use error::CdiError;
use format::{ContainerEdits, HookName};
use library::Library;

use crate::model::CdiName;

/// What the CDI devices of a container add to it. Kept in its record: files may change while it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Edits {
    /// `NAME=value`; replaces what the request and the image say.
    pub env: Vec<String>,
    /// Device nodes, each path once.
    pub devices: Vec<DeviceNode>,
    /// Mounts, each path once; they replace those of the request.
    pub mounts: Vec<Mount>,
    /// Programs to run on the way. `prestart` is an old name for the first of `createRuntime`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Supplementary groups; never 0.
    pub groups: Vec<u32>,
}

/// What a device node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A FIFO.
    Fifo,
}

/// A device node that a container gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// What it is.
    pub kind: NodeKind,
    /// Major number; 0 of a FIFO.
    pub major: u32,
    /// Minor number; 0 of a FIFO.
    pub minor: u32,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner, as the container numbers it.
    pub uid: Option<u32>,
    /// Group, as the container numbers it.
    pub gid: Option<u32>,
    /// What the device cgroup allows: some of `r`, `w`, `m`, or nothing.
    pub permissions: String,
}

/// A mount that a container gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Path on the host, or the source of a file system.
    pub source: String,
    /// Path in the container.
    pub destination: String,
    /// `bind`, or the type of a file system.
    pub kind: String,
    /// Options as in fstab.
    pub options: Vec<String>,
}

/// What some devices come to: the edits of every spec file that has one of them, once, each before those of its
/// devices. Directories that come later win over earlier ones.
///
/// # Errors
/// A device is in no file, or in two of the same directory; or its edits need what the host lacks or podd does not do.
pub fn find(dirs: &[PathBuf], names: &[CdiName]) -> Result<Edits, CdiError> {
    let library = Library::read(dirs);
    let (mut chosen, mut seen) = (Vec::new(), Vec::new());
    for name in names {
        let (spec, device) = library.device(dirs, name)?;
        if !seen.contains(&&spec.path) {
            seen.push(&spec.path);
            chosen.push((name, &spec.content.container_edits));
        }
        chosen.push((name, &device.container_edits));
    }
    let mut edits = Edits {
        hooks: hooks(&chosen),
        ..Edits::default()
    };
    for (name, more) in chosen {
        edits.add(name, more)?;
    }
    Ok(edits)
}

impl Edits {
    fn add(&mut self, name: &CdiName, edits: &ContainerEdits) -> Result<(), CdiError> {
        let unsupported = [
            (edits.intel_rdt.is_some(), "intelRdt"),
            (!edits.net_devices.is_empty(), "netDevices"),
        ];
        if let Some((_, what)) = unsupported.into_iter().find(|(asked, _)| *asked) {
            return Err(CdiError::Unsupported {
                name: name.clone(),
                what,
            });
        }
        self.env.extend(edits.env.iter().cloned());
        for wanted in &edits.device_nodes {
            let node = device_node(name, wanted)?;
            self.devices.retain(|known| known.path != node.path);
            self.devices.push(node);
        }
        for mount in edits.mounts.iter().map(format::Mount::understood) {
            self.mounts.retain(|known| known.destination != mount.destination);
            self.mounts.push(mount);
        }
        for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
            if !self.groups.contains(gid) {
                self.groups.push(*gid);
            }
        }
        Ok(())
    }
}

/// All hooks, in the order of the files, those of a kind together; `None` where there are none.
fn hooks(chosen: &[(&CdiName, &ContainerEdits)]) -> Option<Hooks> {
    let of = |kinds: &[HookName]| {
        let each = kinds.iter().flat_map(|kind| {
            let all = chosen.iter().flat_map(|(_, edits)| &edits.hooks);
            all.filter(move |hook| hook.hook_name == *kind)
        });
        let list: Vec<Hook> = each.map(format::Hook::to_oci).collect();
        (!list.is_empty()).then_some(list)
    };
    let mut hooks = Hooks::default();
    hooks
        .set_create_runtime(of(&[HookName::Prestart, HookName::CreateRuntime]))
        .set_create_container(of(&[HookName::CreateContainer]))
        .set_start_container(of(&[HookName::StartContainer]))
        .set_poststart(of(&[HookName::Poststart]))
        .set_poststop(of(&[HookName::Poststop]));
    (hooks != Hooks::default()).then_some(hooks)
}

/// Fills in what a file leaves to the host's node. A file that gives type and number needs no node on the host.
fn device_node(name: &CdiName, wanted: &format::DeviceNode) -> Result<DeviceNode, CdiError> {
    let host = wanted.host_path.as_deref().unwrap_or(&wanted.path);
    let complete = wanted
        .kind()
        .filter(|kind| *kind == NodeKind::Fifo || wanted.major != 0);
    let found = look(Path::new(host));
    let (kind, major, minor) = match (complete, &found) {
        (Some(kind), _) => (kind, wanted.major, wanted.minor),
        (None, Ok(found)) => {
            if wanted.kind().is_some_and(|kind| kind != found.kind) {
                return Err(CdiError::OtherKind {
                    name: name.clone(),
                    path: host.into(),
                });
            }
            (found.kind, found.major, found.minor)
        }
        (None, Err(_)) => {
            return Err(CdiError::Node {
                name: name.clone(),
                path: host.into(),
                source: found.err().unwrap_or_else(|| std::io::ErrorKind::NotFound.into()),
            });
        }
    };
    Ok(DeviceNode {
        path: wanted.path.clone(),
        kind,
        major,
        minor,
        mode: wanted.file_mode.or_else(|| found.ok().map(|found| found.mode)),
        uid: wanted.uid,
        gid: wanted.gid,
        permissions: wanted.access().to_owned(),
    })
}

struct Found {
    kind: NodeKind,
    major: u32,
    minor: u32,
    mode: u32,
}

/// The node at a path of the host. Links are not followed, as in the reference implementation.
fn look(path: &Path) -> std::io::Result<Found> {
    let meta = fs::symlink_metadata(path)?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => NodeKind::Char,
        kind if kind.is_block_device() => NodeKind::Block,
        kind if kind.is_fifo() => NodeKind::Fifo,
        _ => return Err(std::io::Error::other("it is not a device node")),
    };
    let (major, minor) = match kind {
        NodeKind::Fifo => (0, 0),
        NodeKind::Char | NodeKind::Block => (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())),
    };
    Ok(Found {
        kind,
        major,
        minor,
        mode: meta.mode() & 0o7777,
    })
}
