//! A Debian kernel made ready to boot: the ELF image out of its wrapping, and the modules that a guest loads.
//!
//! The guest has no modprobe. It loads [`BOOT`] and [`USED`] in order before anything runs, which also says here what
//! podd needs of a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Kernel;
use super::packages::{Apt, Cache, run};

/// What the guest needs to see its disk, its root and its channels.
const BOOT: [&str; 8] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "crc32c_generic",
    "ext4",
    "9pnet_virtio",
    "9p",
    "overlay",
];

/// What podd and its tests need, and what they may ask for.
const USED: [&str; 15] = [
    "veth",
    "bridge",
    "br_netfilter",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_fib_inet",
    "nft_reject_inet",
    "nf_conntrack_netlink",
    "dummy",
    "tun",
    "loop",
    "inet_diag",
];

/// A kernel in the cache.
#[derive(Debug)]
pub(super) struct KernelFiles {
    /// What QEMU boots.
    pub image: PathBuf,
    /// `uname -r`.
    pub release: String,
    /// Modules in loading order.
    pub modules: Vec<PathBuf>,
}

/// Fetches `kernel` unless the cache has it.
pub(super) fn prepare(cache: &Cache, kernel: Kernel) -> Result<KernelFiles> {
    let dir = cache.once(&format!("kernel-{kernel}"), |dir| fetch(cache, kernel, dir))?;
    let mut modules = entries(&dir.join("modules"))?;
    modules.sort();
    Ok(KernelFiles {
        image: dir.join("vmlinux"),
        release: fs::read_to_string(dir.join("release"))?,
        modules,
    })
}

fn fetch(cache: &Cache, kernel: Kernel, dir: &Path) -> Result<()> {
    let apt = Apt::new(cache, kernel.suite())?;
    let package = apt.behind("linux-image-amd64", &format!("linux-image-{kernel}."))?;
    let tree = dir.join("tree");
    apt.unpack_one(&package, &tree)?;
    let release = package.trim_start_matches("linux-image-");
    fs::write(dir.join("release"), release)?;
    let packed = fs::read(tree.join(format!("boot/vmlinuz-{release}")))?;
    fs::write(dir.join("vmlinux"), elf_image(&packed, dir)?)?;
    let all = Modules::find(&tree.join("usr/lib/modules").join(release))?;
    let target = dir.join("modules");
    fs::create_dir(&target)?;
    all.load(&target)?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

/// The ELF kernel inside a bzImage, so that no boot has to unpack it under emulation
/// (kernel: Documentation/arch/x86/boot.rst, fields `setup_sects`, `payload_offset` and `payload_length`).
fn elf_image(image: &[u8], dir: &Path) -> Result<Vec<u8>> {
    let number = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("a short kernel image")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let sectors = match *image.get(0x1f1).context("a short kernel image")? {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + number(0x248)?;
    // The last four bytes are the unpacked size.
    let payload = start..start + number(0x24c)? - 4;
    let payload = image.get(payload).context("a short kernel image")?;
    let mut elf = Vec::new();
    if payload.starts_with(b"\x28\xb5\x2f\xfd") {
        zstd::Decoder::new(payload)?
            .single_frame()
            .read_to_end(&mut elf)?;
    } else {
        elf = unxz(payload, dir)?;
    }
    ensure!(elf.starts_with(b"\x7fELF"), "the kernel image holds no ELF file");
    Ok(elf)
}

fn unxz(packed: &[u8], dir: &Path) -> Result<Vec<u8>> {
    let file = dir.join("packed.xz");
    fs::write(&file, packed)?;
    run(Command::new("xz").args(["-d", "-k"]).arg(&file))?;
    let plain = dir.join("packed");
    let bytes = fs::read(&plain)?;
    fs::remove_file(&file)?;
    fs::remove_file(&plain)?;
    Ok(bytes)
}

/// The modules of a kernel by name, and the names of those that are built in.
struct Modules {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Modules {
    fn find(dir: &Path) -> Result<Self> {
        let built_in = fs::read_to_string(dir.join("modules.builtin"))?;
        let mut found = Self {
            files: BTreeMap::new(),
            built_in: built_in
                .lines()
                .map(|line| module_name(Path::new(line)))
                .collect(),
        };
        let mut dirs = vec![dir.join("kernel")];
        while let Some(dir) = dirs.pop() {
            for path in entries(&dir)? {
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.files.insert(module_name(&path), path);
                }
            }
        }
        Ok(found)
    }

    /// Unpacks what a guest loads, and what that needs, into `dir`.
    fn load(&self, dir: &Path) -> Result<()> {
        let mut loaded = Vec::new();
        for name in BOOT.iter().chain(&USED) {
            self.load_one(name, dir, &mut loaded)?;
        }
        Ok(())
    }

    fn load_one(&self, name: &str, dir: &Path, loaded: &mut Vec<String>) -> Result<()> {
        if self.built_in.contains(name) || loaded.iter().any(|l| l == name) {
            return Ok(());
        }
        let file = self.files.get(name);
        let file = file.with_context(|| format!("the kernel has no module {name}"))?;
        let mut bytes = fs::read(file)?;
        if file.extension().is_some_and(|e| e == "xz") {
            bytes = unxz(&bytes, dir.parent().unwrap_or(dir))?;
        }
        for needed in dependencies(&bytes) {
            self.load_one(&needed, dir, loaded)?;
        }
        fs::write(dir.join(format!("{:03}-{name}.ko", loaded.len())), bytes)?;
        loaded.push(name.to_owned());
        Ok(())
    }
}

/// `kernel/fs/ext4/ext4.ko.xz` is the module ext4; dashes and underscores are the same.
fn module_name(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The names after `depends=` in a module's section `.modinfo`, whose entries end in zero bytes.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|w| w == key) else {
        return Vec::new();
    };
    let value: Vec<u8> = module[at + key.len()..]
        .iter()
        .copied()
        .take_while(|&b| b != 0)
        .collect();
    let names = String::from_utf8_lossy(&value).replace('-', "_");
    names
        .split(',')
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect()
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    listed.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dependencies_of_modules() {
        assert_eq!(
            module_name(Path::new("kernel/net/9p/9pnet-virtio.ko.xz")),
            "9pnet_virtio"
        );
        let info = b"x\0license=GPL\0depends=mbcache,jbd2,crc-16\0name=ext4\0";
        assert_eq!(dependencies(info), ["mbcache", "jbd2", "crc_16"]);
        assert!(dependencies(b"\0depends=\0name=loop\0").is_empty());
    }
}
