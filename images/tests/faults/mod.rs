//! What a registry, a mirror or the network can do wrong, against a server that does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use podd_images::{Auth, Digest, Endpoint, Error, ErrorKind, Images};

use crate::runtime;
use crate::support::*;

const HOST: &str = "registry.test";

fn root() -> bool {
    rustix::process::geteuid().is_root() || {
        println!("skipped: layers need root");
        false
    }
}

fn one_layer() -> Built {
    image(
        false,
        &[(tar_of(&[("f", &[9; 300_000]), ("g", b"g")]), Packing::Plain)],
        "one",
    )
}

fn blob_path(built: &Built) -> String {
    format!("/v2/a/b/blobs/{}", Digest::sha256_of(&built.blobs[0]))
}

fn open(host: &str, endpoints: &[String]) -> (tempfile::TempDir, Images) {
    store(host, endpoints, |c| {
        c.registries.timeouts.attempts = 3;
        c.registries.timeouts.first_byte = Duration::from_millis(300);
        c.registries.timeouts.connect = Duration::from_secs(1);
        c.registries.timeouts.window = Duration::from_millis(300);
    })
}

/// Pulls `a/b:1`; on failure nothing may be left.
fn pull_with(host: &str, endpoints: &[String]) -> Result<(), Error> {
    let (dir, images) = open(host, endpoints);
    let result = runtime().block_on(images.pull(&format!("{host}/a/b:1"), None));
    wait_empty(&dir.path().join("store/tmp"));
    if result.is_err() {
        assert_eq!(images.list().len(), 0);
        assert_eq!(entries(&dir.path().join("store/images")), Vec::<String>::new());
        assert_eq!(entries(images.layers_dir()), Vec::<String>::new());
    }
    result.map(|_| ())
}

