//! The virtual machine: a Debian kernel with unified cgroup v2 and every controller, booted under QEMU.
//!
//! The guest sees this machine's root read-only (9p) below an overlay in memory, so that the programs built here run
//! there under the same paths; what containers write lies on an ext4 disk. One boot runs one command:
//!
//! 1. [`Machine::prepare`] fetches kernel, QEMU and, for that flavour, systemd as Debian packages into a cache;
//! 2. [`Machine::run`] packs an initramfs with the program `guest` ([`guest`]) and starts QEMU;
//! 3. `guest` is process 1: it loads modules, mounts, and runs the command itself or hands over to systemd, which
//!    runs it as a service; output and exit code come back over two virtio ports.

pub mod guest;
mod initramfs;
mod job;
mod kernel;
mod packages;
mod qemu;
mod selinux;
mod systemd;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use qemu::{Ended, WorkDir};

/// Set for every process in a virtual machine.
const INSIDE: &str = "PODD_VM";

/// A Debian kernel, by its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Linux 6.1 of Debian 12: the oldest that podd supports.
    V6_1,
    /// Linux 6.12 of Debian 13.
    V6_12,
}

impl Kernel {
    /// The suite of the Debian archive that has it.
    fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

impl FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "6.1" => Ok(Self::V6_1),
            "6.12" => Ok(Self::V6_12),
            _ => bail!("no kernel {text:?}: 6.1 or 6.12"),
        }
    }
}

/// What runs as process 1 of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// The program `guest` alone.
    #[default]
    Small,
    /// systemd of this machine's release, with D-Bus and the journal and little else.
    Systemd,
    /// The program `guest`, with SELinux in place of AppArmor, enforcing Debian's policy.
    Selinux,
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "small-init",
            Self::Systemd => "systemd",
            Self::Selinux => "selinux",
        })
    }
}

impl FromStr for Init {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "small-init" => Ok(Self::Small),
            "systemd" => Ok(Self::Systemd),
            "selinux" => Ok(Self::Selinux),
            _ => bail!("no init {text:?}: small-init, systemd or selinux"),
        }
    }
}

/// Whether this process runs in a virtual machine of this module.
#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Why no virtual machine can run here, where that is no fault of podd's.
#[must_use]
pub fn unable() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root can read this machine's root for the guest".to_owned());
    }
    let programs = [
        "apt-get",
        "dpkg-deb",
        "xz",
        "mkfs.ext4",
        "setpriv",
        "timeout",
        "ldd",
    ];
    let missing = programs.into_iter().find(|name| !has(name));
    missing.map(|name| format!("{name} is not installed: run `make deps`"))
}

fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|dir| Path::new(dir).join(program).exists())
}

/// A command for a guest.
#[derive(Clone, Debug)]
pub struct Order {
    /// The command and its arguments. Programs are found where they are on this machine.
    pub command: Vec<String>,
    /// More environment for it.
    pub env: Vec<(String, String)>,
    /// How long the guest may run.
    pub limit: Duration,
    /// A disk to use and keep; otherwise an empty one is made, and removed after the boot.
    pub disk: Option<PathBuf>,
    /// Whether the command talks to a person over this process's terminal.
    pub terminal: bool,
}

impl Order {
    /// A command without further wishes, for at most `limit`.
    #[must_use]
    pub fn new(command: &[&str], limit: Duration) -> Self {
        Self {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
            limit,
            disk: None,
            terminal: false,
        }
    }
}

/// A kernel and an init, ready to boot as often as wanted.
#[derive(Debug)]
pub struct Machine {
    init: Init,
    kernel: kernel::KernelFiles,
    qemu: qemu::Qemu,
    /// What is laid over the root: systemd or a policy, for those flavours.
    layer: Option<PathBuf>,
    guest: PathBuf,
}

impl Machine {
    /// Gets everything that is not in the cache yet.
    ///
    /// # Errors
    /// Where the packages cannot be had, or the program `guest` was not built.
    pub fn prepare(kernel: Kernel, init: Init) -> Result<Self> {
        let cache = packages::Cache::open()?;
        let guest = program("guest")?;
        let kernel = kernel::prepare(&cache, kernel)?;
        Ok(Self {
            init,
            qemu: qemu::Qemu::prepare(&cache, &kernel, &guest)?,
            kernel,
            layer: match init {
                Init::Small => None,
                Init::Systemd => Some(systemd::prepare(&cache)?),
                Init::Selinux => Some(selinux::prepare(&cache)?),
            },
            guest,
        })
    }

    /// Kernel release and flavour: `6.1.0-30-amd64 small-init, emulated`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} {}, {}", self.kernel.release, self.init, self.qemu.how())
    }

    /// Boots, runs the command and powers off; each line that the command writes goes to `line`.
    ///
    /// # Errors
    /// Where the guest dies or does not end in time; the error quotes its console.
    pub fn run(&self, order: &Order, line: &mut dyn FnMut(&str)) -> Result<Ended> {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut env = vec![
            ("PATH".to_owned(), path.to_owned()),
            ("HOME".to_owned(), "/root".to_owned()),
            ("TERM".to_owned(), std::env::var("TERM").unwrap_or_default()),
            (INSIDE.to_owned(), "1".to_owned()),
            // A real file system, as the arena needs for its work directory.
            ("PODD_ARENA_DIR".to_owned(), guest::DISK.to_owned()),
        ];
        env.extend(order.env.iter().cloned());
        let job = job::Job {
            init: self.init,
            guest: self.guest.clone(),
            layer: self.layer.clone(),
            directory: std::env::current_dir().context("current directory")?,
            env,
            command: order.command.clone(),
            terminal: order.terminal,
        };
        self.qemu.boot(&self.kernel, &job, order, line)
    }
}

/// A program of this crate, built beside the running one: target/PROFILE/NAME, seen from target/PROFILE/PROGRAM or
/// target/PROFILE/deps/PROGRAM-HASH.
///
/// # Errors
/// Where it was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("own executable")?;
    let places = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let found = places.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: run `cargo build -p podd-e2e --bins`"))
}
