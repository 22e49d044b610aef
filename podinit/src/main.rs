//! podinit: the one small process per pod. It holds the pod's namespaces and its containers' stdio, starts
//! stages, reaps, records exits and writes logs. It never parses JSON and never talks to the network; a second thread
//! is there for the case that the disk of a log hangs (turns.rs).
//!
//! podd starts it from a sealed memfd as `podinit POD-ID` with these fds:
//!
//! ```text
//! 0 1 2  /dev/null        3  connection to podd        4  listening socket for later podds
//! 5      mount namespace of the nest
//! ```
//!
//! once per daemon start as `podd-nest STATE-DIRECTORY` with a socket as fd 3, to make the nest (nest.rs), and as
//! `podd-volumes` for each container that has volumes (volumes.rs), and as `podd-users` for each pod with a user
//! namespace (users.rs).
#![no_std]
#![no_main]

extern crate alloc;

mod keeper;
mod launch;
mod loan;
mod nest;
mod output;
mod pump;
mod relabel;
mod taps;
mod task;
mod turns;
mod users;
mod volumes;

use sys::privilege::{Privilege, set_privilege, set_umask};
use sys::rt::Args;
use sys::signal::{SignalSet, set_blocked};

sys::entry!(main);

/// Exit statuses, for people who read them in podd's log.
const BAD_START: u32 = 64;

fn main(args: Args) -> u32 {
    let made = match args.get(0) {
        Some(name) if name == c"podd-nest" => match (args.get(1), args.get(2)) {
            (Some(store), Some(context)) => nest::make(store, context),
            _ => Err(sys::Errno::INVAL),
        },
        Some(name) if name == c"podd-volumes" => volumes::serve(),
        Some(name) if name == c"podd-users" => users::make(),
        Some(_) => keep(),
        None => Err(sys::Errno::INVAL),
    };
    match made {
        Ok(()) => 0,
        Err(_) => BAD_START,
    }
}

fn keep() -> sys::Result<()> {
    // Everything but SIGKILL waits: SIGCHLD and SIGTERM are read from a signalfd, and no stray signal ends a pod's
    // keeper while a container lives.
    set_blocked(SignalSet::ALL)?;
    set_privilege(Privilege::Dumpable(false))?;
    set_privilege(Privilege::ChildSubreaper)?;
    rustix::thread::set_name(c"podinit")?;
    set_umask(0);
    let [podd, listener, mounts] = [3, 4, 5].map(sys::rt::inherited);
    let (podd, listener, mounts) = (podd?, listener?, mounts?);
    nest::enter(mounts)?;
    let keeper = keeper::Keeper::new(podd, listener)?;
    let epoll = rustix::io::fcntl_dupfd_cloexec(&keeper.epoll, 0)?;
    turns::run(keeper, epoll)
}
