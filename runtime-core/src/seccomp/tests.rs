//! Filters, run: the default profile's decisions, OCI profiles, and random profiles against a plain reading of them.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompOperator};
use serde_json::{Value, json};

use super::compile::SeccompError;
use super::syscalls::{Abi, number};
use super::vm::{Call, run};
use super::*;
use crate::compile::CapSet;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ENOSYS: u32 = 38;

fn errno(number: u32) -> u32 {
    0x0005_0000 | number
}

fn default_for(caps: &[&str]) -> Filter {
    let caps = caps
        .iter()
        .map(|cap| cap.parse().unwrap())
        .fold(CapSet::DEFAULT, CapSet::union);
    compile(&default_profile(caps, KernelVersion::new(6, 1))).unwrap()
}

fn profile(json: Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

/// The answer to a call by name on x86_64.
fn ask(filter: &Filter, name: &str, args: &[u64]) -> u32 {
    ask_number(filter, X86_64, number(name, Abi::X86_64).unwrap(), args)
}

fn ask_number(filter: &Filter, arch: u32, number: u32, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(
        filter.program(),
        &Call {
            number,
            arch,
            args: all,
        },
    )
    .0
}

#[test]
fn the_default_profile_allows_what_programs_need_and_nothing_else() {
    let filter = default_for(&[]);
    assert_eq!(filter.ignored(), [""; 0]);
    for name in [
        "read",
        "execve",
        "exit_group",
        "openat",
        "mmap",
        "futex",
        "setuid",
        "ptrace",
        "chroot",
        "seccomp",
    ] {
        assert_eq!(ask(&filter, name, &[]), ALLOW, "{name}");
    }
    for name in [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "request_key",
        "kexec_load",
        "reboot",
        "init_module",
        "swapon",
        "pivot_root",
        "userfaultfd",
        "perf_event_open",
        "open_by_handle_at",
        "acct",
        "io_uring_setup",
        "move_mount",
        "fsopen",
        "settimeofday",
        "iopl",
        "vhangup",
        "kcmp",
        "pidfd_getfd",
    ] {
        assert_eq!(ask(&filter, name, &[]), errno(1), "{name}");
    }
}

#[test]
fn who_waits_can_only_wait() {
    let program = waiting().unwrap();
    let ask = |arch, number| {
        let args = [0; 6];
        run(program, &Call { number, arch, args }).0
    };
    let of = |name| number(name, Abi::X86_64).unwrap();
    for name in ["wait4", "rt_sigtimedwait", "exit_group"] {
        assert_eq!(ask(X86_64, of(name)), ALLOW, "{name}");
    }
    for name in [
        "execve", "read", "write", "openat", "socket", "mmap", "kill", "setns",
    ] {
        assert!(
            [errno(1), errno(ENOSYS)].contains(&ask(X86_64, of(name))),
            "{name}"
        );
    }
    assert_ne!(ask(I386, 7), ALLOW);
}

#[test]
fn capabilities_open_the_calls_that_need_them() {
    for (cap, calls) in [
        (
            "SYS_ADMIN",
            &["mount", "clone3", "setns", "bpf", "unshare", "fsopen"][..],
        ),
        ("SYS_BOOT", &["reboot"]),
        ("SYS_MODULE", &["init_module", "finit_module", "delete_module"]),
        ("SYS_PTRACE", &["kcmp", "pidfd_getfd"]),
        ("SYS_TIME", &["settimeofday", "clock_settime"]),
        ("SYS_NICE", &["mbind", "set_mempolicy"]),
        ("DAC_READ_SEARCH", &["open_by_handle_at"]),
        ("BPF", &["bpf"]),
        ("SYSLOG", &["syslog"]),
    ] {
        for call in calls {
            assert_ne!(ask(&default_for(&[]), call, &[]), ALLOW, "{call}");
            assert_eq!(ask(&default_for(&[cap]), call, &[]), ALLOW, "{cap} {call}");
        }
    }
    let none = compile(&default_profile(CapSet::EMPTY, KernelVersion::new(6, 1))).unwrap();
    assert_eq!(ask(&none, "chroot", &[]), errno(1));
    let old = compile(&default_profile(CapSet::DEFAULT, KernelVersion::new(4, 7))).unwrap();
    assert_eq!(ask(&old, "ptrace", &[]), errno(1));
}

#[test]
fn namespaces_cannot_be_cloned_without_sys_admin() {
    let filter = default_for(&[]);
    let (thread, new_user, new_net) = (0x003d_0f00, 0x1000_0000, 0x4000_0000);
    assert_eq!(ask(&filter, "clone", &[thread]), ALLOW);
    for flags in [
        new_user,
        new_net,
        thread | 0x0002_0000,
        0xffff_ffff_0000_0000 | new_user,
    ] {
        assert_eq!(ask(&filter, "clone", &[flags]), errno(1), "{flags:#x}");
    }
    assert_eq!(ask(&filter, "clone3", &[]), errno(ENOSYS));
    assert_eq!(ask(&default_for(&["SYS_ADMIN"]), "clone", &[new_user]), ALLOW);
}

#[test]
fn socket_families_and_personalities_are_chosen() {
    let filter = default_for(&[]);
    for family in [1, 2, 10, 16, 17, 37, 39, 41, 45] {
        assert_eq!(ask(&filter, "socket", &[family]), ALLOW, "{family}");
    }
    // The kernel takes the low 32 bits: set high bits must not hide AF_VSOCK or AF_ALG.
    for family in [38, 40, 46, 0x1_0000_0028, 0x1_0000_0026, u64::MAX] {
        assert_eq!(ask(&filter, "socket", &[family]), errno(1), "{family:#x}");
    }
    for (persona, allowed) in [
        (0, true),
        (8, true),
        (0xffff_ffff, true),
        (0x0040_0000, false),
        (u64::MAX, false),
    ] {
        assert_eq!(
            ask(&filter, "personality", &[persona]) == ALLOW,
            allowed,
            "{persona:#x}"
        );
    }
}

#[test]
fn other_ways_into_the_kernel_are_closed() {
    let filter = default_for(&[]);
    assert_eq!(ask_number(&filter, I386, 3, &[]), ALLOW, "read");
    assert_eq!(ask_number(&filter, I386, 21, &[]), errno(1), "mount");
    assert_eq!(ask_number(&filter, I386, 120, &[0x1000_0000]), errno(1), "clone");
    assert_eq!(ask_number(&filter, I386, 359, &[40]), errno(1), "socket");
    assert_eq!(ask_number(&filter, I386, 0x7fff_ffff, &[]), errno(ENOSYS));
    // x32: the numbers of x86_64 with a bit set.
    assert_eq!(ask_number(&filter, X86_64, 0x4000_0000, &[]), errno(ENOSYS));
    assert_eq!(ask_number(&filter, X86_64, 0x4000_0000 | 165, &[]), errno(ENOSYS));
    assert_eq!(ask_number(&filter, X86_64, u32::MAX, &[]), errno(ENOSYS));
    // Arm.
    assert_eq!(ask_number(&filter, 0xc000_00b7, 0, &[]), KILL_PROCESS);
    // Newer than the profile.
    assert_eq!(ask_number(&filter, X86_64, 467, &[]), errno(ENOSYS));
    assert_eq!(ask_number(&filter, X86_64, 0x3fff_ffff, &[]), errno(ENOSYS));

    let one_arch = compile(&profile(json!({ "defaultAction": "SCMP_ACT_ALLOW" }))).unwrap();
    assert_eq!(ask_number(&one_arch, X86_64, 1, &[]), ALLOW);
    assert_eq!(ask_number(&one_arch, I386, 1, &[]), KILL_PROCESS);
    assert_eq!(ask_number(&one_arch, X86_64, 0x4000_0001, &[]), errno(ENOSYS));
}

#[test]
fn the_default_filter_is_short_and_quick() {
    let filter = default_for(&[]);
    let length = filter.program().len() / 8;
    assert!(length < 512, "{length} instructions");
    let steps = |name| {
        let call = Call {
            number: number(name, Abi::X86_64).unwrap(),
            arch: X86_64,
            args: [0; 6],
        };
        run(filter.program(), &call).1
    };
    for name in ["read", "futex", "openat", "clone", "socket"] {
        assert!(steps(name) <= 24, "{name}: {}", steps(name));
    }
}

#[test]
fn every_operator_compares_64_bits() {
    let big = 0x1_0000_0005u64;
    let op = |op: &str, value: u64, two: u64| {
        compile(&profile(json!({
            "defaultAction": "SCMP_ACT_KILL",
            "syscalls": [{ "names": ["dup3"], "action": "SCMP_ACT_ALLOW",
                           "args": [{ "index": 2, "value": value, "valueTwo": two, "op": op }] }]
        })))
        .unwrap()
    };
    let values = [
        0,
        4,
        5,
        6,
        0xffff_ffff,
        0x1_0000_0004,
        big,
        0x1_0000_0006,
        0x2_0000_0000,
        u64::MAX,
    ];
    for argument in values {
        for value in values {
            for (name, expected) in [
                ("SCMP_CMP_EQ", argument == value),
                ("SCMP_CMP_NE", argument != value),
                ("SCMP_CMP_LT", argument < value),
                ("SCMP_CMP_LE", argument <= value),
                ("SCMP_CMP_GT", argument > value),
                ("SCMP_CMP_GE", argument >= value),
                ("SCMP_CMP_MASKED_EQ", argument & value == 5),
            ] {
                let filter = op(name, value, 5);
                assert_eq!(
                    ask(&filter, "dup3", &[0, 0, argument]) == ALLOW,
                    expected,
                    "{argument:#x} {name} {value:#x}"
                );
            }
        }
    }
}

#[test]
fn rules_combine_as_profiles_expect() {
    let arg = |index: usize, value: u64| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    let filter = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "syscalls": [
            { "names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [arg(0, 1), arg(1, 9)] },
            { "names": ["kill"], "action": "SCMP_ACT_TRAP", "args": [arg(0, 2)] },
            { "names": ["tkill"], "action": "SCMP_ACT_ALLOW", "args": [arg(0, 1), arg(0, 2)] },
            { "names": ["pause"], "action": "SCMP_ACT_LOG" },
            { "names": ["pause"], "action": "SCMP_ACT_KILL_PROCESS", "args": [arg(0, 1)] },
            { "names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 },
            { "names": ["gettid", "no_such_call"], "action": "SCMP_ACT_TRACE", "errnoRet": 7 }
        ]
    })))
    .unwrap();
    assert_eq!(ask(&filter, "kill", &[1, 9]), ALLOW);
    assert_eq!(ask(&filter, "kill", &[1, 8]), errno(13));
    assert_eq!(ask(&filter, "kill", &[2, 9]), 0x0003_0000);
    assert_eq!(ask(&filter, "tkill", &[1]), ALLOW);
    assert_eq!(ask(&filter, "tkill", &[2]), ALLOW);
    assert_eq!(ask(&filter, "tkill", &[3]), errno(13));
    assert_eq!(ask(&filter, "pause", &[1]), 0x7ffc_0000);
    assert_eq!(ask(&filter, "getpid", &[]), errno(13));
    assert_eq!(ask(&filter, "gettid", &[]), 0x7ff0_0007);
    assert_eq!(filter.ignored(), ["no_such_call"]);
    // What allows by default also allows what is new.
    let open = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_LOG", "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_KILL" }]
    })));
    assert_eq!(ask_number(&open.unwrap(), X86_64, 500, &[]), 0x7ffc_0000);
}

