//! Requests as kubelets send them, compared with what is made of them.

mod cdi;
mod mounts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxNamespaceType, Spec};
use podd_proto::v1;
use runtime_core::compile::{self, CapSet, ContainerInputs, ProcessInputs, RootLayers, Who};
use runtime_core::plan::{FileKind, Plan, Step};
use runtime_core::seccomp::KernelVersion;

use super::*;
use crate::model::Resources;
use crate::selinux::Labels;

/// A request under construction.
struct Case {
    pod: v1::PodSandboxConfig,
    container: v1::ContainerConfig,
    host: HostFacts,
    image: ImageDefaults<'static>,
    cdi: Edits,
    labels: Option<Labels>,
}

impl Case {
    fn new() -> Self {
        let metadata = v1::PodSandboxMetadata {
            name: "web-0".into(),
            uid: "u1".into(),
            namespace: "default".into(),
            attempt: 0,
        };
        Self {
            pod: v1::PodSandboxConfig {
                metadata: Some(metadata),
                hostname: "web-0".into(),
                log_directory: "/var/log/pods/default_web-0_u1".into(),
                ..Default::default()
            },
            container: v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata {
                    name: "main".into(),
                    attempt: 0,
                }),
                image: Some(v1::ImageSpec {
                    image: "busybox".into(),
                    ..Default::default()
                }),
                command: vec!["/bin/sh".into()],
                linux: Some(v1::LinuxContainerConfig {
                    security_context: Some(v1::LinuxContainerSecurityContext::default()),
                    resources: Some(v1::LinuxContainerResources::default()),
                }),
                ..Default::default()
            },
            host: HostFacts {
                hostname: "node".into(),
                capabilities: CapSet::ALL,
                kernel: KernelVersion::new(6, 1),
                apparmor: None,
                devices: Vec::new(),
                nofile: (1024, 524_288),
                least_oom_score_adj: -1000,
                cgroup_root: "/sys/fs/cgroup/unified".into(),
            },
            image: ImageDefaults::default(),
            cdi: Edits::default(),
            labels: None,
        }
    }

    fn security(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        let linux = self.container.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn pod_security(&mut self) -> &mut v1::LinuxSandboxSecurityContext {
        let linux = self.pod.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn options(&mut self, network: v1::NamespaceMode, pid: v1::NamespaceMode, ipc: v1::NamespaceMode) {
        let options = v1::NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            ..Default::default()
        };
        self.pod_security().namespace_options = Some(options.clone());
        self.security().namespace_options = Some(options);
    }

    fn mount(&mut self, container_path: &str) -> &mut v1::Mount {
        self.container.mounts.push(v1::Mount {
            container_path: container_path.into(),
            host_path: format!("/host{container_path}"),
            ..Default::default()
        });
        self.container.mounts.last_mut().unwrap()
    }

    fn try_build(&self) -> Result<Built, SpecError> {
        let pod = PodConfig::try_from(&self.pod).unwrap();
        let container = ContainerConfig::try_from(&self.container).unwrap();
        container.check_in(&pod).unwrap();
        build(&Inputs {
            pod: &pod,
            container: &container,
            image: &self.image,
            host: &self.host,
            files: PodFiles {
                host_dir: "/var/lib/podd/pods/p",
                nest_dir: "/store/pods/p",
            },
            devices: &[],
            cdi: &self.cdi,
            labels: self.labels.as_ref(),
            seccomp: None,
            images: &[("/image".to_owned(), vec!["3".to_owned(), "1".to_owned()])].into(),
            cgroup: "kubepods/pod1/c",
        })
    }

    fn build(&self) -> Built {
        self.try_build().unwrap()
    }
}

/// `destination type source options` of each mount.
fn mounts_of(spec: &Spec) -> Vec<String> {
    let print = |mount: &oci_spec::runtime::Mount| {
        let options = mount.options().as_deref().unwrap_or_default().join(",");
        let source = mount.source().as_deref().unwrap_or_else(|| Path::new(""));
        let kind = mount.typ().as_deref().unwrap_or_default();
        format!(
            "{} {kind} {} {options}",
            mount.destination().display(),
            source.display()
        )
    };
    spec.mounts().iter().flatten().map(print).collect()
}

fn destinations(spec: &Spec) -> Vec<String> {
    mounts_of(spec)
        .iter()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// `type` of a namespace that is made, `type@` of one that is joined.
fn namespaces_of(spec: &Spec) -> BTreeSet<String> {
    let list = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().clone())
        .unwrap_or_default();
    list.iter()
        .map(|ns| format!("{}{}", ns.typ(), if ns.path().is_some() { "@" } else { "" }))
        .collect()
}

