//! Attacks that other runtimes have met and that take more than a request (docs/security.md).

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use podd_e2e::arena::WORK_DIR;
use podd_e2e::cri;
use podd_e2e::images::{self, Dialect, Entry, Image, Layer, Packing};
use podd_e2e::podd::STATE_DIR;
use podd_proto::v1 as pb;
use serde_json::json;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, eventually, refused};

cases!("attacks":
    programs_of_podd_are_sealed, terminal_of_another_devpts, null_device_of_a_volume, volume_that_changes,
    descriptors_as_working_directories, ids_that_wrap, settings_in_sysctls, logs_elsewhere,
    links_in_place_of_mounts, mount_points_in_a_volume, image_config_is_data);

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
    eventually("the program is held open", || {
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

/// CVE-2024-21626: whatever is open while a container is made, its working directory is beneath its own root.
fn descriptors_as_working_directories(env: &mut Env<'_>) -> Result<()> {
    // What is to be found outside: podd's state on the node, and where pods are made.
    const OUTSIDE: &str =
        "for d in . .. ../../../../../..; do ls -d $d/var/lib/podd $d/store $d/rootfs 2>/dev/null; done";
    let (cri, pod) = (env.cri()?, env.pod("cwd")?);
    for number in 3..24 {
        for below in ["", "/.."] {
            let mut config = cri::shell(&format!("c{number}-{}", below.len()), OUTSIDE);
            config.working_dir = format!("/proc/self/fd/{number}{below}");
            // Most are refused; what can be entered is a directory of the container.
            let Ok(id) = cri.create(&pod.id, &pod.config, &config) else {
                continue;
            };
            if cri.start(&id).is_ok() {
                cri.wait_exit(&id)?;
                let lines = crate::case::log_lines(&pod.config, &config)?;
                let out: Vec<_> = lines.iter().map(crate::case::LogLine::text).collect();
                let outside = out
                    .iter()
                    .any(|line| line.contains("podd") || line.contains("store"));
                ensure!(!outside, "/proc/self/fd/{number}{below} is outside: {out:?}");
            }
            cri.remove_ctr(&id)?;
        }
    }
    pod.remove()
}

/// CVE-2024-40635: a number that 32 bits do not hold must not become another one, 0 least of all.
fn ids_that_wrap(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("wraps")?);
    let wrapping = ["4294967296", "4294967295", "2147483648", "18446744073709551616"];
    let of_images = wrapping
        .iter()
        .flat_map(|id| [(*id).to_owned(), format!("1000:{id}")]);
    for (number, user) in of_images
        .chain(["-1".to_owned(), "1000:-1".to_owned()])
        .enumerate()
    {
        let (short, name) = (
            format!("bad/user-{number}"),
            format!("docker.io/bad/user-{number}:latest"),
        );
        let image = Image::new(&[images::base_layer()?], &json!({"User": user}), Dialect::Oci);
        env.registry().push(&short, &["latest"], &image)?;
        // A kubelet that is told to run nobody as root asks here who the image's user is.
        cri.pull(&name)?;
        let told = cri.image(&name)?.context("not present")?;
        ensure!(
            told.uid.is_none_or(|uid| uid.value != 0),
            "{user:?} is shown as {:?}",
            told.uid
        );
        let mut config = cri::shell("c", "id");
        config.image = Some(cri::spec(&name));
        let answer = cri.create(&pod.id, &pod.config, &config);
        ensure!(answer.is_err(), "an image with the user {user:?} was run");
        cri.remove(&name)?;
    }
    for id in [-1, 1 << 31, (1 << 32) - 1, 1 << 32, i64::MIN] {
        let wide = Some(pb::Int64Value { value: id });
        let ask = |what: &str, change: &dyn Fn(&mut pb::LinuxContainerSecurityContext)| -> Result<()> {
            let mut config = cri::shell("c", "id");
            change(cri::security(&mut config));
            let answer = cri.create(&pod.id, &pod.config, &config);
            refused(&format!("{what} {id}"), Code::InvalidArgument, answer).map(drop)
        };
        ask("run_as_user", &|s| s.run_as_user = wide)?;
        ask("run_as_group", &|s| {
            (s.run_as_user, s.run_as_group) = (Some(pb::Int64Value { value: 1 }), wide)
        })?;
        ask("supplemental_groups", &|s| s.supplemental_groups = vec![id])?;
        ask("run_as_username", &|s| s.run_as_username = id.to_string())?;
    }
    pod.remove()
}

/// CVE-2022-0811: neither a name nor a value brings a setting of the node.
fn settings_in_sysctls(env: &mut Env<'_>) -> Result<()> {
    const OF_THE_NODE: &str = "/proc/sys/kernel/core_pattern";
    let cri = env.cri()?;
    let (before, mark) = (fs::read_to_string(OF_THE_NODE)?, "|/podd-attack %P");
    let host = pb::NamespaceMode::Node;
    for (key, value, mode) in [
        (
            "kernel.shm_rmid_forced",
            "1+kernel.core_pattern=|/podd-attack %P #",
            None,
        ),
        (
            "kernel.shm_rmid_forced",
            "1\nkernel.core_pattern=|/podd-attack %P",
            None,
        ),
        ("kernel.core_pattern", mark, None),
        ("kernel/core_pattern", mark, None),
        ("net/../kernel/core_pattern", mark, None),
        ("net/ipv4/../../kernel/core_pattern", mark, None),
        ("fs.mqueue./../kernel/core_pattern", mark, None),
        ("net.ipv4.ip_forward", "1", Some(host)),
        ("kernel.shm_rmid_forced", "1", Some(host)),
    ] {
        let mut config = cri::pod_config("sysctl");
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.insert(key.to_owned(), value.to_owned());
        if let Some(mode) = mode {
            let options = linux
                .security_context
                .get_or_insert_default()
                .namespace_options
                .get_or_insert_default();
            (options.network, options.ipc) = (mode.into(), mode.into());
        }
        let answer = cri.run_pod(&config);
        let now = fs::read_to_string(OF_THE_NODE)?;
        if now != before {
            fs::write(OF_THE_NODE, &before)?;
        }
        equal("the node's setting", now.as_str(), before.as_str())?;
        refused(&format!("{key} = {value:?}"), Code::InvalidArgument, answer)?;
    }
    Ok(())
}

/// CVE-2025-0750: a log is a file below the pod's log directory, by whatever name, and whatever is there already.
fn logs_elsewhere(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod, dir) = (env.cri()?, env.pod("logs")?, Directory::new()?);
    fs::write(dir.at("victim"), "kept\n")?;
    let logs = PathBuf::from(&pod.config.log_directory);
    let up = "../".repeat(logs.components().count());
    let named = [
        format!("{up}{}", dir.at("victim").display()),
        format!("a/{up}../{}", dir.at("victim").display()),
        dir.at("victim").display().to_string(),
    ];
    for path in named {
        let mut config = cri::shell("c", "echo written");
        config.log_path = path.clone();
        refused(
            &path,
            Code::InvalidArgument,
            cri.create(&pod.id, &pod.config, &config),
        )?;
    }
    // What a container with the log directory as a volume can put there.
    std::os::unix::fs::symlink(dir.at("victim"), logs.join("link.log"))?;
    std::os::unix::fs::symlink(&dir.0, logs.join("directory"))?;
    for path in ["link.log", "directory/victim", "directory/new/c.log"] {
        let mut config = cri::shell("c", "echo written");
        config.log_path = path.to_owned();
        let answer = cri.create(&pod.id, &pod.config, &config);
        ensure!(answer.is_err(), "the log {path} was opened through a link");
    }
    // And when the log is opened anew.
    let config = cri::shell(
        "reopened",
        "while ! [ -e /end ]; do sleep 0.05; done; echo written",
    );
    let id = pod.started(&config)?;
    let log = cri::log_path(&pod.config, &config);
    fs::remove_file(&log)?;
    std::os::unix::fs::symlink(dir.at("victim"), &log)?;
    ensure!(
        cri.reopen_container_log(pb::ReopenContainerLogRequest {
            container_id: id.clone()
        })
        .is_err(),
        "the log was opened anew through a link"
    );
    cri.sh(&id, "touch /end")?;
    cri.wait_exit(&id)?;
    ensure!(!dir.at("new").exists(), "a directory was made through a link");
    equal(
        "the file outside",
        fs::read_to_string(dir.at("victim"))?.as_str(),
        "kept\n",
    )?;
    pod.remove()
}

