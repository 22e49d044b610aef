//! Volumes: bind mounts in every mode, and the kubelet's own mounts over what podd provides.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use podd_e2e::arena::WORK_DIR;
use podd_e2e::cri;
use podd_proto::v1 as pb;

use crate::case::{Env, cases, contains, equal};

cases!("mounts":
    read_write, read_only, single_file, missing_host_path_is_made, order_of_nested_mounts, symbolic_link_on_host,
    symbolic_link_in_image, over_etc_hosts, over_dev_shm, over_etc_resolv_conf, host_to_container, private_by_default,
    status_lists_mounts, recursive_read_only);

/// A directory on a real file system that is removed with the value.
struct Volume(PathBuf);

impl Volume {
    fn new() -> Result<Self> {
        let dir = PathBuf::from(format!("{WORK_DIR}/volume-{}", cri::unique()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    fn at(&self, below: &str) -> String {
        self.0
            .join(below)
            .display()
            .to_string()
            .trim_end_matches('/')
            .to_owned()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mount(host: &str, container: &str) -> pb::Mount {
    pb::Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

fn with(script: &str, mounts: Vec<pb::Mount>) -> pb::ContainerConfig {
    let mut config = cri::shell("c", script);
    config.mounts = mounts;
    config
}

fn read_write(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("rw")?);
    fs::write(volume.at("in"), "from host\n")?;
    let out = pod.output(&with(
        "cat /data/in; echo from container >/data/out",
        vec![mount(&volume.at(""), "/data")],
    ))?;
    pod.remove()?;
    equal("read", out.as_str(), "from host\n")?;
    equal(
        "written",
        fs::read_to_string(volume.at("out"))?.as_str(),
        "from container\n",
    )
}

fn read_only(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("ro")?);
    let mut volume_mount = mount(&volume.at(""), "/data");
    volume_mount.readonly = true;
    let (status, out) = pod.ran(&with("touch /data/x 2>&1; exit 9", vec![volume_mount]))?;
    pod.remove()?;
    equal("exit code", status.exit_code, 9)?;
    contains("message", &out, "Read-only file system")
}

fn single_file(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("file")?);
    fs::write(volume.at("f"), "content\n")?;
    let out = pod.output(&with(
        "cat /made/here/f",
        vec![mount(&volume.at("f"), "/made/here/f")],
    ))?;
    pod.remove()?;
    equal("content", out.as_str(), "content\n")
}

fn missing_host_path_is_made(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("missing")?);
    // What both established runtimes do, although the interface says otherwise.
    let out = pod.output(&with(
        "ls -A /data; echo ok",
        vec![mount(&volume.at("new/dir"), "/data")],
    ))?;
    pod.remove()?;
    equal("output", out.as_str(), "ok\n")?;
    ensure!(volume.0.join("new/dir").is_dir(), "the directory was not made");
    Ok(())
}

fn order_of_nested_mounts(env: &mut Env<'_>) -> Result<()> {
    let (outer, inner, pod) = (Volume::new()?, Volume::new()?, env.pod("nested")?);
    fs::create_dir(outer.at("in"))?;
    fs::write(inner.at("f"), "inner\n")?;
    // The inner one is named first and must be visible all the same.
    let mounts = vec![mount(&inner.at(""), "/data/in"), mount(&outer.at(""), "/data")];
    let out = pod.output(&with("cat /data/in/f", mounts))?;
    pod.remove()?;
    equal("content", out.as_str(), "inner\n")
}

fn symbolic_link_on_host(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("hostlink")?);
    fs::create_dir(volume.at("real"))?;
    fs::write(volume.at("real/f"), "behind the link\n")?;
    std::os::unix::fs::symlink(volume.at("real"), volume.at("link"))?;
    let out = pod.output(&with("cat /data/f", vec![mount(&volume.at("link"), "/data")]))?;
    pod.remove()?;
    equal("content", out.as_str(), "behind the link\n")
}

fn symbolic_link_in_image(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("imagelink")?);
    fs::write(volume.at("f"), "x\n")?;
    // The image's link is followed inside the container, never on the host.
    let before = fs::read_dir("/mnt")?.count();
    let out = pod.output(&with(
        "cat /mnt/below/f",
        vec![mount(&volume.at("f"), "/link-to-mnt/below/f")],
    ))?;
    pod.remove()?;
    equal("the host's /mnt", fs::read_dir("/mnt")?.count(), before)?;
    equal("content behind the link", out.as_str(), "x\n")
}

