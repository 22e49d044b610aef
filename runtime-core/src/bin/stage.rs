//! The stage: becomes one container's first process, or one exec, by following the plan it was handed.
//!
//! podinit starts it from a sealed memfd with the fds of docs/process-model.md. It lives for a few milliseconds.
#![no_std]
#![no_main]

sys::entry!(main);

fn main(_: sys::rt::Args) -> u32 {
    runtime_core::stage::run()
}
