//! What RunPodSandbox, StopPodSandbox and RemovePodSandbox do on the host.
//!
//! Owns the kernel steps; `pods` owns their order among other operations, the records and the names.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use podd_netplug::{AttachRequest, Attachment};
use runtime_core::cgroup::{CgroupPath, Limits, Phase};
use runtime_core::compile::{self, PodInputs};
use runtime_core::pod::{self, Request, Role, TaskKind, launch_flag};

use super::keeper::{Keeper, POD_HANDLE};
use super::native::{NativeError, ProcessAndNetwork};
use super::place::Place;
use super::undo::Undo;
use super::{Engine, EngineError, blocking, exits, labels, plans, resources};
use crate::model::{IdMaps, IdRange, PodConfig, PodId, PodPid, Share};
use crate::observe::metrics::Stage;
use crate::spec::podfiles;
use crate::state::record::ProcessRef;
use crate::state::store::Pod;

/// How long a podinit that was asked to end may take before it is killed, and then again.
const QUIT: Duration = Duration::from_secs(5);

/// How long the death of a podinit may take after its connection closed, which is a part of it.
const DEATH: Duration = Duration::from_millis(500);

/// Makes the pod's place in the cgroup hierarchy, podinit, namespaces and network; pushes onto `undo` what it has made.
///
/// The pod's record is on disk with phase `Creating`: a podd that comes after a crash takes back what it finds.
///
/// # Errors
/// The step that failed. `undo` is run by the caller.
pub async fn start(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    undo: &mut Undo,
) -> Result<ProcessAndNetwork, EngineError> {
    let (id, config) = (pod.record.id, &pod.config);
    let place = engine.native.place(&id, config.cgroup_parent.as_ref())?;
    if config.namespaces.network == Share::Pod {
        engine
            .native
            .network_ready()
            .map_err(EngineError::NetworkNotReady)?;
    }
    let keeper = settle_in(engine, pod, &place, undo).await?;
    if engine.native.asked_by_cadvisor() && config.namespaces.network == Share::Pod {
        make_counted(engine, counted_place(&id, place.cgroup())?, undo).await?;
    }
    let metrics = &engine.metrics;
    let waiting = make_waiting(engine, pod, &place, undo).await?;
    let netns = make_namespaces(engine, &keeper, pod, waiting.as_ref().map(AsFd::as_fd));
    let netns = metrics.stage(Stage::Namespaces, netns).await?;
    let attachment = match netns {
        Some(netns) => {
            let attached = attach(engine, pod, &netns, undo);
            Some(metrics.stage(Stage::Network, attached).await?)
        }
        None => None,
    };
    let written = write_files(engine, pod, attachment.as_ref());
    metrics.stage(Stage::PodFiles, written).await?;
    Ok(ProcessAndNetwork {
        attachment,
        podinit: keeper.process,
    })
}

/// Makes the pod's cgroup and starts podinit: in this order, but for a scope, which is made around a process.
async fn settle_in(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    place: &Place,
    undo: &mut Undo,
) -> Result<Arc<Keeper>, EngineError> {
    let limits = resources::limits_of_pod(pod).unwrap_or_default();
    let limits = resources::limits(&limits)?;
    if let Place::Scope(place) = place {
        let (ended, unit, scope) = (Arc::clone(engine), place.unit.clone(), place.scope.clone());
        undo.push("remove the pod's scope", async move {
            ended.remove_scope(&unit, scope).await
        });
        let keeper = start_podinit(engine, pod.record.id, undo).await?;
        let podinit = keeper.process.pid.cast_unsigned();
        let made = async {
            engine.make_scope(pod, place, podinit).await?;
            limit(engine, place.inner.clone(), limits, false).await
        };
        engine.metrics.stage(Stage::PodCgroup, made).await?;
        return Ok(keeper);
    }
    let (root, path) = (engine.native.cgroups.clone(), place.cgroup().clone());
    if matches!(place, Place::Own(_)) {
        let (root, path, wait) = (root.clone(), path.clone(), engine.kill_wait());
        undo.push_blocking("remove the pod's cgroup", move || {
            root.remove(&path, Instant::now() + wait)
        });
    }
    let made = limit(engine, path, limits, matches!(place, Place::Own(_)));
    engine.metrics.stage(Stage::PodCgroup, made).await?;
    start_podinit(engine, pod.record.id, undo).await
}

