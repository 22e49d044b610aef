//! Attacks that other runtimes have met and that take more than a request (docs/security.md).

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use podd_e2e::arena::WORK_DIR;
use podd_e2e::cri;
use podd_proto::v1 as pb;

use crate::case::{Env, Pod, cases, contains, equal, eventually};

cases!("attacks": programs_of_podd_are_sealed, terminal_of_another_devpts, null_device_of_a_volume, volume_that_changes);

/// A directory that is removed with the value, and what is mounted in it before.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        let dir = PathBuf::from(format!("{WORK_DIR}/attack-{}", cri::unique()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = umount2(&self.at("pts"), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn volume(host: &std::path::Path, container: &str) -> pb::Mount {
    pb::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

/// CVE-2019-5736, by somebody who may look at every process: a program of podd is held open while it runs, and written
/// when it runs no more.
fn programs_of_podd_are_sealed(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut config = cri::pod_config("sealed");
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.privileged = true;
    security.namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Node.into();
    let pod = Pod::run(&cri, config)?;
    let script = "while ! [ -e /held ]; do for p in /proc/[0-9]*; do \
        case $(readlink $p/exe) in *memfd:stage*) exec 9<$p/exe && touch /held && break;; esac; done; done; \
        while ! [ -e /end ]; do sleep 0.05; done; \
        for n in 1 2 3 4 5; do ( printf x 1<>/proc/self/fd/9 ) 2>&1 && echo written || echo refused; sleep 0.1; done";
    let mut attacker = cri::shell("attacker", script);
    let security = cri::security(&mut attacker);
    security.privileged = true;
    security.namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Node.into();
    let id = pod.started(&attacker)?;
    // Its stage waits at the start gate.
    let victim = pod.created(&cri::shell("victim", "true"))?;
    eventually("the program is held open", 20, || {
        Ok(cri.sh(&id, "test -e /held").is_ok())
    })?;
    cri.remove_ctr(&victim)?;
    cri.sh(&id, "touch /end")?;
    cri.wait_exit(&id)?;
    let lines = crate::case::log_lines(&pod.config, &attacker)?;
    let out: String = lines.iter().map(crate::case::LogLine::text).collect();
    ensure!(!out.contains("written"), "the stage's program was written: {out}");
    equal("attempts that failed", out.matches("refused").count(), 5)?;
    pod.output(&cri::shell("after", "true"))?;
    pod.remove()
}

/// CVE-2025-52565: /dev/pts/ptmx is a volume's device node, and opens a terminal of the devpts beside it.
fn terminal_of_another_devpts(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod, dir) = (env.cri()?, env.pod("ptmx")?, Directory::new()?);
    let all = Mode::from_bits_truncate(0o666);
    mknod(&dir.at("ptmx"), SFlag::S_IFCHR, all, makedev(5, 2))?;
    fs::create_dir(dir.at("pts"))?;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    mount(
        Some("devpts"),
        &dir.at("pts"),
        Some("devpts"),
        MsFlags::empty(),
        options,
    )
    .context("mount devpts")?;
    fs::File::options()
        .read(true)
        .write(true)
        .open(dir.at("ptmx"))
        .context("the node works outside")?;
    let mut config = cri::shell("c", "echo said");
    config.tty = true;
    config.mounts = vec![volume(&dir.0, "/dev/pts")];
    let answer = cri.create(&pod.id, &pod.config, &config);
    let said = answer.err().context("a terminal of another devpts was taken")?;
    contains("names it", said.message(), "/dev/pts/ptmx")?;
    pod.remove()
}

/// CVE-2025-31133: what masked files show must not be what the container has at /dev/null.
fn null_device_of_a_volume(env: &mut Env<'_>) -> Result<()> {
    let (pod, dir) = (env.pod("null")?, Directory::new()?);
    fs::write(dir.at("null"), "not the null device\n")?;
    let mut config = cri::shell("c", "cat /dev/null; wc -c </proc/keys");
    config.mounts = vec![volume(&dir.at("null"), "/dev/null")];
    cri::security(&mut config).masked_paths = vec!["/proc/keys".to_owned()];
    let out = pod.output(&config)?;
    pod.remove()?;
    equal("masked file", out.as_str(), "not the null device\n0\n")
}

/// CVE-2024-5154: what a volume was looked at as is what is mounted, however often its path changes meanwhile.
fn volume_that_changes(env: &mut Env<'_>) -> Result<()> {
    let (pod, dir) = (env.pod("changes")?, Directory::new()?);
    fs::create_dir(dir.at("directory"))?;
    fs::write(dir.at("file"), "x\n")?;
    let stop = AtomicBool::new(false);
    let (link, next) = (dir.at("link"), dir.at("next"));
    std::os::unix::fs::symlink("file", &link)?;
    std::thread::scope(|scope| {
        let flip = || {
            for target in ["directory", "file"].iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let _ = std::os::unix::fs::symlink(target, &next);
                let _ = fs::rename(&next, &link);
            }
        };
        let flipper = scope.spawn(flip);
        let tried = (0..60).try_for_each(|n| -> Result<()> {
            let mut config = cri::shell(&format!("c{n}"), "true");
            config.mounts = vec![volume(&link, "/data")];
            let id = pod.created(&config).with_context(|| format!("attempt {n}"))?;
            Ok(env.cri()?.remove_ctr(&id)?)
        });
        stop.store(true, Ordering::Relaxed);
        let _ = flipper.join();
        tried
    })?;
    pod.remove()
}
