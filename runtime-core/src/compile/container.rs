//! The plan of a container's first process.

use std::ffi::{CStr, CString};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Process, Spec};

use super::namespaces::Layout;
use super::process::{self, Attribute, Variant};
use super::text::{borrow, path, text, texts};
use super::users::{Made, Users};
use super::{CompileError, ContainerInputs, RootLayers, hooks, mounts};
use crate::plan::{Device, Layers, PlanBuf, Slot, Step, TerminalSize};
use linux_raw_sys::general as sys;

/// Device nodes that every container has (OCI runtime spec, config-linux.md, "Default Devices").
const NODES: [(&std::ffi::CStr, u32, u32); 6] = [
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
    (c"/dev/tty", 5, 0),
];

/// Links that every container has in /dev (OCI runtime spec, runtime-linux.md, "Dev symbolic links").
const LINKS: [(&std::ffi::CStr, &std::ffi::CStr); 6] = [
    (c"/dev/fd", c"/proc/self/fd"),
    (c"/dev/stdin", c"/proc/self/fd/0"),
    (c"/dev/stdout", c"/proc/self/fd/1"),
    (c"/dev/stderr", c"/proc/self/fd/2"),
    (c"/dev/ptmx", c"pts/ptmx"),
    (c"/dev/core", c"/proc/kcore"),
];

/// Compiles the plan that becomes a container's first process.
///
/// # Errors
/// The spec or the inputs cannot become a plan.
pub fn container(spec: &Spec, inputs: &ContainerInputs) -> Result<Vec<u8>, CompileError> {
    refuse_unknown(spec)?;
    let process = process::of(spec)?;
    let layout = Layout::of(spec)?;
    let users = Users::of(spec, &layout)?;
    let mut made = Made::behind(inputs.volumes.len() + usize::from(hooks::needs_host_tree(spec)));
    let mut plan = PlanBuf::new();
    let context = mounts::context(spec)?;

    outside(&mut plan, process, inputs)?;
    if let Some(users) = &users {
        users.before(&mut plan, process);
    }
    layout.joins().for_each(|step| plan.push(&step));
    let prepared = match &users {
        Some(users) => Some(users.prepare(&mut plan, spec, inputs, &mut made, &context)?),
        None => None,
    };
    plan.push(&Step::Clone {
        namespaces: layout.cloned,
        into_cgroup: inputs.process.into_cgroup,
    });
    if users.is_some() {
        plan.push(&Step::RootOfNamespace);
    }
    if layout.cgroup {
        plan.push(&Step::Unshare(u64::from(sys::CLONE_NEWCGROUP)));
    }
    plan.push(&Step::NewSession);
    if layout.cloned & u64::from(sys::CLONE_NEWUTS) != 0
        && let Some(hostname) = spec.hostname()
    {
        plan.push(&Step::Hostname(&text("host name", hostname.as_str())?));
    }

    match prepared {
        Some(slot) => plan.push(&Step::RootSlot(slot)),
        None => {
            images(&mut plan, inputs, false, &mut made, &context)?;
            root(&mut plan, &inputs.root, &context)?;
        }
    }
    mounts::push(&mut plan, spec, inputs, &made, &context, |plan| {
        if users.is_none() {
            nodes(spec)?
                .iter()
                .for_each(|node| plan.push(&Step::Mknod(node.device(&node.path))));
        }
        for (path, target) in LINKS {
            plan.push(&Step::Symlink { path, target });
        }
        Ok(())
    })?;
    protect(&mut plan, spec, &context)?;
    if process.terminal() == Some(true) {
        plan.push(&Step::Console(TerminalSize::default()));
    }
    hooks::before_root(&mut plan, spec, inputs, users.is_some())?;
    // Not before: a hook's program is the host's, and would begin in the container's domain.
    process::selinux(&mut plan, process, Attribute::Exec)?;
    plan.push(&Step::PivotRoot);
    let read_only_root = spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true);
    let args = process.args().as_deref().unwrap_or_default();
    process::finish(
        &mut plan,
        spec,
        &inputs.process,
        &Variant {
            args,
            directories: &inputs.directories,
            create_cwd: true,
            read_only_root,
            gate: true,
            hooks: inputs.hooks.as_ref(),
            limits: users.is_none(),
        },
    )?;
    Ok(plan.finish())
}

