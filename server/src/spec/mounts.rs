//! The mounts of a container: podd's own, and those of the request, which win.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount as OciMount};
use runtime_core::compile::{ImageMount, NestMount};
use runtime_core::plan::FileKind;

use super::{Inputs, SpecError};
use crate::model::{IdRange, Mount, MountSource, Propagation, ReadOnly, Share};

/// Where podinit mounts the pod's /dev/shm in the nest.
const NEST_SHM: &str = "/shm";

/// File systems that are made for each container.
const KERNEL: [(&str, &str, &[&str]); 4] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
];

/// Where the container sees cgroups.
const CGROUP: &str = "/sys/fs/cgroup";

/// Files that the pod brings, unless the request does: a kubelet mounts its own /etc/hosts.
const FILES: [(&str, &str); 3] = [
    ("/etc/hosts", "hosts"),
    ("/etc/hostname", "hostname"),
    ("/etc/resolv.conf", "resolv.conf"),
];

/// All mounts in the order in which they are made, and which of them come from the nest.
///
/// File systems of the kernel come first; binds follow from the root down, in request order where two are as deep,
/// so that none hides another (the order of containerd). A mount of the request replaces podd's own at the same
/// place and below it.
pub(super) fn mounts(
    inputs: &Inputs<'_>,
) -> Result<(Vec<OciMount>, BTreeMap<PathBuf, NestMount>), SpecError> {
    let security = &inputs.container.security;
    let of_devices = inputs.cdi.mounts.iter().map(|m| m.destination.as_str());
    let requested: BTreeSet<&str> = inputs
        .container
        .mounts
        .iter()
        .map(|m| m.container_path.as_str())
        .chain(of_devices)
        .collect();
    let below = |path: &str| {
        let above = path
            .match_indices('/')
            .skip(1)
            .map(|(slash, _)| path.get(..slash).unwrap_or_default());
        above.chain([path]).any(|prefix| requested.contains(prefix))
    };

    let mut mounts: Vec<OciMount> = KERNEL
        .iter()
        .map(|(path, kind, options)| oci(path, kind, kind, options.iter().copied()))
        .chain(system(inputs))
        .filter(|mount| !mount.destination().to_str().is_some_and(below))
        .collect();

    if let Some(queues) = mounts
        .iter_mut()
        .find(|mount| mount.typ().as_deref() == Some("mqueue"))
    {
        label_queues(queues, inputs);
    }
    let mut nest = BTreeMap::new();
    let mut binds = Vec::new();
    if !below("/dev/shm") {
        binds.push(shm(inputs, &mut nest));
    }
    let file_access = if security.readonly_rootfs { "ro" } else { "rw" };
    for (path, name) in FILES.iter().filter(|(path, _)| !requested.contains(path)) {
        let source = NestMount {
            path: format!("{}/{name}", inputs.files.nest_dir),
            kind: FileKind::File,
        };
        nest.insert(PathBuf::from(path), source);
        let host = format!("{}/{name}", inputs.files.host_dir);
        binds.push(oci(path, "bind", &host, ["rbind", "rprivate", file_access]));
    }
    for mount in own_mounts(inputs) {
        binds.push(of_request(mount)?);
    }
    for mount in &inputs.cdi.mounts {
        binds.push(of_cdi(mount, inputs)?);
    }
    binds.sort_by_key(|mount| mount.destination().components().count());
    mounts.append(&mut binds);
    Ok((mounts, nest))
}

/// The file systems that a privileged container may write.
fn system(inputs: &Inputs<'_>) -> [OciMount; 2] {
    let privileged = inputs.container.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let sysfs = ["nosuid", "noexec", "nodev", access];
    let cgroup = ["nosuid", "noexec", "nodev", "relatime", access];
    let cgroup = if privileged {
        // It is in the node's cgroup namespace. Another mount there would set the options of the hierarchy, as
        // nsdelegate, to its own for the whole node (cgroup_get_tree of Linux).
        let root = inputs.host.cgroup_root.to_string_lossy();
        oci(
            CGROUP,
            "bind",
            &root,
            ["bind", "rprivate"].into_iter().chain(cgroup),
        )
    } else {
        oci(CGROUP, "cgroup2", "cgroup2", cgroup)
    };
    [oci("/sys", "sysfs", "sysfs", sysfs), cgroup]
}

