//! `ContainerConfig`, and what it must not ask of the pod it goes into.

use podd_proto::v1;

use super::{At, given, mounts, resources, security, sorted};
use crate::model::{
    CdiName, ContainerConfig, ContainerMetadata, ContainerPid, ContainerUsers, EnvVar, PodConfig, PodPid,
    Refused, Share, StopSignal,
};

impl TryFrom<v1::ContainerConfig> for ContainerConfig {
    type Error = Refused;
    fn try_from(config: v1::ContainerConfig) -> Result<Self, Refused> {
        Self::try_from(&config)
    }
}

impl TryFrom<&v1::ContainerConfig> for ContainerConfig {
    type Error = Refused;
    fn try_from(config: &v1::ContainerConfig) -> Result<Self, Refused> {
        let at = At::Root("config");
        if config.windows.is_some() {
            return Err(at.field("windows").unsupported("a Windows container"));
        }
        let image_at = at.field("image");
        let absent = v1::LinuxContainerConfig::default();
        let linux = config.linux.as_ref().unwrap_or(&absent);
        let linux_at = at.field("linux");
        let limits = linux.resources.as_ref();
        let limits = limits
            .map(|wire| resources::resources(&linux_at.field("resources"), wire))
            .transpose()?;
        Ok(Self {
            metadata: metadata(&at.field("metadata"), config.metadata.as_ref())?,
            image: mounts::image(&image_at, image_at.required(config.image.as_ref())?)?,
            command: strings(&at.field("command"), &config.command)?,
            args: strings(&at.field("args"), &config.args)?,
            working_dir: given(&config.working_dir)
                .map(|dir| at.field("working_dir").absolute(dir))
                .transpose()?,
            envs: envs(&at.field("envs"), &config.envs)?,
            mounts: mounts::mounts(&at.field("mounts"), &config.mounts)?,
            devices: mounts::devices(&at.field("devices"), &config.devices)?,
            cdi_devices: cdi_devices(&at, config)?,
            labels: sorted(&config.labels),
            annotations: sorted(&config.annotations),
            log_path: given(&config.log_path)
                .map(|path| log_path(&at.field("log_path"), path))
                .transpose()?,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            stop_signal: stop_signal(&at.field("stop_signal"), config.stop_signal)?,
            resources: limits.unwrap_or_default(),
            security: security::container(
                &linux_at.field("security_context"),
                linux.security_context.as_ref(),
            )?,
        })
    }
}

impl ContainerConfig {
    /// Refuses what this container asks and the pod does not have. To be called before anything is made of it.
    ///
    /// # Errors
    /// The field that contradicts the pod.
    pub fn check_in(&self, pod: &PodConfig) -> Result<(), Refused> {
        let at = At::Root("config");
        if self.log_path.is_some() && pod.log_directory.is_none() {
            return Err(at
                .field("log_path")
                .invalid("is given, and the pod has no log_directory"));
        }
        let linux_at = at.field("linux");
        let at = linux_at.field("security_context");
        if self.security.privileged && !pod.security.privileged {
            return Err(at
                .field("privileged")
                .invalid("is not allowed in a pod that is not privileged"));
        }
        let at = at.field("namespace_options");
        // POD in a pod that has the node's namespace means the pod's, which is the node's.
        for (name, asked, has) in [
            ("network", self.security.network, pod.namespaces.network),
            ("ipc", self.security.ipc, pod.namespaces.ipc),
        ] {
            if asked == Share::Node && has == Share::Pod {
                return Err(at
                    .field(name)
                    .invalid("NODE in a pod that has a namespace of its own"));
            }
        }
        let has = pod.namespaces.user;
        let differs = match self.security.user {
            ContainerUsers::Unset => false,
            ContainerUsers::Node => has.is_some(),
            ContainerUsers::Ids(ids) => has != Some(ids),
        };
        if differs {
            return Err(at.field("userns_options").invalid("differs from the pod's"));
        }
        if let Some(n) = self
            .mounts
            .iter()
            .position(|mount| mount.ids.is_some() && mount.ids != has)
        {
            return Err(At::Root("config")
                .field("mounts")
                .index(n)
                .field("uidMappings")
                .invalid("are not those of the pod's user namespace"));
        }
        match (self.security.pid, pod.namespaces.pid) {
            (ContainerPid::Node, PodPid::Pod | PodPid::Container) => Err(at
                .field("pid")
                .invalid("NODE in a pod that does not share the node's processes")),
            (ContainerPid::Pod, PodPid::Container) => Err(at
                .field("pid")
                .invalid("POD in a pod whose containers do not share their processes")),
            _ => Ok(()),
        }
    }
}

