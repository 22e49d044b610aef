//! Removes directory trees of any depth with constant memory, stack and descriptors.
//!
//! A hostile layer or container can nest directories deeper than any stack or descriptor limit. So nothing recurses: a directory
//! that is not empty is moved up next to the tree's top and emptied in its turn. Flags that forbid removal, which a
//! container with CAP_LINUX_IMMUTABLE can set, are cleared on the way (FS_IOC_SETFLAGS, ioctl_iflags(2)).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;

const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes `parent/name`, whatever it is. A missing one is fine. `parent` must be private to the caller: siblings
/// named `<name>.<number>` come and go while this runs.
///
/// # Errors
/// The file system refused; what was not removed yet is still in `parent`.
pub fn erase_tree(parent: &Path, name: &str) -> io::Result<()> {
    let top = fs::open(parent, DIR, Mode::empty())?;
    if unlinked(top.as_fd(), name.as_bytes())? {
        return Ok(());
    }
    let mut moved = 0_u64;
    let mut queue = VecDeque::from([name.to_owned()]);
    while let Some(dir) = queue.pop_front() {
        empty(&top, name, &dir, &mut moved, &mut queue)?;
    }
    Ok(())
}

/// [`erase_tree`] within the store.
pub(super) fn erase(parent: &Path, name: &str) -> Result<(), Error> {
    erase_tree(parent, name).map_err(|e| Error::store("erase", parent.join(name), e))
}

fn empty(
    top: &OwnedFd,
    name: &str,
    dir: &str,
    moved: &mut u64,
    queue: &mut VecDeque<String>,
) -> Result<(), Errno> {
    loop {
        match fs::unlinkat(top, dir, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // EEXIST is the other name POSIX allows.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(Errno::PERM) if loosened(top.as_fd(), dir.as_bytes())? => continue,
            Err(e) => return Err(e),
        }
        let fd = fs::openat(top, dir, DIR, Mode::empty())?;
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let child = entry.file_name().to_bytes();
            if matches!(child, b"." | b"..") {
                continue;
            }
            if !unlinked(fd.as_fd(), child)? {
                *moved += 1;
                let up = format!("{name}.{moved}");
                fs::renameat(&fd, child, top, &*up)?;
                queue.push_back(up);
            }
        }
    }
}

/// False when `child` is a directory with something in it.
fn unlinked(dir: BorrowedFd<'_>, child: &[u8]) -> Result<bool, Errno> {
    match unlink(dir, child) {
        Err(Errno::PERM) if loosened(dir, child)? => unlink(dir, child),
        other => other,
    }
}

/// Clears the flags that keep an entry from being removed, its own and its directory's. Whether there were any.
fn loosened(dir: BorrowedFd<'_>, child: &[u8]) -> Result<bool, Errno> {
    let stat = fs::statat(dir, child, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut any = cleared(dir)?;
    // Nothing else has flags, and opening it might do something.
    if matches!(
        FileType::from_raw_mode(stat.st_mode),
        FileType::RegularFile | FileType::Directory
    ) {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        any |= cleared(fs::openat(dir, child, flags, Mode::empty())?.as_fd())?;
    }
    Ok(any)
}

fn cleared(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let forbidding = IFlags::IMMUTABLE | IFlags::APPEND;
    let flags = match fs::ioctl_getflags(file) {
        // A file system without flags.
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => return Ok(false),
        flags => flags?,
    };
    if !flags.intersects(forbidding) {
        return Ok(false);
    }
    fs::ioctl_setflags(file, flags - forbidding)?;
    Ok(true)
}

fn unlink(dir: BorrowedFd<'_>, child: &[u8]) -> Result<bool, Errno> {
    match fs::unlinkat(dir, child, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    match fs::unlinkat(dir, child, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // What the first answer meant, where it is no directory.
        Err(Errno::NOTDIR) => Err(Errno::PERM),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_trees_deeper_than_any_path() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("t")).unwrap();
        let mut here = fs::open(base.path().join("t"), DIR, Mode::empty()).unwrap();
        for i in 0..3000 {
            fs::mkdirat(&here, "directory-with-a-name", Mode::RWXU).unwrap();
            fs::symlinkat("/etc", &here, "link").unwrap();
            if i % 100 == 0 {
                fs::mkdirat(&here, "other", Mode::RWXU).unwrap();
            }
            here = fs::openat(&here, "directory-with-a-name", DIR, Mode::empty()).unwrap();
        }
        std::fs::write(base.path().join("kept"), "").unwrap();
        erase(base.path(), "t").unwrap();
        erase(base.path(), "t").unwrap();
        let left: Vec<_> = std::fs::read_dir(base.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["kept"]);
        erase(base.path(), "kept").unwrap();
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn flags_that_forbid_removal_are_cleared() {
        // Beside the executable: /tmp may be a tmpfs, which knows flags since Linux 6.6 only.
        let exe = std::env::current_exe().unwrap();
        let base = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
        let tree = base.path().join("t");
        std::fs::create_dir_all(tree.join("frozen/deep")).unwrap();
        std::fs::create_dir(tree.join("empty")).unwrap();
        let files = ["a", "frozen/b", "frozen/deep/c"].map(|file| tree.join(file));
        files.iter().for_each(|file| std::fs::write(file, "").unwrap());
        let set = |path: &Path, flag: IFlags| {
            let file = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            fs::ioctl_setflags(&file, fs::ioctl_getflags(&file)? | flag)
        };
        if set(&files[0], IFlags::IMMUTABLE).is_err() {
            eprintln!("skipped: this file system or user has no flags");
            return;
        }
        set(&files[1], IFlags::APPEND).unwrap();
        for (name, flag) in [
            ("frozen/deep", IFlags::APPEND),
            ("frozen", IFlags::IMMUTABLE),
            ("empty", IFlags::IMMUTABLE | IFlags::APPEND),
            ("", IFlags::APPEND),
        ] {
            set(&tree.join(name), flag).unwrap();
        }
        assert!(std::fs::remove_dir_all(&tree).is_err());
        erase(base.path(), "t").unwrap();
        std::fs::write(base.path().join("f"), "").unwrap();
        set(&base.path().join("f"), IFlags::IMMUTABLE).unwrap();
        erase(base.path(), "f").unwrap();
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
