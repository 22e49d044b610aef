//! Pods with a user namespace: who a container is to the node, and what it sees of its files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use podd_e2e::arena::WORK_DIR;
use podd_e2e::{cri, podd};
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, field, refused, skip};

cases!("users":
    root_is_nobody_on_the_node, files_of_the_image, what_it_may_not_do, devices_and_file_systems, volume_with_ids,
    volume_without_ids, volume_on_tmpfs, image_volume, shared_memory, exec_and_terminal, shared_processes, host_network,
    user_of_the_request, maps_that_are_refused, two_pods_have_their_own, own_network);

/// The node's number of the pod's root.
const ROOT: u32 = 1_000_000;
const LENGTH: u32 = 65536;

fn options(host: u32) -> pb::UserNamespace {
    let map = vec![pb::IdMapping {
        host_id: host,
        container_id: 0,
        length: LENGTH,
    }];
    pb::UserNamespace {
        mode: pb::NamespaceMode::Pod.into(),
        uids: map.clone(),
        gids: map,
    }
}

fn config(name: &str, host: u32) -> pb::PodSandboxConfig {
    let mut config = cri::pod_config(name);
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    let namespaces = security.namespace_options.get_or_insert_default();
    namespaces.userns_options = Some(options(host));
    config
}

/// A pod with a user namespace, if this machine can have one.
pub(crate) fn pod(env: &mut Env<'_>, name: &str) -> Result<Pod> {
    let status = env.cri()?.status(pb::StatusRequest { verbose: true })?;
    let handler = status.runtime_handlers.first().context("no handler")?;
    if !handler.features.as_ref().is_some_and(|f| f.user_namespaces) {
        let info = status.info.get("info").context("no info")?;
        let info: serde_json::Value = serde_json::from_str(info)?;
        return skip(
            info["noUserNamespaces"]
                .as_str()
                .context("Status does not say why")?,
        );
    }
    Pod::run(&env.cri()?, config(name, ROOT))
}

/// A container of such a pod.
pub(crate) fn shell(name: &str, script: &str) -> pb::ContainerConfig {
    let mut config = cri::shell(name, script);
    let security = cri::security(&mut config);
    let namespaces = security.namespace_options.get_or_insert_default();
    namespaces.userns_options = Some(options(ROOT));
    config
}

/// A directory on a real file system that is removed with the value.
struct Volume(PathBuf);

