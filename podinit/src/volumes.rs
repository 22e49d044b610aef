//! Opening volumes: a disposable process in podd's own mount namespace touches the paths, so that one that hangs
//! (NFS, CIFS) costs podd nothing but this process.
//!
//! podd starts it as `podd-volumes` with a socket as fd 3. Both sides come from the same podd.
//!
//! ```text
//! request := flags:u32 path NUL          1: with submounts   2: create a missing directory
//! reply   := errno:u32 kind:u32          kind 0: directory, 1: anything else; with the mount as fd unless errno
//! ```

use core::ffi::CStr;
use podinit::volume::{CREATE, MAX_REQUEST, RECURSIVE};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, mkdir, statat};
use rustix::mount::{OpenTreeFlags, open_tree};
use sys::{Errno, Result};

/// Answers requests until the socket closes.
pub fn serve() -> Result<()> {
    let podd = sys::rt::inherited(3)?;
    let (mut request, mut fds) = ([0u8; MAX_REQUEST], alloc::vec::Vec::new());
    loop {
        let n = sys::fdpass::receive(&podd, &mut request, &mut fds)?;
        let Some((flags, path)) = request[..n].split_first_chunk::<4>() else {
            return Ok(());
        };
        let path = CStr::from_bytes_with_nul(path).map_err(|_| Errno::INVAL)?;
        let opened = open(path, u32::from_le_bytes(*flags));
        let (errno, kind) = match &opened {
            Ok((_, kind)) => (0, *kind),
            Err(errno) => (errno.raw_os_error().unsigned_abs(), 0),
        };
        let mut reply = [0u8; 8];
        reply[..4].copy_from_slice(&errno.to_le_bytes());
        reply[4..].copy_from_slice(&kind.to_le_bytes());
        let mount = opened.ok().map(|(mount, _)| mount);
        let fds: alloc::vec::Vec<_> = mount.iter().map(AsFd::as_fd).collect();
        sys::fdpass::send(&podd, &reply, &fds)?;
    }
}

fn open(path: &CStr, flags: u32) -> Result<(OwnedFd, u32)> {
    let mut how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if flags & RECURSIVE != 0 {
        how |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = match open_tree(CWD, path, how) {
        // The CRI asks for an error, but kubelets rely on containerd and CRI-O, which create the directory.
        Err(Errno::NOENT) if flags & CREATE != 0 => {
            create_directories(path)?;
            open_tree(CWD, path, how)?
        }
        other => other?,
    };
    let stat = statat(&mount, c"", AtFlags::EMPTY_PATH)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok((mount, u32::from(!directory)))
}

fn create_directories(path: &CStr) -> Result<()> {
    let bytes = path.to_bytes();
    let ends = (1..=bytes.len()).filter(|end| *end == bytes.len() || bytes[*end] == b'/');
    for end in ends {
        match mkdir(&bytes[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
