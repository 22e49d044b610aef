//! Files that are whole or absent, as long as the machine runs. Without fsync: they need not outlive it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::RecordError;

/// Writes a file beside its place and renames it over the one that is there.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
    let new = write_beside(dir, name, bytes)?;
    let place = dir.join(name);
    fs::rename(&new, &place).map_err(RecordError::io("replace", &place))
}

/// Writes a file beside its place and exchanges it for the one that is there, which is written over by the next.
///
/// So what changes often takes two files in all, and no block is taken or freed when it does. A rename over another file
/// would make ext4 write the new one to the disk at once (`auto_da_alloc`, ext4(5)).
pub(super) fn exchange(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
    let new = write_beside(dir, name, bytes)?;
    let place = dir.join(name);
    match renameat_with(CWD, &new, CWD, &place, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // There is nothing to exchange it for yet, or the file system cannot.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {
            fs::rename(&new, &place).map_err(RecordError::io("replace", &place))
        }
        Err(errno) => Err(RecordError::io("replace", &place)(errno.into())),
    }
}

/// Writes over the file that may be beside a place, and leaves none there that is not whole.
fn write_beside(dir: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, RecordError> {
    let new = dir.join(format!("{name}.new"));
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&new).map_err(RecordError::io("create", &new))?;
    let written = file
        .write_all(bytes)
        .and_then(|()| cut(&file, bytes.len() as u64));
    if let Err(e) = written {
        let _ = fs::remove_file(&new);
        return Err(RecordError::io("write", &new)(e));
    }
    Ok(new)
}

fn cut(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_last_content_is_in_place_whatever_its_length() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["long content", "short", "", "longer content than ever", "x"] {
            for write in [exchange, replace] {
                write(dir.path(), "a", content.as_bytes()).unwrap();
                assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), content);
            }
        }
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn what_changes_often_takes_two_files() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let inode = || fs::metadata(dir.path().join("a")).unwrap().ino();
        let mut seen = Vec::new();
        for content in ["1", "2", "3", "4"] {
            exchange(dir.path(), "a", content.as_bytes()).unwrap();
            seen.push(inode());
        }
        assert_eq!((seen[0], seen[1]), (seen[2], seen[3]));
        assert_eq!(names(dir.path()), ["a", "a.new"]);
    }

    #[test]
    fn a_place_that_is_taken_is_an_error_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        assert!(exchange(&dir.path().join("gone"), "a", b"x").is_err());
        fs::create_dir(dir.path().join("a")).unwrap();
        assert!(replace(dir.path(), "a", b"x").is_err());
        fs::remove_dir(dir.path().join("a")).unwrap();
        exchange(dir.path(), "a", b"y").unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"y");
    }
}
