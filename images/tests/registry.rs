//! Pulls from a real registry process. Needs root, as layers have owners and devices.

// Set-up code of tests, to which `allow-unwrap-in-tests` does not reach.
#![allow(clippy::unwrap_used)]

mod faults;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use podd_images::{Config, Durability, Endpoint, Images, Warning};
use support::*;

fn registry() -> Option<Registry> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: layers need root");
        return None;
    }
    Registry::start()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn every_manifest_and_layer_format() {
    let Some(registry) = registry() else { return };
    let files = tar_of(&[
        ("etc/", b""),
        ("etc/name", b"podd\n"),
        ("bin/tool", &[7; 100_000]),
    ]);
    let marks = tar_of(&[("etc/.wh.name", b""), ("new", b"n")]);
    let url = format!("http://{}", registry.host);
    for (docker, packing) in [
        (true, Packing::Gzip),
        (true, Packing::Plain),
        (true, Packing::Zstd),
        (false, Packing::Gzip),
        (false, Packing::Zstd),
        (false, Packing::Plain),
    ] {
        let what = format!("docker {docker} {packing:?}");
        let built = image(
            docker,
            &[(files.clone(), packing), (marks.clone(), packing)],
            &what,
        );
        registry.push("a/b", "one", &built);
        let list = index(docker, &built);
        let (dir, images) = store(&registry.host, std::slice::from_ref(&url), |_| {});
        let name = format!("{}/a/b", registry.host);
        let got = runtime()
            .block_on(images.pull(&format!("{name}:one"), None))
            .unwrap();
        assert_eq!(got.id.as_str(), built.id(), "{what}");
        assert_eq!(got.repo_tags, [format!("{name}:one")]);
        assert_eq!(got.repo_digests, [format!("{name}@{}", built.digest())]);
        assert_eq!(got.config.config.cmd, ["sh"]);
        assert_eq!(got.layers.len(), 2);
        let layer = |i: usize| images.layers_dir().join(got.layers[i].to_string());
        assert_eq!(std::fs::read(layer(0).join("etc/name")).unwrap(), b"podd\n");
        assert_eq!(
            std::fs::metadata(layer(0)).unwrap().permissions().mode() & 0o7777,
            0o755
        );
        assert_eq!(
            std::fs::symlink_metadata(layer(1).join("etc/name"))
                .unwrap()
                .permissions()
                .mode()
                & 0o170_000,
            0o020_000
        );
        let blobs: u64 = built.blobs.iter().map(|b| b.len() as u64).sum();
        assert_eq!(
            got.size,
            blobs + built.config.len() as u64 + built.manifest.len() as u64
        );
        assert!(images.usage().bytes >= 100_000 && images.usage().inodes >= 6);
        for n in &got.layers {
            assert_eq!(images.verify(*n).unwrap(), Vec::<String>::new());
        }
        assert_eq!(entries(&dir.path().join("store/tmp")), Vec::<String>::new());
        // The registry refuses an index whose parts it lacks, so only the one entry is pushed there.
        let one = String::from_utf8(list).unwrap();
        let (head, rest) = one.split_once("[").unwrap();
        let (_, ours) = rest.split_once("},{").unwrap();
        let list = format!("{head}[{{{ours}").into_bytes();
        let media_type = if docker { DOCKER_LIST } else { OCI_INDEX };
        registry.push_manifest("a/b", "list", media_type, &list);
        let got = runtime()
            .block_on(images.pull(&format!("{name}:list"), None))
            .unwrap();
        assert_eq!(got.id.as_str(), built.id(), "{what}");
        assert_eq!(got.repo_tags, [format!("{name}:list"), format!("{name}:one")]);
        assert_eq!(got.repo_digests.len(), 2);
    }
}

