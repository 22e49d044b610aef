//! What podinit shares with podd and the stage: the wire, the stage's reports, the log format.
//!
//! The binary is `main.rs`. Everything here is `no_std` and knows no JSON and no CRI types.
#![cfg_attr(not(test), no_std)]
extern crate alloc;

pub mod cri_log;
pub mod report;
pub mod volume;
pub mod wire;
