//! Mounts of a spec: what is made, what comes from the nest, what the caller has to open.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use linux_raw_sys::general as sys;
use oci_spec::runtime::{Mount, Spec};

use super::namespaces::slot;
use super::text::{path, text};
use super::users::Made;
use super::{CompileError, ContainerInputs, NestMount};
use crate::plan::{Attr, FileKind, PlanBuf, Slot, Step, attr, mount_flag};

/// File systems that a plan can make.
const NEW: [&str; 6] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2"];

/// A bind mount that the caller has to open, in slot order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume<'a> {
    /// Where its descriptor goes.
    pub slot: Slot,
    /// Path on the host.
    pub source: &'a Path,
    /// Path in the container.
    pub destination: &'a Path,
    /// Submounts come along (`rbind`).
    pub recursive: bool,
    /// One of [`mount_flag`]: slave and shared need a source that is itself shared.
    pub propagation: u64,
}

/// The bind mounts of a spec that are not `nest` paths: what the caller opens before it compiles.
///
/// # Errors
/// A mount has options that no plan knows, or no source.
pub fn volumes<'a>(
    spec: &'a Spec,
    nest: &BTreeMap<PathBuf, NestMount>,
) -> Result<Vec<Volume<'a>>, CompileError> {
    let mut found = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let options = Options::parse(mount)?;
        if !options.bind || nest.contains_key(mount.destination()) {
            continue;
        }
        let source = mount
            .source()
            .as_deref()
            .ok_or(CompileError::Missing("source of a bind mount"))?;
        found.push(Volume {
            slot: nth_slot(found.len()),
            source,
            destination: mount.destination(),
            recursive: options.recursive,
            propagation: options.propagation,
        });
    }
    Ok(found)
}

fn nth_slot(n: usize) -> Slot {
    slot::FIRST_MOUNT.saturating_add(Slot::try_from(n).unwrap_or(Slot::MAX))
}

/// Appends every mount in the order of the spec, and calls `after` behind the one at /dev.
pub(super) fn push(
    plan: &mut PlanBuf,
    spec: &Spec,
    inputs: &ContainerInputs,
    made: &Made,
    context: &CStr,
    mut fill_dev: impl FnMut(&mut PlanBuf) -> Result<(), CompileError>,
) -> Result<(), CompileError> {
    let mut used = 0;
    for mount in spec.mounts().iter().flatten() {
        let options = Options::parse(mount)?.labelled(mount, context);
        let (destination, target) = (
            mount.destination(),
            path("mount destination", mount.destination())?,
        );
        let nest = inputs.nest.get(destination).filter(|_| options.bind);
        if let Some(slot) = made.at(destination) {
            attach(plan, inputs, mount, &options, slot)?;
        } else if !options.bind {
            new(plan, mount, &options, &target)?;
        } else if let Some(NestMount { path: source, kind }) = nest {
            let source = path("nest path", Path::new(source))?;
            plan.push(&Step::MountNest {
                source: &source,
                target: &target,
                kind: *kind,
                attrs: options.attrs,
            });
        } else {
            if let Some(&kind) = inputs.volumes.get(used) {
                slot(plan, nth_slot(used), &target, kind, &options);
            }
            used += 1;
        }
        // As other runtimes do: a /dev that is the host's is left as it is.
        if !options.bind && destination == Path::new("/dev") {
            fill_dev(plan)?;
        }
    }
    if used == inputs.volumes.len() {
        Ok(())
    } else {
        Err(CompileError::VolumeCount {
            wanted: used,
            given: inputs.volumes.len(),
        })
    }
}

fn slot(plan: &mut PlanBuf, slot: Slot, target: &CString, kind: FileKind, options: &Options) {
    plan.push(&Step::MountSlot {
        slot,
        target,
        kind,
        attrs: options.attrs,
        recursive: options.recursive_readonly,
        propagation: options.propagation,
    });
}

/// Attaches what was made before.
fn attach(
    plan: &mut PlanBuf,
    inputs: &ContainerInputs,
    mount: &Mount,
    options: &Options,
    number: Slot,
) -> Result<(), CompileError> {
    let target = path("mount destination", mount.destination())?;
    if inputs.images.contains_key(mount.destination()) {
        plan.push(&Step::MountLayers {
            slot: number,
            target: &target,
            attrs: options.attrs,
        });
        return Ok(());
    }
    let nest = inputs.nest.get(mount.destination()).filter(|_| options.bind);
    // The attributes of a new file system were set when it was made.
    let plain = Options {
        propagation: 0,
        ..Options::default()
    };
    match nest {
        Some(nest) => slot(plan, number, &target, nest.kind, options),
        None => slot(plan, number, &target, FileKind::Directory, &plain),
    }
    Ok(())
}

fn new(plan: &mut PlanBuf, mount: &Mount, options: &Options, target: &CString) -> Result<(), CompileError> {
    let typ = new_type(mount)?;
    let mut data = options.data.clone();
    if let Some(source) = mount.source() {
        let source = text("mount source", source.as_os_str().as_encoded_bytes())?;
        data.insert(0, (c"source".to_owned(), source));
    }
    let context = take_context(&typ, &mut data);
    plan.push(&Step::MountNew {
        fstype: &typ,
        target,
        options: data
            .iter()
            .map(|(key, value)| (key.as_c_str(), value.as_c_str()))
            .collect(),
        attrs: options.attrs,
        context: &context,
    });
    Ok(())
}

