//! OCI seccomp profiles to filters.
//!
//! Layout of a filter: check of the architecture; for x86_64 and, where the profile lists it, for 32-bit x86 a
//! binary search over ranges of numbers with the same answer; at its leaves an answer, or tests of arguments.
//! Answers that do not depend on arguments cost nothing at run time: since Linux 5.11 the kernel runs the filter
//! once per number when it is installed and keeps those that allow.
//!
//! Rules where OCI leaves room follow runc and libseccomp, as profiles are written for them:
//! * names that no architecture has are left out (and listed in [`Filter::ignored`]);
//! * an unconditional rule for a call outweighs conditional ones; of several conditional ones the first that
//!   matches counts; two conditions on one argument are alternatives;
//! * numbers above all that the profile mentions get ENOSYS where the default denies, so that programs fall back
//!   from calls that are newer than the profile instead of giving up.
//!
//! x32 calls are always answered ENOSYS, as by a kernel built without x32 (Debian's): nothing is compiled for it,
//! and a second set of numbers is how filters are walked around.

use std::collections::BTreeMap;

use linux_raw_sys::errno::{ENOSYS, EPERM};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};
use thiserror::Error;

use super::bpf::{self, Emitter, Label};
use super::syscalls::{Abi, known, number};

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;
/// `AUDIT_ARCH_*` of linux/audit.h.
const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_I386: u32 = 0x4000_0003;
/// `__X32_SYSCALL_BIT` of asm/unistd.h.
const X32_BIT: u32 = 0x4000_0000;
/// `SECCOMP_RET_*` of linux/seccomp.h.
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
/// Arguments of a system call.
const ARGS_MAX: usize = 6;
/// `MAX_ERRNO` of linux/err.h.
const ERRNO_MAX: u32 = 4095;

/// Why a profile does not compile.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SeccompError {
    /// The profile asks for something that podd does not do.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// A system call has no such argument.
    #[error("system calls have no argument {0}")]
    Argument(usize),
    /// No error has this number.
    #[error("{0} is not an error number")]
    Errno(u32),
    /// The kernel takes 4096 instructions.
    #[error("the profile needs {0} instructions, the kernel takes 4096")]
    TooLong(usize),
}

/// A compiled filter: what seccomp(2) takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    program: Vec<u8>,
    flags: u32,
    ignored: Vec<String>,
}

impl Filter {
    /// An array of `struct sock_filter`.
    #[must_use]
    pub fn program(&self) -> &[u8] {
        &self.program
    }

    /// `SECCOMP_FILTER_FLAG_*`.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// Names of the profile that no architecture of this machine has: newer than this podd, foreign, or misspelt.
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

/// Compiles a profile.
///
/// # Errors
/// The profile asks for something that the kernel or podd cannot do.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    if profile.listener_path().is_some() {
        return Err(SeccompError::Unsupported("a seccomp listener"));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut emitter = Emitter::default();
    let wrong = emitter.returns(RET_KILL_PROCESS);
    let mut other = wrong;
    if profile
        .architectures()
        .iter()
        .flatten()
        .any(|arch| *arch == Arch::ScmpArchX86)
    {
        let i386 = Calls::of(profile, Abi::I386, default)?.emit(&mut emitter, Abi::I386);
        other = emitter.branch(bpf::EQUAL, ARCH_I386, i386, wrong);
    }
    let x86_64 = Calls::of(profile, Abi::X86_64, default)?.emit(&mut emitter, Abi::X86_64);
    let arch = emitter.branch(bpf::EQUAL, ARCH_X86_64, x86_64, other);
    let entry = emitter.load(ARCH, arch);
    let program = emitter.finish(entry);
    if program.len() > bpf::PROGRAM_MAX {
        return Err(SeccompError::TooLong(program.len()));
    }
    let names = profile.syscalls().iter().flatten().flat_map(LinuxSyscall::names);
    Ok(Filter {
        program: bpf::encode(&program),
        flags: flags(profile)?,
        ignored: names.filter(|name| !known(name)).cloned().collect(),
    })
}

