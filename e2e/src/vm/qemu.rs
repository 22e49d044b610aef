//! QEMU: where it comes from, how it is told what to do, and how it is watched.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use super::initramfs;
use super::job::Job;
use super::kernel::KernelFiles;
use super::packages::{Apt, Cache, Installed, run};
use super::{Init, Order};

/// The suite that QEMU is taken from: 10.0 of Debian 13 starts programs twice as fast as 7.2 of Debian 12.
const SUITE: &str = "trixie";
/// Where the libraries of an unpacked Debian tree are.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Virtual disk, sparse.
const DISK_BYTES: u64 = 16 << 30;
/// Memory of a guest, MiB.
const MEMORY: &str = "3072M";
/// How long a guest under KVM may take to come up before KVM counts as broken.
const KVM_TRIAL: Duration = Duration::from_secs(10);

const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off init_on_alloc=0 audit=0 \
    tsc=reliable no_timer_check cryptomgr.notests rcupdate.rcu_expedited=1 net.ifnames=0 random.trust_cpu=on fstab=no \
    systemd.unified_cgroup_hierarchy=1 systemd.show_status=0 systemd.unit=vm.target";

/// How a command in a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// How long the guest ran, from the start of QEMU to its end.
    pub took: Duration,
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accelerator {
    /// The processor's virtualisation.
    Kvm,
    /// Translation, some 15 times slower.
    Emulation,
}

impl Accelerator {
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // What costs emulation much and tests nothing of podd's is left out of the processor.
            Self::Emulation => [
                "-accel",
                "tcg,thread=multi,tb-size=512",
                "-cpu",
                "max,la57=off,smap=off,smep=off,umip=off,pku=off,mpx=off,erms=off,fsrm=off",
            ],
        }
    }
}

/// An unpacked QEMU and what it runs guests with.
#[derive(Debug)]
pub(super) struct Qemu {
    tree: PathBuf,
    accelerator: Accelerator,
}

impl Qemu {
    /// Fetches QEMU unless the cache has it; tries KVM with this kernel and this guest program.
    pub(super) fn prepare(cache: &Cache, kernel: &KernelFiles, guest: &Path) -> Result<Self> {
        let tree = cache.once("qemu", |dir| {
            let apt = Apt::new(cache, SUITE)?;
            apt.unpack(&["qemu-system-x86"], Installed::Nothing, dir)?;
            for unused in ["doc", "man", "locale", "perl", "zoneinfo", "info", "icons"] {
                let _ = fs::remove_dir_all(dir.join("usr/share").join(unused));
            }
            Ok(())
        })?;
        let mut qemu = Self {
            tree,
            accelerator: Accelerator::Emulation,
        };
        if cache.remembered("kvm", || qemu.kvm_works(kernel, guest))? {
            qemu.accelerator = Accelerator::Kvm;
        }
        Ok(qemu)
    }

    /// Whether a guest comes up under KVM: a device that is there says nothing (nested virtualisation may hang).
    fn kvm_works(&mut self, kernel: &KernelFiles, guest: &Path) -> bool {
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        if device.is_err() {
            return false;
        }
        self.accelerator = Accelerator::Kvm;
        let job = Job {
            guest: guest.to_owned(),
            directory: "/".into(),
            command: vec!["/bin/true".to_owned()],
            ..Job::default()
        };
        let done = self.boot(kernel, &job, &Order::new(&[], KVM_TRIAL), &mut |_| {});
        self.accelerator = Accelerator::Emulation;
        done.is_ok_and(|ended| ended.code == 0)
    }

    /// How guests run, as a word for people.
    pub(super) fn how(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Emulation => "emulated",
        }
    }

    /// Boots a guest and waits for its end.
    pub(super) fn boot(
        &self,
        kernel: &KernelFiles,
        job: &Job,
        order: &Order,
        line: &mut dyn FnMut(&str),
    ) -> Result<Ended> {
        let work = WorkDir::new()?;
        let initrd = work.path().join("initrd");
        fs::write(&initrd, initramfs::build(kernel, job)?).context("write the initramfs")?;
        let disk = order.disk.clone().unwrap_or_else(|| work.path().join("disk"));
        if !disk.exists() {
            make_disk(&disk)?;
        }
        let mut command = self.command(&kernel.image, &initrd, job.init);
        files(&mut command, &disk, work.path());
        directory(&mut command, "root", Path::new("/"));
        if let Some(layer) = &job.layer {
            directory(&mut command, "layer", layer);
        }
        let mut guest = Guest {
            work: work.path(),
            started: Instant::now(),
            child: start(command, work.path(), order.terminal)?,
        };
        guest.wait(order, line)
    }

    /// QEMU with everything that is the same for every guest.
    fn command(&self, kernel: &Path, initrd: &Path, init: Init) -> Command {
        let libraries = self.tree.join(LIBRARIES);
        let share = self.tree.join("usr/share");
        // setpriv: QEMU is killed when the thread that started it ends, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(libraries.join("ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(&libraries)
            .arg(self.tree.join("usr/bin/qemu-system-x86_64"))
            .env("QEMU_MODULE_DIR", libraries.join("qemu"))
            .arg("-L")
            .arg(share.join("qemu"))
            .arg("-L")
            .arg(share.join("seabios"))
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-machine", "q35,usb=off,sata=off,smbus=off,vmport=off"])
            .args(self.accelerator.arguments())
            .args(["-smp", &processors().to_string(), "-m", MEMORY])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .arg("-append")
            .arg(match init {
                Init::Selinux => format!("{KERNEL_ARGUMENTS} {}", super::selinux::KERNEL_ARGUMENTS),
                Init::Small | Init::Systemd => KERNEL_ARGUMENTS.to_owned(),
            });
        command
    }
}

