//! `PodSandboxConfig`.

use podd_proto::v1;

use super::{At, given, network, resources, security, sorted};
use crate::model::{
    CgroupParent, PodConfig, PodMetadata, PodNamespaces, PodPid, PodSecurity, Refused, Share, Sysctl,
};

/// `__NEW_UTS_LEN` of linux/utsname.h.
const HOSTNAME_MAX: usize = 64;
/// Longest value of a sysctl, a page less its end.
const SYSCTL_MAX: usize = 4095;

impl TryFrom<v1::PodSandboxConfig> for PodConfig {
    type Error = Refused;
    fn try_from(config: v1::PodSandboxConfig) -> Result<Self, Refused> {
        Self::try_from(&config)
    }
}

impl TryFrom<&v1::PodSandboxConfig> for PodConfig {
    type Error = Refused;
    fn try_from(config: &v1::PodSandboxConfig) -> Result<Self, Refused> {
        let at = At::Root("config");
        if config.windows.is_some() {
            return Err(at.field("windows").unsupported("a Windows pod"));
        }
        let absent = v1::LinuxPodSandboxConfig::default();
        let linux = config.linux.as_ref().unwrap_or(&absent);
        let linux_at = at.field("linux");
        let namespaces = namespaces(
            &linux_at.field("security_context"),
            linux.security_context.as_ref(),
        )?;
        let limits = |name, of: &Option<v1::LinuxContainerResources>| {
            of.as_ref()
                .map(|of| resources::resources(&linux_at.field(name), of))
                .transpose()
        };
        Ok(Self {
            metadata: metadata(&at.field("metadata"), config.metadata.as_ref())?,
            hostname: given(&config.hostname)
                .map(|name| hostname(&at.field("hostname"), name))
                .transpose()?,
            log_directory: given(&config.log_directory)
                .map(|dir| at.field("log_directory").absolute(dir))
                .transpose()?,
            dns: config
                .dns_config
                .as_ref()
                .map(|dns| network::dns(&at.field("dns_config"), dns))
                .transpose()?,
            port_mappings: network::ports(&at.field("port_mappings"), &config.port_mappings)?,
            labels: sorted(&config.labels),
            annotations: sorted(&config.annotations),
            cgroup_parent: given(&linux.cgroup_parent)
                .map(|parent| cgroup_parent(&linux_at.field("cgroup_parent"), parent))
                .transpose()?,
            sysctls: sysctls(&linux_at.field("sysctls"), linux, namespaces)?,
            namespaces,
            security: pod_security(
                &linux_at.field("security_context"),
                linux.security_context.as_ref(),
            )?,
            overhead: limits("overhead", &linux.overhead)?,
            resources: limits("resources", &linux.resources)?,
        })
    }
}

fn metadata(at: &At<'_>, metadata: Option<&v1::PodSandboxMetadata>) -> Result<PodMetadata, Refused> {
    let metadata = at.required(metadata)?;
    Ok(PodMetadata {
        name: at.field("name").name(&metadata.name)?,
        uid: at.field("uid").name(&metadata.uid)?,
        namespace: at.field("namespace").name(&metadata.namespace)?,
        attempt: metadata.attempt,
    })
}

/// A host name (RFC 1123), and with `_`, which some hosts have.
fn hostname(at: &At<'_>, name: &str) -> Result<String, Refused> {
    if name.len() > HOSTNAME_MAX {
        return Err(at.invalid(format!(
            "is {} bytes long, the kernel takes {HOSTNAME_MAX}",
            name.len()
        )));
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !name.split('.').all(label) {
        return Err(at.invalid(format!("{name:?} is not a host name")));
    }
    Ok(name.to_owned())
}

impl CgroupParent {
    /// Reads a parent in either shape; `field` is named in the refusal.
    ///
    /// # Errors
    /// It is neither.
    pub fn of_field(field: &'static str, parent: &str) -> Result<Self, Refused> {
        cgroup_parent(&At::Root(field), parent)
    }
}

/// A slice where the last name ends in `.slice`, as kubelets with the systemd driver send; else a path.
fn cgroup_parent(at: &At<'_>, parent: &str) -> Result<CgroupParent, Refused> {
    let name = parent.rsplit('/').next().unwrap_or_default();
    if !name.ends_with(".slice") {
        let path: runtime_core::cgroup::CgroupPath = parent
            .trim_end_matches('/')
            .parse()
            .map_err(|error| at.invalid(format!("{error}")))?;
        if path.names().any(|name| name.contains(|c: char| c.is_control())) {
            return Err(at.invalid("has a control character"));
        }
        return Ok(CgroupParent::Path(path.as_str().to_owned()));
    }
    let stem = name.trim_end_matches(".slice");
    let valid = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b":_.@\\".contains(&b))
    };
    if name.len() > 255 || !(stem == "-" || stem.split('-').all(valid)) {
        return Err(at.invalid(format!("{name:?} is not the name of a slice (systemd.slice(5))")));
    }
    // A slice may come with the slices that contain it: a.slice/a-b.slice. Anything else in front is a mix-up.
    let above = parent
        .trim_start_matches('/')
        .strip_suffix(name)
        .unwrap_or_default();
    if !above.is_empty() && above != containing(stem) {
        return Err(at.invalid(format!("{name} is not where {parent:?} says")));
    }
    Ok(CgroupParent::Slice(name.to_owned()))
}