/// `SECCOMP_RET_*` with its data.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    match (action, errno) {
        (LinuxSeccompAction::ScmpActNotify, _) => Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY")),
        (LinuxSeccompAction::ScmpActErrno, None) => Ok(RET_ERRNO | EPERM),
        (LinuxSeccompAction::ScmpActErrno, Some(errno)) if errno > ERRNO_MAX => {
            Err(SeccompError::Errno(errno))
        }
        (LinuxSeccompAction::ScmpActTrace, Some(data)) if data > 0xffff => Err(SeccompError::Errno(data)),
        (action, errno) => Ok(action.as_u32(errno)),
    }
}

fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    profile.flags().iter().flatten().try_fold(0, |flags, flag| {
        Ok(flags
            | match flag {
                // A stage has one thread; what this flag means holds without it.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(SeccompError::Unsupported(
                        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                    ));
                }
            })
    })
}

/// What is answered to one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Always(u32),
    /// The first rule whose conditions all hold, else the default.
    ByArguments(Vec<Rule>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    conditions: Vec<LinuxSeccompArg>,
    action: u32,
}

/// The profile as one architecture sees it.
struct Calls {
    answers: BTreeMap<u32, Answer>,
    default: u32,
    /// The highest number that the profile mentions, also where it says what the default says.
    highest: Option<u32>,
}

impl Calls {
    fn of(profile: &LinuxSeccomp, abi: Abi, default: u32) -> Result<Self, SeccompError> {
        let mut calls = Self {
            answers: BTreeMap::new(),
            default,
            highest: None,
        };
        for syscall in profile.syscalls().iter().flatten() {
            let action = action(syscall.action(), syscall.errno_ret())?;
            let rules = rules(syscall, action)?;
            for number in syscall.names().iter().filter_map(|name| number(name, abi)) {
                calls.highest = calls.highest.max(Some(number));
                if action != default {
                    calls.add(number, &rules, action);
                }
            }
        }
        Ok(calls)
    }

    fn add(&mut self, number: u32, rules: &[Rule], action: u32) {
        let answer = self
            .answers
            .entry(number)
            .or_insert_with(|| Answer::ByArguments(Vec::new()));
        match answer {
            Answer::Always(_) => {}
            _ if rules.is_empty() => *answer = Answer::Always(action),
            Answer::ByArguments(known) => known.extend_from_slice(rules),
        }
    }

    /// What numbers get that are newer than the profile.
    fn beyond(&self) -> u32 {
        // Allow, log and trace are the answers from SECCOMP_RET_TRACE up, but for the killing of processes.
        let denies = self.default & 0x7fff_0000 < 0x7ff0_0000;
        if denies { RET_ERRNO | ENOSYS } else { self.default }
    }

    /// Ranges of numbers with the same answer, by their first number.
    fn ranges(&self, abi: Abi) -> Vec<(u32, Answer)> {
        let mut ranges: Vec<(u32, Answer)> = Vec::new();
        let mut next = 0;
        let mut push = |start, answer: Answer| match ranges.last() {
            Some((_, last)) if *last == answer && matches!(answer, Answer::Always(_)) => {}
            _ => ranges.push((start, answer)),
        };
        for (&number, answer) in &self.answers {
            if number > next {
                push(next, Answer::Always(self.default));
            }
            push(number, answer.clone());
            next = number + 1;
        }
        let end = self.highest.map_or(0, |highest| highest + 1);
        if next < end {
            push(next, Answer::Always(self.default));
        }
        push(
            end,
            Answer::Always(if end == 0 { self.default } else { self.beyond() }),
        );
        if abi == Abi::X86_64 {
            push(X32_BIT, Answer::Always(RET_ERRNO | ENOSYS));
        }
        ranges
    }

    fn emit(&self, emitter: &mut Emitter, abi: Abi) -> Label {
        let search = self.search(emitter, &self.ranges(abi));
        emitter.load(NUMBER, search)
    }

    /// A binary search over ranges, of which there is at least one.
    fn search(&self, emitter: &mut Emitter, ranges: &[(u32, Answer)]) -> Label {
        match ranges {
            [] => emitter.returns(self.default),
            [(_, Answer::Always(action))] => emitter.returns(*action),
            [(_, Answer::ByArguments(rules))] => self.arguments(emitter, rules),
            _ => {
                let (below, above) = ranges.split_at(ranges.len() / 2);
                let first = above.first().map_or(0, |(start, _)| *start);
                let above = self.search(emitter, above);
                let below = self.search(emitter, below);
                emitter.branch(bpf::AT_LEAST, first, above, below)
            }
        }
    }

