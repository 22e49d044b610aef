//! Devices: looked up on the host, then put into specs as nodes and as rules of the device cgroup.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use thiserror::Error;

use runtime_core::compile::Who;

use super::{Inputs, SpecError, user};
use crate::cdi::{DeviceNode, NodeKind};
use crate::model::Device;

/// Directories of /dev that are file systems of their own or belong to each container (as containerd leaves out).
const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
/// Terminals of the host that a container has its own of.
const TERMINALS: [&str; 2] = ["console", "ptmx"];

/// A device node of the host and how a container gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The node in the container.
    pub node: LinuxDevice,
    /// `r`, `w`, `m`.
    pub permissions: String,
}

/// A device of a request is not to be had.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// It cannot be looked at.
    #[error("device {path:?} of the host")]
    Look {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is neither a device nor a directory of devices.
    #[error("{0:?} of the host is not a device and has none in it")]
    NoDevice(PathBuf),
}

/// Looks up the devices of a request. A directory stands for all the devices below it.
///
/// # Errors
/// One does not exist or is none.
pub fn find(devices: &[Device]) -> Result<Vec<Found>, DeviceError> {
    let mut found = Vec::new();
    for device in devices {
        let host = Path::new(&device.host_path);
        let look = |source| DeviceError::Look {
            path: host.to_owned(),
            source,
        };
        let target = Path::new(&device.container_path);
        let nodes = if fs::metadata(host).map_err(look)?.is_dir() {
            below(host, target).map_err(look)?
        } else {
            node(host, target).map_err(look)?.into_iter().collect()
        };
        if nodes.is_empty() {
            return Err(DeviceError::NoDevice(host.to_owned()));
        }
        found.extend(nodes.into_iter().map(|node| Found {
            node,
            permissions: device.permissions.clone(),
        }));
    }
    Ok(found)
}

/// Every device below a directory such as /dev, under its own path.
pub(super) fn all(dir: &Path) -> io::Result<Vec<LinuxDevice>> {
    below(dir, dir)
}

fn below(dir: &Path, target: &Path) -> io::Result<Vec<LinuxDevice>> {
    let mut nodes = Vec::new();
    let mut left = vec![(dir.to_owned(), target.to_owned())];
    while let Some((dir, target)) = left.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let (path, target) = (entry.path(), target.join(entry.file_name()));
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                // Unplugged while we look.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if kind.is_dir() {
                if !SKIPPED.iter().any(|name| entry.file_name() == *name) {
                    left.push((path, target));
                }
            } else if !TERMINALS.iter().any(|name| entry.file_name() == *name) {
                // Links are not followed: what they lead to is found under its own name.
                match if kind.is_symlink() {
                    Ok(None)
                } else {
                    node(&path, &target)
                } {
                    Ok(node) => nodes.extend(node),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    nodes.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(nodes)
}

/// The device at a path, `None` when it is something else.
fn node(path: &Path, target: &Path) -> io::Result<Option<LinuxDevice>> {
    let meta = fs::metadata(path)?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Ok(None),
    };
    let mut device = LinuxDevice::default();
    device.set_path(target.to_owned());
    device.set_typ(kind);
    device.set_major(i64::from(rustix::fs::major(meta.rdev())));
    device.set_minor(i64::from(rustix::fs::minor(meta.rdev())));
    device.set_file_mode(Some(meta.mode() & 0o7777));
    device.set_uid(Some(meta.uid()));
    device.set_gid(Some(meta.gid()));
    Ok(Some(device))
}

/// The nodes of a container beside the default ones, each path once: those of CDI devices before those of the
/// request, and all of the host's when it is privileged.
pub(super) fn nodes(inputs: &Inputs<'_>) -> Result<Vec<LinuxDevice>, SpecError> {
    let of_cdi = inputs.cdi.devices.iter();
    let mut nodes = of_cdi
        .map(|node| of_cdi_device(node, inputs))
        .collect::<Result<Vec<_>, _>>()?;
    let asked = inputs.devices.iter().map(|found| &found.node);
    let asked: Vec<_> = asked
        .filter(|device| !nodes.iter().any(|node| node.path() == device.path()))
        .cloned()
        .collect();
    nodes.extend(asked);
    if inputs.container.security.privileged {
        let asked = |device: &&LinuxDevice| !nodes.iter().any(|node| node.path() == device.path());
        let host: Vec<LinuxDevice> = inputs.host.devices.iter().filter(asked).cloned().collect();
        nodes.extend(host);
    }
    Ok(nodes)
}

