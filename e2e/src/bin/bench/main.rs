//! `make bench`: how long, how many, how much memory. Prints one JSON object.
//!
//! The same work for any runtime that speaks CRI: `--socket` measures another one beside podd, in the arena or on a
//! host. Keys and units are fixed, so that runs can be compared: milliseconds, seconds, KiB.

mod density;
mod logs;
mod measure;
mod processes;
mod target;

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
use serde_json::{Value, json};

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
    #[arg(long, default_value = "podinit")]
    procs: String,
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
    /// Pods alive at once for lists and restarts; fewer than `--density` leaves it out.
    #[arg(long, default_value_t = 0)]
    alive: usize,
    /// Seconds of pods up and down without a pause.
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
    println!("{:#}", podd_in_arena(&options)?);
    Ok(0)
}

/// podd in this arena, and where its figures come from.
fn podd_in_arena(options: &Options) -> Result<Value> {
    other_mounts(options.mounts)?;
    let fixture = Arc::new(Mutex::new(Fixture::start(true)?));
    let big = (options.big > 0).then_some(BIG);
    if big.is_some() {
        let image = images::big(options.big)?;
        lock(&fixture).registry.push("bench/big", &["8x"], &image)?;
    }
    let mut report = measure::all(&podd_target(&fixture)?, options, big)?;
    report["machine"] = machine(options);
    Ok(report)
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
