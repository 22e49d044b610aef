//! User namespaces of pods: made by a disposable process, mapped from here, kept as a descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen, open_tree,
};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use sys::mount::{Change, set_attributes};

use super::Programs;
use super::helper::Helper;

/// A range of ids that begins with 0 in the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The host's number of 0.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// What pods with user namespaces can have on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserNamespaces {
    /// Volumes on tmpfs (Linux 6.3), which is where the kubelet keeps secrets and tokens.
    pub tmpfs: bool,
}

/// Why pods cannot have user namespaces.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No namespace can be made or given ids.
    #[error("the kernel makes no user namespace ({source}){}", hint(.source))]
    Make {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file system of the image layers cannot show them with other ids.
    #[error("the file system of {path} has no id-mapped mounts ({source})")]
    Store {
        /// podd's state directory.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What an operator can look at, by what user_namespaces(7) says of the kernel's answer.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::PERM) => ": below a chroot it makes none",
        Some(rustix::io::Errno::NOSPC) => ": is user.max_user_namespaces 0?",
        _ => "",
    }
}

/// Makes a user namespace with these ids.
///
/// # Errors
/// The kernel refuses the namespace, or ids that podd does not have itself.
pub fn user_namespace(programs: &Programs, users: IdRange, groups: IdRange) -> io::Result<OwnedFd> {
    let helper = Helper::start(programs.podinit(), programs.null(), &[c"podd-users"], &[])?;
    let mapped = map(&helper, users, groups);
    let _ = pidfd_send_signal(&helper.pidfd, Signal::KILL);
    waitid(WaitId::PidFd(helper.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    mapped
}

fn map(helper: &Helper, users: IdRange, groups: IdRange) -> io::Result<OwnedFd> {
    let (mut word, mut fds) = ([0u8; 16], Vec::new());
    let length = sys::fdpass::receive(&helper.socket, &mut word, &mut fds)?;
    let Some(namespace) = fds.pop() else {
        // Without a namespace comes the number of the kernel's refusal, or nothing from a helper that died.
        let errno = word.get(..length).and_then(|said| said.try_into().ok());
        return Err(match errno {
            Some(errno) => io::Error::from_raw_os_error(i32::from_le_bytes(errno)),
            None => io::ErrorKind::UnexpectedEof.into(),
        });
    };
    for (file, range) in [("uid_map", users), ("gid_map", groups)] {
        let line = format!("0 {} {}", range.host, range.length);
        std::fs::write(format!("/proc/{}/{file}", helper.pid), line)?;
    }
    Ok(namespace)
}

/// Tries what such a pod needs: a namespace, and layers with its ids.
///
/// # Errors
/// What is missing.
pub fn probe_user_namespaces(programs: &Programs, store: &Path) -> Result<UserNamespaces, ProbeError> {
    let range = IdRange {
        host: 65536,
        length: 65536,
    };
    let users = user_namespace(programs, range, range).map_err(|source| ProbeError::Make { source })?;
    let layers = || -> io::Result<()> {
        let path = CString::new(store.as_os_str().as_bytes())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(idmap(open_tree(CWD, &path, flags)?.as_fd(), users.as_fd())?)
    };
    layers().map_err(|source| ProbeError::Store {
        path: store.display().to_string(),
        source,
    })?;
    let tmpfs = || -> sys::Result<()> {
        let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        idmap(mount.as_fd(), users.as_fd())
    };
    Ok(UserNamespaces {
        tmpfs: tmpfs().is_ok(),
    })
}

fn idmap(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> sys::Result<()> {
    let change = Change {
        idmap: Some(users),
        ..Change::default()
    };
    set_attributes(mount, c"", &change)
}
