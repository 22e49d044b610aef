//! The states of a pod and of a container, and the only ways from one to another.
//!
//! Owns pure functions over values. Never looks at the kernel, the disk or a clock: an event carries what it knows.
//! "Starting" and "removing" are no phases but operations in flight (`engine::inflight`).

use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970, as the CRI counts; 0 means never. Only reported, never compared: clocks jump.
pub type Nanos = i64;

/// The state of a pod.
///
/// ```text
///   Creating ──Started──▶ Ready ──Stopped──▶ NotReady ─┐
///       │                                       ▲  ▲   │ Stopped
///       └───────────────Stopped─────────────────┘  └───┘
/// ```
///
/// A pod is removed from any phase; after that there is no phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodPhase {
    /// The intent is on disk, parts of the pod may exist; lists do not show it.
    Creating,
    /// podinit holds the namespaces and containers may be made.
    Ready,
    /// The pod was stopped, or lost its podinit: its containers are gone, its records are not.
    NotReady,
}

/// What can happen to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodEvent {
    /// Everything RunPodSandbox makes exists.
    Started,
    /// Stopped by request, found dead, or left half made by a daemon that died.
    Stopped,
}

impl PodPhase {
    /// The phase after `event`.
    ///
    /// # Errors
    /// The event is not possible in this phase.
    pub fn apply(self, event: PodEvent) -> Result<Self, Refused> {
        match (self, event) {
            (Self::Creating, PodEvent::Started) => Ok(Self::Ready),
            (_, PodEvent::Stopped) => Ok(Self::NotReady),
            (Self::Ready | Self::NotReady, PodEvent::Started) => Err(Refused {
                event: "started",
                phase: self.name(),
            }),
        }
    }

    /// The phase in a word, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Ready => "ready",
            Self::NotReady => "not ready",
        }
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// Exit code, or 128 plus the signal.
    pub code: i32,
    /// One of the words the kubelet knows.
    pub reason: Reason,
    /// A sentence for people, empty when there is nothing to add.
    pub message: String,
    /// When the application was started; 0 when it never was.
    pub started_at: Nanos,
    /// When it ended.
    pub finished_at: Nanos,
}

/// Why a container is no longer running, in the words of the CRI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// SIGKILL by the kernel's out-of-memory killer inside the container's cgroup.
    OOMKilled,
    /// The application could not be executed.
    StartError,
    /// The container could not be made to run at all.
    ContainerCannotRun,
    /// The end was not seen: the machine went down, or podinit died first.
    Unknown,
}

impl Reason {
    /// The word the CRI reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OOMKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::ContainerCannotRun => "ContainerCannotRun",
            Self::Unknown => "Unknown",
        }
    }

    /// The reason that an exit code alone gives.
    #[must_use]
    pub fn of_code(code: i32) -> Self {
        if code == 0 { Self::Completed } else { Self::Error }
    }
}

/// The state of a container.
///
/// ```text
///   Creating ──Built──▶ Created ──Started──▶ Running ──Exited──▶ Exited ─┐
///       │                  │                                     ▲  ▲   │ Exited (the first report stays)
///       │                  └───────────────Exited────────────────┘  └───┘
///       └──────────────────────────────────Exited────────────────┘
/// ```
///
/// A container is removed from any phase; after that there is no phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// The intent is on disk, parts of the container may exist; lists do not show it.
    Creating,
    /// Built up to the start gate.
    Created {
        /// The process that waits at the gate, as the host numbers it.
        pid: i32,
    },
    /// The application was executed.
    Running {
        /// The application's process, as the host numbers it.
        pid: i32,
        /// When the gate was opened.
        started_at: Nanos,
    },
    /// Over.
    Exited(Exit),
}

/// What can happen to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// The process waits at the start gate.
    Built {
        /// That process.
        pid: i32,
    },
    /// The gate was opened and the application executed.
    Started {
        /// When.
        at: Nanos,
    },
    /// The process is gone. `started_at` of the phase is kept; the one in here counts only where there is none.
    Exited(Exit),
}

