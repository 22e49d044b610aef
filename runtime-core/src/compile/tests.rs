//! Whole plans, printed one step a line and compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::*;
use crate::plan::{FileKind, GroupsPolicy, Plan, TerminalSize, mount_flag};

/// A spec as the daemon makes it for a plain container of a pod with its own network.
fn spec_json() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh", "-c", "echo hello"],
            "env": ["PATH=/bin:/usr/bin", "A=b"],
            "cwd": "/srv",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_CHOWN", "CAP_KILL"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"]
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 524_288 }],
            "noNewPrivileges": true,
            "oomScoreAdj": 900
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "bind", "source": "/shm",
              "options": ["rbind", "nosuid", "nodev", "noexec"] },
            { "destination": "/data", "type": "bind", "source": "/srv/data",
              "options": ["rbind", "rslave", "ro"] },
            { "destination": "/data/file", "type": "bind", "source": "/srv/file",
              "options": ["bind", "rprivate", "rro", "nodev"] }
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" },
                { "type": "mount" },
                { "type": "cgroup" },
                { "type": "uts", "path": "/proc/self/fd/8" },
                { "type": "network", "path": "/proc/self/fd/6" },
                { "type": "ipc", "path": "/proc/self/fd/7" }
            ],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn spec() -> Spec {
    serde_json::from_value(spec_json()).unwrap()
}

/// The spec with the value at a JSON pointer replaced.
pub(super) fn spec_with(pointer: &str, value: Value) -> Spec {
    let mut json = spec_json();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap()[key] = value;
    serde_json::from_value(json).unwrap()
}

pub(super) fn inputs() -> ContainerInputs {
    let shm = NestMount {
        path: "/shm".into(),
        kind: FileKind::Directory,
    };
    ContainerInputs {
        root: RootLayers {
            base: "/store/layers".into(),
            lowers: vec!["bb".into(), "aa".into()],
            upper: "/store/c/1/upper".into(),
            work: "/store/c/1/work".into(),
        },
        nest: BTreeMap::from([(PathBuf::from("/dev/shm"), shm)]),
        images: BTreeMap::new(),
        directories: Vec::new(),
        volumes: vec![FileKind::Directory, FileKind::File],
        shm_context: None,
        hooks: None,
        process: ProcessInputs {
            into_cgroup: true,
            ..ProcessInputs::default()
        },
    }
}

fn exec_inputs() -> ExecInputs {
    ExecInputs {
        args: vec!["true".into()],
        terminal: None,
        process: ProcessInputs {
            into_cgroup: true,
            ..ProcessInputs::default()
        },
    }
}

/// The steps of a plan, one a line.
pub(super) fn print(plan: &[u8]) -> String {
    let mut text = String::new();
    for step in Plan::decode(plan).unwrap().steps {
        writeln!(text, "{step:?}").unwrap();
    }
    text
}

/// The variants of the steps alone.
pub(super) fn outline(plan: &[u8]) -> String {
    let name = |line: &str| line.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
    print(plan).lines().map(name).collect::<Vec<_>>().join(" ")
}

fn compile(spec: &Spec) -> Vec<u8> {
    container(spec, &inputs()).unwrap()
}

