//! The daemon's own log: structured events to the journal or to standard error.
//!
//! Owns the choice of output and the hook that logs panics. Set up once, by `podd serve`.

use std::io;
use std::os::linux::fs::MetadataExt as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` cannot be read.
    #[error("log.level")]
    Level(#[from] ParseError),
    /// The journal was asked for and does not answer.
    #[error("cannot connect to the journal")]
    Journal(#[source] io::Error),
    /// A log was set up before.
    #[error("the log is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The filter that `log.level` describes.
///
/// # Errors
/// It is no level and no list of directives.
pub fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(level)
}

/// Sets up the log of this process, panics included.
///
/// # Errors
/// The output cannot be opened, or there is a log already.
pub fn init(log: &Log) -> Result<(), TelemetryError> {
    let registry = tracing_subscriber::registry().with(filter(&log.level)?);
    match log.format {
        LogFormat::Journald => journal(registry)?,
        LogFormat::Auto if stderr_is_the_journal() => journal(registry)?,
        LogFormat::Auto | LogFormat::Stderr => {
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(false);
            registry.with(lines).try_init()?;
        }
        LogFormat::Json => {
            let lines = tracing_subscriber::fmt::layer().json().with_writer(io::stderr);
            registry.with(lines).try_init()?;
        }
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(backtrace = %std::backtrace::Backtrace::capture(), "{panic}");
    }));
    Ok(())
}

fn journal<S>(registry: S) -> Result<(), TelemetryError>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a> + Send + Sync,
{
    let layer = tracing_journald::layer().map_err(TelemetryError::Journal)?;
    Ok(registry
        .with(layer.with_syslog_identifier("podd".to_owned()))
        .try_init()?)
}

/// systemd names device and inode of the stream it connected standard error to (systemd.exec(5), JOURNAL_STREAM).
fn stderr_is_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    named == format!("{}:{}", stderr.st_dev(), stderr.st_ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_understood() {
        for level in ["info", "debug", "info,podd_images=debug,h2=warn"] {
            filter(level).unwrap();
        }
        assert!(filter("podd=loud").is_err());
    }
}
