//! The same thing over and over in one pod leaves nothing: no open file, no task, no process, no cgroup, no byte.
//!
//! The whole is 10 000 execs, 10 000 forwarded connections and 100 times ten megabytes. `PODD_CHURN` says how much of it
//! is done, in percent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podd_e2e::PATIENCE;
use podd_e2e::census::Census;
use podd_e2e::cri::{self, Cri};
use podd_e2e::observe::Metrics;
use podd_e2e::session::{DIALECTS, Dialect, Forward};

use crate::case::{Env, Pod, asked, cases, equal, eventually};
use crate::lifecycle::sleeper;
use crate::streaming::{INPUT, exec, page, serving};

cases!("churn": execs, forwarded_connections, megabytes, megabytes_under_load);

/// Percent of the whole where nobody says.
const SHARE: u64 = 10;

/// How often, of so many times in the whole.
fn times(whole: u64) -> Result<u64> {
    Ok(whole * asked("PODD_CHURN")?.unwrap_or(SHARE) / 100)
}

/// What podd and podinit hold while a pod lives, beside the census.
fn tasks() -> Result<f64> {
    Metrics::scrape()?.told("podd_tasks")
}

/// Does `work` after `first`, and finds what the former left; `first` brings what is made once.
fn leaves_nothing(
    env: &mut Env<'_>,
    first: impl Fn() -> Result<()>,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    first()?;
    // What `first` had is gone in its own time.
    let podd = Some(env.podd()?.pid());
    let mut before = Census::settled(podd, PATIENCE);
    eventually("the first is gone", || {
        std::thread::sleep(Duration::from_millis(200));
        let last = std::mem::replace(&mut before, Census::take(podd));
        Ok(last == before)
    })?;
    let running = tasks()?;
    work()?;
    let left = before.difference(podd, PATIENCE);
    ensure!(left.is_empty(), "the census differs:\n  {}", left.join("\n  "));
    // A scrape is a task itself, and connections to clients come and go: what leaks is as many as there were turns.
    let mut now = running;
    let ended = eventually("tasks have ended", || {
        now = tasks()?;
        Ok(now <= running + 4.0)
    });
    ended.with_context(|| format!("{running} tasks before, {now} after"))
}

fn execs(env: &mut Env<'_>) -> Result<()> {
    let (cri, count) = (env.cri()?, times(10_000)?);
    let (pod, id) = sleeper(env, "execs")?;
    let cgroup = crate::stats::cgroup(&cri, &id)?;
    let one = |n: u64| -> Result<()> {
        let done = cri.exec(&id, &["sh", "-c", &format!("echo {n}; exit {}", n % 3)], 30)?;
        equal("code", u64::try_from(done.exit_code)?, n % 3)?;
        equal("output", done.stdout, format!("{n}\n").into_bytes())
    };
    let (next, begun) = (AtomicU64::new(0), Instant::now());
    let work = || {
        std::thread::scope(|scope| {
            let client = || -> Result<()> {
                loop {
                    match next.fetch_add(1, Ordering::Relaxed) {
                        n if n < count => one(n).with_context(|| format!("exec {n}"))?,
                        _ => return Ok(()),
                    }
                }
            };
            let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
            clients
                .into_iter()
                .try_for_each(|c| c.join().expect("a client does not panic"))
        })
    };
    leaves_nothing(env, || (0..8).try_for_each(one), work)?;
    println!("churn: {count} execs in {:?}", begun.elapsed());
    let below = std::fs::read_dir(&cgroup)?.flatten();
    equal(
        "cgroups below the container's",
        below.filter(|e| e.path().is_dir()).count(),
        0,
    )?;
    pod.remove()
}

