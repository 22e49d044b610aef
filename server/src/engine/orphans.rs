//! Pods that no record speaks of: they are nobody's, and are ended when podd starts. First podinits with all that they
//! have started, then what is left of pods whose podinit is gone as well.
//!
//! Assumptions: a podinit is of this podd if the state directory is the one in its nest, and a cgroup if that directory
//! is noted on it; podd lets go of a podinit only when it ends it, so one that podd is not connected to after it has
//! adopted its pods is forgotten.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime_core::cgroup::CgroupPath;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::native::NativeError;
use super::place::{self, Place};
use super::plans::Stat;
use super::{Engine, EngineError, blocking};
use crate::model::{ContainerId, PodId};
use crate::observe::metrics::Leak;

/// How long a killed process may take to end.
const END: Duration = Duration::from_secs(5);

/// A process, which no other one can take the place of.
#[derive(Debug)]
struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    fn open(pid: u32) -> Option<Self> {
        let named = Pid::from_raw(pid.cast_signed())?;
        let pidfd = pidfd_open(named, PidfdFlags::empty()).ok()?;
        Some(Self { pid, pidfd })
    }

    fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn wait(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

/// A podinit, and the pod that it was started for.
#[derive(Debug)]
struct Podinit {
    pod: PodId,
    process: Process,
}

impl Engine {
    /// Ends the podinits that podd is not connected to, with all that is below them. Those of records that cannot be
    /// read stay: somebody has to look at them.
    ///
    /// # Errors
    /// The processes of this host cannot be listed.
    pub(super) async fn sweep_podinits(self: &Arc<Self>) -> Result<(), EngineError> {
        let engine = Arc::clone(self);
        let swept = blocking("recovery", move || -> Result<_, EngineError> {
            let found = podinits(&engine.config.state_dir).map_err(|source| NativeError::Kernel {
                operation: "look for podinits",
                source,
            })?;
            for podinit in found {
                let pod = podinit.pod;
                if engine.native.keeper(&pod).is_ok() {
                    continue;
                }
                if engine
                    .state
                    .records()
                    .is_quarantined(pod.as_str())
                    .unwrap_or(true)
                {
                    tracing::error!(%pod, "the record of this podinit's pod cannot be read: its processes are left alone");
                    continue;
                }
                tracing::warn!(%pod, pid = podinit.process.pid, "ending a podinit that no record knows");
                let ended = engine.end_orphan(&podinit);
                engine.metrics.leaked(Leak::Podinit, 1, ended.is_ok());
                if let Err(e) = ended {
                    let e: &(dyn std::error::Error + 'static) = &e;
                    tracing::error!(%pod, error = e, "cannot end a podinit that no record knows");
                }
            }
            Ok(())
        });
        swept.await
    }

    /// Ends the processes and removes the cgroups and sockets of pods that have neither a record nor a podinit.
    ///
    /// # Errors
    /// The cgroups of pods cannot be listed.
    pub(super) async fn sweep_remains(self: &Arc<Self>) -> Result<(), EngineError> {
        let engine = Arc::clone(self);
        let swept = blocking("recovery", move || -> Result<_, EngineError> {
            let snapshot = engine.snapshot();
            let nobodys = |name: &str| {
                let pod: PodId = name.parse().ok()?;
                let known = snapshot.pod(&pod).is_some()
                    || engine.native.keeper(&pod).is_ok()
                    || engine.state.records().is_quarantined(name).unwrap_or(true);
                (!known).then_some(pod)
            };
            for pod in engine.native.sockets().filter_map(|name| nobodys(&name)) {
                super::pod::remove_file(&engine.native.socket_path(&pod))?;
            }
            for (path, name) in engine.own_cgroups()? {
                let Some(pod) = nobodys(&name) else { continue };
                tracing::warn!(%pod, cgroup = %path, "ending what is left of a pod that no record knows");
                let deadline = Instant::now() + END.max(engine.kill_wait());
                let ended = engine.native.cgroups.end(&path, deadline);
                engine.metrics.leaked(Leak::Cgroup, 1, ended.is_ok());
                if let Err(e) = ended {
                    let e: &(dyn std::error::Error + 'static) = &e;
                    tracing::error!(%pod, error = e, "cannot end what is left of a pod that no record knows");
                }
            }
            Ok(())
        });
        swept.await
    }

    /// Path and name of each cgroup that this podd has made for a pod.
    fn own_cgroups(&self) -> Result<Vec<(CgroupPath, String)>, NativeError> {
        let Some(parent) = self.native.own_parent()? else {
            return Ok(Vec::new());
        };
        let Some(above) = self.native.cgroups.find(&parent)? else {
            return Ok(Vec::new());
        };
        let mut own = Vec::new();
        for name in above.children()? {
            let path = parent.join(&name)?;
            let owner = match self.native.cgroups.find(&path)? {
                Some(cgroup) => cgroup.owner()?,
                None => None,
            };
            if owner.as_deref() == Some(self.owner()) {
                own.push((path, name));
            }
        }
        Ok(own)
    }

    /// What this podd notes on the cgroups that it makes for pods: another one on this machine has other records.
    pub(super) fn owner(&self) -> &[u8] {
        self.config.state_dir.as_os_str().as_bytes()
    }

    /// Kills a podinit before what it has started, so that it starts nothing more.
    fn end_orphan(&self, podinit: &Podinit) -> Result<(), NativeError> {
        let failed = |source| NativeError::Kernel {
            operation: "end a podinit that no record knows",
            source,
        };
        let deadline = Instant::now() + END.max(self.kill_wait());
        let children = children(podinit.process.pid);
        let own = cgroup_of(podinit.process.pid).unwrap_or_default();
        let cgroups = children
            .iter()
            .filter_map(|child| container_cgroup(&cgroup_of(child.pid)?, &own));
        let cgroups: BTreeSet<CgroupPath> = cgroups.collect();
        podinit.process.kill().map_err(failed)?;
        for child in &children {
            child.kill().map_err(failed)?;
        }
        for path in &cgroups {
            self.native.cgroups.end(path, deadline)?;
        }
        podinit.process.wait(deadline).map_err(failed)?;
        if let Some(scope) = place::scope_of(&own, &podinit.pod) {
            // systemd removes one that is empty, but gives up where somebody else removes what is in it meanwhile.
            self.native.cgroups.remove(&scope, deadline)?;
        } else if let Place::Own(path) = self.native.place(&podinit.pod, None)? {
            // A pod that had a parent of the kubelet's has no cgroup there.
            self.native.cgroups.remove(&path, deadline)?;
        }
        super::pod::remove_file(&self.native.socket_path(&podinit.pod))
    }
}

/// The cgroup of a process, without the slash at the front.
fn cgroup_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .map(str::to_owned)
}

/// The part of a path up to the directory that has a container's name, as a container may have cgroups of its own.
/// One that podinit is in too is not a container's, whatever its name: podd may itself be in a container.
fn container_cgroup(path: &str, of_podinit: &str) -> Option<CgroupPath> {
    let names: Vec<&str> = path.split('/').collect();
    // Either of the names that podd gives.
    let id = |name: &str| {
        let scope = name
            .strip_prefix("crio-")
            .and_then(|rest| rest.strip_suffix(".scope"));
        scope.unwrap_or(name).parse::<ContainerId>().is_ok()
    };
    let last = names.iter().rposition(|name| id(name))?;
    let found = names.get(..=last)?;
    let around = of_podinit
        .split('/')
        .zip(found)
        .filter(|(one, other)| one == *other)
        .count()
        == found.len();
    if around {
        None
    } else {
        found.join("/").parse().ok()
    }
}

/// Every podinit that has `store` in its nest.
fn podinits(store: &Path) -> io::Result<Vec<Podinit>> {
    let own = fs::metadata(store)?;
    let of_store = |pid: u32| {
        let found = fs::metadata(format!("/proc/{pid}/root/store"));
        found.is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()))
    };
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let found = pids.filter_map(|pid: u32| {
        let pod = named_pod(pid)?;
        let process = Process::open(pid)?;
        // Asked again now that the process cannot become another one.
        (named_pod(pid) == Some(pod) && of_store(pid)).then_some(Podinit { pod, process })
    });
    Ok(found.collect())
}

