//! `make bench`: how long, how many, how much memory. Prints one JSON object.
//!
//! podd first, then containerd with crun and with runc where they are installed: the same work, in the same arena and
//! the same run, so that their ratios mean something. `--socket` measures a runtime that runs already. Keys and units
//! are fixed, so that runs can be compared: milliseconds, seconds, KiB.

mod density;
mod logs;
mod measure;
mod peer;
mod processes;
mod target;
mod update;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use clap::Parser;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use podd_e2e::cri::Cri;
use podd_e2e::fixture::Fixture;
use podd_e2e::{arena, images, podd};
use serde_json::{Map, Value, json};

use peer::Containerd;
use processes::Processes;
use target::Target;

/// Measures CRI runtimes.
#[derive(Debug, Clone, Parser)]
pub struct Options {
    /// Socket of a runtime that runs already, to be measured alone.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Label of the runtime behind `--socket`.
    #[arg(long, default_value = "runtime")]
    name: String,
    /// Its daemon: a word of the command line.
    #[arg(long, default_value = "podd serve")]
    daemon: String,
    /// What it keeps running for pods: words of their command lines, separated by `|`.
    #[arg(long, default_value = "podinit|podd-pod")]
    procs: String,
    /// Leave containerd out, although it is installed.
    #[arg(long)]
    no_peer: bool,
    /// Image of the pods.
    #[arg(long, default_value = podd::IMAGE)]
    image: String,
    /// Size in MiB of the image of the pull benchmark; 0 leaves it out.
    #[arg(long, default_value_t = 256)]
    big: usize,
    /// Pods up and down one after another.
    #[arg(long, default_value_t = 30)]
    serial: usize,
    /// Pods up and down from many clients.
    #[arg(long, default_value_t = 60)]
    storm: usize,
    /// Clients of the storm.
    #[arg(long, default_value_t = 10)]
    workers: usize,
    /// Pods alive at once for the memory figures.
    #[arg(long, default_value_t = 50)]
    density: usize,
    /// Pods alive at once for the lists alone, in place of those of `--density`; 0 leaves it out.
    #[arg(long, default_value_t = 0)]
    list: usize,
    /// Pods alive at once for lists and restarts, of podd alone; fewer than `--density` leaves it out.
    #[arg(long, default_value_t = 0)]
    alive: usize,
    /// Seconds of pods up and down without a pause, of podd alone.
    #[arg(long, default_value_t = 0)]
    sustained: u64,
    /// Mounts of the host that have nothing to do with pods.
    #[arg(long, default_value_t = 0)]
    mounts: usize,
    /// MiB of output whose way into the log is measured, for each length of a line; 0 leaves it out.
    #[arg(long, default_value_t = 64)]
    logs: usize,
    /// Execs in one container.
    #[arg(long, default_value_t = 50)]
    execs: usize,
    /// Updates of the resources of one container; 0 leaves them out.
    #[arg(long, default_value_t = 1000)]
    updates: u32,
}

const BIG: &str = "docker.io/bench/big:8x";

