//! Work that may hang, as a disk may: writing logs, recording exits. What it needs is out of the keeper meanwhile.

use alloc::sync::Arc;
use alloc::vec::Vec;

use podinit::wire::TaskPhase;
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};

use crate::keeper::Keeper;
use crate::output::{BUFFER, Log, Output, Read};
use crate::pump::SOURCES;
use crate::task::record_exit;

/// What is to be done for a task.
#[derive(Clone, Copy)]
pub enum Work {
    /// Move what an output has to the log.
    Pump(usize),
    /// Drain the outputs of a task whose first process has ended, and record how.
    End(TaskPhase, u64),
}

/// A task's outputs and log, while they are worked on.
pub struct Loan {
    handle: u32,
    work: Work,
    buffer: Vec<u8>,
    log: Option<Log>,
    reopened: Option<OwnedFd>,
    outputs: [Option<Output>; 2],
    record: Option<OwnedFd>,
    started: u64,
    read: Read,
}

/// What the keeper knows of a loan.
struct Lent {
    handle: u32,
    outputs: [Option<Arc<OwnedFd>>; 2],
}

/// Loans, and what waits for them.
#[derive(Default)]
pub struct Loans {
    due: Vec<(u32, Work)>,
    lent: Option<Lent>,
    /// The one who has the loan hangs: outputs are not watched that cannot be read now.
    hangs: bool,
    paused: Vec<(u32, usize)>,
}

impl Loan {
    /// Does it; the lock on the keeper is free so long.
    pub fn perform(&mut self) {
        if let (Some(log), Some(file)) = (&mut self.log, self.reopened.take()) {
            log.reopen(file);
        }
        match self.work {
            Work::Pump(at) => {
                if let Some(output) = &mut self.outputs[at] {
                    self.read = output.pump(&mut self.log, &mut self.buffer, false);
                }
            }
            Work::End(phase, finished) => {
                for output in self.outputs.iter_mut().flatten() {
                    output.pump(&mut self.log, &mut self.buffer, true);
                    output.close_line(&mut self.log);
                }
                if let Some(directory) = self.record.take() {
                    record_exit(&directory, phase, self.started, finished);
                }
                // To close a file may take as long as to write it.
                self.log = None;
            }
        }
    }
}

impl Keeper {
    /// Has work done as soon as nothing is lent.
    pub fn owe(&mut self, handle: u32, work: Work) {
        self.loans.due.push((handle, work));
    }

    /// Whether the log of a task is out, or cannot be written now.
    pub fn log_is_away(&self, handle: u32) -> bool {
        self.loans.lent.as_ref().is_some_and(|lent| lent.handle == handle)
    }

    /// Whether no log can be written now, as one hangs.
    pub fn logs_hang(&self) -> bool {
        self.loans.hangs
    }

    /// Does not watch an output until logs can be written again.
    pub fn pause(&mut self, handle: u32, at: usize) {
        if let Ok(task) = self.task(handle)
            && let Some(output) = &task.outputs[at]
        {
            let fd = Arc::clone(&output.fd);
            let _ = epoll::delete(&self.epoll, &*fd);
            self.loans.paused.push((handle, at));
        }
    }

    /// What is to be done next, if anything is, for the thread whose turn is `turn`.
    pub fn lend(&mut self, turn: u32) -> Option<Loan> {
        let (handle, work) = loop {
            if self.loans.lent.is_some() || self.loans.due.is_empty() {
                return None;
            }
            let (handle, work) = self.loans.due.remove(0);
            if self.task(handle).is_ok() {
                break (handle, work);
            }
        };
        let task = self.task(handle).ok()?;
        let mut outputs = [None, None];
        let mut record = None;
        match work {
            Work::Pump(at) => outputs[at] = task.outputs[at].take(),
            Work::End(..) => {
                outputs = core::mem::take(&mut task.outputs);
                record = task.record.take();
            }
        }
        let (log, reopened, started) = (task.log.take(), task.reopened.take(), task.started);
        let fd = |output: &Option<Output>| output.as_ref().map(|output| Arc::clone(&output.fd));
        self.loans.lent = Some(Lent {
            handle,
            outputs: [fd(&outputs[0]), fd(&outputs[1])],
        });
        let buffer = core::mem::take(&mut self.buffer);
        if turn != self.turn {
            self.go_on_without();
        }
        Some(Loan {
            handle,
            work,
            buffer,
            log,
            reopened,
            outputs,
            record,
            started,
            read: Read::Open,
        })
    }

    /// Puts everything back where it was, and tells what came of the work.
    pub fn take_back(&mut self, loan: Loan) {
        self.loans.lent = None;
        let hung = core::mem::take(&mut self.loans.hangs);
        self.buffer = loan.buffer;
        match loan.work {
            Work::End(phase, finished) => {
                for output in loan.outputs.iter().flatten() {
                    // podd may hold the same terminal for a client: closing this fd alone would not end the watch.
                    let _ = epoll::delete(&self.epoll, &*output.fd);
                }
                self.over(loan.handle, phase, finished);
            }
            Work::Pump(at) => {
                let [first, second] = loan.outputs;
                let output = if at == 0 { first } else { second };
                if let Ok(task) = self.task(loan.handle) {
                    task.log = loan.log;
                    task.outputs[at] = output;
                    if hung {
                        self.resume(loan.handle, at);
                    }
                    self.pumped(loan.handle, at, &loan.read);
                }
            }
        }
        for (handle, at) in core::mem::take(&mut self.loans.paused) {
            self.resume(handle, at);
        }
    }

    fn resume(&mut self, handle: u32, at: usize) {
        let Ok(task) = self.task(handle) else { return };
        if let Some(output) = &task.outputs[at]
            && output.taps.deadline().is_none()
        {
            let fd = Arc::clone(&output.fd);
            let _ = self.watch(fd.as_fd(), SOURCES[at], handle);
        }
    }

    /// The thread that has the loan hangs, and another one goes on: the number of its turn.
    pub fn take_over(&mut self) -> u32 {
        self.turn = self.turn.wrapping_add(1);
        self.go_on_without();
        self.turn
    }

    /// The loop goes on while what is lent is away: nobody reads there.
    fn go_on_without(&mut self) {
        self.loans.hangs = true;
        if let Some(lent) = &self.loans.lent {
            for fd in lent.outputs.iter().flatten() {
                let _ = epoll::delete(&self.epoll, &**fd);
            }
        }
        // The one that all work shares is lent as well.
        self.buffer = alloc::vec![0; BUFFER];
    }
}
