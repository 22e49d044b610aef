//! Volumes: bind mounts in every mode, and the kubelet's own mounts over what podd provides.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::arena::WORK_DIR;
use podd_e2e::{cri, podd};
use podd_proto::v1 as pb;

use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, refused};

cases!("mounts":
    read_write, read_only, single_file, missing_host_path_is_made, order_of_nested_mounts, symbolic_link_on_host,
    symbolic_link_in_image, over_etc_hosts, over_dev_shm, over_etc_resolv_conf, host_to_container, private_by_default,
    status_lists_mounts, recursive_read_only, bidirectional, propagation_needs_a_shared_mount, mount_options,
    options_are_advertised, image_volume, image_volume_of_several_layers, part_of_an_image, image_in_use);

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

/// The same under a name, and so with a log, of its own.
fn named(name: &str, script: &str, mounts: Vec<pb::Mount>) -> pb::ContainerConfig {
    let mut config = cri::shell(name, script);
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

/// Makes a directory of the host a mount of its own, shared or private, while `body` runs.
fn as_mount<T>(path: &str, flag: nix::mount::MsFlags, body: impl FnOnce() -> Result<T>) -> Result<T> {
    use nix::mount::{MntFlags, MsFlags, mount as attach, umount2};
    let none = None::<&str>;
    attach(Some(path), path, none, MsFlags::MS_BIND, none)?;
    attach(none, path, none, flag, none)?;
    let done = body();
    umount2(path, MntFlags::MNT_DETACH)?;
    done
}

fn privileged_pod(env: &mut Env<'_>) -> Result<Pod> {
    let mut config = cri::pod_config("privileged");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    Pod::run(&env.cri()?, config)
}

fn bidirectional(env: &mut Env<'_>) -> Result<()> {
    use nix::mount::{MsFlags, umount};
    let (volume, cri, pod) = (Volume::new()?, env.cri()?, privileged_pod(env)?);
    let root = volume.at("");
    fs::create_dir(volume.at("made"))?;
    let seen = as_mount(&root, MsFlags::MS_SHARED, || {
        let mut shared = mount(&root, "/data");
        shared.propagation = pb::MountPropagation::PropagationBidirectional.into();
        let mut config = with("exec sleep 1000", vec![shared]);
        cri::security(&mut config).privileged = true;
        let id = pod.started(&config)?;
        cri.sh(&id, "mount -t tmpfs x /data/made && touch /data/made/inside")?;
        let seen = fs::exists(volume.at("made/inside"))?;
        umount(volume.at("made").as_str())?;
        Ok(seen)
    });
    pod.remove()?;
    ensure!(seen?, "the host does not see a mount of the container");
    Ok(())
}

fn propagation_needs_a_shared_mount(env: &mut Env<'_>) -> Result<()> {
    use nix::mount::MsFlags;
    let (volume, cri, pod) = (Volume::new()?, env.cri()?, env.pod("unshared")?);
    let root = volume.at("");
    let said = as_mount(&root, MsFlags::MS_PRIVATE, || {
        let mut said = Vec::new();
        for mode in [
            pb::MountPropagation::PropagationHostToContainer,
            pb::MountPropagation::PropagationBidirectional,
        ] {
            let mut asked = mount(&root, "/data");
            asked.propagation = mode.into();
            let config = with("true", vec![asked]);
            let answer = cri.create(&pod.id, &pod.config, &config);
            said.push(refused("a private mount", Code::FailedPrecondition, answer)?);
        }
        Ok(said)
    });
    pod.remove()?;
    let said = said?;
    contains("slave", &said[0], "is neither a shared nor a slave mount")?;
    contains("shared", &said[1], "is not a shared mount")?;
    contains("names the mount", &said[1], &root)
}

fn mount_options(env: &mut Env<'_>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let (volume, pod) = (Volume::new()?, env.pod("options")?);
    fs::write(volume.at("program"), "#!/bin/sh\necho ran\n")?;
    fs::set_permissions(volume.at("program"), fs::Permissions::from_mode(0o755))?;
    let script = "grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6; /data/program 2>&1; true";
    for (options, shown, runs) in [
        (&[][..], "", true),
        (&["noexec"], "noexec", false),
        (&["nodev", "nosuid"], "nosuid,nodev", true),
    ] {
        let mut asked = mount(&volume.at(""), "/data");
        asked.mount_options = options.iter().map(|&o| o.to_owned()).collect();
        let name = format!("c{}", options.concat());
        let out = pod.output(&named(&name, script, vec![asked]))?;
        contains("options", &out, shown)?;
        equal("it runs", out.contains("ran\n"), runs)?;
    }
    pod.remove()
}

fn options_are_advertised(env: &mut Env<'_>) -> Result<()> {
    let status = env.cri()?.status(pb::StatusRequest { verbose: false })?;
    ensure!(status.features.is_some_and(|f| f.mount_options), "mount_options");
    Ok(())
}

fn image_mount(image: &str, sub_path: &str) -> pb::Mount {
    pb::Mount {
        container_path: "/image".to_owned(),
        image: Some(cri::spec(image)),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..Default::default()
    }
}

fn image_volume(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("image")?);
    let image = cri.image(podd::IMAGE)?.map(|i| i.id).unwrap_or_default();
    let asked = image_mount(&image, "");
    let script = "touch /image/x 2>&1; /image/bin/busybox echo runs; ls /image/etc/passwd; \
        grep ' /image ' /proc/self/mountinfo | cut -d' ' -f6";
    let config = with(script, vec![asked]);
    let out = pod.output(&config)?;
    contains("write", &out, "Read-only file system")?;
    contains("program", &out, "runs\n")?;
    contains("file", &out, "/image/etc/passwd\n")?;
    contains("options", &out, "ro,nosuid,nodev")?;
    let mut writable = image_mount(&image, "");
    writable.readonly = false;
    let answer = cri.create(&pod.id, &pod.config, &named("rw", "true", vec![writable]));
    contains(
        "refusal",
        &refused("a writable image", Code::InvalidArgument, answer)?,
        "never writable",
    )?;
    let id = pod.created(&cri::shell("other", "true"))?;
    equal("mounts of another", cri.container(&id)?.mounts.len(), 0)?;
    let mut again = config;
    again.metadata.get_or_insert_default().name = "again".to_owned();
    again.mounts[0].image = Some(cri::spec(podd::IMAGE));
    let id = pod.created(&again)?;
    let said = cri.container(&id)?.mounts;
    pod.remove()?;
    let shown = said[0].image.clone().unwrap_or_default();
    // As a kubelet looks for the images that its garbage collection must keep.
    equal("image in status", &shown.image, &image)?;
    equal("digest in status", shown.image_ref, image)
}