fn metadata(at: &At<'_>, metadata: Option<&v1::ContainerMetadata>) -> Result<ContainerMetadata, Refused> {
    let metadata = at.required(metadata)?;
    Ok(ContainerMetadata {
        name: at.field("name").name(&metadata.name)?,
        attempt: metadata.attempt,
    })
}

/// What the annotations of older device plugins begin with that name CDI devices.
const CDI_ANNOTATION: &str = "cdi.k8s.io/";

/// The field first, then annotations by key, as under containerd and CRI-O.
fn cdi_devices(at: &At<'_>, config: &v1::ContainerConfig) -> Result<Vec<CdiName>, Refused> {
    let mut names: Vec<CdiName> = Vec::new();
    let mut add = |at: &At<'_>, text: &str| -> Result<(), Refused> {
        let wrong = || {
            at.invalid(format!(
                "{text:?} is not the name of a CDI device, vendor/class=device"
            ))
        };
        let name = CdiName::parse(text).ok_or_else(wrong)?;
        if !names.contains(&name) {
            names.push(name);
        }
        Ok(())
    };
    for (n, device) in config.cdi_devices.iter().enumerate() {
        add(&at.field("CDI_devices").index(n).field("name"), &device.name)?;
    }
    for (key, value) in sorted(&config.annotations) {
        if key.starts_with(CDI_ANNOTATION) {
            for name in value.split(',') {
                add(&at.field("annotations").key(&key), name)?;
            }
        }
    }
    Ok(names)
}

fn strings(at: &At<'_>, list: &[String]) -> Result<Vec<String>, Refused> {
    list.iter()
        .enumerate()
        .map(|(n, text)| at.index(n).no_nul(text))
        .collect()
}

fn envs(at: &At<'_>, wire: &[v1::KeyValue]) -> Result<Vec<EnvVar>, Refused> {
    let mut envs = Vec::with_capacity(wire.len());
    for (n, var) in wire.iter().enumerate() {
        let at = at.index(n);
        if var.key.is_empty() || var.key.contains(['=', '\0']) {
            return Err(at
                .field("key")
                .invalid(format!("{:?} is not the name of a variable", var.key)));
        }
        if var.value.contains(&0) {
            // The value may be a secret and is not shown.
            return Err(at
                .field("value")
                .invalid(format!("of {:?} holds a NUL byte", var.key)));
        }
        envs.push(EnvVar {
            key: var.key.clone(),
            value: var.value.clone(),
        });
    }
    Ok(envs)
}

/// A file beneath the pod's log directory: a link or `..` here once let a container name any file of the node
/// as its log (CVE-2025-0750).
fn log_path(at: &At<'_>, path: &str) -> Result<String, Refused> {
    let path = at.relative(path)?;
    if path.is_empty() {
        Err(at.invalid("is the log directory itself"))
    } else {
        Ok(path)
    }
}

fn stop_signal(at: &At<'_>, value: i32) -> Result<Option<StopSignal>, Refused> {
    if value == 0 {
        return Ok(None);
    }
    let signal = StopSignal::from_cri(value);
    signal
        .map(Some)
        .ok_or_else(|| at.invalid(format!("{value} is not a signal of the CRI")))
}