/// The guest's disk, console and ports.
fn files(command: &mut Command, disk: &Path, work: &Path) {
    let path = |p: &Path| p.to_string_lossy().replace(',', ",,");
    let file = |id: &str| format!("file,id={id},path={}", path(&work.join(id)));
    command
        .args(["-chardev", &file("console"), "-serial", "chardev:console"])
        .args(["-device", "virtio-serial-pci,max_ports=8"])
        .args(["-chardev", &file("status")])
        .args(["-device", "virtserialport,chardev=status,name=podd.status"])
        .arg("-drive")
        .arg(format!(
            "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file={}",
            path(disk)
        ))
        .args(["-device", "virtio-blk-pci,drive=disk"]);
}

/// A directory of this machine that the guest can mount read-only under the name `tag`.
///
/// 9p and not virtiofs: under emulation QEMU must itself see every write to the guest's memory, or it goes on running
/// old translations of pages that have been filled anew.
fn directory(command: &mut Command, tag: &str, dir: &Path) {
    let dir = dir.to_string_lossy().replace(',', ",,");
    command
        .arg("-fsdev")
        .arg(format!(
            "local,id={tag},path={dir},security_model=passthrough,multidevs=remap,readonly=on"
        ))
        .arg("-device")
        .arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
}

fn start(mut command: Command, work: &Path, terminal: bool) -> Result<Child> {
    let log = fs::File::create(work.join("qemu.log"))?;
    if terminal {
        command
            .args(["-chardev", "stdio,id=out,signal=off"])
            .args(["-device", "virtconsole,chardev=out"]);
    } else {
        command
            // Not stdio, which ends at the end of its empty input.
            .args(["-chardev", "file,id=out,path=/proc/self/fd/1"])
            .args(["-device", "virtserialport,chardev=out,name=podd.out"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
    }
    command.stderr(log).spawn().context("start QEMU")
}

/// A running guest; it is killed with the value.
struct Guest<'a> {
    work: &'a Path,
    started: Instant,
    child: Child,
}

impl Guest<'_> {
    fn wait(&mut self, order: &Order, line: &mut dyn FnMut(&str)) -> Result<Ended> {
        let deadline = self.started + order.limit;
        if let Some(out) = self.child.stdout.take() {
            let (sender, lines) = mpsc::channel();
            std::thread::spawn(move || {
                for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    if sender.send(text).is_err() {
                        break;
                    }
                }
            });
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match lines.recv_timeout(left) {
                    Ok(text) => line(text.trim_end_matches('\r')),
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) => {
                        bail!("not over after {} s\n{}", order.limit.as_secs(), self.tail())
                    }
                }
            }
        }
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("not over after {} s\n{}", order.limit.as_secs(), self.tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = fs::read_to_string(self.work.join("status")).unwrap_or_default();
        match status.trim().parse() {
            Ok(code) => Ok(Ended {
                code,
                took: self.started.elapsed(),
            }),
            Err(_) => bail!("the guest died: {}\n{}", self.last_words(), self.tail()),
        }
    }

    /// What its kernel, or the program `guest`, said why.
    fn last_words(&self) -> String {
        let bytes = fs::read(self.work.join("console")).unwrap_or_default();
        let all = String::from_utf8_lossy(&bytes);
        let reasons = ["Kernel panic", "guest: "];
        let found = all.lines().find(|l| reasons.iter().any(|r| l.contains(r)));
        found.unwrap_or("its console does not say why").trim().to_owned()
    }

    /// The last lines of QEMU's log and of the guest's console.
    fn tail(&self) -> String {
        let mut text = String::new();
        for name in ["qemu.log", "console"] {
            let bytes = fs::read(self.work.join(name)).unwrap_or_default();
            let all = String::from_utf8_lossy(&bytes).replace('\r', "");
            let lines: Vec<_> = all.lines().collect();
            let last = &lines[lines.len().saturating_sub(30)..];
            text += &format!("--- {name}\n{}\n", last.join("\n"));
        }
        text
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for a guest's disk and channels, removed with the value.
#[derive(Debug)]
pub struct WorkDir {
    dir: TempDir,
    /// Held as long as the directory is used: without it, it was left by a process that was killed.
    _lock: Flock<fs::File>,
}

impl WorkDir {
    /// Makes one in /var/tmp or where `PODD_VM_DIR` says, and removes those that killed processes left there.
    ///
    /// # Errors
    /// Where nothing can be made there.
    pub fn new() -> Result<Self> {
        let place = std::env::var_os("PODD_VM_DIR").unwrap_or_else(|| "/var/tmp".into());
        let prefix = "podd-vm-";
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            let named = entry.file_name().to_string_lossy().starts_with(prefix);
            if named && lock(&entry.path()).is_ok() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(place);
        let dir = dir.context("make a work directory")?;
        fs::write(dir.path().join(LOCK), "")?;
        Ok(Self {
            _lock: lock(dir.path())?,
            dir,
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// The lock file of a [`WorkDir`].
const LOCK: &str = "lock";

fn lock(dir: &Path) -> Result<Flock<fs::File>> {
    let file = fs::File::open(dir.join(LOCK))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    locked.map_err(|(_, e)| e).context("lock the work directory")
}

fn make_disk(disk: &Path) -> Result<()> {
    fs::File::create(disk)?.set_len(DISK_BYTES)?;
    let lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-E", lazy])
        .arg(disk)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"))?;
    Ok(())
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(4))
}
