//! The configuration: one TOML file, read once, into a typed tree.
//!
//! Owns every key, its default and the error that names file and line. Reads no environment, changes nothing on
//! the host, and is never written back. Every key is described in `docs/config.md`; a test holds that.

mod observe;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

pub use observe::{Observe, Tracing};
pub use podd_netplug::Subnet;
use serde::{Deserialize, Serialize};

/// Where the configuration is looked for when the command line names no file.
pub const DEFAULT_PATH: &str = "/etc/podd/config.toml";

/// The whole configuration. A value that was loaded has passed every check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Unix socket on which the CRI is served.
    pub socket: PathBuf,
    /// What must survive a restart of podd: images, layers and records.
    pub state_dir: PathBuf,
    /// What may vanish at a reboot: the lock file and the sockets of podinit.
    pub run_dir: PathBuf,
    /// Logging of the daemon itself.
    pub log: Log,
    /// Metrics, health and the log level.
    pub observe: Observe,
    /// Traces of requests.
    pub tracing: Tracing,
    /// The server behind Exec, Attach and PortForward.
    pub streaming: Streaming,
    /// Control groups.
    pub cgroup: Cgroup,
    /// The built-in pod network.
    pub network: Network,
    /// The Container Device Interface.
    pub cdi: Cdi,
    /// Labels of containers on a node with SELinux.
    pub selinux: Selinux,
    /// The local image store.
    pub images: Images,
    /// Registries and their mirrors.
    pub registries: Registries,
    /// How long podd waits for others.
    pub timeouts: Timeouts,
    /// Upper bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/podd/podd.sock"),
            state_dir: PathBuf::from("/var/lib/podd"),
            run_dir: PathBuf::from("/run/podd"),
            log: Log::default(),
            observe: Observe::default(),
            tracing: Tracing::default(),
            streaming: Streaming::default(),
            cgroup: Cgroup::default(),
            network: Network::default(),
            cdi: Cdi::default(),
            selinux: Selinux::default(),
            images: Images::default(),
            registries: Registries::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }
}

/// Logging of the daemon itself; container logs are the kubelet's affair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level, or directives such as `info,podd_images=debug`.
    pub level: String,
    /// Where lines go and in what shape.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Auto,
        }
    }
}

/// Where log lines go and in what shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `journald` when standard error is connected to the journal, `stderr` otherwise.
    Auto,
    /// The journal's native protocol, fields kept apart.
    Journald,
    /// One line of text per event on standard error.
    Stderr,
    /// One JSON object per event on standard error.
    Json,
}

/// The server behind Exec, Attach and PortForward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// Address to listen on, and the host of the URLs that clients are given.
    pub address: IpAddr,
    /// Port to listen on; 0 lets the kernel choose.
    pub port: u16,
    /// How long a session may be silent in both directions.
    pub idle_seconds: u32,
    /// What connections are encrypted with; plain HTTP without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// PEM files that are read when podd starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            idle_seconds: 4 * 60 * 60,
            tls: None,
        }
    }
}

/// Control groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// Who makes the cgroups of pods.
    pub driver: CgroupDriver,
    /// Where the cgroup v2 hierarchy is mounted.
    pub root: PathBuf,
    /// Parent of pods that name none, as seen from `root`; with systemd `/a/b` is `a-b.slice`.
    pub default_parent: String,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self {
            driver: CgroupDriver::Auto,
            root: PathBuf::from("/sys/fs/cgroup"),
            default_parent: "/podd".to_owned(),
        }
    }
}

/// Who makes the cgroups of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// `systemd` where systemd is process 1, `cgroupfs` elsewhere.
    Auto,
    /// podd makes directories itself.
    Cgroupfs,
    /// systemd makes one delegated scope per pod.
    Systemd,
}

/// The built-in pod network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Name of the bridge that joins the pods.
    pub bridge: String,
    /// Who names the ranges of pod addresses.
    pub subnet_source: SubnetSource,
    /// Ranges of pod addresses, at most one of each family.
    pub subnets: Vec<Subnet>,
    /// MTU of pod interfaces; 0 takes that of the uplink.
    pub mtu: u32,
    /// Whether traffic that leaves the node is given the node's address.
    pub masquerade: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            bridge: "podd0".to_owned(),
            subnet_source: SubnetSource::Config,
            subnets: podd_netplug::NetConfig::default().subnets,
            mtu: 0,
            masquerade: true,
        }
    }
}

/// Who names the ranges of pod addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubnetSource {
    /// `network.subnets`, until a kubelet sends others.
    Config,
    /// Only the kubelet; the network is not ready before it has.
    Kubelet,
}

/// The Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cdi {
    /// Directories of spec files; what is in a later one wins.
    pub spec_dirs: Vec<PathBuf>,
}

impl Default for Cdi {
    fn default() -> Self {
        Self {
            spec_dirs: vec![PathBuf::from("/etc/cdi"), PathBuf::from("/var/run/cdi")],
        }
    }
}

/// Labels of containers on a node with SELinux; without it nothing of this counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selinux {
    /// Whether containers are labelled.
    pub enabled: bool,
    /// Levels of pods that name none are pairs of the categories below this one.
    pub categories: u16,
}

impl Default for Selinux {
    fn default() -> Self {
        Self {
            enabled: true,
            categories: 1024,
        }
    }
}

/// The local image store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// References that the kubelet's garbage collection must keep.
    pub pinned: Vec<String>,
}

/// Registries and their mirrors.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// Registry host, as in image references, to where it is really fetched from.
    pub mirrors: BTreeMap<String, Mirror>,
}

/// Where one registry is really fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirror {
    /// URLs in the order they are tried; plain HTTP only where the URL says `http://`.
    pub endpoints: Vec<String>,
}

