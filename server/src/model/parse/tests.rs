//! Every refusal, by the field that it names; and that what kubelets send is taken.

use std::collections::HashMap;

use podd_proto::v1;

use crate::model::{
    AppArmor, CgroupParent, ContainerConfig, ContainerPid, CpuQuota, PodConfig, PodPid, Propagation,
    ReadOnly, Refused, Resources, Seccomp, Share, SwapLimit, User,
};

fn pod() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web-0".into(),
            uid: "7a1b".into(),
            namespace: "default".into(),
            attempt: 1,
        }),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/default_web-0_7a1b".into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/besteffort/pod7a1b".into(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption::default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: "main".into(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: "busybox".into(),
            ..Default::default()
        }),
        log_path: "main/0.log".into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources::default()),
            security_context: Some(v1::LinuxContainerSecurityContext::default()),
        }),
        ..Default::default()
    }
}

/// A pod with one change.
fn pod_with(change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Result<PodConfig, Refused> {
    let mut config = pod();
    change(&mut config);
    PodConfig::try_from(&config)
}

fn pod_linux(change: impl FnOnce(&mut v1::LinuxPodSandboxConfig)) -> Result<PodConfig, Refused> {
    pod_with(|config| change(config.linux.as_mut().unwrap()))
}

fn pod_context(change: impl FnOnce(&mut v1::LinuxSandboxSecurityContext)) -> Result<PodConfig, Refused> {
    pod_linux(|linux| change(linux.security_context.as_mut().unwrap()))
}

fn container_with(change: impl FnOnce(&mut v1::ContainerConfig)) -> Result<ContainerConfig, Refused> {
    let mut config = container();
    change(&mut config);
    ContainerConfig::try_from(&config)
}

fn context(change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Result<ContainerConfig, Refused> {
    container_with(|config| change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap()))
}

fn resources(change: impl FnOnce(&mut v1::LinuxContainerResources)) -> Result<Resources, Refused> {
    let mut wire = v1::LinuxContainerResources::default();
    change(&mut wire);
    Resources::try_from(&wire)
}

fn mount(change: impl FnOnce(&mut v1::Mount)) -> Result<ContainerConfig, Refused> {
    let mut mount = v1::Mount {
        container_path: "/data".into(),
        host_path: "/srv/data".into(),
        ..Default::default()
    };
    change(&mut mount);
    container_with(|config| config.mounts = vec![mount])
}

/// The field that is refused, `?` behind it when it is only unsupported.
fn field<T: std::fmt::Debug>(result: Result<T, Refused>) -> String {
    match result.unwrap_err() {
        Refused::Invalid(invalid) => invalid.field,
        Refused::Unsupported(unsupported) => format!("{}?", unsupported.field),
    }
}

fn id(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

fn profile(kind: v1::security_profile::ProfileType, localhost_ref: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: localhost_ref.into(),
    })
}

#[test]
fn a_kubelets_pod_and_container_are_taken() {
    let pod = PodConfig::try_from(pod()).unwrap();
    assert_eq!(pod.metadata.attempt, 1);
    assert_eq!(
        pod.cgroup_parent,
        Some(CgroupParent::Path("kubepods/besteffort/pod7a1b".into()))
    );
    let container = ContainerConfig::try_from(container()).unwrap();
    assert_eq!(container.log_path.as_deref(), Some("main/0.log"));
    assert_eq!(container.security.seccomp, Seccomp::Unconfined);
    assert_eq!(container.security.apparmor, AppArmor::RuntimeDefault);
    assert_eq!(container.security.pid, ContainerPid::Pod);
    container.check_in(&pod).unwrap();
}

