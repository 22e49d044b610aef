//! Work inside another network namespace.
//!
//! Owns: entering a namespace on a thread that dies afterwards, so that no thread of a pool is ever left in
//! the wrong one. Never: creates or pins namespaces.

use std::os::fd::BorrowedFd;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Error;

/// Moves the calling thread into `netns`, for good: only for threads about to die.
pub(crate) fn join(netns: BorrowedFd<'_>) -> Result<(), Error> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
        .map_err(|errno| Error::EnterNetns { source: errno.into() })
}

/// Runs `work` inside `netns` on a thread of its own and returns its result. Blocks.
///
/// Sockets opened by `work` stay in the namespace and may be used from any thread afterwards.
pub fn enter<T, F>(netns: BorrowedFd<'_>, work: F) -> Result<T, Error>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    const NAME: &str = "netns";
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name(NAME.to_owned())
            .spawn_scoped(scope, || join(netns).map(|()| work()))
            .map_err(|source| Error::Thread { name: NAME, source })?;
        worker.join().map_err(|_| Error::WorkerLost {
            operation: "work in a network namespace",
        })?
    })
}
