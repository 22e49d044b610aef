//! Opening volumes: a disposable process in podd's own mount namespace touches the paths, so that one that hangs
//! (NFS, CIFS) costs podd nothing but this process.
//!
//! podd starts it as `podd-volumes` with a socket as fd 3. Both sides come from the same podd.
//!
//! ```text
//! request := flags:u32 path NUL context NUL   1: with submounts   2: create a missing directory
//!                                             context: the SELinux context that everything in it gets, or empty
//! reply   := errno:u32 kind:u32 id:u64        kind 0: directory, 1: anything else; with the mount as fd unless errno;
//!                                             with errno: what failed (volume.rs)
//!                                             id: number of the mount that the path is on, as mountinfo shows it
//! ```

use core::ffi::CStr;
use podinit::volume::{CREATE, FORBIDDEN, MAX_REQUEST, OPEN, RECURSIVE, RELABEL, REPLY};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, StatxFlags, mkdir, statx};
use rustix::mount::{OpenTreeFlags, open_tree};
use sys::{Errno, Result};

use crate::relabel::{forbidden, relabel};

/// Answers requests until the socket closes.
pub fn serve() -> Result<()> {
    let podd = sys::rt::inherited(3)?;
    let (mut request, mut fds) = ([0u8; MAX_REQUEST], alloc::vec::Vec::new());
    loop {
        let n = sys::fdpass::receive(&podd, &mut request, &mut fds)?;
        let Some((flags, path)) = request[..n].split_first_chunk::<4>() else {
            return Ok(());
        };
        let (path, context) = texts(path).ok_or(Errno::INVAL)?;
        let opened = open(path, u32::from_le_bytes(*flags), context);
        let (errno, kind, id) = match &opened {
            Ok(found) => (0, found.kind, found.on),
            Err((what, errno)) => (errno.raw_os_error().unsigned_abs(), *what, 0),
        };
        let mut reply = [0u8; REPLY];
        reply[..4].copy_from_slice(&errno.to_le_bytes());
        reply[4..8].copy_from_slice(&kind.to_le_bytes());
        reply[8..].copy_from_slice(&id.to_le_bytes());
        let fds: alloc::vec::Vec<_> = opened.iter().map(|found| found.mount.as_fd()).collect();
        sys::fdpass::send(&podd, &reply, &fds)?;
    }
}

fn texts(bytes: &[u8]) -> Option<(&CStr, &CStr)> {
    let path = CStr::from_bytes_until_nul(bytes).ok()?;
    let rest = bytes.get(path.count_bytes() + 1..)?;
    Some((path, CStr::from_bytes_with_nul(rest).ok()?))
}

struct Opened {
    mount: OwnedFd,
    kind: u32,
    /// The mount that it was cloned from.
    on: u64,
}

/// Resolves the path once; what is cloned is what was looked at.
fn open(path: &CStr, flags: u32, context: &CStr) -> core::result::Result<Opened, (u32, Errno)> {
    let opening = |errno| (OPEN, errno);
    let place = find(path, flags).map_err(opening)?;
    let wanted = StatxFlags::TYPE | StatxFlags::MNT_ID;
    let stat = statx(&place, c"", AtFlags::EMPTY_PATH, wanted).map_err(opening)?;
    let directory = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
    if !context.is_empty() {
        if forbidden(&place).map_err(opening)? {
            return Err((FORBIDDEN, Errno::PERM));
        }
        relabel(&place, directory, context).map_err(|errno| (RELABEL, errno))?;
    }
    let mut how =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if flags & RECURSIVE != 0 {
        how |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(Opened {
        mount: open_tree(&place, c"", how).map_err(opening)?,
        kind: u32::from(!directory),
        on: stat.stx_mnt_id,
    })
}

fn find(path: &CStr, flags: u32) -> Result<OwnedFd> {
    match open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC) {
        // The CRI asks for an error, but kubelets rely on containerd and CRI-O, which create the directory.
        Err(Errno::NOENT) if flags & CREATE != 0 => {
            create_directories(path)?;
            open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)
        }
        found => found,
    }
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
