//! Outputs of containers on their way to the log, and the clients that are attached to them.

use crate::keeper::{Keeper, Source, failed};
use crate::loan::Work;
use crate::output::Read;
use crate::task::{Caller, uptime};
use alloc::vec::Vec;
use podinit::wire::{Role, TaskKind, attach_flag};
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, Result};

/// Where the events of each output come from.
pub const SOURCES: [Source; 2] = [Source::Stdout, Source::Stderr];

impl Keeper {
    /// Moves what an output has to its log and its clients.
    pub fn pump(&mut self, handle: u32, at: usize) {
        if !self.has_no_log(handle) {
            if self.logs_hang() {
                return self.pause(handle, at);
            }
            return self.owe(handle, Work::Pump(at));
        }
        let mut buffer = core::mem::take(&mut self.buffer);
        let read = match self.task(handle) {
            Ok(task) => task.outputs[at]
                .as_mut()
                .map(|output| output.pump(&mut None, &mut buffer, false)),
            Err(_) => None,
        };
        self.buffer = buffer;
        if let Some(read) = read {
            self.pumped(handle, at, &read);
        }
    }

    /// What becomes of an output after it was read.
    pub fn pumped(&mut self, handle: u32, at: usize, read: &Read) {
        match read {
            Read::Ended => self.end_output(handle, at),
            Read::Waits => self.wait_for_clients(handle, at),
            Read::Open => {}
        }
    }

    /// Nobody can write to an output any more. It is kept for its clients, who are told when the container ends.
    fn end_output(&mut self, handle: u32, at: usize) {
        let task = self.tasks.iter().find(|task| task.handle == handle);
        if let Some(output) = task.and_then(|task| task.outputs[at].as_ref()) {
            let _ = epoll::delete(&self.epoll, &*output.fd);
        }
    }

    /// Stops reading an output until its clients have room, or its patience with them ends.
    fn wait_for_clients(&mut self, handle: u32, at: usize) {
        let Some(task) = self.tasks.iter_mut().find(|task| task.handle == handle) else {
            return;
        };
        let Some(output) = &mut task.outputs[at] else {
            return;
        };
        output.taps.wait(uptime());
        let _ = epoll::delete(&self.epoll, &*output.fd);
        for pipe in output.taps.pipes() {
            // Once: the one that has room first would wake this loop until the last one has.
            let flags = epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT;
            let _ = epoll::modify(&self.epoll, pipe, Source::Client.data(handle), flags);
        }
    }

    /// A client of a task has room, or is gone.
    pub fn client_ready(&mut self, handle: u32) {
        for at in 0..SOURCES.len() {
            let Ok(task) = self.task(handle) else { return };
            let Some(output) = &mut task.outputs[at] else {
                continue;
            };
            if output.taps.have_room() && output.taps.deadline().is_some() {
                self.flow(handle, at);
            }
        }
    }

    /// Reads an output again.
    fn flow(&mut self, handle: u32, at: usize) {
        let Some(task) = self.tasks.iter_mut().find(|task| task.handle == handle) else {
            return;
        };
        let Some(output) = &mut task.outputs[at] else {
            return;
        };
        output.taps.flow(uptime());
        for pipe in output.taps.pipes() {
            // An error is told without being asked for: the client has closed its end.
            let none = epoll::EventFlags::empty();
            let _ = epoll::modify(&self.epoll, pipe, Source::Client.data(handle), none);
        }
        let data = SOURCES[at].data(handle);
        let _ = epoll::add(&self.epoll, &*output.fd, data, epoll::EventFlags::IN);
    }

    fn waits(&self) -> impl Iterator<Item = (u32, usize, u64)> {
        self.tasks.iter().flat_map(|task| {
            let outputs = task.outputs.iter().enumerate();
            outputs.filter_map(|(at, output)| Some((task.handle, at, output.as_ref()?.taps.deadline()?)))
        })
    }

    /// How long the loop may sleep.
    pub fn until_deadline(&self) -> Option<Timespec> {
        let end = self.waits().map(|(_, _, end)| end).min()?;
        let left = end.saturating_sub(uptime());
        Some(Timespec {
            tv_sec: (left / 1_000_000_000).cast_signed(),
            tv_nsec: (left % 1_000_000_000).cast_signed(),
        })
    }

    /// Goes on without clients that were waited for long enough.
    pub fn end_waits(&mut self) {
        let time = uptime();
        loop {
            let late = self.waits().find(|(_, _, end)| *end <= time);
            let Some((handle, at, _)) = late else { return };
            self.flow(handle, at);
        }
    }

    /// Lets a client have what a container writes from now on, and its input.
    pub fn attach(&mut self, caller: Caller, handle: u32, flags: u32, roles: &[Role], fds: Vec<OwnedFd>) {
        if let Err(errno) = self.add_pipes(handle, roles, fds) {
            return self.reply(caller, failed(errno), &[]);
        }
        let Ok(task) = self.task(handle) else { return };
        let wanted = flags & attach_flag::INPUT != 0;
        let taken = (wanted && flags & attach_flag::TAKE_INPUT != 0)
            .then(|| task.stdin.take())
            .flatten();
        let console = task.console.take();
        let kept = task.stdin.take();
        let input = console.as_ref().or(taken.as_ref()).or(kept.as_ref());
        let input: Vec<BorrowedFd<'_>> = input.filter(|_| wanted).map(AsFd::as_fd).into_iter().collect();
        self.reply(caller, (0, Vec::new()), &input);
        if let Ok(task) = self.task(handle) {
            (task.console, task.stdin) = (console, kept);
        }
    }

    /// A container that has ended has no outputs: the pipes are closed at once.
    fn add_pipes(&mut self, handle: u32, roles: &[Role], fds: Vec<OwnedFd>) -> Result<()> {
        if roles.len() != fds.len() {
            return Err(Errno::INVAL);
        }
        if self.log_is_away(handle) {
            return Err(Errno::BUSY);
        }
        let task = self.tasks.iter_mut().find(|task| task.handle == handle);
        let task = task
            .filter(|task| task.kind == TaskKind::Container)
            .ok_or(Errno::SRCH)?;
        for (role, pipe) in roles.iter().zip(fds) {
            let at = match role {
                Role::Stdout => 0,
                Role::Stderr => 1,
                _ => return Err(Errno::INVAL),
            };
            let Some(output) = &mut task.outputs[at] else {
                continue;
            };
            output.taps.have_room();
            let none = epoll::EventFlags::empty();
            epoll::add(&self.epoll, &pipe, Source::Client.data(handle), none)?;
            output.taps.add(pipe)?;
        }
        Ok(())
    }
}