#[test]
fn pods_and_containers_need_a_name_that_is_one_word() {
    assert_eq!(field(pod_with(|pod| pod.metadata = None)), "config.metadata");
    for (bad, path) in [
        ("", "name"),
        ("a/b", "name"),
        ("a b", "name"),
        ("a\n", "name"),
        (&"x".repeat(254), "name"),
    ] {
        let pod = pod_with(|pod| pod.metadata.as_mut().unwrap().name = bad.into());
        assert_eq!(field(pod), format!("config.metadata.{path}"));
        let container = container_with(|container| container.metadata.as_mut().unwrap().name = bad.into());
        assert_eq!(field(container), format!("config.metadata.{path}"));
    }
    assert_eq!(
        field(pod_with(|pod| pod.metadata.as_mut().unwrap().uid.clear())),
        "config.metadata.uid"
    );
    let namespace = pod_with(|pod| pod.metadata.as_mut().unwrap().namespace.clear());
    assert_eq!(field(namespace), "config.metadata.namespace");
    assert_eq!(
        field(container_with(|container| container.metadata = None)),
        "config.metadata"
    );
    assert_eq!(
        field(container_with(|container| container.image = None)),
        "config.image"
    );
    let image = container_with(|container| container.image = Some(v1::ImageSpec::default()));
    assert_eq!(field(image), "config.image.image");
}

#[test]
fn host_names_and_log_directories_are_checked() {
    assert_eq!(pod_with(|pod| pod.hostname.clear()).unwrap().hostname, None);
    assert!(pod_with(|pod| pod.hostname = "node_1.example.com".into()).is_ok());
    for bad in ["-a", "a-", "a..b", "a b", "a\n", ".", &"x".repeat(65), "ä"] {
        assert_eq!(
            field(pod_with(|pod| pod.hostname = bad.into())),
            "config.hostname",
            "{bad}"
        );
    }
    for bad in ["var/log", "/var/../etc", "/a\nb"] {
        assert_eq!(
            field(pod_with(|pod| pod.log_directory = bad.into())),
            "config.log_directory",
            "{bad}"
        );
    }
}

#[test]
fn log_paths_stay_beneath_their_directory() {
    assert_eq!(
        container_with(|c| c.log_path = "a//./b.log".into())
            .unwrap()
            .log_path
            .unwrap(),
        "a/b.log"
    );
    for bad in ["/etc/passwd", "../x", "a/../../x", ".", "a\0b"] {
        assert_eq!(
            field(container_with(|c| c.log_path = bad.into())),
            "config.log_path",
            "{bad}"
        );
    }
    let silent = pod_with(|pod| pod.log_directory.clear()).unwrap();
    assert_eq!(
        field(container_with(|_| {}).unwrap().check_in(&silent)),
        "config.log_path"
    );
}

#[test]
fn cgroup_parents_have_the_shape_of_a_driver() {
    let parent =
        |text: &str| pod_linux(|linux| linux.cgroup_parent = text.into()).map(|pod| pod.cgroup_parent);
    let slice = |name: &str| Some(CgroupParent::Slice(name.into()));
    assert_eq!(parent("").unwrap(), None);
    assert_eq!(parent("a/b/").unwrap(), Some(CgroupParent::Path("a/b".into())));
    assert_eq!(
        parent("kubepods-pod7a_1b.slice").unwrap(),
        slice("kubepods-pod7a_1b.slice")
    );
    assert_eq!(parent("/system.slice").unwrap(), slice("system.slice"));
    assert_eq!(
        parent("/a.slice/a-b.slice/a-b-c.slice").unwrap(),
        slice("a-b-c.slice")
    );
    assert_eq!(parent("-.slice").unwrap(), slice("-.slice"));
    for bad in [
        "/../x",
        "a//b",
        "a/./b",
        "/a\nb",
        "a/x.slice",
        "a--b.slice",
        "-a.slice",
        ".slice",
        "a b.slice",
        "/b.slice/a-b.slice",
    ] {
        assert_eq!(field(parent(bad)), "config.linux.cgroup_parent", "{bad}");
    }
}

