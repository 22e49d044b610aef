//! PullImage, ImageStatus, ListImages, RemoveImage, ImageFsInfo; images in every shape, and images that lie.

use std::fs;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri::{self, Cri};
use podd_e2e::images::{self as build, Dialect, Entry, Image, Layer, Packing};
use podd_e2e::podd::{IMAGE, STATE_DIR};
use podd_e2e::registry::ADDRESS;
use podd_proto::v1 as pb;
use serde_json::json;
use tonic::Code;

use crate::case::{Env, cases, contains, equal, refused};

cases!("images":
    pull_by_tag_and_digest, one_id_many_names, a_tag_removes_the_image, default_registry_and_tag,
    schema2, index, manifest_list, zstd, uncompressed, whiteouts_and_hard_links, mount_points, image_defaults, user_of_image,
    file_system_info, pulled_twice, bad_references, missing_images, unreachable_registry, wrong_diff_id, truncated_layer,
    layer_that_is_no_archive, escaping_layers, verbose_status,
    volumes_are_directories);

/// Pulls, looks, removes: what a test does with an image of its own.
fn with_image(cri: &Cri, name: &str, check: impl FnOnce(&pb::Image) -> Result<()>) -> Result<()> {
    cri.pull(name).with_context(|| format!("pull {name}"))?;
    let checked = cri
        .image(name)?
        .context("pulled, but not present")
        .and_then(|image| check(&image));
    cri.remove(name).context("remove")?;
    ensure!(
        cri.image(name)?.is_none(),
        "{name} is still present after its removal"
    );
    checked
}

fn pull_by_tag_and_digest(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let name = "gcr.io/k8s-staging-cri-tools/test-image-digest";
    let tagged = format!("{name}:latest");
    let id = cri.pull(&tagged)?;
    let image = cri.image(&tagged)?.context("not present")?;
    equal("image_ref and Image.id", id.clone(), image.id.clone())?;
    equal("tags", image.repo_tags, vec![tagged.clone()])?;
    let digested = image.repo_digests.first().context("no digest")?.clone();
    contains("digest", &digested, &format!("{name}@sha256:"))?;
    ensure!(image.size > 0, "size is zero");
    cri.remove(&tagged)?;

    with_image(&cri, &digested, |image| {
        equal("id by digest", image.id.clone(), id.clone())?;
        equal("tags by digest", image.repo_tags.len(), 0)?;
        equal("digests", image.repo_digests.clone(), vec![digested.clone()])
    })
}

fn one_id_many_names(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let names: Vec<_> = ["1", "2", "3"]
        .map(|t| format!("gcr.io/k8s-staging-cri-tools/test-image-tags:{t}"))
        .into();
    let ids = names
        .iter()
        .map(|n| Ok(cri.pull(n)?))
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        ids.iter().all(|id| *id == ids[0]),
        "one image, several ids: {ids:?}"
    );
    let listed = cri.list_images(pb::ListImagesRequest::default())?.images;
    let mine: Vec<_> = listed.iter().filter(|i| i.id == ids[0]).collect();
    equal("entries in the list", mine.len(), 1)?;
    let mut tags = mine[0].repo_tags.clone();
    tags.sort();
    equal("tags", tags, names.clone())?;
    let filter = Some(pb::ImageFilter {
        image: Some(cri::spec(&names[1])),
    });
    let found = cri.list_images(pb::ListImagesRequest { filter })?.images;
    equal("filtered by name", found.len(), 1)?;
    // An id removes the image with all its names.
    cri.remove(&ids[0])?;
    for name in &names {
        ensure!(
            cri.image(name)?.is_none(),
            "{name} is left after its id was removed"
        );
    }
    Ok(())
}

fn a_tag_removes_the_image(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let name = |tag| format!("gcr.io/k8s-staging-cri-tools/test-image-tag:{tag}");
    cri.pull(&name("test"))?;
    cri.pull(&name("all"))?;
    // CRI: RemoveImage removes the image, by whatever name it is called.
    cri.remove(&name("test"))?;
    for tag in ["test", "all"] {
        ensure!(cri.image(&name(tag))?.is_none(), "{tag} is still there");
    }
    Ok(())
}

fn default_registry_and_tag(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    cri.pull("busybox")?;
    let image = cri
        .image("docker.io/library/busybox:latest")?
        .context("the full name is unknown")?;
    contains(
        "tags",
        &image.repo_tags.join(" "),
        "docker.io/library/busybox:latest",
    )?;
    Ok(cri.remove("busybox")?)
}

