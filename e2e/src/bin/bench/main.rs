//! `make bench`: how long, how many, how much memory. Prints one JSON object.
//!
//! The same work for any runtime that speaks CRI: `--socket` measures another one beside podd, in the arena or on a
//! host. Keys and units are fixed, so that runs can be compared: milliseconds, seconds, KiB.

mod measure;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use podd_e2e::cri::Cri;
use podd_e2e::{arena, fixture, images, podd};

/// Measures a CRI runtime.
#[derive(Debug, Clone, Parser)]
pub struct Options {
    /// Label of the run.
    #[arg(long, default_value = "podd")]
    name: String,
    /// Socket of a runtime that runs already; without it podd is started in an arena.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The daemon: a word of its command line.
    #[arg(long, default_value = "podd serve")]
    daemon: String,
    /// What the daemon keeps running for pods: a word of their command lines.
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
    /// Execs in one container.
    #[arg(long, default_value_t = 50)]
    execs: usize,
}

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
        println!("{:#}", measure::all(&Cri::new(socket)?, &options, None)?);
        return Ok(0);
    }
    if !arena::inside() {
        return arena::enter(&std::env::args_os().skip(1).collect::<Vec<OsString>>(), true);
    }
    let mut fixture = fixture::Fixture::start(true)?;
    let big = (options.big > 0).then_some("docker.io/bench/big:8x");
    if big.is_some() {
        fixture
            .registry
            .push("bench/big", &["8x"], &images::big(options.big)?)?;
    }
    let cri = fixture.podd()?.cri().clone();
    println!("{:#}", measure::all(&cri, &options, big)?);
    Ok(0)
}