#[test]
fn ports_are_numbers_of_ports() {
    let port = |container_port, host_port, host_ip: &str| {
        let host_ip = host_ip.to_owned();
        let mapping = v1::PortMapping {
            protocol: 0,
            container_port,
            host_port,
            host_ip,
        };
        pod_with(|pod| pod.port_mappings = vec![mapping]).map(|pod| pod.port_mappings[0])
    };
    let mapped = port(80, 8080, "::1").unwrap();
    assert_eq!((mapped.container_port, mapped.host_port), (Some(80), Some(8080)));
    assert_eq!(port(80, 0, "").unwrap().host_port, None);
    assert_eq!(port(0, 0, "").unwrap().container_port, None);
    assert_eq!(
        field(port(65536, 0, "")),
        "config.port_mappings[0].container_port"
    );
    assert_eq!(field(port(0, 80, "")), "config.port_mappings[0].container_port");
    assert_eq!(field(port(80, -1, "")), "config.port_mappings[0].host_port");
    assert_eq!(
        field(port(80, 80, "localhost")),
        "config.port_mappings[0].host_ip"
    );
    let protocol = v1::PortMapping {
        protocol: 9,
        ..Default::default()
    };
    assert_eq!(
        field(pod_with(|pod| pod.port_mappings = vec![protocol])),
        "config.port_mappings[0].protocol"
    );
}

#[test]
fn dns_words_cannot_make_lines() {
    let dns = |server: &str, search: &str, option: &str| {
        let list = |text: &str| {
            if text.is_empty() {
                vec![]
            } else {
                vec![text.to_owned()]
            }
        };
        let config = v1::DnsConfig {
            servers: list(server),
            searches: list(search),
            options: list(option),
        };
        pod_with(|pod| pod.dns_config = Some(config))
    };
    assert!(dns("fe80::1%eth0", "svc.cluster.local", "ndots:5").is_ok());
    for (server, search, option, path) in [
        ("dns.example", "", "", "servers"),
        ("10.0.0.1\nx", "", "", "servers"),
        ("10.0.0.1%eth0", "", "", "servers"),
        ("fe80::1%", "", "", "servers"),
        ("", "a b", "", "searches"),
        ("", "", "x\nnameserver 6.6.6.6", "options"),
    ] {
        assert_eq!(
            field(dns(server, search, option)),
            format!("config.dns_config.{path}[0]")
        );
    }
}