/// Runs an image whose default command prints `/variant`.
fn prints_its_variant(env: &mut Env<'_>, name: &str, expected: &str) -> Result<()> {
    let cri = env.cri()?;
    cri.pull(name)?;
    let pod = env.pod("variant")?;
    let mut config = cri::command("c", &[]);
    config.image = Some(cri::spec(name));
    let out = pod.output(&config)?;
    pod.remove()?;
    cri.remove(name)?;
    equal("output", out.trim_end().to_owned(), expected.to_owned())
}

fn schema2(env: &mut Env<'_>) -> Result<()> {
    prints_its_variant(env, "docker.io/odd/docker:latest", "docker")
}

fn zstd(env: &mut Env<'_>) -> Result<()> {
    prints_its_variant(env, "docker.io/odd/zstd:latest", "zstd")
}

fn uncompressed(env: &mut Env<'_>) -> Result<()> {
    prints_its_variant(env, "docker.io/odd/plain:latest", "plain")
}

/// Pulls the indexed image directly and through `tag`: both give one id.
fn same_id_through(env: &mut Env<'_>, tag: &str) -> Result<()> {
    let cri = env.cri()?;
    let direct = format!("docker.io/odd/{}:latest", build::INDEXED);
    let id = cri.pull(&direct)?;
    cri.remove(&direct)?;
    let name = format!("docker.io/odd/{}:{tag}", build::INDEXED);
    with_image(&cri, &name, |image| equal("id", &image.id, &id))
}

fn index(env: &mut Env<'_>) -> Result<()> {
    same_id_through(env, "index")
}

fn manifest_list(env: &mut Env<'_>) -> Result<()> {
    same_id_through(env, "list")
}

/// What podd mounts in every container needs nothing in the layer that this writes; an image decides what is there before
/// podd does, also when it says that nothing is.
fn mount_points(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("points")?;
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    let upper = format!("{STATE_DIR}/pods/{}/containers/{id}/upper", pod.id);
    equal("what was written", fs::read_dir(&upper)?.count(), 0)?;
    pod.remove()?;

    let odd = [
        build::file("etc/.wh..wh..opq", ""),
        build::file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        Entry::Link("etc/hosts".to_owned(), "../tmp/there".to_owned()),
    ];
    let layers = [build::base_layer()?, Layer::new(&odd, Packing::Gzip)?];
    let image = Image::new(&layers, &json!({}), Dialect::Oci);
    env.registry().push("odd/points", &["latest"], &image)?;
    let (cri, name) = (env.cri()?, "docker.io/odd/points:latest");
    cri.pull(name)?;
    let pod = env.pod("points")?;
    let script = "cat /etc/hostname; grep -c localhost /tmp/there; ls /etc";
    let mut config = cri::shell("c", script);
    config.image = Some(cri::spec(name));
    equal(
        "seen",
        pod.output(&config)?.as_str(),
        "points\n2\nhostname\nhosts\npasswd\nresolv.conf\n",
    )?;
    pod.remove()?;
    Ok(cri.remove(name)?)
}

fn whiteouts_and_hard_links(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let name = "docker.io/odd/whiteouts:latest";
    cri.pull(name)?;
    let pod = env.pod("whiteouts")?;
    let mut config = cri::shell(
        "c",
        "ls -d /gone 2>&1; ls -A /opaque; cat /opaque/new /hard; stat -c %h /hard",
    );
    config.image = Some(cri::spec(name));
    config.command = vec!["sh".to_owned(), "-c".to_owned(), config.command[2].clone()];
    let out = pod.output(&config)?;
    pod.remove()?;
    cri.remove(name)?;
    contains("removed directory", &out, "No such file")?;
    contains("opaque directory and hard link", &out, "\nnew\nnewkept2\n")
}

fn image_defaults(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let name = "docker.io/odd/docker:latest";
    cri.pull(name)?;
    let pod = env.pod("defaults")?;
    // CRI: args alone replace the image's Cmd and keep its Entrypoint.
    let mut config = cri::command("args", &[]);
    config.image = Some(cri::spec(name));
    config.args = vec!["echo from-args $FROM_IMAGE".to_owned()];
    let by_args = pod.output(&config)?;
    // A command replaces both.
    let mut config = cri::command("command", &["sh", "-c", "echo only $# $0"]);
    config.image = Some(cri::spec(name));
    let by_command = pod.output(&config)?;
    pod.remove()?;
    cri.remove(name)?;
    equal("args", by_args.as_str(), "from-args yes\n")?;
    equal("command", by_command.as_str(), "only 0 sh\n")
}

