//! What the caller decides: where the store lives, limits on foreign content, deadlines and mirrors.
//!
//! Plain values with defaults. Never read from the environment or from files here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything [`crate::Images::open`] needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory that holds `layers/`, `images/`, `tmp/`; created if missing.
    pub root: PathBuf,
    /// Mirrors and deadlines.
    pub registries: RegistryConfig,
    /// Bounds on everything that comes from a registry.
    pub limits: Limits,
    /// Layers downloaded and unpacked at once, over all pulls; 0 means twice the CPUs, at least 4.
    pub max_parallel_layers: usize,
    /// How layers reach the disk before they are committed.
    pub durability: Durability,
    /// How long a layer that no image and no container needs (left by a failed pull) is kept for a retry.
    pub unreferenced_grace: Duration,
}

impl Config {
    /// Defaults with the store at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Config {
            root: root.into(),
            registries: RegistryConfig::default(),
            limits: Limits::default(),
            max_parallel_layers: 0,
            durability: Durability::default(),
            unreferenced_grace: Duration::from_secs(600),
        }
    }

    pub(crate) fn parallel_layers(&self) -> usize {
        match self.max_parallel_layers {
            0 => std::thread::available_parallelism().map_or(4, |n| (2 * n.get()).max(4)),
            n => n,
        }
    }
}

/// How unpacked layers become durable before their rename; the measurements are in `store/commit.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// One `syncfs` for every group of layers that are ready at the same time. Waits for other writers of the file
    /// system too.
    #[default]
    SyncFs,
    /// `fdatasync` on every regular file when it is closed. Independent of other tenants, slow with many small files.
    PerFile,
    /// No flush: after a power cut layers must be checked with [`crate::Images::verify`].
    None,
}

/// Bounds on foreign content; each refusal is [`crate::Error::TooLarge`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a manifest or index (the distribution specification asks for at least 4 MiB).
    pub manifest_bytes: u64,
    /// Bytes of an image config.
    pub config_bytes: u64,
    /// Layers in one image. Overlayfs itself stops at 500.
    pub layers: usize,
    /// Compressed bytes of one layer.
    pub layer_compressed_bytes: u64,
    /// Unpacked bytes of one layer: the tar stream as a whole.
    pub layer_bytes: u64,
    /// Files, directories and links in one layer.
    pub layer_inodes: u64,
    /// Largest allowed unpacked/compressed ratio, applied once 256 MiB are unpacked. Deflate cannot exceed 1032.
    pub ratio: u64,
    /// Bytes of a path or of a link target inside a layer.
    pub path_bytes: usize,
    /// Bytes of all extended attributes of one entry, which also bounds its PAX header.
    pub xattr_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layers: 256,
            layer_compressed_bytes: 64 << 30,
            layer_bytes: 128 << 30,
            layer_inodes: 4_000_000,
            ratio: 500,
            path_bytes: 4096,
            xattr_bytes: 128 << 10,
        }
    }
}

/// Which endpoints serve a registry host, and the deadlines for talking to them.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// Registry host as it appears in normalised references (`docker.io`) to ordered endpoints. The registry itself
    /// is tried after them.
    pub mirrors: BTreeMap<String, Vec<Endpoint>>,
    /// Deadlines.
    pub timeouts: Timeouts,
}

/// A base URL that serves the distribution API for some registry host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://host[:port][/prefix]`, or `http://…` for plain HTTP. `/v2/` is appended.
    pub url: String,
    /// Whether the credentials meant for the registry may be sent to this endpoint.
    pub forward_credentials: bool,
}

impl Endpoint {
    /// An endpoint that never sees the registry's credentials, unless it is that registry itself.
    pub fn new(url: impl Into<String>) -> Self {
        Endpoint {
            url: url.into(),
            forward_credentials: false,
        }
    }
}

/// Deadlines of the registry client. There is no deadline on a whole download: a slow one that moves may go on.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// TCP and TLS set-up.
    pub connect: Duration,
    /// From sending a request to the first byte of its answer.
    pub first_byte: Duration,
    /// Length of the window over which throughput is measured. Only time spent waiting for the network counts.
    pub window: Duration,
    /// Bytes that must arrive in each window.
    pub window_bytes: u64,
    /// Bound on fetching a manifest, a config or a token as a whole.
    pub document: Duration,
    /// How long an endpoint that could not be reached is tried last.
    pub breaker: Duration,
    /// Attempts per blob, resumes included.
    pub attempts: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(30),
            window: Duration::from_secs(30),
            window_bytes: 64 << 10,
            document: Duration::from_secs(120),
            breaker: Duration::from_secs(60),
            attempts: 6,
        }
    }
}