#[test]
fn a_plain_container_compiles_to_these_steps() {
    let expected = r#"OomScoreAdj(900)
Join { slot: 6, namespaces: 1073741824 }
Join { slot: 7, namespaces: 134217728 }
Join { slot: 8, namespaces: 67108864 }
Clone { namespaces: 537001984, into_cgroup: true }
Unshare(33554432)
NewSession
RootOverlay(Layers { base: "/store/layers", lowers: ["bb", "aa"], writable: Some(("/store/c/1/upper", "/store/c/1/work")), context: "" })
MountNew { fstype: "proc", target: "/proc", options: [("source", "proc")], attrs: 14, context: "" }
MountNew { fstype: "tmpfs", target: "/dev", options: [("source", "tmpfs"), ("mode", "755"), ("size", "65536k")], attrs: 34, context: "" }
Mknod(Device { path: "/dev/null", mode: 8630, major: 1, minor: 3, uid: 0, gid: 0 })
Mknod(Device { path: "/dev/zero", mode: 8630, major: 1, minor: 5, uid: 0, gid: 0 })
Mknod(Device { path: "/dev/full", mode: 8630, major: 1, minor: 7, uid: 0, gid: 0 })
Mknod(Device { path: "/dev/random", mode: 8630, major: 1, minor: 8, uid: 0, gid: 0 })
Mknod(Device { path: "/dev/urandom", mode: 8630, major: 1, minor: 9, uid: 0, gid: 0 })
Mknod(Device { path: "/dev/tty", mode: 8630, major: 5, minor: 0, uid: 0, gid: 0 })
Symlink { path: "/dev/fd", target: "/proc/self/fd" }
Symlink { path: "/dev/stdin", target: "/proc/self/fd/0" }
Symlink { path: "/dev/stdout", target: "/proc/self/fd/1" }
Symlink { path: "/dev/stderr", target: "/proc/self/fd/2" }
Symlink { path: "/dev/ptmx", target: "pts/ptmx" }
Symlink { path: "/dev/core", target: "/proc/kcore" }
MountNew { fstype: "devpts", target: "/dev/pts", options: [("source", "devpts"), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")], attrs: 10, context: "" }
MountNest { source: "/shm", target: "/dev/shm", kind: Directory, attrs: 14 }
MountSlot { slot: 12, target: "/data", kind: Directory, attrs: 1, recursive: false, propagation: 524288 }
MountSlot { slot: 13, target: "/data/file", kind: File, attrs: 5, recursive: true, propagation: 262144 }
Mask { path: "/proc/kcore", context: "" }
ReadOnly("/proc/sys")
PivotRoot
Rlimit { resource: 7, soft: 1024, hard: 524288 }
Identity { user: Id(0), group: Id(0), groups: [], policy: Strict }
WorkDir { path: "/srv", create: true }
RootReadOnly
NoNewPrivileges
Become(Caps { bounding: 33, permitted: 33, inheritable: 0, ambient: 0 })
Gate
FindProgram { name: "sh", path: "/bin:/usr/bin" }
Exec { argv: ["sh", "-c", "echo hello"], env: ["PATH=/bin:/usr/bin", "A=b"] }
"#;
    let printed = print(&compile(&spec()));
    for (at, (got, want)) in printed.lines().zip(expected.lines()).enumerate() {
        assert_eq!(got, want, "step {at}");
    }
    assert_eq!(printed, expected);
}

#[test]
fn namespaces_are_joined_made_or_the_hosts() {
    let with = |list: Value| compile(&spec_with("/linux/namespaces", list));
    let shared = with(json!([
        { "type": "mount" }, { "type": "pid", "path": "/proc/self/fd/10" }, { "type": "ipc", "path": "/proc/self/fd/7" }
    ]));
    let shared = print(&shared);
    assert!(
        shared
            .contains("Join { slot: 7, namespaces: 134217728 }\nJoin { slot: 10, namespaces: 536870912 }\n")
    );
    assert!(shared.contains("Clone { namespaces: 131072, into_cgroup: true }"));
    assert!(!shared.contains("Unshare"));

    let host = with(json!([{ "type": "mount" }]));
    assert!(outline(&host).starts_with("OomScoreAdj Clone NewSession RootOverlay"));
}

#[test]
fn a_uts_namespace_of_its_own_gets_the_name() {
    let mut spec = spec_with(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "uts" }]),
    );
    spec.set_hostname(Some("solo".into()));
    let steps = print(&compile(&spec));
    assert!(
        steps.contains("NewSession\nHostname(\"solo\")\nRootOverlay"),
        "{steps}"
    );
}

#[test]
fn a_terminal_is_opened_before_the_root_changes() {
    let plan = compile(&spec_with("/process/terminal", json!(true)));
    assert!(outline(&plan).contains("Mask ReadOnly Console PivotRoot"));
}

#[test]
fn a_dev_of_the_hosts_is_left_as_it_is() {
    let plan = compile(&spec_with(
        "/mounts",
        json!([
            { "destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"] },
            { "destination": "/data", "type": "bind", "source": "/data", "options": ["rbind"] }
        ]),
    ));
    let outline = outline(&plan);
    assert!(
        !outline.contains("Mknod") && !outline.contains("Symlink"),
        "{outline}"
    );
}