#[test]
fn only_namespaced_sysctls_pass() {
    let sysctl = |key: &str, value: &str| {
        pod_linux(|linux| linux.sysctls = HashMap::from([(key.into(), value.into())]))
            .map(|pod| pod.sysctls[0].key.clone())
    };
    for (key, path) in [
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
        ("kernel/msgmax", "kernel/msgmax"),
        ("kernel.sem", "kernel/sem"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ("net.ipv4.ip_local_port_range", "net/ipv4/ip_local_port_range"),
        (
            "net/ipv4/conf/eth0.100/rp_filter",
            "net/ipv4/conf/eth0.100/rp_filter",
        ),
        (
            "net.ipv4.conf.eth0/100.rp_filter",
            "net/ipv4/conf/eth0.100/rp_filter",
        ),
    ] {
        assert_eq!(sysctl(key, "1 2").unwrap(), path);
    }
    for key in [
        "kernel.core_pattern",
        "vm.swappiness",
        "kernel.semaphore",
        "fs.mqueue",
        "net",
        "net.core",
        "kernel",
        "",
        "net.ipv4.../kernel.x",
        "net/ipv4/../../kernel/core_pattern",
        "net/./core/x",
        "net//core/x",
        "net.core.a b",
        "kernel.shm.x",
        "net.ipv4.x=1",
        "/net/core/somaxconn",
    ] {
        assert_eq!(field(sysctl(key, "1")), format!("config.linux.sysctls[{key:?}]"));
    }
    for value in ["", "1+kernel.core_pattern=x", "1\n2", "a\0b", &"1".repeat(5000)] {
        assert!(sysctl("net.core.somaxconn", value).is_err(), "{value:?}");
    }
    let both = HashMap::from([
        ("net.core.somaxconn".to_owned(), "1".to_owned()),
        ("net/core/somaxconn".to_owned(), "2".to_owned()),
    ]);
    assert!(pod_linux(|linux| linux.sysctls = both).is_err());
}

#[test]
fn sysctls_of_the_node_are_out_of_reach() {
    let on_host = |key: &str, network: v1::NamespaceMode, ipc: v1::NamespaceMode| {
        pod_linux(|linux| {
            let options = linux
                .security_context
                .as_mut()
                .unwrap()
                .namespace_options
                .as_mut()
                .unwrap();
            (options.network, options.ipc) = (network.into(), ipc.into());
            linux.sysctls = HashMap::from([(key.into(), "1".into())]);
        })
    };
    let (pod, node) = (v1::NamespaceMode::Pod, v1::NamespaceMode::Node);
    assert!(on_host("net.core.somaxconn", pod, node).is_ok());
    assert!(on_host("kernel.sem", node, pod).is_ok());
    assert!(on_host("net.core.somaxconn", node, pod).is_err());
    assert!(on_host("kernel.sem", pod, node).is_err());
    assert!(on_host("fs.mqueue.msg_max", pod, node).is_err());
}

#[test]
fn namespace_modes_are_those_that_exist() {
    use v1::NamespaceMode::{Container, Node, Pod, Target};
    let of = |network: v1::NamespaceMode, pid: v1::NamespaceMode, ipc: v1::NamespaceMode| {
        let options = v1::NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            ..Default::default()
        };
        pod_context(|context| context.namespace_options = Some(options)).map(|pod| pod.namespaces)
    };
    let host = of(Node, Node, Node).unwrap();
    assert_eq!(
        (host.network, host.pid, host.ipc),
        (Share::Node, PodPid::Node, Share::Node)
    );
    assert_eq!(of(Pod, Container, Pod).unwrap().pid, PodPid::Container);
    let path = "config.linux.security_context.namespace_options";
    assert_eq!(field(of(Container, Pod, Pod)), format!("{path}.network"));
    assert_eq!(field(of(Pod, Target, Pod)), format!("{path}.pid"));
    assert_eq!(field(of(Pod, Pod, Target)), format!("{path}.ipc"));
    let unknown = v1::NamespaceOption {
        pid: 17,
        ..Default::default()
    };
    assert_eq!(
        field(context(|c| c.namespace_options = Some(unknown))),
        format!("{path}.pid")
    );
    let target = |id: &str| {
        let pid = v1::NamespaceMode::Target.into();
        let options = v1::NamespaceOption {
            pid,
            target_id: id.into(),
            ..Default::default()
        };
        context(|c| c.namespace_options = Some(options))
    };
    assert_eq!(field(target("../x")), format!("{path}.target_id"));
    assert_eq!(field(target(&"a".repeat(64))), format!("{path}.pid?"));
    let stray = v1::NamespaceOption {
        target_id: "a".repeat(64),
        ..Default::default()
    };
    assert_eq!(
        field(context(|c| c.namespace_options = Some(stray))),
        format!("{path}.target_id")
    );
}

#[test]
fn user_namespaces_are_refused_until_they_are_built() {
    let userns = |mode: v1::NamespaceMode, uids: Vec<v1::IdMapping>| {
        let user = v1::UserNamespace {
            mode: mode.into(),
            uids,
            gids: vec![],
        };
        let options = v1::NamespaceOption {
            userns_options: Some(user),
            ..Default::default()
        };
        context(|c| c.namespace_options = Some(options))
    };
    let path = "config.linux.security_context.namespace_options.userns_options";
    assert!(userns(v1::NamespaceMode::Node, vec![]).is_ok());
    assert_eq!(
        field(userns(v1::NamespaceMode::Pod, vec![])),
        format!("{path}.mode?")
    );
    assert_eq!(
        field(userns(v1::NamespaceMode::Container, vec![])),
        format!("{path}.mode")
    );
    assert_eq!(
        field(userns(v1::NamespaceMode::Node, vec![v1::IdMapping::default()])),
        path
    );
}

