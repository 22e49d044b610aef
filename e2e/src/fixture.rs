//! What every test runs on: a filled registry, a podd, and the base image pulled.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::podd::{self, Podd};
use crate::registry::Registry;

/// Registry and podd of one arena.
#[derive(Debug)]
pub struct Fixture {
    /// The registry, filled with the catalogue.
    pub registry: Registry,
    /// The daemon under test, where one was asked for.
    podd: Option<Podd>,
}

impl Fixture {
    /// Starts the registry, and podd where `with_podd` says so.
    ///
    /// # Errors
    /// Where one does not come up.
    pub fn start(with_podd: bool) -> Result<Self> {
        let mut registry = Registry::start()?;
        registry.fill().context("fill the registry")?;
        let mut fixture = Self { registry, podd: None };
        if with_podd {
            fixture.podd()?;
        }
        Ok(fixture)
    }

    /// The daemon under test; a new one on an empty state where there is none or the last one crashed.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn podd(&mut self) -> Result<&mut Podd> {
        if self.podd.as_mut().is_none_or(Podd::crashed) {
            self.discard();
            let podd = Podd::start()?;
            podd.cri()
                .pull(podd::IMAGE)
                .with_context(|| format!("pull the base image\n{}", podd::log_tail()))?;
            self.podd = Some(podd);
        }
        self.podd.as_mut().context("podd was started above")
    }

    /// The daemon under test as it is, and none where it has crashed.
    pub fn podd_as_it_is(&mut self) -> Option<&mut Podd> {
        let podd = self.podd.as_mut()?;
        if podd.crashed() { None } else { Some(podd) }
    }

    /// Kills podd and every process of its pods, and forgets its state: a failed test must not fail the next.
    pub fn discard(&mut self) {
        let used = self.podd.take().is_some();
        let own = [1, std::process::id(), self.registry.pid()];
        let deadline = Instant::now() + Duration::from_secs(10);
        while used && Instant::now() < deadline {
            let others: Vec<u32> = crate::census::pids()
                .into_iter()
                .filter(|pid| !own.contains(pid))
                .collect();
            if others.is_empty() {
                break;
            }
            for pid in others {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for dir in [podd::STATE_DIR, podd::RUN_DIR, "/var/log/pods"] {
            empty(Path::new(dir));
        }
        let _ = fs::remove_file(podd::WARM);
        remove_cgroups(Path::new("/sys/fs/cgroup"));
    }
}

/// Removes everything in `dir`, which may be a mount point itself.
fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
    }
}

/// Removes every cgroup without processes below `dir`.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with(crate::arena::HARNESS_CGROUP) {
            remove_cgroups(&path);
            let _ = fs::remove_dir(&path);
        }
    }
}