/// Makes a cgroup where it is missing, and limits it. One in a place of podd's own is noted to be its.
async fn limit(engine: &Arc<Engine>, path: CgroupPath, limits: Limits, own: bool) -> Result<(), EngineError> {
    let engine = Arc::clone(engine);
    blocking("RunPodSandbox", move || -> Result<(), NativeError> {
        let cgroup = engine.native.cgroups.create(&path)?;
        if own {
            cgroup.set_owner(engine.owner())?;
        }
        Ok(cgroup.apply(&limits, Phase::All)?)
    })
    .await
}

async fn start_podinit(engine: &Arc<Engine>, id: PodId, undo: &mut Undo) -> Result<Arc<Keeper>, EngineError> {
    let (programs, path) = (
        Arc::clone(&engine.native.programs),
        engine.native.socket_path(&id),
    );
    let socket_file = path.clone();
    undo.push_blocking("remove podinit's socket", move || remove_file(&socket_file));
    let started = blocking("RunPodSandbox", move || -> Result<_, NativeError> {
        let failed = |source| NativeError::Kernel {
            operation: "start podinit",
            source,
        };
        let listener = pod::listen(&path).map_err(failed)?;
        let podinit = pod::spawn(&programs, id.as_str(), &listener).map_err(failed)?;
        let start_time = plans::start_time(podinit.pid).map_err(failed)?;
        Ok((podinit, start_time))
    });
    let (podinit, start_time) = engine.metrics.stage(Stage::Podinit, started).await?;
    let process = ProcessRef {
        pid: podinit.pid.cast_signed(),
        start_time,
    };
    let keeper =
        Keeper::new(podinit.socket, podinit.pidfd, process).map_err(|source| NativeError::Kernel {
            operation: "watch podinit's socket",
            source,
        })?;
    let ended = Arc::clone(engine);
    undo.push("end podinit", async move { end_podinit(&ended, id).await });
    attend(engine, id, &keeper);
    Ok(keeper)
}

/// Makes a podinit the pod's: from now on its reports are heard, and its end is the pod's end.
pub fn attend(engine: &Arc<Engine>, id: PodId, keeper: &Arc<Keeper>) {
    engine.native.put_keeper(id, Arc::clone(keeper));
    let (engine, keeper) = (Arc::downgrade(engine), Arc::clone(keeper));
    tokio::spawn(async move {
        keeper.listen(|state| exits::report(&engine, id, state)).await;
        disconnected(&engine, id, &keeper).await;
    });
}

/// The connection to a podinit closed. Unless somebody has taken its keeper, podinit was not asked to end: it died, or it
/// closes a connection that did not take what it had to say, and is waiting for the next one.
async fn disconnected(engine: &Weak<Engine>, id: PodId, keeper: &Arc<Keeper>) {
    // The connection of one that dies closes a little before there is something to reap.
    let ended = Arc::clone(keeper);
    let ended = tokio::task::spawn_blocking(move || ended.wait(DEATH)).await;
    let died = matches!(ended, Ok(Ok(())));
    let Some(engine) = engine.upgrade() else { return };
    if engine.native.keeper(&id).is_err() || (!died && engine.connect_again(id).await) {
        return;
    }
    let Some(keeper) = engine.native.take_keeper(&id) else {
        return;
    };
    if !died {
        let _ = tokio::task::spawn_blocking(move || keeper.kill(QUIT)).await;
    }
    engine.report_pod_lost(id);
}

/// The sysctls of the request. A pod with a network of its own also gets any port and ICMP echo without capabilities,
/// unless it says otherwise: images that run as a user have come to count on both, as containerd 2 gives them.
fn sysctls(config: &PodConfig) -> Vec<(String, String)> {
    let asked = &config.sysctls;
    let mut all: Vec<_> = asked.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
    if config.namespaces.network == Share::Pod {
        // Groups that the pod's user namespace lacks are refused; the kernel's own limit is 2^31-1.
        let groups = config.namespaces.user.map_or(u32::MAX, |ids| ids.groups.length);
        let last = groups.saturating_sub(1).min(i32::MAX.unsigned_abs());
        let usual = [
            ("net/ipv4/ip_unprivileged_port_start", "0".to_owned()),
            ("net/ipv4/ping_group_range", format!("0 {last}")),
        ];
        let unset = usual
            .into_iter()
            .filter(|(key, _)| asked.iter().all(|s| s.key != *key));
        all.extend(unset.map(|(key, value)| (key.to_owned(), value)));
    }
    all
}