fn env_of(built: &Built) -> Vec<String> {
    built
        .env
        .iter()
        .map(|var| String::from_utf8_lossy(var).into_owned())
        .collect()
}

fn args_of(spec: &Spec) -> Vec<String> {
    spec.process()
        .as_ref()
        .and_then(|process| process.args().clone())
        .unwrap_or_default()
}

fn bounding(spec: &Spec) -> CapSet {
    let process = spec.process().as_ref().unwrap();
    CapSet::from_oci(
        process
            .capabilities()
            .as_ref()
            .unwrap()
            .bounding()
            .as_ref()
            .unwrap(),
    )
}

#[test]
fn kubernetes_rules_choose_the_command() {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let leak = |list: &[&str]| -> &'static [String] { Box::leak(texts(list).into_boxed_slice()) };
    for (entrypoint, cmd, command, args, expected) in [
        (&["/e"][..], &["c"][..], &[][..], &[][..], &["/e", "c"][..]),
        (&["/e"], &["c"], &[], &["a"], &["/e", "a"]),
        (&["/e"], &["c"], &["/x"], &[], &["/x"]),
        (&["/e"], &["c"], &["/x"], &["a"], &["/x", "a"]),
        (&[], &["c", "d"], &[], &[], &["c", "d"]),
        (&[], &["c"], &[], &["a"], &["a"]),
    ] {
        let mut case = Case::new();
        case.image = ImageDefaults {
            entrypoint: leak(entrypoint),
            cmd: leak(cmd),
            ..Default::default()
        };
        (case.container.command, case.container.args) = (texts(command), texts(args));
        assert_eq!(args_of(&case.build().spec), expected);
    }
    let mut nothing = Case::new();
    nothing.container.command.clear();
    assert_eq!(nothing.try_build().unwrap_err(), SpecError::NoCommand);
}

#[test]
fn volumes_of_the_image_are_directories_below_the_root() {
    let volumes = |list: &[&str]| -> Option<&'static BTreeSet<String>> {
        let list: BTreeSet<String> = list.iter().map(|text| (*text).to_owned()).collect();
        Some(Box::leak(Box::new(list)))
    };
    let mut case = Case::new();
    case.image.volumes = volumes(&["/data", "var//lib/./x/", "/../../etc/../up", "/", "/..", ""]);
    let directories: BTreeSet<_> = case.build().directories.into_iter().collect();
    let expected = ["/data", "/var/lib/x", "/up"].map(PathBuf::from);
    assert_eq!(directories, BTreeSet::from(expected));
    case.image.volumes = volumes(&["/a\0b"]);
    assert_eq!(case.try_build().unwrap_err(), SpecError::ImageNul("volume"));
    let many: Vec<String> = (0..257).map(|n| format!("/{n}")).collect();
    case.image.volumes = volumes(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(case.try_build().unwrap_err(), SpecError::ImageVolumes(256));
}

#[test]
fn the_request_wins_over_the_image_and_the_image_over_podd() {
    let mut case = Case::new();
    case.image.env = Box::leak(Box::new([
        "PATH=/bin".to_owned(),
        "A=image".into(),
        "junk".into(),
        "=x".into(),
    ]));
    case.container.tty = true;
    let var = |key: &str, value: &[u8]| v1::KeyValue {
        key: key.into(),
        value: value.to_vec(),
    };
    case.container.envs = vec![var("A", b"request"), var("B", b"\xff\n"), var("B", b"last")];
    let built = case.build();
    assert_eq!(
        env_of(&built),
        ["PATH=/bin", "TERM=xterm", "HOSTNAME=web-0", "A=request", "B=last"]
    );

    case.container.envs = vec![var("B", b"\xff")];
    assert_eq!(case.build().env.last().unwrap(), b"B=\xff");
    assert_eq!(
        env_of(&Case::new().build())[0],
        format!("PATH={}", compile::DEFAULT_PATH)
    );
}