#[test]
fn containers_cannot_ask_more_than_their_pod_has() {
    let plain = PodConfig::try_from(&pod()).unwrap();
    let container = |change: fn(&mut v1::LinuxContainerSecurityContext)| context(change).unwrap();
    let mode = |network: v1::NamespaceMode, pid: v1::NamespaceMode| {
        let options = v1::NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ..Default::default()
        };
        context(|c| c.namespace_options = Some(options)).unwrap()
    };
    let (pod_mode, node) = (v1::NamespaceMode::Pod, v1::NamespaceMode::Node);
    let path = "config.linux.security_context";
    assert_eq!(
        field(container(|c| c.privileged = true).check_in(&plain)),
        format!("{path}.privileged")
    );
    let options = format!("{path}.namespace_options");
    assert_eq!(
        field(mode(node, pod_mode).check_in(&plain)),
        format!("{options}.network")
    );
    assert_eq!(
        field(mode(pod_mode, node).check_in(&plain)),
        format!("{options}.pid")
    );
    let single = pod_context(|c| {
        c.privileged = true;
        c.namespace_options.as_mut().unwrap().pid = v1::NamespaceMode::Container.into();
    })
    .unwrap();
    assert_eq!(
        field(mode(pod_mode, pod_mode).check_in(&single)),
        format!("{options}.pid")
    );
    let own = mode(pod_mode, v1::NamespaceMode::Container);
    own.check_in(&single).unwrap();
    own.check_in(&plain).unwrap();
    let host = pod_context(|c| c.namespace_options.as_mut().unwrap().network = node.into()).unwrap();
    mode(pod_mode, pod_mode).check_in(&host).unwrap();
}

#[test]
fn ids_never_wrap() {
    let path = "config.linux.security_context";
    let user = |value| context(|c| c.run_as_user = id(value));
    assert_eq!(
        user(2_147_483_647).unwrap().security.run_as.user,
        Some(User::Id(2_147_483_647))
    );
    for bad in [-1, 2_147_483_648, 4_294_967_296, i64::MAX, i64::MIN] {
        assert_eq!(field(user(bad)), format!("{path}.run_as_user"), "{bad}");
        let group = context(|c| (c.run_as_user, c.run_as_group) = (id(1), id(bad)));
        assert_eq!(field(group), format!("{path}.run_as_group"));
        let groups = context(|c| c.supplemental_groups = vec![0, bad]);
        assert_eq!(field(groups), format!("{path}.supplemental_groups[1]"));
        assert_eq!(
            field(pod_context(|c| c.run_as_user = id(bad))),
            format!("{path}.run_as_user")
        );
    }
    assert_eq!(
        field(context(|c| c.run_as_group = id(1))),
        format!("{path}.run_as_group")
    );
    assert_eq!(
        field(pod_context(|c| c.run_as_group = id(1))),
        format!("{path}.run_as_group")
    );
    let named = context(|c| (c.run_as_username, c.run_as_group) = ("www".into(), id(1))).unwrap();
    assert_eq!(named.security.run_as.user, Some(User::Name("www".into())));
    let both = context(|c| (c.run_as_user, c.run_as_username) = (id(1), "www".into()));
    assert_eq!(field(both), format!("{path}.run_as_username"));
    for bad in ["0", "1000", "a:b", "a b", "x\n"] {
        assert_eq!(
            field(context(|c| c.run_as_username = bad.into())),
            format!("{path}.run_as_username")
        );
    }
    let policy = context(|c| c.supplemental_groups_policy = 5);
    assert_eq!(field(policy), format!("{path}.supplemental_groups_policy"));
}

#[test]
fn unknown_capabilities_are_refused_by_name() {
    let caps = |names: &[&str]| {
        let list = names.iter().map(|name| (*name).to_owned()).collect();
        context(|c| {
            c.capabilities = Some(v1::Capability {
                drop_capabilities: list,
                ..Default::default()
            });
        })
    };
    let changes = caps(&["all", "CAP_NET_RAW"]).unwrap().security.capabilities;
    assert!(changes.drop_all && changes.drop == "net_raw".parse().unwrap());
    let path = "config.linux.security_context.capabilities.drop_capabilities[1]";
    assert_eq!(field(caps(&["KILL", "NOPE"])), path);
}