/// Where pid 1 of a pod with a shared pid namespace lives: among the pod's containers, under the pod's name. The
/// kubelet finds the pause container of other runtimes there.
fn waiting_place(id: &PodId, pod: &CgroupPath) -> Result<CgroupPath, NativeError> {
    Ok(pod.join(id.as_str())?)
}

/// The empty cgroup by which cAdvisor finds a pod, to count its network, in the name it takes for one of CRI-O.
fn counted_place(id: &PodId, pod: &CgroupPath) -> Result<CgroupPath, NativeError> {
    Ok(pod.join(&format!("crio-{id}.scope"))?)
}

async fn make_counted(engine: &Arc<Engine>, path: CgroupPath, undo: &mut Undo) -> Result<(), EngineError> {
    let (root, made, wait) = (engine.native.cgroups.clone(), path.clone(), engine.kill_wait());
    undo.push_blocking("remove the cgroup for cAdvisor", {
        let root = root.clone();
        move || root.remove(&made, Instant::now() + wait)
    });
    blocking("RunPodSandbox", move || -> Result<(), NativeError> {
        root.create(&path)?;
        Ok(())
    })
    .await
}

/// Makes the cgroup of a pod's pid 1, if it is to have one.
async fn make_waiting(
    engine: &Arc<Engine>,
    pod: &Pod,
    place: &Place,
    undo: &mut Undo,
) -> Result<Option<OwnedFd>, EngineError> {
    if pod.config.namespaces.pid != PodPid::Pod {
        return Ok(None);
    }
    let path = waiting_place(&pod.record.id, place.cgroup())?;
    let (ended, of) = (Arc::clone(engine), path.clone());
    undo.push("remove the cgroup of the pod's pid 1", async move {
        ended.remove_waiting(of).await
    });
    let root = engine.native.cgroups.clone();
    let made = blocking("RunPodSandbox", move || -> Result<_, NativeError> {
        Ok(root.create(&path)?.into_dir())
    });
    Ok(Some(made.await?))
}

