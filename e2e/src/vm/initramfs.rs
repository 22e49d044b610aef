//! The initramfs: the guest program with the libraries it needs, the modules to boot with, and the job.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::job::{JOB, Job};
use super::kernel::KernelFiles;
use super::packages::run;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Directories that the guest mounts on.
pub(super) const MOUNT_POINTS: [&str; 7] = ["/dev", "/proc", "/sys", "/host", "/layer", "/upper", "/new"];
/// Where the modules lie, named so that they sort in loading order.
pub(super) const MODULES: &str = "/modules";

/// Packs the initramfs for one boot.
pub(super) fn build(kernel: &KernelFiles, job: &Job) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in MOUNT_POINTS {
        archive.add(Path::new(dir), DIRECTORY, &[]);
    }
    // Without it process 1 starts with neither input nor output.
    archive.add(Path::new("/dev/console"), CHARACTER_DEVICE, &[]);
    archive.add_file(Path::new("/init"), &job.guest)?;
    for library in libraries(&job.guest)? {
        archive.add_file(&library, &library)?;
    }
    for module in &kernel.modules {
        let name = module.file_name().context("a module without a name")?;
        archive.add_file(&Path::new(MODULES).join(name), module)?;
    }
    archive.add(Path::new(JOB), PROGRAM, &job.encode());
    Ok(archive.end())
}

/// The shared libraries of `program`, and the loader, as the dynamic loader itself names them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let told = run(Command::new("ldd").arg(program))?;
    let paths = told.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// A cpio archive of the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: Vec<PathBuf>,
}

impl Archive {
    fn add_file(&mut self, path: &Path, source: &Path) -> Result<()> {
        let data = fs::read(source).with_context(|| format!("read {}", source.display()))?;
        self.add(path, PROGRAM, &data);
        Ok(())
    }

    /// Adds an entry, and before it the directories that lead to it.
    fn add(&mut self, path: &Path, mode: u32, data: &[u8]) {
        let mut above: Vec<_> = path
            .ancestors()
            .skip(1)
            .filter(|a| a.parent().is_some())
            .collect();
        above.reverse();
        for dir in above {
            if !self.directories.iter().any(|d| d == dir) {
                self.directories.push(dir.to_owned());
                self.entry(dir, DIRECTORY, &[]);
            }
        }
        if mode == DIRECTORY {
            self.directories.push(path.to_owned());
        }
        self.entry(path, mode, data);
    }

    fn entry(&mut self, path: &Path, mode: u32, data: &[u8]) {
        let name = path.to_string_lossy();
        let name = name.trim_start_matches('/');
        self.entries += 1;
        // The only device is the console, 5:1.
        let (major, minor) = if mode == CHARACTER_DEVICE { (5, 1) } else { (0, 0) };
        let sizes = (data.len(), name.len() + 1);
        let (ino, links) = (self.entries, 1);
        let header = format!(
            "070701{ino:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{:08x}{:08x}{:08x}{major:08x}{minor:08x}{:08x}{:08x}",
            0, 0, 0, sizes.0, 0, 0, sizes.1, 0
        );
        self.bytes.extend(header.bytes().chain(name.bytes()).chain([0]));
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry(Path::new("TRAILER!!!"), 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.add(Path::new("/a/b/c"), PROGRAM, b"text");
        archive.add(Path::new("/a/d"), PROGRAM, b"");
        let bytes = archive.end();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<_> = text
            .split("070701")
            .skip(1)
            .map(|entry| entry[104..].split('\0').next().unwrap())
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/d", "TRAILER!!!"]);
    }
}