fn over_etc_hosts(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("hosts")?);
    fs::write(
        volume.at("etc-hosts"),
        "# Kubernetes-managed hosts file.\n127.0.0.1 localhost\n",
    )?;
    let out = pod.output(&with(
        "cat /etc/hosts",
        vec![mount(&volume.at("etc-hosts"), "/etc/hosts")],
    ))?;
    pod.remove()?;
    equal(
        "/etc/hosts",
        out.as_str(),
        "# Kubernetes-managed hosts file.\n127.0.0.1 localhost\n",
    )
}

fn over_etc_resolv_conf(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("resolv")?);
    fs::write(volume.at("resolv"), "nameserver 192.0.2.1\n")?;
    let out = pod.output(&with(
        "cat /etc/resolv.conf",
        vec![mount(&volume.at("resolv"), "/etc/resolv.conf")],
    ))?;
    pod.remove()?;
    equal("/etc/resolv.conf", out.as_str(), "nameserver 192.0.2.1\n")
}

fn over_dev_shm(env: &mut Env<'_>) -> Result<()> {
    let (volume, pod) = (Volume::new()?, env.pod("shm")?);
    fs::write(volume.at("mark"), "")?;
    let out = pod.output(&with(
        "ls /dev/shm; grep -c ' /dev/shm ' /proc/self/mountinfo",
        vec![mount(&volume.at(""), "/dev/shm")],
    ))?;
    pod.remove()?;
    equal("contents, and number of mounts", out.as_str(), "mark\n1\n")
}

fn host_to_container(env: &mut Env<'_>) -> Result<()> {
    use nix::mount::{MsFlags, mount as attach, umount};
    let (volume, cri, pod) = (Volume::new()?, env.cri()?, env.pod("slave")?);
    let none = None::<&str>;
    let root = volume.at("");
    attach(Some(root.as_str()), root.as_str(), none, MsFlags::MS_BIND, none)?;
    attach(none, root.as_str(), none, MsFlags::MS_SHARED, none)?;
    let mut volume_mount = mount(&root, "/data");
    volume_mount.propagation = pb::MountPropagation::PropagationHostToContainer.into();
    let started = pod.started(&with("exec sleep 1000", vec![volume_mount]));
    let late = volume.at("late");
    fs::create_dir(&late)?;
    attach(
        Some("tmpfs"),
        late.as_str(),
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )?;
    let seen = started.and_then(|id| cri.sh(&id, "grep -c ' /data/late ' /proc/self/mountinfo || true"));
    umount(late.as_str())?;
    umount(root.as_str())?;
    pod.remove()?;
    equal("mounts made later", seen?.trim(), "1")
}

fn private_by_default(env: &mut Env<'_>) -> Result<()> {
    use nix::mount::{MsFlags, mount as attach, umount};
    let (volume, cri, pod) = (Volume::new()?, env.cri()?, env.pod("private")?);
    let id = pod.started(&with("exec sleep 1000", vec![mount(&volume.at(""), "/data")]))?;
    let late = volume.at("late");
    fs::create_dir(&late)?;
    attach(
        Some("tmpfs"),
        late.as_str(),
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let seen = cri.sh(&id, "grep -c ' /data/late ' /proc/self/mountinfo || true");
    umount(late.as_str())?;
    pod.remove()?;
    equal("mounts made later", seen?.trim(), "0")
}

fn status_lists_mounts(env: &mut Env<'_>) -> Result<()> {
    let (volume, cri, pod) = (Volume::new()?, env.cri()?, env.pod("listed")?);
    let id = pod.created(&with("true", vec![mount(&volume.at(""), "/data")]))?;
    let said = cri.container(&id)?.mounts;
    pod.remove()?;
    equal("mounts", said.len(), 1)?;
    equal("container path", said[0].container_path.as_str(), "/data")?;
    equal(
        "host path",
        said[0].host_path.trim_end_matches('/'),
        volume.at("").trim_end_matches('/'),
    )
}

fn recursive_read_only(env: &mut Env<'_>) -> Result<()> {
    use nix::mount::{MsFlags, mount as attach, umount};
    let (volume, pod) = (Volume::new()?, env.pod("rro")?);
    let below = volume.at("below");
    fs::create_dir(&below)?;
    attach(
        Some("tmpfs"),
        below.as_str(),
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let mut volume_mount = mount(&volume.at(""), "/data");
    volume_mount.readonly = true;
    volume_mount.recursive_read_only = true;
    let ran = pod.ran(&with("touch /data/below/x 2>&1; exit 0", vec![volume_mount]));
    umount(below.as_str())?;
    pod.remove()?;
    contains("write below", &ran?.1, "Read-only file system")
}