#[test]
fn names_follow_pulls_and_removal_takes_all() {
    let Some(registry) = registry() else { return };
    let base = (tar_of(&[("base", b"b")]), Packing::Gzip);
    let first = image(
        false,
        &[base.clone(), (tar_of(&[("one", b"1")]), Packing::Gzip)],
        "first",
    );
    let second = image(
        false,
        &[base, (tar_of(&[("two", b"2")]), Packing::Gzip)],
        "second",
    );
    for tag in ["1", "2", "3"] {
        registry.push("t", tag, &first);
    }
    let (dir, images) = store(&registry.host, &[format!("http://{}", registry.host)], |_| {});
    let name = format!("{}/t", registry.host);
    let rt = runtime();
    let pull = |r: &str| rt.block_on(images.pull(r, None)).unwrap();
    let by_digest = pull(&format!("{name}@{}", first.digest()));
    assert_eq!((by_digest.repo_tags.len(), by_digest.repo_digests.len()), (0, 1));
    for tag in ["3", "1", "2", "1"] {
        pull(&format!("{name}:{tag}"));
    }
    assert_eq!(images.list().len(), 1);
    assert_eq!(
        images.list()[0].repo_tags,
        ["1", "2", "3"].map(|t| format!("{name}:{t}"))
    );
    assert_eq!(images.list()[0].repo_digests.len(), 1);
    let id = first.id();
    let bare = id.strip_prefix("sha256:").unwrap();
    for query in [
        id.clone(),
        bare.to_owned(),
        bare[..12].to_owned(),
        format!("{name}:2"),
        format!("{name}@{}", first.digest()),
        format!("{name}:9@{}", first.digest()),
    ] {
        assert_eq!(
            images.resolve(&query).map(|i| i.id.to_string()),
            Some(id.clone()),
            "{query}"
        );
    }
    for query in ["", "abc", &format!("{name}:9"), "sha256:", "nothing"] {
        assert!(images.resolve(query).is_none(), "{query}");
    }

    registry.push("t", "2", &second);
    pull(&format!("{name}:2"));
    let tags = |i: &str| images.resolve(i).unwrap().repo_tags.clone();
    assert_eq!(tags(&first.id()), [format!("{name}:1"), format!("{name}:3")]);
    assert_eq!(tags(&second.id()), [format!("{name}:2")]);
    let layers = entries(images.layers_dir());
    assert_eq!(
        layers.iter().filter(|n| !n.contains('.')).count(),
        3,
        "the base is shared: {layers:?}"
    );

    // All of it survives a restart.
    let before: Vec<String> = images.list().iter().map(|i| format!("{i:?}")).collect();
    let usage = images.usage();
    let (again, warnings) = Images::open(Config::new(dir.path().join("store"))).unwrap();
    assert_eq!(warnings, vec![]);
    assert_eq!(
        again.list().iter().map(|i| format!("{i:?}")).collect::<Vec<_>>(),
        before
    );
    assert_eq!(again.usage(), usage);
    drop(again);

    assert!(images.remove(&format!("{name}:1")).unwrap());
    assert!(!images.remove(&format!("{name}:1")).unwrap() && images.resolve(&id).is_none());
    assert_eq!(images.list().len(), 1);
    assert!(images.remove(&second.id()).unwrap());
    assert_eq!(entries(images.layers_dir()), Vec::<String>::new());
    assert_eq!(entries(&dir.path().join("store/images")), Vec::<String>::new());
    assert_eq!(images.usage(), podd_images::Usage::default());
}

