//! The process itself: limits, identity, terminal, program.

use super::{About, Fault, Outcome, Stage, mounts};
use crate::plan::{Caps, FileKind, TerminalSize};
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;
use podinit::report::{Identity, Report};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, accessat, chownat, fchown, fstat, mkdirat,
    openat, stat,
};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Winsize, tcsetwinsize};
use sys::privilege::{Privilege, set_capabilities, set_identity, set_privilege};

pub(crate) fn write_file(path: &CStr, content: &[u8]) -> Outcome {
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).about(path.to_bytes())?;
    match rustix::io::write(&file, content).about(path.to_bytes())? {
        n if n == content.len() => Ok(()),
        _ => Err(Errno::IO).about(path.to_bytes()),
    }
}

pub(crate) fn oom_score_adj(value: i32) -> Outcome {
    write_file(c"/proc/self/oom_score_adj", alloc::format!("{value}").as_bytes())
}

/// A session, and a keyring for it: the one inherited is podd's, and would be that of all containers.
pub(crate) fn session() -> Outcome {
    rustix::process::setsid().about("setsid")?;
    match sys::privilege::new_session_keyring() {
        // A kernel without keys has none to share.
        Err(Errno::NOSYS) => Ok(()),
        made => made.about("session keyring"),
    }
}

/// The nest's procfs is the host's, and shows each process the sysctls of its own namespaces.
pub(crate) fn sysctl(key: &CStr, value: &CStr) -> Outcome {
    let path = [b"/proc/sys/".as_slice(), key.to_bytes()].concat();
    let path = CString::new(path).map_err(|_| Fault {
        errno: Errno::INVAL,
        subject: key.to_bytes().to_vec(),
    })?;
    write_file(&path, value.to_bytes())
}

pub(crate) fn work_dir(path: &CStr, create: bool) -> Outcome {
    match rustix::process::chdir(path) {
        Err(Errno::NOENT) if create => {
            super::Root::open()?.create_directories(path.to_bytes())?;
            rustix::process::chdir(path).about(path.to_bytes())?;
        }
        other => other.about(path.to_bytes())?,
    }
    // A directory outside the root has a path that does not start with / (CVE-2024-21626).
    let at = rustix::process::getcwd(Vec::new()).about(path.to_bytes())?;
    if at.to_bytes().first() == Some(&b'/') {
        Ok(())
    } else {
        Err(Errno::NOENT).about(path.to_bytes())
    }
}

/// Makes a directory for the process, unless something has its name.
pub(crate) fn own_directory(root: &super::Root, path: &CStr, identity: &Identity) -> Outcome {
    let (parent, name) = root.parent(path)?;
    match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(errno) => return Err(errno).about(path.to_bytes()),
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    chownat(&parent, name, Some(uid), Some(gid), flags).about(path.to_bytes())
}

/// Says which profile the next `execve` gets, and reads it back: a write that did not count must not go unnoticed.
pub(crate) fn apparmor(label: &CStr) -> Outcome {
    let command = [b"exec ".as_slice(), label.to_bytes()].concat();
    for path in [
        c"/proc/thread-self/attr/apparmor/exec",
        c"/proc/thread-self/attr/exec",
    ] {
        match set_label(path, &command, label) {
            Err(fault) if fault.errno == Errno::NOENT && !exists(path) => {}
            done => return done,
        }
    }
    Err(Errno::NOENT).about(label.to_bytes())
}

/// Sets an SELinux attribute, `exec` or `keycreate`, and reads it back.
pub(crate) fn selinux(file: &CStr, context: &CStr) -> Outcome {
    set_label(file, context.to_bytes(), context)
}

