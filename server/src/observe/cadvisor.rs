//! The socket that cAdvisor's plugin for CRI-O asks: which container a cgroup is of.
//!
//! cAdvisor reads cgroups by itself, and needs somebody who knows whose they are. It has no client of the CRI, but one of
//! a small server that CRI-O has on a socket of fixed path: `GET /info` once, at the start of the kubelet, and
//! `GET /containers/ID` for each cgroup whose name is that of a container of CRI-O (google/cadvisor,
//! container/crio). Where this socket is asked for, podd's cgroups have such names
//! (`engine::native`).
//!
//! The network of a pod cAdvisor counts for a container `POD` of it, of whose process it reads /proc/PID/net/dev. So
//! each pod with a network of its own has an empty cgroup besides (`engine::pod`), and any of its containers that runs
//! lends the process.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::config::CgroupDriver;
use crate::engine::Engine;
use crate::http::{self, Answer};
use crate::model::Share;
use crate::state::phase::ContainerPhase;
use crate::state::store::{Container, Pod, Snapshot};

/// Most connections at a time.
const CLIENTS: usize = 16;
/// How long one of them may take.
const WHOLE: Duration = Duration::from_secs(10);

/// Begins to answer.
pub(super) fn start(listener: UnixListener, engine: &Arc<Engine>) -> JoinHandle<()> {
    let engine = Arc::clone(engine);
    tokio::spawn(http::accept(listener, CLIENTS, move |mut stream, place| {
        let engine = Arc::clone(&engine);
        async move {
            let _ = tokio::time::timeout(WHOLE, serve(&engine, &mut stream)).await;
            drop(place);
        }
    }))
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(engine: &Engine, stream: &mut S) {
    let Some((head, _)) = http::request(stream).await else {
        return;
    };
    let _ = answer(engine, &head.method, &head.path).send(stream).await;
}

fn answer(engine: &Engine, method: &str, path: &str) -> Answer {
    if method != "GET" {
        return Answer::new("405 Method Not Allowed", "use GET");
    }
    match path.split_at_checked("/containers/".len()) {
        _ if path == "/info" => json_answer(&info(engine)),
        Some(("/containers/", id)) => container(engine, id),
        _ => Answer::new("404 Not Found", "there are /info and /containers/ID"),
    }
}

fn json_answer(value: &Value) -> Answer {
    Answer {
        status: "200 OK",
        content_type: "application/json",
        headers: Vec::new(),
        body: value.to_string(),
    }
}

/// What cAdvisor asks at its start. Of the storage of `overlay` it would expect directories as CRI-O has them, and fail
/// for want of those; of what it does not know it counts nothing.
fn info(engine: &Engine) -> Value {
    let driver = match engine.native.cgroup_driver() {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Cgroupfs | CgroupDriver::Auto => "cgroupfs",
    };
    json!({
        "storage_driver": "podd",
        "storage_root": engine.config.state_dir,
        "storage_image": "",
        "cgroup_driver": driver,
    })
}

/// A container or a pod, from the moment it has a cgroup: cAdvisor sees that as soon as it is made.
fn container(engine: &Engine, id: &str) -> Answer {
    let snapshot = engine.snapshot();
    if let Some(pod) = id.parse().ok().and_then(|id| snapshot.pod(&id))
        && pod.config.namespaces.network == Share::Pod
    {
        return json_answer(&network(&snapshot, pod));
    }
    let found = id.parse().ok().and_then(|id| snapshot.container(&id));
    let pod = found.and_then(|container| snapshot.pod(&container.record.pod));
    match found.zip(pod) {
        Some((found, pod)) => json_answer(&described(engine, found, pod)),
        None => Answer::new("404 Not Found", format!("no container has the id {id:?}")),
    }
}

/// What stands for a pod's network. cAdvisor asks again for a process while it is told 0, and when that process is gone.
fn network(snapshot: &Snapshot, pod: &Pod) -> Value {
    let mut labels = pod.config.labels.clone();
    labels.insert("io.kubernetes.container.name".to_owned(), "POD".to_owned());
    let mut pids = snapshot.containers_of(&pod.record.id).map(|c| process(c));
    let record = &pod.record;
    json!({
        "name": format!("k8s_POD_{}_{}_{}_{}", record.name, record.namespace, record.uid, record.attempt),
        "pid": pids.find(|pid| *pid != 0).unwrap_or(0),
        "image": "",
        "created_time": record.created_at,
        "labels": labels,
        "annotations": pod.config.annotations,
        "log_path": "",
        "root": "",
        "ip_address": addresses(pod).first(),
        "ip_addresses": addresses(pod),
    })
}

/// A container's first process, 0 while there is none.
fn process(container: &Container) -> i32 {
    match container.record.phase {
        ContainerPhase::Created { pid } | ContainerPhase::Running { pid, .. } => pid,
        ContainerPhase::Creating | ContainerPhase::Exited(_) => 0,
    }
}

fn addresses(pod: &Pod) -> Vec<String> {
    let attachment = pod.record.attachment.iter();
    attachment
        .flat_map(|attachment| &attachment.addresses)
        .map(|address| address.address.to_string())
        .collect()
}

fn described(engine: &Engine, container: &Container, pod: &Pod) -> Value {
    let (record, config) = (&container.record, &container.config);
    let addresses = addresses(pod);
    let name = format!(
        "k8s_{}_{}_{}_{}_{}",
        record.name, pod.record.name, pod.record.namespace, pod.record.uid, record.attempt
    );
    let image = match config.image.user_specified_image.as_str() {
        "" => config.image.image.as_str(),
        name => name,
    };
    let records = engine.state.records();
    json!({
        "name": name,
        "pid": process(container),
        "image": image,
        "created_time": record.created_at,
        "labels": config.labels,
        "annotations": config.annotations,
        "log_path": record.log_path,
        "root": records.container_dir(&record.pod, &record.id).join("upper"),
        "ip_address": addresses.first().cloned().unwrap_or_default(),
        "ip_addresses": addresses,
    })
}