/// The directories that systemd puts a slice into: `a.slice/a-b.slice/` for `a-b-c`.
fn containing(stem: &str) -> String {
    stem.match_indices('-')
        .map(|(dash, _)| format!("{}.slice/", stem.get(..dash).unwrap_or_default()))
        .collect()
}

fn sysctls(
    at: &At<'_>,
    linux: &v1::LinuxPodSandboxConfig,
    namespaces: PodNamespaces,
) -> Result<Vec<Sysctl>, Refused> {
    let mut found: Vec<Sysctl> = Vec::with_capacity(linux.sysctls.len());
    for (name, value) in sorted(&linux.sysctls) {
        let at = at.key(&name);
        let key = sysctl_path(&at, &name)?;
        let host = if key.starts_with("net/") {
            namespaces.network
        } else {
            namespaces.ipc
        };
        if host == Share::Node {
            return Err(at.invalid("would change the node, as the pod shares the node's namespace"));
        }
        // No value that a sysctl of the allow-list takes has these; CVE-2022-0811 smuggled settings with them.
        if value.is_empty() || value.len() > SYSCTL_MAX || value.contains(['+', '=', '\0', '\n']) {
            return Err(at.invalid(format!("{value:?} is not a value for a sysctl")));
        }
        if found.iter().any(|sysctl| sysctl.key == key) {
            return Err(at.invalid("is given twice"));
        }
        found.push(Sysctl { key, value });
    }
    Ok(found)
}

/// The path below /proc/sys of a sysctl in either form of sysctl(8), if a pod may set it.
fn sysctl_path(at: &At<'_>, name: &str) -> Result<String, Refused> {
    let dotted = name
        .find(['.', '/'])
        .is_some_and(|first| name.as_bytes().get(first) == Some(&b'.'));
    let path = if dotted {
        name.chars().map(swap_separators).collect()
    } else {
        name.to_owned()
    };
    let parts: Vec<&str> = path.split('/').collect();
    let valid = |part: &&str| {
        !part.is_empty()
            && **part != *"."
            && **part != *".."
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b))
    };
    if !parts.iter().all(valid) {
        return Err(at.invalid("is not the name of a sysctl"));
    }
    // The namespaced ones; anything else belongs to the node (Kubernetes, "Using sysctls").
    let allowed = match parts.as_slice() {
        ["kernel", name] => name.starts_with("shm") || name.starts_with("msg") || *name == "sem",
        ["fs", "mqueue", _] => true,
        ["net", _, _, ..] => true,
        _ => false,
    };
    if allowed {
        Ok(path)
    } else {
        Err(at.invalid("is not a sysctl that a pod may set"))
    }
}

fn swap_separators(c: char) -> char {
    match c {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

fn namespaces(
    at: &At<'_>,
    context: Option<&v1::LinuxSandboxSecurityContext>,
) -> Result<PodNamespaces, Refused> {
    let Some(options) = context.and_then(|context| context.namespace_options.as_ref()) else {
        return Ok(PodNamespaces::default());
    };
    let at = at.field("namespace_options");
    let pid_at = at.field("pid");
    let pid = match pid_at.choice(options.pid)? {
        v1::NamespaceMode::Pod => PodPid::Pod,
        v1::NamespaceMode::Container => PodPid::Container,
        v1::NamespaceMode::Node => PodPid::Node,
        v1::NamespaceMode::Target => return Err(pid_at.invalid("a pod cannot target a container")),
    };
    let user = security::user_namespace(&at, options)?.ids();
    let ipc = security::share(&at.field("ipc"), options.ipc)?;
    // As Kubernetes' own validation: of the node's namespaces, such a pod may only share the network.
    for (name, node) in [("pid", pid == PodPid::Node), ("ipc", ipc == Share::Node)] {
        if user.is_some() && node {
            return Err(at.field(name).invalid("NODE in a pod with a user namespace"));
        }
    }
    Ok(PodNamespaces {
        network: security::share(&at.field("network"), options.network)?,
        pid,
        ipc,
        user,
    })
}

#[expect(deprecated, reason = "old kubelets send the string form")]
fn pod_security(
    at: &At<'_>,
    context: Option<&v1::LinuxSandboxSecurityContext>,
) -> Result<PodSecurity, Refused> {
    let absent = v1::LinuxSandboxSecurityContext::default();
    let context = context.unwrap_or(&absent);
    let run_as = security::RunAsFields {
        user: context.run_as_user.as_ref(),
        user_name: "",
        group: context.run_as_group.as_ref(),
        groups: &context.supplemental_groups,
        policy: context.supplemental_groups_policy,
    };
    Ok(PodSecurity {
        privileged: context.privileged,
        selinux: security::selinux(&at.field("selinux_options"), context.selinux_options.as_ref())?,
        run_as: security::run_as(at, &run_as)?,
        readonly_rootfs: context.readonly_rootfs,
        seccomp: security::seccomp(at, context.seccomp.as_ref(), &context.seccomp_profile_path)?,
        apparmor: security::apparmor(at, context.apparmor.as_ref(), "")?,
    })
}
