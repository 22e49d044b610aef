//! The flavour with systemd as process 1: its packages, and the few units that it starts.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use super::guest::SERVICE;
use super::job::Job;
use super::packages::{Apt, Cache, Installed, release};

/// What this machine may lack of a machine that systemd has started.
const PACKAGES: [&str; 4] = ["systemd", "systemd-sysv", "dbus", "util-linux"];
/// Units of systemd's own target sysinit that only cost time in a guest without devices and logins.
const MASKED: [&str; 17] = [
    // It would empty this machine's /tmp, file by file, in the overlay.
    "systemd-tmpfiles-setup.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-udev-settle.service",
    "systemd-hwdb-update.service",
    "systemd-random-seed.service",
    "systemd-boot-random-seed.service",
    "systemd-update-utmp.service",
    "systemd-binfmt.service",
    "systemd-journal-flush.service",
    "systemd-journal-catalog-update.service",
    "systemd-machine-id-commit.service",
    "systemd-pstore.service",
    "systemd-modules-load.service",
    "ldconfig.service",
];

/// The packages of this machine's own release, unpacked, but for what is installed.
pub(super) fn prepare(cache: &Cache) -> Result<PathBuf> {
    let release = release()?;
    cache.once(&format!("systemd-{release}"), |dir| {
        let apt = Apt::new(cache, &release)?;
        apt.unpack(&PACKAGES, Installed::Machine, dir)
    })
}

/// Writes the units of the guest and becomes systemd.
pub(super) fn hand_over(job: &Job) -> Result<()> {
    // This machine's own services are none of the guest's.
    let units = Path::new("/etc/systemd/system");
    fs::create_dir_all(units)?;
    mount(
        Some("units"),
        units,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )
    .context("hide the machine's units")?;
    for unit in MASKED {
        symlink("/dev/null", units.join(unit))?;
    }
    fs::write(
        units.join("vm.target"),
        "[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=vm-job.service dbus.service\n",
    )?;
    fs::write(
        units.join("vm-job.service"),
        format!(
            "[Unit]\nDescription=The command of this virtual machine\nAfter=dbus.service\n\
             FailureAction=poweroff-immediate\n\
             [Service]\nType=oneshot\nExecStart={} {SERVICE}\nTimeoutStartSec=infinity\nTasksMax=infinity\n",
            job.guest.display()
        ),
    )?;
    // Where this machine is a container itself, systemd must not think that of the guest.
    for mark in ["/.dockerenv", "/run/.containerenv"] {
        let _ = fs::remove_file(mark);
    }
    fs::write("/etc/machine-id", "00000000000000000000000000000001\n")?;
    fs::write("/etc/hostname", "vm\n")?;
    add_user("messagebus", 990)?;
    Err(Command::new("/lib/systemd/systemd").exec()).context("start systemd")
}

/// The user that dbus-daemon changes to, where the package was never installed.
fn add_user(name: &str, id: u32) -> Result<()> {
    for (file, rest) in [
        ("/etc/passwd", format!("{id}::/nonexistent:/usr/sbin/nologin")),
        ("/etc/group", String::new()),
    ] {
        let text = fs::read_to_string(file)?;
        if !text.lines().any(|line| line.starts_with(&format!("{name}:"))) {
            let mut end = OpenOptions::new().append(true).open(file)?;
            writeln!(end, "{name}:x:{id}:{rest}")?;
        }
    }
    Ok(())
}
