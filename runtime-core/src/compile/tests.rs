//! Whole plans, printed one step a line and compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::*;
use crate::plan::{FileKind, GroupsPolicy, Plan, Step, mount_flag};

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
fn spec_with(pointer: &str, value: Value) -> Spec {
    let mut json = spec_json();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap()[key] = value;
    serde_json::from_value(json).unwrap()
}

fn inputs() -> ContainerInputs {
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
        volumes: vec![FileKind::Directory, FileKind::File],
        process: ProcessInputs {
            into_cgroup: true,
            ..ProcessInputs::default()
        },
    }
}

/// The steps of a plan, one a line.
fn print(plan: &[u8]) -> String {
    let mut text = String::new();
    for step in Plan::decode(plan).unwrap().steps {
        writeln!(text, "{step:?}").unwrap();
    }
    text
}

/// The variants of the steps alone.
fn outline(plan: &[u8]) -> String {
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
RootOverlay { lowers: ["bb", "aa"], base: "/store/layers", upper: "/store/c/1/upper", work: "/store/c/1/work" }
MountNew { fstype: "proc", target: "/proc", options: [("source", "proc")], attrs: 14 }
MountNew { fstype: "tmpfs", target: "/dev", options: [("source", "tmpfs"), ("mode", "755"), ("size", "65536k")], attrs: 34 }
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
MountNew { fstype: "devpts", target: "/dev/pts", options: [("source", "devpts"), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")], attrs: 10 }
MountNest { source: "/shm", target: "/dev/shm", kind: Directory, attrs: 14 }
MountSlot { slot: 12, target: "/data", kind: Directory, attrs: 1, recursive: false, propagation: 524288 }
MountSlot { slot: 13, target: "/data/file", kind: File, attrs: 5, recursive: true, propagation: 262144 }
Mask("/proc/kcore")
ReadOnly("/proc/sys")
PivotRoot
RootReadOnly
Rlimit { resource: 7, soft: 1024, hard: 524288 }
Identity { user: Id(0), group: Id(0), groups: [], policy: Strict }
WorkDir { path: "/srv", create: true }
FindProgram { name: "sh", path: "/bin:/usr/bin" }
NoNewPrivileges
Become(Caps { bounding: 33, permitted: 33, inheritable: 0, ambient: 0 })
Gate
Exec { argv: ["sh", "-c", "echo hello"], env: ["PATH=/bin:/usr/bin", "A=b"] }
"#;
    let printed = print(&compile(&spec()));
    for (at, (got, want)) in printed.lines().zip(expected.lines()).enumerate() {
        assert_eq!(got, want, "step {at}");
    }
    assert_eq!(printed, expected);
}