#[test]
fn holds_keep_layers_over_removal_and_restart() {
    let Some(registry) = registry() else { return };
    let built = image(false, &[(tar_of(&[("f", b"1")]), Packing::Gzip)], "held");
    registry.push("h", "1", &built);
    let url = format!("http://{}", registry.host);
    let (dir, images) = store(&registry.host, std::slice::from_ref(&url), |_| {});
    let name = format!("{}/h:1", registry.host);
    let rt = runtime();
    let image = rt.block_on(images.pull(&name, None)).unwrap();
    let hold = images.hold(&image).unwrap();
    assert_eq!(hold.layers(), image.layers);
    assert!(images.remove(&name).unwrap());
    assert!(images.list().is_empty() && images.hold(&image).is_err());
    let file = images.layers_dir().join(image.layers[0].to_string()).join("f");
    assert!(file.exists());

    // A restart without dropping the hold, as after kill -9.
    std::mem::forget(hold);
    let mut config = Config::new(dir.path().join("store"));
    config
        .registries
        .mirrors
        .insert(registry.host.clone(), vec![Endpoint::new(&url)]);
    let (images, warnings) = Images::open(config).unwrap();
    assert_eq!(warnings, vec![]);
    assert!(images.list().is_empty());
    let hold = images.hold_by_id(&image.id).unwrap();
    images.sweep().unwrap();
    assert!(file.exists());
    // Pulled again while held: the same layer, a live image.
    let again = rt.block_on(images.pull(&name, None)).unwrap();
    assert_eq!(again.layers, image.layers);
    assert!(images.remove(&name).unwrap());
    assert!(file.exists());
    drop(hold);
    wait_empty(images.layers_dir());
    wait_empty(&dir.path().join("store/images"));
}

#[test]
fn damage_is_found_quarantined_and_repaired() {
    let Some(registry) = registry() else { return };
    let built = image(
        false,
        &[
            (tar_of(&[("f", b"1111")]), Packing::Gzip),
            (tar_of(&[("g", b"2")]), Packing::Zstd),
        ],
        "x",
    );
    registry.push("q", "1", &built);
    let url = format!("http://{}", registry.host);
    let (dir, images) = store(&registry.host, std::slice::from_ref(&url), |_| {});
    let name = format!("{}/q:1", registry.host);
    let rt = runtime();
    let image = rt.block_on(images.pull(&name, None)).unwrap();
    std::fs::write(
        images.layers_dir().join(image.layers[0].to_string()).join("f"),
        "",
    )
    .unwrap();
    assert_eq!(images.verify(image.layers[0]).unwrap(), ["f"]);
    assert_eq!(
        images.quarantine(image.layers[0]).unwrap(),
        std::slice::from_ref(&image.id)
    );
    assert!(images.resolve(&name).is_none());
    let repaired = rt.block_on(images.pull(&name, None)).unwrap();
    assert_eq!(images.verify(repaired.layers[0]).unwrap(), Vec::<String>::new());

    // Broken records at start: moved aside, reported, and a pull repairs.
    drop(images);
    let store_dir = dir.path().join("store");
    let record = store_dir.join(format!("layers/{}.json", repaired.layers[0]));
    std::fs::write(&record, "{\"version\":1").unwrap();
    std::fs::create_dir(store_dir.join("layers/99")).unwrap();
    std::fs::create_dir_all(store_dir.join("tmp/98/root/x")).unwrap();
    std::fs::create_dir(store_dir.join("layers/lost+found")).unwrap();
    let mut config = Config::new(&store_dir);
    config
        .registries
        .mirrors
        .insert(registry.host.clone(), vec![Endpoint::new(&url)]);
    let (images, warnings) = Images::open(config).unwrap();
    let quarantined = warnings
        .iter()
        .filter(|w| matches!(w, Warning::Quarantined { .. }))
        .count();
    // The record, its layer and checksums, and the image on it.
    assert_eq!((quarantined, warnings.len()), (4, 5), "{warnings:?}");
    assert!(images.list().is_empty() && !store_dir.join("layers/99").exists());
    assert!(store_dir.join("layers/lost+found").exists());
    assert_eq!(entries(&store_dir.join("tmp")), Vec::<String>::new());
    let repaired = rt.block_on(images.pull(&name, None)).unwrap();
    assert!(repaired.layers[0] > 99, "a number is not used twice");
}