fn user_of_image(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    for (name, uid, username, shown) in [
        ("user-uid", Some(1002), "", "1002:0"),
        ("user-username", None, "www-data", "33:33"),
        ("user-uid-group", Some(1003), "", "1003:100"),
        ("user-username-group", None, "www-data", "33:100"),
    ] {
        let name = format!("gcr.io/k8s-staging-cri-tools/test-image-{name}:latest");
        cri.pull(&name)?;
        let image = cri.image(&name)?.context("not present")?;
        equal("uid", image.uid.map(|u| u.value), uid)?;
        equal("username", image.username.as_str(), username)?;
        let pod = env.pod("user")?;
        let mut config = cri::shell("c", "echo $(id -u):$(id -g)");
        config.image = Some(cri::spec(&name));
        let out = pod.output(&config)?;
        pod.remove()?;
        cri.remove(&name)?;
        equal(&name, out.trim(), shown)?;
    }
    Ok(())
}

fn file_system_info(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let used = || -> Result<u64> {
        let said = cri.image_fs_info(pb::ImageFsInfoRequest {})?;
        ensure!(!said.container_filesystems.is_empty(), "no container file system");
        let info = said
            .image_filesystems
            .into_iter()
            .next()
            .context("no image file system")?;
        let point = info.fs_id.context("no mount point")?.mountpoint;
        ensure!(std::path::Path::new(&point).is_dir(), "{point:?} does not exist");
        ensure!(info.timestamp > 0, "no time");
        ensure!(info.inodes_used.is_some_and(|i| i.value > 0), "no inodes");
        Ok(info.used_bytes.context("no bytes")?.value)
    };
    let before = used()?;
    let name = "gcr.io/k8s-staging-cri-tools/test-image-1:latest";
    cri.pull(name)?;
    ensure!(used()? > before, "a pull takes no space");
    let said = cri.image_fs_info(pb::ImageFsInfoRequest {})?;
    let (images, containers) = (&said.image_filesystems[0], &said.container_filesystems[0]);
    equal("one file system", containers, images)?;
    cri.remove(name)?;
    equal("bytes after the removal", used()?, before)
}

fn pulled_twice(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let name = "gcr.io/k8s-staging-cri-tools/test-image-2:latest";
    let ids: Vec<_> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| cri.pull(name))).collect();
        pulls
            .into_iter()
            .map(|p| p.join().expect("a pull does not panic"))
            .collect()
    });
    let ids = ids.into_iter().collect::<Result<Vec<_>, _>>()?;
    ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    Ok(cri.remove(name)?)
}

fn bad_references(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    for name in [
        "",
        "example.org/UPPER/case",
        "a b",
        "busybox:",
        "busybox@sha256:1234",
        "busybox:la:test",
        "//x",
    ] {
        refused(&format!("pull {name:?}"), Code::InvalidArgument, cri.pull(name))?;
    }
    Ok(())
}

fn missing_images(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    // The registry itself must say so: behind a mirror, one that cannot be reached might still have it.
    let name = format!("{ADDRESS}/k8s-staging-cri-tools/test-image-1");
    refused(
        "missing tag",
        Code::NotFound,
        cri.pull(&format!("{name}:nowhere")),
    )?;
    refused(
        "missing repository",
        Code::NotFound,
        cri.pull(&format!("{ADDRESS}/no/such/image:latest")),
    )?;
    refused(
        "missing digest",
        Code::NotFound,
        cri.pull(&format!("{name}@sha256:{}", "0".repeat(64))),
    )?;
    let beyond = cri
        .pull("gcr.io/no/such/image:latest")
        .err()
        .context("pulled what nobody has")?;
    ensure!(
        [Code::NotFound, Code::Unknown].contains(&beyond.code()),
        "behind a mirror: {beyond}"
    );
    ensure!(
        cri.image("gcr.io/no/such/image:latest")?.is_none(),
        "a missing image has a status"
    );
    // CRI: removing what is not there succeeds.
    Ok(cri.remove("gcr.io/no/such/image:latest")?)
}

/// The kubelet shows `RegistryUnavailable` as the reason why a container waits when the code of the failed pull is
/// Unknown and the message begins with that word.
fn unreachable_registry(env: &mut Env<'_>) -> Result<()> {
    let answer = env.cri()?.pull("127.0.0.1:1/nobody/listens:latest");
    let status = answer.err().context("pulled from a port where nobody listens")?;
    equal("code", status.code(), Code::Unknown)?;
    ensure!(
        status
            .message()
            .starts_with("RegistryUnavailable: registry 127.0.0.1:1 unreachable: "),
        "{status}"
    );
    Ok(())
}

