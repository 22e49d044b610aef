//! The two stages of the arena that still see the host: the one that cleans up, and the one that leaves.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare as leave};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use super::{CGROUP, HARNESS_CGROUP, WORK, again, cgroup, code_of};

/// Runs `command` in a new arena and returns its exit code.
///
/// `reenter` runs this executable again inside, with `command` as its arguments, instead of another program.
///
/// # Errors
/// Where the caller is not root, or the host refuses a step.
pub fn enter(command: &[OsString], reenter: bool) -> Result<i32> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can make an arena");
    }
    let mut command = command.to_vec();
    if reenter {
        command.insert(0, super::own_executable()?.into());
    }
    // The arena hears a terminal's Ctrl-C itself; this process must live on to clean up after it.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;

    let name = format!("arena-{:08x}", random()?);
    let work = WorkDir::create(&name)?;
    let cgroup = cgroup::create(&name)?;
    let ran = again("unshare", &command).and_then(|mut cmd| {
        cmd.env(WORK, &work.0)
            .env(CGROUP, cgroup.as_deref().unwrap_or_else(|| Path::new("")));
        cmd.status().context("start the arena")
    });
    let removed = cgroup.as_deref().map_or(Ok(()), cgroup::remove);
    let code = code_of(ran?);
    removed?;
    work.remove()?;
    Ok(code)
}

/// Stage *unshare*: joins the arena's cgroup, leaves the host's namespaces and starts process 1.
pub(super) fn unshare(command: &[OsString]) -> Result<i32> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("die with the parent")?;
    let cgroup = std::env::var_os(CGROUP)
        .map(PathBuf::from)
        .filter(|c| !c.as_os_str().is_empty());
    // cgroup_namespaces(7): the cgroup the caller is in becomes the root, so it is entered first.
    if let Some(cgroup) = &cgroup {
        cgroup::join(cgroup)?;
    }
    let kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    leave(kinds).context("leave the host's namespaces")?;
    if let Some(cgroup) = &cgroup {
        cgroup::join(&cgroup.join(HARNESS_CGROUP))?;
    }
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("make all mounts private")?;
    // pid_namespaces(7): the first child after unshare is process 1 of the new namespace.
    Ok(code_of(
        again("init", command)?.status().context("start process 1")?,
    ))
}

/// A directory on a file system that can hold the upper directories of overlays.
struct WorkDir(PathBuf);

impl WorkDir {
    fn create(name: &str) -> Result<Self> {
        let asked = std::env::var_os("PODD_ARENA_DIR").map(PathBuf::from);
        let places = asked
            .into_iter()
            .chain(["/var/tmp", "/var/lib", "/root", "/mnt"].map(PathBuf::from));
        // Without a real file system anywhere (a container), a tmpfs serves: it can hold upper directories too.
        let place = places
            .into_iter()
            .find(|p| is_real(p))
            .unwrap_or_else(|| PathBuf::from("/dev/shm"));
        let dir = place.join(format!("podd-{name}"));
        fs::create_dir(&dir).with_context(|| format!("make the work directory {}", dir.display()))?;
        Ok(Self(dir))
    }

    fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("remove {}", self.0.display()))
    }
}

/// Whether `dir` is on a disk, and not on an overlay or in memory.
fn is_real(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| !matches!(fs.filesystem_type(), OVERLAYFS_SUPER_MAGIC | TMPFS_MAGIC))
}

fn random() -> Result<u32> {
    use std::io::Read;
    let mut bytes = [0; 4];
    fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .context("random name")?;
    Ok(u32::from_ne_bytes(bytes))
}
