//! Decisions of the programs by a small interpreter, and by the kernel where this process may make cgroups.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde_json::{Value, json};

use super::*;
use crate::cgroup::Cgroup;
use crate::cgroup::tests::{Real, soon};

fn parse(rules: Value) -> Result<DeviceRules, CgroupError> {
    DeviceRules::from_oci(&serde_json::from_value::<Vec<LinuxDeviceCgroup>>(rules).unwrap())
}

/// Runs a program as the kernel does; `ctx` is `struct bpf_cgroup_dev_ctx`.
fn run(code: &[u8], ctx: [u32; 3]) -> u32 {
    let code: Vec<&[u8]> = code.chunks(8).collect();
    let mut registers = [0_u32; 11];
    let mut at = 0;
    for _ in 0..code.len() {
        let [opcode, regs, o0, o1, v @ ..] = code[at] else {
            panic!("half an instruction")
        };
        let (dst, src) = (usize::from(regs & 15), usize::from(regs >> 4));
        let offset = usize::try_from(i16::from_ne_bytes([*o0, *o1])).expect("never backwards");
        let value = u32::from_ne_bytes(v.try_into().unwrap());
        at += 1;
        match *opcode {
            op::LOAD => {
                assert_eq!(src, 1, "only the context is memory");
                registers[dst] = ctx[offset / 4];
            }
            op::SET => registers[dst] = value,
            op::COPY => registers[dst] = registers[src],
            op::AND => registers[dst] &= value,
            op::SHIFT => registers[dst] >>= value,
            op::IF_EQUAL if registers[dst] == value => at += offset,
            op::UNLESS_EQUAL if registers[dst] != value => at += offset,
            op::IF_EQUAL | op::UNLESS_EQUAL => {}
            op::EXIT => return registers[0],
            other => panic!("opcode {other:#x}"),
        }
    }
    panic!("ran off the end");
}

/// Whether the program allows `c 1:3 rw`.
fn allows(rules: &DeviceRules, asked: &str) -> bool {
    let [kind, device, access @ ..] = &asked.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{asked}")
    };
    let (major, minor) = device.split_once(':').unwrap();
    let kind = if *kind == "c" { CHAR } else { BLOCK };
    let bits = access
        .iter()
        .flat_map(|letters| letters.chars())
        .fold(0, |all, letter| {
            all | match letter {
                'r' => READ,
                'w' => WRITE,
                _ => MKNOD,
            }
        });
    let first = (bits << 16 | kind).cast_unsigned();
    let answer = run(
        &rules.assemble(),
        [first, major.parse().unwrap(), minor.parse().unwrap()],
    );
    assert!(answer < 2, "the kernel knows yes and no only");
    answer == 1
}

/// What a container gets that asked for nothing, and one disk to read.
fn usual() -> Value {
    json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "access": "m" },
        { "allow": true, "type": "b", "access": "m" },
        { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
        { "allow": true, "type": "c", "major": 136, "access": "rwm" },
        { "allow": true, "type": "b", "major": 254, "minor": 16, "access": "r" },
    ])
}

