//! Runs a command in an arena: `arena [--registry] [--podd] [--] COMMAND [ARG…]`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use podd_e2e::{arena, fixture};

/// Runs a command in private namespaces and cleans up after it.
#[derive(Debug, Parser)]
struct Options {
    /// Start a registry with the test images on 127.0.0.1:5000 first.
    #[arg(long)]
    registry: bool,
    /// Start podd with the test configuration first; implies --registry.
    #[arg(long)]
    podd: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    arena::stage_hook();
    match run() {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("arena: {e:#}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<i32> {
    let options = Options::parse();
    if !arena::inside() {
        let again: Vec<OsString> = std::env::args_os().skip(1).collect();
        return arena::enter(&again, true);
    }
    let _fixture = (options.registry || options.podd)
        .then(|| fixture::Fixture::start(options.podd))
        .transpose()?;
    let (program, args) = options.command.split_first().context("no command given")?;
    let status = std::process::Command::new(program).args(args).status();
    let status = status.with_context(|| format!("start {}", program.display()))?;
    Ok(status.code().unwrap_or(1))
}
