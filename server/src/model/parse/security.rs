//! Identity and confinement.

use podd_proto::v1;
use runtime_core::compile::CapSet;

use super::{At, given};
use crate::model::{
    AppArmor, CapabilityChanges, ContainerPid, ContainerSecurity, ContainerUsers, Groups, GroupsPolicy,
    IdMaps, IdRange, Refused, RunAs, Seccomp, SelinuxLabel, Share, User,
};

/// Largest user or group id that Kubernetes allows. Ids above it have become 0 elsewhere (CVE-2024-40635).
const ID_MAX: i64 = (1 << 31) - 1;
/// `NGROUPS_MAX` of linux/limits.h.
const GROUPS_MAX: usize = 65536;

#[expect(deprecated, reason = "old kubelets send the string forms")]
pub(super) fn container(
    at: &At<'_>,
    context: Option<&v1::LinuxContainerSecurityContext>,
) -> Result<ContainerSecurity, Refused> {
    let absent = v1::LinuxContainerSecurityContext::default();
    let context = context.unwrap_or(&absent);
    let no_options = v1::NamespaceOption::default();
    let options = context.namespace_options.as_ref().unwrap_or(&no_options);
    let options_at = at.field("namespace_options");
    let run_as_fields = RunAsFields {
        user: context.run_as_user.as_ref(),
        user_name: &context.run_as_username,
        group: context.run_as_group.as_ref(),
        groups: &context.supplemental_groups,
        policy: context.supplemental_groups_policy,
    };
    let paths = |name, list: &[String]| {
        let at = at.field(name);
        list.iter()
            .enumerate()
            .map(|(n, path)| at.index(n).absolute(path))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(ContainerSecurity {
        run_as: run_as(at, &run_as_fields)?,
        capabilities: capabilities(&at.field("capabilities"), context.capabilities.as_ref())?,
        privileged: context.privileged,
        network: share(&options_at.field("network"), options.network)?,
        ipc: share(&options_at.field("ipc"), options.ipc)?,
        pid: pid(&options_at, options)?,
        user: user_namespace(&options_at, options)?,
        selinux: selinux(&at.field("selinux_options"), context.selinux_options.as_ref())?,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: paths("masked_paths", &context.masked_paths)?,
        readonly_paths: paths("readonly_paths", &context.readonly_paths)?,
        seccomp: seccomp(at, context.seccomp.as_ref(), &context.seccomp_profile_path)?,
        apparmor: container_apparmor(at, context)?,
    })
}

#[expect(deprecated, reason = "old kubelets send the string form")]
fn container_apparmor(at: &At<'_>, context: &v1::LinuxContainerSecurityContext) -> Result<AppArmor, Refused> {
    let profile = apparmor(at, context.apparmor.as_ref(), &context.apparmor_profile)?;
    // Privileged lifts whatever the profile would confine, so there is nothing to miss.
    Ok(match profile {
        AppArmor::Localhost(_) if context.privileged => AppArmor::Unconfined,
        other => other,
    })
}

/// Network and ipc belong to a pod or the node, never to one container.
pub(super) fn share(at: &At<'_>, mode: i32) -> Result<Share, Refused> {
    match at.choice(mode)? {
        v1::NamespaceMode::Pod => Ok(Share::Pod),
        v1::NamespaceMode::Node => Ok(Share::Node),
        v1::NamespaceMode::Container => Err(at.invalid("CONTAINER is not a mode of this namespace")),
        v1::NamespaceMode::Target => Err(at.invalid("TARGET is not a mode of this namespace")),
    }
}

fn pid(at: &At<'_>, options: &v1::NamespaceOption) -> Result<ContainerPid, Refused> {
    let pid_at = at.field("pid");
    let mode = match pid_at.choice(options.pid)? {
        v1::NamespaceMode::Pod => ContainerPid::Pod,
        v1::NamespaceMode::Container => ContainerPid::Container,
        v1::NamespaceMode::Node => ContainerPid::Node,
        v1::NamespaceMode::Target => {
            let target = at.field("target_id");
            let id = options.target_id.parse();
            ContainerPid::Target(id.map_err(|error| target.invalid(format!("{error}")))?)
        }
    };
    match mode {
        ContainerPid::Target(_) => Ok(mode),
        _ if !options.target_id.is_empty() => Err(at
            .field("target_id")
            .invalid("is given, and no namespace is in mode TARGET")),
        mode => Ok(mode),
    }
}

/// The user namespace that a pod or a container asks for.
pub(super) fn user_namespace(at: &At<'_>, options: &v1::NamespaceOption) -> Result<ContainerUsers, Refused> {
    let Some(user) = &options.userns_options else {
        return Ok(ContainerUsers::Unset);
    };
    let at = at.field("userns_options");
    let mode_at = at.field("mode");
    match mode_at.choice(user.mode)? {
        v1::NamespaceMode::Node if user.uids.is_empty() && user.gids.is_empty() => Ok(ContainerUsers::Node),
        v1::NamespaceMode::Node => Err(at.invalid("has mappings in mode NODE")),
        v1::NamespaceMode::Pod => Ok(ContainerUsers::Ids(IdMaps {
            users: id_range(&at.field("uids"), &user.uids)?,
            groups: id_range(&at.field("gids"), &user.gids)?,
        })),
        v1::NamespaceMode::Container => Err(mode_at.invalid("CONTAINER is not a mode of this namespace")),
        v1::NamespaceMode::Target => Err(mode_at.invalid("TARGET is not a mode of this namespace")),
    }
}

/// One range that begins with the container's root, as every kubelet sends: more would overlap or leave root out.
pub(super) fn id_range(at: &At<'_>, wire: &[v1::IdMapping]) -> Result<IdRange, Refused> {
    let [map] = wire else {
        return Err(at.invalid(format!("has {} ranges, one is needed", wire.len())));
    };
    if map.container_id != 0 {
        return Err(at
            .index(0)
            .field("container_id")
            .invalid("is not 0: root would have no id"));
    }
    if map.host_id == 0 {
        return Err(at
            .index(0)
            .field("host_id")
            .invalid("is 0: the pod would have the node's root"));
    }
    // The last id of all means "none" to the kernel.
    let last = map
        .length
        .checked_sub(1)
        .and_then(|more| map.host_id.checked_add(more));
    if last.is_none_or(|last| last == u32::MAX) {
        let (host, length) = (map.host_id, map.length);
        return Err(at
            .index(0)
            .field("length")
            .invalid(format!("{length} ids from {host} are no range of ids")));
    }
    Ok(IdRange {
        host: map.host_id,
        length: map.length,
    })
}

/// The fields of either security context that say who a process is.
pub(super) struct RunAsFields<'a> {
    pub user: Option<&'a v1::Int64Value>,
    pub user_name: &'a str,
    pub group: Option<&'a v1::Int64Value>,
    pub groups: &'a [i64],
    pub policy: i32,
}

