//! A real registry on loopback: Debian's docker-registry, filled over its own HTTP interface.
//!
//! The HTTP client here speaks to that one server only: plain HTTP/1.1, one request per connection.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::PATIENCE;
use crate::arena::WORK_DIR;
use crate::images::{self, Dialect, Image};

/// Where the registry listens, inside the arena.
pub const ADDRESS: &str = "127.0.0.1:5000";
/// The port of [`ADDRESS`].
pub const PORT: u16 = 5000;
/// Registry hosts whose images the test registry stands in for, and its own, which says that it speaks plain HTTP.
pub const MIRRORED: [&str; 6] = [
    "registry.k8s.io",
    "k8s.gcr.io",
    "gcr.io",
    "docker.io",
    "us-central1-docker.pkg.dev",
    ADDRESS,
];

const BINARY: &str = "/usr/bin/docker-registry";

/// A running registry; it ends with the value.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    pushed: HashSet<String>,
}

impl Registry {
    /// Starts an empty registry and waits until it answers.
    ///
    /// # Errors
    /// Where Debian's docker-registry is not installed or does not come up.
    pub fn start() -> Result<Self> {
        let dir = format!("{WORK_DIR}/registry");
        fs::create_dir_all(&dir)?;
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {dir}\n  \
             delete:\n    enabled: true\nhttp:\n  addr: {ADDRESS}\n"
        );
        let file = format!("{WORK_DIR}/registry.yml");
        fs::write(&file, config)?;
        let log = fs::File::create(format!("{WORK_DIR}/registry.log"))?;
        let child = Command::new(BINARY)
            .args(["serve", &file])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {BINARY} (Debian package docker-registry)"))?;
        let registry = Self {
            child,
            pushed: HashSet::new(),
        };
        let deadline = Instant::now() + PATIENCE;
        while request("GET", "/v2/", &[], b"").is_err() {
            ensure!(
                Instant::now() < deadline,
                "the registry does not answer on {ADDRESS}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// Pushes every image of [`images::catalogue`] and the indexes.
    ///
    /// # Errors
    /// Where the registry refuses one.
    pub fn fill(&mut self) -> Result<()> {
        let all = images::catalogue()?;
        for (repository, tags, image) in &all {
            self.push(repository, tags, image)?;
        }
        let indexed = format!("odd/{}", images::INDEXED);
        let found = all.iter().find(|(repository, ..)| *repository == indexed);
        let (repository, _, image) = found.context("the catalogue has no image to be indexed")?;
        for (dialect, tag) in [(Dialect::Oci, "index"), (Dialect::Docker, "list")] {
            let (media_type, body) = images::index(image, dialect);
            self.push_manifest(repository, tag, media_type, &body)?;
        }
        Ok(())
    }

    /// Pushes `image` under all `tags`.
    ///
    /// # Errors
    /// Where the registry refuses it.
    pub fn push(&mut self, repository: &str, tags: &[&str], image: &Image) -> Result<()> {
        for blob in image
            .layers
            .iter()
            .map(|l| l.packed.as_slice())
            .chain([image.config.as_slice()])
        {
            self.push_blob(repository, blob)?;
        }
        for tag in tags {
            self.push_manifest(repository, tag, image.media_type, &image.manifest)?;
        }
        Ok(())
    }

    /// Pushes a manifest or index.
    ///
    /// # Errors
    /// Where the registry refuses it.
    pub fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, body: &[u8]) -> Result<()> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let done = request("PUT", &path, &[("Content-Type", media_type)], body)?;
        ensure!(
            done.status == 201,
            "{repository}:{tag}: {} {}",
            done.status,
            done.text()
        );
        Ok(())
    }

    /// Names a blob of another repository in this one, or uploads it.
    fn push_blob(&mut self, repository: &str, blob: &[u8]) -> Result<()> {
        let digest = images::digest(blob);
        if !self.pushed.insert(format!("{repository}@{digest}")) {
            return Ok(());
        }
        let owner = self.pushed.iter().find_map(|known| {
            known
                .strip_suffix(&digest)
                .and_then(|r| r.strip_suffix('@'))
                .filter(|r| *r != repository)
        });
        let from = owner
            .map(|owner| format!("?mount={digest}&from={owner}"))
            .unwrap_or_default();
        let begun = request(
            "POST",
            &format!("/v2/{repository}/blobs/uploads/{from}"),
            &[],
            b"",
        )?;
        if begun.status == 201 {
            return Ok(());
        }
        ensure!(
            begun.status == 202,
            "begin an upload: {} {}",
            begun.status,
            begun.text()
        );
        let location = begun.location.context("the registry names no upload")?;
        let path = location
            .strip_prefix(&format!("http://{ADDRESS}"))
            .unwrap_or(&location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let octets = [("Content-Type", "application/octet-stream")];
        let done = request("PUT", &format!("{path}{separator}digest={digest}"), &octets, blob)?;
        ensure!(
            done.status == 201,
            "upload {digest}: {} {}",
            done.status,
            done.text()
        );
        Ok(())
    }

    /// The registry's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    location: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    let mut stream = TcpStream::connect(ADDRESS).context("connect to the registry")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut raw = Vec::new();
    stream
        .read_to_end(&mut raw)
        .with_context(|| format!("{method} {path}"))?;
    let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") else {
        bail!("{method} {path}: no answer")
    };
    let head = String::from_utf8_lossy(&raw[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .context("no status in the answer")?;
    let location = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("location").then(|| value.to_owned())
    });
    Ok(Answer {
        status,
        location,
        body: raw[end + 4..].to_vec(),
    })
}
