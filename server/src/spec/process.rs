//! The process of a spec.

use std::path::PathBuf;

use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType, Process, User};
use runtime_core::compile::Who;

use super::{Inputs, SpecError, command, security, user};

pub(super) fn process(inputs: &Inputs<'_>, env: &[Vec<u8>]) -> Result<Process, SpecError> {
    let container = inputs.container;
    let nofile = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        // Never inherited: an "infinity" made programs that walk all descriptors crawl.
        .soft(inputs.host.nofile.0)
        .hard(inputs.host.nofile.1)
        .build()
        .map_err(|error| SpecError::Oci(error.to_string()))?;
    let printable = env
        .iter()
        .map(|variable| String::from_utf8_lossy(variable).into_owned());

    let mut process = Process::default();
    process
        .set_terminal(Some(container.tty))
        .set_user(numbers(inputs)?)
        .set_args(Some(command::arguments(inputs)?))
        .set_env(Some(printable.collect()))
        .set_cwd(PathBuf::from(command::directory(inputs)?))
        .set_capabilities(Some(security::capabilities(inputs)?))
        .set_rlimits(Some(vec![nofile]))
        .set_no_new_privileges(Some(container.security.no_new_privs))
        .set_apparmor_profile(security::apparmor(inputs))
        .set_selinux_label(inputs.labels.and_then(|labels| labels.process.clone()))
        .set_oom_score_adj(Some(
            container
                .resources
                .oom_score_adj
                .max(inputs.host.least_oom_score_adj),
        ));
    Ok(process)
}

/// The user as far as numbers say it; names are resolved in the container and reported from there.
fn numbers(inputs: &Inputs<'_>) -> Result<User, SpecError> {
    let identity = user::identity(inputs)?;
    let number = |who: &Who| if let Who::Id(id) = who { *id } else { 0 };
    let mut user = User::default();
    user.set_uid(number(&identity.user));
    user.set_gid(number(&identity.group));
    if !identity.groups.is_empty() {
        user.set_additional_gids(Some(identity.groups));
    }
    if let Who::Name(name) = identity.user {
        user.set_username(Some(name));
    }
    Ok(user)
}