impl ContainerPhase {
    /// The phase after `event`.
    ///
    /// # Errors
    /// The event is not possible in this phase.
    pub fn apply(&self, event: ContainerEvent) -> Result<Self, Refused> {
        let name = match &event {
            ContainerEvent::Built { .. } => "built",
            ContainerEvent::Started { .. } => "started",
            ContainerEvent::Exited(_) => "exited",
        };
        match (self, event) {
            (Self::Creating, ContainerEvent::Built { pid }) => Ok(Self::Created { pid }),
            (Self::Created { pid }, ContainerEvent::Started { at }) => Ok(Self::Running {
                pid: *pid,
                started_at: at,
            }),
            (Self::Running { started_at, .. }, ContainerEvent::Exited(exit)) => Ok(Self::Exited(Exit {
                started_at: *started_at,
                ..exit
            })),
            (Self::Creating | Self::Created { .. }, ContainerEvent::Exited(exit)) => Ok(Self::Exited(exit)),
            // An exit may be reported twice: by podinit before and after podd was restarted.
            (Self::Exited(first), ContainerEvent::Exited(_)) => Ok(Self::Exited(first.clone())),
            (phase, ContainerEvent::Built { .. } | ContainerEvent::Started { .. }) => Err(Refused {
                event: name,
                phase: phase.name(),
            }),
        }
    }

    /// The phase in a word, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created { .. } => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
        }
    }

    /// Whether a process of the container may still exist.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !matches!(self, Self::Exited(_))
    }
}

/// An event that is not possible in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot become {event} while it is {phase}")]
pub struct Refused {
    /// What was to happen.
    pub event: &'static str,
    /// The phase it was in.
    pub phase: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_transitions() {
        use PodEvent::{Started, Stopped};
        use PodPhase::{Creating, NotReady, Ready};
        for (from, event, want) in [
            (Creating, Started, Some(Ready)),
            (Creating, Stopped, Some(NotReady)),
            (Ready, Started, None),
            (Ready, Stopped, Some(NotReady)),
            (NotReady, Started, None),
            (NotReady, Stopped, Some(NotReady)),
        ] {
            assert_eq!(from.apply(event).ok(), want, "{from:?} {event:?}");
        }
    }

    #[test]
    fn container_transitions() {
        let exit = |code, started_at| Exit {
            code,
            reason: Reason::of_code(code),
            message: String::new(),
            started_at,
            finished_at: 9,
        };
        let built = || ContainerEvent::Built { pid: 7 };
        let started = || ContainerEvent::Started { at: 5 };
        let exited = || ContainerEvent::Exited(exit(1, 0));
        let created = ContainerPhase::Created { pid: 7 };
        let running = ContainerPhase::Running {
            pid: 7,
            started_at: 5,
        };
        let gone = ContainerPhase::Exited(exit(0, 5));
        for (from, event, want) in [
            (ContainerPhase::Creating, built(), Some(created.clone())),
            (ContainerPhase::Creating, started(), None),
            (
                ContainerPhase::Creating,
                exited(),
                Some(ContainerPhase::Exited(exit(1, 0))),
            ),
            (created.clone(), built(), None),
            (created.clone(), started(), Some(running.clone())),
            (created, exited(), Some(ContainerPhase::Exited(exit(1, 0)))),
            (running.clone(), built(), None),
            (running.clone(), started(), None),
            (running, exited(), Some(ContainerPhase::Exited(exit(1, 5)))),
            (gone.clone(), built(), None),
            (gone.clone(), started(), None),
            (gone.clone(), exited(), Some(gone)),
        ] {
            assert_eq!(from.apply(event.clone()).ok(), want, "{from:?} {event:?}");
        }
    }

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        let e = PodPhase::Ready.apply(PodEvent::Started).unwrap_err();
        assert_eq!(e.to_string(), "cannot become started while it is ready");
    }
}