#[test]
fn undescribed_directories_keep_their_metadata() {
    let Some(registry) = registry() else { return };
    let lower = tar_of(&[("tmp/", b""), ("etc/", b""), ("etc/a", b"a")]);
    let upper = tar_of(&[("tmp/x", b"x"), ("etc/b", b"b")]);
    let built = image(
        false,
        &[(lower, Packing::Gzip), (upper.clone(), Packing::Gzip)],
        "fix",
    );
    let alone = image(false, &[(upper, Packing::Gzip)], "alone");
    let empty = image(false, &[], "scratch");
    for (tag, built) in [("fix", &built), ("alone", &alone), ("scratch", &empty)] {
        registry.push("f", tag, built);
    }
    let (_dir, images) = store(&registry.host, &[format!("http://{}", registry.host)], |_| {});
    let rt = runtime();
    let pull = |tag: &str| {
        rt.block_on(images.pull(&format!("{}/f:{tag}", registry.host), None))
            .unwrap()
    };
    let fixed = pull("fix");
    assert_eq!(fixed.layers.len(), 3);
    let top = images.layers_dir().join(fixed.layers[2].to_string());
    assert_eq!(entries(&top), ["tmp"]);
    assert_eq!(
        std::fs::metadata(top.join("tmp")).unwrap().permissions().mode() & 0o7777,
        0o1777
    );
    assert_eq!(pull("alone").layers, &fixed.layers[1..2]);
    assert_eq!(pull("scratch").layers.len(), 1);
    assert_eq!(images.verify(fixed.layers[2]).unwrap(), Vec::<String>::new());
}

/// The system's certificates decide, here those that `SSL_CERT_FILE` names for a process of its own.
#[test]
fn https_needs_a_known_authority() {
    let Some(registry) = Registry::start_tls() else {
        return;
    };
    let authority = registry.authority.clone().unwrap();
    let run = |certificates: &std::path::Path| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "https_child", "--ignored", "--nocapture"])
            .env("PODD_TEST_HOST", &registry.host)
            .env("SSL_CERT_FILE", certificates)
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap()
    };
    let trusted = run(&authority);
    // The handshake worked, the repository does not exist.
    assert!(
        String::from_utf8_lossy(&trusted.stdout).contains("NotFound"),
        "{trusted:?}"
    );
    let other = tempfile::NamedTempFile::new().unwrap();
    let refused = run(other.path());
    assert!(
        String::from_utf8_lossy(&refused.stdout).contains("Unreachable"),
        "{refused:?}"
    );
}

#[test]
#[ignore = "the process that the test above starts"]
fn https_child() {
    let Ok(host) = std::env::var("PODD_TEST_HOST") else {
        return;
    };
    let (_dir, images) = store("unused", &[], |_| {});
    println!(
        "{:?}",
        runtime().block_on(images.pull(&format!("{host}/no/such:image"), None))
    );
}

/// Prints the time of pulls from `PODD_BENCH_IMAGE`, with the registry of the same host over plain HTTP, each into a
/// new store below `TMPDIR`. Stores are deleted at the end: some file systems avoid inodes that were just freed.
#[test]
#[ignore = "a measurement; set PODD_BENCH_IMAGE=host:port/repository:tag"]
fn pull_time() {
    let Ok(name) = std::env::var("PODD_BENCH_IMAGE") else {
        return;
    };
    let host = name.split('/').next().unwrap().to_owned();
    let mut stores = Vec::new();
    for durability in [Durability::None, Durability::SyncFs, Durability::PerFile] {
        for _ in 0..5 {
            let (dir, images) = store(&host, &[format!("http://{host}")], |c| c.durability = durability);
            let before = cpu();
            let begin = Instant::now();
            runtime().block_on(images.pull(&name, None)).unwrap();
            println!("{durability:?}: {:?}, CPU {:?}", begin.elapsed(), cpu() - before);
            stores.push(dir);
        }
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}