impl Volume {
    fn new() -> Result<Self> {
        let dir = PathBuf::from(format!("{WORK_DIR}/users-{}", cri::unique()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    fn mount(&self, ids: bool) -> pb::Mount {
        let maps = if ids {
            options(ROOT)
        } else {
            pb::UserNamespace::default()
        };
        pb::Mount {
            host_path: self.0.display().to_string(),
            container_path: "/data".to_owned(),
            uid_mappings: maps.uids,
            gid_mappings: maps.gids,
            ..Default::default()
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The pid on the node of a running container.
pub(crate) fn pid(env: &mut Env<'_>, id: &str) -> Result<u32> {
    let request = pb::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let info = env.cri()?.container_status(request)?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    Ok(u32::try_from(info["pid"].as_u64().context("no pid")?)?)
}

fn root_is_nobody_on_the_node(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, pod(env, "who")?);
    let id = pod.started(&shell("c", "exec sleep 1000"))?;
    let inside = cri.sh(&id, "id -u; cat /proc/self/uid_map /proc/self/gid_map")?;
    let lines: Vec<Vec<&str>> = inside.lines().map(|l| l.split_whitespace().collect()).collect();
    let map = vec!["0", "1000000", "65536"];
    equal("inside", lines, vec![vec!["0"], map.clone(), map])?;
    let seen = fs::read_to_string(format!("/proc/{}/status", pid(env, &id)?))?;
    equal("Uid", field(&seen, "Uid")?, "1000000\t1000000\t1000000\t1000000")?;
    equal("Gid", field(&seen, "Gid")?, "1000000\t1000000\t1000000\t1000000")?;
    equal("CapEff", field(&seen, "CapEff")?, "00000000a80425fb")?;
    // The namespaces belong to the pod's user namespace, and so do the sysctls.
    equal("Seccomp", field(&seen, "Seccomp")?, "0")?;
    pod.remove()
}

fn files_of_the_image(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, pod(env, "files")?);
    let script = "stat -c '%u:%g %n' / /bin/busybox /etc/passwd /etc/hosts /dev /dev/shm /dev/null /tmp; \
        touch /new && chown 33:33 /new && stat -c '%u:%g %n' /new; echo x >>/etc/passwd; stat -c '%u:%g %n' /etc/passwd; \
        echo '127.0.0.1 me' >>/etc/hosts && rm /etc/group && echo done; sleep 1000";
    let id = pod.started(&shell("c", script))?;
    crate::case::eventually("the script is done", || {
        let log = fs::read_to_string(format!("{}/c.log", pod.config.log_directory))?;
        Ok(log.contains("done"))
    })?;
    let lines = crate::case::log_lines(&pod.config, &shell("c", ""))?;
    for line in lines.iter().filter(|line| line.content.contains(':')) {
        let owner = match line.content.rsplit('/').next() {
            Some("new") => "33:33",
            // Nodes keep their owner of the node, who is nobody here.
            Some("null") => "65534:65534",
            _ => "0:0",
        };
        contains("owner", &line.content, owner)?;
    }
    let place = format!("{}/pods", podd::STATE_DIR);
    let upper = walk(&place, &format!("{id}/upper/new"))?;
    let stat = fs::metadata(upper)?;
    equal(
        "owner on the node",
        (stat.uid(), stat.gid()),
        (ROOT + 33, ROOT + 33),
    )?;
    let _ = cri;
    pod.remove()
}

/// The path below `place` that ends with `tail`.
fn walk(place: &str, tail: &str) -> Result<PathBuf> {
    for pod in fs::read_dir(place)? {
        let path = pod?.path().join("containers").join(tail);
        if path.exists() {
            return Ok(path);
        }
    }
    anyhow::bail!("no {tail} below {place}")
}

fn what_it_may_not_do(env: &mut Env<'_>) -> Result<()> {
    let pod = pod(env, "may-not")?;
    let script = "for f in 'mount -t tmpfs x /mnt' 'chroot /proc/1/root true' 'hostname other' 'mknod /tmp/n b 254 0'; do \
        $f 2>/dev/null && echo $f; done; echo 1000 >/proc/sys/kernel/pid_max || true; mount -t tmpfs x /mnt && echo mounted";
    let mut config = shell("c", script);
    let security = cri::security(&mut config);
    security.capabilities = Some(pb::Capability {
        add_capabilities: vec!["SYS_ADMIN".to_owned()],
        ..Default::default()
    });
    // podd's AppArmor profile denies mounts to everyone.
    security.apparmor = Some(pb::SecurityProfile {
        profile_type: pb::security_profile::ProfileType::Unconfined.into(),
        ..Default::default()
    });
    let out = pod.output(&config)?;
    pod.remove()?;
    // SYS_ADMIN is over what the pod has, its mounts and its name, and over nothing of the node.
    contains("mount", &out, "mounted")?;
    ensure!(!out.contains("mknod"), "a node was made: {out}");
    Ok(())
}

fn devices_and_file_systems(env: &mut Env<'_>) -> Result<()> {
    let pod = pod(env, "devices")?;
    let script = "for d in null zero full random urandom; do ( : </dev/$d ) && echo $d; done; echo x >/dev/null && echo w; \
        ls /sys/class/net; grep ^0:: /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs; mount | grep -c ' on /dev/mqueue '; \
        ls /dev/pts/ptmx; echo to-stdout >/dev/stdout";
    let out = pod.output(&shell("c", script))?;
    pod.remove()?;
    equal(
        "seen",
        out.as_str(),
        "null\nzero\nfull\nrandom\nurandom\nw\neth0\nlo\n0::/\n/sys/fs/cgroup/cgroup.procs\n1\n/dev/pts/ptmx\n\
        to-stdout\n",
    )
}

fn volume_with_ids(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, pod(env, "mapped")?);
    fs::write(volume.0.join("in"), "x")?;
    chown(volume.0.join("in"), Some(7), Some(8))?;
    let script = "stat -c %u:%g /data /data/in; touch /data/out; chown 5:6 /data/out";
    let mut config = shell("c", script);
    config.mounts = vec![volume.mount(true)];
    let out = pod.output(&config)?;
    pod.remove()?;
    equal("owners inside", out.as_str(), "0:0\n7:8\n")?;
    let stat = fs::metadata(volume.0.join("out"))?;
    equal("owner on the node", (stat.uid(), stat.gid()), (5, 6))
}

fn volume_without_ids(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, pod(env, "unmapped")?);
    let mut config = shell("c", "stat -c %u /data; touch /data/x 2>&1; true");
    config.mounts = vec![volume.mount(false)];
    let out = pod.output(&config)?;
    pod.remove()?;
    // The node's root is nobody, whose files nobody inside may write.
    contains("owner", &out, "65534\n")?;
    contains("write", &out, "Permission denied")
}

fn volume_on_tmpfs(env: &mut Env<'_>) -> Result<()> {
    use nix::mount::{MsFlags, mount, umount};
    let (volume, pod) = (Volume::new()?, pod(env, "secret")?);
    mount(
        Some("tmpfs"),
        &volume.0,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    fs::write(volume.0.join("token"), "secret\n")?;
    chown(volume.0.join("token"), Some(0), Some(0))?;
    let mut config = shell("c", "stat -c %u:%g /data/token; cat /data/token");
    config.mounts = vec![volume.mount(true)];
    config.mounts[0].readonly = true;
    let ran = pod.output(&config);
    umount(&volume.0)?;
    pod.remove()?;
    equal("seen", ran?.as_str(), "0:0\nsecret\n")
}

fn image_volume(env: &mut Env<'_>) -> Result<()> {
    let pod = pod(env, "image")?;
    let mut config = shell("c", "stat -c %u:%g /image /image/passwd; head -1 /image/passwd");
    config.mounts = vec![pb::Mount {
        container_path: "/image".to_owned(),
        image: Some(cri::spec(podd::IMAGE)),
        image_sub_path: "etc".to_owned(),
        readonly: true,
        ..Default::default()
    }];
    let out = pod.output(&config)?;
    pod.remove()?;
    contains("owners", &out, "0:0\n0:0\nroot:x:0:0")
}

fn shared_memory(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, pod(env, "shm")?);
    let first = pod.started(&shell("a", "exec sleep 1000"))?;
    let second = pod.started(&shell("b", "exec sleep 1000"))?;
    cri.sh(&first, "echo shared >/dev/shm/x; chmod 1777 /dev/shm")?;
    let out = cri.sh(&second, "cat /dev/shm/x; stat -c %u:%g /dev/shm /dev/shm/x")?;
    pod.remove()?;
    equal("seen by the other", out.as_str(), "shared\n0:0\n0:0\n")
}

fn exec_and_terminal(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, pod(env, "exec")?);
    let id = pod.started(&shell("c", "exec sleep 1000"))?;
    let out = cri.sh(
        &id,
        "id -u; echo again >/dev/stdout; readlink /proc/self/ns/user; ulimit -Hn; grep ^0:: /proc/self/cgroup; \
        grep CapEff /proc/self/status",
    )?;
    contains("exec", &out, "0\nagain\nuser:")?;
    contains("cgroup", &out, "0::/\n")?;
    // Its own view is the root wherever it is (CVE-2025-47291).
    let placed = fs::read_to_string(format!("/proc/{}/cgroup", pid(env, &id)?))?;
    ensure!(
        placed.trim_end().ends_with(&format!("/{id}")),
        "the container is in {placed}"
    );
    contains("capabilities", &out, "00000000a80425fb")?;
    let mut terminal = shell("t", "echo said >/dev/tty; ( : <>/dev/console ) && echo opened");
    terminal.tty = true;
    let out = pod.output(&terminal)?;
    pod.remove()?;
    contains("terminal", &out, "said")?;
    contains("terminal", &out, "opened")
}

fn shared_processes(env: &mut Env<'_>) -> Result<()> {
    let probe = pod(env, "probe")?;
    probe.remove()?;
    let mut asked = config("shared", ROOT);
    let linux = asked.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Pod.into();
    let pod = Pod::run(&env.cri()?, asked)?;
    let with = |name: &str, script: &str| {
        let mut config = shell(name, script);
        let security = cri::security(&mut config);
        security.namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Pod.into();
        config
    };
    let _sleeper = pod.started(&with("a", "exec sleep 1001"))?;
    let out = pod.output(&with(
        "b",
        "cat /proc/1/comm; grep -l 1001 /proc/[0-9]*/cmdline | wc -l",
    ))?;
    pod.remove()?;
    contains("pid 1 and the other's process", &out, "podd-pod\n")
}

fn host_network(env: &mut Env<'_>) -> Result<()> {
    let probe = pod(env, "probe")?;
    probe.remove()?;
    let mut asked = config("host", ROOT);
    asked.hostname = String::new();
    let linux = asked.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = pb::NamespaceMode::Node.into();
    let pod = Pod::run(&env.cri()?, asked)?;
    let mut config = shell(
        "c",
        "readlink /proc/self/ns/net; ls /sys/class/net; touch /sys/x 2>&1; true",
    );
    let security = cri::security(&mut config);
    security.namespace_options.get_or_insert_default().network = pb::NamespaceMode::Node.into();
    let out = pod.output(&config)?;
    pod.remove()?;
    let host = fs::read_link("/proc/self/ns/net")?;
    contains("network namespace", &out, &host.display().to_string())?;
    contains("interfaces", &out, "lo\n")?;
    contains("sysfs", &out, "Read-only file system")
}

fn user_of_the_request(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, pod(env, "user")?);
    let mut config = shell("c", "echo out; exec sleep 1000");
    let security = cri::security(&mut config);
    security.run_as_user = Some(pb::Int64Value { value: 33 });
    security.supplemental_groups = vec![77];
    let id = pod.started(&config)?;
    let seen = fs::read_to_string(format!("/proc/{}/status", pid(env, &id)?))?;
    equal("Uid", field(&seen, "Uid")?, "1000033\t1000033\t1000033\t1000033")?;
    contains("Groups", field(&seen, "Groups")?, "1000077")?;
    // As users of the node and of the request are not the same, status has the latter.
    let user = cri
        .container(&id)?
        .user
        .and_then(|u| u.linux)
        .context("no user")?;
    equal("user in status", user.uid, 33)?;
    equal(
        "output",
        cri.sh(&id, "id -u; echo x >/dev/stdout")?.as_str(),
        "33\nx\n",
    )?;
    pod.remove()
}

