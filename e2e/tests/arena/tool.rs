//! podd as a tool: its further commands against the daemon, the way an operator uses them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use anyhow::{Context, Result, bail, ensure};
use podd_e2e::PATIENCE;
use podd_e2e::podd;
use podd_e2e::{arena, cri};
use podd_proto::v1 as pb;
use serde_json::Value;

use crate::case::{Env, Pod, cases, contains, equal, eventually};

cases!("tool":
    lists_of_containers, tree_of_pods, words_that_mean_several, processes_of_a_container, what_the_kernel_has,
    what_is_used, what_happens, images_and_daemon, completions_of_a_shell);

/// How long a command of the tool may take.
const LIMIT: &str = "60";

/// The tool.
pub(crate) fn command(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(podd::binary()?);
    command.args(args);
    Ok(command)
}

/// The tool, which is killed when it takes too long.
fn limited(args: &[&str]) -> Result<Command> {
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", "--foreground", LIMIT])
        .arg(podd::binary()?)
        .args(args);
    Ok(command)
}

pub(crate) fn ran(args: &[&str]) -> Result<Output> {
    limited(args)?
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("podd {args:?}"))
}

/// What a command printed, which has to succeed.
fn told(args: &[&str]) -> Result<String> {
    let done = ran(args)?;
    let (out, err) = (
        String::from_utf8(done.stdout)?,
        String::from_utf8_lossy(&done.stderr).into_owned(),
    );
    ensure!(
        done.status.success() && err.is_empty(),
        "podd {args:?}: {:?}: {out}{err}",
        done.status
    );
    Ok(out)
}

fn json(args: &[&str]) -> Result<Value> {
    let text = told(&[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("podd {args:?}: {text}"))
}

/// The one sentence of a command that has to fail with a code.
pub(crate) fn fails(args: &[&str], code: i32) -> Result<String> {
    let done = ran(args)?;
    let err = String::from_utf8(done.stderr)?;
    equal(
        &format!("code of {args:?}, which said {err:?}"),
        done.status.code(),
        Some(code),
    )?;
    ensure!(
        err.lines().count() == 1 && err.starts_with("podd: "),
        "podd {args:?}: {err:?}"
    );
    Ok(err)
}

/// The rows of a table without its head.
fn rows(text: &str) -> Vec<&str> {
    text.lines().skip(1).collect()
}

/// A container that sleeps, and what it is made from.
pub(crate) fn sleeper(pod: &Pod, name: &str) -> Result<String> {
    pod.started(&cri::command(name, &["sleep", "1000"]))
}

fn lists_of_containers(env: &mut Env<'_>) -> Result<()> {
    let mut config = cri::pod_config("listed");
    config.labels.insert("app".to_owned(), "shop".to_owned());
    let pod = Pod::run(&env.cri()?, config)?;
    let mut first = cri::command("first", &["sleep", "1000"]);
    first.labels.insert("tier".to_owned(), "front".to_owned());
    let running = pod.started(&first)?;
    let exited = pod.started(&cri::shell("second", "exit 3"))?;
    env.cri()?.wait_exit(&exited)?;
    let created = pod.created(&cri::shell("third", "true"))?;

    let table = told(&["ps"])?;
    ensure!(table.starts_with("CONTAINER"), "{table}");
    equal("rows", rows(&table).len(), 1)?;
    for part in [&running[..13], "first", "listed", "e2e", "running", podd::IMAGE] {
        contains("ps", &table, part)?;
    }
    let all = told(&["ps", "--all"])?;
    equal("all rows", rows(&all).len(), 3)?;
    contains("an end", &all, "exited 3 Error")?;

    let ids = |args: &[&str]| -> Result<Vec<String>> {
        let mut ids: Vec<_> = told(&[&["ps", "-q"], args].concat())?
            .lines()
            .map(str::to_owned)
            .collect();
        ids.sort();
        Ok(ids)
    };
    let sorted = |mut ids: Vec<&String>| {
        ids.sort();
        ids.into_iter().cloned().collect::<Vec<_>>()
    };
    equal("default", ids(&[])?, sorted(vec![&running]))?;
    let states = ["--state", "exited", "--state", "created"];
    equal("by state", ids(&states)?, sorted(vec![&exited, &created]))?;
    equal(
        "by label",
        ids(&["-a", "-l", "tier=front"])?,
        sorted(vec![&running]),
    )?;
    equal("by pod", ids(&["-a", "--pod", "listed"])?.len(), 3)?;
    equal("by prefix", ids(&["-a", "--pod", &pod.id[..8]])?.len(), 3)?;
    equal("by namespace", ids(&["-a", "-n", "other"])?.len(), 0)?;

    let all = json(&["ps", "-a"])?;
    let found = all
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["id"] == exited.as_str());
    let found = found.context("the exited container is not in the JSON")?;
    equal("state", &found["state"], &Value::from("exited"))?;
    equal("exit code", &found["exitCode"], &Value::from(3))?;
    equal("pod", &found["podId"], &Value::from(pod.id.as_str()))?;
    pod.remove()
}