/// Writes `command` to a file of this process's labels, which then has to show `label`.
fn set_label(path: &CStr, command: &[u8], label: &CStr) -> Outcome {
    let labelled = |errno| Fault {
        errno,
        subject: label.to_bytes().to_vec(),
    };
    write_file(path, command).map_err(|fault| labelled(fault.errno))?;
    let mut shown = [0u8; 1024];
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let length = rustix::io::read(&file.about(path.to_bytes())?, &mut shown).about(path.to_bytes())?;
    // Behind it AppArmor has the mode in parentheses, SELinux a zero byte.
    match shown[..length].strip_prefix(label.to_bytes()) {
        Some([] | [b'\n' | 0, ..] | [b' ', b'(', ..]) => Ok(()),
        _ => Err(labelled(Errno::PERM)),
    }
}

/// Gives a path of the nest an SELinux context.
pub(crate) fn relabel(path: &CStr, context: &CStr) -> Outcome {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, c"security.selinux", context.to_bytes(), flags).about(path.to_bytes())
}

fn exists(path: &CStr) -> bool {
    stat(path).is_ok()
}

/// Finds a program as execvp(3) does, and says why not before anything depends on it.
pub(crate) fn find_program(name: &CStr, path: &CStr) -> Outcome<CString> {
    if name.is_empty() {
        return Err(Errno::NOENT).about("empty command");
    }
    if name.to_bytes().contains(&b'/') {
        executable(name).about(name.to_bytes())?;
        return Ok(name.into());
    }
    let mut denied = None;
    for directory in path.to_bytes().split(|byte| *byte == b':') {
        let directory: &[u8] = if directory.is_empty() { b"." } else { directory };
        let Ok(candidate) = CString::new([directory, b"/", name.to_bytes()].concat()) else {
            continue;
        };
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => denied = Some(Errno::ACCESS),
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or(Errno::NOENT)).about(name.to_bytes())
}

fn executable(path: &CStr) -> rustix::io::Result<()> {
    if FileType::from_raw_mode(stat(path)?.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::empty())
}

/// Capability that lets a process without no_new_privs install a seccomp filter.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Changes user and groups. The permitted set shrinks at `execve`: the bounding set decides what a root process
/// gets, the ambient set what others get. Until then CAP_SYS_ADMIN stays for the seccomp filter, so that nothing
/// but `execve` happens under it.
pub(crate) fn become_user(identity: &Identity, caps: Caps) -> Outcome {
    drop_bounding(!caps.bounding)?;
    if identity.uid != 0 {
        own_stdio(identity.uid, None)?;
    }
    set_privilege(Privilege::KeepCapabilities(true)).about("capabilities")?;
    set_identity(identity.uid, identity.gid, &identity.groups)
        .about(alloc::format!("user {}", identity.uid))?;
    let held = caps.permitted | caps.ambient | CAP_SYS_ADMIN;
    match set_capabilities(held, held, caps.inheritable | caps.ambient) {
        // podd itself may lack CAP_SYS_ADMIN or others: then what it has must do.
        Err(Errno::PERM) => set_capabilities(caps.permitted, caps.permitted, caps.inheritable),
        other => other,
    }
    .about("capabilities")?;
    for cap in (0..64).filter(|cap| caps.ambient & 1 << cap != 0) {
        set_privilege(Privilege::RaiseAmbient(cap)).about("ambient capabilities")?;
    }
    Ok(())
}

fn drop_bounding(caps: u64) -> Outcome {
    for cap in (0..64).filter(|cap| caps & 1 << cap != 0) {
        match set_privilege(Privilege::DropBounding(cap)) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno).about("capability bounding set"),
        }
    }
    Ok(())
}

/// Gives up every privilege, for a process that only waits.
pub(crate) fn become_nobody() -> Outcome {
    const NOBODY: u32 = 65534;
    drop_bounding(u64::MAX)?;
    match set_identity(NOBODY, NOBODY, &[]) {
        // A user namespace too small to have a nobody: its root without capabilities is as little.
        Err(Errno::INVAL) => set_identity(0, 0, &[]),
        other => other,
    }
    .about("user nobody")?;
    set_capabilities(0, 0, 0).about("capabilities")?;
    set_privilege(Privilege::NoNewPrivileges).about("no_new_privs")?;
    // A change of user resets it to fs.suid_dumpable.
    set_privilege(Privilege::Dumpable(false)).about("dumpable")
}

