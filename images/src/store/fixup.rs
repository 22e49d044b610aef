//! Directories that an archive needs but does not describe.
//!
//! An archive with `tmp/x` and no entry for `tmp` gets a directory 0755 root when it is unpacked alone. Overlayfs shows
//! the topmost directory's metadata, so `/tmp` of the image would lose its 1777. (containerd copies the lower
//! directory's metadata while it applies layers one after the other; layers unpacked in parallel and shared by
//! images cannot.) Where that matters for an image, one small layer with nothing but these directories and the right
//! metadata goes on top of it. Such layers are named by a digest of their description and shared like all others.
//!
//! The same mechanism gives an image without layers the one empty layer that overlayfs needs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::{LayerHold, NewLayer, Store};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::Error;
use crate::sums::SumsWriter;
use crate::unpack::Unpacked;

/// Directories looked at per image. More than a handful is unusual; a hostile image gains nothing by more.
const MAX: usize = 1000;
const DIR: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
}

/// A layer of the image, opened.
struct View {
    root: OwnedFd,
    /// Sorted.
    implicit: Vec<Vec<u8>>,
}

/// What one layer says about a directory.
enum Says {
    /// Nothing; a lower layer decides.
    Nothing,
    /// It is hidden, or no directory: lower layers do not matter.
    Hidden,
    /// It is there. `opaque`: lower layers do not matter.
    There { meta: Meta, opaque: bool },
}

impl Store {
    /// The layer to put on top of `layers` (bottom first), if one is needed.
    pub(super) fn fixup(self: &Arc<Self>, layers: &[u64]) -> Result<Option<LayerHold>, Error> {
        let mut wanted = BTreeMap::new();
        if !layers.is_empty() {
            let mut views = Vec::new();
            for number in layers.iter().rev() {
                let path = self.layers_dir().join(number.to_string());
                let root = File::open(&path)
                    .map_err(|e| Error::store("open", path, e))?
                    .into();
                views.push(View {
                    root,
                    implicit: self.implicit(*number)?,
                });
            }
            wanted = directories(&views).map_err(|e| Error::store("inspect", self.layers_dir(), e))?;
            if wanted.is_empty() {
                return Ok(None);
            }
        }
        let diff_id = describe(&wanted);
        if let Some(hold) = self.hold_diff(&diff_id) {
            return Ok(Some(hold));
        }
        let new = NewLayer::begin(self)?;
        let root = new.work.join("root");
        make(&root, &wanted).map_err(|e| Error::store("make directories in", &root, e))?;
        let sums = new.work.join("sums");
        File::create_new(&sums)
            .and_then(SumsWriter::new)
            .and_then(|empty| empty.finish(self.durability))
            .map_err(|e| Error::store("write", sums, e))?;
        let inodes = wanted.len() as u64;
        let unpacked = Unpacked {
            diff_id,
            bytes: inodes * 4096,
            inodes,
            implicit: Vec::new(),
        };
        new.commit(&unpacked, None).map(Some)
    }
}

/// The directories to correct and their parents, with the metadata they must show. `views` is topmost first.
fn directories(views: &[View]) -> Result<BTreeMap<Vec<u8>, Meta>, Errno> {
    let mut out = BTreeMap::new();
    for path in views.iter().flat_map(|v| &v.implicit).take(MAX) {
        let Some((shown, meta)) = resolve(views, path)? else {
            continue;
        };
        if (shown.mode, shown.uid, shown.gid) == (meta.mode, meta.uid, meta.gid) {
            continue;
        }
        for (end, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            if let Some((_, meta)) = resolve(views, &path[..end])? {
                out.insert(path[..end].to_vec(), meta);
            }
        }
        out.insert(path.clone(), meta);
    }
    Ok(out)
}

/// What overlayfs shows for a directory, and what it should show: the topmost description by an image author.
fn resolve(views: &[View], path: &[u8]) -> Result<Option<(Meta, Meta)>, Errno> {
    let mut shown = None;
    for view in views {
        match look(view, path)? {
            Says::Nothing => {}
            Says::Hidden => break,
            Says::There { meta, opaque } => {
                let shown = *shown.get_or_insert(meta);
                if view
                    .implicit
                    .binary_search_by(|p| p.as_slice().cmp(path))
                    .is_err()
                {
                    return Ok(Some((shown, meta)));
                }
                if opaque {
                    break;
                }
            }
        }
    }
    // Never described: as it was made.
    Ok(shown.map(|meta| (meta, meta)))
}

fn look(view: &View, path: &[u8]) -> Result<Says, Errno> {
    let mut hides = false;
    let mut here: Option<OwnedFd> = None;
    for part in path.split(|b| *b == b'/') {
        let parent = here.as_ref().unwrap_or(&view.root);
        let stat = match fs::statat(parent, part, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if hides => return Ok(Says::Hidden),
            Err(Errno::NOENT) => return Ok(Says::Nothing),
            other => other?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Says::Hidden);
        }
        let dir = fs::openat(parent, part, DIR, Mode::empty())?;
        hides |= is_opaque(&dir)?;
        here = Some(dir);
    }
    let Some(dir) = here else { return Ok(Says::Nothing) };
    let stat = fs::fstat(&dir)?;
    let meta = Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
    };
    Ok(Says::There { meta, opaque: hides })
}

fn is_opaque(dir: &OwnedFd) -> Result<bool, Errno> {
    let dir = fs::openat(
        dir,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut value = [0; 2];
    match fs::fgetxattr(&dir, "trusted.overlay.opaque", &mut value) {
        Ok(n) => Ok(n == 1 && value[0] == b'y'),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(e) => Err(e),
    }
}

fn describe(wanted: &BTreeMap<Vec<u8>, Meta>) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(b"podd directories 1\n");
    for (path, meta) in wanted {
        hasher.update(path);
        hasher.update(format!("\0{} {} {} {:?}\n", meta.mode, meta.uid, meta.gid, meta.mtime).as_bytes());
    }
    hasher.finish()
}

/// Makes the directories below `root`, parents first, then sets times, children first.
fn make(root: &std::path::Path, wanted: &BTreeMap<Vec<u8>, Meta>) -> Result<(), Errno> {
    let root = fs::open(root, DIR, Mode::empty())?;
    for (path, meta) in wanted {
        fs::mkdirat(&root, path, Mode::RWXU)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        fs::chownat(
            &root,
            path,
            Some(Uid::from_raw(meta.uid)),
            Some(Gid::from_raw(meta.gid)),
            flags,
        )?;
        fs::chmodat(&root, path, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    for (path, meta) in wanted.iter().rev() {
        let time = Timespec {
            tv_sec: meta.mtime.0,
            tv_nsec: meta.mtime.1.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        fs::utimensat(&root, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