/// One after another: each second time in a session of its own, and each tenth to a port that refuses.
fn forwarded_connections(env: &mut Env<'_>) -> Result<()> {
    let (cri, count) = (env.cri()?, times(10_000)?);
    let pod = env.pod("forwards")?;
    serving(&cri, &pod)?;
    let ask = |forward: &mut Forward, n: u64| -> Result<()> {
        let port = if n % 10 == 9 { 9 } else { 8080 };
        let (text, error) = page(forward, port)?;
        ensure!(
            text.contains("hello") != error.contains("refused"),
            "connection {n}: {text:?}, {error:?}"
        );
        Ok(())
    };
    let alone = |n: u64| ask(&mut Forward::open(&cri.forward_url(&pod.id)?)?, n);
    let begun = Instant::now();
    let work = || {
        let mut long = Forward::open(&cri.forward_url(&pod.id)?)?;
        (0..count).try_for_each(|n| match n % 2 {
            0 => ask(&mut long, n),
            _ => alone(n),
        })
    };
    leaves_nothing(env, || (0..10).try_for_each(alone), work)?;
    println!("churn: {count} forwarded connections in {:?}", begun.elapsed());
    pod.remove()
}

fn megabytes(env: &mut Env<'_>) -> Result<()> {
    let (cri, count) = (env.cri()?, times(100)?);
    let (pod, id) = sleeper(env, "megabytes")?;
    let bytes = ten_megabytes();
    let begun = Instant::now();
    let work = || (0..count).try_for_each(|n| echoed(&cri, dialect(n), &id, &bytes));
    leaves_nothing(env, || echoed(&cri, Dialect::Spdy, &id, &bytes), work)?;
    println!("churn: {count} times ten megabytes in {:?}", begun.elapsed());
    pod.remove()
}

/// Two sessions at a time, while others run pods and commands and two processes use all the time there is.
fn megabytes_under_load(env: &mut Env<'_>) -> Result<()> {
    let (cri, count) = (env.cri()?, times(100)?);
    let (pod, id) = sleeper(env, "load")?;
    for name in ["busy", "busier"] {
        pod.started(&cri::shell(name, "while :; do :; done"))?;
    }
    let (bytes, over) = (ten_megabytes(), AtomicBool::new(false));
    let begun = Instant::now();
    let work = || -> Result<()> {
        std::thread::scope(|scope| {
            let noise = scope.spawn(|| disturb(&cri, &id, &over));
            let half = |first: u64| {
                let (cri, id, bytes) = (&cri, &id, &bytes);
                scope.spawn(move || {
                    (first..count)
                        .step_by(2)
                        .try_for_each(|n| echoed(cri, dialect(n / 2), id, bytes))
                })
            };
            let halves = [half(0), half(1)].map(|h| h.join().expect("a client does not panic"));
            over.store(true, Ordering::Relaxed);
            noise.join().expect("the others do not panic")?;
            halves.into_iter().collect()
        })
    };
    leaves_nothing(env, || echoed(&cri, Dialect::WebSocket, &id, &bytes), work)?;
    println!(
        "churn: {count} times ten megabytes under load in {:?}",
        begun.elapsed()
    );
    pod.remove()
}

/// Pods and execs, until it is over.
fn disturb(cri: &Cri, id: &str, over: &AtomicBool) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        let pod = Pod::run(cri, cri::pod_config("noise"))?;
        equal("exec", cri.sh(id, "echo in")?.as_str(), "in\n")?;
        pod.remove()?;
    }
    Ok(())
}

fn dialect(n: u64) -> Dialect {
    DIALECTS[usize::from(n % 2 == 1)]
}

/// Bytes without a pattern that a lost or doubled block would fit into.
fn ten_megabytes() -> Vec<u8> {
    (0..10_000_000u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect()
}

/// Sends bytes to a command that sends them back.
fn echoed(cri: &Cri, dialect: Dialect, id: &str, bytes: &[u8]) -> Result<()> {
    let mut echo = exec(cri, dialect, id, "cat", INPUT)?;
    let writing = echo.write_aside(bytes.to_vec());
    equal("code", podd_e2e::session::exit_code(&echo.status()?)?, 0)?;
    writing.join().expect("the writer does not panic")?;
    ensure!(
        echo.stdout == bytes,
        "{} bytes came back changed",
        echo.stdout.len()
    );
    Ok(())
}
