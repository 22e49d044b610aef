//! The lowest layer of every container's root: empty mount points for what each container gets.
//!
//! Images seldom have them, and to make them in the layer that the container writes is the greater part of what is written
//! there: overlayfs copies a directory before it makes a file in it. An image that has them, or something else in their
//! place, hides these.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use super::native::NativeError;
use crate::spec::podfiles;

/// Its name among the layers, whose own names are numbers.
pub const NAME: &str = "skeleton";

/// Where file systems are mounted, and the files of the pod.
const DIRECTORIES: [&str; 4] = ["dev", "etc", "proc", "sys"];

/// Makes what is missing of it among the `layers`. Blocks.
///
/// # Errors
/// The file system refuses, or somebody has put something else there.
pub fn make(layers: &Path) -> Result<(), NativeError> {
    let root = layers.join(NAME);
    directory(&root)?;
    for name in DIRECTORIES {
        directory(&root.join(name))?;
    }
    for name in podfiles::NAMES {
        file(&root.join("etc").join(name))?;
    }
    Ok(())
}

fn directory(path: &Path) -> Result<(), NativeError> {
    let made = match DirBuilder::new().mode(0o755).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    };
    finish(path, 0o755, fs::Metadata::is_dir, made)
}

fn file(path: &Path) -> Result<(), NativeError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o644);
    finish(path, 0o644, fs::Metadata::is_file, options.open(path).map(drop))
}

/// Whatever the umask was, and whatever was there before.
fn finish(
    path: &Path,
    mode: u32,
    expected: fn(&fs::Metadata) -> bool,
    made: io::Result<()>,
) -> Result<(), NativeError> {
    let done = made.and_then(|()| {
        if !expected(&fs::symlink_metadata(path)?) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    });
    done.map_err(|source| NativeError::File {
        operation: "make",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_made_and_nothing_else_is_taken() {
        let layers = tempfile::tempdir().unwrap();
        make(layers.path()).unwrap();
        let etc = layers.path().join(NAME).join("etc");
        fs::remove_file(etc.join("hosts")).unwrap();
        fs::write(etc.join("hostname"), "x").unwrap();
        make(layers.path()).unwrap();
        for name in podfiles::NAMES {
            let found = fs::metadata(etc.join(name)).unwrap();
            assert_eq!((found.len(), found.permissions().mode() & 0o7777), (0, 0o644));
        }
        fs::remove_file(etc.join("hosts")).unwrap();
        fs::create_dir(etc.join("hosts")).unwrap();
        assert!(make(layers.path()).is_err());
    }
}