    fn arguments(&self, emitter: &mut Emitter, rules: &[Rule]) -> Label {
        let mut next = emitter.returns(self.default);
        for rule in rules.iter().rev() {
            let matched = emitter.returns(rule.action);
            let test = |then, condition: &LinuxSeccompArg| emit_condition(emitter, condition, then, next);
            next = rule.conditions.iter().rev().fold(matched, test);
        }
        next
    }
}

/// The rules that one entry of a profile stands for; none when it has no conditions.
fn rules(syscall: &LinuxSyscall, action: u32) -> Result<Vec<Rule>, SeccompError> {
    let conditions = syscall.args().as_deref().unwrap_or_default();
    let mut used = [false; ARGS_MAX];
    let mut twice = false;
    for condition in conditions {
        let slot = used
            .get_mut(condition.index())
            .ok_or_else(|| SeccompError::Argument(condition.index()))?;
        twice |= std::mem::replace(slot, true);
    }
    Ok(match conditions {
        [] => Vec::new(),
        all if twice => all
            .iter()
            .map(|one| Rule {
                conditions: vec![*one],
                action,
            })
            .collect(),
        all => vec![Rule {
            conditions: all.to_vec(),
            action,
        }],
    })
}

/// Tests one argument, 64 bits in two halves.
fn emit_condition(
    emitter: &mut Emitter,
    condition: &LinuxSeccompArg,
    then: Label,
    otherwise: Label,
) -> Label {
    let index = u32::try_from(condition.index()).unwrap_or(0);
    let low = ARGS + 8 * index;
    let argument = Argument {
        low,
        high: low + 4,
        then,
        otherwise,
    };
    let value = condition.value();
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpEq => argument.equal(emitter, u64::MAX, value),
        LinuxSeccompOperator::ScmpCmpNe => argument.not().equal(emitter, u64::MAX, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            argument.equal(emitter, value, condition.value_two().unwrap_or(0))
        }
        LinuxSeccompOperator::ScmpCmpGt => argument.above(emitter, bpf::GREATER, value),
        LinuxSeccompOperator::ScmpCmpGe => argument.above(emitter, bpf::AT_LEAST, value),
        LinuxSeccompOperator::ScmpCmpLe => argument.not().above(emitter, bpf::GREATER, value),
        LinuxSeccompOperator::ScmpCmpLt => argument.not().above(emitter, bpf::AT_LEAST, value),
    }
}

/// Where the halves of an argument are and where its tests lead.
#[derive(Clone, Copy)]
struct Argument {
    low: u32,
    high: u32,
    then: Label,
    otherwise: Label,
}

impl Argument {
    fn not(self) -> Self {
        Self {
            then: self.otherwise,
            otherwise: self.then,
            ..self
        }
    }

    /// `argument & mask == value`.
    fn equal(self, emitter: &mut Emitter, mask: u64, value: u64) -> Label {
        let (mask_high, mask_low) = halves(mask);
        let (value_high, value_low) = halves(value);
        let low = self.half_equal(emitter, self.low, mask_low, value_low, self.then);
        self.half_equal(emitter, self.high, mask_high, value_high, low)
    }

    fn half_equal(self, emitter: &mut Emitter, offset: u32, mask: u32, value: u32, then: Label) -> Label {
        match (mask, value) {
            (0, 0) => then,
            (0, _) => self.otherwise,
            _ => {
                let test = emitter.branch(bpf::EQUAL, value, then, self.otherwise);
                let masked = if mask == u32::MAX {
                    test
                } else {
                    emitter.mask(mask, test)
                };
                emitter.load(offset, masked)
            }
        }
    }

    /// `argument > value`, or `>=` by the test of the low half.
    fn above(self, emitter: &mut Emitter, test: u16, value: u64) -> Label {
        let (high, low) = halves(value);
        let low = emitter.branch(test, low, self.then, self.otherwise);
        let low = emitter.load(self.low, low);
        let equal = emitter.branch(bpf::EQUAL, high, low, self.otherwise);
        let greater = emitter.branch(bpf::GREATER, high, self.then, equal);
        emitter.load(self.high, greater)
    }
}

/// High and low half.
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}
