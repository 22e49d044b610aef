//! What cAdvisor asks of a container runtime that is not containerd: whose a cgroup is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri::{self, Cri};
use podd_e2e::observe::{self, Answer};
use podd_e2e::podd::IMAGE;
use podd_proto::v1 as pb;
use serde_json::{Value, json};

use crate::case::{Env, Pod, cases, contains, equal};
use crate::observe::with_config;
use crate::stats::{cgroup, stats};

cases!("cadvisor": answers_of_its_kind, only_where_it_is_asked_for);

/// Where cAdvisor looks, and nowhere else.
const SOCKET: &str = "/var/run/crio/crio.sock";

fn config() -> String {
    format!("[observe]\ncadvisor_socket = \"{SOCKET}\"\n")
}

/// Asks as Go's HTTP client does.
fn ask(method: &str, path: &str) -> Result<Answer> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: crio\r\nUser-Agent: Go-http-client/1.1\r\n\r\n");
    observe::exchange(UnixStream::connect(SOCKET)?, &request)
}

fn told(path: &str) -> Result<Value> {
    let answer = ask("GET", path)?;
    equal(
        "answer",
        (answer.status, answer.content_type.as_str()),
        (200, "application/json"),
    )?;
    Ok(serde_json::from_str(&answer.body)?)
}

fn answers_of_its_kind(env: &mut Env<'_>) -> Result<()> {
    let mut left = None;
    with_config(env, &config(), |env| {
        let mode = fs::metadata(SOCKET)?.permissions().mode() & 0o777;
        equal("mode of the socket", mode, 0o600)?;
        let info = told("/info")?;
        equal("driver", info["cgroup_driver"].as_str(), Some("cgroupfs"))?;
        equal("storage", info["storage_driver"].as_str(), Some("podd"))?;

        let cri = env.cri()?;
        let mut sandbox = cri::pod_config("asked");
        let name = ("io.kubernetes.pod.name".to_owned(), "asked".to_owned());
        sandbox.labels.extend([name]);
        let pod = Pod::run(&cri, sandbox)?;
        let mut config = cri::shell("c", "sleep 1000");
        config
            .labels
            .insert("io.kubernetes.pod.name".to_owned(), "asked".to_owned());
        config
            .annotations
            .insert("io.kubernetes.container.restartCount".to_owned(), "2".to_owned());
        let id = pod.created(&config)?;
        let before = told(&format!("/containers/{id}"))?;
        ensure!(before["pid"].as_i64() > Some(0), "{before}");
        cri.start(&id)?;
        // What cAdvisor takes for a container's, and where the kubelet finds the id.
        let dir = cgroup(&cri, &id)?;
        let name = dir
            .file_name()
            .and_then(|name| name.to_str())
            .context("no name")?;
        equal("name of the cgroup", name, &format!("crio-{id}.scope"))?;
        ensure!(dir.join("cgroup.procs").exists(), "{} is none", dir.display());
        ensure!(stats(&cri, &id)?.cpu.is_some(), "no statistics of it");
        equal("exec", cri.sh(&id, "echo in")?.as_str(), "in\n")?;

        described(&cri, &pod, &config, &id)?;
        for (method, path, status) in [
            ("GET", format!("/containers/{}", "0".repeat(64)), 404),
            ("GET", format!("/containers/{id}/../info"), 404),
            ("GET", "/containers/".to_owned(), 404),
            ("GET", "/".to_owned(), 404),
            ("POST", "/info".to_owned(), 405),
        ] {
            equal(&path, ask(method, &path)?.status, status)?;
        }
        // The pod's network: of a container POD, by any process in it.
        let network = told(&format!("/containers/{}", pod.id))?;
        equal(
            "process in the network",
            &network["pid"],
            &told(&format!("/containers/{id}"))?["pid"],
        )?;
        let labels = &network["labels"];
        equal(
            "container",
            labels["io.kubernetes.container.name"].as_str(),
            Some("POD"),
        )?;
        equal(
            "label of the pod",
            labels["io.kubernetes.pod.name"].as_str(),
            Some("asked"),
        )?;
        let counted = dir.with_file_name(format!("crio-{}.scope", pod.id));
        ensure!(
            counted.join("cgroup.procs").exists(),
            "{} is none",
            counted.display()
        );

        cri.stop(&id, 0)?;
        let over = told(&format!("/containers/{id}"))?;
        equal("process of one that is over", over["pid"].as_i64(), Some(0))?;
        let over = told(&format!("/containers/{}", pod.id))?;
        equal("process of a network without one", over["pid"].as_i64(), Some(0))?;
        left = Some((pod, cri::shell("d", "sleep 1000"), counted));
        Ok(())
    })?;
    // A podd that is not asked for it goes on with what has such names, and gives no more.
    let (cri, (pod, config, counted)) = (env.cri()?, left.context("no pod")?);
    ensure!(UnixStream::connect(SOCKET).is_err(), "somebody still answers");
    let id = pod.started(&config)?;
    ensure!(
        cgroup(&cri, &id)?.ends_with(&id),
        "{}",
        cgroup(&cri, &id)?.display()
    );
    fs::remove_file(SOCKET)?;
    fs::remove_dir("/var/run/crio")?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    })?;
    ensure!(!counted.exists(), "{} is left", counted.display());
    pod.remove()
}

/// What is told of a running container.
fn described(cri: &Cri, pod: &Pod, config: &pb::ContainerConfig, id: &str) -> Result<()> {
    let container = told(&format!("/containers/{id}"))?;
    let meta = pod.config.metadata.clone().context("no name")?;
    let address = pod.address('.')?;
    let pid = container["pid"].as_i64().context("no pid")?;
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    contains("process", &String::from_utf8_lossy(&line), "sleep")?;
    let name = format!("k8s_c_{}_{}_{}_0", meta.name, meta.namespace, meta.uid);
    let log = cri::log_path(&pod.config, config).display().to_string();
    for (key, expected) in [
        ("name", json!(name)),
        ("image", json!(IMAGE)),
        ("created_time", json!(cri.container(id)?.created_at)),
        ("labels", json!(config.labels)),
        ("annotations", json!(config.annotations)),
        ("log_path", json!(log)),
        ("ip_address", json!(address)),
    ] {
        equal(key, &container[key], &expected)?;
    }
    let addresses = container["ip_addresses"].as_array().context("no addresses")?;
    ensure!(addresses.contains(&json!(address)), "{addresses:?}");
    let root = container["root"].as_str().context("no root")?;
    ensure!(Path::new(root).is_dir(), "{root} is no directory");
    Ok(())
}

fn only_where_it_is_asked_for(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("plain")?);
    ensure!(!Path::new(SOCKET).exists(), "a socket that nobody asked for");
    let id = pod.started(&cri::shell("c", "sleep 1000"))?;
    ensure!(
        cgroup(&cri, &id)?.ends_with(&id),
        "{}",
        cgroup(&cri, &id)?.display()
    );
    pod.remove()
}
