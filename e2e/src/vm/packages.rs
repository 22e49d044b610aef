//! Debian packages for the virtual machine, fetched by the machine's own apt into a cache: nothing is installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How long package lists stay good.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long one call of apt or of an unpacker may take, in seconds.
const LIMIT: &str = "600";

/// What was fetched and unpacked once for all runs. Other processes wait while one holds it.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Cache {
    /// Opens the directory that `PODD_VM_CACHE` names, or `podd-vm` in the user's cache directory.
    pub(super) fn open() -> Result<Self> {
        let var = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let dir = var("PODD_VM_CACHE")
            .or_else(|| Some(var("XDG_CACHE_HOME")?.join("podd-vm")))
            .or_else(|| Some(var("HOME")?.join(".cache/podd-vm")))
            .unwrap_or_else(|| PathBuf::from("/var/cache/podd-vm"));
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let file = File::create(dir.join("lock")).with_context(|| format!("write in {}", dir.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e);
        Ok(Self {
            _lock: lock.with_context(|| format!("lock {}", dir.display()))?,
            dir,
        })
    }

    /// The directory `name`: filled by `fill` under another name first, so that it is whole where it exists.
    pub(super) fn once(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let whole = self.dir.join(name);
        if whole.is_dir() {
            return Ok(whole);
        }
        eprintln!("vm: preparing {name} (once, in {})", self.dir.display());
        let new = self.dir.join(format!("{name}.new"));
        remove(&new)?;
        fs::create_dir(&new)?;
        fill(&new).with_context(|| format!("prepare {name}"))?;
        fs::rename(&new, &whole)?;
        Ok(whole)
    }

    /// The answer to a question that is asked once in each boot of this machine.
    pub(super) fn remembered(&self, name: &str, ask: impl FnOnce() -> bool) -> Result<bool> {
        let (file, boot) = (self.dir.join(name), boot_id()?);
        let known = fs::read_to_string(&file).unwrap_or_default();
        if let Some(answer) = known.strip_prefix(&boot) {
            return Ok(answer == " yes");
        }
        let answer = ask();
        fs::write(&file, format!("{boot} {}", if answer { "yes" } else { "no" }))?;
        Ok(answer)
    }
}

/// The identity of this boot of the machine.
fn boot_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    Ok(id.trim().to_owned())
}

/// What apt is to regard as installed when it resolves dependencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Installed {
    /// Nothing: a package comes with every library it needs, and runs beside the machine's own.
    Nothing,
    /// What this machine has: only what it lacks comes.
    Machine,
}

