//! podd is killed at any moment while clients work, and before each single change that the life of a pod makes, and comes
//! back: nothing is left, lost or run twice.
//!
//! `PODD_CRASH_KILLS` says how often it is killed, `PODD_CRASH_SEED` repeats the choices of an earlier run (the
//! machine's own timing it cannot repeat).

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use podd_e2e::PATIENCE;
use podd_e2e::cri::{self, Cri};
use podd_e2e::podd;
use podd_e2e::steps::{Followed, follow};
use podd_proto::v1 as pb;
use tonic::{Code, Status};

use crate::case::{Env, asked, cases, equal, log_lines};

cases!("crash": killed_at_any_moment, killed_before_every_change);

/// Clients that work at the same time.
const CLIENTS: u64 = 8;

/// How often podd is killed where nobody says.
const KILLS: u64 = 10;

/// Where the cgroups are that clients name as the kubelet does.
const CGROUPS: &str = "/sys/fs/cgroup/crash";

/// How long a podd that was started again may take to its first answer; an emulated one is not timed.
fn restart_limit() -> Duration {
    Duration::from_secs(if podd_e2e::vm::inside() { 60 } else { 2 })
}

/// How long one request may be tried again before the test gives up.
const RETRIES: Duration = Duration::from_secs(40);

fn killed_at_any_moment(env: &mut Env<'_>) -> Result<()> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let seed = asked("PODD_CRASH_SEED")?.unwrap_or(u64::try_from(clock)?);
    let kills = asked("PODD_CRASH_KILLS")?.unwrap_or(KILLS);
    println!("crash: {kills} kills, PODD_CRASH_SEED={seed}");
    let (cri, over) = (env.cri()?, AtomicBool::new(false));
    let rounds = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (cri, over) = (cri.clone(), &over);
                scope.spawn(move || work(&cri, number, seed, over))
            })
            .collect();
        let killed = kill_often(env, kills, &mut Random(seed), &over);
        over.store(true, Ordering::Relaxed);
        let mut rounds = 0;
        for client in clients {
            rounds += client.join().ok().context("a client panicked")??;
        }
        println!("crash: slowest answer after a restart {:?}", killed?);
        anyhow::Ok(rounds)
    })
    .with_context(|| format!("PODD_CRASH_SEED={seed}"))?;
    println!("crash: {rounds} pods");
    ensure!(rounds >= CLIENTS, "only {rounds} pods were made");
    let pods = cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?.items;
    ensure!(pods.is_empty(), "pods that nobody asked for twice: {pods:?}");
    let left = cri
        .list_containers(pb::ListContainersRequest::default())?
        .containers;
    ensure!(left.is_empty(), "containers without a pod: {left:?}");
    remove_cgroups()
}

/// Removes what is the clients' own, when all pods are gone.
fn remove_cgroups() -> Result<()> {
    fs::remove_dir(CGROUPS).with_context(|| format!("remove {CGROUPS}"))
}

/// Kills podd and starts it again, `kills` times or until a client gives up; the slowest start.
fn kill_often(env: &mut Env<'_>, kills: u64, random: &mut Random, over: &AtomicBool) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        random.sleep(20, 400);
        if over.load(Ordering::Relaxed) {
            break;
        }
        let podd = env.podd().with_context(|| format!("before kill {kill}"))?;
        podd.end(Signal::SIGKILL)?;
        random.sleep(0, 150);
        if random.below(3) == 0 {
            // While it recovers.
            podd.launch_again()?;
            random.sleep(1, 80);
            podd.end(Signal::SIGKILL)?;
        }
        let begun = Instant::now();
        podd.start_again().with_context(|| format!("after kill {kill}"))?;
        let took = begun.elapsed();
        slowest = slowest.max(took);
        ensure!(
            took < restart_limit(),
            "podd answered {took:?} after kill {kill}\n{}",
            podd::log_tail()
        );
    }
    Ok(slowest)
}

/// The lives of two kinds of pods, of which one has all that the kinds have, with podd killed before their first change,
/// their second, and so on to the last.
fn killed_before_every_change(env: &mut Env<'_>) -> Result<()> {
    for client in [0, CLIENTS - 1] {
        let mut at = 1;
        loop {
            let killed =
                killed_before(env, client, at).with_context(|| format!("change {at} of kind {client}"))?;
            match killed {
                Followed::Killed(_) => at += 1,
                Followed::Over(changes) => {
                    println!("crash: killed before each of {changes} changes of kind {client}");
                    // The lives of pods differ a little; one that is over early may not end the test.
                    ensure!(changes > 50, "a pod that lives by {changes} changes");
                    break;
                }
            }
        }
    }
    remove_cgroups()
}

