//! Reader of tar streams: v7, ustar, GNU long names and PAX, as foreign bytes.
//!
//! Owns the byte format only: headers, checksums, extension records, sizes and padding. What a name or an extended
//! attribute means, and whether it is acceptable, is decided in `unpack`. Memory is bounded: one block buffer of the
//! source plus at most one extension record, whose size is limited before it is read.
//!
//! A stream is a sequence of 512-byte blocks: header, data padded to 512, header, …, and two zero blocks at the end
//! (a stream that ends at a header boundary is accepted too, as Go's reader does).

mod header;
mod pax;

use std::io::{self, Read};

use crate::config::Limits;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::Error;
use header::{BLOCK, Header};
use pax::Overrides;

/// Size of the buffer between decompressor and reader; file data is written from it without another copy.
const BUFFER: usize = 256 << 10;

/// One entry of the archive; the data of a regular file follows through [`TarReader::data`].
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub link: Vec<u8>,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Streaming tar reader that hashes and counts every byte it takes from `R`.
pub(crate) struct TarReader<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    hasher: Hasher,
    total: u64,
    max_total: u64,
    /// Bytes of data and of padding left of the current entry.
    data_left: u64,
    padding: u64,
    path_bytes: usize,
    pax_bytes: u64,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(source: R, limits: &Limits) -> Self {
        TarReader {
            source,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            hasher: Hasher::new(Algorithm::Sha256),
            total: 0,
            max_total: limits.layer_bytes,
            data_left: 0,
            padding: 0,
            path_bytes: limits.path_bytes,
            // A record holds the attributes and the two names, plus keys and lengths.
            pax_bytes: (limits.xattr_bytes + 2 * limits.path_bytes + 4096) as u64,
        }
    }

    /// The next entry, or `None` at the end of the archive. Unread data of the current entry is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut extra = Overrides::default();
        loop {
            self.skip(self.data_left + self.padding)?;
            self.data_left = 0;
            self.padding = 0;
            let Some(block) = self.header_block()? else {
                return if extra.is_empty() {
                    Ok(None)
                } else {
                    Err(bad("it ends after an extension header"))
                };
            };
            let header = Header::parse(&block).map_err(bad)?;
            match header.flag {
                b'x' => {
                    let record = self.record(header.size, self.pax_bytes)?;
                    extra.merge_pax(&record).map_err(bad)?;
                }
                // Global records name no file; containerd and docker ignore them as well.
                b'g' => {
                    self.record(header.size, self.pax_bytes)?;
                }
                b'L' => extra.path = Some(self.long_name(header.size)?),
                b'K' => extra.link = Some(self.long_name(header.size)?),
                flag => {
                    let Some(kind) = header.kind() else {
                        return Err(Error::UnsupportedEntry {
                            path: printable(&header.path),
                            reason: header::unsupported(flag),
                        });
                    };
                    return self.entry(header, kind, extra).map(Some);
                }
            }
        }
    }

    fn entry(&mut self, header: Header, kind: Kind, extra: Overrides) -> Result<Entry, Error> {
        if extra.sparse {
            let path = printable(&header.path);
            return Err(Error::UnsupportedEntry {
                path,
                reason: "sparse files are not supported",
            });
        }
        let path = extra.path.unwrap_or(header.path);
        let link = extra.link.unwrap_or(header.link);
        if path.len() > self.path_bytes || link.len() > self.path_bytes {
            return Err(Error::TooLarge {
                what: "bytes of a path in the layer",
                limit: self.path_bytes as u64,
            });
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(bad("a name contains a NUL byte"));
        }
        // Only regular files have data; a size in any other header is meaningless (POSIX pax, and Go's reader).
        let size = if kind == Kind::File {
            extra.size.unwrap_or(header.size)
        } else {
            0
        };
        self.data_left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(Entry {
            path,
            kind,
            link,
            size,
            mode: header.mode & 0o7777,
            uid: extra.uid.unwrap_or(header.uid),
            gid: extra.gid.unwrap_or(header.gid),
            mtime: extra.mtime.unwrap_or((header.mtime, 0)),
            device: header.device,
            xattrs: extra.xattrs,
        })
    }

    /// The next slice of the current entry's data; empty when all of it was returned.
    pub(crate) fn data(&mut self) -> Result<&[u8], Error> {
        if self.data_left == 0 {
            return Ok(&[]);
        }
        if self.start == self.end && !self.fill()? {
            return Err(bad("it ends inside a file"));
        }
        let left = usize::try_from(self.data_left).unwrap_or(usize::MAX);
        let n = left.min(self.end - self.start);
        let slice = &self.buffer[self.start..self.start + n];
        self.start += n;
        self.data_left -= n as u64;
        Ok(slice)
    }

    /// Reads to the end of the stream and returns its digest and length: the diff id covers trailing padding.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64), Error> {
        self.start = self.end;
        while self.fill()? {
            self.start = self.end;
        }
        Ok((self.hasher.finish(), self.total))
    }

    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        if !self.read_block(&mut block)? {
            return Ok(None);
        }
        if block.iter().any(|b| *b != 0) {
            return Ok(Some(block));
        }
        if self.read_block(&mut block)? && block.iter().any(|b| *b != 0) {
            return Err(bad("a zero block is followed by data"));
        }
        Ok(None)
    }

    /// False at the end of the stream; a part of a block is an error.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, Error> {
        let mut filled = 0;
        while filled < BLOCK {
            if self.start == self.end && !self.fill()? {
                return if filled == 0 {
                    Ok(false)
                } else {
                    Err(bad("it ends inside a header"))
                };
            }
            let n = (BLOCK - filled).min(self.end - self.start);
            block[filled..filled + n].copy_from_slice(&self.buffer[self.start..self.start + n]);
            self.start += n;
            filled += n;
        }
        Ok(true)
    }

    /// Reads the data of an extension header.
    fn record(&mut self, size: u64, max: u64) -> Result<Vec<u8>, Error> {
        if size > max {
            return Err(Error::TooLarge {
                what: "bytes of a tar extension header",
                limit: max,
            });
        }
        self.data_left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let mut record = Vec::new();
        loop {
            let slice = self.data()?;
            if slice.is_empty() {
                return Ok(record);
            }
            record.extend_from_slice(slice);
        }
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let mut name = self.record(size, self.path_bytes as u64 + 1)?;
        if let Some(end) = name.iter().position(|b| *b == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn skip(&mut self, mut left: u64) -> Result<(), Error> {
        while left > 0 {
            if self.start == self.end && !self.fill()? {
                return Err(bad("it ends inside an entry"));
            }
            let n = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(self.end - self.start);
            self.start += n;
            left -= n as u64;
        }
        Ok(())
    }

    /// Refills the empty buffer; false at the end of the stream.
    fn fill(&mut self) -> Result<bool, Error> {
        let n = loop {
            match self.source.read(&mut self.buffer) {
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(from_io(e)),
            }
        };
        self.hasher.update(&self.buffer[..n]);
        self.start = 0;
        self.end = n;
        self.total += n as u64;
        if self.total > self.max_total {
            return Err(Error::TooLarge {
                what: "unpacked bytes of a layer",
                limit: self.max_total,
            });
        }
        Ok(n > 0)
    }
}

/// A source may carry an [`Error`] of this crate inside an `io::Error`; anything else is a broken compressed stream.
fn from_io(e: io::Error) -> Error {
    match e.downcast::<Error>() {
        Ok(inner) => inner,
        Err(e) => bad(&format!("decompression failed: {e}")),
    }
}

pub(crate) fn bad(reason: &str) -> Error {
    Error::BadArchive {
        reason: reason.to_owned(),
    }
}

/// An entry name for messages: lossy, escaped, cut.
pub(crate) fn printable(path: &[u8]) -> String {
    crate::reference::printable(&String::from_utf8_lossy(&path[..path.len().min(1024)]))
}

#[cfg(test)]
mod tests;
