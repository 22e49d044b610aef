//! Containers with CDI devices.

use super::*;
use crate::cdi::{DeviceNode, Mount, NodeKind};

fn node(path: &str, kind: NodeKind, permissions: &str) -> DeviceNode {
    DeviceNode {
        path: path.to_owned(),
        kind,
        major: 240,
        minor: 7,
        mode: None,
        uid: None,
        gid: None,
        permissions: permissions.to_owned(),
    }
}

fn mount(destination: &str) -> Mount {
    Mount {
        source: "/lib/vendor.so".into(),
        destination: destination.into(),
        kind: "bind".into(),
        options: vec!["ro".into(), "bind".into()],
    }
}

/// `allow type major:minor access` of the rules behind the usual ones.
fn rules(built: &Built) -> Vec<String> {
    let linux = built.spec.linux().as_ref().unwrap();
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    let own = rules.iter().skip(devices::usual_rules().len());
    own.map(|rule| {
        let number = |n: Option<i64>| n.unwrap_or(-1);
        let access = rule.access().as_deref().unwrap_or_default();
        let typ = rule.typ().unwrap_or_default().as_str().to_owned();
        assert!(rule.allow());
        format!("{typ} {}:{} {access}", number(rule.major()), number(rule.minor()))
    })
    .collect()
}

#[test]
fn a_cdi_device_adds_exactly_what_its_edits_say() {
    let mut case = Case::new();
    case.container.envs = vec![v1::KeyValue {
        key: "GPU".into(),
        value: b"none".to_vec(),
    }];
    case.mount("/lib/vendor.so").host_path = "/other".into();
    case.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    case.security().supplemental_groups = vec![5, 44];
    let plain = case.build();
    case.cdi = Edits {
        env: vec!["GPU=0".into(), "GPU=1".into()],
        devices: vec![
            DeviceNode {
                gid: Some(9),
                ..node("/dev/gpu", NodeKind::Char, "rw")
            },
            node("/dev/pipe", NodeKind::Fifo, "rwm"),
            node("/dev/seen-only", NodeKind::Block, ""),
        ],
        mounts: vec![mount("/lib/vendor.so")],
        hooks: None,
        groups: vec![44, 45],
    };
    let built = case.build();
    let mut env = env_of(&plain);
    env.retain(|var| var != "GPU=none");
    env.push("GPU=1".into());
    assert_eq!(env_of(&built), env);
    assert_eq!(built.identity.groups, [5, 44, 45]);
    assert_eq!(rules(&built), ["c 240:7 rw"]);
    let devices = built.spec.linux().as_ref().unwrap().devices().clone().unwrap();
    let owners: Vec<_> = devices.iter().map(|d| (d.uid(), d.gid())).collect();
    assert_eq!(
        owners,
        [
            (Some(1000), Some(9)),
            (Some(1000), Some(0)),
            (Some(1000), Some(0))
        ]
    );
    let at = |spec: &Spec| {
        let mounts = mounts_of(spec);
        let here = mounts.iter().filter(|line| line.starts_with("/lib/vendor.so "));
        here.cloned().collect::<Vec<_>>()
    };
    assert_eq!(at(&built.spec), ["/lib/vendor.so bind /lib/vendor.so ro,bind"]);
    assert_eq!(
        built.spec.mounts().iter().flatten().count(),
        plain.spec.mounts().iter().flatten().count()
    );
}

#[test]
fn ids_of_a_container_in_a_user_namespace_are_the_hosts_behind_its_first() {
    let mut case = Case::new();
    let map = vec![v1::IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65_536,
    }];
    let users = v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: map.clone(),
        gids: map,
    };
    let options = v1::NamespaceOption {
        userns_options: Some(users),
        ..Default::default()
    };
    case.pod_security().namespace_options = Some(options.clone());
    case.security().namespace_options = Some(options);
    case.cdi.devices = vec![DeviceNode {
        uid: Some(33),
        ..node("/dev/gpu", NodeKind::Char, "rw")
    }];
    case.cdi.mounts = vec![mount("/lib/vendor.so")];
    let built = case.build();
    let devices = built.spec.linux().as_ref().unwrap().devices().clone().unwrap();
    assert_eq!(
        (devices[0].uid(), devices[0].gid()),
        (Some(100_033), Some(100_000))
    );
    let mut mounts = built.spec.mounts().iter().flatten();
    let own = mounts
        .find(|m| m.destination() == Path::new("/lib/vendor.so"))
        .unwrap();
    assert_eq!(own.uid_mappings().as_ref().unwrap()[0].host_id(), 100_000);
}
