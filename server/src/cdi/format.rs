//! The content of a spec file, as SPEC.md 1.1 of CDI has it, and what must hold of it.
//!
//! A field that the format does not know makes a file invalid, as does one that is newer than the version that the
//! file claims: both are what SPEC.md demands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

use super::{Mount as Understood, NodeKind};
use crate::model::{is_cdi_device, is_cdi_kind};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// `.json`
    Json,
    /// `.yaml`
    Yaml,
}

/// A version of the format: major and minor.
type Version = (u32, u32);

/// The versions there are.
const VERSIONS: [Version; 10] = [
    (0, 1),
    (0, 2),
    (0, 3),
    (0, 4),
    (0, 5),
    (0, 6),
    (0, 7),
    (0, 8),
    (1, 0),
    (1, 1),
];

/// A list that may be written as null, as programs in Go do.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// A spec file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Spec {
    cdi_version: String,
    pub kind: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(deserialize_with = "list")]
    devices: Vec<Device>,
    #[serde(default)]
    pub container_edits: ContainerEdits,
}

/// One device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    name: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub container_edits: ContainerEdits,
}

/// What is added to a container.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ContainerEdits {
    #[serde(default, deserialize_with = "list")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(default, deserialize_with = "list")]
    pub net_devices: Vec<NetDevice>,
    #[serde(default, deserialize_with = "list")]
    pub hooks: Vec<Hook>,
    #[serde(default, deserialize_with = "list")]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub intel_rdt: Option<IntelRdt>,
    #[serde(default, deserialize_with = "list")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub path: String,
    #[serde(default)]
    pub host_path: Option<String>,
    #[serde(default, rename = "type")]
    typ: Option<String>,
    #[serde(default)]
    pub major: u32,
    #[serde(default)]
    pub minor: u32,
    #[serde(default)]
    pub file_mode: Option<u32>,
    #[serde(default)]
    permissions: Option<String>,
    #[serde(default)]
    pub uid: Option<u32>,
    #[serde(default)]
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default, rename = "type")]
    typ: Option<String>,
    #[serde(default, deserialize_with = "list")]
    options: Vec<String>,
}

/// When a hook is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum HookName {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

/// A program that is run on the way.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub hook_name: HookName,
    path: String,
    #[serde(default, deserialize_with = "list")]
    args: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    env: Vec<String>,
    #[serde(default)]
    timeout: Option<i64>,
}

/// A network interface of the host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NetDevice {
    #[serde(rename = "hostInterfaceName")]
    _host: String,
    #[serde(rename = "name")]
    _name: String,
}

/// Settings of resctrl, which podd only knows to refuse.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IntelRdt {
    #[serde(default, rename = "closID")]
    _clos: Option<String>,
    #[serde(default, rename = "l3CacheSchema")]
    _l3_cache: Option<String>,
    #[serde(default, rename = "memBwSchema")]
    _bandwidth: Option<String>,
    #[serde(default)]
    schemata: Option<Vec<String>>,
    #[serde(default, rename = "enableMonitoring")]
    monitoring: Option<bool>,
    #[serde(default, rename = "enableCMT")]
    _cmt: Option<bool>,
    #[serde(default, rename = "enableMBM")]
    _mbm: Option<bool>,
}

/// Reads a spec file.
///
/// # Errors
/// What is wrong with it, in a few words.
pub(super) fn parse(text: &str, syntax: Syntax) -> Result<Spec, String> {
    let spec: Spec = match syntax {
        Syntax::Json => serde_json::from_str(text).map_err(|e| e.to_string())?,
        Syntax::Yaml => {
            // As the reference implementation reads YAML: 0666 is octal. No excerpt of the file in errors.
            let options = serde_saphyr::options! {
                legacy_octal_numbers: true,
                with_snippet: false,
            };
            serde_saphyr::from_str_with_options(text, options).map_err(|e| e.to_string())?
        }
    };
    spec.check()?;
    Ok(spec)
}

impl Spec {
    /// A device by its name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    fn check(&self) -> Result<(), String> {
        if !is_cdi_kind(&self.kind) {
            return Err(format!("kind {:?} is not vendor/class", self.kind));
        }
        let version = self.version()?;
        let needed = self.needs();
        if version < needed {
            return Err(format!(
                "it says cdiVersion {} and has fields of {}.{}.0",
                self.cdi_version, needed.0, needed.1
            ));
        }
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            if !is_cdi_device(&device.name) {
                return Err(format!("{:?} is not the name of a device", device.name));
            }
            if !names.insert(&device.name) {
                return Err(format!("device {:?} is there twice", device.name));
            }
        }
        self.all_edits().try_for_each(ContainerEdits::check)
    }

    fn version(&self) -> Result<Version, String> {
        let text = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let known = VERSIONS
            .iter()
            .find(|(major, minor)| text == format!("{major}.{minor}.0"));
        known
            .copied()
            .ok_or_else(|| format!("cdiVersion {:?} is not known", self.cdi_version))
    }

    fn all_edits(&self) -> impl Iterator<Item = &ContainerEdits> {
        let of_devices = self.devices.iter().map(|device| &device.container_edits);
        std::iter::once(&self.container_edits).chain(of_devices)
    }

    /// The first version that has all the fields in use (SPEC.md, "Released versions").
    fn needs(&self) -> Version {
        let annotated =
            |all: &Option<BTreeMap<String, String>>| all.as_ref().is_some_and(|all| !all.is_empty());
        let digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
        let dotted = self
            .kind
            .split_once('/')
            .is_some_and(|(_, class)| class.contains('.'));
        let of_file = [
            (
                annotated(&self.annotations)
                    || self.devices.iter().any(|device| annotated(&device.annotations)),
                (0, 6),
            ),
            (dotted, (0, 6)),
            (self.devices.iter().any(digit), (0, 5)),
        ];
        let of_file = of_file
            .into_iter()
            .filter(|(used, _)| *used)
            .map(|(_, version)| version);
        let of_edits = self.all_edits().map(ContainerEdits::needs);
        of_file.chain(of_edits).max().unwrap_or_default()
    }
}