fn main() -> ExitCode {
    arena::stage_hook();
    match run() {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<i32> {
    let options = Options::parse();
    if let Some(socket) = &options.socket {
        let target = Target {
            name: options.name.clone(),
            cri: Cri::new(socket)?,
            processes: Processes {
                daemon: options.daemon.clone(),
                procs: options.procs.clone(),
            },
            handler: String::new(),
            cgroup_parent: String::new(),
            restart: None,
        };
        println!("{:#}", measure::all(&target, &options, None)?);
        return Ok(0);
    }
    if !arena::inside() {
        return arena::enter(&std::env::args_os().skip(1).collect::<Vec<OsString>>(), true);
    }
    println!("{:#}", side_by_side(&options)?);
    Ok(0)
}

/// podd and its peers, one after the other in this arena, and the peers' figures as multiples of podd's.
fn side_by_side(options: &Options) -> Result<Value> {
    other_mounts(options.mounts)?;
    let fixture = Arc::new(Mutex::new(Fixture::start(true)?));
    let big = (options.big > 0).then_some(BIG);
    if big.is_some() {
        let image = images::big(options.big)?;
        lock(&fixture).registry.push("bench/big", &["8x"], &image)?;
    }
    let podd = measure::all(&podd_target(&fixture)?, options, big).context("measure podd")?;
    let mut report = Map::new();
    report.insert("machine".to_owned(), machine(options));
    report.insert("podd".to_owned(), podd.clone());
    let peer = if options.no_peer {
        Err("--no-peer".to_owned())
    } else {
        lock(&fixture).discard();
        Containerd::start(&mut lock(&fixture).registry)?
    };
    let alone = Options {
        alive: 0,
        sustained: 0,
        ..options.clone()
    };
    match peer {
        Err(missing) => _ = report.insert("peer".to_owned(), json!(missing)),
        Ok(containerd) => {
            for target in containerd.targets()? {
                // A machine may not let a peer do what it needs, for want of a right or a controller.
                let said = match measure::all(&target, &alone, big) {
                    Ok(found) => json!({"figures": found, "podd_is_better_by": ratios(&podd, &found)}),
                    Err(error) => json!(format!("cannot be measured here: {error:#}")),
                };
                report.insert(target.name, said);
            }
        }
    }
    Ok(Value::Object(report))
}

fn podd_target(fixture: &Arc<Mutex<Fixture>>) -> Result<Target> {
    let again = Arc::clone(fixture);
    let restart = move || {
        let mut fixture = lock(&again);
        let podd = fixture.podd()?;
        podd.end(Signal::SIGKILL)?;
        podd.start_again()
    };
    Ok(Target {
        name: "podd".to_owned(),
        cri: lock(fixture).podd()?.cri().clone(),
        processes: Processes {
            daemon: "podd serve".to_owned(),
            procs: "podinit|podd-pod".to_owned(),
        },
        handler: String::new(),
        cgroup_parent: String::new(),
        restart: Some(Box::new(restart)),
    })
}

fn lock(fixture: &Mutex<Fixture>) -> MutexGuard<'_, Fixture> {
    fixture.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the figures come from.
fn machine(options: &Options) -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    json!({"kernel": read("/proc/sys/kernel/osrelease"), "load": read("/proc/loadavg"),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "controllers": read("/sys/fs/cgroup/cgroup.controllers"), "other_mounts": options.mounts})
}

/// Mounts as a host with many volumes has them.
fn other_mounts(count: usize) -> Result<()> {
    let root = Path::new(arena::WORK_DIR).join("mounts");
    for i in 0..count {
        let dir = root.join(i.to_string());
        fs::create_dir_all(&dir)?;
        mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("mount {} on itself", dir.display()))?;
    }
    Ok(())
}

/// How many times better podd is in each figure of the targets: less time, less memory, more pods.
fn ratios(podd: &Value, peer: &Value) -> Value {
    let better = |path: &str, more: bool| {
        let (own, other) = (podd.pointer(path)?.as_f64()?, peer.pointer(path)?.as_f64()?);
        let ratio = if more { own / other } else { other / own };
        ratio.is_finite().then(|| measure::rounded(ratio))
    };
    json!({
        "pod_ready": better("/serial/pod_ready/median", false),
        "teardown": better("/serial/teardown/median", false),
        "teardown_to_zero": better("/serial/teardown_to_zero/median", false),
        "pods_up_per_s": better("/storm/up_per_s", true),
        "pods_down_per_s": better("/storm/down_per_s", true),
        "exec_sync": better("/exec_sync/median", false),
        "per_pod_pss": better("/density/per_pod_pss_kib", false),
        "daemon_rss": better("/density/memory/daemon_rss", false),
        "update": better("/update/ms/median", false),
        "list_container_stats": better("/list/stats_ms/median", false),
        "list_containers": better("/list/containers_ms/median", false),
        "pull_big": better("/pull_big_ms/median", false),
    })
}
