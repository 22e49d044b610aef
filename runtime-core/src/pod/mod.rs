//! podd's side of podinit: the embedded programs, the nest, starting and finding a podinit, its frames, and the
//! helper that opens volumes. Blocking calls that take microseconds; who waits for answers is the caller's affair.

mod programs;
mod socket;
mod volumes;

pub use podinit::report::{Failure, Identity, Report};
pub use podinit::wire::{
    Answer, Refused, Request, RequestFrame, Role, TaskKind, TaskPhase, TaskState, launch_flag,
};
pub use programs::{Programs, SealError};
pub use socket::{Podinit, Received, connect, listen, receive, send, spawn};
pub use volumes::{OpenVolume, VolumeError, Volumes};
