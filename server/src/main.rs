//! The binary `podd`: see `podd_server::cli` for the commands and `podd_server::serve` for the daemon's life.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use podd_server::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(done) => match std::io::stdout().write_all(done.text.as_bytes()) {
            Ok(()) => ExitCode::from(done.code),
            Err(_) => ExitCode::FAILURE,
        },
        Err(e) => {
            let code = e.code();
            let mut text = format!("podd: {e}");
            let mut cause = e.source();
            while let Some(e) = cause {
                text.push_str(&format!(": {e}"));
                cause = e.source();
            }
            eprintln!("{text}");
            ExitCode::from(code)
        }
    }
}