/// An apt that reads one suite of the Debian archive and keeps its state in the cache.
#[derive(Debug)]
pub(super) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Opens the lists of `suite`, fetching them when they are old.
    pub(super) fn new(cache: &Cache, suite: &str) -> Result<Self> {
        let apt = Self {
            dir: cache.dir.join("apt").join(suite),
        };
        fs::create_dir_all(apt.dir.join("lists/partial"))?;
        fs::write(apt.dir.join("status"), "")?;
        fs::write(apt.dir.join("sources.list"), sources(suite)?)?;
        let stamp = apt.dir.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| SystemTime::now().duration_since(t).ok());
        if age.is_none_or(|age| age > FRESH) {
            run(apt.command("apt-get", Installed::Nothing).arg("update"))?;
            fs::write(stamp, "")?;
        }
        Ok(apt)
    }

    /// The package that the empty package `name` stands for: `linux-image-amd64` names the newest kernel.
    pub(super) fn behind(&self, name: &str, prefix: &str) -> Result<String> {
        let told = run(self
            .command("apt-cache", Installed::Nothing)
            .args(["depends", name]))?;
        let mut words = told.split_whitespace();
        let found = words.find(|w| w.starts_with(prefix));
        Ok(found
            .with_context(|| format!("{name} depends on no {prefix}*"))?
            .to_owned())
    }

    /// Unpacks the package `name` alone into `dir`.
    pub(super) fn unpack_one(&self, name: &str, dir: &Path) -> Result<()> {
        let debs = dir.join("debs");
        fs::create_dir_all(&debs)?;
        run(self
            .command("apt-get", Installed::Nothing)
            .args(["download", name])
            .current_dir(&debs))?;
        unpack_all(&debs, dir)
    }

    /// Unpacks packages and what they depend on into `dir`, without what is `installed`.
    pub(super) fn unpack(&self, names: &[&str], installed: Installed, dir: &Path) -> Result<()> {
        let debs = dir.join("debs");
        fs::create_dir_all(debs.join("partial"))?;
        run(self
            .command("apt-get", installed)
            .arg(format!("-oDir::Cache::archives={}", debs.display()))
            .args(["--download-only", "--no-install-recommends", "-y", "install"])
            .args(names))?;
        unpack_all(&debs, dir)
    }

    fn command(&self, program: &str, installed: Installed) -> Command {
        let dir = self.dir.display();
        let status = match installed {
            Installed::Nothing => format!("{dir}/status"),
            Installed::Machine => "/var/lib/dpkg/status".to_owned(),
        };
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", LIMIT, program, "-qq"])
            .arg(format!("-oDir::Etc::sourcelist={dir}/sources.list"))
            .arg("-oDir::Etc::sourceparts=/dev/null")
            .arg(format!("-oDir::State={dir}"))
            .arg(format!("-oDir::State::status={status}"))
            .arg(format!("-oDir::Cache={dir}"))
            .args(["-oAPT::Sandbox::User=root", "-oDebug::NoLocking=1"])
            .args(["-oAcquire::http::Timeout=30", "-oAcquire::Retries=3"])
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// Unpacks every package in `debs` into `dir`, removes the packages, and merges /usr as Debian does.
fn unpack_all(debs: &Path, dir: &Path) -> Result<()> {
    for entry in fs::read_dir(debs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg-deb").arg("-x").args([&path, dir]))?;
        }
    }
    remove(debs)?;
    // /bin and the like are symbolic links where this tree is laid over a root: directories would hide them.
    for name in ["bin", "sbin", "lib", "lib64"] {
        let apart = dir.join(name);
        if apart.is_dir() && !apart.is_symlink() {
            let merged = dir.join("usr").join(name);
            fs::create_dir_all(&merged)?;
            run(Command::new("cp").arg("-a").arg(apart.join(".")).arg(&merged))?;
            remove(&apart)?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The output of a program that has to succeed.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command.output().with_context(|| format!("start {name}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "{command:?}: {}: {}",
        done.status,
        said.trim()
    );
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The release of Debian that this machine runs, `bookworm` for example.
pub(super) fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let value = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.map(|v| v.trim_matches('"').to_owned())
    };
    ensure!(
        value("ID").as_deref() == Some("debian"),
        "this machine does not run Debian"
    );
    value("VERSION_CODENAME").context("/etc/os-release names no release of Debian")
}

/// A sources.list with `suite` and its security updates, from the archives that this machine uses itself.
fn sources(suite: &str) -> Result<String> {
    ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing");
    let texts = source_files()
        .into_iter()
        .filter_map(|f| fs::read_to_string(f).ok());
    let all: Vec<String> = texts.collect();
    let archive = |end: &str| {
        let mut words = all.iter().flat_map(|text| text.lines());
        words.find_map(|line| {
            let line = line.trim();
            let named = line.starts_with("deb ") || line.starts_with("URIs:");
            let mut words = line.split_whitespace().filter(|_| named);
            words.find_map(|w| w.trim_end_matches('/').strip_suffix(end).map(|_| w.to_owned()))
        })
    };
    let Some(main) = archive("/debian") else {
        bail!("the apt sources of this machine name no Debian archive")
    };
    let mut text = format!("deb [signed-by={KEYRING}] {main} {suite} main\n");
    if let Some(security) = archive("/debian-security") {
        text += &format!("deb [signed-by={KEYRING}] {security} {suite}-security main\n");
    }
    Ok(text)
}

fn source_files() -> Vec<PathBuf> {
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    let mut files: Vec<PathBuf> = parts.map(|e| e.path()).collect();
    files.sort();
    files.insert(0, "/etc/apt/sources.list".into());
    files
}