fn tree_of_pods(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("tree")?;
    let id = pod.started(&cri::shell("c", "sleep 1001 & sleep 1002 & wait"))?;
    let address = pod.address('.')?;
    // A process that was forked and has not executed yet shows the shell's command.
    eventually("three processes", || {
        let tree = told(&["pods"])?;
        let ends = |command: &str| tree.lines().any(|line| line.ends_with(command));
        Ok(ends(" sleep 1001") && ends(" sleep 1002") && tree.lines().count() == 5)
    })?;
    let tree = told(&["pods"])?;
    let lines: Vec<_> = tree.lines().collect();
    ensure!(
        lines[0].starts_with(&format!("e2e/tree  {}  ready", &pod.id[..13])),
        "{tree}"
    );
    contains("address", lines[0], &address)?;
    ensure!(
        lines[1].starts_with(&format!("└─ c  {}  running", &id[..13])),
        "{tree}"
    );
    ensure!(
        lines[2].starts_with("   └─ ") && lines[2].contains(" sh -c "),
        "{tree}"
    );
    ensure!(
        lines[3].starts_with("      ├─ ") && lines[3].ends_with("sleep 1001"),
        "{tree}"
    );
    ensure!(
        lines[4].starts_with("      └─ ") && lines[4].ends_with("sleep 1002"),
        "{tree}"
    );
    equal(
        "without processes",
        told(&["pods", "--no-processes"])?.lines().count(),
        2,
    )?;
    equal("quiet", told(&["pods", "-q"])?, format!("{}\n", pod.id))?;
    let pods = json(&["pods"])?;
    equal(
        "processes",
        pods[0]["containers"][0]["processes"].as_array().map(Vec::len),
        Some(3),
    )?;
    equal("address", &pods[0]["addresses"][0], &Value::from(address))?;
    env.cri()?.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    })?;
    equal("ready pods", told(&["pods"])?, String::new())?;
    contains("all pods", &told(&["pods", "-a"])?, "notready")?;
    pod.remove()
}

fn words_that_mean_several(env: &mut Env<'_>) -> Result<()> {
    let (one, two) = (env.pod("twin-one")?, env.pod("twin-two")?);
    let first = sleeper(&one, "same")?;
    sleeper(&two, "same")?;
    let refused = fails(&["top", "same"], 1)?;
    for part in [
        "\"same\" may be any of",
        "e2e/twin-one/same",
        "e2e/twin-two/same",
        &first[..13],
    ] {
        contains("refusal", &refused, part)?;
    }
    for word in ["twin-one/same", "e2e/twin-one/same", &first[..20], first.as_str()] {
        equal(
            word,
            &json(&["inspect", word])?["id"],
            &Value::from(first.as_str()),
        )?;
    }
    equal(
        "a pod",
        &json(&["inspect", "twin-two"])?["id"],
        &Value::from(two.id.as_str()),
    )?;
    contains(
        "unknown",
        &fails(&["logs", "nothing"], 1)?,
        "`podd ps -a` lists them",
    )?;
    contains("exec", &fails(&["exec", "same", "true"], 125)?, "may be any of")?;
    let nobody = fails(&["ps", "--socket", "/run/no-podd.sock"], 1)?;
    contains(
        "no daemon",
        &nobody,
        "no podd answers on /run/no-podd.sock: start it with `systemctl start podd`",
    )?;
    one.remove()?;
    two.remove()
}

