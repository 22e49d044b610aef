//! From a container's pipes to its log file, record by record, with one shared buffer and no copy.

use crate::task::now;
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
    pub fd: OwnedFd,
    pub stream: Stream,
    /// The last record had no newline.
    pub open_line: bool,
}

/// A container's log file.
pub struct Log {
    file: OwnedFd,
    /// The last write stopped inside a record, so the next one starts on a new line.
    torn: bool,
    /// Bytes of output that could not be written.
    dropped: u64,
}

/// What a reader found.
#[derive(PartialEq, Eq)]
pub enum Read {
    /// More may come.
    Open,
    /// Every writer is gone.
    Ended,
}

impl Log {
    pub fn new(file: OwnedFd) -> Self {
        Self {
            file,
            torn: false,
            dropped: 0,
        }
    }

    /// Goes on in another file.
    pub fn reopen(&mut self, file: OwnedFd) {
        self.file = file;
        self.torn = false;
    }

    /// Writes a chunk as records and returns whether its last line is still open.
    fn append(&mut self, chunk: &[u8], stream: Stream) -> bool {
        let time = now();
        let (full, partial) = (prefix(time, stream, true), prefix(time, stream, false));
        let mut records = Records::new(chunk).peekable();
        let mut open_line = false;
        while records.peek().is_some() {
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
                open_line = !record.ends;
            }
            self.write(&mut pieces[..used]);
        }
        open_line
    }

    /// Writes all pieces. When the disk refuses, the rest is dropped and counted: a full disk must not stop the
    /// container (docs/process-model.md).
    fn write(&mut self, pieces: &mut [IoSlice<'_>]) {
        if self.torn && writev(&self.file, &[IoSlice::new(b"\n")]) == Ok(1) {
            self.torn = false;
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

    fn give_up(&mut self, rest: &[IoSlice<'_>], begun: bool) {
        self.torn |= begun;
        self.dropped += rest
            .iter()
            .map(|piece| piece.as_slice().len() as u64)
            .sum::<u64>();
    }
}

impl Output {
    pub fn new(fd: OwnedFd, stream: Stream) -> Self {
        Self {
            fd,
            stream,
            open_line: false,
        }
    }

    /// Moves what can be read to the log: one buffer of it, or all there is when `drain`.
    pub fn pump(&mut self, log: &mut Option<Log>, buffer: &mut [u8], drain: bool) -> Read {
        let mut kept = 0;
        // Bounded, so that one busy writer starves no other task, and a drain ends though a writer survives.
        for _ in 0..ROUNDS {
            let n = match read(&self.fd, &mut buffer[kept..]) {
                // A terminal reports the end of its last user as EIO.
                Ok(0) | Err(Errno::IO) => {
                    self.emit(log, &buffer[..kept]);
                    self.close_line(log);
                    return Read::Ended;
                }
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(_) => {
                    self.emit(log, &buffer[..kept]);
                    return Read::Open;
                }
            };
            let have = kept + n;
            // A line that the buffer's end cuts goes on in the next read, unless it is longer than a record anyway.
            let tail = buffer[..have]
                .iter()
                .rev()
                .take(buffer.len() / 4)
                .position(|byte| *byte == b'\n');
            let cut = tail.map_or(have, |tail| have - tail);
            self.emit(log, &buffer[..cut]);
            buffer.copy_within(cut..have, 0);
            kept = have - cut;
            if have < buffer.len() / 2 && !drain && kept == 0 {
                return Read::Open;
            }
        }
        self.emit(log, &buffer[..kept]);
        Read::Open
    }

    fn emit(&mut self, log: &mut Option<Log>, chunk: &[u8]) {
        if let (Some(log), false) = (log, chunk.is_empty()) {
            self.open_line = log.append(chunk, self.stream);
        }
    }

    /// Ends an open last line, so that no reader waits for the rest of it.
    pub fn close_line(&mut self, log: &mut Option<Log>) {
        if let (Some(log), true) = (log, self.open_line) {
            let head = prefix(now(), self.stream, true);
            log.write(&mut [IoSlice::new(&head), IoSlice::new(b"\n")]);
            self.open_line = false;
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
