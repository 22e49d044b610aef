//! Plans on their way to a stage, and what a stage's failure means in words.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use runtime_core::plan::{Plan, Step};
use runtime_core::pod::Failure;

use super::native::NativeError;

/// Puts an encoded plan where nobody can change it any more.
///
/// # Errors
/// The kernel has no memory for it.
pub fn seal(plan: &[u8]) -> Result<OwnedFd, NativeError> {
    sys::memfd::sealed(c"plan", plan, sys::memfd::Use::Data).map_err(|errno| NativeError::Kernel {
        operation: "seal a plan",
        source: errno.into(),
    })
}

/// Names the step that a stage reported as failed.
#[must_use]
pub fn explain(e: NativeError, plan: &[u8]) -> NativeError {
    let NativeError::Stage(failure) = e else { return e };
    let steps = Plan::decode(plan).map(|plan| plan.steps).unwrap_or_default();
    let step = usize::try_from(failure.step)
        .ok()
        .and_then(|index| steps.get(index));
    if let Some(Step::Hook(_)) = step {
        return of_hook(&failure);
    }
    let command = match step {
        Some(Step::FindProgram { .. } | Step::Exec { .. } | Step::Identity { .. }) => true,
        Some(Step::MakeLayers { sub_path, .. }) => of_image(sub_path, &failure),
        _ => false,
    };
    NativeError::Step {
        doing: doing(step, &failure),
        command,
        source: match step {
            Some(Step::FindProgram { .. }) => not_found(&failure),
            _ => io::Error::from_raw_os_error(failure.errno.cast_signed()),
        },
    }
}

/// Says why a container's application cannot be executed.
#[must_use]
pub fn at_start(failure: &Failure) -> NativeError {
    NativeError::Step {
        doing: format!("execute {}", String::from_utf8_lossy(&failure.subject)),
        command: true,
        source: not_found(failure),
    }
}

/// The words that operators know from other runtimes, and look for, where a name was searched in vain.
fn not_found(failure: &Failure) -> io::Error {
    if failure.errno == ENOENT && !failure.subject.contains(&b'/') {
        return io::Error::new(io::ErrorKind::NotFound, "executable file not found in $PATH");
    }
    io::Error::from_raw_os_error(failure.errno.cast_signed())
}

/// Whether layers could not be mounted for want of what the request names in them.
fn of_image(sub_path: &CStr, failure: &Failure) -> bool {
    !sub_path.is_empty() && failure.subject == sub_path.to_bytes()
}

/// What a stage says of a hook that failed: its name and path and what became of it.
#[must_use]
pub fn of_hook(failure: &Failure) -> NativeError {
    const ETIMEDOUT: u32 = 110;
    let text = String::from_utf8_lossy(&failure.subject);
    let mut words = text.splitn(4, ' ');
    let what: Vec<&str> = words.by_ref().take(3).collect();
    let rest = words.next().unwrap_or_default();
    // Codes of its own: the hook could not even be begun.
    let reason = match failure.errno {
        ECANCELED | ETIMEDOUT => rest.to_owned(),
        errno => format!("{rest}: {}", io::Error::from_raw_os_error(errno.cast_signed())),
    };
    NativeError::Hook {
        what: what.join(" "),
        reason,
        late: failure.errno == ETIMEDOUT,
    }
}

const ENOENT: u32 = 2;

/// What a stage reports for a hook that ended badly.
const ECANCELED: u32 = 125;

