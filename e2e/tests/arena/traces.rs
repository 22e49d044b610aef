//! OpenTelemetry traces of requests, received by a collector.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podd_e2e::collector::{Collector, Span, attributes};
use podd_e2e::cri;
use podd_e2e::observe::Metrics;
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, cases, equal, eventually, refused};
use crate::hooks::{self, Hooks};
use crate::observe::with_config;

cases!("traces":
    a_pod_start_is_one_trace, devices_and_hooks, a_failure_is_told, only_what_is_to_be_traced,
    what_waits_is_sent_at_the_end, a_dead_collector, a_collector_that_hangs);

const COLLECTOR: &str = "127.0.0.1:4317";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CLIENT}-{flags}")
}

fn config(per_million: u32) -> String {
    format!("[tracing]\nendpoint = \"http://{COLLECTOR}\"\nsamples_per_million = {per_million}\n")
}

fn collector() -> Result<Collector> {
    Collector::start(COLLECTOR.parse::<SocketAddr>()?)
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits for `count` spans, and for more that should not come.
fn spans(collector: &Collector, count: usize) -> Result<Vec<Span>> {
    eventually(&format!("{count} spans"), || Ok(collector.spans().len() >= count))?;
    Ok(collector.spans().into_iter().map(|(_, span)| span).collect())
}

/// The only span of a name.
fn named<'a>(spans: &'a [Span], name: &str) -> Result<&'a Span> {
    let mut found = spans.iter().filter(|span| span.name == name);
    let first = found
        .next()
        .with_context(|| format!("no span {name} in {spans:?}"))?;
    ensure!(found.next().is_none(), "two spans {name}");
    Ok(first)
}

fn counted(result: &str) -> Result<f64> {
    Metrics::scrape()?.told(&format!("podd_trace_spans_total{{result=\"{result}\"}}"))
}

fn a_pod_start_is_one_trace(env: &mut Env<'_>) -> Result<()> {
    let collector = collector()?;
    with_config(env, &config(0), |env| {
        let cri = env.cri()?.traced(&parent("01"))?;
        let config = cri::pod_config("traced");
        fs::create_dir_all(&config.log_directory)?;
        let pod = cri.run_pod(&config)?;
        let id = cri.create(&pod, &config, &cri::shell("c", "sleep 1000"))?;
        cri.start(&id)?;
        // Three RPCs with their stages; the record of the container is one more.
        let spans = spans(&collector, 3 + 6 + 4 + 1)?;
        for span in &spans {
            equal("trace", hex(&span.trace_id), TRACE.to_owned())?;
            ensure!(
                span.start_time_unix_nano > 0 && span.end_time_unix_nano >= span.start_time_unix_nano,
                "{span:?}"
            );
        }
        let of: [(&str, &[&str]); 3] = [
            (
                "RunPodSandbox",
                &["pod_cgroup", "podinit", "namespaces", "network", "pod_files"],
            ),
            ("CreateContainer", &["container_cgroup", "plan", "launch"]),
            ("StartContainer", &["start"]),
        ];
        for (rpc, stages) in of {
            let root = named(&spans, &format!("runtime.v1.RuntimeService/{rpc}"))?;
            equal(rpc, hex(&root.parent_span_id), CLIENT.to_owned())?;
            equal(rpc, root.kind().as_str_name(), "SPAN_KIND_SERVER")?;
            ensure!(root.status.is_none(), "{root:?}");
            let told = attributes(&root.attributes);
            let metadata = config.metadata.as_ref().context("no name")?;
            for (key, value) in [
                ("rpc.system", "grpc"),
                ("rpc.service", "runtime.v1.RuntimeService"),
                ("rpc.method", rpc),
                ("rpc.grpc.status_code", "0"),
                ("k8s.pod.name", &metadata.name),
                ("k8s.pod.uid", &metadata.uid),
            ] {
                equal(key, told.get(key).map(String::as_str), Some(value))?;
            }
            if rpc != "RunPodSandbox" {
                equal("container", told.get("container.id"), Some(&id))?;
            }
            for stage in stages {
                let span = named(&spans, stage)?;
                equal(stage, &span.parent_span_id, &root.span_id)?;
                ensure!(
                    span.start_time_unix_nano >= root.start_time_unix_nano,
                    "{stage} began before {rpc}"
                );
            }
        }
        let resource: BTreeMap<_, _> = collector.spans().remove(0).0;
        equal(
            "service",
            resource.get("service.name").map(String::as_str),
            Some("podd"),
        )?;
        eventually("all are counted", || Ok(counted("exported")? >= 14.0))?;
        equal("lost", counted("failed")? + counted("dropped")?, 0.0)?;
        env.cri()?.remove_pod(&pod)?;
        Ok(fs::remove_dir_all(&config.log_directory)?)
    })
}

