//! Room for the end of things. To stop and remove a pod its record has to be written, which a full disk refuses, and then
//! nothing is left that could make room: so there is a file that takes some, and is given up for that.
//!
//! Owns this file. Knows nothing of records.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// A record takes a block of 4 KiB while its successor is written.
const SIZE: u64 = 1 << 20;

/// The file, or its place while the disk is full.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    there: Mutex<bool>,
}

impl Reserve {
    /// Makes the file, if there is room for it.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let reserve = Self {
            path,
            there: Mutex::new(false),
        };
        reserve.restore();
        reserve
    }

    /// Removes the file, if it is there still.
    pub fn give_up(&self) {
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut *there) {
            return;
        }
        match fs::remove_file(&self.path) {
            Ok(()) => tracing::error!(
                path = %self.path.display(),
                "the disk of the state directory is full: room that was kept for stopping and removing pods is used now"
            ),
            Err(e) => {
                tracing::error!(path = %self.path.display(), error = %e, "cannot give up reserved room")
            }
        }
    }

    /// Makes the file again, if there is room for it.
    pub fn restore(&self) {
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        if !*there {
            *there = self.allocate().is_ok();
            if !*there {
                // What a full disk has taken of it.
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, SIZE) {
            // Blocks that are written are taken as well.
            Err(Errno::OPNOTSUPP) => {
                let zeros = [0; 64 << 10];
                (0..SIZE / zeros.len() as u64).try_for_each(|_| file.write_all(&zeros))
            }
            done => Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn room_is_taken_given_up_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let taken = || fs::metadata(&path).map_or(0, |file| file.blocks() * 512);
        let reserve = Reserve::open(path.clone());
        assert!(taken() >= SIZE);
        reserve.give_up();
        reserve.give_up();
        assert_eq!(taken(), 0);
        reserve.restore();
        reserve.restore();
        assert!(taken() >= SIZE);
        // A podd that comes later.
        drop(reserve);
        drop(Reserve::open(path.clone()));
        assert!(taken() >= SIZE);
    }
}
