//! Test images: deterministic layers and configurations built from Debian's static busybox.
//!
//! Builds values only; [`crate::registry`] pushes them. The names in [`catalogue`] are those that the CRI validation
//! suite pulls, so that it runs against the same registry.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where Debian's package busybox-static puts it.
pub const BUSYBOX: &str = "/bin/busybox";
/// The image most tests use.
pub const BASE: &str = "e2e-test-images/busybox";

/// The image that is also offered through indexes, below `odd/`.
pub const INDEXED: &str = "indexed";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Applets that the validation suite calls and Debian leaves out of its static busybox.
const SCRIPTS: [(&str, &str); 2] = [
    ("ipcs", "#!/bin/sh\ncat /proc/sysvipc/shm\n"),
    (
        "pgrep",
        "#!/bin/sh\ncd /proc\ngrep -lx -- \"$1\" [0-9]*/comm 2>/dev/null | cut -d/ -f1\n",
    ),
];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:\nextra:x:4242:www-data\n\
    nobody:x:65534:\n";

/// One entry of a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A directory and its mode.
    Dir(String, u32),
    /// A regular file, its mode and content.
    File(String, u32, Vec<u8>),
    /// A symbolic link and its target.
    Link(String, String),
    /// A hard link and the entry it links to.
    Hard(String, String),
}

/// How a layer is packed for transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip, as almost every image is.
    Gzip,
    /// zstd, which OCI allows since 1.1.
    Zstd,
}

/// Which of the two families of media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `application/vnd.oci.image.*`.
    Oci,
    /// `application/vnd.docker.*`, schema 2.
    Docker,
}

/// A packed layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Bytes as the registry stores them.
    pub packed: Arc<Vec<u8>>,
    /// Digest of the tar stream.
    pub diff_id: String,
    /// How `packed` is packed.
    pub packing: Packing,
}

/// A whole image, ready to be pushed.
#[derive(Debug, Clone)]
pub struct Image {
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
    /// The configuration as JSON bytes.
    pub config: Vec<u8>,
    /// The manifest as JSON bytes.
    pub manifest: Vec<u8>,
    /// Media type of the manifest.
    pub media_type: &'static str,
}

/// The digest of `bytes` as images write it.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter()
        .fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

impl Layer {
    /// Packs `entries` in the order given.
    ///
    /// # Errors
    /// Where an entry cannot be put into a tar archive.
    pub fn new(entries: &[Entry], packing: Packing) -> Result<Self> {
        Self::of_tar(&archive(entries)?, packing)
    }

    /// Packs a tar stream, well formed or not.
    ///
    /// # Errors
    /// Where the packer fails.
    pub fn of_tar(tar: &[u8], packing: Packing) -> Result<Self> {
        let packed = match packing {
            Packing::Plain => tar.to_vec(),
            Packing::Gzip => {
                let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(4));
                gz.write_all(tar)?;
                gz.finish()?
            }
            Packing::Zstd => zstd::encode_all(tar, 3)?,
        };
        Ok(Self {
            packed: Arc::new(packed),
            diff_id: digest(tar),
            packing,
        })
    }
}

impl Image {
    /// Assembles an image of `layers` with `run` (the `config` object) in one of the two dialects.
    #[must_use]
    pub fn new(layers: &[Layer], run: &Value, dialect: Dialect) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|l| l.diff_id.clone()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2023-11-14T00:00:00Z", "config": run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": layers.iter().map(|_| json!({"created_by": "podd-e2e"})).collect::<Vec<_>>(),
        });
        Self::with_config(layers, config.to_string().into_bytes(), dialect)
    }

    /// Assembles an image with the configuration given as bytes.
    #[must_use]
    pub fn with_config(layers: &[Layer], config: Vec<u8>, dialect: Dialect) -> Self {
        let (media_type, config_type) = match dialect {
            Dialect::Oci => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
            ),
            Dialect::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        };
        let described: Vec<_> = layers
            .iter()
            .map(|l| {
                json!({"mediaType": layer_type(dialect, l.packing), "digest": digest(&l.packed),
                    "size": l.packed.len()})
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type,
            "config": {"mediaType": config_type, "digest": digest(&config), "size": config.len()},
            "layers": described});
        let manifest = manifest.to_string().into_bytes();
        Self {
            layers: layers.to_vec(),
            config,
            manifest,
            media_type,
        }
    }
}