/// The message queues are one file system for all containers of a pod, whatever their levels are. That of the node has a
/// label of its own.
fn label_queues(mount: &mut OciMount, inputs: &Inputs<'_>) {
    let own = inputs.pod.namespaces.ipc == Share::Pod;
    let Some(labels) = inputs.labels.filter(|_| own) else {
        return;
    };
    let mut options = mount.options().clone().unwrap_or_default();
    options.push(format!("context={}", labels.shared));
    mount.set_options(Some(options));
}

/// The pod's shared memory, or the node's for a pod in the node's ipc namespace.
fn shm(inputs: &Inputs<'_>, nest: &mut BTreeMap<PathBuf, NestMount>) -> OciMount {
    let source = match inputs.pod.namespaces.ipc {
        Share::Node => "/dev/shm",
        Share::Pod => {
            let source = NestMount {
                path: NEST_SHM.to_owned(),
                kind: FileKind::Directory,
            };
            nest.insert(PathBuf::from("/dev/shm"), source);
            NEST_SHM
        }
    };
    oci(
        "/dev/shm",
        "bind",
        source,
        ["rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"],
    )
}

/// The mounts of the request, without those that CDI devices have others for.
fn own_mounts<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = &'a Mount> {
    let taken = &inputs.cdi.mounts;
    let mounts = inputs.container.mounts.iter();
    mounts.filter(|mount| {
        !taken
            .iter()
            .any(|other| other.destination == mount.container_path)
    })
}

/// A mount of a CDI device. In a pod with a user namespace files keep their owners, as in the reference
/// implementation.
fn of_cdi(mount: &crate::cdi::Mount, inputs: &Inputs<'_>) -> Result<OciMount, SpecError> {
    let options = mount.options.iter().map(String::as_str);
    let mut made = oci(&mount.destination, &mount.kind, &mount.source, options);
    if let Some(ids) = inputs.pod.namespaces.user.filter(|_| mount.kind == "bind") {
        made.set_uid_mappings(Some(mapping(ids.users)?))
            .set_gid_mappings(Some(mapping(ids.groups)?));
    }
    Ok(made)
}

/// A mount of the request.
fn of_request(mount: &Mount) -> Result<OciMount, SpecError> {
    let restrictions = [
        (mount.options.noexec, "noexec"),
        (mount.options.nodev, "nodev"),
        (mount.options.nosuid, "nosuid"),
    ];
    let restrictions = restrictions
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, option)| option);
    let source = match &mount.source {
        MountSource::Host(source) => source,
        MountSource::Image { .. } => {
            let options = IMAGE.into_iter().chain(restrictions);
            return Ok(oci(&mount.container_path, "overlay", "overlay", options));
        }
    };
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match mount.readonly {
        ReadOnly::No => "rw",
        ReadOnly::Top => "ro",
        ReadOnly::Recursive => "rro",
    };
    let options = ["rbind", propagation, access].into_iter().chain(restrictions);
    let mut bind = oci(&mount.container_path, "bind", source, options);
    if let Some(ids) = mount.ids {
        bind.set_uid_mappings(Some(mapping(ids.users)?))
            .set_gid_mappings(Some(mapping(ids.groups)?));
    }
    Ok(bind)
}

/// How an image volume is mounted: programs in it may be run, as the tests of the CRI want.
const IMAGE: [&str; 3] = ["ro", "nosuid", "nodev"];

/// What the image volumes are made of.
pub(super) fn images(inputs: &Inputs<'_>) -> Result<BTreeMap<PathBuf, ImageMount>, SpecError> {
    let mut images = BTreeMap::new();
    for mount in own_mounts(inputs) {
        let MountSource::Image { image, sub_path } = &mount.source else {
            continue;
        };
        let lowers = inputs.images.get(&mount.container_path);
        let source = ImageMount {
            lowers: lowers
                .ok_or_else(|| SpecError::ImageVolume(image.image.clone()))?
                .clone(),
            sub_path: sub_path.clone(),
        };
        images.insert(PathBuf::from(&mount.container_path), source);
    }
    Ok(images)
}

/// A range of ids in the words of OCI.
pub(super) fn mapping(range: IdRange) -> Result<Vec<LinuxIdMapping>, SpecError> {
    let mapping = LinuxIdMappingBuilder::default()
        .container_id(0u32)
        .host_id(range.host)
        .size(range.length)
        .build()
        .map_err(|error| SpecError::Oci(error.to_string()))?;
    Ok(vec![mapping])
}

fn oci<'a>(
    destination: &str,
    kind: &str,
    source: &str,
    options: impl IntoIterator<Item = &'a str>,
) -> OciMount {
    let mut mount = OciMount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.into_iter().map(str::to_owned).collect()));
    mount
}