/// CVE-2019-19921, CVE-2023-27561: an image has a link where one of the container's own file systems is to be, to what
/// is there outside too. It is followed inside the container, and what is masked is masked all the same.
fn links_in_place_of_mounts(env: &mut Env<'_>) -> Result<()> {
    const LOOK: &str = "wc -c </proc/keys; test -d /proc/1/ns && test -c /dev/null && test -d /sys/class && echo own; \
        grep -q localhost /etc/hosts && echo hosts";
    let (cri, pod) = (env.cri()?, env.pod("links")?);
    let links = [
        ("proc", "/store"),
        ("sys", "../../../../store"),
        ("dev", "/store"),
        ("etc/hosts", "/store/podd.lock"),
    ];
    for (number, (name, target)) in links.into_iter().enumerate() {
        let (short, image) = (
            format!("bad/link-{number}"),
            format!("docker.io/bad/link-{number}:latest"),
        );
        let link = Layer::new(
            &[
                images::file("store/podd.lock", "of the image\n"),
                Entry::Link(name.to_owned(), target.to_owned()),
            ],
            Packing::Gzip,
        )?;
        let content = Image::new(&[images::base_layer()?, link], &json!({}), Dialect::Oci);
        env.registry().push(&short, &["latest"], &content)?;
        cri.pull(&image)?;
        let mut config = cri::shell(&format!("c{number}"), LOOK);
        config.image = Some(cri::spec(&image));
        cri::security(&mut config).masked_paths = vec!["/proc/keys".to_owned()];
        let out = pod.output(&config).with_context(|| format!("{name} is a link"))?;
        equal(&format!("{name} is a link"), out.as_str(), "0\nown\nhosts\n")?;
        cri.remove(&image)?;
    }
    pod.remove()
}