fn maps_that_are_refused(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    for (container_id, host_id, length) in [(1, ROOT, 9), (0, 0, LENGTH), (0, ROOT, 0), (0, u32::MAX - 1, 9)]
    {
        let mut asked = config("bad", ROOT);
        let linux = asked.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        let namespaces = security.namespace_options.get_or_insert_default();
        let users = namespaces.userns_options.get_or_insert_default();
        users.uids = vec![pb::IdMapping {
            host_id,
            container_id,
            length,
        }];
        refused("map", Code::InvalidArgument, cri.run_pod(&asked))?;
    }
    let plain = env.pod("plain")?;
    refused(
        "a container with ids in a pod without",
        Code::InvalidArgument,
        cri.create(&plain.id, &plain.config, &shell("c", "true")),
    )?;
    let volume = Volume::new()?;
    let mut mapped = cri::shell("c", "true");
    mapped.mounts = vec![volume.mount(true)];
    refused(
        "a volume with ids in a pod without",
        Code::InvalidArgument,
        cri.create(&plain.id, &plain.config, &mapped),
    )?;
    plain.remove()?;
    let mapped = pod(env, "mapped")?;
    let mut nodes = cri::shell("c", "true");
    let namespaces = cri::security(&mut nodes)
        .namespace_options
        .get_or_insert_default();
    namespaces.userns_options = Some(pb::UserNamespace {
        mode: pb::NamespaceMode::Node.into(),
        ..Default::default()
    });
    refused(
        "a container in the node's user namespace",
        Code::InvalidArgument,
        cri.create(&mapped.id, &mapped.config, &nodes),
    )?;
    mapped.remove()
}

