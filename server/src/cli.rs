//! The command line: four commands, each a few lines over the library.
//!
//! Owns arguments and what is printed for people. Changes nothing on the host itself.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError};
use crate::serve::ServeError;

/// podd runs the pods of a Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "podd", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the CRI until told to stop; pods keep running after that.
    Serve {
        /// Configuration file [default: /etc/podd/config.toml where it exists].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Unix socket to serve on, instead of the configured one.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Check a configuration file and say what is wrong with it, without starting anything.
    CheckConfig {
        /// Configuration file [default: /etc/podd/config.toml where it exists].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the configuration as TOML, every key present.
    Config {
        /// Configuration file [default: /etc/podd/config.toml where it exists].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the defaults instead.
        #[arg(long, conflicts_with = "config")]
        default: bool,
    },
    /// Print the version.
    Version,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Serving.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl Cli {
    /// Does what the command line says, and returns what is to be printed.
    ///
    /// # Errors
    /// The configuration is wrong, or the daemon could not start or had to stop.
    pub fn run(self) -> Result<String, CliError> {
        match self.command {
            Command::Serve { config, socket } => {
                let mut config = Config::load(config.as_deref())?;
                if let Some(socket) = socket {
                    config.socket = socket;
                }
                crate::serve::run(config)?;
                Ok(String::new())
            }
            Command::CheckConfig { config } => {
                Config::load(config.as_deref())?;
                Ok("the configuration is good\n".to_owned())
            }
            Command::Config { default: true, .. } => Ok(Config::default().to_toml()),
            Command::Config {
                config,
                default: false,
            } => Ok(Config::load(config.as_deref())?.to_toml()),
            Command::Version => Ok(format!("podd {}\n", env!("CARGO_PKG_VERSION"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_print_what_people_expect() {
        let run = |args: &[&str]| Cli::try_parse_from(args).unwrap().run();
        assert!(run(&["podd", "version"]).unwrap().starts_with("podd "));
        assert_eq!(
            run(&["podd", "config", "--default"]).unwrap(),
            Config::default().to_toml()
        );
        let e = run(&["podd", "check-config", "--config", "/nonexistent"]).unwrap_err();
        assert!(e.to_string().starts_with("cannot read /nonexistent"), "{e}");
    }
}
