//! Removes directory trees of any depth with constant memory, stack and descriptors.
//!
//! A hostile layer or container can nest directories deeper than any stack or descriptor limit. So nothing recurses: a directory
//! that is not empty is moved up next to the tree's top and emptied in its turn.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, Mode, OFlags};
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
    match fs::unlinkat(&top, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
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
    match fs::unlinkat(dir, child, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    match fs::unlinkat(dir, child, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
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
}
