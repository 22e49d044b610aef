//! What podd tells about itself: metrics that move with what is done, health, the level of its log.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::cri;
use podd_e2e::observe::{self, Metrics, ask, ask_tcp};
use podd_e2e::podd::{self, IMAGE, STATE_DIR};
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, cases, contains, equal, eventually, refused};
use crate::lifecycle::sleeper;

cases!("observe":
    operations_are_counted, failures_are_counted, pulls_are_counted, retries_are_counted, own_process, both_formats,
    leaks_at_the_start, healthy, a_failing_check_names_itself, tcp_answers_questions_only, nothing_where_nothing_is_asked,
    log_level, hostile_clients);

/// Where podd listens where a test says so.
const TCP: &str = "127.0.0.1:9464";

fn rpc(name: &str, code: &str) -> String {
    format!("podd_rpc_duration_seconds_count{{rpc=\"{name}\",code=\"{code}\"}}")
}

pub(crate) fn stage(name: &str, result: &str) -> String {
    format!("podd_stage_duration_seconds_count{{stage=\"{name}\",result=\"{result}\"}}")
}

/// How much a series grew.
pub(crate) fn grew(before: &Metrics, after: &Metrics, series: &str) -> f64 {
    after.get(series) - before.get(series)
}

/// Runs podd with more in its configuration, and then as before.
pub(crate) fn with_config(
    env: &mut Env<'_>,
    more: &str,
    test: impl FnOnce(&mut Env<'_>) -> Result<()>,
) -> Result<()> {
    const CONFIG: &str = "/etc/podd/config.toml";
    let usual = fs::read_to_string(CONFIG)?;
    let restart = |env: &mut Env<'_>, config: &str| -> Result<()> {
        fs::write(CONFIG, config)?;
        let podd = env.podd()?;
        podd.end(Signal::SIGTERM)?;
        podd.start_again()
    };
    restart(env, &format!("{usual}\n{more}"))?;
    let tested = test(env);
    restart(env, &usual)?;
    tested?;
    first_pod(env)
}

/// Without pods a podd that was started again has nothing to connect: the first pod brings bridge and table back.
fn first_pod(env: &mut Env<'_>) -> Result<()> {
    env.pod("first")?.remove()
}

fn operations_are_counted(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let before = Metrics::scrape()?;
    let (pod, id) = sleeper(env, "counted")?;
    cri.sh(&id, "true")?;
    let during = Metrics::scrape()?;
    for name in ["RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync"] {
        equal(name, grew(&before, &during, &rpc(name, "OK")), 1.0)?;
    }
    for name in [
        "pod_cgroup",
        "podinit",
        "namespaces",
        "network",
        "pod_files",
        "container_cgroup",
        "plan",
        "launch",
        "start",
    ] {
        equal(name, grew(&before, &during, &stage(name, "ok")), 1.0)?;
    }
    // Of the pod, and of the container.
    equal("records", grew(&before, &during, &stage("record", "ok")), 2.0)?;
    for gauge in [
        "podd_pods{phase=\"ready\"}",
        "podd_containers{phase=\"running\"}",
        "podd_podinits",
    ] {
        equal(gauge, during.told(gauge)? - before.told(gauge)?, 1.0)?;
    }
    let sum = "podd_stage_duration_seconds_sum{stage=\"network\",result=\"ok\"}";
    ensure!(grew(&before, &during, sum) > 0.0, "the network took no time");
    let all = "podd_stage_duration_seconds_bucket{le=\"+Inf\",stage=\"network\",result=\"ok\"}";
    equal(
        "the last bucket",
        during.get(all),
        during.get(&stage("network", "ok")),
    )?;
    ensure!(during.told("podd_rpcs_in_progress")? >= 0.0, "less than none");

    pod.remove()?;
    let after = Metrics::scrape()?;
    for name in ["StopPodSandbox", "RemovePodSandbox"] {
        equal(name, grew(&during, &after, &rpc(name, "OK")), 1.0)?;
    }
    for name in [
        "kill",
        "podinit_end",
        "network_end",
        "container_removal",
        "pod_removal",
    ] {
        equal(name, grew(&during, &after, &stage(name, "ok")), 1.0)?;
    }
    for gauge in [
        "podd_pods{phase=\"ready\"}",
        "podd_containers{phase=\"running\"}",
        "podd_podinits",
    ] {
        equal(gauge, after.told(gauge)?, before.told(gauge)?)?;
    }
    eventually("the trash is empty", || {
        Ok(Metrics::scrape()?.told("podd_trash_directories")? == 0.0)
    })
}

