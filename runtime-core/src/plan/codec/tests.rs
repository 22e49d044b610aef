use super::*;
use alloc::vec;

fn every_step() -> Vec<Step<'static>> {
    vec![
        Step::OomScoreAdj(-997),
        Step::Join {
            slot: 6,
            namespaces: 0x4000_0000,
        },
        Step::Clone {
            namespaces: 0x2002_0000,
            into_cgroup: true,
        },
        Step::Unshare(0x0200_0000),
        Step::NewSession,
        Step::Hostname(c"web-0"),
        Step::Sysctl {
            key: c"net/ipv4/ping_group_range",
            value: c"0 0",
        },
        Step::RootOverlay(Layers {
            base: c"/store/layers",
            lowers: vec![c"2", c"1"],
            writable: Some((c"/u", c"/w")),
            context: c"u:r:t:s0:c1,c2",
        }),
        Step::MountNew {
            fstype: c"tmpfs",
            target: c"/dev",
            options: vec![(c"mode", c"755")],
            attrs: 2,
            context: c"u:r:t:s0",
        },
        Step::MountNest {
            source: c"/shm",
            target: c"/dev/shm",
            kind: FileKind::Directory,
            attrs: 14,
        },
        Step::MountSlot {
            slot: 12,
            target: c"/etc/hosts",
            kind: FileKind::File,
            attrs: 1,
            recursive: true,
            propagation: 1 << 18,
        },
        Step::HostTree {
            slot: 20,
            root: c"/var/lib/podd/pods/p/containers/c/rootfs",
        },
        Step::Hook(Hook {
            name: c"createContainer",
            path: c"/usr/bin/hook",
            argv: vec![c"hook", c"update"],
            env: vec![c"A=b"],
            state: b"{}",
            timeout_ms: 5000,
            root: HookRoot::Host,
            filter: &[6, 0, 0, 0, 0, 0, 255, 127],
            filter_flags: 4,
        }),
        Step::MakeClone {
            slot: 13,
            source: c"/shm",
        },
        Step::MakeNew {
            slot: 14,
            fstype: c"tmpfs",
            options: vec![(c"uid", c"65536")],
            attrs: 2,
            context: c"",
            nodes: vec![Device {
                path: c"/null",
                mode: 0o20666,
                major: 1,
                minor: 3,
                uid: 65536,
                gid: 65536,
            }],
        },
        Step::MakeLayers {
            slot: 15,
            layers: Layers {
                base: c"/store/layers",
                lowers: vec![c"2", c"1"],
                writable: Some((c"/u", c"/w")),
                context: c"",
            },
            idmap: true,
            sub_path: c"",
        },
        Step::MakeLayers {
            slot: 16,
            layers: Layers {
                base: c"/store/layers",
                lowers: vec![c"1"],
                writable: None,
                context: c"",
            },
            idmap: false,
            sub_path: c"etc/passwd",
        },
        Step::MapIds(12),
        Step::MountLayers {
            slot: 16,
            target: c"/image",
            attrs: 1,
        },
        Step::RootSlot(15),
        Step::OwnStdio { uid: 7, gid: 8 },
        Step::Chown {
            path: c"/shm",
            uid: 7,
            gid: 8,
        },
        Step::Relabel {
            path: c"/shm",
            context: c"u:r:t:s0",
        },
        Step::RootOfNamespace,
        Step::Mknod(Device {
            path: c"/dev/null",
            mode: 0o20666,
            major: 1,
            minor: 3,
            uid: 0,
            gid: 0,
        }),
        Step::Symlink {
            path: c"/dev/fd",
            target: c"/proc/self/fd",
        },
        Step::Console(TerminalSize {
            rows: 24,
            columns: 80,
        }),
        Step::Mask {
            path: c"/proc/kcore",
            context: c"",
        },
        Step::ReadOnly(c"/proc/sys"),
        Step::PivotRoot,
        Step::RootReadOnly,
        Step::Rlimit {
            resource: 7,
            soft: 1024,
            hard: 524_288,
        },
        Step::WorkDir {
            path: c"/",
            create: true,
        },
        Step::OwnDirectory(c"/data"),
        Step::Identity {
            user: UserRef::Name(c"www-data"),
            group: UserRef::Id(33),
            groups: vec![1, 2],
            policy: GroupsPolicy::Strict,
        },
        Step::AppArmor(c"podd-default"),
        Step::Selinux {
            file: c"/proc/thread-self/attr/exec",
            context: c"u:r:t:s0",
        },
        Step::FindProgram {
            name: c"sh",
            path: c"/bin:/usr/bin",
        },
        Step::Become(Caps {
            bounding: 1,
            permitted: 2,
            inheritable: 3,
            ambient: 4,
        }),
        Step::NoNewPrivileges,
        Step::Gate,
        Step::Seccomp {
            program: b"12345678",
            flags: 1,
        },
        Step::Exec {
            argv: vec![c"sh", c"-c"],
            env: vec![c"A=1"],
        },
        Step::Hold { filter: b"filter.." },
    ]
}

#[test]
fn a_plan_decodes_to_what_was_encoded() {
    let steps = every_step();
    let mut buf = PlanBuf::new();
    steps.iter().for_each(|step| buf.push(step));
    let bytes = buf.finish();
    assert_eq!(Plan::decode(&bytes), Ok(Plan { steps }));
}

#[test]
fn no_cut_plan_decodes_whole() {
    let mut buf = PlanBuf::new();
    every_step().iter().for_each(|step| buf.push(step));
    let bytes = buf.finish();
    let whole = every_step().len();
    for end in 0..bytes.len() {
        let cut = Plan::decode(&bytes[..end]).map_or(0, |plan| plan.steps.len());
        assert!(cut < whole, "cut at {end}");
    }
}

#[test]
fn foreign_bytes_are_refused_by_name() {
    assert_eq!(Plan::decode(b"PODDPLN0"), Err(DecodeError::Magic));
    let unknown = [MAGIC.as_slice(), &[0xff, 0x7f, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(Plan::decode(&unknown), Err(DecodeError::Unknown(0x7fff)));
    let string_without_nul = [
        MAGIC.as_slice(),
        &[15, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, b'a', b'b'],
    ]
    .concat();
    assert_eq!(Plan::decode(&string_without_nul), Err(DecodeError::String));
}
