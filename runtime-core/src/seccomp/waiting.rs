//! The filter of a process that does nothing but wait and reap: pid 1 of a pod's pid namespace.

use std::sync::OnceLock;

use linux_raw_sys::errno::EPERM;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use super::{Filter, SeccompError, compile};

/// wait4(2) and rt_sigtimedwait(2), what the kernel makes of them after a stop, and the end.
const CALLS: [&str; 5] = [
    "wait4",
    "rt_sigtimedwait",
    "restart_syscall",
    "exit",
    "exit_group",
];

/// Compiled once. What it forbids fails and kills nobody: the pod must not end because somebody made its pid 1 try.
pub(crate) fn waiting() -> Result<&'static [u8], SeccompError> {
    static FILTER: OnceLock<Filter> = OnceLock::new();
    if let Some(filter) = FILTER.get() {
        return Ok(filter.program());
    }
    let mut allowed = LinuxSyscall::default();
    allowed
        .set_names(CALLS.map(str::to_owned).to_vec())
        .set_action(LinuxSeccompAction::ScmpActAllow);
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(vec![Arch::ScmpArchX86_64]))
        .set_syscalls(Some(vec![allowed]));
    let filter = compile(&profile)?;
    Ok(FILTER.get_or_init(|| filter).program())
}
