//! What is refused of identity, confinement and namespaces.

use super::*;
use crate::model::{ContainerUsers, IdMaps, IdRange};

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
    let other = "a".repeat(64);
    assert_eq!(
        target(&other).unwrap().security.pid,
        ContainerPid::Target(other.parse().unwrap())
    );
    let stray = v1::NamespaceOption {
        target_id: "a".repeat(64),
        ..Default::default()
    };
    assert_eq!(
        field(context(|c| c.namespace_options = Some(stray))),
        format!("{path}.target_id")
    );
}

fn userns(mode: v1::NamespaceMode, maps: &[(u32, u32, u32)]) -> v1::NamespaceOption {
    let maps = maps.iter().map(|&(container_id, host_id, length)| v1::IdMapping {
        container_id,
        host_id,
        length,
    });
    let maps: Vec<_> = maps.collect();
    v1::NamespaceOption {
        userns_options: Some(v1::UserNamespace {
            mode: mode.into(),
            uids: maps.clone(),
            gids: maps,
        }),
        ..Default::default()
    }
}

#[test]
fn a_user_namespace_has_one_range_from_root_and_never_the_nodes_root() {
    use v1::NamespaceMode::{Container, Node, Pod, Target};
    let context = |options: v1::NamespaceOption| context(|c| c.namespace_options = Some(options));
    let path = "config.linux.security_context.namespace_options.userns_options";
    let range = IdRange {
        host: 1000,
        length: 100_000,
    };
    let ids = IdMaps {
        users: range,
        groups: range,
    };
    let given = context(userns(Pod, &[(0, 1000, 100_000)])).unwrap();
    assert_eq!(given.security.user, ContainerUsers::Ids(ids));
    let node = context(userns(Node, &[])).unwrap();
    assert_eq!(node.security.user, ContainerUsers::Node);
    for (mode, maps, refused) in [
        (Container, &[][..], ".mode"),
        (Target, &[], ".mode"),
        (Node, &[(0, 1000, 1)], ""),
        (Pod, &[], ".uids"),
        (Pod, &[(0, 1000, 9), (9, 2000, 9)], ".uids"),
        (Pod, &[(1, 1000, 9)], ".uids[0].container_id"),
        (Pod, &[(0, 0, 9)], ".uids[0].host_id"),
        (Pod, &[(0, 1000, 0)], ".uids[0].length"),
        (Pod, &[(0, u32::MAX, 1)], ".uids[0].length"),
        (Pod, &[(0, u32::MAX - 9, 11)], ".uids[0].length"),
    ] {
        assert_eq!(
            field(context(userns(mode, maps))),
            format!("{path}{refused}"),
            "{maps:?}"
        );
    }
}

#[test]
fn user_namespaces_of_pod_and_container_are_one() {
    let options = |pid: v1::NamespaceMode, ipc: v1::NamespaceMode| v1::NamespaceOption {
        pid: pid.into(),
        ipc: ipc.into(),
        ..userns(v1::NamespaceMode::Pod, &[(0, 1000, 65536)])
    };
    let pod_with = |options: v1::NamespaceOption| {
        let mut wire = pod();
        let linux = wire.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options = Some(options);
        PodConfig::try_from(&wire)
    };
    use v1::NamespaceMode::{Node, Pod};
    let path = "config.linux.security_context.namespace_options";
    assert_eq!(field(pod_with(options(Node, Pod))), format!("{path}.pid"));
    assert_eq!(field(pod_with(options(Pod, Node))), format!("{path}.ipc"));
    let mapped = pod_with(options(Pod, Pod)).unwrap();
    let asked = |host| context(|c| c.namespace_options = Some(userns(Pod, &[(0, host, 65536)]))).unwrap();
    assert!(asked(1000).check_in(&mapped).is_ok());
    let plain = PodConfig::try_from(&pod()).unwrap();
    let nodes = context(|c| c.namespace_options = Some(userns(Node, &[]))).unwrap();
    assert_eq!(field(nodes.check_in(&mapped)), format!("{path}.userns_options"));
    assert!(nodes.check_in(&plain).is_ok());
    let unset = context(|c| c.namespace_options = None).unwrap();
    assert!(unset.check_in(&mapped).is_ok() && unset.check_in(&plain).is_ok());
    assert_eq!(
        field(asked(2000).check_in(&mapped)),
        format!("{path}.userns_options")
    );
    assert_eq!(
        field(asked(1000).check_in(&plain)),
        format!("{path}.userns_options")
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
    let named = AppArmor::Localhost("mine".into());
    assert_eq!(localhost.unwrap().security.apparmor, named);
    let prefixed = context(|c| c.apparmor = profile(Localhost, "localhost/mine"));
    assert_eq!(prefixed.unwrap().security.apparmor, named);
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
    for wrong in ["s0\n", "s0,c4,c5"] {
        assert_eq!(
            field(label(wrong)),
            "config.linux.security_context.selinux_options.level"
        );
    }
}

#[test]
fn masked_paths_are_absolute() {
    let masked = context(|c| c.masked_paths = vec!["/proc/kcore".into(), "proc".into()]);
    assert_eq!(field(masked), "config.linux.security_context.masked_paths[1]");
    let readonly = context(|c| c.readonly_paths = vec!["/proc/../etc".into()]);
    assert_eq!(field(readonly), "config.linux.security_context.readonly_paths[0]");
}
