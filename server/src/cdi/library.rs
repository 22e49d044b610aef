//! The spec files of a node.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::CdiError;
use super::format::{self, Device, Syntax};
use crate::model::CdiName;

/// Largest spec file that is read: the largest known, of eight divided GPUs, are some 200 KB.
const LARGEST: u64 = 4 << 20;
/// Most entries of one directory.
const MOST: usize = 1024;

/// A spec file that could be read.
#[derive(Debug)]
pub(super) struct SpecFile {
    pub path: PathBuf,
    /// Place of its directory in the configuration: the last wins.
    rank: usize,
    pub content: format::Spec,
}

/// A spec file, or a directory of them, that could not.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Which.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// All spec files.
#[derive(Debug, Default)]
pub(super) struct Library {
    files: Vec<SpecFile>,
    broken: Vec<Broken>,
}

impl Library {
    /// Reads the directories; one that does not exist is empty.
    pub fn read(dirs: &[PathBuf]) -> Self {
        let mut library = Self::default();
        for (rank, dir) in dirs.iter().enumerate() {
            match names(dir) {
                Ok(paths) => paths.into_iter().for_each(|path| library.add(path, rank)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => library.broken.push(Broken {
                    path: dir.clone(),
                    reason: e.to_string(),
                }),
            }
        }
        library
    }

    fn add(&mut self, path: PathBuf, rank: usize) {
        let syntax = match path.extension().and_then(std::ffi::OsStr::to_str) {
            Some("json") => Syntax::Json,
            Some("yaml") => Syntax::Yaml,
            _ => return,
        };
        let content = text(&path)
            .map_err(|e| e.to_string())
            .and_then(|text| format::parse(&text, syntax));
        match content {
            Ok(content) => self.files.push(SpecFile { path, rank, content }),
            Err(reason) => self.broken.push(Broken { path, reason }),
        }
    }

    /// The file that has a device, and the device in it.
    pub fn device(&self, dirs: &[PathBuf], name: &CdiName) -> Result<(&SpecFile, &Device), CdiError> {
        let of_kind = || self.files.iter().filter(|file| file.content.kind == name.kind());
        let mut found: Vec<(&SpecFile, &Device)> = of_kind()
            .filter_map(|file| Some((file, file.content.device(name.device())?)))
            .collect();
        let best = found.iter().map(|(file, _)| file.rank).max();
        found.retain(|(file, _)| Some(file.rank) == best);
        match found.as_slice() {
            [one] => Ok(*one),
            [(a, _), (b, _), ..] => Err(CdiError::Conflict {
                name: name.clone(),
                files: [a.path.clone(), b.path.clone()],
            }),
            [] => {
                let kind_known = of_kind().next().is_some();
                Err(CdiError::Unknown {
                    name: name.clone(),
                    dirs: dirs.to_vec(),
                    kind_known,
                    broken: if kind_known {
                        Vec::new()
                    } else {
                        self.broken.clone()
                    },
                })
            }
        }
    }
}

/// The entries of a directory, in the order of their names.
fn names(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        if paths.len() == MOST {
            return Err(io::Error::other(format!("it has more than {MOST} entries")));
        }
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The text of a regular file; nothing else is waited for.
fn text(path: &Path) -> io::Result<String> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblock).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
    }
    Ok(text)
}
