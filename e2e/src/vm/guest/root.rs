//! The guest's file systems, as a node with cgroup v2 has them.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};

use super::super::initramfs::MODULES;
use super::super::job::Job;
use super::{DISK, write};
use crate::PATIENCE;
use crate::arena;

/// Directories of podd and the kubelet that lie on the disk.
const ON_DISK: [&str; 3] = ["/var/lib/podd", "/var/lib/kubelet", "/var/log/pods"];

/// From the initramfs into the root: this machine's files below an overlay in memory.
pub(super) fn enter(job: &Job) -> Result<()> {
    fs_on("proc", "proc", "/proc", "")?;
    fs_on("sysfs", "sys", "/sys", "")?;
    fs_on("devtmpfs", "dev", "/dev", "")?;
    load_modules()?;
    // Everything is loaded: a request for more would start the modprobe of another kernel.
    write("/proc/sys/kernel/modprobe", "")?;
    share("root", "/host")?;
    let mut lower = "/host";
    if job.layer.is_some() {
        share("layer", "/layer")?;
        lower = "/layer:/host";
    }
    fs_on("tmpfs", "upper", "/upper", "mode=0755")?;
    fs::create_dir("/upper/data")?;
    fs::create_dir("/upper/work")?;
    fs_on(
        "overlay",
        "root",
        "/new",
        &format!("lowerdir={lower},upperdir=/upper/data,workdir=/upper/work"),
    )?;
    for dir in ["/proc", "/sys", "/dev"] {
        move_mount(dir, &format!("/new{dir}"))?;
    }
    std::env::set_current_dir("/new")?;
    move_mount(".", "/")?;
    nix::unistd::chroot(".").context("change the root")?;
    std::env::set_current_dir("/")?;

    fs_on("tmpfs", "run", "/run", "mode=0755")?;
    fs::create_dir_all("/run/lock")?;
    fs::create_dir_all("/run/vm")?;
    fs::create_dir_all(DISK)?;
    mount_disk()?;
    for dir in ON_DISK {
        let source = Path::new(DISK).join(&dir[1..]);
        fs::create_dir_all(&source)?;
        fs::create_dir_all(dir)?;
        bind(&source, dir)?;
    }
    Ok(())
}

/// What systemd would do further.
pub(super) fn furnish() -> Result<()> {
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        fs::create_dir_all(dir)?;
    }
    fs_on("devpts", "devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666")?;
    fs_on("tmpfs", "shm", "/dev/shm", "mode=1777")?;
    fs_on("mqueue", "mqueue", "/dev/mqueue", "")?;
    fs_on("securityfs", "securityfs", "/sys/kernel/security", "")?;
    fs_on(
        "cgroup2",
        "cgroup2",
        "/sys/fs/cgroup",
        "nsdelegate,memory_recursiveprot",
    )?;
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ];
    for (target, link) in links {
        let _ = fs::remove_file(link);
        symlink(target, link).with_context(|| format!("make {link}"))?;
    }
    arena::delegate_controllers(Path::new("/sys/fs/cgroup"))?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&str>,
    )
    .context("share all mounts")?;
    nix::unistd::sethostname("vm").context("set the host name")?;
    arena::loopback_up()
}

fn load_modules() -> Result<()> {
    let listed = fs::read_dir(MODULES).context("list the modules")?;
    let mut files: Vec<PathBuf> = listed.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    files.sort();
    for path in files {
        let file = File::open(&path)?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(e).with_context(|| format!("load {}", path.display())),
        }
    }
    Ok(())
}

/// The disk is the only block device; it appears some time after its driver.
fn mount_disk() -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !Path::new("/dev/vda").exists() {
        if Instant::now() > deadline {
            bail!("no disk");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let flags = MsFlags::MS_NOATIME;
    mount(Some("/dev/vda"), DISK, Some("ext4"), flags, None::<&str>).context("mount the disk")
}

/// Mounts a directory of the host.
fn share(tag: &str, target: &str) -> Result<()> {
    // With xattrs each look at a file would cost one more question to the host.
    let options = "trans=virtio,version=9p2000.L,msize=512000,access=any,cache=loose,noxattr";
    mount(Some(tag), target, Some("9p"), MsFlags::MS_RDONLY, Some(options))
        .with_context(|| format!("mount the host's {tag}"))
}

fn fs_on(kind: &str, source: &str, target: &str, options: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mount {kind} on {target}"))
}

fn bind(source: &Path, target: &str) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {target}"))
}

fn move_mount(source: &str, target: &str) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .with_context(|| format!("move {source} to {target}"))
}