/// What is done in the nest, where its procfs and its /dev/shm can be reached.
fn outside(plan: &mut PlanBuf, process: &Process, inputs: &ContainerInputs) -> Result<(), CompileError> {
    process::oom_score(plan, process)?;
    process::apparmor(plan, process)?;
    process::selinux(plan, process, Attribute::Keys)?;
    if let Some(shared) = &inputs.shm_context {
        plan.push(&Step::Relabel {
            path: c"/shm",
            context: &text("SELinux context", shared.as_str())?,
        });
    }
    Ok(())
}

/// Parts of a spec that would be lost: better no container than one that lacks what was asked for.
fn refuse_unknown(spec: &Spec) -> Result<(), CompileError> {
    let mut lost: Vec<(bool, &str)> = Vec::new();
    if let Some(process) = spec.process() {
        lost.extend([
            (process.io_priority().is_some(), "I/O priority"),
            (process.scheduler().is_some(), "scheduler"),
            (process.exec_cpu_affinity().is_some(), "exec CPU affinity"),
            (process.user().umask().is_some(), "umask"),
        ]);
    }
    if let Some(linux) = spec.linux() {
        lost.extend([
            (
                linux.sysctl().as_ref().is_some_and(|all| !all.is_empty()),
                "sysctl of a container, not a pod",
            ),
            (linux.personality().is_some(), "personality"),
            (linux.time_offsets().is_some(), "time offsets"),
            (linux.intel_rdt().is_some(), "Intel RDT"),
            (linux.memory_policy().is_some(), "memory policy"),
            (linux.net_devices().is_some(), "network devices"),
        ]);
    }
    match lost.into_iter().find(|(there, _)| *there) {
        None => Ok(()),
        Some((_, part)) => Err(CompileError::Unsupported {
            what: "part of the spec",
            value: part.to_owned(),
        }),
    }
}

fn root(plan: &mut PlanBuf, root: &RootLayers, context: &CStr) -> Result<(), CompileError> {
    if root.lowers.is_empty() {
        return Err(CompileError::Missing("layer"));
    }
    let lowers = texts("layer", &root.lowers)?;
    plan.push(&Step::RootOverlay(Layers {
        base: path("layer directory", Path::new(&root.base))?.as_c_str(),
        lowers: borrow(&lowers),
        writable: Some((
            path("upper directory", Path::new(&root.upper))?.as_c_str(),
            path("work directory", Path::new(&root.work))?.as_c_str(),
        )),
        context,
    }));
    Ok(())
}

/// Appends the steps that make image volumes. Before the root: both are stacked at the same place.
pub(super) fn images(
    plan: &mut PlanBuf,
    inputs: &ContainerInputs,
    idmap: bool,
    made: &mut Made,
    context: &CStr,
) -> Result<(), CompileError> {
    for (destination, image) in &inputs.images {
        let stack = Stack {
            lowers: &image.lowers,
            writable: false,
            sub_path: &image.sub_path,
            context,
        };
        let slot = made.slot_at(destination);
        stack.push(plan, slot, &inputs.root, idmap)?;
    }
    Ok(())
}

/// Layers that are stacked before they are attached.
pub(super) struct Stack<'a> {
    pub lowers: &'a [String],
    /// Changes go to the container's upper directory.
    pub writable: bool,
    pub sub_path: &'a str,
    /// SELinux context of all of it, or empty.
    pub context: &'a CStr,
}

