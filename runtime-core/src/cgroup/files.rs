//! Single files of a cgroup, opened beneath its directory. Decides nothing.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Largest file read: cgroup.procs of a million processes.
const READ_MAX: usize = 16 << 20;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Opens a directory below `dir`; an empty path is `dir` itself.
pub(super) fn open_dir(dir: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    openat2(
        dir,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        BENEATH,
    )
}

/// Opens a file to read, as poll(2) needs it.
pub(super) fn open_read(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    openat2(
        dir,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
        BENEATH,
    )
}

/// Reads an open file from its beginning.
pub(super) fn read_all(file: impl AsFd) -> Result<String, Errno> {
    let mut bytes = vec![0; 4096];
    let mut filled = 0;
    loop {
        let offset = u64::try_from(filled).unwrap_or(u64::MAX);
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        let read = match rustix::io::pread(&file, rest, offset) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        filled += read;
        if read == 0 {
            bytes.truncate(filled);
            return String::from_utf8(bytes).map_err(|_| Errno::ILSEQ);
        }
        if filled == bytes.len() {
            if filled >= READ_MAX {
                return Err(Errno::FBIG);
            }
            bytes.resize(filled * 2, 0);
        }
    }
}

/// Reads a file.
pub(super) fn read(dir: impl AsFd, name: &str) -> Result<String, Errno> {
    read_all(open_read(dir, name)?)
}

/// Writes a value in one write(2), as the kernel parses it. Never creates a file.
pub(super) fn write(dir: impl AsFd, name: &str, value: &str) -> Result<(), Errno> {
    let file = openat2(
        dir,
        name,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        BENEATH,
    )?;
    loop {
        match rustix::io::write(&file, value.as_bytes()) {
            Err(Errno::INTR) => {}
            Ok(written) if written == value.len() => return Ok(()),
            Ok(_) => return Err(Errno::IO),
            Err(errno) => return Err(errno),
        }
    }
}

/// The number behind `key` in a flat keyed file such as memory.events.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    let value = |line: &str| {
        line.split_once(' ')
            .filter(|(name, _)| *name == key)
            .map(|(_, v)| v.trim().to_owned())
    };
    text.lines().find_map(value)?.parse().ok()
}