fn processes_of_a_container(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("processes")?;
    // An argument would clear the terminal, and a child burns a processor.
    let script = "(while :; do :; done) & sh -c 'sleep 1003; :' \"$(printf 'a\\n\\033[2J')\" & wait";
    let id = pod.started(&cri::shell("c", script))?;
    let found = || -> Result<Vec<Value>> {
        Ok(json(&["top", "c"])?["processes"]
            .as_array()
            .cloned()
            .unwrap_or_default())
    };
    // Not while the shell still makes the argument, in a process of its own.
    eventually("four processes", || {
        let now = found()?;
        Ok(now.len() == 4 && now.iter().any(|process| process["command"] == "sleep 1003"))
    })?;
    let processes = found()?;
    let busy = &processes[0];
    ensure!(busy["cpuMilli"].as_u64() > Some(100), "{busy}");
    let main = processes
        .iter()
        .find(|p| p["pidInside"] == 1)
        .context("no process has pid 1 inside")?;
    equal("name of the user", &main["user"], &Value::from("root"))?;
    let host = main["pid"].as_u64().context("no pid")?;
    let status = fs::read_to_string(format!("/proc/{host}/status"))?;
    equal(
        "pid inside",
        crate::case::field(&status, "NSpid")?
            .split_whitespace()
            .next_back(),
        Some("1"),
    )?;
    ensure!(main["rssBytes"].as_u64() > Some(4096), "{main}");
    let table = told(&["top", "--sample", "50", &id[..12]])?;
    ensure!(table.trim_start().starts_with("PID"), "{table}");
    ensure!(!table.contains('\x1b'), "{table:?}");
    contains("an argument", &table, "a\\n\\u{1b}[2J")?;
    let exited = pod.started(&cri::shell("gone", "true"))?;
    env.cri()?.wait_exit(&exited)?;
    contains(
        "exited",
        &fails(&["top", "gone"], 1)?,
        "has no process: it is exited",
    )?;
    pod.remove()
}

fn what_the_kernel_has(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("kernel")?;
    let mut config = cri::command("one", &["sleep", "1000"]);
    cri::security(&mut config).no_new_privs = true;
    let id = pod.started(&config)?;
    sleeper(&pod, "two")?;
    let shown = json(&["inspect", "one"])?;
    let process = &shown["process"];
    let pid = process["pid"].as_u64().context("no pid")?;
    equal("command", &process["command"], &Value::from("sleep 1000"))?;
    let namespaces = process["namespaces"].as_array().context("no namespaces")?;
    equal("kinds", namespaces.len() >= 7, true)?;
    for namespace in namespaces {
        let kind = namespace["kind"].as_str().context("no kind")?;
        let link = fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
        equal(
            kind,
            format!("{kind}:[{}]", namespace["inode"]),
            link.display().to_string(),
        )?;
        let with: Vec<_> = namespace["containers"].as_array().into_iter().flatten().collect();
        match kind {
            "net" | "ipc" | "uts" => {
                equal(kind, with, vec![&Value::from("e2e/kernel/two")])?;
                equal(
                    kind,
                    (&namespace["pod"], &namespace["node"]),
                    (&true.into(), &false.into()),
                )?;
            }
            "mnt" | "pid" => equal(kind, (with.len(), &namespace["node"]), (0, &false.into()))?,
            "user" => equal(kind, &namespace["node"], &true.into())?,
            _ => {}
        }
    }
    let confinement = &process["confinement"];
    equal("no new privileges", &confinement["noNewPrivileges"], &true.into())?;
    let effective = confinement["capabilities"]["effective"].to_string();
    ensure!(
        effective.contains("NET_BIND_SERVICE") && !effective.contains("SYS_ADMIN"),
        "{effective}"
    );
    let mounts = process["mounts"].as_array().context("no mounts")?;
    let root = mounts.iter().find(|m| m["target"] == "/").context("no root")?;
    equal("root", &root["kind"], &Value::from("overlay"))?;
    ensure!(process["openFiles"].as_u64() >= Some(3), "{process}");
    let cgroup = PathBuf::from(shown["cgroup"].as_str().context("no cgroup")?);
    ensure!(
        fs::read_to_string(cgroup.join("cgroup.procs"))?.contains(&pid.to_string()),
        "{cgroup:?}"
    );
    for (name, value) in shown["cgroupFiles"].as_object().context("no files")? {
        if name.ends_with(".max") {
            let kernel = fs::read_to_string(cgroup.join(name))?;
            equal(name, value.as_str(), Some(kernel.trim_end()))?;
        }
    }
    let text = told(&["inspect", &id[..13]])?;
    for part in [
        "e2e/kernel/one",
        "NAMESPACE",
        "pod, e2e/kernel/two",
        "Max open files",
        "overlay",
        "seccomp",
    ] {
        contains("for people", &text, part)?;
    }
    let of_pod = json(&["inspect", "kernel"])?;
    let own = of_pod["namespaces"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|n| n["kind"] == "net");
    let net = namespaces.iter().find(|n| n["kind"] == "net").context("no net")?;
    equal(
        "the pod's network",
        &own.context("the pod has no net")?["inode"],
        &net["inode"],
    )?;
    contains("a pod for people", &told(&["inspect", "kernel"])?, "podinit")?;
    pod.remove()
}