#[test]
fn profiles_are_read_in_both_forms() {
    use v1::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let seccomp = |profile| context(|c| c.seccomp = profile).map(|c| c.security.seccomp);
    let path = "config.linux.security_context";
    assert_eq!(
        seccomp(profile(RuntimeDefault, "")).unwrap(),
        Seccomp::RuntimeDefault
    );
    assert_eq!(seccomp(profile(Unconfined, "")).unwrap(), Seccomp::Unconfined);
    assert_eq!(
        seccomp(profile(Localhost, "/p.json")).unwrap(),
        Seccomp::Localhost("/p.json".into())
    );
    for bad in [
        profile(Localhost, ""),
        profile(Localhost, "p.json"),
        profile(Unconfined, "/p.json"),
    ] {
        assert_eq!(field(seccomp(bad)), format!("{path}.seccomp.localhost_ref"));
    }
    let kind = Some(v1::SecurityProfile {
        profile_type: 9,
        ..Default::default()
    });
    assert_eq!(field(seccomp(kind)), format!("{path}.seccomp.profile_type"));
    let localhost = context(|c| c.apparmor = profile(Localhost, "mine"));
    assert_eq!(field(localhost), format!("{path}.apparmor?"));
    assert!(pod_context(|c| c.apparmor = profile(Localhost, "mine")).is_ok());
}

#[test]
#[expect(deprecated, reason = "old kubelets send the string forms")]
fn profiles_are_read_in_the_old_form() {
    let path = "config.linux.security_context";
    let old = |text: &str| context(|c| c.seccomp_profile_path = text.into()).map(|c| c.security.seccomp);
    assert_eq!(old("runtime/default").unwrap(), Seccomp::RuntimeDefault);
    assert_eq!(
        old("localhost//etc/p.json").unwrap(),
        Seccomp::Localhost("/etc/p.json".into())
    );
    for bad in [
        "localhost/p.json",
        "localhost/",
        "default",
        "localhost//../p.json",
    ] {
        assert_eq!(field(old(bad)), format!("{path}.seccomp_profile_path"), "{bad}");
    }
    let apparmor = |text: &str| context(|c| c.apparmor_profile = text.into()).map(|c| c.security.apparmor);
    assert_eq!(apparmor("unconfined").unwrap(), AppArmor::Unconfined);
    assert_eq!(field(apparmor("mine")), format!("{path}.apparmor_profile"));
    // The field of today wins over that of old.
    let both =
        context(|c| (c.seccomp, c.seccomp_profile_path) = (Some(v1::SecurityProfile::default()), "x".into()));
    assert_eq!(both.unwrap().security.seccomp, Seccomp::RuntimeDefault);
}

#[test]
fn selinux_labels_are_labels() {
    let label = |level: &str| {
        let options = v1::SeLinuxOption {
            level: level.into(),
            ..Default::default()
        };
        context(|c| c.selinux_options = Some(options)).map(|c| c.security.selinux)
    };
    assert_eq!(label("").unwrap(), None);
    assert_eq!(label("s0:c1,c2-s3").unwrap().unwrap().level, "s0:c1,c2-s3");
    assert_eq!(
        field(label("s0\n")),
        "config.linux.security_context.selinux_options.level"
    );
}

#[test]
fn masked_paths_are_absolute() {
    let masked = context(|c| c.masked_paths = vec!["/proc/kcore".into(), "proc".into()]);
    assert_eq!(field(masked), "config.linux.security_context.masked_paths[1]");
    let readonly = context(|c| c.readonly_paths = vec!["/proc/../etc".into()]);
    assert_eq!(field(readonly), "config.linux.security_context.readonly_paths[0]");
}