/// Nothing of this name is in podd's state directory, which the nest has as /store.
fn nothing_attacked() -> Result<()> {
    for entry in fs::read_dir(STATE_DIR)? {
        let name = entry?.file_name();
        ensure!(
            !name.to_string_lossy().starts_with("attacked"),
            "{} was made in podd's state",
            name.display()
        );
    }
    Ok(())
}

/// CVE-2024-45310: a mount point below a volume has to be made, and what leads there changes between a directory and a
/// link all the time.
fn mount_points_in_a_volume(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod, dir) = (env.cri()?, env.pod("points")?, Directory::new()?);
    fs::create_dir(dir.at("inner"))?;
    fs::create_dir(dir.at("outer"))?;
    fs::create_dir(dir.at("outer/real"))?;
    let (way, next, stop) = (dir.at("outer/way"), dir.at("outer/next"), AtomicBool::new(false));
    std::os::unix::fs::symlink("/store", &way)?;
    std::thread::scope(|scope| {
        let flip = || {
            for target in ["real", "/store", "../../../../../../../../store"].iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let _ = std::os::unix::fs::symlink(target, &next);
                let _ = fs::rename(&next, &way);
            }
        };
        let flipper = scope.spawn(flip);
        let tried = (0..40).try_for_each(|n| -> Result<()> {
            let mut config = cri::shell(&format!("c{n}"), "true");
            config.mounts = vec![
                volume(&dir.at("outer"), "/volume"),
                volume(&dir.at("inner"), &format!("/volume/way/attacked-{n}/deep")),
            ];
            // Where the link leads nowhere inside the container, that is an error.
            if let Ok(id) = cri.create(&pod.id, &pod.config, &config) {
                cri.remove_ctr(&id)?;
            }
            nothing_attacked()
        });
        stop.store(true, Ordering::Relaxed);
        let _ = flipper.join();
        tried
    })?;
    pod.remove()
}

/// CVE-2026-53488, CVE-2022-23648: nothing that an image says of itself names a path, a program or a device of the node.
fn image_config_is_data(env: &mut Env<'_>) -> Result<()> {
    const NAME: &str = "docker.io/bad/config:latest";
    let dir = Directory::new()?;
    fs::write(dir.at("secret"), "of the node\n")?;
    let up = format!("/../../../../../../../..{}", dir.0.display());
    let config = json!({
        "Volumes": {&up: {}, dir.0.display().to_string(): {}},
        "WorkingDir": up,
        "Labels": {
            "cdi.k8s.io/x": "vendor.com/class=all", "io.kubernetes.cri.log": "binary:///bin/sh?-c=id",
            "org.systemd.property.ExecStartPre": "/bin/touch /tmp/attacked", "io.podd.privileged": "true",
        },
        "Env": ["LD_PRELOAD=/tmp/evil.so"],
    });
    let image = Image::new(&[images::base_layer()?], &config, Dialect::Oci);
    env.registry().push("bad/config", &["latest"], &image)?;
    let (cri, pod) = (env.cri()?, env.pod("config")?);
    cri.pull(NAME)?;
    let mut config = cri::shell(
        "c",
        "pwd; ls -A . | wc -l; grep ^CapEff /proc/self/status; grep -c . /proc/mounts",
    );
    config.image = Some(cri::spec(NAME));
    let out = pod.output(&config)?;
    let plain = pod.output(&cri::shell(
        "plain",
        "grep ^CapEff /proc/self/status; grep -c . /proc/mounts",
    ))?;
    pod.remove()?;
    cri.remove(NAME)?;
    let own = format!("{}\n0\n{plain}", dir.0.display());
    equal("directory, its content, capabilities, mounts", out, own)
}
