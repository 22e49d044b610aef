//! Images built in memory, a registry process, and a small HTTP server that misbehaves on request.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podd_images::{Config, Digest, Endpoint, Images};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// How a layer is packed.
#[derive(Clone, Copy, Debug)]
pub enum Packing {
    Gzip,
    Zstd,
    Plain,
}

/// A manifest with its blobs.
#[derive(Clone, Debug)]
pub struct Built {
    pub media_type: &'static str,
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub blobs: Vec<Vec<u8>>,
}

impl Built {
    pub fn digest(&self) -> String {
        Digest::sha256_of(&self.manifest).to_string()
    }

    pub fn id(&self) -> String {
        Digest::sha256_of(&self.config).to_string()
    }
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        if let Some(dir) = name.strip_suffix('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(if dir == "tmp" { 0o1777 } else { 0o755 });
        }
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Gzip => {
            let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            e.write_all(tar).unwrap();
            e.finish().unwrap()
        }
        Packing::Zstd => zstd::stream::encode_all(tar, 1).unwrap(),
        Packing::Plain => tar.to_vec(),
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    format!(
        r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#,
        Digest::sha256_of(bytes),
        bytes.len()
    )
}

pub fn image(docker: bool, layers: &[(Vec<u8>, Packing)], label: &str) -> Built {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|(t, _)| format!("{:?}", Digest::sha256_of(t).to_string()))
        .collect();
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{{"Cmd":["sh"],"Labels":{{"l":"{label}"}}}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    )
    .into_bytes();
    let mut blobs = Vec::new();
    let mut descriptors = Vec::new();
    for (tar, packing) in layers {
        let blob = pack(tar, *packing);
        let media_type = match (docker, packing) {
            (true, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (true, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
            (true, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (false, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (false, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
        };
        descriptors.push(descriptor(media_type, &blob));
        blobs.push(blob);
    }
    let (media_type, config_type) = if docker {
        (DOCKER_MANIFEST, DOCKER_CONFIG)
    } else {
        (OCI_MANIFEST, OCI_CONFIG)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{},"layers":[{}]}}"#,
        descriptor(config_type, &config),
        descriptors.join(",")
    )
    .into_bytes();
    Built {
        media_type,
        manifest,
        config,
        blobs,
    }
}

/// An index with entries for foreign platforms around the one for this machine.
pub fn index(docker: bool, inner: &Built) -> Vec<u8> {
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let entry = |platform: &str, bytes: &[u8]| {
        descriptor(inner.media_type, bytes).replace("}", &format!(",\"platform\":{platform}}}"))
    };
    let media_type = if docker { DOCKER_LIST } else { OCI_INDEX };
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{},{}]}}"#,
        entry(r#"{"os":"windows","architecture":"amd64"}"#, b"elsewhere"),
        entry(
            &format!(r#"{{"os":"linux","architecture":"{arch}"}}"#),
            &inner.manifest
        )
    )
    .into_bytes()
}

pub fn store(
    host: &str,
    endpoints: &[String],
    change: impl FnOnce(&mut Config),
) -> (tempfile::TempDir, Images) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path().join("store"));
    let endpoints = endpoints.iter().map(Endpoint::new).collect();
    config.registries.mirrors = BTreeMap::from([(host.to_owned(), endpoints)]);
    change(&mut config);
    let (images, warnings) = Images::open(config).unwrap();
    assert_eq!(warnings, vec![]);
    (dir, images)
}