/// The index (or docker manifest list) that offers `image` for amd64 and a foreign architecture nobody has.
#[must_use]
pub fn index(image: &Image, dialect: Dialect) -> (&'static str, Vec<u8>) {
    let media_type = match dialect {
        Dialect::Oci => "application/vnd.oci.image.index.v1+json",
        Dialect::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
    };
    let entry = |arch: &str| {
        json!({"mediaType": image.media_type, "digest": digest(&image.manifest), "size": image.manifest.len(),
            "platform": {"architecture": arch, "os": "linux"}})
    };
    let body =
        json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry("s390x"), entry("amd64")]});
    (media_type, body.to_string().into_bytes())
}

fn layer_type(dialect: Dialect, packing: Packing) -> &'static str {
    match (dialect, packing) {
        (Dialect::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
        (Dialect::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Dialect::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Dialect::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        (Dialect::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Dialect::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
}

/// A tar stream of `entries`, the same bytes for the same input.
fn archive(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        match entry {
            Entry::Dir(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                tar.append_data(&mut header, path, std::io::empty())?;
            }
            Entry::File(path, mode, data) => {
                header.set_mode(*mode);
                header.set_size(data.len() as u64);
                tar.append_data(&mut header, path, data.as_slice())?;
            }
            Entry::Link(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                tar.append_link(&mut header, path, target)?;
            }
            Entry::Hard(path, target) => {
                header.set_entry_type(tar::EntryType::Link);
                // As in published images: some runtimes set the mode of the file again for each of its names.
                header.set_mode(0o755);
                tar.append_link(&mut header, path, target)?;
            }
        }
    }
    tar.into_inner().context("finish the archive")
}

/// A tar stream of one file under a name that no honest archiver writes.
#[must_use]
pub fn raw_name(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    let mut stream = header.as_bytes().to_vec();
    stream.extend_from_slice(data);
    // The content fills its block, and two empty blocks end the archive.
    stream.resize(512 + data.len().next_multiple_of(512) + 1024, 0);
    stream
}

/// A file entry with mode 0644.
#[must_use]
pub fn file(path: &str, text: &str) -> Entry {
    Entry::File(path.to_owned(), 0o644, text.as_bytes().to_vec())
}

/// The layer every image stands on: busybox, its applets as links, passwd and group.
///
/// # Errors
/// Where busybox is not installed.
pub fn base_layer() -> Result<Layer> {
    Layer::new(&base_entries()?, Packing::Gzip)
}

/// The entries of [`base_layer`].
///
/// # Errors
/// Where busybox is not installed.
pub fn base_entries() -> Result<Vec<Entry>> {
    let busybox = std::fs::read(BUSYBOX).context("read busybox (Debian package busybox-static)")?;
    let list = Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .context("list the applets of busybox")?
        .stdout;
    let mut applets: Vec<_> = str::from_utf8(&list)?
        .split_whitespace()
        .filter(|a| *a != "busybox")
        .collect();
    applets.sort_unstable();
    let dirs = "bin sbin etc dev proc sys root home usr usr/bin usr/sbin var var/www var/log mnt run lib usr/share \
        usr/share/nginx usr/share/nginx/html";
    let mut entries: Vec<_> = dirs
        .split_whitespace()
        .map(|d| Entry::Dir(d.to_owned(), 0o755))
        .collect();
    entries.push(Entry::Dir("tmp".to_owned(), 0o1777));
    entries.push(Entry::File("bin/busybox".to_owned(), 0o755, busybox));
    // Hard links, as in the published image: masking one applet must not mask them all.
    entries.extend(
        applets
            .iter()
            .map(|a| Entry::Hard(format!("bin/{a}"), "bin/busybox".to_owned())),
    );
    for (name, script) in SCRIPTS.iter().filter(|(name, _)| !applets.contains(name)) {
        entries.push(Entry::File(
            format!("bin/{name}"),
            0o755,
            script.as_bytes().to_vec(),
        ));
    }
    entries.push(Entry::Link("link-to-mnt".to_owned(), "/mnt".to_owned()));
    entries.push(file("etc/passwd", PASSWD));
    entries.push(file("etc/group", GROUP));
    entries.push(Entry::File(
        "etc/shadow".to_owned(),
        0o640,
        b"root:*:19000:0:99999:7:::\n".to_vec(),
    ));
    Ok(entries)
}

/// Repository, tags and image.
pub type Named = (String, Vec<&'static str>, Image);

/// Every ordinary image, under the names that the CRI validation suite uses.
///
/// # Errors
/// Where busybox is not installed.
pub fn catalogue() -> Result<Vec<Named>> {
    let base = base_layer()?;
    let shell = json!({"Env": [PATH], "Cmd": ["sh"]});
    let web = |port: &str| {
        // What the suite looks for in an nginx: its process id, and its title on process 1.
        let script = format!(
            "mkdir -p /var/run; echo $$ >/var/run/nginx.pid; echo httpd starts; \
             httpd -f -p {port} -h /usr/share/nginx/html & trap 'kill $!; exit' TERM; wait; : nginx: master process"
        );
        json!({"Env": [PATH], "Cmd": ["sh", "-c", script]})
    };
    let with = |extra: Entry, run: &Value| -> Result<Image> {
        let top = Layer::new(&[extra], Packing::Gzip)?;
        Ok(Image::new(&[base.clone(), top], run, Dialect::Oci))
    };
    let plain = Image::new(std::slice::from_ref(&base), &shell, Dialect::Oci);
    let page = || {
        file(
            "usr/share/nginx/html/index.html",
            "<title>Welcome to nginx!</title>\n",
        )
    };
    let mut all: Vec<Named> = vec![
        (BASE.to_owned(), vec!["1.29-2", "1.36.1-1", "1.37.0-1"], plain),
        (
            "library/busybox".to_owned(),
            vec!["latest", "1.29", "1.36"],
            with(file("library", "busybox\n"), &shell)?,
        ),
        (
            "e2e-test-images/nginx".to_owned(),
            vec!["1.14-2"],
            with(page(), &web("80"))?,
        ),
        (
            "e2e-test-images/httpd".to_owned(),
            vec!["2.4.39-4"],
            with(page(), &web("80"))?,
        ),
        (
            suite("hostnet-nginx-amd64"),
            vec!["latest"],
            with(page(), &web("12003"))?,
        ),
        ("pause".to_owned(), vec!["3.9", "3.10", "3.10.1"], {
            let run = json!({"Entrypoint": ["/bin/busybox", "sleep", "2147483647"], "Env": [PATH]});
            Image::new(std::slice::from_ref(&base), &run, Dialect::Oci)
        }),
        (
            suite("test-image-tags"),
            vec!["1", "2", "3"],
            with(file("tags", "tags\n"), &shell)?,
        ),
        (
            suite("test-image-latest"),
            vec!["latest"],
            with(file("latest", "latest\n"), &shell)?,
        ),
        (
            suite("test-image-tag"),
            vec!["test", "all"],
            with(file("tag", "tag\n"), &shell)?,
        ),
        (
            suite("test-image-digest"),
            vec!["latest"],
            with(file("digest", "digest\n"), &shell)?,
        ),
    ];
    for number in ["1", "2", "3"] {
        let image = with(file(&format!("test-image-{number}"), number), &shell)?;
        all.push((suite(&format!("test-image-{number}")), vec!["latest"], image));
    }
    all.extend(user_images(&base)?);
    all.push((
        suite("test-image-predefined-group"),
        vec!["latest"],
        predefined_group(&base)?,
    ));
    all.extend(odd_images(&base)?);
    Ok(all)
}

/// The repository of an image that only the validation suite uses.
fn suite(name: &str) -> String {
    format!("k8s-staging-cri-tools/{name}")
}

/// Images that name their user in each way there is.
fn user_images(base: &Layer) -> Result<Vec<Named>> {
    let users = [
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:users"),
        ("user-username-group", "www-data:100"),
    ];
    let mut all = Vec::new();
    for (name, user) in users {
        let top = Layer::new(&[file("user", user)], Packing::Gzip)?;
        let run = json!({"Env": [PATH], "Cmd": ["sh"], "User": user});
        let image = Image::new(&[base.clone(), top], &run, Dialect::Oci);
        all.push((suite(&format!("test-image-{name}")), vec!["latest"], image));
    }
    Ok(all)
}

/// The image of the suite's supplementary-group tests: its user is a member of a group the image defines.
fn predefined_group(base: &Layer) -> Result<Image> {
    let passwd = format!("{PASSWD}default-user:x:1000:1000::/home/default-user:/bin/sh\n");
    let group = format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
    let top = Layer::new(
        &[file("etc/passwd", &passwd), file("etc/group", &group)],
        Packing::Gzip,
    )?;
    let run = json!({"Env": [PATH], "Cmd": ["sh"], "User": "1000"});
    Ok(Image::new(&[base.clone(), top], &run, Dialect::Oci))
}

/// Images that differ in how they are packed and described; each holds `/variant` with its own name.
fn odd_images(base: &Layer) -> Result<Vec<Named>> {
    let shell = json!({"Env": [PATH, "FROM_IMAGE=yes"], "Entrypoint": ["sh", "-c"], "Cmd": ["cat /variant"]});
    let kinds = [
        ("docker", Dialect::Docker, Packing::Gzip),
        ("zstd", Dialect::Oci, Packing::Zstd),
        ("plain", Dialect::Oci, Packing::Plain),
        (INDEXED, Dialect::Oci, Packing::Gzip),
    ];
    let mut all = Vec::new();
    for (name, dialect, packing) in kinds {
        let top = Layer::new(&[file("variant", name)], packing)?;
        all.push((
            format!("odd/{name}"),
            vec!["latest"],
            Image::new(&[base.clone(), top], &shell, dialect),
        ));
    }
    let lower = Layer::new(
        &[
            Entry::Dir("gone".to_owned(), 0o755),
            file("gone/old", "old"),
            Entry::Dir("opaque".to_owned(), 0o755),
            file("opaque/old", "old"),
            file("kept", "kept"),
            Entry::Hard("hard".to_owned(), "kept".to_owned()),
        ],
        Packing::Gzip,
    )?;
    let upper = Layer::new(
        &[
            file(".wh.gone", ""),
            file("opaque/.wh..wh..opq", ""),
            file("opaque/new", "new"),
            file("variant", "white"),
        ],
        Packing::Gzip,
    )?;
    let image = Image::new(&[base.clone(), lower, upper], &shell, Dialect::Oci);
    all.push(("odd/whiteouts".to_owned(), vec!["latest"], image));
    Ok(all)
}

/// An image of eight layers with `mib` MiB together, for the pull benchmark.
///
/// # Errors
/// Where busybox is not installed.
pub fn big(mib: usize) -> Result<Image> {
    let mut seed = 7_u64;
    let mut next = move || {
        // Marsaglia's xorshift64: the same bytes in every run.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap_or(0)
    };
    let words: Vec<Vec<u8>> = (0..4096)
        .map(|_| {
            let length = 4 + next() % 60;
            (0..length).map(|_| next().to_le_bytes()[0]).collect()
        })
        .collect();
    let mut layers = vec![base_layer()?];
    for number in 0..8 {
        let mut entries = vec![Entry::Dir(format!("data{number}"), 0o755)];
        let mut left = mib * (1 << 20) / 8;
        while left > 0 {
            // Mostly small files and a few large ones, as in real images.
            let size = if next() % 50 == 0 {
                2_000_000
            } else {
                2000 + next() % 30_000
            }
            .min(left);
            let mut data = Vec::with_capacity(size + 64);
            while data.len() < size {
                data.extend_from_slice(&words[next() % words.len()]);
            }
            data.truncate(size);
            entries.push(Entry::File(
                format!("data{number}/f{}", entries.len()),
                0o644,
                data,
            ));
            left -= size;
        }
        layers.push(Layer::new(&entries, Packing::Gzip)?);
    }
    Ok(Image::new(
        &layers,
        &json!({"Env": [PATH], "Cmd": ["sh"]}),
        Dialect::Oci,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        let entries = [
            Entry::Dir("a".to_owned(), 0o755),
            file("a/b", "text"),
            Entry::Link("c".into(), "a/b".into()),
        ];
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let (one, two) = (
                Layer::new(&entries, packing).unwrap(),
                Layer::new(&entries, packing).unwrap(),
            );
            assert_eq!(one.packed, two.packed, "{packing:?}");
            assert_eq!(one.diff_id, digest(&archive(&entries).unwrap()));
        }
    }

    #[test]
    fn a_manifest_names_what_it_holds() {
        let layer = Layer::new(&[file("x", "y")], Packing::Zstd).unwrap();
        let image = Image::new(std::slice::from_ref(&layer), &json!({}), Dialect::Oci);
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        assert_eq!(manifest["config"]["digest"], digest(&image.config));
        assert_eq!(manifest["layers"][0]["digest"], digest(&layer.packed));
        assert_eq!(
            manifest["layers"][0]["mediaType"],
            "application/vnd.oci.image.layer.v1.tar+zstd"
        );
    }
}
