//! What podd tells about itself: metrics, health, and its log level, over HTTP on a socket of their own.
//!
//! ```text
//! cri::layers, engine ──▶ metrics ──┐
//! engine, state, /proc ──▶ scrape ──┼─▶ listener ──▶ Prometheus, probes, operators
//!                         health ───┘
//! ```
//!
//! `cadvisor` answers another question, on a socket that is off unless it is asked for: whose a cgroup is.
//!
//! Traces are sent, not asked for: they are in [`crate::trace`].
//!
//! Owns the names of all metrics (`docs/observability.md`) and the checks behind `/healthz` and `/readyz`. What can be
//! counted when somebody asks is counted then; only durations and failures are noted as they happen.

mod cadvisor;
pub mod health;
pub mod listener;
pub mod metrics;
mod process;
mod scrape;