/// Pushes an image that lies, and has its pull refused with nothing left.
fn pull_refused(env: &mut Env<'_>, name: &str, image: &Image) -> Result<()> {
    env.registry().push(&format!("bad/{name}"), &["latest"], image)?;
    let cri = env.cri()?;
    let name = format!("docker.io/bad/{name}:latest");
    let answer = cri.pull(&name);
    ensure!(answer.is_err(), "{name} was accepted");
    ensure!(
        cri.image(&name)?.is_none(),
        "{name} is present after a failed pull"
    );
    Ok(())
}

fn wrong_diff_id(env: &mut Env<'_>) -> Result<()> {
    let mut layer = Layer::new(&[build::file("x", "x")], Packing::Gzip)?;
    layer.diff_id = build::digest(b"something else");
    pull_refused(env, "diff-id", &Image::new(&[layer], &json!({}), Dialect::Oci))
}

fn truncated_layer(env: &mut Env<'_>) -> Result<()> {
    let mut layer = Layer::new(&[build::file("x", &"text ".repeat(9999))], Packing::Gzip)?;
    let half = layer.packed.len() / 2;
    layer.packed = layer.packed[..half].to_vec().into();
    pull_refused(env, "truncated", &Image::new(&[layer], &json!({}), Dialect::Oci))
}

fn layer_that_is_no_archive(env: &mut Env<'_>) -> Result<()> {
    let layer = Layer::of_tar(&[0x5a; 4096], Packing::Gzip)?;
    pull_refused(env, "garbage", &Image::new(&[layer], &json!({}), Dialect::Oci))
}

fn escaping_layers(env: &mut Env<'_>) -> Result<()> {
    let target = std::path::Path::new("/tmp/escaped");
    let link = |to: &str| Entry::Link("out".to_owned(), to.to_owned());
    let through_link = Layer::new(&[link("/tmp"), build::file("out/escaped", "x")], Packing::Gzip)?;
    let image = Image::new(&[through_link], &json!({}), Dialect::Oci);
    env.registry().push("bad/link", &["latest"], &image)?;
    // A link in a layer is followed inside the image or refused; both are right, the host's file is not.
    let cri = env.cri()?;
    if cri.pull("docker.io/bad/link:latest").is_ok() {
        cri.remove("docker.io/bad/link:latest")?;
    }
    ensure!(
        !target.exists(),
        "a layer wrote through a link to {}",
        target.display()
    );

    let dots = build::raw_name(&format!("{}tmp/escaped", "../".repeat(12)), b"x");
    let image = Image::new(&[Layer::of_tar(&dots, Packing::Gzip)?], &json!({}), Dialect::Oci);
    env.registry().push("bad/dots", &["latest"], &image)?;
    if cri.pull("docker.io/bad/dots:latest").is_ok() {
        cri.remove("docker.io/bad/dots:latest")?;
    }
    ensure!(
        !target.exists(),
        "a layer wrote through .. to {}",
        target.display()
    );
    Ok(())
}

fn verbose_status(env: &mut Env<'_>) -> Result<()> {
    let request = pb::ImageStatusRequest {
        image: Some(cri::spec(IMAGE)),
        verbose: true,
    };
    let said = env.cri()?.image_status(request)?;
    said.image.context("the base image is not present").map(drop)
}

/// An image need not have what it means as a volume: the container gets a directory, in its own layer and for its user.
fn volumes_are_directories(env: &mut Env<'_>) -> Result<()> {
    const NAME: &str = "docker.io/made/volumes:latest";
    let config = json!({"User": "1000:2000", "Volumes": {"/made/by/podd": {}, "/root": {}, "/etc/passwd": {}, "/": {}}});
    let image = Image::new(&[build::base_layer()?], &config, Dialect::Oci);
    env.registry().push("made/volumes", &["latest"], &image)?;
    let (cri, pod) = (env.cri()?, env.pod("volumes")?);
    cri.pull(NAME)?;
    let look = "echo x >/made/by/podd/file; stat -c '%a %u:%g %F %n' /made /made/by/podd /root /etc/passwd";
    let of_image = |name: &str| {
        let mut config = cri::shell(name, look);
        config.image = Some(cri::spec(NAME));
        config
    };
    let out = pod.output(&of_image("c"))?;
    let plain = pod.output(&cri::shell("plain", "stat -c '%a %u:%g %F %n' /root /etc/passwd"))?;
    let made = "755 0:0 directory /made\n755 1000:2000 directory /made/by/podd\n";
    equal("made, and left alone", out, format!("{made}{plain}"))?;
    // A root that is read-only has them as well.
    let mut config = of_image("ro");
    cri::security(&mut config).readonly_rootfs = true;
    contains(
        "read-only",
        &pod.output(&config)?,
        "1000:2000 directory /made/by/podd\n",
    )?;
    pod.remove()?;
    Ok(cri.remove(NAME)?)
}
