//! Makes directories, files, links and devices from entries.
//!
//! Works on an opened parent and a single name that is never followed. A new object is made first and only when the
//! name is taken is the old one looked at, so the common case is one system call per step.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Dev, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::name::clean;
use super::tree::{at, is_whiteout, kind};
use super::{DISK_BLOCK, Unpacker, join};
use crate::config::Durability;
use crate::error::Error;
use crate::tar::{Entry, Kind, TarReader, bad, printable};

impl Unpacker {
    pub(super) fn directory(&mut self, parent: &[u8], base: &[u8], entry: &Entry) -> Result<(), Error> {
        let dir = self.tree.parent(parent)?;
        let path = join(parent, base);
        let mut opaque = false;
        loop {
            match fs::mkdirat(&dir, base, Mode::from_raw_mode(0o700)) {
                Ok(()) => {
                    self.inodes += 1;
                    self.bytes += DISK_BLOCK;
                    break;
                }
                Err(Errno::EXIST) => {
                    let stat = fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|e| at("stat", &path, e))?;
                    if kind(&stat) == FileType::Directory {
                        break;
                    }
                    // Hidden below and made anew by this layer: nothing of the lower directory may show.
                    opaque |= is_whiteout(&stat);
                    self.clear(dir.as_fd(), base, &path)?;
                }
                Err(e) => return Err(at("make directory", &path, e)),
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made =
            fs::openat(&dir, base, flags, Mode::empty()).map_err(|e| at("open directory", &path, e))?;
        self.tree.described(made.as_fd(), &path)?;
        if opaque {
            fs::fsetxattr(&made, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(|e| at("set opaque on", &path, e))?;
        }
        set_owner(made.as_fd(), entry, &path)?;
        fs::fchmod(&made, Mode::from_raw_mode(entry.mode)).map_err(|e| at("chmod", &path, e))?;
        set_xattrs(made.as_fd(), entry, &path)?;
        self.inherits_group |= entry.mode & 0o2000 != 0;
        self.deferred_bytes += path.len() as u64 + 64;
        self.deferred.push((path, entry.mtime));
        Ok(())
    }

    pub(super) fn file<R: Read>(
        &mut self,
        parent: &[u8],
        base: &[u8],
        entry: &Entry,
        tar: &mut TarReader<R>,
    ) -> Result<(), Error> {
        let dir = self.tree.parent(parent)?;
        let path = join(parent, base);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = loop {
            match fs::openat(&dir, base, flags, Mode::from_raw_mode(0o600)) {
                Ok(fd) => break fd,
                Err(Errno::EXIST) => {
                    self.clear(dir.as_fd(), base, &path)?;
                }
                Err(e) => return Err(at("create", &path, e)),
            }
        };
        self.inodes += 1;
        self.bytes += entry.size.div_ceil(DISK_BLOCK) * DISK_BLOCK;
        let checksum = copy(&file, tar, &path)?;
        if self.inherits_group || entry.uid != 0 || entry.gid != 0 {
            set_owner(file.as_fd(), entry, &path)?;
        }
        // After chown, which clears the setuid bits, and before the attributes, which chown would clear too.
        fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(|e| at("chmod", &path, e))?;
        set_xattrs(file.as_fd(), entry, &path)?;
        fs::futimens(&file, &times(entry.mtime)).map_err(|e| at("set time of", &path, e))?;
        if self.durability == Durability::PerFile {
            fs::fdatasync(&file).map_err(|e| at("flush", &path, e))?;
        }
        self.sums
            .add(&path, entry.size, checksum)
            .map_err(|e| Error::store("write checksums of", printable(&path), e))
    }

    pub(super) fn hard_link(&mut self, parent: &[u8], base: &[u8], entry: &Entry) -> Result<(), Error> {
        let path = join(parent, base);
        let target = clean(&entry.link).map_err(|_| Error::EntryEscapes {
            path: printable(&entry.link),
        })?;
        let Some((target_base, target_parent)) = target.split_last() else {
            return Err(bad(&format!("hard link {} to the layer root", printable(&path))));
        };
        if target_base.starts_with(b".wh.") {
            return Err(bad(&format!("hard link {} to a whiteout", printable(&path))));
        }
        let target_parent = target_parent.join(&b'/');
        // Not `parent()`: a link to something that is not there must not make directories.
        let from = self
            .tree
            .open(&target_parent, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| at("find the target of hard link", &path, e))?;
        let dir = self.tree.parent(parent)?;
        loop {
            match fs::linkat(&from, *target_base, &dir, base, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {
                    let a = fs::statat(&from, *target_base, AtFlags::SYMLINK_NOFOLLOW);
                    let b = fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW);
                    if let (Ok(a), Ok(b)) = (a, b)
                        && (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
                    {
                        return Ok(());
                    }
                    self.clear(dir.as_fd(), base, &path)?;
                }
                Err(Errno::PERM) => {
                    let path = printable(&path);
                    return Err(Error::UnsupportedEntry {
                        path,
                        reason: "hard link to a directory",
                    });
                }
                Err(e) => return Err(at("hard link", &path, e)),
            }
        }
    }

    fn clear(&mut self, dir: BorrowedFd<'_>, base: &[u8], path: &[u8]) -> Result<(), Error> {
        self.tree.clear(dir, base, path)?;
        self.sums
            .replaced(path)
            .map_err(|e| Error::store("write checksums of", printable(path), e))
    }

    /// Symbolic links, devices and fifos.
    pub(super) fn special(&mut self, parent: &[u8], base: &[u8], entry: &Entry) -> Result<(), Error> {
        let dir = self.tree.parent(parent)?;
        let path = join(parent, base);
        loop {
            match make_special(dir.as_fd(), base, entry) {
                Ok(()) => break,
                Err(Errno::EXIST) => {
                    self.clear(dir.as_fd(), base, &path)?;
                }
                Err(e) => return Err(at("make", &path, e)),
            }
        }
        self.inodes += 1;
        fs::chownat(
            &dir,
            base,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| at("chown", &path, e))?;
        if entry.kind != Kind::Symlink {
            // chmodat follows links, but what was just made with O_EXCL semantics is none.
            fs::chmodat(&dir, base, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(|e| at("chmod", &path, e))?;
        }
        fs::utimensat(&dir, base, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| at("set time of", &path, e))
    }
}

fn make_special(dir: BorrowedFd<'_>, base: &[u8], entry: &Entry) -> Result<(), Errno> {
    let (kind, device): (FileType, Dev) = match entry.kind {
        Kind::CharDevice => (
            FileType::CharacterDevice,
            fs::makedev(entry.device.0, entry.device.1),
        ),
        Kind::BlockDevice => (FileType::BlockDevice, fs::makedev(entry.device.0, entry.device.1)),
        Kind::Fifo => (FileType::Fifo, 0),
        Kind::Symlink | Kind::File | Kind::HardLink | Kind::Directory => {
            return fs::symlinkat(&*entry.link, dir, base);
        }
    };
    fs::mknodat(dir, base, kind, Mode::from_raw_mode(0o600), device)
}

fn set_owner(fd: BorrowedFd<'_>, entry: &Entry, path: &[u8]) -> Result<(), Error> {
    fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(|e| at("chown", path, e))
}

/// `security.capability` and `user.*` are content. The rest (`trusted.*`, `security.selinux`, …) belongs to the node.
fn set_xattrs(fd: BorrowedFd<'_>, entry: &Entry, path: &[u8]) -> Result<(), Error> {
    for (name, value) in &entry.xattrs {
        let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !user && name != b"security.capability" {
            continue;
        }
        match fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
            Ok(()) => {}
            // Not every file system has user attributes; containerd goes on as well.
            Err(Errno::OPNOTSUPP) if user => {}
            Err(e) => return Err(at("set attribute of", path, e)),
        }
    }
    Ok(())
}

pub(super) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Writes the data of the current entry and returns its CRC-32.
fn copy<R: Read>(file: &OwnedFd, tar: &mut TarReader<R>, path: &[u8]) -> Result<u32, Error> {
    let mut crc = flate2::Crc::new();
    loop {
        let mut data = tar.data()?;
        if data.is_empty() {
            break;
        }
        crc.update(data);
        while !data.is_empty() {
            match rustix::io::write(file, data) {
                Ok(n) => data = &data[n..],
                Err(Errno::INTR) => {}
                Err(e) => return Err(at("write", path, e)),
            }
        }
    }
    Ok(crc.sum())
}
