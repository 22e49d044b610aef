//! The plan of a further process in a running container.

use super::namespaces::{Layout, slot};
use super::process::{self, Attribute, Variant};
use super::users::Users;
use super::{CompileError, ExecInputs};
use crate::plan::{PlanBuf, Step};
use oci_spec::runtime::Spec;

/// Compiles an exec in the container that `spec` describes.
///
/// It joins the namespaces of the container's first process by one setns(2) with its pidfd (Linux 5.8), then
/// clones: a process is a member of a pid namespace only from birth. The cgroup namespace is joined last.
///
/// # Errors
/// The spec or the inputs cannot become a plan.
pub fn exec(spec: &Spec, inputs: &ExecInputs) -> Result<Vec<u8>, CompileError> {
    let mut plan = PlanBuf::new();
    let process = process::of(spec)?;
    process::oom_score(&mut plan, process)?;
    process::apparmor(&mut plan, process)?;
    process::selinux(&mut plan, process, Attribute::Keys)?;
    process::selinux(&mut plan, process, Attribute::Exec)?;
    let layout = Layout::of(spec)?;
    let users = Users::of(spec, &layout)?;
    if let Some(users) = &users {
        users.before(&mut plan, process);
    }
    plan.push(&Step::Join {
        slot: slot::TARGET,
        namespaces: layout.all() & !layout.cgroup(),
    });
    plan.push(&Step::Clone {
        namespaces: 0,
        into_cgroup: inputs.process.into_cgroup,
    });
    if layout.cgroup() != 0 {
        // Not before: where cgroup2 is mounted with nsdelegate, as systemd does, a process in a cgroup namespace
        // cannot move, nor be born, across its border, and this one comes from podinit's cgroup (ENOENT).
        plan.push(&Step::Join {
            slot: slot::TARGET,
            namespaces: layout.cgroup(),
        });
    }
    if users.is_some() {
        plan.push(&Step::RootOfNamespace);
    }
    plan.push(&Step::NewSession);
    if let Some(size) = inputs.terminal {
        plan.push(&Step::Console(size));
    }
    let variant = Variant {
        args: &inputs.args,
        directories: &[],
        create_cwd: false,
        read_only_root: false,
        gate: false,
        hooks: None,
        limits: users.is_none(),
    };
    process::finish(&mut plan, spec, &inputs.process, &variant)?;
    Ok(plan.finish())
}