/// The node of a CDI device. One without an owner is the container's user's, as far as the request says who that is
/// (as in the reference implementation).
fn of_cdi_device(node: &DeviceNode, inputs: &Inputs<'_>) -> Result<LinuxDevice, SpecError> {
    let identity = user::identity(inputs)?;
    let number = |who: &Who| if let Who::Id(id) = who { *id } else { 0 };
    let users = inputs.pod.namespaces.user;
    // The stage makes nodes as the host's root: ids of the container are the host's behind the first of its range.
    let uid = node.uid.unwrap_or_else(|| number(&identity.user));
    let uid = users.map_or(uid, |ids| ids.users.host.saturating_add(uid));
    let gid = node.gid.unwrap_or_else(|| number(&identity.group));
    let gid = users.map_or(gid, |ids| ids.groups.host.saturating_add(gid));
    let mut device = LinuxDevice::default();
    device
        .set_path(PathBuf::from(&node.path))
        .set_typ(oci_type(node.kind))
        .set_major(node.major.into())
        .set_minor(node.minor.into())
        .set_file_mode(node.mode)
        .set_uid(Some(uid))
        .set_gid(Some(gid));
    Ok(device)
}

fn oci_type(kind: NodeKind) -> LinuxDeviceType {
    match kind {
        NodeKind::Char => LinuxDeviceType::C,
        NodeKind::Block => LinuxDeviceType::B,
        NodeKind::Fifo => LinuxDeviceType::P,
    }
}

/// Rules of the device cgroup: everything when privileged; else nodes may be made, and only the default devices
/// and those of the request may be used (the same rules as under containerd with runc).
pub(super) fn rules(inputs: &Inputs<'_>) -> Vec<LinuxDeviceCgroup> {
    if inputs.container.security.privileged {
        return vec![rule(true, None, None, None, "rwm")];
    }
    let mut rules = usual_rules();
    rules.extend(inputs.devices.iter().map(|found| {
        let node = &found.node;
        rule(
            true,
            Some(node.typ()),
            Some(node.major()),
            Some(node.minor()),
            &found.permissions,
        )
    }));
    // The device cgroup knows no FIFOs.
    let of_cdi = inputs.cdi.devices.iter();
    let of_cdi = of_cdi.filter(|node| node.kind != NodeKind::Fifo && !node.permissions.is_empty());
    rules.extend(of_cdi.map(|node| {
        let (major, minor) = (node.major.into(), node.minor.into());
        rule(
            true,
            Some(oci_type(node.kind)),
            Some(major),
            Some(minor),
            &node.permissions,
        )
    }));
    rules
}

/// The rules of a container that is not privileged and asks for no device. Making nodes stays allowed in all that
/// are built on these: the stage does so under them.
#[must_use]
pub fn usual_rules() -> Vec<LinuxDeviceCgroup> {
    let (c, b) = (Some(LinuxDeviceType::C), Some(LinuxDeviceType::B));
    vec![
        rule(false, None, None, None, "rwm"),
        rule(true, c, None, None, "m"),
        rule(true, b, None, None, "m"),
        rule(true, c, Some(1), Some(3), "rwm"),
        rule(true, c, Some(1), Some(5), "rwm"),
        rule(true, c, Some(1), Some(7), "rwm"),
        rule(true, c, Some(1), Some(8), "rwm"),
        rule(true, c, Some(1), Some(9), "rwm"),
        rule(true, c, Some(5), Some(0), "rwm"),
        // 5:1 is not the container's console but the node's: a container with a terminal has a pts at /dev/console.
        rule(true, c, Some(5), Some(2), "rwm"),
        rule(true, c, Some(136), None, "rwm"),
        // Tunnels are made by who has NET_ADMIN over the pod's network. Programs that do make the node themselves.
        rule(true, c, Some(10), Some(200), "rwm"),
    ]
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(kind);
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}
