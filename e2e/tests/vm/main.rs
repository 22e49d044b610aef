//! The tests of the arena, and those that need another kernel, in virtual machines.
//!
//! `cargo test -p podd-e2e --test vm -- [--kernel 6.1] [FILTER]`. Boots what [`plan`] lists, one after the other, runs
//! this executable again in each, and ends with one line `N passed, N failed, N skipped`.

// The same cases, compiled in: what runs in the guest is never older than what is tested here.
#[path = "../arena/main.rs"]
mod arena;
mod guest;
mod plan;
mod reboot;
mod scopes;
mod systemd;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use podd_e2e::vm::{self, Kernel, Machine, Order};

// They name each other as modules of their crate.
use arena::*;
use plan::{Boot, PLAN};

/// Boots virtual machines and runs tests in them.
#[derive(Debug, Parser)]
struct Options {
    /// Only this kernel.
    #[arg(long)]
    kernel: Option<Kernel>,
    /// Only tests whose name contains this; also those that the plan leaves out.
    filter: Option<String>,
}

fn main() -> ExitCode {
    if let (true, Ok(asked)) = (vm::inside(), std::env::var(guest::CASES)) {
        return guest::run(&asked);
    }
    if vm::inside() {
        return arena::main();
    }
    let options = Options::parse();
    let disks = match vm::WorkDir::new() {
        Ok(dir) => dir,
        Err(e) => {
            eprintln!("vm: {e:#}");
            println!("0 passed, 1 failed, 0 skipped");
            return ExitCode::FAILURE;
        }
    };
    let mut total = Tally::default();
    for boot in PLAN {
        if options.kernel.is_none_or(|k| k == boot.kernel) {
            total.add(&perform(boot, options.filter.as_deref(), disks.path()));
        }
    }
    println!("{total}");
    if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one boot, tells what came of it, and never fails as a whole.
fn perform(boot: &Boot, filter: Option<&str>, disks: &Path) -> Tally {
    let name = format!("vm {} {}", boot.kernel, boot.init);
    let cases = boot.cases(filter);
    if cases.is_empty() {
        return Tally::default();
    }
    let prepared = match vm::unable() {
        Some(reason) => Err(anyhow::anyhow!(reason)),
        None => Machine::prepare(boot.kernel, boot.init),
    };
    let machine = match prepared {
        Ok(machine) => machine,
        Err(e) => {
            let tally = Tally {
                skipped: cases.len(),
                ..Tally::default()
            };
            println!("{name}: cannot run here: {e:#}");
            println!("{name}: {tally}");
            return tally;
        }
    };
    let mut tally = Tally::default();
    let mut told = false;
    let ran = order(boot, &cases, disks).and_then(|order| {
        machine.run(&order, &mut |line| {
            println!("{name} | {line}");
            if let Some(counted) = Tally::parse(line) {
                told = true;
                tally.add(&counted);
            }
        })
    });
    let (release, time) = (
        machine.name(),
        ran.as_ref().map_or(0, |ended| ended.took.as_secs()),
    );
    let failure = match ran {
        Err(e) => Some(format!("{e:#}")),
        Ok(_) if !told => Some("the tests told no result".to_owned()),
        Ok(ended) if ended.code != 0 && tally.failed == 0 => {
            Some(format!("the tests ended with code {}", ended.code))
        }
        Ok(_) => None,
    };
    if let Some(failure) = failure {
        println!("{name}: FAILED: {failure}");
        tally.failed += 1;
    }
    println!("vm {release} ({time} s): {tally}");
    tally
}

/// This executable, for the cases of a boot.
fn order(boot: &Boot, cases: &[&str], disks: &Path) -> Result<Order> {
    let exe = std::env::current_exe().context("own executable")?;
    let mut order = Order::new(&[&exe.to_string_lossy()], boot.limit());
    order.disk = boot.disk.map(|name| disks.join(name));
    order.env = vec![boot.asked(cases)];
    // Emulated kills take long; who wants more says so.
    order.env.push(("PODD_CRASH_KILLS".to_owned(), "3".to_owned()));
    for name in [
        "PODD_BIN",
        "PODD_CRASH_KILLS",
        "PODD_CRASH_SEED",
        "RUST_BACKTRACE",
    ] {
        order
            .env
            .extend(std::env::var(name).map(|value| (name.to_owned(), value)));
    }
    Ok(order)
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// The reverse of `to_string`.
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = ["passed", "failed", "skipped"].into_iter().zip(line.split(", "));
        let mut next = || {
            let (word, part) = numbers.next()?;
            part.strip_suffix(word)?.trim_end().parse().ok()
        };
        let tally = Self {
            passed: next()?,
            failed: next()?,
            skipped: next()?,
        };
        (tally.to_string() == line).then_some(tally)
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}
