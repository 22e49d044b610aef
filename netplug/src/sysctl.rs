//! The few kernel switches pods need. Files under `/proc/sys/net` act on the calling thread's namespace.
//!
//! Owns: which switches and in which order. Never: writes a value that is there already.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

const ROOT: &str = "/proc/sys/net";

/// Whether this namespace has IPv6 and has it on.
pub(crate) fn has_ipv6() -> bool {
    ["all", "default"].into_iter().all(|scope| {
        let path = format!("{ROOT}/ipv6/conf/{scope}/disable_ipv6");
        fs::read_to_string(path).is_ok_and(|value| value.trim() == "0")
    })
}

/// Lets the host forward packets between pods and the outside.
///
/// Forwarding makes the kernel ignore router advertisements; interfaces that live on them (`accept_ra` 1) are
/// told to keep listening (2) first, or the host would lose its own IPv6 default route.
pub(crate) fn enable_forwarding(ipv4: bool, ipv6: bool) -> Result<(), Error> {
    if ipv4 {
        write("ipv4/ip_forward", "1")?;
    }
    if ipv6 && !is("ipv6/conf/all/forwarding", "1") {
        let interfaces = fs::read_dir(Path::new(ROOT).join("ipv6/conf"))
            .into_iter()
            .flatten()
            .flatten();
        for interface in interfaces.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            if interface == "all" || interface == "default" || interface == "lo" {
                continue;
            }
            let accept = format!("ipv6/conf/{interface}/accept_ra");
            if is(&accept, "1") {
                write(&accept, "2")?;
            }
        }
        write("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// The bridge has a fixed address and is a router: no duplicate detection, no router advertisements.
pub(crate) fn prepare_bridge(bridge: &str) -> Result<(), Error> {
    write(&format!("ipv6/conf/{bridge}/accept_dad"), "0")?;
    write(&format!("ipv6/conf/{bridge}/accept_ra"), "0")
}

/// Lets connections to host ports on 127.0.0.1 be sent to pods.
pub(crate) fn route_localnet(bridge: &str) -> Result<(), Error> {
    write(&format!("ipv4/conf/{bridge}/route_localnet"), "1")
}

/// A pod must not take another pod for its router. Best effort: a pod without IPv6 has no such file.
pub(crate) fn ignore_router_advertisements(interface: &str) {
    if let Err(error) = write(&format!("ipv6/conf/{interface}/accept_ra"), "0") {
        tracing::debug!(%error, interface, "router advertisements stay on");
    }
}

fn is(path: &str, value: &str) -> bool {
    fs::read_to_string(Path::new(ROOT).join(path)).is_ok_and(|current| current.trim() == value)
}

fn write(path: &str, value: &'static str) -> Result<(), Error> {
    if is(path, value) {
        return Ok(());
    }
    let path: PathBuf = Path::new(ROOT).join(path);
    let result: io::Result<()> = fs::write(&path, value);
    result.map_err(|source| Error::Sysctl { path, value, source })
}
