//! `/healthz`: whether podd does its work. `/readyz`: whether pods can be run now.
//!
//! A check that hangs is an answer too: it fails by its name, and is not begun again before it has ended, so that
//! probes never use up the threads that they are to look after.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::engine::Engine;
use crate::streaming::Streaming;

/// How long a check may take: less than the second that probes wait is too little for a busy disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is looked after.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The streaming server.
    pub streaming: Arc<Streaming>,
    /// Whether podd was told to stop.
    pub stopping: watch::Receiver<bool>,
}

/// One thing that has to be right.
#[derive(Debug, Clone, Copy)]
struct Check {
    name: &'static str,
    /// May block. The error is a sentence for an operator.
    run: fn(&Subject) -> Result<(), String>,
}

const HEALTH: [Check; 5] = [
    Check {
        name: "engine",
        run: |it| {
            // Takes every lock that a request takes; one that is never given back is never taken here.
            let _ = (
                it.engine.operations(),
                it.engine.native.podinits(),
                it.engine.snapshot(),
            );
            Ok(())
        },
    },
    Check {
        name: "state",
        run: |it| {
            let dir = &it.engine.config.state_dir;
            writable(dir).map_err(|e| format!("cannot write in {}: {e}", dir.display()))
        },
    },
    Check {
        name: "network-monitor",
        run: |it| {
            let alive = it.engine.native.network_watched();
            alive.then_some(()).ok_or_else(|| {
                "podd no longer hears of links and tables that vanish: restart podd, which touches no pod"
                    .to_owned()
            })
        },
    },
    Check {
        name: "streaming",
        run: |it| {
            let alive = it.streaming.is_serving();
            alive.then_some(()).ok_or_else(|| {
                "nobody serves Exec, Attach and PortForward: restart podd, which touches no pod".to_owned()
            })
        },
    },
    Check {
        name: "trash",
        run: |it| {
            let died = it.engine.state.records().trash().is_abandoned();
            (!died).then_some(()).ok_or_else(|| {
                "the thread that deletes files of removed pods died: restart podd, which touches no pod"
                    .to_owned()
            })
        },
    },
];

const READINESS: [Check; 3] = [
    Check {
        name: "runtime",
        run: |it| it.engine.native.runtime_ready(),
    },
    Check {
        name: "network",
        run: |it| it.engine.native.network_ready(),
    },
    Check {
        name: "serving",
        run: |it| match *it.stopping.borrow() {
            false => Ok(()),
            true => Err("podd was told to stop".to_owned()),
        },
    },
];

/// The checks of one path.
#[derive(Debug)]
pub struct Checks {
    checks: &'static [Check],
    /// Which of them have not ended yet.
    busy: Arc<[AtomicBool]>,
    patience: Duration,
}

/// What came of checks, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report(Vec<(&'static str, Result<(), String>)>);

impl Report {
    /// Whether all is well.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.0.iter().all(|(_, result)| result.is_ok())
    }

    /// One line for each check, and one for all.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, result) in &self.0 {
            text.push_str(&match result {
                Ok(()) => format!("[+] {name}: ok\n"),
                Err(reason) => format!("[-] {name}: {reason}\n"),
            });
        }
        text + if self.is_good() { "ok" } else { "failed" }
    }
}

impl Checks {
    /// Those of `/healthz`.
    #[must_use]
    pub fn health() -> Self {
        Self::of(&HEALTH)
    }

    /// Those of `/readyz`.
    #[must_use]
    pub fn readiness() -> Self {
        Self::of(&READINESS)
    }

    fn of(checks: &'static [Check]) -> Self {
        Self {
            checks,
            busy: checks.iter().map(|_| AtomicBool::new(false)).collect(),
            patience: PATIENCE,
        }
    }

    /// Runs all of them at once.
    pub async fn run(&self, subject: &Subject) -> Report {
        let all = self.checks.iter().enumerate().map(async |(index, check)| {
            let (run, subject) = (check.run, subject.clone());
            (check.name, self.bounded(index, move || run(&subject)).await)
        });
        Report(futures::future::join_all(all).await)
    }

    async fn bounded(
        &self,
        index: usize,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        if self.busy[index].swap(true, Ordering::AcqRel) {
            return Err("the check that an earlier request began has not ended yet".to_owned());
        }
        let done = Done(Arc::clone(&self.busy), index);
        let work = tokio::task::spawn_blocking(move || {
            let _done = done;
            work()
        });
        match tokio::time::timeout(self.patience, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("the check ran into a defect of podd, see its log".to_owned()),
            Err(_) => Err(format!("no answer within {} s", self.patience.as_secs_f64())),
        }
    }
}

/// Says that a check has ended, however that came about.
struct Done(Arc<[AtomicBool]>, usize);

impl Drop for Done {
    fn drop(&mut self) {
        self.0[self.1].store(false, Ordering::Release);
    }
}

/// Writes a small file and takes it away again.
fn writable(dir: &Path) -> io::Result<()> {
    let path = dir.join("health-check");
    let written = fs::write(&path, "podd");
    let removed = fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_hangs_fails_and_is_not_begun_twice() {
        let checks = Checks {
            patience: Duration::from_millis(20),
            ..Checks::of(&READINESS)
        };
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let hanging = move || {
            let _ = gate.recv();
            Ok(())
        };
        assert_eq!(
            checks.bounded(1, hanging).await,
            Err("no answer within 0.02 s".to_owned())
        );
        let e = checks.bounded(1, || Ok(())).await.unwrap_err();
        assert!(e.contains("has not ended yet"), "{e}");
        assert_eq!(checks.bounded(0, || Ok(())).await, Ok(()), "the others go on");
        drop(go);
        while checks.busy[1].load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(checks.bounded(1, || Ok(())).await, Ok(()));
    }

    #[tokio::test]
    async fn a_defect_fails_its_check_alone() {
        let checks = Checks::of(&HEALTH);
        let e = checks.bounded(0, || panic!("defect")).await.unwrap_err();
        assert!(e.contains("defect of podd"), "{e}");
        assert_eq!(checks.bounded(0, || Ok(())).await, Ok(()));
    }

    #[test]
    fn a_failing_check_names_itself() {
        let report = Report(vec![("state", Err("no space".to_owned())), ("engine", Ok(()))]);
        assert_eq!(report.text(), "[-] state: no space\n[+] engine: ok\nfailed");
        assert!(!report.is_good());
    }

    #[test]
    fn a_directory_that_is_gone_is_not_writable() {
        let dir = tempfile::tempdir().unwrap();
        writable(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(writable(&dir.path().join("gone")).is_err());
    }
}