/// How long podd waits for others, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For processes to vanish after they were killed.
    pub kill_seconds: u32,
    /// For a container to be built up to its start gate.
    pub create_seconds: u32,
    /// For requests still being answered when podd is told to stop.
    pub drain_seconds: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            kill_seconds: 30,
            create_seconds: 120,
            drain_seconds: 10,
        }
    }
}

/// Upper bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of standard output, and of standard error, that ExecSync returns; the rest is discarded.
    pub exec_sync_output_bytes: u32,
    /// Largest message sent or received on the CRI socket.
    pub grpc_message_bytes: u32,
    /// Longest list that is answered in one message.
    pub list_bytes: u32,
    /// Open files of a container: the soft limit.
    pub nofile_soft: u64,
    /// Open files of a container: the hard limit.
    pub nofile_hard: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            exec_sync_output_bytes: 16 << 20,
            grpc_message_bytes: 80 << 20,
            // What the kubelet and crictl take.
            list_bytes: 16 << 20,
            nofile_soft: 1024,
            nofile_hard: 524_288,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or value that podd does not know.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// Each value can be read, but one makes no sense.
    #[error("{}: {key}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: &'static str,
        /// Why the value is refused.
        reason: String,
    },
}

impl Config {
    /// Reads `path`, or the default file where there is one, or else the defaults.
    ///
    /// # Errors
    /// A file that was named must exist; any file must be whole and sensible.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, named) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads a configuration from text; `path` is only named in errors.
    ///
    /// # Errors
    /// The first line that is no TOML, names an unknown key or has a value that makes no sense.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| {
            let start = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count();
            ConfigError::Parse {
                path: path.to_owned(),
                line,
                message: one_line(e.message()),
            }
        })?;
        match config.objection() {
            None => Ok(config),
            Some((key, reason)) => Err(ConfigError::Value {
                path: path.to_owned(),
                key,
                reason,
            }),
        }
    }

    /// The configuration as TOML, every key present.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("the tree holds only what TOML can say")
    }

    /// The first key whose value makes no sense, and why.
    fn objection(&self) -> Option<(&'static str, String)> {
        let paths = [
            ("socket", &self.socket),
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("cgroup.root", &self.cgroup.root),
        ];
        let spec_dirs = self.cdi.spec_dirs.iter().map(|dir| ("cdi.spec_dirs", dir));
        for (key, path) in paths.into_iter().chain(spec_dirs) {
            if !path.is_absolute() {
                return Some((key, format!("{} is not an absolute path", path.display())));
            }
        }
        if let Err(e) = crate::telemetry::filter(&self.log.level) {
            return Some(("log.level", e.to_string()));
        }
        let observed = self.observe.objection().or_else(|| self.tracing.objection());
        if let Some(objection) = observed.or_else(|| self.network.objection()) {
            return Some(objection);
        }
        if self.streaming.address.is_unspecified() {
            let reason = "must be one address of the node: it is the host of the URLs that clients are given";
            return Some(("streaming.address", reason.to_owned()));
        }
        if self.streaming.idle_seconds == 0 {
            return Some(("streaming.idle_seconds", "must be at least 1".to_owned()));
        }
        let parent = &self.cgroup.default_parent;
        if !(parent.starts_with('/') || parent.ends_with(".slice")) || parent.contains("..") {
            return Some((
                "cgroup.default_parent",
                "must start with / and stay below cgroup.root, or be a slice of systemd".to_owned(),
            ));
        }
        if !(2..=1024).contains(&self.selinux.categories) {
            return Some(("selinux.categories", "must be 2 to 1024".to_owned()));
        }
        for (host, mirror) in &self.registries.mirrors {
            let bad = mirror
                .endpoints
                .iter()
                .find(|e| !e.starts_with("http://") && !e.starts_with("https://"));
            if let Some(endpoint) = bad {
                let reason = format!("{host}: {endpoint:?} must start with https:// or http://");
                return Some(("registries.mirrors", reason));
            }
        }
        self.limits.objection()
    }
}

impl Network {
    fn objection(&self) -> Option<(&'static str, String)> {
        // IFNAMSIZ in linux/if.h: 16 bytes with the final NUL.
        if self.bridge.is_empty() || self.bridge.len() > 15 || self.bridge.contains('/') {
            return Some((
                "network.bridge",
                "a link name has 1 to 15 bytes and no /".to_owned(),
            ));
        }
        let v4 = self.subnets.iter().filter(|s| s.is_ipv4()).count();
        if v4 > 1 || self.subnets.len() - v4 > 1 {
            return Some(("network.subnets", "at most one range of each family".to_owned()));
        }
        if self.subnet_source == SubnetSource::Config && self.subnets.is_empty() {
            return Some((
                "network.subnets",
                "must name a range unless subnet_source is kubelet".to_owned(),
            ));
        }
        if self.mtu != 0 && !(1280..=65_535).contains(&self.mtu) {
            return Some((
                "network.mtu",
                "must be 0 or 1280 to 65535, the least that IPv6 allows".to_owned(),
            ));
        }
        None
    }
}

impl Limits {
    fn objection(&self) -> Option<(&'static str, String)> {
        if self.nofile_soft > self.nofile_hard {
            return Some(("limits.nofile_soft", "is above limits.nofile_hard".to_owned()));
        }
        if self.grpc_message_bytes < 4 << 20 {
            return Some(("limits.grpc_message_bytes", "must be at least 4194304".to_owned()));
        }
        if self.exec_sync_output_bytes > self.grpc_message_bytes / 2 {
            let reason = "two streams of this size must fit into limits.grpc_message_bytes".to_owned();
            return Some(("limits.exec_sync_output_bytes", reason));
        }
        None
    }
}

/// The message of a parser, which may span lines, on one.
fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests;