/// The pod that a process names as podinit does: `podinit POD-ID`.
fn named_pod(pid: u32) -> Option<PodId> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let id = line.strip_prefix(b"podinit\0")?.strip_suffix(b"\0")?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

fn children(parent: u32) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: u32| Stat::read(pid).is_ok_and(|stat| stat.parent == parent);
    pids.filter(|pid| is_child(*pid))
        .filter_map(Process::open)
        .filter(|process| is_child(process.pid))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_cgroup_is_found_in_what_it_has_made() {
        let id = "0123456789abcdef".repeat(4);
        let pod = "f".repeat(64);
        let of = |path: &str| container_cgroup(path, "podd").map(|path| path.as_str().to_owned());
        let own = format!("kubepods/burstable/podx/{id}");
        assert_eq!(of(&own).as_deref(), Some(own.as_str()));
        assert_eq!(of(&format!("{own}/init.scope")).as_deref(), Some(own.as_str()));
        assert_eq!(of(&format!("podd/{pod}/{id}")), Some(format!("podd/{pod}/{id}")));
        let scope = format!("kubepods/burstable/podx/crio-{id}.scope");
        assert_eq!(of(&scope).as_deref(), Some(scope.as_str()));
        assert_eq!(of("system.slice/podd.service"), None);
        assert_eq!(of(""), None);
        let outer = format!("docker/{id}/podd");
        assert_eq!(container_cgroup(&outer, &outer), None);
        assert!(container_cgroup(&format!("docker/{id}/pods/{pod}"), &outer).is_some());
    }
}
