//! Hooks of the OCI runtime spec, which CDI devices bring: when, where and with what they run, and what becomes of
//! those that fail.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri;
use podd_e2e::observe::Metrics;
use podd_proto::v1 as pb;
use serde_json::{Value, json};
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, eventually, field, refused};
use crate::cdi::{Vendor, with};
use crate::observe::{grew, stage};
use crate::users;

cases!("hooks":
    order_state_and_namespaces, create_container_changes_the_root, start_container_is_confined, a_failed_creation,
    a_failed_start, a_failed_poststart, a_failed_poststop, late_hooks_are_killed, counted_as_stages, in_a_user_namespace);

const DEVICE: &str = "vendor.com/device=a";

/// A vendor with hooks: programs in its directory, and a log that they write.
pub(crate) struct Hooks {
    vendor: Vendor,
}

impl Hooks {
    /// Hooks by kind, each with a shell script that has `$D` for the vendor's directory.
    pub(crate) fn new(scripts: &[(&str, &str)]) -> Result<Self> {
        let mut hooks = Self {
            vendor: Vendor::new()?,
        };
        let list = scripts
            .iter()
            .map(|(kind, script)| hooks.program(kind, script, None));
        let list = list.collect::<Result<Vec<_>>>()?;
        hooks.install(list)?;
        Ok(hooks)
    }

    fn program(&self, kind: &str, script: &str, timeout: Option<i64>) -> Result<Value> {
        let path = self.vendor.dir.join(format!("{kind}-{}", cri::unique()));
        let text = format!("#!/bin/sh\nD={}\n{script}\n", self.vendor.dir.display());
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let mut hook = json!({"hookName": kind, "path": path, "args": [kind], "env": ["PATH=/bin:/usr/bin", "ONLY=this"]});
        if let Some(seconds) = timeout {
            hook["timeout"] = seconds.into();
        }
        Ok(hook)
    }

    fn install(&mut self, hooks: Vec<Value>) -> Result<()> {
        self.vendor.add("/etc/cdi/vendor.json", &json!({"hooks": hooks}))
    }

    /// What the hooks have logged, a line each.
    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn log_file(&self) -> PathBuf {
        self.vendor.dir.join("log")
    }
}

/// Logs the kind, the namespaces and the state.
const TELL: &str = "echo \"$(basename $0 | cut -d- -f1) $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/net) $(cat)\" >>$D/log";

/// Waits for `end` in the root, so that a test can look at the running container.
pub(crate) fn container(name: &str) -> pb::ContainerConfig {
    with(
        cri::shell(name, "while ! [ -e /end ]; do sleep 0.05; done"),
        DEVICE,
    )
}

fn order_state_and_namespaces(env: &mut Env<'_>) -> Result<()> {
    let kinds = [
        "poststop",
        "poststart",
        "createContainer",
        "createRuntime",
        "prestart",
    ];
    let hooks = Hooks::new(&kinds.map(|kind| (kind, TELL)))?;
    let (cri, pod) = (env.cri()?, env.pod("order")?);
    let mut config = container("c");
    config.annotations.insert("who".to_owned(), "me".to_owned());
    let id = pod.created(&config)?;
    let kinds = |log: &[String]| log.iter().map(|l| word(l, 0)).collect::<Vec<_>>().join(" ");
    equal(
        "after the creation",
        kinds(&hooks.log()).as_str(),
        "prestart createRuntime createContainer",
    )?;
    cri.start(&id)?;
    cri.start(&id)?;
    equal("after two starts", hooks.log().len(), 4)?;
    let pid = state(&hooks.log()[3])?["pid"].as_i64().context("no pid")?;
    let of_container = ["mnt", "net"].map(|ns| fs::read_link(format!("/proc/{pid}/ns/{ns}")));
    let own = ["mnt", "net"].map(|ns| fs::read_link(format!("/proc/self/ns/{ns}")));
    cri.stop(&id, 0)?;
    cri.remove_ctr(&id)?;
    let log = hooks.log();
    equal(
        "in all",
        kinds(&log).as_str(),
        "prestart createRuntime createContainer poststart poststop",
    )?;
    let expected = [
        ("creating", pid),
        ("creating", pid),
        ("creating", 1),
        ("running", pid),
    ];
    for (line, (status, pid)) in log.iter().zip(expected) {
        let state = state(line)?;
        equal("status", state["status"].as_str(), Some(status))?;
        equal("pid", state["pid"].as_i64(), Some(pid))?;
    }
    let last = state(&log[4])?;
    equal("status", last["status"].as_str(), Some("stopped"))?;
    ensure!(
        last.get("pid").is_none(),
        "a container that is gone has a pid: {last}"
    );
    for line in &log {
        let state = state(line)?;
        equal("id", state["id"].as_str(), Some(id.as_str()))?;
        equal("annotation", state["annotations"]["who"].as_str(), Some("me"))?;
        ensure!(
            state["ociVersion"].is_string() && state["bundle"].is_string(),
            "{state}"
        );
        let wanted = if word(line, 0) == "createContainer" {
            &of_container
        } else {
            &own
        };
        for (at, namespace) in wanted.iter().enumerate() {
            let namespace = namespace
                .as_ref()
                .map(|link| link.display().to_string())
                .unwrap_or_default();
            equal("namespace", word(line, at + 1), namespace)?;
        }
    }
    pod.remove()
}