fn doing(step: Option<&Step<'_>>, failure: &Failure) -> String {
    let subject = String::from_utf8_lossy(&failure.subject);
    let what = match step {
        None => "begin in the new process",
        Some(Step::OomScoreAdj(_)) => "set oom_score_adj",
        Some(Step::Join { .. }) => "join the pod's namespaces",
        Some(Step::Clone { .. }) => "clone the container's first process",
        Some(Step::Unshare(_)) => "make namespaces",
        Some(Step::NewSession) => "start a session",
        Some(Step::Hostname(_)) => "set the host name",
        Some(Step::Sysctl { .. }) => "set the sysctl",
        Some(Step::RootOverlay { .. }) => "mount the image's layers",
        Some(
            Step::MountNew { .. }
            | Step::MountNest { .. }
            | Step::MountSlot { .. }
            | Step::MountLayers { .. }
            | Step::MakeClone { .. }
            | Step::MakeNew { .. }
            | Step::RootSlot(_),
        ) => "mount",
        Some(Step::MakeLayers { sub_path, .. }) if of_image(sub_path, failure) => {
            "find in the image of a mount"
        }
        Some(Step::MakeLayers { .. }) => "mount layers of an image",
        Some(Step::MapIds(_)) => "give a volume the ids of the pod (tmpfs needs Linux 6.3)",
        Some(Step::OwnStdio { .. } | Step::Chown { .. }) => "change the owner of",
        Some(Step::RootOfNamespace) => "become the",
        Some(Step::Mknod(_)) => "make the device",
        Some(Step::Symlink { .. }) => "make the link",
        Some(Step::Console(_)) => "open a terminal",
        Some(Step::Mask { .. }) => "mask",
        Some(Step::ReadOnly(_) | Step::RootReadOnly) => "make read-only",
        Some(Step::HostTree { .. }) => "show the host to hooks:",
        Some(Step::Hook(_)) => "run the",
        Some(Step::PivotRoot) => "change the root directory",
        Some(Step::Rlimit { .. }) => "set a resource limit",
        Some(Step::OwnDirectory(_)) => "make the image's volume",
        Some(Step::WorkDir { .. }) => "change to the working directory",
        Some(Step::Identity { .. }) => "find in the image's accounts",
        Some(Step::Selinux { .. }) => "apply the SELinux context",
        Some(Step::Relabel { .. }) => "give an SELinux context to",
        Some(Step::AppArmor(_)) => "apply the AppArmor profile",
        Some(Step::FindProgram { .. }) => "find the command",
        Some(Step::Become(_)) => "take the user and capabilities",
        Some(Step::NoNewPrivileges) => "set no_new_privs",
        Some(Step::Gate | Step::Hold { .. }) => "wait for the start",
        Some(Step::Seccomp { .. }) => "install the seccomp filter",
        Some(Step::Exec { .. }) => "execute",
    };
    format!("{what} {subject}").trim_end().to_owned()
}

/// When a process started, in clock ticks since boot: with its pid it names the process for good (proc_pid_stat(5)).
///
/// # Errors
/// There is no such process.
pub fn start_time(pid: u32) -> io::Result<u64> {
    Ok(Stat::read(pid)?.start_time)
}

/// What podd reads of /proc/pid/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Parent.
    pub parent: u32,
    /// Session.
    pub session: u32,
    /// Start in clock ticks since boot.
    pub start_time: u64,
}

impl Stat {
    /// Reads one process.
    ///
    /// # Errors
    /// There is no such process.
    pub fn read(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The name in parentheses may hold anything, so that fields are counted from its end.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::error::sentence;

    #[test]
    fn a_hostile_process_name_does_not_shift_the_fields() {
        let text = "7 (a) S 99 (b c) S 1 7 5 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 2\n";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                parent: 1,
                session: 5,
                start_time: 4711
            })
        );
        assert_eq!(Stat::parse("7 (a"), None);
    }

    #[test]
    fn failures_name_what_was_done_and_to_what() {
        let mut plan = runtime_core::plan::PlanBuf::new();
        plan.push(&Step::NewSession);
        plan.push(&Step::FindProgram {
            name: c"nope",
            path: c"/bin",
        });
        let failure = Failure {
            step: 1,
            errno: 2,
            subject: b"nope".to_vec(),
        };
        let explained = explain(NativeError::Stage(failure), &plan.finish());
        assert_eq!(
            sentence(&explained),
            "cannot find the command nope: executable file not found in $PATH"
        );
        assert_eq!(explained.kind(), super::super::native::Kind::InvalidArgument);
    }
}
