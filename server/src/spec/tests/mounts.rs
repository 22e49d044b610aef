//! The mounts of a container.

use super::*;

#[test]
fn a_plain_container_has_the_usual_mounts() {
    let built = Case::new().build();
    assert_eq!(
        mounts_of(&built.spec),
        [
            "/proc proc proc nosuid,noexec,nodev",
            "/dev tmpfs tmpfs nosuid,strictatime,mode=755,size=65536k",
            "/dev/pts devpts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
            "/dev/mqueue mqueue mqueue nosuid,noexec,nodev",
            "/sys sysfs sysfs nosuid,noexec,nodev,ro",
            "/sys/fs/cgroup cgroup2 cgroup2 nosuid,noexec,nodev,relatime,ro",
            "/dev/shm bind /shm rbind,rprivate,nosuid,nodev,noexec,rw",
            "/etc/hosts bind /var/lib/podd/pods/p/hosts rbind,rprivate,rw",
            "/etc/hostname bind /var/lib/podd/pods/p/hostname rbind,rprivate,rw",
            "/etc/resolv.conf bind /var/lib/podd/pods/p/resolv.conf rbind,rprivate,rw",
        ]
    );
    let nest: Vec<_> = built
        .nest
        .iter()
        .map(|(to, from)| format!("{} {}", to.display(), from.path))
        .collect();
    assert_eq!(
        nest,
        [
            "/dev/shm /shm",
            "/etc/hostname /store/pods/p/hostname",
            "/etc/hosts /store/pods/p/hosts",
            "/etc/resolv.conf /store/pods/p/resolv.conf",
        ]
    );
    assert_eq!(bounding(&built.spec), CapSet::DEFAULT);
}

#[test]
fn mounts_of_the_request_replace_podds_own() {
    let mut case = Case::new();
    for path in [
        "/etc/hosts",
        "/dev/shm",
        "/sys/fs/cgroup",
        "/etc/resolv.conf",
        "/etc/hostname",
    ] {
        case.mount(path);
    }
    let built = case.build();
    assert!(built.nest.is_empty());
    assert_eq!(
        destinations(&built.spec),
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/etc/hosts",
            "/dev/shm",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/sys/fs/cgroup"
        ]
    );

    let mut whole_dev = Case::new();
    whole_dev.mount("/dev");
    whole_dev.mount("/sys");
    let left = destinations(&whole_dev.build().spec);
    assert_eq!(
        left,
        [
            "/proc",
            "/dev",
            "/sys",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf"
        ]
    );

    // A volume over /etc holds the pod's files, which are mounted into it afterwards.
    let mut etc = Case::new();
    etc.mount("/etc");
    let order = destinations(&etc.build().spec);
    let at = |path: &str| order.iter().position(|known| known == path).unwrap();
    assert!(at("/etc") < at("/etc/hosts"));
}

#[test]
fn binds_are_made_from_the_root_down_in_request_order() {
    let mut case = Case::new();
    for path in ["/a/b/c", "/z", "/a/b", "/a"] {
        case.mount(path);
    }
    let binds = destinations(&case.build().spec).split_off(6);
    assert_eq!(
        binds,
        [
            "/z",
            "/a",
            "/dev/shm",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/a/b",
            "/a/b/c"
        ]
    );
}

#[test]
fn mount_fields_become_options() {
    let mut case = Case::new();
    let mount = case.mount("/rro");
    (mount.readonly, mount.recursive_read_only) = (true, true);
    let mount = case.mount("/slave");
    (mount.readonly, mount.propagation) = (true, v1::MountPropagation::PropagationHostToContainer.into());
    let mount = case.mount("/shared");
    mount.propagation = v1::MountPropagation::PropagationBidirectional.into();
    mount.mount_options = vec!["nosuid".into(), "noexec".into(), "nodev".into()];
    let mounts = mounts_of(&case.build().spec);
    for line in [
        "/rro bind /host/rro rbind,rprivate,rro",
        "/slave bind /host/slave rbind,rslave,ro",
        "/shared bind /host/shared rbind,rshared,rw,noexec,nodev,nosuid",
    ] {
        assert!(mounts.iter().any(|mount| mount == line), "{line}");
    }
}

#[test]
fn image_volumes_are_read_only_layers() {
    let mut case = Case::new();
    let mount = case.mount("/image");
    mount.host_path.clear();
    mount.readonly = true;
    mount.image_sub_path = "etc/./ssl".into();
    mount.mount_options = vec!["noexec".into()];
    mount.image = Some(v1::ImageSpec {
        image: "sha256:1".into(),
        ..Default::default()
    });
    let built = case.build();
    let printed = mounts_of(&built.spec);
    assert!(
        printed.contains(&"/image overlay overlay ro,nosuid,nodev,noexec".to_owned()),
        "{printed:?}"
    );
    let image = &built.images[Path::new("/image")];
    assert_eq!(
        (image.lowers.join(":").as_str(), image.sub_path.as_str()),
        ("3:1", "etc/ssl")
    );
    case.mount("/other").host_path.clear();
    case.container.mounts[1].readonly = true;
    case.container.mounts[1].image = Some(v1::ImageSpec {
        image: "gone".into(),
        ..Default::default()
    });
    assert_eq!(
        case.try_build().unwrap_err(),
        SpecError::ImageVolume("gone".into())
    );
}