#[test]
fn mounts_are_what_the_contract_says() {
    let taken = mount(|m| {
        m.container_path = "/data//x/./y/".into();
        m.host_path = "/srv/../srv/data".into();
        (m.readonly, m.recursive_read_only) = (true, true);
        m.mount_options = vec!["noexec".into(), "nodev".into(), "nosuid".into()];
    });
    let taken = taken.unwrap().mounts.remove(0);
    assert_eq!(taken.container_path, "/data/x/y");
    assert_eq!(
        (taken.readonly, taken.propagation),
        (ReadOnly::Recursive, Propagation::Private)
    );
    assert!(taken.options.noexec && taken.options.nodev && taken.options.nosuid);

    let changes: [(fn(&mut v1::Mount), &str); 14] = [
        (|m| m.container_path = "data".into(), "container_path"),
        (|m| m.container_path.clear(), "container_path"),
        (|m| m.container_path = "//.".into(), "container_path"),
        (|m| m.container_path = "/a/../..".into(), "container_path"),
        (|m| m.container_path = "/a\nb".into(), "container_path"),
        (|m| m.host_path = "srv".into(), "host_path"),
        (|m| m.host_path.clear(), "host_path"),
        (|m| m.host_path = "/a\0b".into(), "host_path"),
        (|m| m.propagation = 3, "propagation"),
        (|m| m.recursive_read_only = true, "recursive_read_only"),
        (
            |m| (m.readonly, m.recursive_read_only, m.propagation) = (true, true, 1),
            "recursive_read_only",
        ),
        (|m| m.mount_options = vec!["suid".into()], "mount_options[0]"),
        (
            |m| m.uid_mappings = vec![v1::IdMapping::default()],
            "uidMappings?",
        ),
        (|m| m.image_sub_path = "x".into(), "image_sub_path"),
    ];
    for (change, path) in changes {
        assert_eq!(field(mount(change)), format!("config.mounts[0].{path}"));
    }
    let image = || {
        Some(v1::ImageSpec {
            image: "x".into(),
            ..Default::default()
        })
    };
    assert_eq!(field(mount(|m| m.image = image())), "config.mounts[0].host_path");
    let image_only = mount(|m| {
        m.image = image();
        m.host_path.clear();
    });
    assert_eq!(field(image_only), "config.mounts[0].image?");
}

#[test]
fn devices_have_paths_and_permissions() {
    let device = |container_path: &str, host_path: &str, permissions: &str| {
        let device = v1::Device {
            container_path: container_path.into(),
            host_path: host_path.into(),
            permissions: permissions.into(),
        };
        container_with(|c| c.devices = vec![device]).map(|mut c| c.devices.remove(0))
    };
    let fuse = device("", "/dev/fuse", "mrw").unwrap();
    assert_eq!(
        (fuse.container_path.as_str(), fuse.permissions.as_str()),
        ("/dev/fuse", "rwm")
    );
    for (container_path, host_path, permissions, path) in [
        ("x", "/dev/fuse", "r", "container_path"),
        ("/x", "fuse", "r", "host_path"),
        ("/x", "/dev/fuse", "", "permissions"),
        ("/x", "/dev/fuse", "rx", "permissions"),
    ] {
        let refused = field(device(container_path, host_path, permissions));
        assert_eq!(refused, format!("config.devices[0].{path}"));
    }
    let cdi = container_with(|c| c.cdi_devices = vec![v1::CdiDevice { name: "a/b=c".into() }]);
    assert_eq!(field(cdi), "config.CDI_devices?");
}

#[test]
fn environments_and_arguments_are_c_strings() {
    let env = |key: &str, value: &[u8]| {
        let var = v1::KeyValue {
            key: key.into(),
            value: value.to_vec(),
        };
        container_with(|c| c.envs = vec![var])
    };
    assert!(env("A", b"\xff=\n").is_ok());
    for key in ["", "A=B", "A\0"] {
        assert_eq!(field(env(key, b"")), "config.envs[0].key");
    }
    let secret = env("A", b"geheim\0").unwrap_err();
    assert_eq!(secret.field(), "config.envs[0].value");
    assert!(!secret.to_string().contains("geheim"));
    assert!(!format!("{:?}", env("A", b"geheim").unwrap()).contains("geheim"));
    assert_eq!(
        field(container_with(|c| c.command = vec!["a".into(), "b\0".into()])),
        "config.command[1]"
    );
    assert_eq!(
        field(container_with(|c| c.args = vec!["b\0".into()])),
        "config.args[0]"
    );
    assert_eq!(
        field(container_with(|c| c.working_dir = "srv".into())),
        "config.working_dir"
    );
    assert_eq!(
        field(container_with(|c| c.stop_signal = 66)),
        "config.stop_signal"
    );
    assert_eq!(
        container_with(|c| c.stop_signal = 23)
            .unwrap()
            .stop_signal
            .unwrap()
            .number(),
        15
    );
}

