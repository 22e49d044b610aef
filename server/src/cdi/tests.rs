//! Spec files as vendors write them, and what becomes of them.

use std::fs;

use super::*;

const GPU: &str = r#"{
  "cdiVersion": "0.7.0",
  "kind": "vendor.com/gpu",
  "annotations": {"whose": "vendor"},
  "devices": [
    {"name": "0", "containerEdits": {
      "env": ["GPU=0"],
      "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero", "uid": 7, "permissions": "r"},
                      {"path": "/dev/ctl", "type": "b", "major": 240, "minor": 1, "fileMode": 416}],
      "additionalGids": [0, 44, 44],
      "hooks": [{"hookName": "createRuntime", "path": "/b"}, {"hookName": "prestart", "path": "/a", "timeout": 3}]}},
    {"name": "all", "annotations": null, "containerEdits": {"env": null, "deviceNodes": [{"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 3, "permissions": "none"}]}}
  ],
  "containerEdits": {
    "mounts": [{"hostPath": "/lib/gpu.so", "containerPath": "/lib/gpu.so", "options": ["ro", "rbind"]}],
    "hooks": [{"hookName": "createRuntime", "path": "/first"}]}
}"#;

const NIC: &str = "---
cdiVersion: 0.5.0
kind: vendor.com/nic
devices:
- name: eth0
  containerEdits:
    deviceNodes:
    - path: /dev/null
      fileMode: 0666
    mounts:
    - {hostPath: tmpfs, containerPath: /scratch, type: tmpfs, options: [size=1m]}
    - {hostPath: /lib/gpu.so, containerPath: /lib/gpu.so, options: [bind]}
";

fn names(list: &[&str]) -> Vec<CdiName> {
    list.iter().map(|name| CdiName::parse(name).unwrap()).collect()
}

/// Directories with files, `d/name` and content.
fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let root = tempfile::tempdir().unwrap();
    let dirs = ["low", "high"].map(|dir| root.path().join(dir));
    dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    for (name, content) in files {
        fs::write(root.path().join(name), content).unwrap();
    }
    let dirs = [&dirs[..], &[root.path().join("absent")]].concat();
    (root, dirs)
}

#[test]
fn edits_of_a_file_come_once_and_before_those_of_its_devices() {
    let (_root, dirs) = node(&[
        ("low/gpu.json", GPU),
        ("high/nic.yaml", NIC),
        ("low/README", "no spec"),
    ]);
    let edits = find(
        &dirs,
        &names(&["vendor.com/gpu=0", "vendor.com/nic=eth0", "vendor.com/gpu=all"]),
    )
    .unwrap();
    assert_eq!(edits.env, ["GPU=0"]);
    let devices: Vec<_> = edits
        .devices
        .iter()
        .map(|d| {
            (
                d.path.as_str(),
                d.kind,
                d.major,
                d.minor,
                d.mode,
                d.uid,
                d.permissions.as_str(),
            )
        })
        .collect();
    assert_eq!(
        devices,
        [
            ("/dev/ctl", NodeKind::Block, 240, 1, Some(0o640), None, "rwm"),
            ("/dev/null", NodeKind::Char, 1, 3, Some(0o666), None, "rwm"),
            // The later one; it is complete without the host's.
            ("/dev/gpu0", NodeKind::Char, 1, 3, None, None, ""),
        ]
    );
    let mounts: Vec<_> = edits
        .mounts
        .iter()
        .map(|m| (m.destination.as_str(), m.kind.as_str(), m.options.join(",")))
        .collect();
    assert_eq!(
        mounts,
        [
            ("/scratch", "tmpfs", "size=1m".to_owned()),
            ("/lib/gpu.so", "bind", "bind".to_owned())
        ]
    );
    let hooks = edits
        .hooks
        .as_ref()
        .and_then(|hooks| hooks.create_runtime().clone())
        .unwrap();
    let paths: Vec<_> = hooks.iter().map(|hook| hook.path().to_str().unwrap()).collect();
    assert_eq!(paths, ["/a", "/first", "/b"], "prestart comes first");
    assert_eq!(hooks[0].timeout(), Some(3));
    assert_eq!(edits.groups, [44]);
    let json = serde_json::to_string(&edits).unwrap();
    assert_eq!(serde_json::from_str::<Edits>(&json).unwrap(), edits);
}

#[test]
fn the_hosts_node_fills_in_what_a_file_leaves_out() {
    let (_root, dirs) = node(&[("low/gpu.json", GPU)]);
    let edits = find(&dirs, &names(&["vendor.com/gpu=0"])).unwrap();
    let zero = &edits.devices[0];
    assert_eq!((zero.kind, zero.major, zero.minor), (NodeKind::Char, 1, 5));
    assert_eq!((zero.mode, zero.uid), (Some(0o666), Some(7)));
}

#[test]
fn a_later_directory_wins_and_equals_are_a_conflict() {
    let other = NIC.replace("fileMode: 0666", "fileMode: 0600");
    let (_root, dirs) = node(&[("low/a.yaml", NIC), ("high/b.yaml", &other)]);
    let edits = find(&dirs, &names(&["vendor.com/nic=eth0"])).unwrap();
    assert_eq!(edits.devices[0].mode, Some(0o600));

    let (_root, dirs) = node(&[("low/a.yaml", NIC), ("low/b.yaml", &other)]);
    let e = find(&dirs, &names(&["vendor.com/nic=eth0"])).unwrap_err();
    assert!(matches!(e, CdiError::Conflict { .. }), "{e}");
    assert!(
        e.to_string().contains("low/a.yaml") && e.to_string().contains("low/b.yaml"),
        "{e}"
    );
}

#[test]
fn broken_files_are_named_only_where_they_may_matter() {
    let (root, dirs) = node(&[
        ("low/gpu.json", GPU),
        ("low/broken.json", "{"),
        ("high/old.yaml", "a: b"),
    ]);
    let find = |name: &str| {
        find(&dirs, &names(&[name]))
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    find("vendor.com/gpu=0").unwrap();
    let e = find("vendor.com/gpu=7").unwrap_err();
    assert_eq!(
        e,
        "CDI device vendor.com/gpu=7 is not known: the spec files of its kind have other devices only"
    );
    let e = find("other.com/gpu=0").unwrap_err();
    assert!(
        e.contains("low/broken.json: ") && e.contains("high/old.yaml: "),
        "{e}"
    );
    // Neither a FIFO nor an endless file keeps anybody waiting.
    let fifo = root.path().join("low/fifo.json");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    std::os::unix::fs::symlink("/dev/zero", root.path().join("low/zero.json")).unwrap();
    fs::File::create(root.path().join("low/huge.yaml"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    let e = super::find(&dirs, &names(&["other.com/gpu=0"]))
        .unwrap_err()
        .to_string();
    assert!(e.contains("fifo.json: it is not a regular file"), "{e}");
    assert!(
        e.contains("huge.yaml: it is larger than") && e.ends_with("and 2 more"),
        "{e}"
    );
}

#[test]
fn what_podd_does_not_do_is_refused_when_it_is_asked_for() {
    let rdt = GPU.replace(
        "\"additionalGids\": [0, 44, 44]",
        "\"intelRdt\": {\"closID\": \"x\"}",
    );
    let (_root, dirs) = node(&[("low/gpu.json", &rdt)]);
    let e = find(&dirs, &names(&["vendor.com/gpu=0"])).unwrap_err();
    assert_eq!(
        e.to_string(),
        "CDI device vendor.com/gpu=0 needs intelRdt, which podd does not support"
    );
    find(&dirs, &names(&["vendor.com/gpu=all"])).unwrap();
    let gone = GPU.replace("/dev/zero", "/dev/no-such-device");
    let (_root, dirs) = node(&[("low/gpu.json", &gone)]);
    assert!(matches!(
        find(&dirs, &names(&["vendor.com/gpu=0"])),
        Err(CdiError::Node { .. })
    ));
    let other = GPU.replace(
        "\"hostPath\": \"/dev/zero\"",
        "\"hostPath\": \"/dev/zero\", \"type\": \"b\"",
    );
    let (_root, dirs) = node(&[("low/gpu.json", &other)]);
    assert!(matches!(
        find(&dirs, &names(&["vendor.com/gpu=0"])),
        Err(CdiError::OtherKind { .. })
    ));
}

#[test]
fn files_that_break_a_rule_are_broken() {
    use super::format::{Syntax, parse};
    parse(GPU, Syntax::Json).unwrap();
    parse(NIC, Syntax::Yaml).unwrap();
    for (from, to, reason) in [
        ("0.7.0", "0.6.0", "fields of 0.7.0"),
        ("0.7.0", "1.9.0", "not known"),
        ("\"kind\"", "\"knd\"", "unknown field"),
        ("vendor.com/gpu", "gpu", "not vendor/class"),
        ("\"name\": \"all\"", "\"name\": \"0\"", "there twice"),
        ("\"name\": \"all\"", "\"name\": \"-\"", "not the name"),
        ("GPU=0", "GPU", "not NAME=value"),
        ("\"path\": \"/b\"", "\"path\": \"b\"", "not an absolute path"),
        (
            "\"path\": \"/dev/ctl\"",
            "\"path\": \"/dev/../ctl\"",
            "not an absolute path",
        ),
        ("\"timeout\": 3", "\"timeout\": 0", "timeout"),
        ("createRuntime", "createEverything", "unknown variant"),
        ("\"type\": \"b\"", "\"type\": \"d\"", "not b, c, u or p"),
        ("\"permissions\": \"r\"", "\"permissions\": \"rx\"", "permissions"),
        ("\"minor\": 1,", "\"minor\": -1,", "invalid value"),
        ("\"minor\": 1,", "\"minor\": 1048576,", "no such device number"),
        (
            "\"hostPath\": \"/lib/gpu.so\"",
            "\"hostPath\": \"lib\"",
            "not an absolute path",
        ),
    ] {
        assert!(GPU.contains(from), "{from}");
        let e = parse(&GPU.replace(from, to), Syntax::Json).unwrap_err();
        assert!(e.contains(reason), "{from} to {to}: {e}");
    }
    let bomb: String = (0..64).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
        format!(
            "{text}a{}: &a{} [*a{n},*a{n},*a{n},*a{n},*a{n},*a{n},*a{n},*a{n}]\n",
            n + 1,
            n + 1
        )
    });
    parse(&bomb, Syntax::Yaml).unwrap_err();
    let deep = format!("kind: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    parse(&deep, Syntax::Yaml).unwrap_err();
}
