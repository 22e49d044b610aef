//! Inside the virtual machine: what the program `guest` does as process 1, and as a service below systemd.

mod root;
mod serve;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};

use super::job::{JOB, JOB_KEPT, Job};
use super::{Init, selinux, systemd};

/// The guest's disk: ext4, for what cannot lie on an overlay.
pub const DISK: &str = "/run/disk";

/// The argument with which systemd starts the program as a service.
pub(super) const SERVICE: &str = "job";

/// The whole of the program `guest`: it ends with the virtual machine.
pub fn main() {
    let service = std::env::args().nth(1).is_some_and(|arg| arg == SERVICE);
    let done = if service { serve::run() } else { begin() };
    if let Err(e) = done {
        let console = OpenOptions::new().write(true).open("/dev/console");
        let _ = console.map(|mut console| writeln!(console, "guest: {e:#}"));
    }
    nix::unistd::sync();
    // Not reached by what follows only where this is neither process 1 nor root.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

/// Process 1 of the initramfs: changes into the root and goes on as the flavour says.
fn begin() -> Result<()> {
    let bytes = fs::read(JOB).context("read the job")?;
    let job = Job::decode(&bytes)?;
    root::enter(&job)?;
    fs::write(JOB_KEPT, bytes).context("keep the job")?;
    match job.init {
        Init::Small => {
            root::furnish()?;
            serve::run()
        }
        Init::Selinux => {
            root::furnish()?;
            selinux::load()?;
            serve::run()
        }
        Init::Systemd => systemd::hand_over(&job),
    }
}

fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
