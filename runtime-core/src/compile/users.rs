//! Containers of a pod with a user namespace: what is made before it is joined, with the host's privileges.
//!
//! Inside, the kernel makes no overlay with podd's options, no device node, no sysfs of another owner and no hard
//! limit above the present one. So the root, /dev, /sys and image volumes are made detached before and only attached
//! inside, as are files of the nest, which only the host's root can reach.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::{Path, PathBuf};

use linux_raw_sys::general as sys;
use oci_spec::runtime::{LinuxIdMapping, Process, Spec};

use super::container::{self, Node, Stack};
use super::mounts::Options;
use super::namespaces::{Layout, slot};
use super::text::path;
use super::{CompileError, ContainerInputs, process};
use crate::plan::{Namespaces, PlanBuf, Slot, Step};

/// The host's ids of the namespace's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Users {
    uid: u32,
    gid: u32,
}

/// Mounts that were made before they are attached, by destination, and the next free slot.
#[derive(Debug)]
pub(super) struct Made {
    by_destination: BTreeMap<PathBuf, Slot>,
    next: Slot,
}

impl Made {
    /// Nothing made yet; `volumes` slots are taken.
    pub fn behind(volumes: usize) -> Self {
        let taken = Slot::try_from(volumes).unwrap_or(Slot::MAX);
        Self {
            by_destination: BTreeMap::new(),
            next: slot::FIRST_MOUNT.saturating_add(taken),
        }
    }

    /// The slot for a mount that is made now.
    pub fn slot(&mut self) -> Slot {
        let slot = self.next;
        self.next = self.next.saturating_add(1);
        slot
    }

    /// The slot for the mount at a destination that is made now.
    pub fn slot_at(&mut self, destination: &Path) -> Slot {
        let slot = self.slot();
        self.by_destination.insert(destination.to_owned(), slot);
        slot
    }

    /// The slot of what was made for a destination.
    pub fn at(&self, destination: &Path) -> Option<Slot> {
        self.by_destination.get(destination).copied()
    }
}

impl Users {
    /// The user namespace of a spec. One range from 0 is what the CRI's pods have.
    pub fn of(spec: &Spec, layout: &Layout) -> Result<Option<Self>, CompileError> {
        let linux = spec.linux().as_ref();
        let uids = linux.and_then(|linux| linux.uid_mappings().as_ref());
        let gids = linux.and_then(|linux| linux.gid_mappings().as_ref());
        if !layout.user {
            let mut mounts = spec.mounts().iter().flatten();
            let mapped = mounts.any(|mount| mount.uid_mappings().is_some() || mount.gid_mappings().is_some());
            return if mapped || uids.is_some() || gids.is_some() {
                Err(CompileError::Missing("user namespace for its id mappings"))
            } else {
                Ok(None)
            };
        }
        let root = |maps: Option<&Vec<LinuxIdMapping>>| match maps.map(Vec::as_slice) {
            Some([map]) if map.container_id() == 0 => Ok(map.host_id()),
            _ => Err(CompileError::Missing("id mapping, one range from 0")),
        };
        Ok(Some(Self {
            uid: root(uids)?,
            gid: root(gids)?,
        }))
    }

    /// Appends what needs the host's privileges and no mount.
    pub fn before(self, plan: &mut PlanBuf, process: &Process) {
        process::rlimits(plan, process);
        plan.push(&Step::OwnStdio {
            uid: self.uid,
            gid: self.gid,
        });
    }

    /// Appends the steps that make mounts, up to the namespace itself; returns the slot of the root.
    pub fn prepare(
        self,
        plan: &mut PlanBuf,
        spec: &Spec,
        inputs: &ContainerInputs,
        made: &mut Made,
        context: &CStr,
    ) -> Result<Slot, CompileError> {
        // What is attached on the way stays out of podinit's mounts.
        plan.push(&Step::Unshare(Namespaces::from(sys::CLONE_NEWNS)));
        let mut volume = slot::FIRST_MOUNT;
        for mount in spec.mounts().iter().flatten() {
            let options = Options::parse(mount)?.labelled(mount, context);
            let destination = mount.destination();
            if inputs.images.contains_key(destination) {
                continue;
            }
            if let Some(nest) = inputs.nest.get(destination).filter(|_| options.bind) {
                let source = path("nest path", Path::new(&nest.path))?;
                let slot = made.slot_at(destination);
                plan.push(&Step::MakeClone {
                    slot,
                    source: &source,
                });
            } else if options.bind {
                if options.idmap {
                    plan.push(&Step::MapIds(volume));
                }
                volume = volume.saturating_add(1);
            } else if destination == Path::new("/dev")
                || mount.typ().as_deref() == Some("sysfs")
                // Its root is the host's: the pod's may not label it.
                || (mount.typ().as_deref() == Some("mqueue") && !context.is_empty())
            {
                let slot = made.slot_at(destination);
                self.file_system(plan, spec, mount, &options, slot)?;
            }
        }
        container::images(plan, inputs, true, made, context)?;
        let root = Stack {
            lowers: &inputs.root.lowers,
            writable: true,
            sub_path: "",
            context,
        };
        let slot = made.slot();
        root.push(plan, slot, &inputs.root, true)?;
        plan.push(&Step::Join {
            slot: slot::USER,
            namespaces: Namespaces::from(sys::CLONE_NEWUSER),
        });
        Ok(slot)
    }

    /// sysfs, which shows the network namespace that was joined, /dev with its nodes, or the queues of the ipc namespace.
    fn file_system(
        self,
        plan: &mut PlanBuf,
        spec: &Spec,
        mount: &oci_spec::runtime::Mount,
        options: &Options,
        slot: Slot,
    ) -> Result<(), CompileError> {
        let dev = mount.destination() == Path::new("/dev");
        let fstype = super::mounts::new_type(mount)?;
        let mut data = options.data.clone();
        if dev && fstype.as_bytes() == b"tmpfs" {
            for (key, id) in [(c"uid", self.uid), (c"gid", self.gid)] {
                data.push((key.to_owned(), super::text::text("id", id.to_string())?));
            }
        }
        let context = super::mounts::take_context(&fstype, &mut data);
        let nodes = if dev { container::nodes(spec)? } else { Vec::new() };
        let nodes = nodes.iter().map(Node::below_dev).collect::<Result<Vec<_>, _>>()?;
        plan.push(&Step::MakeNew {
            slot,
            fstype: &fstype,
            options: data
                .iter()
                .map(|(key, value)| (key.as_c_str(), value.as_c_str()))
                .collect(),
            attrs: options.attrs,
            context: &context,
            nodes,
        });
        Ok(())
    }
}