fn word(line: &str, n: usize) -> String {
    line.splitn(4, ' ').nth(n).unwrap_or_default().to_owned()
}

fn state(line: &str) -> Result<Value> {
    serde_json::from_str(&word(line, 3)).with_context(|| line.to_owned())
}

/// What vendors do there: they find the root by the bundle, write files into it and mount over some.
fn create_container_changes_the_root(env: &mut Env<'_>) -> Result<()> {
    let script = "b=$(sed -n 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/p') && echo $b >>$D/log && \
        grep -q '\"path\":\"rootfs\"' $b/config.json && echo hook >$b/rootfs/from-hook && \
        mount -t tmpfs -o size=64k vendor $b/rootfs/mnt && echo $ONLY >$b/rootfs/mnt/x && \
        test -d $b/rootfs/proc/1 && test -d /etc/podd";
    let hooks = Hooks::new(&[("createContainer", script)])?;
    let pod = env.pod("root")?;
    let look = "cat /from-hook /mnt/x; grep -c '^vendor /mnt tmpfs' /proc/mounts; wc -l </proc/mounts; \
        ls -d /etc/podd /shm 2>&1 | grep -c 'No such'";
    let out = pod.output(&with(cri::shell("c", look), DEVICE))?;
    let lines: Vec<_> = out.lines().collect();
    equal(
        "files of the hook",
        &lines[..3.min(lines.len())],
        &["hook", "this", "1"][..],
    )?;
    equal("what is left of the host", lines.get(4), Some(&"2"))?;
    let plain = pod.output(&cri::shell("plain", "wc -l </proc/mounts"))?;
    let count = |text: Option<&&str>| text.and_then(|n| n.trim().parse::<u32>().ok());
    equal(
        "mounts",
        count(lines.get(3)),
        count(Some(&plain.as_str())).map(|n| n + 1),
    )?;
    equal("runs of the hook", hooks.log().len(), 1)?;
    pod.remove()
}

/// Its program is the image's: it has the identity, the capabilities and the filter of the application.
fn start_container_is_confined(env: &mut Env<'_>) -> Result<()> {
    let mut hooks = Hooks::new(&[])?;
    let script = "cat >/tmp/state; grep -E '^(Uid|CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status >/tmp/status; \
        env >/tmp/env; unshare -U true 2>/tmp/unshare; ls /proc/self/fd >/tmp/fds";
    let hook = json!({"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"]});
    hooks.install(vec![hook])?;
    let pod = env.pod("confined")?;
    let look = "cat /tmp/status; echo ---; grep -E '^(Uid|CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status; \
        echo ---; cat /tmp/state; echo; echo ---; cat /tmp/env; echo ---; cat /tmp/unshare; echo ---; cat /tmp/fds";
    let mut config = with(cri::shell("c", look), DEVICE);
    let security = cri::security(&mut config);
    security.run_as_user = Some(pb::Int64Value { value: 1000 });
    security.seccomp = Some(pb::SecurityProfile {
        profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    });
    let out = pod.output(&config)?;
    let parts: Vec<_> = out.split("---\n").map(str::trim).collect();
    ensure!(parts.len() == 6, "{out}");
    equal("privileges", parts[0], parts[1])?;
    equal("filter", field(parts[0], "Seccomp")?, "2")?;
    equal("user", field(parts[0], "Uid")?, "1000\t1000\t1000\t1000")?;
    let state: Value = serde_json::from_str(parts[2])?;
    equal("status", state["status"].as_str(), Some("created"))?;
    equal("pid", state["pid"].as_i64(), Some(1))?;
    equal(
        "environment",
        parts[3].lines().filter(|l| l.starts_with("A=")).count(),
        1,
    )?;
    ensure!(
        !parts[3].contains("HOSTNAME="),
        "the container's environment: {}",
        parts[3]
    );
    contains("unshare", &parts[4].to_lowercase(), "not permitted")?;
    equal("descriptors", parts[5].lines().count(), 4)?;
    pod.remove()
}

