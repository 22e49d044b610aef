//! Plans: what a new process does between `clone` and `execve`, as a value.
//!
//! A plan is data without decisions: everything that a request can get wrong was refused before the plan
//! existed. It travels in a sealed memfd from podd to the stage, so its encoding ([`codec`]) is compact and is
//! decoded in place.
//!
//! Ownership: knows every step; executes none (that is [`crate::stage`]).

pub mod codec;
mod step;

pub use codec::{DecodeError, Plan, PlanBuf};
pub use step::{
    Attr, Caps, Device, FileKind, GroupsPolicy, Hook, HookRoot, Layers, Namespaces, Slot, Step, TerminalSize,
    UserRef, attr, mount_flag,
};