pub(super) fn run_as(at: &At<'_>, fields: &RunAsFields<'_>) -> Result<RunAs, Refused> {
    let user_at = at.field("run_as_user");
    let name_at = at.field("run_as_username");
    let user = match (fields.user, given(fields.user_name)) {
        (None, None) => None,
        (Some(uid), None) => Some(User::Id(id(&user_at, uid.value)?)),
        (None, Some(name)) => Some(User::Name(user_name(&name_at, name)?)),
        (Some(_), Some(_)) => return Err(name_at.invalid("is given beside run_as_user")),
    };
    let group_at = at.field("run_as_group");
    if fields.group.is_some() && user.is_none() {
        return Err(group_at.invalid("is given without a user"));
    }
    let groups_at = at.field("supplemental_groups");
    if fields.groups.len() > GROUPS_MAX {
        return Err(groups_at.invalid(format!("has more than {GROUPS_MAX} entries")));
    }
    let ids = fields
        .groups
        .iter()
        .enumerate()
        .map(|(n, gid)| id(&groups_at.index(n), *gid));
    let policy = match at.field("supplemental_groups_policy").choice(fields.policy)? {
        v1::SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
        v1::SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
    };
    Ok(RunAs {
        user,
        group: fields.group.map(|gid| id(&group_at, gid.value)).transpose()?,
        groups: Groups {
            ids: ids.collect::<Result<_, _>>()?,
            policy,
        },
    })
}

fn id(at: &At<'_>, value: i64) -> Result<u32, Refused> {
    let fits = (0..=ID_MAX)
        .contains(&value)
        .then(|| u32::try_from(value).ok())
        .flatten();
    fits.ok_or_else(|| at.invalid(format!("{value} is not an id, 0 to {ID_MAX}")))
}

/// A name that can stand in /etc/passwd. Digits alone would be read as a number, and a colon would be two fields.
fn user_name(at: &At<'_>, name: &str) -> Result<String, Refused> {
    let number = name.bytes().all(|b| b.is_ascii_digit());
    if number || name.len() > 255 || name.contains(|c: char| c == ':' || c.is_control() || c.is_whitespace())
    {
        return Err(at.invalid(format!("{name:?} is not a user name")));
    }
    Ok(name.to_owned())
}

fn capabilities(at: &At<'_>, changes: Option<&v1::Capability>) -> Result<CapabilityChanges, Refused> {
    let Some(changes) = changes else {
        return Ok(CapabilityChanges::default());
    };
    let set = |name, list: &[String]| -> Result<(bool, CapSet), Refused> {
        let at = at.field(name);
        let (mut all, mut set) = (false, CapSet::EMPTY);
        for (n, name) in list.iter().enumerate() {
            if name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL") {
                all = true;
            } else {
                set = set.union(
                    name.parse()
                        .map_err(|error| at.index(n).invalid(format!("{error}")))?,
                );
            }
        }
        Ok((all, set))
    };
    let (add_all, add) = set("add_capabilities", &changes.add_capabilities)?;
    let (drop_all, drop) = set("drop_capabilities", &changes.drop_capabilities)?;
    let (all_ambient, ambient) = set("add_ambient_capabilities", &changes.add_ambient_capabilities)?;
    let ambient = if all_ambient { CapSet::ALL } else { ambient };
    Ok(CapabilityChanges {
        add_all,
        add,
        drop_all,
        drop,
        ambient,
    })
}