#[test]
fn devices_of_the_spec_replace_the_default_ones() {
    let plan = compile(&spec_with(
        "/linux/devices",
        json!([
            { "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7, "gid": 8 },
            { "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 }
        ]),
    ));
    let steps = print(&plan);
    assert_eq!(steps.matches("\"/dev/null\"").count(), 1);
    assert!(steps.contains("path: \"/dev/null\", mode: 8576, major: 1, minor: 3, uid: 7, gid: 8"));
    assert!(steps.contains("path: \"/dev/sda\", mode: 25014, major: 8, minor: 0"));
}

#[test]
fn inputs_say_what_a_spec_cannot() {
    let mut inputs = inputs();
    inputs.process.identity = Some(Identity {
        user: Who::Name("www".into()),
        group: Who::Unset,
        groups: vec![5],
        policy: GroupsPolicy::Merge,
    });
    inputs.process.env = Some(vec![b"X=\xff".to_vec()]);
    inputs.process.host_caps = "KILL".parse().unwrap();
    let steps = print(&container(&spec(), &inputs).unwrap());
    assert!(steps.contains("Identity { user: Name(\"www\"), group: Unset, groups: [5], policy: Merge }"));
    assert!(steps.contains("env: [\"X=\\xff\"]"), "{steps}");
    assert!(steps.contains("Become(Caps { bounding: 32, permitted: 32,"));
    assert!(steps.contains(&format!("path: \"{DEFAULT_PATH}\"")));
}

#[test]
fn confinement_comes_in_the_order_that_works() {
    let mut spec = spec_with("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    spec.process_mut()
        .as_mut()
        .unwrap()
        .set_apparmor_profile(Some("podd".into()));
    let end = "NoNewPrivileges Become Gate FindProgram Seccomp Exec";
    assert!(outline(&compile(&spec)).ends_with(end));
}

#[test]
fn contexts_are_those_of_the_process_and_of_its_mounts() {
    let (process, mount) = ("u:r:p:s0:c1,c2", "u:r:f:s0:c1,c2");
    let mut spec = spec_with("/process/selinuxLabel", json!(process));
    spec.linux_mut()
        .as_mut()
        .unwrap()
        .set_mount_label(Some(mount.into()));
    let shared = ContainerInputs {
        shm_context: Some("u:r:f:s0".into()),
        ..inputs()
    };
    let steps = print(&container(&spec, &shared).unwrap());
    let of = |file: &str| {
        format!("Selinux {{ file: \"/proc/thread-self/attr/{file}\", context: \"{process}\" }}\n")
    };
    assert!(steps.contains(&of("keycreate")));
    assert!(steps.contains(&format!("{}PivotRoot\n", of("exec"))), "{steps}");
    assert!(steps.contains(r#"Relabel { path: "/shm", context: "u:r:f:s0" }"#));
    // The root, /dev, /dev/pts and what hides a directory; nothing of the node's.
    let labelled: Vec<&str> = steps.lines().filter(|line| line.contains(mount)).collect();
    let kinds = ["RootOverlay", "MountNew", "MountNew", "Mask"];
    assert_eq!(labelled.len(), kinds.len(), "{steps}");
    assert!(
        labelled
            .iter()
            .zip(kinds)
            .all(|(line, kind)| line.starts_with(kind))
    );
    let exec = print(&exec(&spec, &exec_inputs()).unwrap());
    assert!(exec.starts_with(&["OomScoreAdj(900)\n", &of("keycreate"), &of("exec"), "Join"].concat()));
    assert!(!exec.contains(mount));
}

#[test]
fn volumes_are_told_in_slot_order() {
    let spec = spec();
    let found = volumes(&spec, &inputs().nest).unwrap();
    let told: Vec<_> = found
        .iter()
        .map(|v| (v.slot, v.source.to_str().unwrap(), v.recursive, v.propagation))
        .collect();
    let (private, slave) = (mount_flag::PRIVATE, mount_flag::SLAVE);
    assert_eq!(
        told,
        [(12, "/srv/data", true, slave), (13, "/srv/file", false, private)]
    );

    let mut short = inputs();
    short.volumes.pop();
    assert_eq!(
        container(&spec, &short).unwrap_err(),
        CompileError::VolumeCount { wanted: 2, given: 1 }
    );
}

#[test]
fn an_exec_joins_the_container_and_waits_for_nobody() {
    let mut spec = spec();
    spec.process_mut()
        .as_mut()
        .unwrap()
        .set_no_new_privileges(Some(false));
    let inputs = exec_inputs();
    let expected = r#"OomScoreAdj(900)
Join { slot: 11, namespaces: 1812070400 }
Clone { namespaces: 0, into_cgroup: true }
Join { slot: 11, namespaces: 33554432 }
NewSession
Rlimit { resource: 7, soft: 1024, hard: 524288 }
Identity { user: Id(0), group: Id(0), groups: [], policy: Strict }
WorkDir { path: "/srv", create: false }
Become(Caps { bounding: 33, permitted: 33, inheritable: 0, ambient: 0 })
FindProgram { name: "true", path: "/bin:/usr/bin" }
Exec { argv: ["true"], env: ["PATH=/bin:/usr/bin", "A=b"] }
"#;
    assert_eq!(print(&exec(&spec, &inputs).unwrap()), expected);
    let terminal = ExecInputs {
        terminal: Some(TerminalSize {
            rows: 24,
            columns: 80,
        }),
        ..inputs
    };
    assert!(outline(&exec(&spec, &terminal).unwrap()).contains("NewSession Console Rlimit"));
}

#[test]
fn a_pod_plan_makes_what_is_asked_and_holds_it() {
    let all = PodInputs {
        user: None,
        network: true,
        ipc: true,
        uts: true,
        pid: true,
        hostname: Some("web-0".into()),
        sysctls: vec![
            ("net/ipv4/ip_forward".into(), "1".into()),
            ("kernel/shmmax".into(), "1".into()),
        ],
        context: Some("u:r:f:s0".into()),
    };
    let expected = r#"Relabel { path: "/shm", context: "u:r:f:s0" }
Unshare(1275068416)
Hostname("web-0")
Sysctl { key: "net/ipv4/ip_forward", value: "1" }
Sysctl { key: "kernel/shmmax", value: "1" }
Clone { namespaces: 536870912, into_cgroup: true }
Hold { filter: ["#;
    let made = print(&pod(&all).unwrap());
    assert!(
        made.starts_with(expected) && made.len() > expected.len() + 100,
        "{made}"
    );
    assert_eq!(
        print(&pod(&PodInputs::default()).unwrap()),
        "Hold { filter: [] }\n"
    );

    for (network, ipc, key) in [
        (false, true, "net/core/somaxconn"),
        (true, false, "kernel/sem"),
        (true, false, "fs/mqueue/msg_max"),
        (true, true, "net/../kernel/core_pattern"),
        (true, true, "/kernel/core_pattern"),
    ] {
        let sysctls = vec![(key.to_owned(), "1".to_owned())];
        let error = pod(&PodInputs {
            network,
            ipc,
            sysctls,
            ..PodInputs::default()
        })
        .unwrap_err();
        assert_eq!(
            error,
            CompileError::Unsupported {
                what: "sysctl",
                value: key.to_owned()
            }
        );
    }
    let hostname = PodInputs {
        uts: true,
        hostname: Some("x".repeat(65)),
        ..PodInputs::default()
    };
    assert_eq!(pod(&hostname).unwrap_err(), CompileError::HostnameTooLong(65));
    let host = PodInputs {
        hostname: Some("x".into()),
        ..PodInputs::default()
    };
    assert!(matches!(pod(&host).unwrap_err(), CompileError::Missing(_)));
}

#[test]
fn what_a_plan_cannot_do_is_refused_with_its_name() {
    refused([
        ("/process/args", json!([]), "the spec has no command"),
        ("/process/args", json!([""]), "the spec has no command"),
        ("/process/args", json!(["a\u{0}b"]), "argument holds a NUL byte"),
        ("/process/env", json!(["a\u{0}b"]), "environment holds a NUL byte"),
        (
            "/process/cwd",
            json!("srv"),
            "working directory \"srv\" is not an absolute path",
        ),
        (
            "/process/oomScoreAdj",
            json!(-1001),
            "oom_score_adj -1001 is out of range",
        ),
        (
            "/process/ioPriority",
            json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 }),
            "part of the spec \"I/O priority\" is not supported",
        ),
    ]);
    let mut inputs = inputs();
    inputs.root.lowers.clear();
    assert_eq!(
        container(&spec(), &inputs).unwrap_err(),
        CompileError::Missing("layer")
    );
}

#[test]
fn what_no_plan_of_linux_can_do_is_refused_with_its_name() {
    refused([
        (
            "/linux/sysctl",
            json!({ "a.b": "1" }),
            "part of the spec \"sysctl of a container, not a pod\" is not supported",
        ),
        (
            "/linux/maskedPaths",
            json!(["proc"]),
            "masked path \"proc\" is not an absolute path",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "pid" }]),
            "the spec has no mount namespace of its own",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "user" }]),
            "namespace \"user\" is not supported",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "network", "path": "/run/netns/x" }]),
            "namespace \"net:/run/netns/x\" is not supported",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/x", "type": "c", "major": -1, "minor": 0 }]),
            "device major number -1 is out of range",
        ),
        (
            "/mounts",
            json!([{ "destination": "x", "type": "proc" }]),
            "mount destination \"x\" is not an absolute path",
        ),
        (
            "/mounts",
            json!([{ "destination": "/x", "type": "ext4" }]),
            "mount type \"ext4\" is not supported",
        ),
        (
            "/mounts",
            json!([{ "destination": "/x", "type": "tmpfs", "options": ["sync"] }]),
            "mount option \"sync\" is not supported",
        ),
        (
            "/mounts",
            json!([{ "destination": "/x", "type": "bind", "source": "/y", "options": ["mode=1"] }]),
            "options of a bind mount \"mode=1\" is not supported",
        ),
    ]);
}

