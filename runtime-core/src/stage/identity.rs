//! Reads the container's account files, bounded, and resolves the identity of the process.

use super::root::Root;
use super::{About, Fault, Outcome};
use crate::accounts::{Accounts, UnknownName};
use crate::plan::{GroupsPolicy, UserRef};
use alloc::ffi::CString;
use alloc::vec::Vec;
use podinit::report::Identity;
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;

/// Largest account file that is read (CVE-2025-4437, CVE-2026-47262).
const MAX_FILE: usize = 1024 * 1024;

/// Who the process will be, and the HOME of its environment.
pub(crate) fn resolve(
    root: &Root,
    user: UserRef<'_>,
    group: UserRef<'_>,
    groups: &[u32],
    policy: GroupsPolicy,
) -> Outcome<(Identity, Option<CString>)> {
    let (passwd, group_file) = (
        read_bounded(root, "/etc/passwd")?,
        read_bounded(root, "/etc/group")?,
    );
    let accounts = Accounts {
        passwd: &passwd,
        group: &group_file,
    };
    let resolved = accounts
        .resolve(user, group, groups, policy)
        .map_err(|UnknownName(name)| Fault {
            errno: Errno::SRCH,
            subject: [b"user or group ", &name[..]].concat(),
        })?;
    let home = CString::new([b"HOME=".as_slice(), resolved.home].concat()).ok();
    Ok((resolved.identity, home))
}

fn read_bounded(root: &Root, path: &str) -> Outcome<Vec<u8>> {
    let file = match root.resolve(
        path.as_bytes(),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    ) {
        Ok(file) => file,
        Err(fault) if matches!(fault.errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
            return Ok(Vec::new());
        }
        Err(fault) => return Err(fault),
    };
    let stat = fstat(&file).about(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL).about(path);
    }
    let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    if size > MAX_FILE {
        return Err(Errno::FBIG).about(path);
    }
    let mut content = alloc::vec![0; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::read(&file, &mut content[filled..]).about(path)? {
            0 => break,
            n => filled += n,
        }
    }
    content.truncate(filled);
    Ok(content)
}