#[test]
fn flags_are_passed_and_the_impossible_is_refused() {
    let with = |extra: Value| {
        let mut json = json!({ "defaultAction": "SCMP_ACT_ERRNO" });
        json.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        compile(&profile(json))
    };
    let flags = json!({ "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"] });
    assert_eq!(with(flags).unwrap().flags(), 6);
    let call = |rest: Value| json!({ "syscalls": [rest] });
    for (bad, error) in [
        (
            json!({ "listenerPath": "/run/x" }),
            SeccompError::Unsupported("a seccomp listener"),
        ),
        (
            call(json!({ "names": ["read"], "action": "SCMP_ACT_NOTIFY" })),
            SeccompError::Unsupported("SCMP_ACT_NOTIFY"),
        ),
        (
            call(json!({ "names": ["read"], "action": "SCMP_ACT_ALLOW",
                         "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] })),
            SeccompError::Argument(6),
        ),
        (json!({ "defaultErrnoRet": 5000 }), SeccompError::Errno(5000)),
    ] {
        assert_eq!(with(bad).unwrap_err(), error);
    }
    // Each of these conditions costs several instructions.
    let many: Vec<Value> = (0..2000)
        .map(|value| {
            json!({ "names": ["read"], "action": "SCMP_ACT_ALLOW",
                    "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }] })
        })
        .collect();
    assert!(matches!(
        with(json!({ "syscalls": many })),
        Err(SeccompError::TooLong(_))
    ));
}

/// A generator of numbers that needs no crate (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

const NAMES: [&str; 12] = [
    "read", "write", "open", "close", "mmap", "clone", "socket", "execve", "kill", "mount", "openat2",
    "mseal",
];
const ACTIONS: [(&str, u32); 4] = [
    ("SCMP_ACT_ALLOW", ALLOW),
    ("SCMP_ACT_ERRNO", 0x0005_0001),
    ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS),
    ("SCMP_ACT_LOG", 0x7ffc_0000),
];
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];
const VALUES: [u64; 6] = [0, 1, 7, 0xffff_ffff, 0x1_0000_0001, u64::MAX];

fn random_profile(random: &mut Numbers) -> LinuxSeccomp {
    let rules: Vec<Value> = (0..random.below(200))
        .map(|_| {
            let mut args: Vec<Value> = Vec::new();
            for index in 0..random.of(&[0, 1, 1, 2, 2, 2, 3, 3, 3, 1, 2, 3, 3, 2, 2, 1]) {
                let (value, two, op) = (random.of(&VALUES), random.of(&VALUES), random.of(&OPERATORS));
                args.push(json!({ "index": index, "value": value, "valueTwo": two, "op": op }));
            }
            json!({ "names": [random.of(&NAMES)], "action": random.of(&ACTIONS).0, "args": args })
        })
        .collect();
    profile(json!({
        "defaultAction": random.of(&ACTIONS).0, "architectures": ["SCMP_ARCH_X86"], "syscalls": rules
    }))
}

/// The answer of a profile, read plainly.
fn expected(profile: &LinuxSeccomp, name: &str, args: &[u64; 6]) -> u32 {
    let default = u32::from(profile.default_action());
    let mut first = None;
    for rule in profile
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.names()[0] == name)
    {
        let action = u32::from(rule.action());
        let conditions = rule.args().as_deref().unwrap_or_default();
        if action == default {
            continue;
        }
        if conditions.is_empty() {
            return action;
        }
        let holds = conditions.iter().all(|condition| {
            let (argument, value) = (args[condition.index()], condition.value());
            match condition.op() {
                LinuxSeccompOperator::ScmpCmpNe => argument != value,
                LinuxSeccompOperator::ScmpCmpLt => argument < value,
                LinuxSeccompOperator::ScmpCmpLe => argument <= value,
                LinuxSeccompOperator::ScmpCmpEq => argument == value,
                LinuxSeccompOperator::ScmpCmpGe => argument >= value,
                LinuxSeccompOperator::ScmpCmpGt => argument > value,
                LinuxSeccompOperator::ScmpCmpMaskedEq => argument & value == condition.value_two().unwrap(),
            }
        });
        if holds {
            first = first.or(Some(action));
        }
    }
    first.unwrap_or(default)
}

#[test]
fn random_profiles_decide_as_they_read() {
    let mut random = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut longest = 0;
    for _ in 0..300 {
        let profile = random_profile(&mut random);
        let filter = compile(&profile).unwrap();
        longest = longest.max(filter.program().len() / 8);
        for _ in 0..60 {
            let name = random.of(&NAMES);
            let args = [(); 6].map(|()| random.of(&VALUES));
            let answer = expected(&profile, name, &args);
            for (arch, abi) in [(X86_64, Abi::X86_64), (I386, Abi::I386)] {
                let call = number(name, abi).unwrap();
                // A number above all that are mentioned is another test's.
                let highest = profile
                    .syscalls()
                    .iter()
                    .flatten()
                    .filter_map(|r| number(&r.names()[0], abi))
                    .max();
                if Some(call) <= highest {
                    assert_eq!(
                        ask_number(&filter, arch, call, &args),
                        answer,
                        "{name} {args:x?}\n{profile:?}"
                    );
                }
            }
        }
    }
    // Otherwise no jump was too long for a conditional one, and the test shows less than it should.
    assert!(longest > 600, "{longest}");
}