impl Stack<'_> {
    pub fn push(
        &self,
        plan: &mut PlanBuf,
        slot: Slot,
        root: &RootLayers,
        idmap: bool,
    ) -> Result<(), CompileError> {
        if self.lowers.is_empty() {
            return Err(CompileError::Missing("layer"));
        }
        let lowers = texts("layer", self.lowers)?;
        let base = path("layer directory", Path::new(&root.base))?;
        let upper = path("upper directory", Path::new(&root.upper))?;
        let work = path("work directory", Path::new(&root.work))?;
        plan.push(&Step::MakeLayers {
            slot,
            layers: Layers {
                base: &base,
                lowers: borrow(&lowers),
                writable: self.writable.then_some((&upper, &work)),
                context: self.context,
            },
            idmap,
            sub_path: &text("sub path", self.sub_path)?,
        });
        Ok(())
    }
}

/// A device node, owning its path.
pub(super) struct Node {
    pub path: CString,
    mode: u32,
    major: u32,
    minor: u32,
    uid: u32,
    gid: u32,
}

impl Node {
    /// The node at a path.
    pub fn device<'a>(&self, path: &'a CStr) -> Device<'a> {
        Device {
            path,
            mode: self.mode,
            major: self.major,
            minor: self.minor,
            uid: self.uid,
            gid: self.gid,
        }
    }

    /// The node in a /dev that is attached later. Elsewhere a user namespace has no nodes.
    pub fn below_dev(&self) -> Result<Device<'_>, CompileError> {
        let path = self.path.to_bytes_with_nul().strip_prefix(b"/dev");
        let path = path.and_then(|path| CStr::from_bytes_with_nul(path).ok());
        let path = path.filter(|path| path.to_bytes().first() == Some(&b'/'));
        path.map(|path| self.device(path))
            .ok_or_else(|| CompileError::Unsupported {
                what: "device outside of /dev in a user namespace",
                value: self.path.to_string_lossy().into_owned(),
            })
    }

    fn of(device: &LinuxDevice) -> Result<Self, CompileError> {
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => sys::S_IFCHR,
            LinuxDeviceType::B => sys::S_IFBLK,
            LinuxDeviceType::P => sys::S_IFIFO,
            LinuxDeviceType::A => return Err(CompileError::Missing("type of a device")),
        };
        let number = |what, value: i64| u32::try_from(value).map_err(|_| CompileError::Range { what, value });
        Ok(Self {
            path: path("device path", device.path())?,
            mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
            major: number("device major number", device.major())?,
            minor: number("device minor number", device.minor())?,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        })
    }
}

/// The nodes of /dev: those that every container has, and what the spec asks for, which wins.
pub(super) fn nodes(spec: &Spec) -> Result<Vec<Node>, CompileError> {
    let listed = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    let asked: Vec<&LinuxDevice> = listed.into_iter().flatten().collect();
    let usual = NODES.iter().filter(|(path, ..)| {
        !asked
            .iter()
            .any(|device| device.path().as_os_str().as_encoded_bytes() == path.to_bytes())
    });
    let usual = usual.map(|&(path, major, minor)| {
        Ok(Node {
            path: path.to_owned(),
            mode: sys::S_IFCHR | 0o666,
            major,
            minor,
            uid: 0,
            gid: 0,
        })
    });
    usual.chain(asked.iter().map(|device| Node::of(device))).collect()
}

fn protect(plan: &mut PlanBuf, spec: &Spec, context: &CStr) -> Result<(), CompileError> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let paths = |what, list: &Option<Vec<String>>| -> Result<Vec<CString>, CompileError> {
        list.iter()
            .flatten()
            .map(|entry| path(what, Path::new(entry)))
            .collect()
    };
    for hidden in paths("masked path", linux.masked_paths())? {
        plan.push(&Step::Mask {
            path: &hidden,
            context,
        });
    }
    for fixed in paths("read-only path", linux.readonly_paths())? {
        plan.push(&Step::ReadOnly(&fixed));
    }
    Ok(())
}
