//! The plan of a pod's namespaces: made by a short-lived process that then waits to be killed, while podinit
//! keeps them as descriptors.

use linux_raw_sys::general as sys;

use super::text::text;
use super::{CompileError, PodInputs};
use crate::plan::{Namespaces, PlanBuf, Step};
use crate::seccomp;

/// Longest host name, `__NEW_UTS_LEN` of linux/utsname.h.
const HOSTNAME_MAX: usize = 64;

/// Compiles the plan that makes a pod's namespaces.
///
/// # Errors
/// The inputs cannot become a plan.
pub fn pod(inputs: &PodInputs) -> Result<Vec<u8>, CompileError> {
    let mut plan = PlanBuf::new();
    if let Some(context) = &inputs.context {
        plan.push(&Step::Relabel {
            path: c"/shm",
            context: &text("SELinux context", context.as_str())?,
        });
    }
    if let Some((uid, gid)) = inputs.user {
        // Made by podinit before anyone knew whose it would be; a tmpfs can be given other ids from 6.3 only.
        plan.push(&Step::Chown {
            path: c"/shm",
            uid,
            gid,
        });
        // First, so that it owns the namespaces that follow.
        plan.push(&Step::Join {
            slot: super::slot::FIRST_MOUNT,
            namespaces: Namespaces::from(sys::CLONE_NEWUSER),
        });
    }
    let wanted = [
        (inputs.network, sys::CLONE_NEWNET),
        (inputs.ipc, sys::CLONE_NEWIPC),
        (inputs.uts, sys::CLONE_NEWUTS),
    ];
    let made = wanted
        .iter()
        .filter(|(asked, _)| *asked)
        .fold(0, |all, (_, bit)| all | Namespaces::from(*bit));
    if made != 0 {
        plan.push(&Step::Unshare(made));
    }
    if let Some(hostname) = &inputs.hostname {
        if !inputs.uts {
            return Err(CompileError::Missing("uts namespace to set a host name in"));
        }
        if hostname.len() > HOSTNAME_MAX {
            return Err(CompileError::HostnameTooLong(hostname.len()));
        }
        plan.push(&Step::Hostname(&text("host name", hostname.as_str())?));
    }
    for (key, value) in &inputs.sysctls {
        let climbs = key.starts_with('/') || key.split('/').any(|part| part.is_empty() || part == "..");
        let foreign = (key.starts_with("net/") && !inputs.network)
            || ((key.starts_with("kernel/") || key.starts_with("fs/mqueue/")) && !inputs.ipc);
        if climbs || foreign {
            // The host's own sysctls are out of reach whatever the caller missed (pains.md, "sysctl injection").
            return Err(CompileError::Unsupported {
                what: "sysctl",
                value: key.clone(),
            });
        }
        plan.push(&Step::Sysctl {
            key: &text("sysctl name", key.as_str())?,
            value: &text("sysctl value", value.as_str())?,
        });
    }
    if inputs.pid {
        plan.push(&Step::Clone {
            namespaces: Namespaces::from(sys::CLONE_NEWPID),
            into_cgroup: true,
        });
        plan.push(&Step::Hold {
            filter: seccomp::waiting()?,
        });
    } else {
        plan.push(&Step::Hold { filter: &[] });
    }
    Ok(plan.finish())
}