pub fn entries(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Waits until `dir` is empty: threads of a failed pull clean up on their own.
pub fn wait_empty(dir: &std::path::Path) {
    let end = Instant::now() + Duration::from_secs(10);
    while !entries(dir).is_empty() {
        assert!(Instant::now() < end, "left behind: {:?}", entries(dir));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A `docker-registry` process on a port of its own.
pub struct Registry {
    child: Child,
    pub host: String,
    /// Certificate of the authority, when it speaks TLS.
    pub authority: Option<std::path::PathBuf>,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// `None`, with the reason printed, where the program is not installed.
    pub fn start() -> Option<Registry> {
        Registry::run(tempfile::tempdir().unwrap(), "", None)
    }

    /// The same with TLS, under an authority made for it.
    pub fn start_tls() -> Option<Registry> {
        let dir = tempfile::tempdir().unwrap();
        let script = "set -e; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key \
             -out ca.crt -days 2 -subj /CN=test-authority; \
             openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout s.key -out s.csr -subj /CN=test; \
             printf 'subjectAltName=IP:127.0.0.1' > ext; \
             openssl x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out s.crt -days 2 -extfile ext";
        let made = Command::new("sh")
            .args(["-c", script])
            .current_dir(dir.path())
            .output();
        if !made.is_ok_and(|o| o.status.success()) {
            println!("skipped: openssl cannot make certificates here");
            return None;
        }
        let at = |name: &str| dir.path().join(name).display().to_string();
        let tls = format!(", tls: {{certificate: {}, key: {}}}", at("s.crt"), at("s.key"));
        let authority = dir.path().join("ca.crt");
        Registry::run(dir, &tls, Some(authority))
    }

    fn run(dir: tempfile::TempDir, tls: &str, authority: Option<std::path::PathBuf>) -> Option<Registry> {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let host = format!("127.0.0.1:{port}");
        let config = dir.path().join("config.yml");
        let root = dir.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {host}{tls}}}\n",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(e) => {
                println!("skipped: /usr/bin/docker-registry (Debian package docker-registry): {e}");
                return None;
            }
        };
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(&host).is_err() {
            assert!(Instant::now() < end, "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Registry {
            child,
            host,
            authority,
            _dir: dir,
        })
    }

    pub fn push(&self, repository: &str, tag: &str, built: &Built) {
        for blob in built.blobs.iter().chain([&built.config]) {
            let start = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
            let location = start.header("location").expect("upload location");
            let path = location
                .split_once(&self.host)
                .map_or_else(|| location.clone(), |(_, p)| p.to_owned());
            let sep = if path.contains('?') { '&' } else { '?' };
            let done = self.send(
                "PUT",
                &format!("{path}{sep}digest={}", Digest::sha256_of(blob)),
                "application/octet-stream",
                blob,
            );
            assert_eq!(done.status, 201);
        }
        self.push_manifest(repository, tag, built.media_type, &built.manifest);
    }

    pub fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let done = self.send(
            "PUT",
            &format!("/v2/{repository}/manifests/{tag}"),
            media_type,
            bytes,
        );
        assert_eq!(done.status, 201, "{repository}:{tag}");
    }

    fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Head {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.host,
            body.len()
        )
        .unwrap();
        stream.write_all(body).unwrap();
        let mut reader = BufReader::new(stream);
        let head = Head::read(&mut reader).unwrap();
        let _ = reader.read_to_end(&mut Vec::new());
        head
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Head {
    status: u16,
    headers: HashMap<String, String>,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> Option<Head> {
        let request = Request::read(reader)?;
        Some(Head {
            status: request.path.parse().ok()?,
            headers: request.headers,
        })
    }

    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).cloned()
    }
}

/// A request as the fake server sees it; for an answer, `path` is the status.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> Option<Request> {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((key, value)) = line.trim().split_once(':') else {
                break;
            };
            headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
        }
        Some(Request {
            method,
            path,
            headers,
            body: Vec::new(),
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the fake server answers.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many body bytes.
    pub cut: Option<usize>,
    /// Wait before the body.
    pub stall: Duration,
}

impl Answer {
    pub fn ok(content_type: &str, body: &[u8]) -> Answer {
        Answer {
            status: 200,
            body: body.to_vec(),
            ..Answer::default()
        }
        .with("Content-Type", content_type)
    }

    pub fn status(status: u16) -> Answer {
        Answer {
            status,
            ..Answer::default()
        }
    }

    pub fn with(mut self, key: &str, value: &str) -> Answer {
        self.headers.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A server whose answers a closure decides; it records every request.
pub struct Fake {
    pub host: String,
    pub log: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (handler, seen) = (Arc::new(handler), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, seen) = (handler.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &*handler, &seen));
            }
        });
        Fake { host, log }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.host)
    }

    pub fn count(&self, part: &str) -> usize {
        self.log
            .lock()
            .unwrap()
            .iter()
            .filter(|r| r.path.contains(part))
            .count()
    }
}

fn serve(mut stream: TcpStream, handler: &dyn Fn(&Request) -> Answer, seen: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let Some(mut request) = Request::read(&mut reader) else {
        return;
    };
    if let Some(length) = request.header("content-length").and_then(|n| n.parse().ok()) {
        request.body = vec![0; length];
        let _ = reader.read_exact(&mut request.body);
    }
    seen.lock().unwrap().push(request.clone());
    let answer = handler(&request);
    let mut head = format!(
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (key, value) in &answer.headers {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    std::thread::sleep(answer.stall);
    let end = answer.cut.unwrap_or(answer.body.len());
    let _ = stream.write_all(&answer.body[..end]);
}

/// Answers a registry that has `images` by repository and tag would give.
pub fn serve_images(images: Vec<(&'static str, Built)>) -> impl Fn(&Request) -> Answer + Send + Sync {
    move |request| {
        for (name, built) in &images {
            let Some(rest) = request.path.strip_prefix(&format!("/v2/{name}/")) else {
                continue;
            };
            if let Some(wanted) = rest.strip_prefix("manifests/")
                && (!wanted.contains(':') || wanted == built.digest())
            {
                return Answer::ok(built.media_type, &built.manifest);
            }
            for blob in built.blobs.iter().chain([&built.config]) {
                if rest == format!("blobs/{}", Digest::sha256_of(blob)) {
                    return Answer::ok("application/octet-stream", blob);
                }
            }
        }
        Answer::status(404)
    }
}
