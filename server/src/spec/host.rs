//! What specs need to know about the node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
    /// Name of podd's own AppArmor profile, once it is loaded.
    pub apparmor: Option<String>,
    /// Every device of the node, for privileged containers.
    pub devices: Vec<LinuxDevice>,
    /// Soft and hard limit of open files that containers get.
    pub nofile: (u64, u64),
    /// The least oom_score_adj that podd may give.
    pub least_oom_score_adj: i32,
    /// Where the node's cgroup v2 hierarchy is mounted.
    pub cgroup_root: PathBuf,
}

impl HostFacts {
    /// Looks at the node. `nofile` is what containers are to get; a podd without CAP_SYS_RESOURCE can give no more
    /// than it has itself, and can lower no oom_score_adj below its own. cgroups are at `cgroup_root`.
    ///
    /// # Errors
    /// /proc or /dev cannot be read.
    pub fn probe(nofile: (u64, u64), cgroup_root: &Path) -> io::Result<Self> {
        let name = rustix::system::uname();
        let status = fs::read_to_string("/proc/self/status")?;
        let own_score = fs::read_to_string("/proc/self/oom_score_adj")?;
        let own_hard = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .maximum
            .unwrap_or(u64::MAX);
        let free = mask(&status, "CapEff:").contains(SYS_RESOURCE);
        let most = if free { nofile.1 } else { own_hard.min(nofile.1) };
        Ok(Self {
            nofile: (nofile.0.min(most), most),
            least_oom_score_adj: if free {
                -1000
            } else {
                own_score.trim().parse().unwrap_or(0)
            },
            hostname: name.nodename().to_string_lossy().into_owned(),
            capabilities: mask(&status, "CapBnd:"),
            kernel: KernelVersion::parse(&name.release().to_string_lossy()),
            apparmor: None,
            devices: devices::all(Path::new("/dev"))?,
            cgroup_root: cgroup_root.to_owned(),
        })
    }
}

/// Bit 24, which raising limits and lowering oom_score_adj need (capabilities(7)).
const SYS_RESOURCE: CapSet = CapSet::from_bits(1 << 24);

/// One of the sets that /proc/self/status states.
fn mask(status: &str, name: &str) -> CapSet {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .map_or(CapSet::EMPTY, CapSet::from_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_looked_at() {
        let facts = HostFacts::probe((1024, 524_288), Path::new("/sys/fs/cgroup")).unwrap();
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
            mask("Name:\tx\nCapBnd:\t0000000000000001\n", "CapBnd:")
                .names()
                .collect::<Vec<_>>(),
            ["CHOWN"]
        );
        assert_eq!(mask("", "CapBnd:"), CapSet::EMPTY);
    }
}
