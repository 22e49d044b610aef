//! Gives everything in a volume an SELinux context.
//!
//! What is in a volume may be hostile and may change meanwhile: everything is met by the descriptor of its directory, no
//! link is followed, and no other mount is entered.

use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, XattrFlags, getxattr, openat2, seek, setxattr,
    stat,
};
use sys::{Errno, Result};

/// Where the labels of a node's own files are: given a container's they would lock the node out of itself. The same
/// places as in other runtimes.
const NEVER: [&CStr; 26] = [
    c"/",
    c"/bin",
    c"/boot",
    c"/dev",
    c"/etc",
    c"/etc/passwd",
    c"/etc/pki",
    c"/etc/shadow",
    c"/home",
    c"/lib",
    c"/lib64",
    c"/media",
    c"/mnt",
    c"/opt",
    c"/proc",
    c"/root",
    c"/run",
    c"/sbin",
    c"/srv",
    c"/sys",
    c"/tmp",
    c"/usr",
    c"/var",
    c"/var/lib",
    c"/var/log",
    c"/var/tmp",
];
/// How deep directories may be nested: each that is open costs a descriptor.
const DEEPEST: usize = 512;
const ATTRIBUTE: &CStr = c"security.selinux";

/// Whether a place is the node's, by whatever path it was reached.
pub fn forbidden(place: &OwnedFd) -> Result<bool> {
    let own = rustix::fs::fstat(place)?;
    // What is not there cannot be meant.
    let mut others = NEVER.iter().filter_map(|path| stat(*path).ok());
    Ok(others.any(|other| (other.st_dev, other.st_ino) == (own.st_dev, own.st_ino)))
}

/// Gives `place`, and what is below it on the same mount, the context; the top comes last. A file system that has no
/// labels needs none.
pub fn relabel(place: &OwnedFd, directory: bool, context: &CStr) -> Result<()> {
    let done = if directory {
        openat2(place, c".", DIRECTORY, Mode::empty(), BELOW).and_then(|top| tree(top, context))
    } else {
        label(place.as_fd(), context)
    };
    match done {
        Err(Errno::OPNOTSUPP) => Ok(()),
        done => done,
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const ANYTHING: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BELOW: ResolveFlags = ResolveFlags::NO_XDEV.union(ResolveFlags::NO_MAGICLINKS);

fn tree(top: OwnedFd, context: &CStr) -> Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut open: Vec<OwnedFd> = Vec::new();
    open.push(top);
    while let Some(directory) = open.last() {
        match next_below(directory, &mut buffer, context)? {
            Some(_) if open.len() == DEEPEST => return Err(Errno::LOOP),
            Some(below) => open.push(below),
            None => {
                label(directory.as_fd(), context)?;
                open.pop();
            }
        }
    }
    Ok(())
}

/// Labels the entries of a directory from where it was left, up to the next directory, which it returns.
fn next_below(
    directory: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
    context: &CStr,
) -> Result<Option<OwnedFd>> {
    let mut entries = RawDir::new(directory, buffer);
    while let Some(entry) = entries.next() {
        let (entry, name) = match &entry {
            Ok(entry) => (entry, entry.file_name()),
            Err(errno) => return Err(*errno),
        };
        if name == c"." || name == c".." {
            continue;
        }
        if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
            match openat2(directory, name, DIRECTORY, Mode::empty(), BELOW) {
                Ok(below) => {
                    // What the buffer holds further is read again.
                    seek(directory, SeekFrom::Start(entry.next_entry_cookie()))?;
                    return Ok(Some(below));
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(Errno::XDEV | Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            }
        }
        match openat2(directory, name, ANYTHING, Mode::empty(), BELOW) {
            Ok(file) => label(file.as_fd(), context)?,
            Err(Errno::XDEV | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// Labels what a descriptor, which may be good for nothing else, stands for. What has the label is left untouched, so
/// that a second container costs no writes.
fn label(file: BorrowedFd<'_>, context: &CStr) -> Result<()> {
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::INVAL)?;
    let mut now = [0u8; 256];
    let has = getxattr(&*path, ATTRIBUTE, &mut now).is_ok_and(|length| {
        let now = now.get(..length).unwrap_or_default();
        now.strip_suffix(b"\0").unwrap_or(now) == context.to_bytes()
    });
    if has {
        return Ok(());
    }
    setxattr(&*path, ATTRIBUTE, context.to_bytes(), XattrFlags::empty())
}
