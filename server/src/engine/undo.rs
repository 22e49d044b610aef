//! What an operation has done so far, so that a failure can take it back.
//!
//! Owns a stack of named steps. Running it runs every step, last first, whatever the others say, and collects the
//! failures; it never decides whether to run and never logs a failure it can return.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

type Failure = Box<dyn Error + Send + Sync>;
type StepFuture = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// A step that could not be taken back.
#[derive(Debug, thiserror::Error)]
#[error("cannot {name}")]
pub struct UndoFailure {
    /// What the step was to do, in the imperative: `remove the pod's cgroup`.
    pub name: &'static str,
    /// Why it could not.
    #[source]
    pub source: Failure,
}

/// The steps that take back what was done, in the order it was done.
///
/// A stack that is dropped with steps on it has lost its operation, which is a defect: that is logged.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(&'static str, StepFuture)>,
}

impl fmt::Debug for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.steps.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Undo {
    /// An empty stack.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Pushes a step; the future does nothing until the stack is run.
    ///
    /// `name` says what the step does, in the imperative. What is gone already counts as taken back: the step
    /// answers `Ok` to ENOENT.
    pub fn push<E: Into<Failure>>(
        &mut self,
        name: &'static str,
        step: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.steps
            .push((name, Box::pin(async move { step.await.map_err(Into::into) })));
    }

    /// Pushes a step that blocks; it runs on a blocking thread.
    pub fn push_blocking<E: Into<Failure> + Send + 'static>(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) {
        self.push(name, async move {
            match tokio::task::spawn_blocking(step).await {
                Ok(result) => result.map_err(Into::into),
                Err(panicked) => Err(Failure::from(panicked)),
            }
        });
    }

    /// Forgets every step: the operation succeeded.
    pub fn disarm(mut self) {
        self.steps.clear();
    }

    /// Runs every step, last first, and returns the failures in the order they happened.
    pub async fn unwind(mut self) -> Vec<UndoFailure> {
        let mut failures = Vec::new();
        while let Some((name, step)) = self.steps.pop() {
            if let Err(source) = step.await {
                failures.push(UndoFailure { name, source });
            }
        }
        failures
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.steps.is_empty() {
            tracing::error!(steps = ?self, "an operation was lost before it could take back what it did");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn every_step_runs_last_first_and_failures_are_collected() {
        let ran = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::new();
        for (name, fails) in [("one", true), ("two", false), ("three", true)] {
            let ran = Arc::clone(&ran);
            undo.push_blocking(name, move || {
                ran.lock().unwrap().push(name);
                if fails {
                    Err(io::Error::other(name))
                } else {
                    Ok(())
                }
            });
        }
        let failures = undo.unwind().await;
        assert_eq!(*ran.lock().unwrap(), ["three", "two", "one"]);
        let said: Vec<_> = failures.iter().map(|f| format!("{f}: {}", f.source)).collect();
        assert_eq!(said, ["cannot three: three", "cannot one: one"]);
    }

    #[tokio::test]
    async fn a_panicking_step_is_a_failure_and_stops_nothing() {
        let ran = Arc::new(Mutex::new(false));
        let mut undo = Undo::new();
        let seen = Arc::clone(&ran);
        undo.push("first", async move {
            *seen.lock().unwrap() = true;
            Ok::<_, io::Error>(())
        });
        undo.push_blocking("second", || -> Result<(), io::Error> { panic!("no") });
        assert_eq!(undo.unwind().await.len(), 1);
        assert!(*ran.lock().unwrap());
    }

    #[tokio::test]
    async fn a_disarmed_stack_runs_nothing() {
        let mut undo = Undo::new();
        undo.push("fail", async { Err::<(), _>(io::Error::other("ran")) });
        undo.disarm();
    }
}