pub(crate) fn chown(path: &CStr, uid: u32, gid: u32) -> Outcome {
    rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).about(path.to_bytes())
}

/// Becomes root of the user namespace. Until then the process is the host's root, with all capabilities in the
/// namespace: only so may it be born in a cgroup that the host's root owns (EACCES for another user).
pub(crate) fn become_root() -> Outcome {
    // Who becomes root keeps what it has (capabilities(7)).
    set_identity(0, 0, &[]).about("root of the user namespace")
}

/// Gives the pipes and the terminal on stdio to a user, who can then open /dev/stdout again: the application, or the
/// root of its user namespace, which may give them on. Their group stays where there is none to give them to.
pub(crate) fn own_stdio(uid: u32, gid: Option<u32>) -> Outcome {
    for stdio in sys::rt::stdio() {
        let kind = FileType::from_raw_mode(fstat(stdio).about("stdio")?.st_mode);
        let terminal = kind == FileType::CharacterDevice && rustix::termios::isatty(stdio);
        if kind == FileType::Fifo || terminal {
            fchown(stdio, Some(Uid::from_raw(uid)), gid.map(Gid::from_raw)).about("stdio")?;
        }
    }
    Ok(())
}

impl Stage {
    /// Opens a terminal of the container's own devpts; its slave becomes stdio, the controlling terminal and
    /// /dev/console, its master goes to podinit.
    pub(crate) fn console(&mut self, size: TerminalSize) -> Outcome {
        let master = self
            .root
            .resolve(b"/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY)?;
        check_ptmx(master.as_fd())?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = unlockpt(&master)
            .and_then(|()| ioctl_tiocgptpeer(&master, flags))
            .about("terminal")?;
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::process::ioctl_tiocsctty(&slave)
            .and_then(|()| tcsetwinsize(&slave, size))
            .about("terminal")?;
        if self.owns_root {
            self.bind_console(&slave)?;
        }
        self.report(&Report::Console, &[master.as_fd()])?;
        dup2_stdin(&slave)
            .and_then(|()| dup2_stdout(&slave))
            .and_then(|()| dup2_stderr(&slave))
            .about("stdio")
    }

    fn bind_console(&self, slave: &OwnedFd) -> Outcome {
        use rustix::mount::{OpenTreeFlags, open_tree};
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let mount = open_tree(slave, c"", flags).about("/dev/console")?;
        let point = self.root.mount_point(c"/dev/console", FileKind::File)?;
        mounts::attach(mount.as_fd(), point.as_fd()).about("/dev/console")
    }

    /// Becomes the application. Returns only if it cannot.
    pub(crate) fn exec(&self, argv: &[&CStr], env: &[&CStr]) -> Outcome {
        let program = self.program.as_deref().ok_or(Errno::NOENT).about("program")?;
        let home = self
            .home
            .as_deref()
            .filter(|_| !env.iter().any(|entry| entry.to_bytes().starts_with(b"HOME=")));
        let env: Vec<&CStr> = env.iter().copied().chain(home).collect();
        sys::privilege::close_on_exec_from(3).about("fds")?;
        sys::privilege::set_umask(0o022);
        Err(Fault {
            errno: sys::exec::execve(program, argv, &env),
            subject: program.to_bytes().to_vec(),
        })
    }
}

/// /dev/pts/ptmx must be a terminal multiplexer of a devpts and nothing an image put there (CVE-2025-52565).
fn check_ptmx(master: BorrowedFd<'_>) -> Outcome {
    const DEVPTS: i64 = 0x1cd1;
    let device = fstat(master).about("/dev/pts/ptmx")?.st_rdev;
    let fs = rustix::fs::fstatfs(master).about("/dev/pts/ptmx")?.f_type;
    let real = (rustix::fs::major(device), rustix::fs::minor(device)) == (5, 2) && fs == DEVPTS;
    if real {
        Ok(())
    } else {
        Err(Errno::NOTTY).about("/dev/pts/ptmx")
    }
}
