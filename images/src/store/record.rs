//! The records on disk and how they are replaced.
//!
//! `layers/<n>.json` and `images/<hex>.json`, one JSON object each, with `"version": 1`. A record is written to a new
//! file, flushed, renamed over the old one, and the directory is flushed. Another version is not ours to judge and
//! counts as unreadable.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::image::ImageId;

pub(super) const VERSION: u32 = 1;
/// A record holds a config (bounded by the limits) as a JSON string, so at most twice as many bytes, and names.
const RECORD_MAX: u64 = 64 << 20;

/// One unpacked layer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub version: u32,
    /// Digest of the uncompressed archive; for layers made here, of their description.
    pub diff_id: Digest,
    /// Digest of the compressed blob it came from.
    pub blob: Option<Digest>,
    pub bytes: u64,
    pub inodes: u64,
    /// Directories that no entry of the archive describes, base64 because names are bytes.
    pub implicit: Vec<String>,
}

/// One image, or what is left of it while containers still use its layers (`removed`).
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub version: u32,
    /// Grows with every write; the higher one owns a tag that two records claim.
    pub sequence: u64,
    pub id: ImageId,
    pub layers: Vec<u64>,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub size: u64,
    pub pinned: bool,
    pub removed: bool,
    /// The config blob as text; its digest is `id`.
    pub config: String,
}

pub(super) fn encode_paths(paths: &[Vec<u8>]) -> Vec<String> {
    paths.iter().map(|p| STANDARD.encode(p)).collect()
}

pub(super) fn decode_paths(paths: &[String]) -> Vec<Vec<u8>> {
    paths.iter().filter_map(|p| STANDARD.decode(p).ok()).collect()
}

/// Reads a record; the text says what is wrong with an unreadable one.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|f| f.take(RECORD_MAX).read_to_end(&mut bytes))
        .map_err(|e| e.to_string())?;
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    if version != VERSION {
        return Err(format!("version {version} is unknown"));
    }
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

/// Writes a record to `path` without making it durable: for records that a flush of the file system follows.
pub(super) fn write_new<T: Serialize>(path: &Path, record: &T) -> Result<File, Error> {
    let fail = |e: io::Error| Error::store("write", path, e);
    let json = serde_json::to_vec(record).map_err(|e| fail(e.into()))?;
    let mut file = File::create(path).map_err(fail)?;
    file.write_all(&json).map_err(fail)?;
    Ok(file)
}

/// Replaces the record at `path` durably. `scratch` is a file name on the same file system.
pub(super) fn replace<T: Serialize>(path: &Path, scratch: &Path, record: &T) -> Result<(), Error> {
    let file = write_new(scratch, record)?;
    file.sync_all().map_err(|e| Error::store("flush", scratch, e))?;
    fs::rename(scratch, path).map_err(|e| Error::store("rename", path, e))?;
    sync_parent(path)
}

/// Removes a record durably; a missing one is fine.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::store("remove", path, e)),
        _ => sync_parent(path),
    }
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), sync_dir)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::store("flush", dir, e))
}