#[test]
fn zero_resources_are_not_given() {
    let nothing = resources(|_| {}).unwrap();
    assert_eq!(nothing, Resources::default());
    let all = resources(|r| {
        (r.cpu_period, r.cpu_quota, r.cpu_shares) = (100_000, 50_000, 1024);
        (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (100, 150);
        r.cpuset_cpus = "0-3,7".into();
        r.unified = HashMap::from([("memory.high".into(), "90".into())]);
        r.hugepage_limits = vec![v1::HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }];
    });
    let all = all.unwrap();
    assert_eq!(all.cpu_quota, Some(CpuQuota::Micros(50_000)));
    assert_eq!(all.memory_swap_limit, Some(SwapLimit::Bytes(150)));
    let unlimited = resources(|r| (r.cpu_quota, r.memory_swap_limit_in_bytes) = (-1, -1)).unwrap();
    assert_eq!(unlimited.cpu_quota, Some(CpuQuota::Unlimited));
    assert_eq!(unlimited.memory_swap_limit, Some(SwapLimit::Unlimited));
}

#[test]
fn impossible_resources_are_refused() {
    let page = |page_size: &str, limit| v1::HugepageLimit {
        page_size: page_size.into(),
        limit,
    };
    let changes: [(fn(&mut v1::LinuxContainerResources), &str); 12] = [
        (|r| r.cpu_period = 999, "cpu_period"),
        (|r| r.cpu_period = -1, "cpu_period"),
        (|r| r.cpu_quota = 999, "cpu_quota"),
        (|r| r.cpu_shares = -1, "cpu_shares"),
        (|r| r.memory_limit_in_bytes = -1, "memory_limit_in_bytes"),
        (
            |r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (100, 99),
            "memory_swap_limit_in_bytes",
        ),
        (|r| r.oom_score_adj = 1001, "oom_score_adj"),
        (|r| r.cpuset_cpus = "3-1".into(), "cpuset_cpus"),
        (|r| r.cpuset_cpus = "0,,1".into(), "cpuset_cpus"),
        (|r| r.cpuset_mems = "+1".into(), "cpuset_mems"),
        (
            |r| r.unified = HashMap::from([("cgroup.procs".into(), "1".into())]),
            "unified[\"cgroup.procs\"]",
        ),
        (
            |r| r.unified = HashMap::from([("memory.max/x".into(), "1".into())]),
            "unified[\"memory.max/x\"]",
        ),
    ];
    for (change, path) in changes {
        assert_eq!(field(resources(change)), format!("linux.{path}"));
    }
    for (bad, path) in [
        (vec![page("2 MB", 0)], "[0].page_size"),
        (vec![page("MB", 0)], "[0].page_size"),
        (vec![page("2MB", u64::MAX)], "[0].limit"),
        (vec![page("2MB", 0), page("2MB", 1)], "[1].page_size"),
    ] {
        assert_eq!(
            field(resources(|r| r.hugepage_limits = bad)),
            format!("linux.hugepage_limits{path}")
        );
    }
    let nested = pod_linux(|linux| {
        linux.overhead = Some(v1::LinuxContainerResources {
            cpu_shares: -1,
            ..Default::default()
        });
    });
    assert_eq!(field(nested), "config.linux.overhead.cpu_shares");
}

#[test]
fn windows_is_another_system() {
    assert_eq!(
        field(pod_with(
            |pod| pod.windows = Some(v1::WindowsPodSandboxConfig::default())
        )),
        "config.windows?"
    );
    let container = container_with(|c| c.windows = Some(v1::WindowsContainerConfig::default()));
    assert_eq!(field(container), "config.windows?");
}