/// One pod, with podd killed before change number `at`.
fn killed_before(env: &mut Env<'_>, client: u64, at: u64) -> Result<Followed> {
    let (cri, over) = (env.cri()?, AtomicBool::new(false));
    let (begun, seen) = mpsc::channel();
    let podd = env.podd()?;
    let pid = podd.pid();
    std::thread::scope(|scope| {
        let over = &over;
        let follower =
            scope.spawn(move || follow(pid, Some(at), over, move || begun.send(()).unwrap_or_default()));
        // One that cannot follow says so below.
        let _ = seen.recv();
        let life = scope.spawn(|| {
            let lived = Round::new(&cri, client, at).run(&mut Random(at));
            over.store(true, Ordering::Relaxed);
            lived
        });
        let followed = follower.join().ok().context("the follower panicked")??;
        if let Followed::Killed(call) = followed {
            podd.end(Signal::SIGKILL)?;
            podd.start_again()
                .with_context(|| format!("killed before {call}"))?;
        }
        let lived = life.join().ok().context("the client panicked")?;
        lived.with_context(|| format!("{followed:?}\n{}", podd::log_tail()))?;
        let left = cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?.items;
        ensure!(left.is_empty(), "{followed:?}: {left:?}");
        Ok(followed)
    })
}

/// Makes pods and removes them until it is over; how many. The first failure ends all clients.
fn work(cri: &Cri, number: u64, seed: u64, over: &AtomicBool) -> Result<u64> {
    let mut random = Random(seed ^ (number + 1).wrapping_mul(0x1234_5678_9abc_def1));
    let mut rounds = 0;
    loop {
        let round = Round::new(cri, number, rounds);
        if let Err(e) = round.run(&mut random) {
            over.store(true, Ordering::Relaxed);
            let id = round.id.get().map_or("?", String::as_str);
            return Err(e.context(format!(
                "client {number}, round {rounds}, pod {id}{}",
                told_of(id)
            )));
        }
        rounds += 1;
        if over.load(Ordering::Relaxed) {
            return Ok(rounds);
        }
    }
}

/// What podd logged of an id.
fn told_of(id: &str) -> String {
    let text = fs::read(podd::log_file()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| line.contains(id));
    lines.map(|line| format!("\n    {line}")).collect()
}

/// One pod from its beginning to its end.
struct Round<'a> {
    cri: &'a Cri,
    pod: pb::PodSandboxConfig,
    id: std::cell::OnceCell<String>,
}

impl<'a> Round<'a> {
    /// Half of the clients name a cgroup as the kubelet does, half share the process ids, half ask for a port.
    fn new(cri: &'a Cri, client: u64, round: u64) -> Self {
        let mut pod = cri::pod_config(&format!("crash-{client}-{round}"));
        let linux = pod.linux.get_or_insert_default();
        if client % 2 == 1 {
            let uid = pod.metadata.as_ref().map_or("", |m| m.uid.as_str());
            linux.cgroup_parent = format!("/crash/pod{uid}");
        }
        if client / 2 % 2 == 1 {
            let context = linux.security_context.get_or_insert_default();
            context.namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Pod.into();
        }
        if client / 4 % 2 == 1 {
            pod.port_mappings = vec![pb::PortMapping {
                container_port: 80,
                host_port: i32::try_from(20000 + client).unwrap_or_default(),
                ..Default::default()
            }];
        }
        let id = std::cell::OnceCell::new();
        Self { cri, pod, id }
    }