fn failures_are_counted(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let pod = env.pod("failures")?;
    let before = Metrics::scrape()?;
    refused("start", Code::NotFound, cri.start("0123456789abcdef"))?;
    let mut bad = cri::command("bad", &["true"]);
    cri::security(&mut bad).run_as_username = "nobody-of-this-name".to_owned();
    let answer = cri.create(&pod.id, &pod.config, &bad);
    refused("create", Code::InvalidArgument, answer)?;
    let after = Metrics::scrape()?;
    for (name, code) in [
        ("StartContainer", "NOT_FOUND"),
        ("CreateContainer", "INVALID_ARGUMENT"),
    ] {
        equal(name, grew(&before, &after, &rpc(name, code)), 1.0)?;
        equal(name, grew(&before, &after, &rpc(name, "OK")), 0.0)?;
    }
    equal("stage", grew(&before, &after, &stage("launch", "error")), 1.0)?;
    pod.remove()
}

fn pulls_are_counted(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let before = Metrics::scrape()?;
    let name = "gcr.io/k8s-staging-cri-tools/test-image-3:latest";
    cri.pull(name)?;
    let pulled = Metrics::scrape()?;
    let pulls = |result| format!("podd_image_pull_duration_seconds_count{{result=\"{result}\"}}");
    equal("pulls", grew(&before, &pulled, &pulls("ok")), 1.0)?;
    ensure!(
        grew(&before, &pulled, "podd_image_pull_bytes_total") > 0.0,
        "no byte was counted"
    );
    equal(
        "images",
        pulled.told("podd_images")? - before.told("podd_images")?,
        1.0,
    )?;
    cri.pull(IMAGE)?;
    ensure!(
        cri.pull("gcr.io/k8s-staging-cri-tools/no-such-image:1").is_err(),
        "pulled what is not there"
    );
    let after = Metrics::scrape()?;
    equal("failures", grew(&pulled, &after, &pulls("error")), 1.0)?;
    equal(
        "bytes of what is there",
        grew(&pulled, &after, "podd_image_pull_bytes_total"),
        0.0,
    )?;
    cri.remove(name)?;
    Ok(())
}

fn retries_are_counted(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let before = Metrics::scrape()?;
    let config = cri::pod_config("retries");
    fs::create_dir_all(&config.log_directory)?;
    const CLIENTS: usize = 6;
    let ids: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| cri.run_pod(&config)))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("no panic"))
            .collect()
    });
    let first = ids[0].as_ref().ok().context("the first failed")?.clone();
    for id in ids {
        equal("id", id?, first.clone())?;
    }
    equal("once more", cri.run_pod(&config)?, first.clone())?;
    let after = Metrics::scrape()?;
    let series = |found| format!("podd_retries_total{{rpc=\"RunPodSandbox\",found=\"{found}\"}}");
    let (running, done) = (
        grew(&before, &after, &series("running")),
        grew(&before, &after, &series("done")),
    );
    equal("retries", running + done, CLIENTS as f64)?;
    ensure!(done >= 1.0, "the last found the pod made");
    cri.remove_pod(&first)?;
    Ok(fs::remove_dir_all(&config.log_directory)?)
}

/// The figures of podd's process against those that the kernel tells others.
fn own_process(env: &mut Env<'_>) -> Result<()> {
    let pid = env.podd()?.pid();
    let told = Metrics::scrape()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let threads: f64 = crate::case::field(&status, "Threads")?.parse()?;
    // A thread for blocking work may begin or end meanwhile.
    ensure!(
        (told.told("process_threads")? - threads).abs() <= 4.0,
        "{threads} threads, told {told:?}"
    );
    let kib: f64 = crate::case::field(&status, "VmRSS")?
        .trim_end_matches(" kB")
        .parse()?;
    let ratio = told.told("process_resident_memory_bytes")? / (kib * 1024.0);
    ensure!((0.8..1.25).contains(&ratio), "{kib} KiB, told {told:?}");
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64;
    ensure!(
        (told.told("process_open_fds")? - files).abs() <= 4.0,
        "{files} files, told {told:?}"
    );
    ensure!(told.told("process_cpu_seconds_total")? > 0.0, "no time used");
    let version = env.cri()?.version(pb::VersionRequest::default())?.runtime_version;
    equal(
        "build",
        told.told(&format!("podd_build_info{{version=\"{version}\"}}"))?,
        1.0,
    )?;
    // All there can be is bounded: this podd has been asked nearly everything.
    ensure!(told.len() < 2000, "{} series", told.len());
    Ok(())
}

