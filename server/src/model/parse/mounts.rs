//! Mounts and devices.

use podd_proto::v1;

use super::{At, given, security, sorted};
use crate::model::{
    Device, IdMaps, ImageSpec, Mount, MountOptions, MountSource, Propagation, ReadOnly, Refused,
};

pub(super) fn mounts(at: &At<'_>, wire: &[v1::Mount]) -> Result<Vec<Mount>, Refused> {
    wire.iter()
        .enumerate()
        .map(|(n, wire)| mount(&at.index(n), wire))
        .collect()
}

fn mount(at: &At<'_>, wire: &v1::Mount) -> Result<Mount, Refused> {
    let path_at = at.field("container_path");
    let container_path = path_at.absolute(&wire.container_path)?;
    if container_path == "/" {
        return Err(path_at.invalid("the root itself cannot be mounted over"));
    }
    let ids_at = (at.field("uidMappings"), at.field("gidMappings"));
    let ids = match (wire.uid_mappings.as_slice(), wire.gid_mappings.as_slice()) {
        ([], []) => None,
        (users, groups) => Some(IdMaps {
            users: security::id_range(&ids_at.0, users)?,
            groups: security::id_range(&ids_at.1, groups)?,
        }),
    };
    let propagation = match at.field("propagation").choice(wire.propagation)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    let source = source(at, wire)?;
    let image = matches!(source, MountSource::Image { .. });
    let recursive_at = at.field("recursive_read_only");
    if image && propagation != Propagation::Private {
        return Err(at.field("propagation").invalid("an image has no mounts to share"));
    }
    // The two refusals that the CRI demands.
    if wire.recursive_read_only && !wire.readonly {
        return Err(recursive_at.invalid("needs readonly"));
    }
    if wire.recursive_read_only && propagation != Propagation::Private {
        return Err(recursive_at.invalid("needs PROPAGATION_PRIVATE"));
    }
    // Kubelets set it for every image volume; who leaves it out wants to write.
    if image && !wire.readonly {
        return Err(at
            .field("readonly")
            .invalid("is false, and an image is never writable"));
    }
    let readonly = match (wire.recursive_read_only, wire.readonly) {
        (true, _) => ReadOnly::Recursive,
        (false, true) => ReadOnly::Top,
        (false, false) => ReadOnly::No,
    };
    let options = options(&at.field("mount_options"), &wire.mount_options)?;
    let selinux_relabel = wire.selinux_relabel;
    Ok(Mount {
        container_path,
        source,
        readonly,
        propagation,
        options,
        ids,
        selinux_relabel,
    })
}

fn source(at: &At<'_>, wire: &v1::Mount) -> Result<MountSource, Refused> {
    let named = wire.image.as_ref().filter(|image| !image.image.is_empty());
    match (named, given(&wire.host_path)) {
        (Some(_), Some(_)) => Err(at.field("host_path").invalid("is given beside an image")),
        (None, None) => Err(at.field("host_path").invalid("is missing, and there is no image")),
        (None, Some(_)) if !wire.image_sub_path.is_empty() => {
            Err(at.field("image_sub_path").invalid("is given without an image"))
        }
        // A host path may climb: it is the kubelet's word, resolved on the host as it stands.
        (None, Some(host)) if host.starts_with('/') => {
            Ok(MountSource::Host(at.field("host_path").no_nul(host)?))
        }
        (None, Some(host)) => Err(at
            .field("host_path")
            .invalid(format!("{host:?} is not an absolute path"))),
        // Below the image's root, by the words alone: links are for the kernel, which keeps to the root.
        (Some(image), None) => Ok(MountSource::Image {
            image: self::image(&at.field("image"), image)?,
            sub_path: at.field("image_sub_path").relative(&wire.image_sub_path)?,
        }),
    }
}

fn options(at: &At<'_>, wire: &[String]) -> Result<MountOptions, Refused> {
    let mut options = MountOptions::default();
    for (n, option) in wire.iter().enumerate() {
        match option.as_str() {
            "noexec" => options.noexec = true,
            "nodev" => options.nodev = true,
            "nosuid" => options.nosuid = true,
            other => {
                return Err(at
                    .index(n)
                    .invalid(format!("{other:?} is not noexec, nodev or nosuid")));
            }
        }
    }
    Ok(options)
}

pub(super) fn devices(at: &At<'_>, wire: &[v1::Device]) -> Result<Vec<Device>, Refused> {
    wire.iter()
        .enumerate()
        .map(|(n, wire)| device(&at.index(n), wire))
        .collect()
}

fn device(at: &At<'_>, wire: &v1::Device) -> Result<Device, Refused> {
    let host_path = at.field("host_path").absolute(&wire.host_path)?;
    let container_path = match given(&wire.container_path) {
        Some(path) => at.field("container_path").absolute(path)?,
        None => host_path.clone(),
    };
    let permissions: String = "rwm".chars().filter(|c| wire.permissions.contains(*c)).collect();
    if permissions.is_empty() || wire.permissions.chars().any(|c| !permissions.contains(c)) {
        let given = &wire.permissions;
        return Err(at
            .field("permissions")
            .invalid(format!("{given:?} is not some of r, w and m")));
    }
    Ok(Device {
        container_path,
        host_path,
        permissions,
    })
}

pub(super) fn image(at: &At<'_>, wire: &v1::ImageSpec) -> Result<ImageSpec, Refused> {
    if wire.image.is_empty() {
        return Err(at.field("image").invalid("is empty"));
    }
    Ok(ImageSpec {
        image: wire.image.clone(),
        user_specified_image: wire.user_specified_image.clone(),
        runtime_handler: wire.runtime_handler.clone(),
        image_ref: wire.image_ref.clone(),
        annotations: sorted(&wire.annotations),
    })
}
