//! The flavour with SELinux: Debian's reference policy, compiled once, and loaded by the guest.
//!
//! Everything of the guest itself is `kernel_t`, as nothing there has a label and no program a domain: [`OF_GUEST`] makes
//! that one domain permissive. Containers are enforced, in the domains that the policy has for them.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use super::packages::{Apt, Cache, Installed, run};

/// Linux takes SELinux in place of AppArmor, which Debian prefers.
pub(super) const KERNEL_ARGUMENTS: &str = "security=selinux selinux=1";

/// The suite with the policy: that of Debian 12 knows no containers.
const SUITE: &str = "trixie";
const PACKAGES: [&str; 4] = ["selinux-policy-default", "policycoreutils", "secilc", "bzip2"];
/// The newest format that Linux 6.1 reads.
const VERSION: &str = "33";
/// Where the policy is, in the guest and below the layer.
const POLICY: &str = "etc/selinux/default/policy/policy.33";
const SELINUXFS: &str = "/sys/fs/selinux";

/// What the policy of a node has for the domain that podd runs in: containers use the pipes that they are given.
const OF_GUEST: &str = "(typepermissive kernel_t)
(allow container_domain kernel_t (fd (use)))
(allow container_domain kernel_t (fifo_file (ioctl read getattr lock write append)))
";

/// The layer with /etc/selinux, as an installed system has it.
pub(super) fn prepare(cache: &Cache) -> Result<PathBuf> {
    cache.once("selinux", |dir| {
        let tree = dir.join("tree");
        fs::create_dir(&tree)?;
        let apt = Apt::new(cache, SUITE)?;
        apt.unpack(&PACKAGES, Installed::Nothing, &tree)?;
        let modules = translate(&tree)?;
        let policy = dir.join(POLICY);
        fs::create_dir_all(policy.parent().context("a directory of policies")?)?;
        run(tool(&tree, "usr/bin/secilc")
            .args(["-m", "-M", "true", "-c", VERSION, "-f", "/dev/null", "-o"])
            .arg(&policy)
            .args(&modules))?;
        fs::write(
            dir.join("etc/selinux/config"),
            "SELINUX=enforcing\nSELINUXTYPE=default\n",
        )?;
        run(Command::new("cp")
            .arg("-a")
            .arg(tree.join("etc/selinux/default/contexts"))
            .arg(dir.join("etc/selinux/default")))?;
        Ok(fs::remove_dir_all(&tree)?)
    })
}

/// The modules of the package in the language that secilc reads, and the guest's own.
fn translate(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for entry in fs::read_dir(tree.join("usr/share/selinux/default"))? {
        let packed = entry?.path();
        if packed.extension().is_none_or(|e| e != "bz2") {
            continue;
        }
        let plain = packed.with_extension("");
        run(tool(tree, "usr/bin/bunzip2").arg(&packed))?;
        let cil = plain.with_extension("cil");
        run(tool(tree, "usr/libexec/selinux/hll/pp").args([&plain, &cil]))?;
        made.push(cil);
    }
    let own = tree.join("guest.cil");
    fs::write(&own, OF_GUEST)?;
    made.push(own);
    Ok(made)
}

/// A program of the unpacked tree, with the libraries there.
fn tool(tree: &Path, program: &str) -> Command {
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(&libraries)
        .arg(tree.join(program));
    command
}

/// Loads the policy and enforces it, in the guest.
pub(super) fn load() -> Result<()> {
    let (none, flags) = (None::<&str>, MsFlags::empty());
    mount(Some("selinuxfs"), SELINUXFS, Some("selinuxfs"), flags, none).context("mount selinuxfs")?;
    let policy = fs::read(Path::new("/").join(POLICY)).context("read the policy")?;
    // The kernel takes it by one write only.
    let mut target = OpenOptions::new()
        .write(true)
        .open(Path::new(SELINUXFS).join("load"))?;
    target.write_all(&policy).context("load the policy")?;
    let mut enforce = File::create(Path::new(SELINUXFS).join("enforce"))?;
    enforce.write_all(b"1").context("enforce the policy")
}
