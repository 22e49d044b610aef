//! Process 1 of an arena: mounts, loopback, the command, and the orphans.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use super::{CGROUP, EXECUTABLE, INSIDE, STAGE, WORK, WORK_DIR, cgroup};
use crate::vm;

/// Directories of the host that the arena may write to: an overlay keeps the changes.
const COPIED: [&str; 3] = ["/etc", "/var/lib", "/var/log"];
/// Directories that are fresh and lie on a real file system, not on an overlay.
const FRESH: [&str; 3] = ["/var/lib/podd", "/var/lib/kubelet", "/var/log/pods"];

/// Stage *init*: furnishes the arena, runs `command` and reaps until it ends.
pub(super) fn run(command: &[OsString]) -> Result<i32> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("die with the parent")?;
    let Some((program, args)) = command.split_first() else {
        bail!("no command given")
    };
    let work = PathBuf::from(std::env::var_os(WORK).context("no work directory named")?);
    furnish(&work)?;
    if std::env::var_os(CGROUP).is_some_and(|c| !c.is_empty()) {
        mount_fs("cgroup2", "/sys/fs/cgroup", "")?;
        cgroup::delegate(Path::new("/sys/fs/cgroup"))?;
    }
    nix::unistd::sethostname("arena").context("set the host name")?;
    loopback_up()?;

    // The signals that the outer stage blocked are the command's to receive.
    SigSet::empty().thread_set_mask().context("unblock signals")?;
    let mut cmd = Command::new(program);
    cmd.args(args)
        .env_remove(STAGE)
        .env_remove(EXECUTABLE)
        .env_remove(CGROUP)
        .env_remove(WORK)
        .env(INSIDE, "1");
    let child = cmd
        .spawn()
        .with_context(|| format!("start {}", Path::new(program).display()))?;
    reap_until(Pid::from_raw(child.id().cast_signed()))
}

/// Reaps every child, orphans included, until `main` has ended; returns its exit code.
pub(crate) fn reap_until(main: Pid) -> Result<i32> {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => return Ok(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("wait for children"),
        }
    }
}

/// Gives the arena its own file systems.
fn furnish(work: &Path) -> Result<()> {
    let work_fd = open_dir(work)?;
    let hidden = dirs_about_to_be_hidden()?;
    mount_fs("proc", "/proc", "")?;
    mount_fs("sysfs", "/sys", "")?;
    // What is loaded there is loaded for the whole kernel: only in a guest is that the arena's own business.
    if vm::inside() {
        mount_fs("securityfs", "/sys/kernel/security", "")?;
        if Path::new("/sys/fs/selinux").is_dir() {
            mount_fs("selinuxfs", "/sys/fs/selinux", "")?;
        }
    }
    mount_fs("tmpfs", "/run", "mode=0755")?;
    mount_fs("tmpfs", "/tmp", "mode=1777")?;
    mount_fs("tmpfs", "/dev/shm", "mode=1777")?;
    for (dir, fd) in &hidden {
        bind_fd(fd, dir)?;
    }
    bind_fd(&work_fd, Path::new(WORK_DIR))?;
    fs::create_dir_all("/run/lock")?;

    let work = Path::new(WORK_DIR);
    for dir in COPIED {
        let (upper, scratch) = (
            work.join("upper").join(&dir[1..]),
            work.join("scratch").join(&dir[1..]),
        );
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&scratch)?;
        let options = format!(
            "lowerdir={dir},upperdir={},workdir={}",
            upper.display(),
            scratch.display()
        );
        mount_fs("overlay", dir, &options)?;
    }
    for dir in FRESH {
        let source = work.join("fresh").join(&dir[1..]);
        fs::create_dir_all(&source)?;
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755))?;
        bind_fd(&open_dir(&source)?, Path::new(dir))?;
    }
    fs::create_dir_all("/etc/podd").context("make /etc/podd")
}

/// The directories this process needs although they lie below a mount that the arena replaces.
fn dirs_about_to_be_hidden() -> Result<Vec<(PathBuf, File)>> {
    let exe = super::own_executable()?;
    let needed = [std::env::current_dir().context("current directory")?, exe];
    let mut found: Vec<(PathBuf, File)> = Vec::new();
    for path in needed {
        // The first component below the replaced mount: a checkout and its build output are seen whole.
        let top = ["/tmp", "/run", "/dev/shm"].iter().find_map(|hidden| {
            let below = path.strip_prefix(hidden).ok()?;
            Some(Path::new(hidden).join(below.components().next()?))
        });
        if let Some(top) = top.filter(|t| t.is_dir() && found.iter().all(|(dir, _)| dir != t)) {
            let fd = open_dir(&top)?;
            found.push((top, fd));
        }
    }
    Ok(found)
}

fn open_dir(dir: &Path) -> Result<File> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(dir);
    opened.with_context(|| format!("open {}", dir.display()))
}

/// Shows the directory behind `fd` at `target`, which is made when missing.
fn bind_fd(fd: &File, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    mount(
        Some(source.as_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("bind {}", target.display()))
}

fn mount_fs(kind: &str, target: &str, options: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mount {kind} on {target}"))
}

/// Brings the loopback link of the current network namespace up.
pub(crate) fn loopback_up() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("netlink")?;
        tokio::spawn(connection);
        // The loopback link is always number 1 of a network namespace.
        let up = rtnetlink::LinkUnspec::new_with_index(1).up().build();
        handle.link().set(up).execute().await.context("bring loopback up")
    })
}
