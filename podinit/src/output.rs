//! From a container's pipes to its log file, record by record, with one shared buffer and no copy.

use crate::taps::{PAGE, Taps};
use crate::task::now;
use alloc::sync::Arc;
use alloc::vec::Vec;
use podinit::cri_log::{PREFIX, Records, Stream, prefix};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, IoSlice, read, writev};

/// Bytes read at once: a full pipe.
pub const BUFFER: usize = 64 * 1024;

/// Records written at once; the kernel takes 1024 pieces, and 128 records amortise the call as well.
const BATCH: usize = 128;

/// Buffers moved before other tasks get their turn.
const ROUNDS: usize = 32;

/// The reading end of one output.
pub struct Output {
    pub fd: Arc<OwnedFd>,
    pub stream: Stream,
    /// Clients that get the same bytes.
    pub taps: Taps,
    /// The beginning of a line, shorter than a record; memory is needed only while there is one.
    held: Vec<u8>,
}

/// A container's log file.
pub struct Log {
    file: OwnedFd,
    /// The last write stopped inside a record, so the next one starts on a new line.
    torn: bool,
    /// Records that could not be written since the last one that could.
    lost: usize,
}

/// What a reader found.
#[derive(PartialEq, Eq)]
pub enum Read {
    /// More may come.
    Open,
    /// Every writer is gone.
    Ended,
    /// A client has no room.
    Waits,
}

impl Log {
    pub fn new(file: OwnedFd) -> Self {
        Self {
            file,
            torn: false,
            lost: 0,
        }
    }

    /// Goes on in another file.
    pub fn reopen(&mut self, file: OwnedFd) {
        self.file = file;
        self.torn = false;
    }

    /// Writes the records that a chunk completes, and returns what is left of it.
    fn append<'c>(&mut self, chunk: &'c [u8], stream: Stream) -> &'c [u8] {
        let time = now();
        let (full, partial) = (prefix(time, stream, true), prefix(time, stream, false));
        let mut records = Records::new(chunk);
        loop {
            let mut pieces = [IoSlice::new(b""); BATCH * 3];
            let mut used = 0;
            for record in records.by_ref().take(BATCH) {
                let (head, tail): (&[u8; PREFIX], &[u8]) = if record.ends {
                    (&full, b"")
                } else {
                    (&partial, b"\n")
                };
                pieces[used] = IoSlice::new(head);
                pieces[used + 1] = IoSlice::new(record.content);
                pieces[used + 2] = IoSlice::new(tail);
                used += 3;
            }
            if used == 0 {
                return records.rest();
            }
            self.write(stream, &mut pieces[..used]);
        }
    }

    /// Writes records of three pieces each. When the disk refuses, the rest is dropped and counted: a full disk must
    /// not stop the container (docs/process-model.md).
    fn write(&mut self, stream: Stream, pieces: &mut [IoSlice<'_>]) {
        if !self.catch_up(stream) {
            return self.give_up(pieces, false);
        }
        let mut rest = pieces;
        let mut begun = false;
        while !rest.is_empty() {
            match writev(&self.file, rest) {
                Ok(0) => return self.give_up(rest, begun),
                Ok(n) => {
                    rest = advance(rest, n);
                    begun = true;
                }
                Err(Errno::INTR) => {}
                Err(_) => return self.give_up(rest, begun),
            }
        }
    }

    /// Ends what was torn, and says in the log itself how much of it is missing; whether it can be written again.
    fn catch_up(&mut self, stream: Stream) -> bool {
        if self.torn {
            self.torn = writev(&self.file, &[IoSlice::new(b"\n")]) != Ok(1);
        }
        if !self.torn && self.lost > 0 {
            let head = prefix(now(), stream, true);
            let lost = self.lost;
            let text = alloc::format!("podd: {lost} lines are missing here: the log could not be written\n");
            match writev(&self.file, &[IoSlice::new(&head), IoSlice::new(text.as_bytes())]) {
                Ok(n) if n == PREFIX + text.len() => self.lost = 0,
                Ok(n) => self.torn = n > 0,
                Err(_) => {}
            }
        }
        !self.torn && self.lost == 0
    }

    fn give_up(&mut self, rest: &[IoSlice<'_>], begun: bool) {
        self.torn |= begun;
        self.lost += rest.len().div_ceil(3);
    }
}

impl Output {
    pub fn new(fd: OwnedFd, stream: Stream) -> Self {
        Self {
            fd: Arc::new(fd),
            stream,
            taps: Taps::new(),
            held: Vec::new(),
        }
    }

    /// Moves what can be read to the log and the clients: what there is when `drain`, until the end or until it
    /// would block.
    pub fn pump(&mut self, log: &mut Option<Log>, buffer: &mut [u8], drain: bool) -> Read {
        let mut kept = self.held.len();
        buffer[..kept].copy_from_slice(&self.held);
        self.held = Vec::new();
        let mut result = Read::Open;
        // Bounded, so that one busy writer starves no other task, and a drain ends though a writer survives.
        let mut budget = ROUNDS * buffer.len();
        while budget > 0 {
            let room = self.room(buffer.len() - kept, drain);
            if room == 0 {
                result = Read::Waits;
                break;
            }
            let n = match read(&*self.fd, &mut buffer[kept..kept + room]) {
                // A terminal reports the end of its last user as EIO.
                Ok(0) | Err(Errno::IO) => {
                    result = Read::Ended;
                    break;
                }
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(_) => break,
            };
            budget = budget.saturating_sub(room);
            let have = kept + n;
            self.taps.send(&buffer[kept..have]);
            kept = self.emit(log, buffer, have);
            if n < room && have < buffer.len() / 2 && !drain {
                break;
            }
        }
        self.held = buffer[..kept].to_vec();
        if result == Read::Ended {
            self.close_line(log);
        }
        result
    }

    /// How much may be read at once: nothing while a client has no room.
    fn room(&mut self, space: usize, drain: bool) -> usize {
        if self.taps.is_empty() {
            return space;
        }
        if !self.taps.have_room() {
            if !drain {
                return 0;
            }
            self.taps.make_room();
        }
        if self.taps.is_empty() {
            space
        } else {
            space.min(PAGE)
        }
    }

    /// Writes what `buffer[..have]` completes, moves the rest to the front and returns its length.
    fn emit(&mut self, log: &mut Option<Log>, buffer: &mut [u8], have: usize) -> usize {
        let Some(log) = log else { return 0 };
        let kept = log.append(&buffer[..have], self.stream).len();
        buffer.copy_within(have - kept..have, 0);
        kept
    }

    /// Writes what a last line without a newline has. It stays open (P): the kubelet adds no newline then, so that
    /// `kubectl logs` and a termination message taken from the log are what the container wrote.
    pub fn close_line(&mut self, log: &mut Option<Log>) {
        let held = core::mem::take(&mut self.held);
        if let (Some(log), false) = (log, held.is_empty()) {
            let head = prefix(now(), self.stream, false);
            log.write(
                self.stream,
                &mut [IoSlice::new(&head), IoSlice::new(&held), IoSlice::new(b"\n")],
            );
        }
    }
}

/// What is left of `pieces` after `n` written bytes.
fn advance<'p, 's>(mut pieces: &'p mut [IoSlice<'s>], mut n: usize) -> &'p mut [IoSlice<'s>] {
    while let Some(length) = pieces.first().map(|piece| piece.as_slice().len()) {
        if n < length {
            pieces[0].advance(n);
            break;
        }
        n -= length;
        pieces = &mut pieces[1..];
    }
    pieces
}