/// Two layers of an image that is only mounted: the upper one hides a file and leads two links out.
fn volume_image(env: &mut Env<'_>, name: &str) -> Result<String> {
    use podd_e2e::images::{Dialect, Entry, Image, Layer, Packing, file};
    let lower = [
        Entry::Dir("conf".into(), 0o755),
        file("conf/a", "lower a\n"),
        file("conf/gone", "x\n"),
    ];
    let upper = [
        Entry::Dir("conf".into(), 0o755),
        file("conf/b", "upper b\n"),
        file("conf/.wh.gone", ""),
        Entry::Link("climbs".into(), "../../../../../../conf".into()),
        Entry::Link("outside".into(), "/no-such/of-this-image".into()),
    ];
    let layers = [
        Layer::new(&lower, Packing::Gzip)?,
        Layer::new(&upper, Packing::Gzip)?,
    ];
    let image = Image::new(&layers, &serde_json::json!({}), Dialect::Oci);
    env.registry().push(&format!("e2e/{name}"), &["1"], &image)?;
    Ok(env.cri()?.pull(&format!("docker.io/e2e/{name}:1"))?)
}

fn image_volume_of_several_layers(env: &mut Env<'_>) -> Result<()> {
    let image = volume_image(env, "stacked")?;
    let pod = env.pod("stacked")?;
    let script = "cd /image; cat conf/a conf/b; ls conf";
    let out = pod.output(&with(script, vec![image_mount(&image, "")]))?;
    pod.remove()?;
    env.cri()?.remove(&image)?;
    equal("content", out.as_str(), "lower a\nupper b\na\nb\n")
}

fn part_of_an_image(env: &mut Env<'_>) -> Result<()> {
    let image = volume_image(env, "part")?;
    let (cri, pod) = (env.cri()?, env.pod("part")?);
    for (sub_path, script, expected) in [
        ("conf", "ls /image", "a\nb\n"),
        ("conf/a", "cat /image", "lower a\n"),
        // The link climbs as far as the image's own root.
        ("climbs/b", "cat /image", "upper b\n"),
    ] {
        let name = sub_path.replace('/', "-");
        let out = pod.output(&named(&name, script, vec![image_mount(&image, sub_path)]))?;
        equal(sub_path, out.as_str(), expected)?;
    }
    for missing in ["no/such", "outside", "conf/gone"] {
        let config = with("true", vec![image_mount(&image, missing)]);
        let answer = cri.create(&pod.id, &pod.config, &config);
        let said = answer.expect_err("a part that the image lacks was mounted");
        equal("code", said.code(), Code::InvalidArgument)?;
        contains("names it", said.message(), missing)?;
    }
    let climbs = with("true", vec![image_mount(&image, "../etc")]);
    refused(
        "a path that climbs",
        Code::InvalidArgument,
        cri.create(&pod.id, &pod.config, &climbs),
    )?;
    pod.remove()?;
    Ok(cri.remove(&image)?)
}

fn image_in_use(env: &mut Env<'_>) -> Result<()> {
    let image = volume_image(env, "used")?;
    let (cri, pod) = (env.cri()?, env.pod("used")?);
    let id = pod.started(&with("exec sleep 1000", vec![image_mount(&image, "conf")]))?;
    cri.remove(&image)?;
    env.podd()?.end(Signal::SIGKILL)?;
    env.podd()?.start_again()?;
    let out = cri.sh(&id, "cat /image/a")?;
    pod.remove()?;
    equal("content after the image was removed", out.as_str(), "lower a\n")
}