fn both_formats(_: &mut Env<'_>) -> Result<()> {
    let plain = "GET /metrics HTTP/1.1\r\nHost: podd\r\n\r\n";
    let answer = observe::exchange(UnixStream::connect(observe::SOCKET)?, plain)?;
    equal(
        "type",
        answer.content_type.as_str(),
        "text/plain; version=0.0.4; charset=utf-8",
    )?;
    contains(
        "page",
        &answer.body,
        "# TYPE podd_rpc_duration_seconds histogram\n",
    )?;
    ensure!(!answer.body.contains("# EOF"), "that is OpenMetrics");
    Metrics::scrape().map(drop)
}

fn leaks_at_the_start(env: &mut Env<'_>) -> Result<()> {
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    let (blank, torn) = ("1".repeat(64), "2".repeat(64));
    let pods = Path::new(STATE_DIR).join("pods");
    fs::create_dir(pods.join(&blank))?;
    fs::create_dir(pods.join(&torn))?;
    fs::write(pods.join(&torn).join("pod.json"), "{\"version\":")?;
    podd.start_again()?;
    let told = Metrics::scrape()?;
    let leaks = |kind, result| {
        told.told(&format!(
            "podd_start_leaks{{kind=\"{kind}\",result=\"{result}\"}}"
        ))
    };
    equal("records that describe nothing", leaks("record", "swept")?, 1.0)?;
    equal("unreadable records", leaks("unreadable_record", "left")?, 1.0)?;
    equal("links", leaks("link", "swept")?, 0.0)?;
    fs::remove_dir_all(Path::new(STATE_DIR).join("quarantine").join(format!("{torn}.0")))?;
    first_pod(env)
}

fn healthy(_: &mut Env<'_>) -> Result<()> {
    let mode = fs::metadata(observe::SOCKET)?.permissions().mode() & 0o777;
    equal("mode of the socket", format!("{mode:o}"), "600".to_owned())?;
    let health = ask("GET", "/healthz", "")?;
    let lines =
        ["engine", "state", "network-monitor", "streaming", "trash"].map(|name| format!("[+] {name}: ok\n"));
    equal(
        "health",
        (health.status, health.body),
        (200, format!("{}ok\n", lines.concat())),
    )?;
    let ready = ask("GET", "/readyz", "")?;
    let lines = ["runtime", "network", "serving"].map(|name| format!("[+] {name}: ok\n"));
    equal(
        "readiness",
        (ready.status, ready.body),
        (200, format!("{}ok\n", lines.concat())),
    )
}

fn a_failing_check_names_itself(env: &mut Env<'_>) -> Result<()> {
    // podd has files open for writing below, so the file system itself cannot become read-only.
    let done = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "ro", "none", STATE_DIR])
        .status()?;
    ensure!(done.success(), "mount: {done}");
    let health = ask("GET", "/healthz", "");
    let done = Command::new("umount").arg(STATE_DIR).status()?;
    ensure!(done.success(), "umount: {done}");
    let health = health?;
    equal("status", health.status, 503)?;
    contains(
        "check",
        &health.body,
        &format!("[-] state: cannot write in {STATE_DIR}: Read-only file system"),
    )?;
    contains("the others", &health.body, "[+] engine: ok\n")?;
    equal("afterwards", ask("GET", "/healthz", "")?.status, 200)?;
    with_config(env, "[network]\nsubnet_source = \"kubelet\"\n", |_| {
        let ready = ask("GET", "/readyz", "")?;
        equal("status", ready.status, 503)?;
        contains("check", &ready.body, "[-] network: ")?;
        contains("the others", &ready.body, "[+] runtime: ok\n")?;
        equal("health", ask("GET", "/healthz", "")?.status, 200)
    })
}

