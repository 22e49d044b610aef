//! What specs need to know about the node.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::LinuxDevice;
use runtime_core::compile::CapSet;
use runtime_core::seccomp::KernelVersion;

use super::devices;

/// Facts of the node that decide what a container can be. Read once when podd starts.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// The node's host name.
    pub hostname: String,
    /// Capabilities that podd can give: its own bounding set.
    pub capabilities: CapSet,
    /// Version of the running kernel.
    pub kernel: KernelVersion,
    /// SELinux is enabled.
    pub selinux: bool,
    /// Name of podd's own AppArmor profile, once it is loaded.
    pub apparmor: Option<String>,
    /// Every device of the node, for privileged containers.
    pub devices: Vec<LinuxDevice>,
}

impl HostFacts {
    /// Looks at the node.
    ///
    /// # Errors
    /// /proc or /dev cannot be read.
    pub fn probe() -> io::Result<Self> {
        let name = rustix::system::uname();
        Ok(Self {
            hostname: name.nodename().to_string_lossy().into_owned(),
            capabilities: bounding(&fs::read_to_string("/proc/self/status")?),
            kernel: KernelVersion::parse(&name.release().to_string_lossy()),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            apparmor: None,
            devices: devices::all(Path::new("/dev"))?,
        })
    }
}

/// The bounding set that /proc/self/status states.
fn bounding(status: &str) -> CapSet {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .map_or(CapSet::EMPTY, CapSet::from_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_looked_at() {
        let facts = HostFacts::probe().unwrap();
        assert!(!facts.hostname.is_empty());
        assert!(facts.kernel >= KernelVersion::new(5, 0));
        assert!(
            facts
                .devices
                .iter()
                .any(|device| device.path() == Path::new("/dev/null"))
        );
    }

    #[test]
    fn the_bounding_set_is_read_from_status() {
        assert_eq!(
            bounding("Name:\tx\nCapBnd:\t0000000000000001\n")
                .names()
                .collect::<Vec<_>>(),
            ["CHOWN"]
        );
        assert_eq!(bounding(""), CapSet::EMPTY);
    }
}
