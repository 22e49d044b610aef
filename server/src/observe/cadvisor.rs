//! The socket that cAdvisor's plugin for CRI-O asks: which container a cgroup is of.
//!
//! cAdvisor reads cgroups by itself, and needs somebody who knows whose they are. It has no client of the CRI, but one of
//! a small server that CRI-O has on a socket of fixed path: `GET /info` once, at the start of the kubelet, and
//! `GET /containers/ID` for each cgroup whose name is that of a container of CRI-O (google/cadvisor,
//! container/crio). Where this socket is asked for, podd's cgroups have such names
//! (`engine::native`).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::config::CgroupDriver;
use crate::engine::Engine;
use crate::http::{self, Answer};
use crate::state::phase::ContainerPhase;
use crate::state::store::{Container, Pod};

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

/// A container, from the moment it has a cgroup: cAdvisor sees that as soon as it is made.
fn container(engine: &Engine, id: &str) -> Answer {
    let snapshot = engine.snapshot();
    let found = id.parse().ok().and_then(|id| snapshot.container(&id));
    let pod = found.and_then(|container| snapshot.pod(&container.record.pod));
    match found.zip(pod) {
        Some((found, pod)) => json_answer(&described(engine, found, pod)),
        None => Answer::new("404 Not Found", format!("no container has the id {id:?}")),
    }
}

fn described(engine: &Engine, container: &Container, pod: &Pod) -> Value {
    let (record, config) = (&container.record, &container.config);
    let pid = match record.phase {
        ContainerPhase::Created { pid } | ContainerPhase::Running { pid, .. } => pid,
        ContainerPhase::Creating | ContainerPhase::Exited(_) => 0,
    };
    let attachment = pod.record.attachment.iter();
    let addresses: Vec<String> = attachment
        .flat_map(|attachment| &attachment.addresses)
        .map(|address| address.address.to_string())
        .collect();
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
        "pid": pid,
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
