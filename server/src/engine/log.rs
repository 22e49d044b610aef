//! The log file of a container, opened for podinit.
//!
//! The kubelet names the directory; what is in it a container may have made that has it as a volume.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat2};
use rustix::io::Errno;

use super::native::NativeError;
use crate::state::store::{Container, Pod};

const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o755;

/// Opens the log of a container, which may have none, for appending. It and its directories are made where missing;
/// no link is followed below the pod's log directory (CVE-2025-0750).
///
/// # Errors
/// The kernel refuses.
pub fn open_log(pod: &Pod, container: &Container) -> Result<Option<OwnedFd>, NativeError> {
    let (Some(directory), Some(path)) = (&pod.config.log_directory, &container.config.log_path) else {
        return Ok(None);
    };
    let (directory, path) = (Path::new(directory), Path::new(path));
    open_beneath(directory, path)
        .map(Some)
        .map_err(|source| NativeError::File {
            operation: "open the log",
            path: directory.join(path),
            source,
        })
}

fn open_beneath(directory: &Path, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match open(directory, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            fs::create_dir_all(directory)?;
            open(directory, flags, Mode::empty())?
        }
        opened => opened?,
    };
    let file = match open_file(root.as_fd(), path) {
        Err(Errno::NOENT) => {
            make_directories(root.as_fd(), path)?;
            open_file(root.as_fd(), path)?
        }
        opened => opened?,
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

fn open_file(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    // What is no regular file must not make podd wait for a reader.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::from_raw_mode(FILE_MODE), RESOLVE)
}

fn make_directories(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = root.try_clone_to_owned()?;
    for part in path.parent().into_iter().flatten() {
        match mkdirat(&here, part, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        here = openat2(&here, part, flags, Mode::empty(), RESOLVE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn directories_are_made_and_links_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, outside) = (dir.path().join("pods/logs"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        let file = open_beneath(&logs, Path::new("a/b/0.log")).unwrap();
        rustix::io::write(&file, b"x").unwrap();
        open_beneath(&logs, Path::new("a/b/0.log")).unwrap();
        assert_eq!(fs::read(logs.join("a/b/0.log")).unwrap(), b"x");
        symlink(&outside, logs.join("link")).unwrap();
        symlink(outside.join("file"), logs.join("file")).unwrap();
        for path in ["link/0.log", "link/c/0.log", "file"] {
            let refused = open_beneath(&logs, Path::new(path)).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::LOOP.raw_os_error()), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let device = open_beneath(Path::new("/dev"), Path::new("null")).unwrap_err();
        assert_eq!(device.to_string(), "it is not a regular file");
    }
}