fn a_failed_creation(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("failed")?);
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let hooks = Hooks::new(&[
            (kind, "echo begun >>$D/log; echo no such card >&2; exit 3"),
            (kind, "echo second >>$D/log"),
            ("poststart", "echo started >>$D/log"),
            ("poststop", "echo stopped >>$D/log"),
        ])?;
        let answer = cri.create(&pod.id, &pod.config, &container("c"));
        let said = refused(kind, Code::FailedPrecondition, answer)?;
        let shown = if kind == "prestart" { "createRuntime" } else { kind };
        contains(
            "message",
            &said,
            &format!("{shown} hook {}", hooks.vendor.dir.display()),
        )?;
        contains("message", &said, "ended with 3: no such card")?;
        equal(kind, hooks.log().join(" ").as_str(), "begun stopped")?;
        let listed = cri.list_containers(pb::ListContainersRequest::default())?;
        equal("containers", listed.containers.len(), 0)?;
    }
    let mut hooks = Hooks::new(&[])?;
    hooks.install(vec![
        json!({"hookName": "createContainer", "path": "/no/such/hook"}),
    ])?;
    let answer = cri.create(&pod.id, &pod.config, &container("c"));
    let said = refused("absent", Code::FailedPrecondition, answer)?;
    contains("message", &said, "createContainer hook /no/such/hook")?;
    pod.remove()
}

fn exited(pod: &Pod, cri: &podd_e2e::cri::Cri, id: &str) -> Result<pb::ContainerStatus> {
    eventually("the container is over", || {
        Ok(cri.container(id)?.state() == pb::ContainerState::ContainerExited)
    })?;
    let _alive = pod.status()?;
    cri.container(id)
}

