//! `/proc/PID` of a process that may be hostile: every file is bounded in size, and what may block in time.
//!
//! All files of a process are opened below one descriptor of its directory, so that a pid that is used again is
//! never mixed up: the directory of a process that has ended answers ESRCH.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat};

/// Most bytes of a file that is one short line.
pub const LINE: u64 = 4096;

/// Most bytes of a file that grows with what a process has: groups, mounts.
pub const LARGE: u64 = 1 << 20;

/// How long one file may take to read. The command line of a process is in its memory, which it may keep from us.
const FILE: Duration = Duration::from_millis(200);

/// Runs `f`, which may block for ever in the kernel; `None` where it does not return in time. The thread is left
/// behind and ends with the tool.
pub fn within<T: Send + 'static>(limit: Duration, f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("reader".to_owned())
        .spawn(move || {
            let _ = sender.send(f());
        });
    thread.ok()?;
    receiver.recv_timeout(limit).ok()
}

/// The directory of a process.
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl Proc {
    /// Opens it.
    ///
    /// # Errors
    /// The process has ended.
    pub fn open(pid: i32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())?))
    }

    /// At most `most` bytes of a file.
    ///
    /// # Errors
    /// The process has ended, or it may not be read.
    pub fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        read(
            openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
            most,
        )
    }

    /// The same as text; what is not UTF-8 is replaced.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn text(&self, name: &str, most: u64) -> io::Result<String> {
        self.read(name, most)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// At most `most` bytes of a file that the process can make us wait for; `None` where it does.
    #[must_use]
    pub fn try_read(&self, name: &str, most: u64) -> Option<Vec<u8>> {
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let Ok(file) = file else { return Some(Vec::new()) };
        within(FILE, move || read(file, most).unwrap_or_default())
    }

    /// Where a link points to.
    ///
    /// # Errors
    /// The process has ended, or it may not be read.
    pub fn link(&self, name: &str) -> io::Result<String> {
        let target = readlinkat(&self.0, name, Vec::new())?;
        Ok(String::from_utf8_lossy(target.as_bytes()).into_owned())
    }

    /// The names in a directory, at most `most`.
    ///
    /// # Errors
    /// The process has ended, or it may not be read.
    pub fn entries(&self, name: &str, most: usize) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(openat(&self.0, name, flags, Mode::empty())?)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                if names.len() == most {
                    break;
                }
                names.push(name);
            }
        }
        Ok(names)
    }

    /// At most `most` bytes of a regular file of the process' root file system; nothing where there is none, where
    /// it is a mount of its own, or where it does not answer.
    #[must_use]
    pub fn try_read_in_root(&self, path: &'static str, most: u64) -> Vec<u8> {
        let root = openat(
            &self.0,
            "root",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let Ok(root) = root else { return Vec::new() };
        let bytes = within(FILE, move || -> io::Result<Vec<u8>> {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
            let file = openat2(
                &root,
                path,
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            )?;
            if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
                return Ok(Vec::new());
            }
            // By its descriptor, so that it is the file that was looked at: to open a FIFO or a device has effects.
            let same = format!("/proc/self/fd/{}", file.as_raw_fd());
            read(
                openat(CWD, same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
                most,
            )
        });
        bytes.and_then(Result::ok).unwrap_or_default()
    }
}

fn read(file: OwnedFd, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(file).take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The value of a line `Key:\tvalue` in a file like status.
#[must_use]
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn own() -> Proc {
        Proc::open(std::process::id().cast_signed()).unwrap()
    }

    #[test]
    fn files_are_bounded() {
        assert_eq!(own().read("status", 5).unwrap(), b"Name:");
        assert_eq!(
            field(&own().text("status", LARGE).unwrap(), "Tgid"),
            Some(std::process::id().to_string().as_str())
        );
        assert!(own().link("ns/mnt").unwrap().starts_with("mnt:["));
        assert!(own().read("no-such", LINE).is_err());
        assert_eq!(own().entries("ns", 3).unwrap().len(), 3);
    }

    #[test]
    fn files_of_the_root_are_regular_and_beneath_it() {
        assert!(own().try_read_in_root("etc/passwd", LARGE).starts_with(b"root:"));
        assert_eq!(own().try_read_in_root("etc/passwd", 4), b"root");
        assert!(own().try_read_in_root("dev/null", LARGE).is_empty());
        assert!(own().try_read_in_root("proc/self/status", LARGE).is_empty());
        assert!(own().try_read_in_root("etc", LARGE).is_empty());
    }

    #[test]
    fn what_blocks_is_given_up() {
        let begun = Instant::now();
        let late = within(Duration::from_millis(30), || {
            std::thread::sleep(Duration::from_secs(2))
        });
        assert!(late.is_none() && begun.elapsed() < Duration::from_secs(1));
        assert_eq!(within(Duration::from_secs(10), || 7), Some(7));
    }
}
