//! podd's side of podinit: the embedded programs, the nest, starting and finding a podinit, its frames, and the
//! helpers that open volumes and make user namespaces. Blocking calls that take microseconds; who waits for answers is the caller's affair.

mod helper;
mod programs;
mod socket;
mod users;
mod volumes;

pub use podinit::cri_log::MAX_CONTENT;
pub use podinit::report::{Failure, Identity, Report};
pub use podinit::volume::MAX_CONTEXT;
pub use podinit::wire::{
    Answer, Refused, Request, RequestFrame, Role, TaskKind, TaskPhase, TaskState, attach_flag, launch_flag,
};
pub use programs::{Programs, SealError};
pub use socket::{Found, Podinit, Received, find, listen, receive, send, spawn};
pub use users::{IdRange, ProbeError, UserNamespaces, probe_user_namespaces, user_namespace};
pub use volumes::{Missing, OpenVolume, Relabel, VolumeError, Volumes};