    fn run(&self, random: &mut Random) -> Result<()> {
        fs::create_dir_all(&self.pod.log_directory)?;
        let id = retry("RunPodSandbox", || self.cri.run_pod(&self.pod))?;
        self.id.set(id.clone()).ok().context("run twice")?;

        let code = i32::try_from(1 + random.below(100))?;
        let nap = random.below(120);
        let short = self.config("short", &format!("echo ran; sleep 0.{nap:03}; exit {code}"));
        let long = self.config("long", "trap 'exit 9' TERM; echo ran; sleep 100000 & wait");
        let first = self.started(&id, &short)?;
        let second = self.started(&id, &long)?;
        self.exec(&second)?;

        self.exited(&first, code)?;
        self.ran_once(&short)?;
        if random.below(2) == 0 {
            retry("RemoveContainer", || self.cri.remove_ctr(&first))?;
        }
        self.ran_once(&long)?;
        if random.below(4) != 0 {
            retry("StopContainer", || self.cri.stop(&second, 10))?;
            self.exited(&second, 9)?;
        }
        self.ran_once(&long)?;
        if random.below(2) == 0 {
            retry("RemoveContainer", || self.cri.remove_ctr(&second))?;
        }
        retry("StopPodSandbox", || {
            self.cri
                .stop_pod_sandbox(pb::StopPodSandboxRequest {
                    pod_sandbox_id: id.clone(),
                })
                .map(drop)
        })?;
        retry("RemovePodSandbox", || self.cri.remove_pod(&id))?;
        fs::remove_dir_all(&self.pod.log_directory)?;
        remove_parent(&self.pod)
    }

    /// A container in the pod's own kind of process ids.
    fn config(&self, name: &str, script: &str) -> pb::ContainerConfig {
        let mut config = cri::shell(name, script);
        let of_pod = self.pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
        cri::security(&mut config).namespace_options = of_pod.and_then(|c| c.namespace_options.clone());
        config
    }

    fn started(&self, pod: &str, config: &pb::ContainerConfig) -> Result<String> {
        let id = retry("CreateContainer", || self.cri.create(pod, &self.pod, config))?;
        let mut again = false;
        retry("StartContainer", || {
            let refused = match self.cri.start(&id) {
                // It was started before podd died, and was over before it was asked for again.
                Err(e) if again && e.code() == Code::FailedPrecondition => Ok(()),
                other => other,
            };
            again = true;
            refused
        })?;
        Ok(id)
    }

    fn exec(&self, id: &str) -> Result<()> {
        let done = retry("ExecSync", || {
            self.cri.exec(id, &["sh", "-c", "echo hi; exit 3"], 20)
        })?;
        equal(
            "exec",
            (done.exit_code, done.stdout.as_slice()),
            (3, b"hi\n".as_slice()),
        )
    }

    /// Waits for the container's end, which has to be the one that was asked for.
    fn exited(&self, id: &str, code: i32) -> Result<()> {
        let deadline = Instant::now() + RETRIES;
        loop {
            let request = pb::ContainerStatusRequest {
                container_id: id.to_owned(),
                verbose: false,
            };
            let answer = retry("ContainerStatus", || self.cri.container_status(request.clone()))?;
            let status = answer.status.context("no status")?;
            if status.state() == pb::ContainerState::ContainerExited {
                let found = (status.exit_code, status.reason.as_str());
                let ran = status.started_at > 0 && status.finished_at >= status.started_at;
                ensure!(
                    found == (code, "Error") && ran,
                    "container {id} ended with {status:?}, expected {code}{}",
                    told_of(id)
                );
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "container {id} does not end: {status:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What a container writes when it begins is in its log once, however often it was asked for.
    fn ran_once(&self, config: &pb::ContainerConfig) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = log_lines(&self.pod, config)?;
            let ran = lines.iter().filter(|line| line.content == "ran").count();
            ensure!(ran < 2, "it ran {ran} times");
            if ran == 1 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it never ran");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The cgroup that the kubelet makes for a pod, and removes itself.
fn remove_parent(pod: &pb::PodSandboxConfig) -> Result<()> {
    let parent = pod.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
    if parent.is_empty() {
        return Ok(());
    }
    let path = format!("/sys/fs/cgroup{parent}");
    fs::remove_dir(&path).with_context(|| format!("remove {path}, in which nothing may be left"))
}

/// Asks again, as the kubelet does, while nobody answers.
fn retry<T>(what: &str, mut call: impl FnMut() -> Result<T, Box<Status>>) -> Result<T> {
    let deadline = Instant::now() + RETRIES;
    loop {
        match call() {
            Ok(answer) => return Ok(answer),
            // An error of the transport has a cause, one that podd sent has none.
            Err(e) if std::error::Error::source(&*e).is_some() => {
                if Instant::now() > deadline {
                    bail!("{what}: nobody answers: {e}");
                }
            }
            Err(e) => return Err(e).with_context(|| what.to_owned()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Numbers that look random and follow from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn sleep(&mut self, from: u64, to: u64) {
        std::thread::sleep(Duration::from_millis(from + self.below(to - from)));
    }
}