fn two_pods_have_their_own(env: &mut Env<'_>) -> Result<()> {
    let (cri, first) = (env.cri()?, pod(env, "first")?);
    let second = Pod::run(&cri, config("second", ROOT + LENGTH))?;
    let a = first.started(&shell("c", "exec sleep 1000"))?;
    let mut other = shell("c", "exec sleep 1000");
    cri::security(&mut other)
        .namespace_options
        .get_or_insert_default()
        .userns_options = Some(options(ROOT + LENGTH));
    let b = second.started(&other)?;
    let of = |env: &mut Env<'_>, id: &str| -> Result<_> {
        let pid = pid(env, id)?;
        let owner = fs::metadata(format!("/proc/{pid}"))?.uid();
        Ok((fs::read_link(format!("/proc/{pid}/ns/user"))?, owner))
    };
    let (a, b) = (of(env, &a)?, of(env, &b)?);
    ensure!(a.0 != b.0, "two pods share a user namespace");
    let own = fs::read_link("/proc/self/ns/user")?;
    ensure!(a.0 != own && b.0 != own, "a pod is in the node's user namespace");
    first.remove()?;
    second.remove()
}

fn own_network(env: &mut Env<'_>) -> Result<()> {
    let pod = pod(env, "network")?;
    let out = pod.output(&shell("c", "ip -4 addr show eth0 | grep -c inet; hostname; ping -c1 -W1 127.0.0.1 | grep -c '1 packets received'"))?;
    pod.remove()?;
    equal("network", out.as_str(), "1\nnetwork\n1\n")
}
