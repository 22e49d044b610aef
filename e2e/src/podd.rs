//! A `podd` under test: its configuration, its process, its log.
//!
//! Lives in the arena at the places it has on a node, so that crictl, critest and the kubelet's own defaults work
//! there unchanged. One runs at a time.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podd_proto::v1::VersionRequest;

use crate::PATIENCE;
use crate::arena::WORK_DIR;
use crate::cri::Cri;
use crate::registry;

/// The image that most tests run, present in every fixture.
pub const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// Where podd serves the CRI.
pub const SOCKET: &str = "/run/podd/podd.sock";
/// What podd keeps over a restart.
pub const STATE_DIR: &str = "/var/lib/podd";
/// What podd loses at a reboot.
pub const RUN_DIR: &str = "/run/podd";
/// The cgroup podd runs in, as its service unit would give it.
pub const CGROUP: &str = "/sys/fs/cgroup/podd.service";

/// Marks that the first pod on this state has been up and down; goes with the state.
pub const WARM: &str = "/run/arena/warm";

/// The configuration file of the podd under test.
pub const CONFIG: &str = "/etc/podd/config.toml";

/// A running daemon; it is killed with the value, its pods are not.
#[derive(Debug)]
pub struct Podd {
    child: Child,
    binary: PathBuf,
    cri: Cri,
    /// How the process ended, where a test has ended it.
    ended: Option<ExitStatus>,
}

impl Podd {
    /// Starts podd with the configuration of [`config`] and waits until it answers.
    ///
    /// # Errors
    /// Where it was not built, or ends or says nothing within 20 seconds; the error quotes its log.
    pub fn start() -> Result<Self> {
        fs::create_dir_all("/etc/podd")?;
        fs::write(CONFIG, config())?;
        fs::write(
            "/etc/crictl.yaml",
            format!("runtime-endpoint: unix://{SOCKET}\nimage-endpoint: unix://{SOCKET}\n"),
        )?;
        fs::create_dir_all(CGROUP).with_context(|| format!("make {CGROUP}"))?;
        let binary = binary()?;
        let child = spawn(&binary)?;
        let mut podd = Self {
            child,
            binary,
            cri: Cri::new(Path::new(SOCKET))?,
            ended: None,
        };
        podd.wait_ready()?;
        Ok(podd)
    }

    /// A client connected to this daemon, also to its successors after a restart.
    #[must_use]
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the daemon with `signal` and waits until it is gone.
    ///
    /// # Errors
    /// Where it does not end within [`PATIENCE`].
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).context("signal podd")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.ended = Some(status);
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("podd does not end on {signal}\n{}", log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a successor after [`Self::end`].
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        self.launch_again()?;
        self.wait_ready()
    }

    /// Starts a successor after [`Self::end`] without waiting for its first answer.
    ///
    /// # Errors
    /// Where it cannot be executed.
    pub fn launch_again(&mut self) -> Result<()> {
        self.child = spawn(&self.binary)?;
        self.ended = None;
        Ok(())
    }

    /// Whether the daemon has ended without being told to.
    pub fn crashed(&mut self) -> bool {
        self.ended.is_none() && self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match self.cri.version(VersionRequest::default()) {
                Ok(_) => return Ok(()),
                Err(e) => e,
            };
            if let Some(status) = self.child.try_wait()? {
                bail!("podd ended with {status}\n{}", log_tail());
            }
            if Instant::now() > deadline {
                bail!("podd does not answer: {error}\n{}", log_tail());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Podd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon that was built beside this executable, or the one `PODD_BIN` names.
///
/// # Errors
/// Where neither exists.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("PODD_BIN") {
        return Ok(named.into());
    }
    let exe = std::env::current_exe().context("own executable")?;
    // target/PROFILE/arena or target/PROFILE/deps/arena-HASH.
    let found = exe
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("podd"))
        .find(|p| p.is_file());
    found.context("podd is not built: run `cargo build --release -p podd-server` or set PODD_BIN")
}

/// The configuration of every podd under test: defaults, and the registry in place of the public ones.
#[must_use]
pub fn config() -> String {
    let mut text = "[log]\nlevel = \"info,podd=debug,podd_server=debug\"\nformat = \"stderr\"\n".to_owned();
    for host in registry::MIRRORED {
        let address = registry::ADDRESS;
        let _ = write!(
            text,
            "\n[registries.mirrors.\"{host}\"]\nendpoints = [\"http://{address}\"]\n"
        );
    }
    text
}

/// How much podd has logged: what comes later is read by [`log_since`].
#[must_use]
pub fn log_mark() -> u64 {
    fs::metadata(log_file()).map_or(0, |m| m.len())
}

/// The last lines that podd logged since `mark`.
#[must_use]
pub fn log_since(mark: u64) -> String {
    let text = fs::read(log_file()).unwrap_or_default();
    let from = usize::try_from(mark).unwrap_or(0).min(text.len());
    let text = String::from_utf8_lossy(&text[from..]).into_owned();
    let lines: Vec<_> = text.lines().collect();
    format!(
        "--- podd's log\n{}",
        lines[lines.len().saturating_sub(25)..].join("\n")
    )
}

/// The last lines that podd logged.
#[must_use]
pub fn log_tail() -> String {
    log_since(0)
}

/// Where podd's standard error goes.
#[must_use]
pub fn log_file() -> PathBuf {
    Path::new(WORK_DIR).join("podd.log")
}

fn spawn(binary: &Path) -> Result<Child> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_file())?;
    // A shell, because joining a cgroup between fork and exec would need unsafe code here.
    let script = "echo 0 >\"$0/cgroup.procs\" && exec \"$@\"";
    Command::new("/bin/sh")
        .args(["-c", script, CGROUP])
        .arg(binary)
        .args(["serve", "--config", CONFIG])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", binary.display()))
}
