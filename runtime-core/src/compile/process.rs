//! The end that container and exec plans share: from limits to `execve`.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::path::PathBuf;

use oci_spec::runtime::{PosixRlimitType, Process, Spec};

use super::text::{borrow, path, text, texts};
use super::{CapSet, CompileError, HookInputs, Identity, ProcessInputs, Who, hooks};
use crate::plan::{Caps, GroupsPolicy, PlanBuf, Step, UserRef};
use crate::seccomp::{self, Filter};

/// Search path of a process whose environment has none, as Docker and containerd set it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How one process differs from the spec's, and whether it waits at the start gate.
pub(super) struct Variant<'a> {
    /// argv.
    pub args: &'a [String],
    /// Directories to make where there are none.
    pub directories: &'a [PathBuf],
    /// Create a missing working directory.
    pub create_cwd: bool,
    /// Make the root mount read-only.
    pub read_only_root: bool,
    /// Wait between confinement and `execve`.
    pub gate: bool,
    /// What the hooks between the two need.
    pub hooks: Option<&'a HookInputs>,
    /// Set the resource limits; else that was done before.
    pub limits: bool,
}

/// The spec's process, which no plan can do without.
pub(super) fn of(spec: &Spec) -> Result<&Process, CompileError> {
    spec.process().as_ref().ok_or(CompileError::Missing("process"))
}

/// Appends the oom score, which is written while still privileged and outside of the container.
pub(super) fn oom_score(plan: &mut PlanBuf, process: &Process) -> Result<(), CompileError> {
    let Some(score) = process.oom_score_adj() else {
        return Ok(());
    };
    if !(-1000..=1000).contains(&score) {
        return Err(CompileError::Range {
            what: "oom_score_adj",
            value: score.into(),
        });
    }
    plan.push(&Step::OomScoreAdj(score));
    Ok(())
}

/// Appends everything from limits to `execve`.
pub(super) fn finish(
    plan: &mut PlanBuf,
    spec: &Spec,
    inputs: &ProcessInputs,
    variant: &Variant<'_>,
) -> Result<(), CompileError> {
    let process = of(spec)?;
    if variant.limits {
        rlimits(plan, process);
    }
    identity(plan, process, inputs)?;
    for directory in variant.directories {
        plan.push(&Step::OwnDirectory(&path("directory", directory)?));
    }

    let cwd = path("working directory", process.cwd())?;
    plan.push(&Step::WorkDir {
        path: &cwd,
        create: variant.create_cwd,
    });
    if variant.read_only_root {
        // Not before: directories that are missing have to be made.
        plan.push(&Step::RootReadOnly);
    }

    let env = environment(process, inputs)?;
    let argv = texts("argument", variant.args)?;
    let program = argv
        .first()
        .filter(|name| !name.is_empty())
        .ok_or(CompileError::Missing("command"))?;
    let default_path = text("search path", DEFAULT_PATH)?;
    let search = env.iter().find_map(|var| path_of(var)).unwrap_or(&default_path);

    if process.no_new_privileges() == Some(true) {
        plan.push(&Step::NoNewPrivileges);
    }
    plan.push(&Step::Become(capabilities(process, inputs.host_caps)));
    let filter = filter(spec, inputs)?;
    if variant.gate {
        plan.push(&Step::Gate);
    }
    // Behind the gate, where it fails the start: a container that cannot run is one that has ended, which is what restart
    // policies go by.
    plan.push(&Step::FindProgram {
        name: program,
        path: search,
    });
    if variant.gate {
        hooks::before_exec(plan, spec, variant.hooks, filter.as_deref())?;
    }
    if let Some(filter) = filter {
        plan.push(&Step::Seccomp {
            program: filter.program(),
            flags: filter.flags(),
        });
    }
    plan.push(&Step::Exec {
        argv: borrow(&argv),
        env: borrow(&env),
    });
    Ok(())
}

/// Appends the AppArmor label of the program to come. Before anything of the container is near: the file that it is
/// written to is that of the nest's own procfs, which no mount of the container can be in the place of
/// (CVE-2019-16884, CVE-2025-52881), and the process that is cloned has it too.
pub(super) fn apparmor(plan: &mut PlanBuf, process: &Process) -> Result<(), CompileError> {
    let label = process.apparmor_profile().as_deref();
    if let Some(label) = label.filter(|label| !label.is_empty()) {
        plan.push(&Step::AppArmor(&text("AppArmor profile", label)?));
    }
    Ok(())
}

