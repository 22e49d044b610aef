//! What is refused of a container beside its security context.

use std::collections::HashMap;

use super::*;

/// What is changed in a message, and the field that is refused then.
type Change<T> = (fn(&mut T), &'static str);

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

    let changes: [Change<v1::Mount>; 14] = [
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
            "uidMappings[0].host_id",
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
    let of_image = |change: fn(&mut v1::Mount)| {
        mount(|m| {
            (m.image, m.readonly) = (image(), true);
            m.host_path.clear();
            change(m);
        })
    };
    assert_eq!(of_image(|_| ()).unwrap().mounts[0].readonly, ReadOnly::Top);
    let climbs = of_image(|m| m.image_sub_path = "a/../../b".into());
    assert_eq!(field(climbs), "config.mounts[0].image_sub_path");
    let shared = of_image(|m| m.propagation = 2);
    assert_eq!(field(shared), "config.mounts[0].propagation");
    let writable = of_image(|m| m.readonly = false);
    assert_eq!(field(writable), "config.mounts[0].readonly");
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
}

#[test]
fn cdi_devices_come_from_the_field_and_from_annotations() {
    let names = |listed: &[&str], annotations: &[(&str, &str)]| {
        container_with(|c| {
            let device = |name: &&str| v1::CdiDevice {
                name: (*name).to_owned(),
            };
            c.cdi_devices = listed.iter().map(device).collect();
            let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            c.annotations = annotations.iter().map(own).collect();
        })
        .map(|c| c.cdi_devices.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let asked = names(
        &["v.com/gpu=1", "v.com/gpu=0", "v.com/gpu=1"],
        &[
            ("cdi.k8s.io/z_1", "v.com/nic=a,v.com/gpu=0"),
            ("cdi.k8s.io/a_1", "v.com/nic=b"),
            ("example.com/cdi.k8s.io", "not a device"),
        ],
    );
    assert_eq!(
        asked.unwrap(),
        ["v.com/gpu=1", "v.com/gpu=0", "v.com/nic=b", "v.com/nic=a"]
    );
    assert_eq!(
        field(names(&["v.com/gpu=0", "/dev/null"], &[])),
        "config.CDI_devices[1].name"
    );
    assert_eq!(
        field(names(&[], &[("cdi.k8s.io/p", "v.com/gpu=0,")])),
        "config.annotations[\"cdi.k8s.io/p\"]"
    );
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
    let changes: [Change<v1::LinuxContainerResources>; 12] = [
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