/// The SELinux context of a spec's mounts; empty where it has none.
pub(super) fn context(spec: &Spec) -> Result<CString, CompileError> {
    let label = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.mount_label().as_ref());
    text("SELinux context", label.map_or("", String::as_str))
}

/// The context that is given to the root of a file system after it was mounted. The kernel itself has mounted that of an
/// ipc namespace before, and takes no other context than it had then: none.
pub(super) fn take_context(typ: &CStr, data: &mut Vec<(CString, CString)>) -> CString {
    let is_context = |(key, _): &(CString, CString)| key.as_c_str() == c"context";
    let at = data.iter().position(is_context).filter(|_| typ == c"mqueue");
    at.map(|at| data.remove(at).1).unwrap_or_default()
}

/// The type of a file system that a plan can make.
pub(super) fn new_type(mount: &Mount) -> Result<CString, CompileError> {
    match mount.typ().as_deref() {
        Some("cgroup") => Ok(c"cgroup2".to_owned()),
        Some(typ) if NEW.contains(&typ) => text("mount type", typ),
        other => Err(CompileError::Unsupported {
            what: "mount type",
            value: other.unwrap_or_default().to_owned(),
        }),
    }
}

/// fstab-style options of one mount, understood.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub bind: bool,
    recursive: bool,
    recursive_readonly: bool,
    /// The source gets the ids of the container's user namespace.
    pub idmap: bool,
    pub attrs: Attr,
    propagation: u64,
    pub data: Vec<(CString, CString)>,
}

/// The mount attributes that neither [`attr`] names nor a volume needs.
const NOATIME: Attr = sys::MOUNT_ATTR_NOATIME as Attr;
const STRICTATIME: Attr = sys::MOUNT_ATTR_STRICTATIME as Attr;
const NODIRATIME: Attr = sys::MOUNT_ATTR_NODIRATIME as Attr;
const NOSYMFOLLOW: Attr = sys::MOUNT_ATTR_NOSYMFOLLOW as Attr;

impl Options {
    /// The same with the container's SELinux context, for file systems whose files the kernel labels by where they are
    /// mounted. Those of procfs and sysfs belong to the node, and a spec may say something else.
    pub fn labelled(mut self, mount: &Mount, context: &CStr) -> Self {
        let own = !self.bind && matches!(mount.typ().as_deref(), Some("tmpfs" | "devpts"));
        if own && !context.is_empty() && self.data.iter().all(|(key, _)| key.as_c_str() != c"context") {
            self.data.push((c"context".to_owned(), context.to_owned()));
        }
        self
    }

    pub fn parse(mount: &Mount) -> Result<Self, CompileError> {
        let bind = mount.typ().as_deref() == Some("bind");
        let mut parsed = Self {
            bind,
            propagation: mount_flag::PRIVATE,
            ..Self::default()
        };
        for option in mount.options().iter().flatten() {
            parsed.option(option)?;
        }
        parsed.idmap = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
        if parsed.bind && !parsed.data.is_empty() {
            let value = mount
                .options()
                .iter()
                .flatten()
                .cloned()
                .collect::<Vec<_>>()
                .join(",");
            return Err(CompileError::Unsupported {
                what: "options of a bind mount",
                value,
            });
        }
        Ok(parsed)
    }

    fn option(&mut self, option: &str) -> Result<(), CompileError> {
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "rro" => {
                self.recursive_readonly = true;
                self.attrs |= attr::RDONLY;
            }
            "ro" => self.attrs |= attr::RDONLY,
            "rw" => self.attrs &= !attr::RDONLY,
            "nosuid" => self.attrs |= attr::NOSUID,
            "suid" => self.attrs &= !attr::NOSUID,
            "nodev" => self.attrs |= attr::NODEV,
            "dev" => self.attrs &= !attr::NODEV,
            "noexec" => self.attrs |= attr::NOEXEC,
            "exec" => self.attrs &= !attr::NOEXEC,
            "noatime" => self.attrs |= NOATIME,
            "strictatime" => self.attrs |= STRICTATIME,
            "nodiratime" => self.attrs |= NODIRATIME,
            "nosymfollow" => self.attrs |= NOSYMFOLLOW,
            "private" | "rprivate" => self.propagation = mount_flag::PRIVATE,
            "slave" | "rslave" => self.propagation = mount_flag::SLAVE,
            "shared" | "rshared" => self.propagation = mount_flag::SHARED,
            // relatime and defaults are what the kernel does anyway; every devpts is an instance of its own
            // since Linux 4.7.
            "relatime" | "defaults" | "newinstance" => {}
            data => {
                let (key, value) = data.split_once('=').ok_or_else(|| CompileError::Unsupported {
                    what: "mount option",
                    value: data.to_owned(),
                })?;
                self.data
                    .push((text("mount option", key)?, text("mount option", value)?));
            }
        }
        Ok(())
    }
}
