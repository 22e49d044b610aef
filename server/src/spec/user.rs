//! Who runs: the request's user, or the image's.

use runtime_core::compile::{Identity, Who};
use runtime_core::plan::GroupsPolicy as Policy;

use super::{Inputs, SpecError};
use crate::model::{GroupsPolicy, User};

/// Largest id that Kubernetes allows; an image may not ask for more than a request (CVE-2024-40635).
const ID_MAX: u32 = i32::MAX.unsigned_abs();

/// The identity, with names left to the container's own files.
pub(super) fn identity(inputs: &Inputs<'_>) -> Result<Identity, SpecError> {
    let run_as = &inputs.container.security.run_as;
    let (user, group) = match &run_as.user {
        // A user of the request drops the image's group with the image's user.
        Some(User::Id(uid)) => (Who::Id(*uid), Who::Unset),
        Some(User::Name(name)) => (Who::Name(name.clone()), Who::Unset),
        None => of_image(inputs.image.user)?,
    };
    let mut groups = run_as.groups.ids.clone();
    groups.extend(
        inputs
            .cdi
            .groups
            .iter()
            .filter(|gid| !run_as.groups.ids.contains(gid)),
    );
    Ok(Identity {
        user,
        group: run_as.group.map_or(group, Who::Id),
        groups,
        policy: match run_as.groups.policy {
            GroupsPolicy::Merge => Policy::Merge,
            GroupsPolicy::Strict => Policy::Strict,
        },
    })
}

/// Reads `user`, `uid`, `user:group` or `uid:gid`; nothing means root.
fn of_image(text: &str) -> Result<(Who, Who), SpecError> {
    let bad = || SpecError::ImageUser(text.to_owned());
    let who = |part: &str| {
        if part.contains(|c: char| c == ':' || c.is_control()) || part.len() > 255 {
            return Err(bad());
        }
        if part.bytes().all(|b| b.is_ascii_digit()) {
            return part
                .parse()
                .ok()
                .filter(|id| *id <= ID_MAX)
                .map(Who::Id)
                .ok_or_else(bad);
        }
        Ok(Who::Name(part.to_owned()))
    };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let user = if user.is_empty() { Who::Id(0) } else { who(user)? };
    let group = if group.is_empty() { Who::Unset } else { who(group)? };
    Ok((user, group))
}