fn pull(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Result<(), Error> {
    let fake = Fake::start(handler);
    pull_with(&fake.host, &[fake.url()])
}

#[test]
fn wrong_content_is_refused_and_leaves_nothing() {
    if !root() {
        return;
    }
    let built = one_layer();
    let mut flipped = built.blobs[0].clone();
    flipped[1000] ^= 1;
    let path = blob_path(&built);
    let serve = serve_images(vec![("a/b", built.clone())]);
    let serve = Arc::new(serve);
    let replace = |body: Vec<u8>| {
        let (serve, path) = (serve.clone(), path.clone());
        move |r: &Request| {
            if r.path == path {
                Answer::ok("", &body)
            } else {
                serve(r)
            }
        }
    };
    assert!(matches!(
        pull(replace(flipped)),
        Err(Error::DigestMismatch { .. })
    ));
    let short = built.blobs[0][..5000].to_vec();
    assert!(matches!(
        pull(replace(short)),
        Err(Error::Truncated { got: 5000, .. })
    ));
    let long = [&built.blobs[0][..], b"more"].concat();
    assert!(matches!(pull(replace(long)), Err(Error::TooLarge { .. })));

    // The blob is what the manifest says, but not what the config says.
    let mut lying = built.clone();
    lying.config = String::from_utf8(lying.config)
        .unwrap()
        .replace(
            Digest::sha256_of(&built.blobs[0]).hex(),
            Digest::sha256_of(b"other").hex(),
        )
        .into_bytes();
    let swap = |from: &[u8], to: &[u8], text: Vec<u8>| {
        let text = String::from_utf8(text).unwrap();
        text.replace(Digest::sha256_of(from).as_str(), Digest::sha256_of(to).as_str())
            .into_bytes()
    };
    lying.manifest = swap(&built.config, &lying.config, lying.manifest);
    assert!(matches!(
        pull(serve_images(vec![("a/b", lying)])),
        Err(Error::DiffIdMismatch { .. })
    ));

    // A config that is not the one the manifest names.
    let mut other = built.clone();
    other.manifest = swap(&built.config, b"something else", other.manifest);
    let config = other.config.clone();
    let wrong = Digest::sha256_of(b"something else").to_string();
    let serve = serve_images(vec![("a/b", other)]);
    let result = pull(move |r| {
        if r.path.ends_with(&wrong) {
            Answer::ok("", &config)
        } else {
            serve(r)
        }
    });
    assert!(matches!(result, Err(Error::DigestMismatch { .. })), "{result:?}");

    // An archive that escapes.
    let mut evil = tar_of(&[("ok/xxx", b"1")]);
    evil[..6].copy_from_slice(b"../xxx");
    evil[148..156].fill(b' ');
    let sum: u32 = evil[..512].iter().map(|b| u32::from(*b)).sum();
    evil[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let evil = image(false, &[(evil, Packing::Gzip)], "evil");
    assert!(matches!(
        pull(serve_images(vec![("a/b", evil)])),
        Err(Error::EntryEscapes { .. })
    ));
}

#[test]
fn broken_bodies_are_resumed() {
    if !root() {
        return;
    }
    let built = one_layer();
    let path = blob_path(&built);
    for ranges in [true, false] {
        let (serve, path, body) = (
            serve_images(vec![("a/b", built.clone())]),
            path.clone(),
            built.blobs[0].clone(),
        );
        let fake = Fake::start(move |r| {
            if r.path != path {
                return serve(r);
            }
            let from: usize = r
                .header("range")
                .filter(|_| ranges)
                .and_then(|v| v.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
                .unwrap_or(0);
            let mut answer = Answer::ok("", &body[from..]);
            if from > 0 {
                answer.status = 206;
                answer = answer.with(
                    "Content-Range",
                    &format!("bytes {from}-{}/{}", body.len() - 1, body.len()),
                );
            }
            if from < 200_000 && (ranges || r.header("range").is_none()) {
                answer.cut = Some(120_000);
            }
            answer
        });
        pull_with(&fake.host, &[fake.url()]).unwrap();
        let asked: Vec<_> = fake
            .log
            .lock()
            .unwrap()
            .iter()
            .filter_map(|r| r.header("range").map(str::to_owned))
            .collect();
        assert!(!asked.is_empty() && asked[0] == "bytes=120000-", "{asked:?}");
    }
    let (serve, path) = (serve_images(vec![("a/b", built.clone())]), path.clone());
    let result = pull(move |r| {
        let mut answer = serve(r);
        if r.path == path {
            answer.cut = Some(0);
        }
        answer
    });
    assert!(
        matches!(result, Err(Error::Unreachable { .. } | Error::Truncated { .. })),
        "{result:?}"
    );
}

#[test]
fn slow_is_an_error_not_a_hang() {
    if !root() {
        return;
    }
    let built = one_layer();
    let path = blob_path(&built);
    let serve = serve_images(vec![("a/b", built)]);
    let begin = Instant::now();
    let result = pull(move |r| {
        let mut answer = serve(r);
        if r.path == path {
            answer.stall = Duration::from_secs(5);
        }
        answer
    });
    assert!(matches!(result, Err(Error::Unreachable { .. })), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[test]
fn statuses_are_typed() {
    if !root() {
        return;
    }
    let cases = [
        (404, ErrorKind::NotFound),
        (403, ErrorKind::PermissionDenied),
        (401, ErrorKind::PermissionDenied),
        (418, ErrorKind::Unavailable),
        (500, ErrorKind::Unavailable),
        (429, ErrorKind::ResourceExhausted),
    ];
    for (status, kind) in cases {
        let error = pull(move |_| Answer::status(status)).unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {error}");
    }
    let html = pull(|_| Answer::ok("text/html", b"<html>")).unwrap_err();
    assert!(matches!(html, Error::UnsupportedMediaType { .. }));
    let large = pull(|_| Answer::ok(OCI_MANIFEST, &vec![b' '; 5 << 20])).unwrap_err();
    assert_eq!(large.kind(), ErrorKind::ResourceExhausted);
    let foreign = index(false, &one_layer());
    let foreign = String::from_utf8(foreign)
        .unwrap()
        .replace("amd64\"}},", "x\"}},")
        .replace("linux", "plan9");
    let error = pull(move |_| Answer::ok(OCI_INDEX, foreign.as_bytes())).unwrap_err();
    assert!(matches!(error, Error::NoMatchingPlatform { .. }), "{error}");
}

#[test]
fn transient_failures_are_retried() {
    if !root() {
        return;
    }
    let built = one_layer();
    let serve = serve_images(vec![("a/b", built)]);
    let calls = AtomicUsize::new(0);
    pull(move |r| {
        if calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            Answer::status(503)
        } else {
            serve(r)
        }
    })
    .unwrap();
}

#[test]
fn bearer_tokens() {
    if !root() {
        return;
    }
    let realm = Fake::start(|r| {
        let form = String::from_utf8_lossy(&r.body).into_owned();
        let basic = r.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=");
        let scoped = r.path.contains("scope=repository%3Aa%2Fb%3Apull") && r.path.contains("service=svc");
        let refresh =
            r.method == "POST" && form.contains("refresh_token=idtoken") && form.contains("grant_type=");
        if (basic && scoped) || refresh {
            Answer::ok("application/json", br#"{"access_token":"good"}"#)
        } else {
            Answer::status(401)
        }
    });
    let challenge = format!(r#"Bearer realm="{}/token",service="svc""#, realm.url());
    let start = || {
        let serve = serve_images(vec![("a/b", one_layer())]);
        let challenge = challenge.clone();
        Fake::start(move |r| match r.header("authorization") {
            Some("Bearer good") => serve(r),
            _ => Answer::status(401).with("WWW-Authenticate", &challenge),
        })
    };
    let registry = start();
    let forward = |auth: Option<Auth>, forward: bool| {
        let (_dir, images) = store(HOST, &[], |c| {
            let endpoint = Endpoint {
                url: registry.url(),
                forward_credentials: forward,
            };
            c.registries.mirrors.insert(HOST.to_owned(), vec![endpoint]);
        });
        runtime()
            .block_on(images.pull(&format!("{HOST}/a/b:1"), auth))
            .map(|_| ())
    };
    forward(Some(Auth::basic("user", "secret")), true).unwrap();
    // One token for the whole pull.
    assert_eq!(realm.count("/token"), 1);
    forward(Some(Auth::basic("<token>", "idtoken")), true).unwrap();
    forward(Some(Auth::RegistryToken("good".into())), true).unwrap();
    // Refused here; what is reported is the registry itself, whose name does not resolve.
    for (auth, trust) in [
        (None, true),
        (Some(Auth::basic("user", "wrong")), true),
        (Some(Auth::basic("user", "secret")), false),
    ] {
        assert!(forward(auth, trust).is_err());
    }
    let log = realm.log.lock().unwrap();
    let last = log.last().unwrap();
    assert_eq!(
        last.header("authorization"),
        None,
        "a mirror's realm never sees the credentials"
    );
    drop(log);
    assert!(forward(Some(Auth::basic("user", "secret")), true).is_ok());
}

#[test]
fn redirects_do_not_carry_credentials() {
    if !root() {
        return;
    }
    let built = one_layer();
    let path = blob_path(&built);
    let body = built.blobs[0].clone();
    let cdn = Fake::start(move |r| {
        if r.header("authorization").is_some() {
            Answer::status(400)
        } else {
            Answer::ok("", &body)
        }
    });
    let target = format!("{}/signed?x=y", cdn.url());
    let serve = serve_images(vec![("a/b", built)]);
    let registry = Fake::start(move |r| {
        if r.header("authorization") != Some("Basic dXNlcjpzZWNyZXQ=") {
            return Answer::status(401).with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        if r.path == path {
            Answer::status(307).with("Location", &target)
        } else {
            serve(r)
        }
    });
    let (_dir, images) = store(HOST, &[], |c| {
        let endpoint = Endpoint {
            url: registry.url(),
            forward_credentials: true,
        };
        c.registries.mirrors.insert(HOST.to_owned(), vec![endpoint]);
    });
    let auth = Auth::from_encoded("dXNlcjpzZWNyZXQ=").unwrap();
    runtime()
        .block_on(images.pull(&format!("{HOST}/a/b:1"), Some(auth)))
        .unwrap();
    assert_eq!(cdn.count("/signed"), 1);
    let loops = pull(|r| Answer::status(302).with("Location", &r.path)).unwrap_err();
    assert!(
        matches!(loops, Error::Unreachable { .. } | Error::Protocol { .. }),
        "{loops}"
    );
}

#[test]
fn a_dead_mirror_is_paid_once_and_a_lying_one_is_left() {
    if !root() {
        return;
    }
    let layers: Vec<_> = (0..6)
        .map(|i| (tar_of(&[(&format!("f{i}"), &[i; 5000])]), Packing::Gzip))
        .collect();
    let built = image(false, &layers, "many");
    let good = Fake::start(serve_images(vec![("a/b", built.clone())]));
    // Accepts and never answers: each attempt costs the whole deadline.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let (_dir, images) = open(HOST, &[silent_url, good.url()]);
    let begin = Instant::now();
    runtime()
        .block_on(images.pull(&format!("{HOST}/a/b:1"), None))
        .unwrap();
    assert!(
        begin.elapsed() < Duration::from_millis(2500),
        "{:?}",
        begin.elapsed()
    );

    let serve = serve_images(vec![("a/b", built)]);
    let lying = Fake::start(move |r| {
        let mut answer = serve(r);
        if r.path.contains("/blobs/") && answer.status == 200 {
            answer.body[20] ^= 0xff;
        }
        answer
    });
    pull_with(HOST, &[lying.url(), good.url()]).unwrap();
    assert!(lying.count("/blobs/") >= 1);
}

#[test]
fn equal_pulls_share_and_a_dropped_pull_stops() {
    if !root() {
        return;
    }
    let built = one_layer();
    let path = blob_path(&built);
    let serve = serve_images(vec![("a/b", built.clone()), ("c", built)]);
    let fake = Fake::start(move |r| {
        let mut answer = serve(r);
        if r.path.contains("/blobs/") {
            answer.stall = Duration::from_millis(150);
        }
        answer
    });
    let (dir, images) = open(HOST, &[fake.url()]);
    let rt = runtime();
    rt.block_on(async {
        let mut tasks = Vec::new();
        for i in 0..10 {
            let images = images.clone();
            let name = if i % 2 == 0 { "a/b:1" } else { "c:1" };
            tasks.push(tokio::spawn(async move {
                images.pull(&format!("{HOST}/{name}"), None).await
            }));
        }
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    });
    let blob = path.rsplit('/').next().unwrap().to_owned();
    assert_eq!((fake.count("/manifests/"), fake.count(&blob)), (2, 1));
    assert_eq!(images.list().len(), 1);
    assert!(images.remove(&format!("{HOST}/c:1")).unwrap());

    let tmp = dir.path().join("store/tmp");
    rt.block_on(async {
        let name = format!("{HOST}/a/b:1");
        let pull = images.pull(&name, None);
        assert!(
            tokio::time::timeout(Duration::from_millis(250), pull)
                .await
                .is_err()
        );
    });
    wait_empty(&tmp);
    assert_eq!(images.list().len(), 0);
    assert_eq!(entries(images.layers_dir()), Vec::<String>::new());
}

#[test]
fn whole_layers_of_a_failed_pull_serve_the_retry() {
    if !root() {
        return;
    }
    let good = (tar_of(&[("good", b"g")]), Packing::Gzip);
    let bad = (tar_of(&[("bad", b"b")]), Packing::Gzip);
    let built = image(false, &[good, bad], "half");
    let broken = format!("/v2/a/b/blobs/{}", Digest::sha256_of(&built.blobs[1]));
    let heal = Arc::new(AtomicUsize::new(0));
    let (serve, healed) = (serve_images(vec![("a/b", built.clone())]), heal.clone());
    let fake = Fake::start(move |r| {
        if r.path == broken && healed.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(200));
            return Answer::status(404);
        }
        serve(r)
    });
    let (_dir, images) = open(HOST, &[fake.url()]);
    let rt = runtime();
    let name = format!("{HOST}/a/b:1");
    assert!(rt.block_on(images.pull(&name, None)).is_err());
    assert_eq!(entries(images.layers_dir()).len(), 3);
    heal.store(1, Ordering::SeqCst);
    rt.block_on(images.pull(&name, None)).unwrap();
    assert_eq!(fake.count(Digest::sha256_of(&built.blobs[0]).as_str()), 1);
    // What failed pulls left goes with the next removal.
    assert!(images.remove(&name).unwrap());
    assert_eq!(entries(images.layers_dir()), Vec::<String>::new());
}
