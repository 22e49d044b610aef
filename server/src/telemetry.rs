//! The daemon's own log: structured events to the journal or to standard error.
//!
//! Owns the choice of output, the level, and the hook that logs panics. Set up once, by `podd serve`; the level may
//! change while podd runs.

use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::sync::{Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use crate::config::{Log, LogFormat};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` cannot be read.
    #[error("log.level")]
    Level(#[from] LevelError),
    /// The journal was asked for and does not answer.
    #[error("cannot connect to the journal")]
    Journal(#[source] io::Error),
    /// A log was set up before.
    #[error("the log is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Why a text is no log level.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// One word that would be taken for the name of a module, everything of which is to be logged and nothing else.
    #[error(
        "{0:?} is no level: use error, warn, info, debug, trace or off, or directives such as info,podd_images=debug"
    )]
    Word(String),
    /// Something in brackets, as other programs have it.
    #[error("spans and fields cannot be chosen: use directives such as info,podd_images=debug")]
    Span,
    /// No list of directives.
    #[error("cannot be read as a level or as directives such as info,podd_images=debug")]
    Directives(#[from] ParseError),
}

/// The filter that `log.level` describes.
///
/// # Errors
/// It is no level and no list of directives.
pub fn filter(level: &str) -> Result<Targets, LevelError> {
    if level.contains('[') {
        return Err(LevelError::Span);
    }
    let parts: Vec<&str> = level.split(',').map(str::trim).collect();
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_word = |part: &&&str| !part.contains('=') && !is_level(part);
    match parts.iter().find(is_word) {
        Some(word) => Err(LevelError::Word((*word).to_owned())),
        None => Ok(parts.join(",").parse()?),
    }
}

/// The level of the log while podd runs.
#[derive(Debug)]
pub struct LogLevel {
    filter: reload::Handle<Targets, Registry>,
    configured: String,
    current: Mutex<String>,
}

impl LogLevel {
    /// What is logged now, in the words in which it was asked for.
    #[must_use]
    pub fn current(&self) -> String {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Logs what `level` describes from now on, until podd is started anew.
    ///
    /// # Errors
    /// It is no level and no list of directives; then nothing has changed.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        let filter = filter(level)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // The only error is that the subscriber is gone, and the process with it.
        let _ = self.filter.reload(filter);
        level.clone_into(&mut current);
        drop(current);
        tracing::info!(level, "the log level was changed");
        Ok(())
    }

    /// Goes back to what the configuration says.
    pub fn reset(&self) {
        // It was read when podd started.
        let _ = self.set(&self.configured);
    }
}

/// Sets up the log of this process, panics included.
///
/// # Errors
/// The output cannot be opened, or there is a log already.
pub fn init(log: &Log) -> Result<LogLevel, TelemetryError> {
    let (changeable, handle) = reload::Layer::new(filter(&log.level)?);
    let registry = tracing_subscriber::registry().with(changeable);
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
    Ok(LogLevel {
        filter: handle,
        configured: log.level.clone(),
        current: Mutex::new(log.level.clone()),
    })
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
        for level in ["info", "OFF", "info, podd_images=debug,h2=warn"] {
            filter(level).unwrap();
        }
        for level in [
            "podd=loud",
            "",
            "inof",
            "info,podd_images",
            "info,,debug",
            "podd[rpc]=trace",
        ] {
            assert!(filter(level).is_err(), "{level:?}");
        }
    }
}