#[test]
fn the_last_word_on_each_kind_of_access_counts() {
    let usual = usual();
    let deny_after = json!([
        { "allow": true, "type": "a", "access": "rwm" },
        { "allow": false, "type": "b", "access": "w" },
        { "allow": false, "type": "c", "major": 1, "minor": -1, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "r" },
        { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "w" },
    ]);
    for (rules, allowed, denied) in [
        (json!([]), vec![], vec!["c 1:3 r", "b 1:1 m", "c 1:3"]),
        (
            usual,
            vec![
                "c 1:3 r",
                "c 1:3 rw",
                "c 1:3",
                "c 9:9 m",
                "b 9:9 m",
                "c 136:0 rw",
                "c 136:77 rw",
                "b 254:16 r",
                "b 254:16 m",
            ],
            vec![
                "b 1:3 r",
                "c 1:4 r",
                "c 2:3 r",
                "c 9:9 rm",
                "c 135:0 r",
                "b 254:16 w",
                "b 254:16 rw",
                "b 254:17 r",
                "c 254:16 r",
            ],
        ),
        (
            deny_after,
            vec!["b 8:0 r", "b 8:0 rm", "c 2:3 rwm", "c 1:3 rw", "c 1:3 w"],
            vec!["b 8:0 w", "b 8:0 rw", "c 1:5 r", "c 1:3 m", "c 1:3 rm"],
        ),
        (
            // What comes before a word about everything does not matter.
            json!([
                { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
                { "allow": false, "access": "rwm" },
            ]),
            vec![],
            vec!["c 1:3 r", "c 1:3"],
        ),
    ] {
        let parsed = parse(rules.clone()).unwrap();
        assert!(!parsed.allow_everything(), "{rules}");
        for asked in allowed {
            assert!(allows(&parsed, asked), "{asked} by {rules}");
        }
        for asked in denied {
            assert!(!allows(&parsed, asked), "{asked} by {rules}");
        }
    }
}

#[test]
fn everything_is_everything() {
    let (all, none) = (
        json!({ "allow": true, "access": "rwm" }),
        json!({ "allow": false, "access": "mwr", "type": "a" }),
    );
    let one = json!({ "allow": true, "type": "c", "major": 1, "access": "r" });
    let but = json!({ "allow": false, "type": "c", "major": 1, "access": "r" });
    for (rules, everything) in [
        (json!([all]), true),
        (json!([none, all]), true),
        (json!([but, all, one]), true),
        (json!([all, but]), false),
        (json!([all, none]), false),
        (json!([one]), false),
        (json!([{ "allow": true, "access": "rw" }]), false),
        (json!([]), false),
    ] {
        assert_eq!(
            parse(rules.clone()).unwrap().allow_everything(),
            everything,
            "{rules}"
        );
    }
}

#[test]
fn rules_that_mean_nothing_are_refused() {
    for bad in [
        json!({ "allow": true }),
        json!({ "allow": true, "access": "" }),
        json!({ "allow": true, "access": "rx" }),
        json!({ "allow": true, "type": "p", "access": "r" }),
        json!({ "allow": true, "major": -2, "access": "r" }),
        json!({ "allow": true, "minor": 4_294_967_296_i64, "access": "r" }),
    ] {
        assert!(
            matches!(parse(json!([bad])), Err(CgroupError::DeviceRule { .. })),
            "{bad}"
        );
    }
    let error = parse(json!([{ "allow": true, "type": "c", "major": 1, "access": "q" }])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "device rule c 1:* q: access is made of r, w and m"
    );
}

#[test]
fn a_kernel_without_programs_restricts_nobody_and_runs_only_the_unrestricted() {
    let control = DeviceControl {
        usual: parse(usual()).unwrap(),
        program: Err(Errno::INVAL),
    };
    let refused = |rules| {
        matches!(
            control.program(&rules),
            Err(CgroupError::NoDeviceControl(Errno::INVAL))
        )
    };
    assert!(control.available().is_err());
    assert!(refused(parse(usual()).unwrap()));
    assert!(refused(parse(json!([])).unwrap()));
    let all = parse(json!([{ "allow": true, "access": "rwm" }])).unwrap();
    assert!(control.program(&all).unwrap().is_none());
}

/// Opens a device in a process of the cgroup; its shell's complaint, empty when it was opened.
fn open_in(group: &Cgroup, device: &Path, redirect: &str) -> String {
    let mut shell = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "read go; LC_ALL=C; export LC_ALL; : {redirect} {}",
            device.display()
        ))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    group.attach(shell.id()).unwrap();
    // Dropped, so that it reads the end of file and goes on, now inside.
    drop(shell.stdin.take());
    let output = shell.wait_with_output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

fn node(path: &Path, kind: FileType, major: u32, minor: u32) {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device).unwrap();
}

#[test]
fn root_the_kernel_obeys() {
    let Some(real) = Real::new("devices") else { return };
    let temp = tempfile::tempdir().unwrap();
    let (null, disk, one) = (
        temp.path().join("null"),
        temp.path().join("disk"),
        temp.path().join("one"),
    );
    node(&null, FileType::CharacterDevice, 1, 3);
    if rustix::fs::openat(CWD, &null, OFlags::RDONLY, Mode::empty()).is_err() {
        return; // nodev, or a user namespace
    }
    node(&disk, FileType::BlockDevice, 254, 0);
    node(&one, FileType::BlockDevice, 254, 16);
    let rules = parse(usual()).unwrap();
    let control = DeviceControl::probe(rules.clone());
    control.available().unwrap();
    let program = control.program(&rules).unwrap().unwrap();
    let group = real.root.create(&"x".parse().unwrap()).unwrap();
    group.restrict_devices(&program).unwrap();
    // The fd is not needed any more.
    drop((program, control));

    assert_eq!(open_in(&group, &null, "<"), "");
    assert_eq!(open_in(&group, &null, "<>"), "");
    let complaint = open_in(&group, &disk, "<");
    assert!(complaint.contains("Operation not permitted"), "{complaint}");
    let complaint = open_in(&group, &one, ">");
    assert!(complaint.contains("Operation not permitted"), "{complaint}");
    // Allowed to be read, though this machine may not have it.
    let complaint = open_in(&group, &one, "<");
    assert!(!complaint.contains("not permitted"), "{complaint}");
    real.root.remove(&"x".parse().unwrap(), soon()).unwrap();
}

#[test]
fn root_the_kernel_verifies_every_shape() {
    if Real::new("probe").is_none() || DeviceProgram::load(&DeviceRules::default()).is_err() {
        return;
    }
    let mut shapes = vec![
        json!([]),
        json!([{ "allow": true, "access": "rwm" }]),
        json!([{ "allow": false, "access": "rwm" }]),
        json!([{ "allow": true, "access": "r" }, { "allow": false, "access": "w" }]),
        json!([{ "allow": false, "minor": 5, "access": "m" }, { "allow": true, "major": 5, "access": "rw" }]),
    ];
    // A directory of devices, each for some access only.
    let many = |minor| json!({ "allow": true, "type": "c", "major": 10, "minor": minor, "access": "rw" });
    shapes.push((0..500).map(many).collect());
    for shape in shapes {
        let loaded: Result<OwnedFd, Errno> =
            sys::bpf::load_cgroup_device(&parse(shape.clone()).unwrap().assemble());
        let file = File::from(loaded.unwrap_or_else(|errno| panic!("{errno} for {shape}")));
        let flags = rustix::io::fcntl_getfd(&file).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    assert_eq!(sys::bpf::load_cgroup_device(&[0; 7]).unwrap_err(), Errno::INVAL);
}