fn devices_and_hooks(env: &mut Env<'_>) -> Result<()> {
    let collector = collector()?;
    let _hooks = Hooks::new(&[
        ("createRuntime", "true"),
        ("poststart", "true"),
        ("poststop", "true"),
    ])?;
    with_config(env, &config(0), |env| {
        let pod = env.pod("hooks")?;
        let cri = env.cri()?.traced(&parent("01"))?;
        let id = cri.create(&pod.id, &pod.config, &hooks::container("c"))?;
        cri.start(&id)?;
        cri.stop(&id, 0)?;
        cri.remove_ctr(&id)?;
        let rpc = |name: &str| format!("runtime.v1.RuntimeService/{name}");
        let below = [
            ("cdi_devices", rpc("CreateContainer")),
            ("create_runtime_hooks", "launch".to_owned()),
            ("poststart_hooks", rpc("StartContainer")),
            ("poststop_hooks", rpc("RemoveContainer")),
        ];
        // Four RPCs, and their stages: record, cdi_devices, container_cgroup, plan, launch, hooks; start, hooks; kill; removal, hooks.
        let spans = spans(&collector, 4 + 6 + 2 + 1 + 2)?;
        for (stage, parent) in below {
            let (span, parent) = (named(&spans, stage)?, named(&spans, &parent)?);
            equal(stage, &span.parent_span_id, &parent.span_id)?;
        }
        pod.remove()
    })
}

fn a_failure_is_told(env: &mut Env<'_>) -> Result<()> {
    let collector = collector()?;
    with_config(env, &config(0), |env| {
        let cri = env.cri()?.traced(&parent("01"))?;
        let message = refused("start", Code::NotFound, cri.start("0123456789abcdef"))?;
        let spans = spans(&collector, 1)?;
        let span = named(&spans, "runtime.v1.RuntimeService/StartContainer")?;
        let status = span.status.as_ref().context("no status")?;
        equal("status", (status.code, status.message.clone()), (2, message))?;
        let told = attributes(&span.attributes);
        equal(
            "code",
            told.get("rpc.grpc.status_code").map(String::as_str),
            Some("5"),
        )
    })
}

fn only_what_is_to_be_traced(env: &mut Env<'_>) -> Result<()> {
    let collector = collector()?;
    let ask = |cri: &cri::Cri| cri.version(pb::VersionRequest::default()).map(drop);
    with_config(env, &config(0), |env| {
        let cri = env.cri()?;
        ask(&cri)?;
        ask(&cri.traced(&parent("00"))?)?;
        ask(&cri.traced("00-rubbish")?)?;
        ask(&cri.traced(&parent("01"))?)?;
        spans(&collector, 1).map(drop)
    })?;
    // podd was stopped, so that nothing is under way any more.
    equal("spans", collector.spans().len(), 1)?;
    with_config(env, &config(1_000_000), |env| {
        let cri = env.cri()?;
        ask(&cri.traced(&parent("00"))?)?;
        ask(&cri)?;
        let spans = spans(&collector, 2)?;
        let own = spans
            .iter()
            .find(|span| hex(&span.trace_id) != TRACE)
            .context("no trace of podd's own")?;
        equal("parent", own.parent_span_id.len(), 0)
    })?;
    let unwanted = collector
        .spans()
        .iter()
        .filter(|(_, span)| hex(&span.trace_id) == TRACE)
        .count();
    equal("spans that the client did not want", unwanted, 1)
}

fn what_waits_is_sent_at_the_end(env: &mut Env<'_>) -> Result<()> {
    let collector = collector()?;
    with_config(env, &config(0), |env| {
        env.cri()?
            .traced(&parent("01"))?
            .version(pb::VersionRequest::default())?;
        Ok(())
    })?;
    equal("spans", collector.spans().len(), 1)
}

fn a_dead_collector(env: &mut Env<'_>) -> Result<()> {
    with_config(env, &config(1_000_000), |env| {
        env.pod("untold")?.remove()?;
        eventually("spans are given up", || Ok(counted("failed")? >= 10.0))?;
        equal("exported", counted("exported")?, 0.0)?;
        // One that comes later is used.
        let collector = collector()?;
        eventually("a collector is found", || {
            env.cri()?.version(pb::VersionRequest::default())?;
            Ok(!collector.spans().is_empty())
        })
    })
}

/// More spans than may wait: the rest is dropped and counted, and no request waits.
fn a_collector_that_hangs(env: &mut Env<'_>) -> Result<()> {
    const REQUESTS: u32 = 6000;
    let _silent = TcpListener::bind(COLLECTOR)?;
    with_config(env, &config(1_000_000), |env| {
        let cri = env.cri()?;
        let mut slowest = Duration::ZERO;
        for _ in 0..REQUESTS {
            let begun = Instant::now();
            cri.version(pb::VersionRequest::default())?;
            slowest = slowest.max(begun.elapsed());
        }
        ensure!(counted("dropped")? > 0.0, "nothing was dropped");
        equal("exported", counted("exported")?, 0.0)?;
        ensure!(slowest < Duration::from_secs(5), "a request took {slowest:?}");
        env.pod("meanwhile")?.remove()
    })
}