/// Each value at its pointer makes the message.
fn refused<const N: usize>(cases: [(&str, Value, &str); N]) {
    for (pointer, value, message) in cases {
        let error = container(&spec_with(pointer, value), &inputs()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_user_namespace_is_joined_when_all_is_made_that_it_may_not_make() {
    let mut json = spec_json();
    let namespaces = json["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "user", "path": "/proc/self/fd/9" }));
    let map = json!([{ "containerID": 0, "hostID": 70_000, "size": 65536 }]);
    json["linux"]["uidMappings"] = map.clone();
    json["linux"]["gidMappings"] = map.clone();
    let mounts = json["mounts"].as_array_mut().unwrap();
    (mounts[4]["uidMappings"], mounts[4]["gidMappings"]) = (map.clone(), map);
    mounts.push(json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] }));
    mounts.push(json!({ "destination": "/image", "type": "overlay", "options": ["ro"] }));
    let mapped: Spec = serde_json::from_value(json.clone()).unwrap();
    let mut inputs = inputs();
    let image = ImageMount {
        lowers: vec!["cc".into()],
        sub_path: "etc".into(),
    };
    inputs.images = BTreeMap::from([(PathBuf::from("/image"), image)]);
    inputs.directories = vec![PathBuf::from("/var/lib/own")];
    let plan = container(&mapped, &inputs).unwrap();
    let expected = "OomScoreAdj Rlimit OwnStdio Join Join Join Unshare MakeNew MakeClone MapIds MakeNew MakeLayers \
        MakeLayers Join Clone RootOfNamespace Unshare NewSession RootSlot MountNew MountSlot Symlink Symlink Symlink \
        Symlink Symlink Symlink MountNew MountSlot MountSlot MountSlot MountSlot MountLayers Mask ReadOnly PivotRoot \
        Identity OwnDirectory WorkDir RootReadOnly NoNewPrivileges Become Gate FindProgram Exec";
    assert_eq!(outline(&plan), expected);
    let printed = print(&plan);
    for step in [
        "OwnStdio { uid: 70000, gid: 70000 }",
        "MapIds(12)",
        "Join { slot: 9, namespaces: 268435456 }",
        r#"(\"uid\", \"70000\")"#.replace('\\', "").as_str(),
        r#"MakeLayers { slot: 17, layers: Layers { base: "/store/layers", lowers: ["cc"], writable: None, context: "" }, idmap: true, sub_path: "etc" }"#,
        r#"MountLayers { slot: 17, target: "/image", attrs: 1 }"#,
        "RootSlot(18)",
    ] {
        assert!(printed.contains(step), "{step} is not in\n{printed}");
    }
    json["linux"]["namespaces"].as_array_mut().unwrap().pop();
    let unmapped: Spec = serde_json::from_value(json).unwrap();
    assert_eq!(
        container(&unmapped, &inputs).unwrap_err(),
        CompileError::Missing("user namespace for its id mappings")
    );
}
