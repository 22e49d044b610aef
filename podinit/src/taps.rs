//! Clients attached to an output: each has a pipe that gets every byte after the log has it.
//!
//! A pipe with room for one page takes a write of one page whole (pipe(7), PIPE_BUF), so nothing has to be kept: an
//! output is read only when every client has room, a page at a time. A client that lets the container wait for too
//! long is cut off.

use alloc::vec::Vec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, Result, write};
use rustix::pipe::fcntl_setpipe_size;

/// Bytes read at once while there are clients.
pub const PAGE: usize = 4096;

/// Most clients of one output.
const CLIENTS: usize = 16;

/// How long clients may make an output wait: in ns, so long at once, and a tenth of the time in the long run.
const CREDIT: u64 = 30_000_000_000;
const SHARE: u64 = 10;

/// Room for all that a drain may bring at a container's end, when nobody can be waited for.
const LAST_ROOM: usize = 4 << 20;

/// The clients of one output.
pub struct Taps {
    pipes: Vec<OwnedFd>,
    /// What is left of [`CREDIT`].
    credit: u64,
    /// When the output last began to wait, or to flow again, in ns.
    since: u64,
    waiting: bool,
}

impl Taps {
    pub fn new() -> Self {
        Self {
            pipes: Vec::new(),
            credit: CREDIT,
            since: 0,
            waiting: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.pipes.is_empty()
    }

    pub fn pipes(&self) -> &[OwnedFd] {
        &self.pipes
    }

    pub fn add(&mut self, pipe: OwnedFd) -> Result<()> {
        if self.pipes.len() >= CLIENTS {
            return Err(Errno::USERS);
        }
        self.pipes.push(pipe);
        Ok(())
    }

    /// Whether every client has room; those that are gone are dropped.
    pub fn have_room(&mut self) -> bool {
        let mut all = true;
        self.pipes.retain(|pipe| {
            let ready = readiness(pipe);
            all &= ready.intersects(PollFlags::OUT | PollFlags::ERR);
            !ready.contains(PollFlags::ERR)
        });
        all
    }

    /// Passes on what was read, a page at most, when there is room.
    pub fn send(&mut self, bytes: &[u8]) {
        self.pipes.retain(|pipe| write(pipe, bytes) == Ok(bytes.len()));
    }

    /// Makes room at the end.
    pub fn make_room(&mut self) {
        for pipe in &self.pipes {
            // Where that fails, the client misses the rest.
            let _ = fcntl_setpipe_size(pipe, LAST_ROOM);
        }
    }

    /// The output has to wait from now on; until when.
    pub fn wait(&mut self, now: u64) -> u64 {
        if !self.waiting {
            let flowed = now.saturating_sub(self.since);
            self.credit = CREDIT.min(self.credit.saturating_add(flowed / SHARE));
            (self.waiting, self.since) = (true, now);
        }
        self.deadline().unwrap_or(now)
    }

    /// Until when the output waits, if it does.
    pub fn deadline(&self) -> Option<u64> {
        self.waiting.then(|| self.since.saturating_add(self.credit))
    }

    /// The output flows again; clients without room are cut off.
    pub fn flow(&mut self, now: u64) {
        self.credit = self.credit.saturating_sub(now.saturating_sub(self.since));
        (self.waiting, self.since) = (false, now);
        self.pipes.retain(|pipe| readiness(pipe).contains(PollFlags::OUT));
    }
}

fn readiness(pipe: &OwnedFd) -> PollFlags {
    let mut fds = [PollFd::new(pipe, PollFlags::OUT)];
    let none = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&none)) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}