#[test]
fn identities_come_from_the_request_or_the_image() {
    let name = |text: &str| Who::Name(text.to_owned());
    for (image, user, group) in [
        ("", Who::Id(0), Who::Unset),
        ("1000", Who::Id(1000), Who::Unset),
        ("nobody", name("nobody"), Who::Unset),
        ("1000:staff", Who::Id(1000), name("staff")),
        ("www:33", name("www"), Who::Id(33)),
    ] {
        let mut case = Case::new();
        case.image.user = image;
        let identity = case.build().identity;
        assert_eq!((identity.user, identity.group), (user, group), "{image}");
    }
    for bad in ["4294967296", "2147483648", "a:b:c", "1000:4294967295", "x\n"] {
        let mut case = Case::new();
        case.image.user = bad;
        assert_eq!(case.try_build().unwrap_err(), SpecError::ImageUser(bad.into()));
    }
    let mut case = Case::new();
    case.image.user = "7:8";
    case.security().run_as_user = Some(v1::Int64Value { value: 5 });
    assert_eq!(case.build().identity.group, Who::Unset);
    case.security().run_as_group = Some(v1::Int64Value { value: 6 });
    assert_eq!(case.build().identity.group, Who::Id(6));
}

#[test]
fn capabilities_follow_add_drop_and_all() {
    let caps = |add: &[&str], drop: &[&str]| {
        let mut case = Case::new();
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        case.security().capabilities = Some(v1::Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            ..Default::default()
        });
        bounding(&case.build().spec)
    };
    let set = |text: &str| text.parse::<CapSet>().unwrap();
    assert_eq!(caps(&["NET_ADMIN"], &[]), CapSet::DEFAULT.union(set("NET_ADMIN")));
    assert_eq!(caps(&[], &["ALL"]), CapSet::EMPTY);
    assert_eq!(caps(&["NET_BIND_SERVICE"], &["all"]), set("NET_BIND_SERVICE"));
    assert_eq!(
        caps(&["ALL"], &["SYS_ADMIN"]),
        CapSet::ALL.difference(set("SYS_ADMIN"))
    );
    assert_eq!(
        caps(&["CAP_NET_RAW"], &["cap_net_raw"]),
        CapSet::DEFAULT.difference(set("NET_RAW"))
    );

    let mut case = Case::new();
    case.host.capabilities = CapSet::DEFAULT;
    case.security().capabilities = Some(v1::Capability {
        add_capabilities: vec!["SYS_TIME".into()],
        ..Default::default()
    });
    assert_eq!(
        case.try_build().unwrap_err(),
        SpecError::Capabilities("SYS_TIME".into())
    );
}

#[test]
fn only_ambient_capabilities_are_inheritable() {
    let mut case = Case::new();
    case.security().capabilities = Some(v1::Capability {
        add_ambient_capabilities: vec!["NET_RAW".into()],
        ..Default::default()
    });
    let built = case.build();
    let sets = built
        .spec
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .clone()
        .unwrap();
    let net_raw: CapSet = "NET_RAW".parse().unwrap();
    assert_eq!(CapSet::from_oci(sets.inheritable().as_ref().unwrap()), net_raw);
    assert_eq!(CapSet::from_oci(sets.ambient().as_ref().unwrap()), net_raw);
    let plain = Case::new()
        .build()
        .spec
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .clone()
        .unwrap();
    assert!(plain.inheritable().as_ref().unwrap().is_empty());
}