impl ContainerEdits {
    fn needs(&self) -> Version {
        let rdt = self.intel_rdt.as_ref();
        let newest = rdt.is_some_and(|rdt| rdt.schemata.is_some() || rdt.monitoring.is_some());
        let fields = [
            (newest || !self.net_devices.is_empty(), (1, 1)),
            (rdt.is_some() || !self.additional_gids.is_empty(), (0, 7)),
            (
                self.device_nodes.iter().any(|node| node.host_path.is_some()),
                (0, 5),
            ),
            (self.mounts.iter().any(|mount| mount.typ.is_some()), (0, 4)),
        ];
        let used = fields.into_iter().find(|(used, _)| *used);
        used.map_or((0, 0), |(_, version)| version)
    }

    fn check(&self) -> Result<(), String> {
        environment(&self.env)?;
        self.device_nodes.iter().try_for_each(DeviceNode::check)?;
        self.mounts.iter().try_for_each(Mount::check)?;
        self.hooks.iter().try_for_each(Hook::check)
    }
}

impl DeviceNode {
    /// What the file says that it is.
    pub fn kind(&self) -> Option<NodeKind> {
        match self.typ.as_deref() {
            // Unbuffered character devices are character devices to Linux (mknod(1)).
            Some("c" | "u") => Some(NodeKind::Char),
            Some("b") => Some(NodeKind::Block),
            Some("p") => Some(NodeKind::Fifo),
            _ => None,
        }
    }

    /// What the device cgroup is to allow.
    pub fn access(&self) -> &str {
        match self.permissions.as_deref() {
            None | Some("") => "rwm",
            Some("none") => "",
            Some(some) => some,
        }
    }

    fn check(&self) -> Result<(), String> {
        absolute("path of a device node", &self.path)?;
        if let Some(host) = &self.host_path {
            absolute("hostPath of a device node", host)?;
        }
        if self.kind().is_none() && self.typ.as_deref().is_some_and(|typ| !typ.is_empty()) {
            return Err(format!("{}: the type is not b, c, u or p", self.path));
        }
        if self.access().contains(|c| !"rwm".contains(c)) {
            return Err(format!(
                "{}: the permissions are not some of r, w and m",
                self.path
            ));
        }
        // 12 and 20 bits, as makedev(3) has them.
        if self.major >= 1 << 12 || self.minor >= 1 << 20 {
            return Err(format!("{}: the kernel has no such device number", self.path));
        }
        Ok(())
    }
}

impl Mount {
    /// The mount in podd's words.
    pub fn understood(&self) -> Understood {
        let bind = self
            .options
            .iter()
            .any(|option| option == "bind" || option == "rbind");
        let kind = if bind {
            "bind"
        } else {
            self.typ.as_deref().unwrap_or("bind")
        };
        Understood {
            source: self.host_path.clone(),
            destination: self.container_path.clone(),
            kind: kind.to_owned(),
            options: self.options.clone(),
        }
    }

    fn check(&self) -> Result<(), String> {
        absolute("containerPath of a mount", &self.container_path)?;
        let understood = self.understood();
        if understood.kind == "bind" {
            absolute("hostPath of a mount", &self.host_path)?;
        } else if self.host_path.is_empty() {
            return Err("hostPath of a mount is empty".to_owned());
        }
        let texts = self.options.iter().chain([&understood.kind, &self.host_path]);
        c_strings("mount", texts)
    }
}

impl Hook {
    /// The hook in the words of the OCI runtime spec.
    pub fn to_oci(&self) -> oci_spec::runtime::Hook {
        let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        let mut hook = oci_spec::runtime::Hook::default();
        hook.set_path(PathBuf::from(&self.path))
            .set_args(some(&self.args))
            .set_env(some(&self.env))
            .set_timeout(self.timeout);
        hook
    }

    fn check(&self) -> Result<(), String> {
        absolute("path of a hook", &self.path)?;
        c_strings("argument of a hook", &self.args)?;
        environment(&self.env)?;
        if self.timeout.is_some_and(|seconds| seconds <= 0) {
            return Err(format!(
                "the hook {} has a timeout that is not positive",
                self.path
            ));
        }
        Ok(())
    }
}

fn absolute(what: &str, path: &str) -> Result<(), String> {
    let climbs = path.split('/').any(|part| part == "..");
    if !path.starts_with('/') || climbs || path.contains('\0') {
        return Err(format!("{what}: {path:?} is not an absolute path"));
    }
    Ok(())
}

fn environment(env: &[String]) -> Result<(), String> {
    let named = |variable: &&String| variable.find('=').is_some_and(|at| at > 0) && !variable.contains('\0');
    match env.iter().find(|variable| !named(variable)) {
        None => Ok(()),
        Some(wrong) => Err(format!("{wrong:?} is not NAME=value")),
    }
}

fn c_strings<'t>(what: &str, texts: impl IntoIterator<Item = &'t String>) -> Result<(), String> {
    match texts.into_iter().find(|text| text.contains('\0')) {
        None => Ok(()),
        Some(_) => Err(format!("{what}: holds a NUL byte")),
    }
}