fn a_failed_start(env: &mut Env<'_>) -> Result<()> {
    let mut hooks = Hooks::new(&[])?;
    let poststop = hooks.program("poststop", "echo stopped >>$D/log", None)?;
    let hook = json!({"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "echo bad >&2; exit 4"]});
    hooks.install(vec![hook, poststop])?;
    let (cri, pod) = (env.cri()?, env.pod("start")?);
    let id = pod.created(&container("c"))?;
    let said = refused("start", Code::FailedPrecondition, cri.start(&id))?;
    contains("message", &said, "startContainer hook /bin/sh ended with 4: bad")?;
    let status = exited(&pod, &cri, &id)?;
    equal("reason", status.reason.as_str(), "StartError")?;
    equal("before it is removed", hooks.log().len(), 0)?;
    cri.remove_ctr(&id)?;
    equal("hooks", hooks.log().join(" ").as_str(), "stopped")?;
    pod.remove()
}

fn a_failed_poststart(env: &mut Env<'_>) -> Result<()> {
    let hooks = Hooks::new(&[("poststart", "exit 5"), ("poststop", "echo stopped >>$D/log")])?;
    let (cri, pod) = (env.cri()?, env.pod("poststart")?);
    let id = pod.created(&container("c"))?;
    let said = refused("start", Code::FailedPrecondition, cri.start(&id))?;
    contains("message", &said, "poststart hook")?;
    let status = exited(&pod, &cri, &id)?;
    equal("exit code", status.exit_code, 137)?;
    ensure!(status.started_at > 0, "the application ran");
    cri.remove_ctr(&id)?;
    equal("hooks", hooks.log().join(" ").as_str(), "stopped")?;
    pod.remove()
}

fn a_failed_poststop(env: &mut Env<'_>) -> Result<()> {
    let hooks = Hooks::new(&[("poststop", "exit 6"), ("poststop", "echo second >>$D/log")])?;
    let pod = env.pod("poststop")?;
    pod.output(&with(cri::shell("c", "true"), DEVICE))?;
    equal("hooks", hooks.log().join(" ").as_str(), "second")?;
    // Of a container that goes with its pod, too.
    pod.created(&container("d"))?;
    pod.remove()?;
    equal("hooks", hooks.log().join(" ").as_str(), "second second")
}

fn counted_as_stages(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("stages")?);
    let kinds = ["createRuntime", "poststart"];
    let _hooks = Hooks::new(&[(kinds[0], "sleep 0.1"), (kinds[1], TELL), ("poststop", "exit 6")])?;
    let before = Metrics::scrape()?;
    let id = pod.started(&container("c"))?;
    cri.stop(&id, 0)?;
    cri.remove_ctr(&id)?;
    let after = Metrics::scrape()?;
    for (name, result) in [
        ("cdi_devices", "ok"),
        ("create_runtime_hooks", "ok"),
        ("poststart_hooks", "ok"),
        ("poststop_hooks", "error"),
    ] {
        equal(name, grew(&before, &after, &stage(name, result)), 1.0)?;
    }
    let time = "podd_stage_duration_seconds_sum{stage=\"create_runtime_hooks\",result=\"ok\"}";
    let took = grew(&before, &after, time);
    ensure!(took >= 0.1, "a hook of 0.1 s took {took} s");
    // Containers without devices have no such stages.
    pod.output(&cri::shell("d", "true"))?;
    let last = Metrics::scrape()?;
    equal(
        "cdi_devices",
        grew(&after, &last, &stage("cdi_devices", "ok")),
        0.0,
    )?;
    equal(
        "hooks",
        grew(&after, &last, &stage("create_runtime_hooks", "ok")),
        0.0,
    )?;
    pod.remove()
}

fn late_hooks_are_killed(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("late")?);
    for kind in ["createRuntime", "createContainer"] {
        let mut hooks = Hooks::new(&[])?;
        let hook = hooks.program(kind, "sleep 600 & sleep 600", Some(1))?;
        hooks.install(vec![hook])?;
        let answer = cri.create(&pod.id, &pod.config, &container("c"));
        let said = refused(kind, Code::DeadlineExceeded, answer)?;
        contains("message", &said, "did not end within 1 s and was killed")?;
    }
    let mut hooks = Hooks::new(&[])?;
    let hook =
        json!({"hookName": "startContainer", "path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1});
    hooks.install(vec![hook])?;
    let id = pod.created(&container("c"))?;
    let said = refused("start", Code::DeadlineExceeded, cri.start(&id))?;
    contains(
        "message",
        &said,
        "startContainer hook /bin/sleep did not end within 1 s",
    )?;
    pod.remove()
}

fn in_a_user_namespace(env: &mut Env<'_>) -> Result<()> {
    let pod = users::pod(env, "hooks")?;
    let cri = env.cri()?;
    {
        let _hooks = Hooks::new(&[("createContainer", "true")])?;
        let config = with(users::shell("c", "true"), DEVICE);
        let answer = cri.create(&pod.id, &pod.config, &config);
        let said = refused("createContainer", Code::InvalidArgument, answer)?;
        contains("message", &said, "createContainer")?;
        contains("message", &said, "user namespace")?;
    }
    let mut hooks = Hooks::new(&[])?;
    let runtime = hooks.program("createRuntime", TELL, None)?;
    let start =
        json!({"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "id -u >/tmp/id"]});
    hooks.install(vec![runtime, start])?;
    let out = pod.output(&with(users::shell("c", "cat /tmp/id"), DEVICE))?;
    equal("user of the hook", out.as_str(), "0\n")?;
    equal("runs of the other", hooks.log().len(), 1)?;
    pod.remove()
}
