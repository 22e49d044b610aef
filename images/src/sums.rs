//! Checksums of the regular files of a layer, written while it is unpacked and read to verify it later.
//!
//! One file per layer, `<n>.sums`, little endian:
//!
//! ```text
//! "podd sums 1\n"
//! repeated: u32 crc32, u64 size, u16 path length (never 0), path without leading slash
//! end:      u32 0,     u64 number of records, u16 0
//! ```
//!
//! A record of size 2^64-1 says that the archive replaced what was at this path: earlier records of it and below it
//! do not count. Of two records of a path the last one counts. CRC-32 finds torn and empty files after
//! a power cut; it is no protection against an attacker, who would have to be root. Hard links and special files have
//! no record.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::config::Durability;

/// Size in a record of something replaced.
const REPLACED: u64 = u64::MAX;
const MAGIC: &[u8] = b"podd sums 1\n";

/// Appends records to a new file.
pub(crate) struct SumsWriter {
    out: BufWriter<File>,
    count: u64,
}

impl SumsWriter {
    pub(crate) fn new(file: File) -> io::Result<SumsWriter> {
        let mut out = BufWriter::with_capacity(32 << 10, file);
        out.write_all(MAGIC)?;
        Ok(SumsWriter { out, count: 0 })
    }

    pub(crate) fn add(&mut self, path: &[u8], size: u64, crc: u32) -> io::Result<()> {
        let length = u16::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.record(crc, size, length)?;
        self.out.write_all(path)?;
        self.count += 1;
        Ok(())
    }

    /// What earlier entries left at `path` and below is gone.
    pub(crate) fn replaced(&mut self, path: &[u8]) -> io::Result<()> {
        self.add(path, REPLACED, 0)
    }

    pub(crate) fn finish(mut self, durability: Durability) -> io::Result<()> {
        self.record(0, self.count, 0)?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if durability == Durability::PerFile {
            file.sync_data()?;
        }
        Ok(())
    }

    fn record(&mut self, crc: u32, size: u64, length: u16) -> io::Result<()> {
        let mut head = [0; 14];
        head[..4].copy_from_slice(&crc.to_le_bytes());
        head[4..12].copy_from_slice(&size.to_le_bytes());
        head[12..].copy_from_slice(&length.to_le_bytes());
        self.out.write_all(&head)
    }
}

/// Compares the files below `root` with the records in `sums`. Returns the paths that differ, at most `max`.
pub(crate) fn verify(sums: &Path, root: &OwnedFd, max: usize) -> io::Result<Vec<String>> {
    let mut damaged = Vec::new();
    for (path, (size, crc)) in read(sums)? {
        if damaged.len() >= max {
            break;
        }
        if !matches!(checksum(root, &path), Ok(found) if found == (size, crc)) {
            damaged.push(crate::tar::printable(&path));
        }
    }
    Ok(damaged)
}

fn read(sums: &Path) -> io::Result<BTreeMap<Vec<u8>, (u64, u32)>> {
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "the checksum file is torn");
    let mut input = BufReader::new(File::open(sums)?);
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(torn());
    }
    let mut out = BTreeMap::new();
    let mut count = 0;
    loop {
        let mut crc = [0; 4];
        let mut size = [0; 8];
        let mut length = [0; 2];
        input.read_exact(&mut crc)?;
        input.read_exact(&mut size)?;
        input.read_exact(&mut length)?;
        let size = u64::from_le_bytes(size);
        match u16::from_le_bytes(length) {
            0 if size == count => return Ok(out),
            0 => return Err(torn()),
            length => {
                let mut path = vec![0; usize::from(length)];
                input.read_exact(&mut path)?;
                if size == REPLACED {
                    out.remove(&path);
                    let below = [&path[..], b"/"].concat();
                    while let Some(gone) = out.range(below.clone()..).next().map(|(p, _)| p.clone()) {
                        if !gone.starts_with(&below) {
                            break;
                        }
                        out.remove(&gone);
                    }
                } else {
                    out.insert(path, (size, u32::from_le_bytes(crc)));
                }
                count += 1;
            }
        }
    }
}

fn checksum(root: &OwnedFd, path: &[u8]) -> io::Result<(u64, u32)> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(openat2(root, path, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut crc = flate2::Crc::new();
    let mut buffer = vec![0; 128 << 10];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((size, crc.sum()));
        }
        crc.update(&buffer[..n]);
        size += n as u64;
    }
}
