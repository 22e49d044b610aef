//! The command line: what serves and what configures, a few lines each over the library, and the commands of the tool.
//!
//! Owns arguments and what is printed for people. Changes nothing on the host itself.

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::{Config, ConfigError};
use crate::serve::ServeError;
use crate::tool::manual::{self, ManualError, Shell};
use crate::tool::{self, Failed};

/// podd runs the pods of a Kubernetes node, and shows what they do.
#[derive(Debug, Parser)]
#[command(name = "podd", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do. Deferred: a daemon does not keep the memory that the arguments of the tool would have taken.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
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
    /// Print a script that makes a shell complete the commands of podd.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages to a directory.
    Man {
        /// The directory, which has to exist.
        directory: PathBuf,
    },
    /// What is asked of a running podd.
    #[command(flatten)]
    Tool(tool::Command),
}

/// What a command leaves for the process to do.
#[derive(Debug, Default)]
pub struct Done {
    /// To be printed.
    pub text: String,
    /// The exit code.
    pub code: u8,
}

impl From<String> for Done {
    fn from(text: String) -> Self {
        Self { text, code: 0 }
    }
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
    /// The manual pages.
    #[error(transparent)]
    Manual(#[from] ManualError),
    /// The tool.
    #[error(transparent)]
    Tool(#[from] Failed),
}

impl CliError {
    /// The exit code that tells of it.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Serve(_) | Self::Manual(_) => 1,
            Self::Tool(failed) => failed.code,
        }
    }
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// The configuration is wrong, the daemon could not start or had to stop, or what was asked of it failed.
    pub fn run(self) -> Result<Done, CliError> {
        match self.command {
            Command::Serve { config, socket } => {
                let mut config = Config::load(config.as_deref())?;
                if let Some(socket) = socket {
                    config.socket = socket;
                }
                crate::serve::run(config)?;
                Ok(Done::default())
            }
            Command::CheckConfig { config } => {
                Config::load(config.as_deref())?;
                Ok("the configuration is good\n".to_owned().into())
            }
            Command::Config { default: true, .. } => Ok(Config::default().to_toml().into()),
            Command::Config {
                config,
                default: false,
            } => Ok(Config::load(config.as_deref())?.to_toml().into()),
            Command::Version => Ok(format!("podd {}\n", env!("CARGO_PKG_VERSION")).into()),
            Command::Completions { shell } => Ok(manual::completions(shell, Self::command()).into()),
            Command::Man { directory } => {
                manual::pages(&directory, Self::command())?;
                Ok(Done::default())
            }
            Command::Tool(command) => Ok(Done {
                code: command.run()?,
                ..Done::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let mut command = Cli::command();
        command.build();
        let about = |name: &str| {
            command
                .find_subcommand(name)
                .and_then(|c| c.get_about())
                .map(ToString::to_string)
        };
        assert!(
            command
                .get_about()
                .is_some_and(|a| a.to_string().starts_with("podd runs the pods"))
        );
        assert!(
            about("serve").is_some_and(|a| a.starts_with("Serve the CRI")),
            "{:?}",
            about("serve")
        );
        assert!(
            about("ps").is_some_and(|a| a.starts_with("List containers")),
            "{:?}",
            about("ps")
        );
    }

    #[test]
    fn commands_print_what_people_expect() {
        let run = |args: &[&str]| Cli::try_parse_from(args).unwrap().run().map(|done| done.text);
        assert!(run(&["podd", "version"]).unwrap().starts_with("podd "));
        assert_eq!(
            run(&["podd", "config", "--default"]).unwrap(),
            Config::default().to_toml()
        );
        let e = run(&["podd", "check-config", "--config", "/nonexistent"]).unwrap_err();
        assert!(e.to_string().starts_with("cannot read /nonexistent"), "{e}");
    }
}
