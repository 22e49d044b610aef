//! podd, the pod daemon, as a library: the binary, the tests and e2e drive the same code.
//!
//! A request flows down this list: [`cri`] parses it into the [`model`], the [`engine`] carries it out and the
//! [`state`] remembers it. Nothing below `cri` sees a message of the CRI.

pub mod apparmor;
mod authority;
pub mod cdi;
pub mod cli;
pub mod config;
pub mod cri;
pub mod engine;
mod http;
pub mod model;
pub mod observe;
pub mod selinux;
pub mod serve;
pub mod spec;
pub mod state;
pub mod streaming;
pub mod telemetry;
pub mod tool;
pub mod trace;