/// seccomp, by the field or else by the old string; neither means unconfined, as the CRI says.
pub(super) fn seccomp(
    at: &At<'_>,
    profile: Option<&v1::SecurityProfile>,
    old: &str,
) -> Result<Seccomp, Refused> {
    if let Some(profile) = profile {
        let at = at.field("seccomp");
        return Ok(match profile_type(&at, profile)? {
            v1::security_profile::ProfileType::RuntimeDefault => Seccomp::RuntimeDefault,
            v1::security_profile::ProfileType::Unconfined => Seccomp::Unconfined,
            v1::security_profile::ProfileType::Localhost => {
                Seccomp::Localhost(at.field("localhost_ref").absolute(&profile.localhost_ref)?)
            }
        });
    }
    let at = at.field("seccomp_profile_path");
    match old {
        "" | "unconfined" => Ok(Seccomp::Unconfined),
        "runtime/default" | "docker/default" => Ok(Seccomp::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(path) => Ok(Seccomp::Localhost(at.absolute(path)?)),
            None => Err(at.invalid(format!("{other:?} is not a seccomp profile"))),
        },
    }
}

/// AppArmor, by the field or else by the old string; neither means podd's own (kubernetes#51746).
pub(super) fn apparmor(
    at: &At<'_>,
    profile: Option<&v1::SecurityProfile>,
    old: &str,
) -> Result<AppArmor, Refused> {
    if let Some(profile) = profile {
        let at = at.field("apparmor");
        return Ok(match profile_type(&at, profile)? {
            v1::security_profile::ProfileType::RuntimeDefault => AppArmor::RuntimeDefault,
            v1::security_profile::ProfileType::Unconfined => AppArmor::Unconfined,
            v1::security_profile::ProfileType::Localhost => {
                AppArmor::Localhost(apparmor_name(&at.field("localhost_ref"), &profile.localhost_ref)?)
            }
        });
    }
    let at = at.field("apparmor_profile");
    match old {
        "" | "runtime/default" => Ok(AppArmor::RuntimeDefault),
        "unconfined" => Ok(AppArmor::Unconfined),
        other => match other.strip_prefix("localhost/") {
            Some(name) => Ok(AppArmor::Localhost(apparmor_name(&at, name)?)),
            None => Err(at.invalid(format!("{other:?} is not an AppArmor profile"))),
        },
    }
}

fn profile_type(
    at: &At<'_>,
    profile: &v1::SecurityProfile,
) -> Result<v1::security_profile::ProfileType, Refused> {
    let kind = at.field("profile_type").choice(profile.profile_type)?;
    let localhost = kind == v1::security_profile::ProfileType::Localhost;
    match (localhost, profile.localhost_ref.is_empty()) {
        (true, true) => Err(at
            .field("localhost_ref")
            .invalid("is missing for a localhost profile")),
        (false, false) => Err(at
            .field("localhost_ref")
            .invalid("is given, and the profile is no localhost one")),
        _ => Ok(kind),
    }
}

/// The prefix is that of the old string; clients send it in the new field as well.
fn apparmor_name(at: &At<'_>, name: &str) -> Result<String, Refused> {
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if name.is_empty() || name.contains(|c: char| c.is_control()) {
        return Err(at.invalid(format!("{name:?} is not the name of an AppArmor profile")));
    }
    Ok(name.to_owned())
}

/// Whether a label means something depends on the host, so it is only checked for form here.
pub(super) fn selinux(
    at: &At<'_>,
    options: Option<&v1::SeLinuxOption>,
) -> Result<Option<SelinuxLabel>, Refused> {
    let Some(options) = options else { return Ok(None) };
    let checked = |name, text: &str, valid: bool| {
        if valid {
            Ok(text.to_owned())
        } else {
            Err(at
                .field(name)
                .invalid(format!("{text:?} is not the {name} of an SELinux label")))
        }
    };
    let part = |name, text: &str| {
        let valid = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        checked(name, text, text.chars().all(valid))
    };
    let label = SelinuxLabel {
        user: part("user", &options.user)?,
        role: part("role", &options.role)?,
        kind: part("type", &options.r#type)?,
        level: checked(
            "level",
            &options.level,
            options.level.is_empty() || crate::selinux::is_level(&options.level),
        )?,
    };
    Ok((label != SelinuxLabel::default()).then_some(label))
}