#[test]
fn privileged_lifts_everything() {
    let mut case = Case::new();
    let mut device = LinuxDevice::default();
    device.set_path("/dev/fuse".into());
    case.host.devices = vec![device];
    case.host.apparmor = Some("podd".into());
    case.pod_security().privileged = true;
    let security = case.security();
    security.privileged = true;
    security.masked_paths = vec!["/proc/kcore".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    security.seccomp = Some(v1::SecurityProfile::default());
    let spec = case.build().spec;
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(bounding(&spec), CapSet::ALL);
    assert!(linux.seccomp().is_none());
    assert_eq!(linux.masked_paths().as_deref(), Some(&[][..]));
    assert_eq!(linux.readonly_paths().as_deref(), Some(&[][..]));
    assert_eq!(linux.devices().as_ref().unwrap().len(), 1);
    assert!(spec.process().as_ref().unwrap().apparmor_profile().is_none());
    assert!(!namespaces_of(&spec).contains("cgroup"));
    let mounts = mounts_of(&spec);
    assert!(
        mounts
            .iter()
            .any(|line| line == "/sys sysfs sysfs nosuid,noexec,nodev,rw")
    );
    let cgroups = "/sys/fs/cgroup bind /sys/fs/cgroup/unified bind,rprivate,nosuid,noexec,nodev,relatime,rw";
    assert!(mounts.iter().any(|line| line == cgroups));
}

#[test]
fn namespaces_follow_the_pod() {
    use v1::NamespaceMode::{Container, Node, Pod};
    let of = |network, pid, ipc| {
        let mut case = Case::new();
        case.options(network, pid, ipc);
        namespaces_of(&case.build().spec)
            .into_iter()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(of(Pod, Container, Pod), "cgroup ipc@ mnt net@ pid uts@");
    assert_eq!(of(Pod, Pod, Pod), "cgroup ipc@ mnt net@ pid@ uts@");
    assert_eq!(of(Node, Node, Node), "cgroup mnt");
    let mut host_ipc = Case::new();
    host_ipc.options(Pod, Container, Node);
    let built = host_ipc.build();
    assert!(
        mounts_of(&built.spec)
            .iter()
            .any(|line| line.starts_with("/dev/shm bind /dev/shm "))
    );
    assert!(!built.nest.contains_key(Path::new("/dev/shm")));
}

#[test]
fn labels_are_those_of_the_node() {
    let mut case = Case::new();
    case.security().selinux_options = Some(v1::SeLinuxOption {
        level: "s0:c1,c2".into(),
        ..Default::default()
    });
    let plain = case.build().spec;
    assert_eq!(plain.process().as_ref().unwrap().selinux_label(), &None);
    assert_eq!(plain.linux().as_ref().unwrap().mount_label(), &None);
    assert!(!mounts_of(&plain).concat().contains("context="));

    case.labels = Some(Labels {
        process: Some("u:r:p:s0:c1,c2".into()),
        mount: "u:r:f:s0:c1,c2".into(),
        shared: "u:r:f:s0".into(),
        apart: false,
    });
    let spec = case.build().spec;
    let label = spec.process().as_ref().unwrap().selinux_label().as_deref();
    assert_eq!(label, Some("u:r:p:s0:c1,c2"));
    let label = spec.linux().as_ref().unwrap().mount_label().as_deref();
    assert_eq!(label, Some("u:r:f:s0:c1,c2"));
    // One instance of it is mounted by all containers of the pod, which may have levels of their own.
    let queues = "/dev/mqueue mqueue mqueue nosuid,noexec,nodev,context=u:r:f:s0";
    assert!(mounts_of(&spec).iter().any(|line| line == queues));
    case.options(
        v1::NamespaceMode::Pod,
        v1::NamespaceMode::Container,
        v1::NamespaceMode::Node,
    );
    assert!(!mounts_of(&case.build().spec).concat().contains("context="));
}

#[test]
fn a_memory_limit_alone_means_no_swap_at_creation_only() {
    let resources = Resources {
        memory_limit: Some(4096),
        ..Default::default()
    };
    let swap = |change| linux_resources(&resources, change).memory().unwrap().swap();
    assert_eq!(swap(Change::Create), Some(4096));
    assert_eq!(swap(Change::Update), None);
    let nothing = linux_resources(&Resources::default(), Change::Update);
    assert!(nothing.cpu().is_none() && nothing.memory().is_none());
}

#[test]
fn what_is_built_compiles_to_a_plan() {
    let mut case = Case::new();
    case.options(
        v1::NamespaceMode::Pod,
        v1::NamespaceMode::Pod,
        v1::NamespaceMode::Pod,
    );
    case.mount("/data");
    case.security().seccomp = Some(v1::SecurityProfile::default());
    let built = case.build();
    let volumes = compile::volumes(&built.spec, &built.nest).unwrap();
    let sources: Vec<_> = volumes
        .iter()
        .map(|volume| (volume.slot, volume.source))
        .collect();
    assert_eq!(sources, [(12, Path::new("/host/data"))]);
    let inputs = ContainerInputs {
        root: RootLayers {
            base: "/store/layers".into(),
            lowers: vec!["1".into()],
            upper: "/store/u".into(),
            work: "/store/w".into(),
        },
        nest: built.nest.clone(),
        images: built.images.clone(),
        directories: built.directories.clone(),
        volumes: vec![FileKind::Directory],
        shm_context: None,
        hooks: None,
        process: ProcessInputs {
            identity: Some(built.identity.clone()),
            env: Some(built.env.clone()),
            ..Default::default()
        },
    };
    let plan = compile::container(&built.spec, &inputs).unwrap();
    let steps = Plan::decode(&plan).unwrap().steps;
    assert!(
        steps
            .iter()
            .any(|step| matches!(step, Step::Join { slot: 10, .. }))
    );
    assert!(steps.iter().any(|step| matches!(step, Step::Seccomp { .. })));
    assert!(matches!(steps.last(), Some(Step::Exec { .. })));
    let pid = LinuxNamespaceType::Pid;
    assert!(
        steps
            .iter()
            .all(|step| !matches!(step, Step::Clone { namespaces, .. } if namespaces & pid as u64 != 0))
    );
}