/// What an SELinux context is written to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attribute {
    /// Keyrings made from now on.
    Keys,
    /// The program to come.
    Exec,
}

/// Appends the SELinux context of the program to come, or of the session keyring that it finds; both are forgotten by
/// the kernel in `execve`. As for AppArmor the file is that of the nest.
pub(super) fn selinux(
    plan: &mut PlanBuf,
    process: &Process,
    attribute: Attribute,
) -> Result<(), CompileError> {
    let label = process.selinux_label().as_deref();
    if let Some(label) = label.filter(|label| !label.is_empty()) {
        plan.push(&Step::Selinux {
            file: match attribute {
                Attribute::Keys => c"/proc/thread-self/attr/keycreate",
                Attribute::Exec => c"/proc/thread-self/attr/exec",
            },
            context: &text("SELinux context", label)?,
        });
    }
    Ok(())
}

/// Appends the resource limits. Only the initial user namespace may raise hard ones.
pub(super) fn rlimits(plan: &mut PlanBuf, process: &Process) {
    for limit in process.rlimits().iter().flatten() {
        plan.push(&Step::Rlimit {
            resource: resource(limit.typ()),
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
}

/// `RLIMIT_*` of asm-generic/resource.h, which x86 and Arm use unchanged.
fn resource(typ: PosixRlimitType) -> u32 {
    match typ {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

fn identity(plan: &mut PlanBuf, process: &Process, inputs: &ProcessInputs) -> Result<(), CompileError> {
    let numbers;
    let identity = match &inputs.identity {
        Some(identity) => identity,
        None => {
            let user = process.user();
            numbers = Identity {
                user: Who::Id(user.uid()),
                group: Who::Id(user.gid()),
                groups: user.additional_gids().clone().unwrap_or_default(),
                policy: GroupsPolicy::Strict,
            };
            &numbers
        }
    };
    let user = Named::of("user name", &identity.user)?;
    let group = Named::of("group name", &identity.group)?;
    plan.push(&Step::Identity {
        user: user.as_ref(),
        group: group.as_ref(),
        groups: identity.groups.clone(),
        policy: identity.policy,
    });
    Ok(())
}

enum Named {
    Unset,
    Id(u32),
    Name(CString),
}

impl Named {
    fn of(what: &'static str, who: &Who) -> Result<Self, CompileError> {
        Ok(match who {
            Who::Unset => Self::Unset,
            Who::Id(id) => Self::Id(*id),
            Who::Name(name) => Self::Name(text(what, name.as_str())?),
        })
    }

    fn as_ref(&self) -> UserRef<'_> {
        match self {
            Self::Unset => UserRef::Unset,
            Self::Id(id) => UserRef::Id(*id),
            Self::Name(name) => UserRef::Name(name),
        }
    }
}

fn environment(process: &Process, inputs: &ProcessInputs) -> Result<Vec<CString>, CompileError> {
    match &inputs.env {
        Some(env) => env
            .iter()
            .map(|var| text("environment", var.as_slice()))
            .collect(),
        None => texts("environment", process.env().iter().flatten()),
    }
}

/// The value of `var` when it is PATH.
fn path_of(var: &CStr) -> Option<&CStr> {
    var.to_bytes_with_nul()
        .strip_prefix(b"PATH=")
        .and_then(|rest| CStr::from_bytes_with_nul(rest).ok())
}

fn capabilities(process: &Process, host: CapSet) -> Caps {
    let Some(sets) = process.capabilities() else {
        return Caps::default();
    };
    let bits = |set: &Option<_>| {
        set.as_ref()
            .map_or(0, |set| CapSet::from_oci(set).intersection(host).bits())
    };
    Caps {
        bounding: bits(sets.bounding()),
        permitted: bits(sets.permitted()),
        inheritable: bits(sets.inheritable()),
        ambient: bits(sets.ambient()),
    }
}

/// The seccomp filter: the one that the caller has kept, or a new one.
fn filter<'a>(spec: &Spec, inputs: &'a ProcessInputs) -> Result<Option<Cow<'a, Filter>>, CompileError> {
    let Some(profile) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
        return Ok(None);
    };
    Ok(Some(match inputs.seccomp.as_deref() {
        Some(kept) => Cow::Borrowed(kept),
        None => Cow::Owned(seccomp::compile(profile)?),
    }))
}