async fn make_namespaces(
    engine: &Engine,
    keeper: &Keeper,
    pod: &Pod,
    waiting: Option<BorrowedFd<'_>>,
) -> Result<Option<OwnedFd>, EngineError> {
    let config = &pod.config;
    let network = config.namespaces.network == Share::Pod;
    let ipc = config.namespaces.ipc == Share::Pod;
    let pid = config.namespaces.pid == PodPid::Pod;
    let hostname = network.then(|| hostname(engine, config));
    let user = config.namespaces.user;
    let inputs = PodInputs {
        user: user.map(|ids| (ids.users.host, ids.groups.host)),
        network,
        ipc,
        uts: network,
        pid,
        hostname,
        sysctls: sysctls(config),
        context: engine.pod_context(pod)?,
    };
    let bytes = compile::pod(&inputs).map_err(NativeError::from)?;
    let plan = plans::seal(&bytes)?;
    let bits = [
        (network, launch_flag::NET | launch_flag::UTS),
        (ipc, launch_flag::IPC),
        (pid, launch_flag::PID),
        (user.is_some(), launch_flag::USER),
    ];
    let flags = bits
        .iter()
        .filter(|(own, _)| *own)
        .fold(0, |all, (_, bit)| all | bit);
    let users = match user {
        Some(ids) => Some(user_namespace(engine, ids).await?),
        None => None,
    };
    let mut fds = vec![
        (Role::Stage, engine.native.programs.stage()),
        (Role::Plan, plan.as_fd()),
    ];
    fds.extend(waiting.map(|cgroup| (Role::Cgroup, cgroup)));
    fds.extend(users.iter().map(|users| (Role::Mount, users.as_fd())));
    let (roles, fds): (Vec<Role>, Vec<BorrowedFd<'_>>) = fds.into_iter().unzip();
    let launch = Request::Launch {
        kind: TaskKind::Pod,
        flags,
        target: 0,
        roles,
    };
    let mut reply = keeper
        .call(POD_HANDLE, launch, &fds)
        .await
        .map_err(|e| plans::explain(e, &bytes))?;
    match reply.fds.pop() {
        Some(netns) if network => Ok(Some(netns)),
        None if network => Err(NativeError::PodinitGone.into()),
        _ => Ok(None),
    }
}

async fn user_namespace(engine: &Engine, ids: IdMaps) -> Result<OwnedFd, EngineError> {
    engine
        .native
        .user_namespaces
        .as_ref()
        .map_err(|why| NativeError::NoUserNamespaces(why.clone()))?;
    let programs = Arc::clone(&engine.native.programs);
    let range = |range: IdRange| pod::IdRange {
        host: range.host,
        length: range.length,
    };
    let (users, groups) = (range(ids.users), range(ids.groups));
    blocking("RunPodSandbox", move || {
        pod::user_namespace(&programs, users, groups).map_err(|source| NativeError::Kernel {
            operation: "make a user namespace with the pod's ids",
            source,
        })
    })
    .await
}

async fn attach(
    engine: &Arc<Engine>,
    pod: &Pod,
    netns: &OwnedFd,
    undo: &mut Undo,
) -> Result<Attachment, EngineError> {
    let ports: Vec<podd_netplug::PortMapping> =
        pod.config.port_mappings.iter().filter_map(host_port).collect();
    let request = AttachRequest {
        id: pod.record.id.as_str(),
        netns: netns.as_fd(),
        ports: &ports,
        interface: "eth0",
    };
    let attachment = engine
        .native
        .network
        .attach(request)
        .await
        .map_err(NativeError::from)?;
    let (network, attached) = (engine.native.network.clone(), attachment.clone());
    undo.push("give back the pod's network", async move {
        network.detach(&attached).await
    });
    Ok(attachment)
}

/// The name of a pod that does not say one is the node's, as under other runtimes.
fn hostname(engine: &Engine, config: &PodConfig) -> String {
    config
        .hostname
        .clone()
        .unwrap_or_else(|| engine.native.host.hostname.clone())
}

/// A port that is asked for on the host; 0 asks for none.
fn host_port(port: &crate::model::PortMapping) -> Option<podd_netplug::PortMapping> {
    use crate::model::Protocol;
    let host_port = port.host_port?;
    let protocol = match port.protocol {
        Protocol::Tcp => podd_netplug::Protocol::Tcp,
        Protocol::Udp => podd_netplug::Protocol::Udp,
        Protocol::Sctp => podd_netplug::Protocol::Sctp,
    };
    Some(podd_netplug::PortMapping {
        protocol,
        container_port: port.container_port?,
        host_port,
        host_ip: port.host_ip,
    })
}

/// /etc/hosts, /etc/hostname and /etc/resolv.conf of the pod's containers.
async fn write_files(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    attachment: Option<&Attachment>,
) -> Result<(), EngineError> {
    const STUB_UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
    let directory = engine.state.records().pod_dir(&pod.record.id);
    let own = attachment.is_some();
    let addresses: Vec<std::net::IpAddr> = attachment
        .iter()
        .flat_map(|attachment| &attachment.addresses)
        .map(|address| address.address)
        .collect();
    let name = hostname(engine, &pod.config);
    let (pod, engine) = (Arc::clone(pod), Arc::clone(engine));
    blocking("RunPodSandbox", move || {
        let of_node = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let resolver = of_node("/etc/resolv.conf");
        let upstream = own.then(|| std::fs::read_to_string(STUB_UPSTREAM).ok()).flatten();
        let of_pod = podfiles::reachable(&resolver, upstream.as_deref());
        let hosts = if own {
            podfiles::hosts(&name, &addresses)
        } else {
            of_node("/etc/hosts")
        };
        let contents = [
            hosts,
            podfiles::hostname(&name),
            podfiles::resolv_conf(pod.config.dns.as_ref(), of_pod),
        ];
        for (file, content) in podfiles::NAMES.into_iter().zip(contents) {
            let path = directory.join(file);
            let owner = pod.config.namespaces.user;
            let written = std::fs::write(&path, content).and_then(|()| match owner {
                Some(ids) => chown(&path, Some(ids.users.host), Some(ids.groups.host)),
                None => Ok(()),
            });
            written.map_err(|source| NativeError::File {
                operation: "write",
                path,
                source,
            })?;
        }
        match engine.pod_context(&pod)? {
            Some(context) => Ok(labels::label_files(&directory, &context)?),
            None => Ok::<_, EngineError>(()),
        }
    })
    .await
}

/// Ends podinit and gives back the network. The containers are dead already.
///
/// Called again for a pod that was stopped, or never came to be: what is gone counts as done.
///
/// # Errors
/// The step that failed; those after it were tried all the same.
pub async fn stop(engine: &Arc<Engine>, pod: &Arc<Pod>) -> Result<(), EngineError> {
    let id = pod.record.id;
    let ended = end_podinit(engine, id).await;
    let waiting = end_waiting(engine, pod).await;
    let detached = match &pod.record.attachment {
        Some(attachment) => {
            let detached = engine.native.network.detach(attachment);
            let detached = engine.metrics.stage(Stage::NetworkEnd, detached).await;
            detached.map_err(NativeError::from)
        }
        None => Ok(()),
    };
    let removed = remove_small_things(engine, pod).await;
    ended?;
    waiting?;
    detached?;
    removed
}

/// Removes podinit's socket, and the cgroup for cAdvisor, which a podd with another configuration may have made.
async fn remove_small_things(engine: &Arc<Engine>, pod: &Pod) -> Result<(), EngineError> {
    let socket = engine.native.socket_path(&pod.record.id);
    let counted = counted_place(&pod.record.id, &engine.native.pod_cgroup(pod)?)?;
    let (root, deadline) = (engine.native.cgroups.clone(), Instant::now() + engine.kill_wait());
    blocking("StopPodSandbox", move || -> Result<(), NativeError> {
        root.end(&counted, deadline)?;
        remove_file(&socket)
    })
    .await
}

/// Ends the pod's pid 1 where podinit has not, and removes its cgroup.
async fn end_waiting(engine: &Arc<Engine>, pod: &Pod) -> Result<(), EngineError> {
    if pod.config.namespaces.pid != PodPid::Pod {
        return Ok(());
    }
    let place = engine.native.pod_cgroup(pod)?;
    engine
        .remove_waiting(waiting_place(&pod.record.id, &place)?)
        .await
}

impl Engine {
    async fn remove_waiting(self: &Arc<Self>, path: CgroupPath) -> Result<(), EngineError> {
        let (root, deadline) = (self.native.cgroups.clone(), Instant::now() + self.kill_wait());
        let removed = blocking("StopPodSandbox", move || -> Result<(), NativeError> {
            Ok(root.end(&path, deadline)?)
        });
        removed.await
    }
}

/// Asks podinit to end, and kills it where it does not. Its namespaces go with it.
async fn end_podinit(engine: &Arc<Engine>, id: PodId) -> Result<(), EngineError> {
    let Some(keeper) = engine.native.take_keeper(&id) else {
        return Ok(());
    };
    let ended = async {
        let asked = tokio::time::timeout(QUIT, keeper.call(POD_HANDLE, Request::Quit, &[])).await;
        // One that answers that it is busy still has a process to bury: killing it leaves that to init.
        let quits = matches!(asked, Ok(Ok(_) | Err(NativeError::PodinitGone)));
        blocking("StopPodSandbox", move || {
            let ended = if quits {
                keeper.wait(QUIT).or_else(|_| keeper.kill(QUIT))
            } else {
                keeper.kill(QUIT)
            };
            ended.map_err(|source| NativeError::Kernel {
                operation: "end podinit",
                source,
            })
        })
        .await
    };
    engine.metrics.stage(Stage::PodinitEnd, ended).await
}

/// Frees what outlives StopPodSandbox, outside the pod's directory; the directory is deleted by the caller.
///
/// # Errors
/// As for [`stop`].
pub async fn remove(engine: &Arc<Engine>, pod: &Arc<Pod>) -> Result<(), EngineError> {
    let record = &pod.record;
    let place = engine.native.pod_cgroup(pod)?;
    if let (Some(unit), Some(scope)) = (&record.scope, place.parent()) {
        return engine.remove_scope(unit, scope).await;
    }
    if pod.config.cgroup_parent.is_some() {
        return Ok(());
    }
    let (root, deadline) = (engine.native.cgroups.clone(), Instant::now() + engine.kill_wait());
    blocking("RemovePodSandbox", move || {
        root.remove(&place, deadline).map_err(NativeError::from)
    })
    .await
}

pub(super) fn remove_file(path: &std::path::Path) -> Result<(), NativeError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(NativeError::File {
            operation: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