fn tcp_answers_questions_only(env: &mut Env<'_>) -> Result<()> {
    let address: SocketAddr = TCP.parse()?;
    with_config(env, &format!("[observe]\nlisten = [\"{TCP}\"]\n"), |_| {
        for path in ["/metrics", "/healthz", "/readyz"] {
            equal(path, ask_tcp(address, "GET", path, "")?.status, 200)?;
            equal(path, ask_tcp(address, "POST", path, "x")?.status, 405)?;
        }
        for (method, body) in [("GET", ""), ("PUT", "trace"), ("POST", "trace"), ("DELETE", "")] {
            let answer = ask_tcp(address, method, "/log", body)?;
            equal(method, answer.status, 403)?;
            contains(method, &answer.body, "on the unix socket alone")?;
        }
        contains("level", &ask("GET", "/log", "")?.body, "podd=debug")
    })
}

fn nothing_where_nothing_is_asked(env: &mut Env<'_>) -> Result<()> {
    let taken = std::net::TcpListener::bind(TCP)?;
    with_config(env, "[observe]\nsocket = \"\"\n", |_| {
        ensure!(UnixStream::connect(observe::SOCKET).is_err(), "somebody serves");
        Ok(())
    })?;
    drop(taken);
    ensure!(
        std::net::TcpStream::connect(TCP).is_err(),
        "podd listens on TCP by itself"
    );
    Ok(())
}

fn log_level(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let configured = ask("GET", "/log", "")?.body;
    // What podd logs of a request that gets one line at `info` and more at `debug`.
    let logged = || -> Result<String> {
        let mark = podd::log_mark();
        let missing = cri.pull("gcr.io/k8s-staging-cri-tools/no-such-image:1");
        ensure!(missing.is_err(), "pulled what is not there");
        cri.version(pb::VersionRequest::default())?;
        Ok(podd::log_since(mark))
    };
    equal(
        "quieter",
        ask("PUT", "/log", "error\n")?.body,
        "error\n".to_owned(),
    )?;
    let quiet = logged()?;
    ensure!(!quiet.contains("PullImage"), "{quiet}");
    equal(
        "louder",
        ask("POST", "/log", "warn,podd_server=debug")?.status,
        200,
    )?;
    let loud = logged()?;
    contains("warnings", &loud, "PullImage")?;
    contains("debug lines", &loud, "name=\"Version\"")?;
    for bad in ["inof", "podd=loud", "info,podd_images", " "] {
        let answer = ask("PUT", "/log", bad)?;
        equal(bad, answer.status, 400)?;
        contains(bad, &answer.body, "such as info,podd_images=debug")?;
    }
    equal("no body", ask("PUT", "/log", "")?.status, 400)?;
    equal("too much", ask("PUT", "/log", &"a".repeat(2000))?.status, 400)?;
    equal(
        "unchanged",
        ask("GET", "/log", "")?.body,
        "warn,podd_server=debug\n".to_owned(),
    )?;
    equal("reset", ask("DELETE", "/log", "")?.body, configured.clone())?;
    equal("as configured", ask("GET", "/log", "")?.body, configured)?;
    equal("other methods", ask("PATCH", "/log", "info")?.status, 405)
}

/// Whoever sends too much, nothing or rubbish is sent away, and keeps nobody else waiting for long.
fn hostile_clients(_: &mut Env<'_>) -> Result<()> {
    let connect = || UnixStream::connect(observe::SOCKET);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(15 << 10));
    equal("a long head", observe::exchange(connect()?, &long)?.status, 200)?;
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101));
    equal("many headers", observe::exchange(connect()?, &many)?.status, 400)?;
    equal(
        "rubbish",
        observe::exchange(connect()?, "\u{1}\u{2}\r\n\r\n")?.status,
        400,
    )?;
    equal("unknown path", ask("GET", "/metrics/../log", "")?.status, 404)?;
    let mut endless = connect()?;
    endless.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut sent = 0;
    while endless.write(&[b'a'; 4096]).is_ok_and(|written| written > 0) {
        sent += 4096;
        ensure!(sent < 1 << 20, "podd reads on after {sent} bytes of a head");
    }
    let silent: Vec<_> = (0..16).map(|_| connect()).collect::<Result<_, _>>()?;
    let begun = Instant::now();
    equal("behind the silent", ask("GET", "/healthz", "")?.status, 200)?;
    let waited = begun.elapsed();
    ensure!(
        waited < Duration::from_secs(15),
        "{waited:?} behind clients that say nothing"
    );
    drop(silent);
    Ok(())
}