fn what_is_used(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("used")?;
    let id = pod.started(&cri::shell("c", "while :; do :; done"))?;
    sleeper(&pod, "idle")?;
    let look = json(&["stats", "--once", "c"])?;
    let containers = look["containers"].as_array().context("no containers")?;
    equal("containers", containers.len(), 1)?;
    equal("id", &containers[0]["id"], &Value::from(id.as_str()))?;
    equal("pod", &containers[0]["pod"], &Value::from("used"))?;
    // cpu.stat is there without any controller.
    ensure!(containers[0]["cpuMilli"].as_u64() > Some(100), "{look}");
    let table = told(&["stats", "--once"])?;
    equal("rows", rows(&table).len(), 2)?;
    equal("of a pod", rows(&told(&["stats", "--once", "used"])?).len(), 2)?;
    let pods = json(&["stats", "--once", "--pods"])?;
    equal("pod", &pods["pods"][0]["name"], &Value::from("used"))?;
    ensure!(pods["pods"][0]["receivedBytes"].is_u64(), "{pods}");

    // Again and again, one line a look.
    let mut child = command(&["stats", "-i", "1", "-o", "json"])?
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = Lines::of(child.stdout.take().context("no output")?);
    let looks = [lines.next()?, lines.next()?];
    child.kill()?;
    child.wait()?;
    let times: Vec<Value> = looks
        .iter()
        .map(|l| Ok(serde_json::from_str::<Value>(l)?["time"].clone()))
        .collect::<Result<_>>()?;
    ensure!(times[0].as_str() < times[1].as_str(), "{times:?}");
    drop(lines);
    pod.remove()
}

fn what_happens(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut child = command(&["events"])?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = Lines::of(child.stdout.take().context("a pipe")?);
    let pod = env.pod("told")?;
    let id = pod.started(&cri::shell("short", "exit 3"))?;
    cri.wait_exit(&id)?;
    let short = &id[..13];
    let mut found = Vec::new();
    while found.len() < 3 {
        let line = lines.next()?;
        if line.contains(short) {
            found.push(line);
        }
    }
    contains("first", &found[0], "container  created")?;
    contains("second", &found[1], "container  started")?;
    contains("third", &found[2], "container  stopped")?;
    contains("third", &found[2], "/short  exit code 3, Error")?;
    child.kill()?;
    child.wait()?;
    pod.remove()
}

fn images_and_daemon(env: &mut Env<'_>) -> Result<()> {
    let image = env.cri()?.image(podd::IMAGE)?.context("the image is gone")?;
    contains("images", &told(&["images"])?, &image.repo_tags[0])?;
    let all = json(&["images"])?;
    let found = all
        .as_array()
        .into_iter()
        .flatten()
        .find(|i| i["id"] == image.id.as_str());
    equal(
        "size",
        &found.context("not in the JSON")?["size"],
        &Value::from(image.size),
    )?;
    contains("info", &told(&["info"])?, "RuntimeReady")?;
    let info = json(&["info"])?;
    equal("runtime", &info["runtime"], &Value::from("podd"))?;
    equal("ready", &info["conditions"][0]["holds"], &true.into())
}

fn completions_of_a_shell(_: &mut Env<'_>) -> Result<()> {
    let script = told(&["completions", "bash"])?;
    let path = PathBuf::from(arena::WORK_DIR).join("completions");
    fs::write(&path, script)?;
    let ask =
        "source \"$0\"; COMP_WORDS=(podd in); COMP_CWORD=1; _podd podd in podd; echo \"${COMPREPLY[@]}\"";
    let done = Command::new("bash").args(["-c", ask]).arg(&path).output()?;
    let found = String::from_utf8(done.stdout)?;
    fs::remove_file(&path)?;
    equal(
        "completions",
        found.split_whitespace().collect::<Vec<_>>(),
        vec!["inspect", "info"],
    )
}

/// The lines of an output, as they come.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    pub(crate) fn of(output: impl std::io::Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            use std::io::BufRead as _;
            for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    pub(crate) fn next(&self) -> Result<String> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("no line after {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the output has ended"),
        }
    }
}
