//! Unpacks one layer archive into one directory, ready to be an overlayfs lower layer.
//!
//! Owns the meaning of entries: whiteouts become character devices 0:0, opaque markers the attribute
//! `trusted.overlay.opaque`, everything else is made as described. The archive is hostile: see `tree` for how names
//! are resolved, `tar` for what is bounded. Never knows which image a layer belongs to, and never commits anything.
//!
//! Rules (OCI image-spec layer.md, and what docker and containerd do where that is silent):
//! * markers act on lower layers only, so their order within the archive does not matter;
//! * a later entry replaces an earlier one, but a directory stays and only takes the new metadata;
//! * missing parents are made 0755 root and remembered, so that the store can correct them per image;
//! * attributes: `security.capability` and `user.*` only; nothing that steers overlayfs.

mod name;
mod tree;
mod write;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::config::{Durability, Limits};
use crate::digest::Digest;
use crate::error::Error;
use crate::sums::SumsWriter;
use crate::tar::{Entry, Kind, TarReader, printable};
use name::Name;
use tree::{Tree, at};

/// Disk space is counted in units of this many bytes, the block size of the usual file systems.
const DISK_BLOCK: u64 = 4096;
/// Bound on names remembered until the end: deferred directory times and implicit parents.
const DEFERRED_BYTES: u64 = 64 << 20;

/// What came out of a layer.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed stream.
    pub diff_id: Digest,
    /// Disk bytes of files and directories, rounded up to blocks.
    pub bytes: u64,
    /// Inodes made.
    pub inodes: u64,
    /// Directories that no entry describes.
    pub implicit: Vec<Vec<u8>>,
}

/// Unpacks `archive` into `<work>/root` (which must exist and be empty) and writes checksums to `<work>/sums`.
/// On error the caller removes `work`.
pub(crate) fn unpack(
    archive: impl Read,
    work: &Path,
    limits: &Limits,
    durability: Durability,
) -> Result<Unpacked, Error> {
    let open = |path: &Path| {
        fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| Error::store("open", path, e))
    };
    let root = work.join("root");
    let sums_path = work.join("sums");
    let sums = File::create_new(&sums_path).map_err(|e| Error::store("create", &sums_path, e))?;
    let mut unpacker = Unpacker {
        tree: Tree::new(open(&root)?, open(work)?),
        sums: SumsWriter::new(sums).map_err(|e| Error::store("write", &sums_path, e))?,
        durability,
        bytes: 0,
        inodes: 0,
        entries: 0,
        deferred: Vec::new(),
        deferred_bytes: 0,
        inherits_group: false,
    };
    let mut tar = TarReader::new(archive, limits);
    while let Some(entry) = tar.next()? {
        unpacker.entry(&entry, &mut tar, limits)?;
    }
    let (diff_id, _) = tar.finish()?;
    unpacker.set_directory_times()?;
    unpacker
        .sums
        .finish(durability)
        .map_err(|e| Error::store("write", &sums_path, e))?;
    let inodes = unpacker.inodes + unpacker.tree.made;
    let bytes = unpacker.bytes + unpacker.tree.made * DISK_BLOCK;
    Ok(Unpacked {
        diff_id,
        bytes,
        inodes,
        implicit: unpacker.tree.into_implicit(),
    })
}

struct Unpacker {
    tree: Tree,
    sums: SumsWriter,
    durability: Durability,
    bytes: u64,
    inodes: u64,
    entries: u64,
    /// Directory times, set at the end because every later entry changes them.
    deferred: Vec<(Vec<u8>, (i64, u32))>,
    deferred_bytes: u64,
    /// A directory with the setgid bit was made: new files may not get root's group by themselves.
    inherits_group: bool,
}

impl Unpacker {
    fn entry<R: Read>(
        &mut self,
        entry: &Entry,
        tar: &mut TarReader<R>,
        limits: &Limits,
    ) -> Result<(), Error> {
        self.entries += 1;
        if self.entries + self.tree.made > limits.layer_inodes {
            return Err(Error::TooLarge {
                what: "inodes of a layer",
                limit: limits.layer_inodes,
            });
        }
        if self.deferred_bytes + self.tree.implicit_len() as u64 * 64 > DEFERRED_BYTES {
            return Err(Error::TooLarge {
                what: "bytes of directory names in a layer",
                limit: DEFERRED_BYTES,
            });
        }
        let xattrs: usize = entry.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        if xattrs > limits.xattr_bytes {
            let limit = limits.xattr_bytes as u64;
            return Err(Error::TooLarge {
                what: "bytes of extended attributes of a file",
                limit,
            });
        }
        let name = Name::of(&entry.path).map_err(|name::Escapes| Error::EntryEscapes {
            path: printable(&entry.path),
        })?;
        match name {
            // The root's own metadata is fixed (0755 root): overlayfs shows that of the container's upper directory.
            Name::Root | Name::Skip => Ok(()),
            Name::Opaque { parent } => {
                self.tree.parent(&parent)?;
                self.tree.set_opaque(&parent)
            }
            Name::Whiteout { parent, hidden } => self.whiteout(&parent, &hidden),
            Name::Entry { parent, base } => match entry.kind {
                Kind::Directory => self.directory(&parent, &base, entry),
                Kind::File => self.file(&parent, &base, entry, tar),
                Kind::HardLink => self.hard_link(&parent, &base, entry),
                Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                    self.special(&parent, &base, entry)
                }
            },
        }
    }

    /// Hides `hidden` of the lower layers. Where this layer already has that name, its own content stays; a directory
    /// must then not show the lower one through.
    fn whiteout(&mut self, parent: &[u8], hidden: &[u8]) -> Result<(), Error> {
        let dir = self.tree.parent(parent)?;
        let path = join(parent, hidden);
        match fs::mknodat(&dir, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.inodes += 1;
                Ok(())
            }
            Err(Errno::EXIST) => {
                let stat =
                    fs::statat(&dir, hidden, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| at("stat", &path, e))?;
                if tree::kind(&stat) == FileType::Directory {
                    // Not through the path: a parent in it may be a link, the name itself is not.
                    return self.tree.set_opaque(&path);
                }
                Ok(())
            }
            Err(e) => Err(at("make whiteout", &path, e)),
        }
    }

    fn set_directory_times(&mut self) -> Result<(), Error> {
        for (path, mtime) in std::mem::take(&mut self.deferred) {
            match self.tree.open(&path, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(dir) => {
                    fs::futimens(&dir, &write::times(mtime)).map_err(|e| at("set time of", &path, e))?;
                }
                // Replaced by something else since.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(at("open directory", &path, e)),
            }
        }
        Ok(())
    }
}

fn join(parent: &[u8], base: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        base.to_vec()
    } else {
        [parent, b"/", base].concat()
    }
}

#[cfg(test)]
mod tests;
