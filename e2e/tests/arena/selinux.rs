//! SELinux on a kernel that enforces a policy: who gets which context, what that keeps apart, and what is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use podd_e2e::arena::WORK_DIR;
use podd_e2e::cri::{self, Cri};
use podd_e2e::podd;
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, refused, skip};
use crate::observe::with_config;
use crate::users;

cases!("selinux":
    contexts_of_a_pod, pods_are_apart, named_parts, wrong_labels, privileged_and_the_nodes_namespaces,
    volumes_are_relabelled, places_of_the_node, levels_are_given_once, in_a_user_namespace);

const PROCESS: &str = "system_u:system_r:container_t:";
const FILE: &str = "system_u:object_r:container_file_t:";

/// Skips where the kernel has no SELinux, or it was not given a policy.
fn needs_selinux() -> Result<()> {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return Ok(());
    }
    skip("SELinux is not enabled on this kernel")
}

/// The context of a file, seen from the node.
fn context(path: &str) -> Result<String> {
    let mut command = Command::new("stat");
    let done = command.args(["-c", "%C", path]).output()?;
    ensure!(
        done.status.success(),
        "stat {path}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// The context of a container's first process as the node sees it, which is that of execs too.
fn of_process(env: &mut Env<'_>, id: &str) -> Result<String> {
    let pid = users::pid(env, id)?;
    let seen = fs::read_to_string(format!("/proc/{pid}/attr/current"))?;
    let seen = seen.trim_end_matches(['\0', '\n']).to_owned();
    equal("of an exec", of_exec(&env.cri()?, id)?, seen.clone())?;
    Ok(seen)
}

fn of_exec(cri: &Cri, id: &str) -> Result<String> {
    let said = cri.sh(id, "cat /proc/self/attr/current")?;
    Ok(said.trim_end_matches(['\0', '\n']).to_owned())
}

fn sleeper(name: &str) -> pb::ContainerConfig {
    cri::shell(name, "exec sleep 1000")
}

fn label(user: &str, role: &str, kind: &str, level: &str) -> Option<pb::SeLinuxOption> {
    Some(pb::SeLinuxOption {
        user: user.to_owned(),
        role: role.to_owned(),
        r#type: kind.to_owned(),
        level: level.to_owned(),
    })
}

fn labelled(mut config: pb::ContainerConfig, label: Option<pb::SeLinuxOption>) -> pb::ContainerConfig {
    cri::security(&mut config).selinux_options = label;
    config
}

fn pod_security(config: &mut pb::PodSandboxConfig) -> &mut pb::LinuxSandboxSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}

/// A directory on a real file system that is removed with the value.
struct Volume(PathBuf);

impl Volume {
    fn new() -> Result<Self> {
        let dir = PathBuf::from(format!("{WORK_DIR}/selinux-{}", cri::unique()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    fn at(&self, below: &str) -> String {
        format!("{}/{below}", self.0.display())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A volume of the request at /data.
fn with_volume(mut config: pb::ContainerConfig, host_path: &str, relabel: bool) -> pb::ContainerConfig {
    config.mounts.push(pb::Mount {
        host_path: host_path.to_owned(),
        container_path: "/data".to_owned(),
        selinux_relabel: relabel,
        ..Default::default()
    });
    config
}

fn contexts_of_a_pod(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    let (cri, pod) = (env.cri()?, env.pod("contexts")?);
    let image = cri.image(podd::IMAGE)?.map(|image| image.id).unwrap_or_default();
    let mut config = sleeper("c");
    config.mounts = vec![pb::Mount {
        container_path: "/image".to_owned(),
        image: Some(cri::spec(&image)),
        readonly: true,
        ..Default::default()
    }];
    let masked = ["/proc/kcore", "/proc/acpi", "/sys/firmware"];
    cri::security(&mut config).masked_paths = masked.map(str::to_owned).to_vec();
    let id = pod.started(&config)?;
    let process = of_process(env, &id)?;
    let level = process.strip_prefix(PROCESS).context(process.clone())?;
    ensure!(level.starts_with("s0:c") && level.contains(','), "{level}");
    let root = format!("/proc/{}/root", users::pid(env, &id)?);
    for path in [
        "/",
        "/bin/busybox",
        "/dev",
        "/dev/null",
        "/dev/pts",
        "/dev/shm",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/image/etc/passwd",
        "/sys/firmware",
    ] {
        equal(path, context(&format!("{root}{path}"))?, format!("{FILE}{level}"))?;
    }
    equal(
        "queues",
        context(&format!("{root}/dev/mqueue"))?,
        format!("{FILE}s0"),
    )?;
    // What a container does all day has to be allowed by the policy, which the kernel enforces for it.
    let script = "touch /foo /dev/shm/foo && rm /foo /dev/shm/foo && cat /etc/hosts /image/etc/passwd && \
        ls /dev/mqueue /sys/firmware && cat /proc/kcore && echo done && sleep 0.01 </dev/null >/dev/null";
    contains("work", &cri.sh(&id, script)?, "done\n")?;
    let second = pod.started(&sleeper("second"))?;
    equal("of the second", of_process(env, &second)?, process.clone())?;
    let mut terminal = cri::shell("tty", "tty && exec sleep 1000");
    (terminal.tty, terminal.stdin) = (true, true);
    let terminal = pod.started(&terminal)?;
    equal("with a terminal", of_process(env, &terminal)?, process.clone())?;
    let own = pod.output(&cri::shell("own", "cat /proc/self/attr/current"))?;
    contains("seen by itself", &own, &process)?;
    pod.remove()
}

fn pods_are_apart(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    let (cri, one, two) = (env.cri()?, env.pod("one")?, env.pod("two")?);
    let (a, b) = (one.started(&sleeper("c"))?, two.started(&sleeper("c"))?);
    let (of_one, of_two) = (of_process(env, &a)?, of_process(env, &b)?);
    ensure!(of_one != of_two, "both pods are {of_one}");
    // Its own processes and files are in reach of a container that sees them; another pod's are not.
    let volume = Volume::new()?;
    fs::write(volume.at("secret"), "of one\n")?;
    let read = |name: &str, relabel| {
        let config = cri::shell(name, "cat /data/secret 2>&1");
        with_volume(config, &volume.at(""), relabel)
    };
    equal("own volume", one.output(&read("own", true))?.as_str(), "of one\n")?;
    let (status, said) = two.ran(&read("other", false))?;
    equal("exit code of the other", status.exit_code, 1)?;
    contains("other", &said, "Permission denied")?;
    // A restarted podd knows them still.
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    podd.start_again()?;
    equal("exec", of_exec(&cri, &a)?, of_one.clone())?;
    let later = one.started(&sleeper("later"))?;
    equal("later", of_process(env, &later)?, of_one)?;
    one.remove()?;
    two.remove()
}

fn named_parts(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    let cri = env.cri()?;
    let mut config = cri::pod_config("named");
    pod_security(&mut config).selinux_options = label("", "", "", "s0:c7,c8");
    let pod = Pod::run(&cri, config)?;
    let of = |env: &mut Env<'_>, config: &pb::ContainerConfig| {
        let id = pod.started(config)?;
        let file = format!("/proc/{}/root/tmp", users::pid(env, &id)?);
        // Whatever its level, it can use what its pod has for it.
        env.cri()?.sh(
            &id,
            "touch /dev/shm/$(cat /proc/sys/kernel/random/uuid) && cat /etc/hosts /etc/resolv.conf && ls /dev/mqueue",
        )?;
        Ok::<_, anyhow::Error>((of_process(env, &id)?, context(&file)?))
    };
    let plain = of(env, &sleeper("plain"))?;
    equal("of the pod", plain.0, format!("{PROCESS}s0:c7,c8"))?;
    let (process, file) = of(env, &labelled(sleeper("level"), label("", "", "", "s0:c9,c3")))?;
    // As the kernel writes it.
    equal("level", process, format!("{PROCESS}s0:c3,c9"))?;
    equal("level of files", file, format!("{FILE}s0:c3,c9"))?;
    let all = label("system_u", "system_r", "svirt_lxc_net_t", "s0:c4,c5");
    // An alias of the policy for container_t.
    equal(
        "all",
        of(env, &labelled(sleeper("all"), all))?.0,
        format!("{PROCESS}s0:c4,c5"),
    )?;
    let mut terminal = labelled(cri::shell("tty", "sleep 1000"), label("", "", "spc_t", ""));
    terminal.tty = true;
    let (process, file) = of(env, &terminal)?;
    equal("type", process.as_str(), "system_u:system_r:spc_t:s0:c7,c8")?;
    equal("level of its files", file, format!("{FILE}s0:c7,c8"))?;
    pod.remove()
}

fn wrong_labels(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    let (cri, pod) = (env.cri()?, env.pod("wrong")?);
    for (wrong, part) in [
        (label("", "", "", "s0,c4,c5"), "selinux_options.level"),
        (label("", "", "no_such_t", ""), "no_such_t"),
        (label("no_such_u", "", "", ""), "no_such_u"),
        (label("", "", "", "s0:c1024"), "s0:c1024"),
        (label("", "", &"x".repeat(300), ""), "xxx"),
    ] {
        for privileged in [false, true] {
            let mut config = labelled(sleeper("c"), wrong.clone());
            cri::security(&mut config).privileged = privileged && part.contains("level");
            let answer = cri.create(&pod.id, &pod.config, &config);
            contains("message", &refused(part, Code::InvalidArgument, answer)?, part)?;
        }
        let mut config = cri::pod_config("wrong-pod");
        pod_security(&mut config).selinux_options = wrong;
        let said = refused(part, Code::InvalidArgument, cri.run_pod(&config))?;
        contains("message", &said, part)?;
    }
    let pods = cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?.items;
    equal("pods", pods.len(), 1)?;
    let left = cri
        .list_containers(pb::ListContainersRequest::default())?
        .containers;
    equal("containers", left.len(), 0)?;
    pod.remove()
}

fn privileged_and_the_nodes_namespaces(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    let cri = env.cri()?;
    let node = pb::NamespaceMode::Node.into();
    let unconfined = "system_u:system_r:spc_t:s0";
    for (name, pid, ipc) in [
        ("privileged", false, false),
        ("pid", true, false),
        ("ipc", false, true),
    ] {
        let (mut config, mut container) = (cri::pod_config(name), sleeper("c"));
        let (of_pod, of_container) = (pod_security(&mut config), cri::security(&mut container));
        let spaces = of_pod.namespace_options.get_or_insert_default();
        if pid {
            spaces.pid = node;
        }
        if ipc {
            spaces.ipc = node;
        }
        of_container.namespace_options = Some(spaces.clone());
        of_pod.privileged = name == "privileged";
        of_container.privileged = of_pod.privileged;
        let pod = Pod::run(&cri, config)?;
        let id = pod.started(&container)?;
        equal(name, of_process(env, &id)?.as_str(), unconfined)?;
        let mounts = cri.sh(&id, "cat /proc/self/mountinfo")?;
        contains(name, &mounts, &format!(",context=\"{FILE}s0:c"))?;
        cri::security(&mut container).privileged = false;
        container.metadata.get_or_insert_default().name = "typed".to_owned();
        let typed = labelled(container, label("", "", "container_t", ""));
        let typed = of_process(env, &pod.started(&typed)?)?;
        ensure!(typed.starts_with(PROCESS), "{typed}");
        pod.remove()?;
    }
    Ok(())
}

fn volumes_are_relabelled(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    let (cri, pod, volume) = (env.cri()?, env.pod("volume")?, Volume::new()?);
    let (inside, outside) = (volume.at("inside"), volume.at("outside"));
    let deep = format!("{inside}/a/{}", "d/".repeat(60));
    fs::create_dir_all(&deep)?;
    fs::create_dir_all(format!("{inside}/mounted"))?;
    fs::create_dir_all(format!("{outside}/dir"))?;
    fs::write(format!("{outside}/file"), "")?;
    fs::write(format!("{inside}/file"), "")?;
    for n in 0..300 {
        // More than one look into a directory brings.
        fs::create_dir(format!("{inside}/a/{n}-{}", "x".repeat(60)))?;
    }
    symlink(format!("{outside}/file"), format!("{inside}/link"))?;
    symlink(format!("{outside}/dir"), format!("{inside}/a/link"))?;
    let other = format!("{inside}/mounted");
    mount(
        Some(outside.as_str()),
        other.as_str(),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    let before = context(&outside)?;
    let started = pod.started(&with_volume(sleeper("c"), &inside, true));
    umount2(other.as_str(), MntFlags::MNT_DETACH)?;
    let id = started?;
    let process = of_process(env, &id)?;
    let expected = process.replace(PROCESS, FILE);
    let (last, in_order) = (
        format!("{inside}/a/299-{}", "x".repeat(60)),
        format!("{inside}/a/0-{}", "x".repeat(60)),
    );
    for path in [
        &inside,
        &format!("{inside}/file"),
        &format!("{inside}/link"),
        &format!("{inside}/a/link"),
        &deep,
        &last,
        &in_order,
    ] {
        equal(path, context(path)?, expected.clone())?;
    }
    // Neither what a link leads to, nor another mount, nor the directory below it.
    for path in [
        outside.clone(),
        format!("{outside}/file"),
        format!("{outside}/dir"),
        other,
    ] {
        equal(&path, context(&path)?, before.clone())?;
    }
    cri.sh(
        &id,
        "echo more >>/data/file && mkdir /data/new && echo x >/data/new/x",
    )?;
    equal(
        "made inside",
        context(&format!("{inside}/new/x"))?,
        expected.clone(),
    )?;
    // Without the wish nothing changes; a file is a volume too.
    let (status, _) = pod.ran(&with_volume(
        cri::shell("plain", "cat /data"),
        &format!("{outside}/file"),
        false,
    ))?;
    equal("exit code", status.exit_code, 1)?;
    equal("not asked for", context(&format!("{outside}/file"))?, before)?;
    pod.output(&with_volume(
        cri::shell("file", "cat /data"),
        &format!("{outside}/file"),
        true,
    ))?;
    equal("file", context(&format!("{outside}/file"))?, expected)?;
    pod.remove()
}

fn places_of_the_node(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    let (cri, pod, volume) = (env.cri()?, env.pod("places")?, Volume::new()?);
    fs::create_dir(volume.at("bound"))?;
    symlink("/usr", volume.at("link"))?;
    let bound = volume.at("bound");
    mount(
        Some("/etc"),
        bound.as_str(),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    let before = context("/etc")?;
    let tried = ["/", "/etc", "/etc/", "/var/lib", &bound, &volume.at("link")].map(|place| {
        let answer = cri.create(&pod.id, &pod.config, &with_volume(sleeper("c"), place, true));
        contains(
            place,
            &refused(place, Code::FailedPrecondition, answer)?,
            "directory of the node",
        )
    });
    umount2(bound.as_str(), MntFlags::MNT_DETACH)?;
    tried.into_iter().collect::<Result<Vec<_>>>()?;
    equal("/etc", context("/etc")?, before)?;
    // One that is used as it is needs no label.
    pod.created(&with_volume(sleeper("plain"), "/etc", false))?;
    // Where files have no labels of their own there is nothing to do.
    pod.created(&with_volume(sleeper("proc"), "/proc/sys/kernel", true))?;
    pod.remove()
}

fn levels_are_given_once(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    with_config(env, "[selinux]\ncategories = 3", |env| {
        let pods = ["a", "b", "c"]
            .map(|name| env.pod(name))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let levels = |env: &mut Env<'_>, name: &str| {
            let mut all = pods
                .iter()
                .map(|pod| of_process(env, &pod.started(&sleeper(name))?))
                .collect::<Result<Vec<_>>>()?;
            all.sort();
            Ok::<_, anyhow::Error>(all)
        };
        let all = ["c0,c1", "c0,c2", "c1,c2"].map(|pair| format!("{PROCESS}s0:{pair}"));
        equal("levels", levels(env, "before")?, all.to_vec())?;
        let podd = env.podd()?;
        podd.end(Signal::SIGKILL)?;
        podd.start_again()?;
        equal("levels after a restart", levels(env, "after")?, all.to_vec())?;
        let cri = env.cri()?;
        let fourth = cri::pod_config("d");
        let said = refused("a fourth", Code::ResourceExhausted, cri.run_pod(&fourth))?;
        contains("message", &said, "selinux.categories")?;
        // One that is named needs none, and one that is free again is given again.
        let mut named = cri::pod_config("named");
        pod_security(&mut named).selinux_options = label("", "", "", "s0:c0,c1");
        Pod::run(&cri, named)?.remove()?;
        let mut pods = pods;
        pods.remove(1).remove()?;
        let again = Pod::run(&cri, fourth)?;
        pods.push(again);
        pods.into_iter().try_for_each(Pod::remove)
    })
}

fn in_a_user_namespace(env: &mut Env<'_>) -> Result<()> {
    needs_selinux()?;
    let pod = users::pod(env, "users")?;
    let mut config = users::shell("c", "exec sleep 1000");
    cri::security(&mut config).masked_paths = vec!["/sys/firmware".to_owned()];
    let id = pod.started(&config)?;
    let process = of_process(env, &id)?;
    let level = process.strip_prefix(PROCESS).context(process.clone())?;
    let root = format!("/proc/{}/root", users::pid(env, &id)?);
    equal(
        "queues",
        context(&format!("{root}/dev/mqueue"))?,
        format!("{FILE}s0"),
    )?;
    for path in ["/", "/dev", "/dev/pts", "/dev/shm", "/etc/hosts", "/sys/firmware"] {
        equal(path, context(&format!("{root}{path}"))?, format!("{FILE}{level}"))?;
    }
    env.cri()?.sh(
        &id,
        "touch /foo /dev/shm/foo && cat /etc/hosts && ls /sys/firmware",
    )?;
    pod.remove()
}
