//! The binary `podd`: see `podd_server::cli` for the commands and `podd_server::serve` for the daemon's life.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use podd_server::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(e) => {
            let mut text = format!("podd: {e}");
            let mut cause = e.source();
            while let Some(e) = cause {
                text.push_str(&format!(": {e}"));
                cause = e.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}
