//! Resources: what is asked for at creation and in updates, what the kernel's files say, and what status says of them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;
use tonic::{Code, Status};

use crate::case::{Env, Pod, cases, contains, equal, refused, skip};
use crate::stats::cgroup;

cases!("resources":
    update_with_zero_changes_nothing, create_honours_every_field, update_is_what_the_kernel_says,
    processors_alone_leave_the_rest, a_bad_value_changes_nothing, a_missing_controller_is_named,
    states_and_unknown_ids, created_container_can_be_updated, memory_in_use_is_not_taken_away,
    update_outlives_podd, updates_at_once_lose_no_write, oom_score_of_running_processes, oom_kills_the_group);

pub type Wire = pb::LinuxContainerResources;
pub const MIB: i64 = 1 << 20;

fn update(cri: &Cri, id: &str, linux: Wire) -> Result<(), Box<Status>> {
    let request = pb::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    cri.update_container_resources(request).map(drop)
}

fn unified(files: &[(&str, &str)]) -> HashMap<String, String> {
    let own = |(file, value): &(&str, &str)| ((*file).to_owned(), (*value).to_owned());
    files.iter().map(own).collect()
}

/// Ends the test where cgroups here lack one of the controllers.
pub fn need(controllers: &[&str]) -> Result<()> {
    let have = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let have: Vec<_> = have.split_whitespace().collect();
    match controllers.iter().find(|name| !have.contains(*name)) {
        Some(name) => skip(&format!("cgroup v2 has no {name} controller here")),
        None => Ok(()),
    }
}

/// A container that sleeps, held to these resources.
pub fn sleeper(pod: &Pod, name: &str, resources: Wire) -> Result<String> {
    let mut config = cri::shell(name, "exec sleep 1000");
    config.linux.get_or_insert_default().resources = Some(resources);
    pod.started(&config)
}

fn reported(cri: &Cri, id: &str) -> Result<Wire> {
    let resources = cri
        .container(id)?
        .resources
        .context("the status has no resources")?;
    resources.linux.context("the status has no linux resources")
}

/// What every file that limits something says; of no interest are those that count.
fn limits(dir: &Path) -> Result<BTreeMap<String, String>> {
    let limit = |name: &str| {
        [
            ".max", ".high", ".low", ".min", ".weight", ".cpus", ".mems", ".group", ".burst",
        ]
        .iter()
        .any(|end| name.ends_with(end))
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if limit(&name) {
            let text = fs::read_to_string(dir.join(&name)).with_context(|| name.clone())?;
            found.insert(name, text);
        }
    }
    Ok(found)
}

/// The files of a cgroup have to say this.
pub fn say(dir: &Path, files: &[(&str, &str)]) -> Result<()> {
    for (file, expected) in files {
        let text = fs::read_to_string(dir.join(file)).with_context(|| (*file).to_owned())?;
        equal(file, text.trim(), *expected)?;
    }
    Ok(())
}

fn update_with_zero_changes_nothing(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("zero")?);
    let id = sleeper(&pod, "c", Wire::default())?;
    let dir = cgroup(&cri, &id)?;
    let before = (limits(&dir)?, reported(&cri, &id)?);
    update(&cri, &id, Wire::default())?;
    cri.update_container_resources(pb::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        ..Default::default()
    })?;
    equal("limits", (limits(&dir)?, reported(&cri, &id)?), before)?;
    pod.remove()
}

fn everything() -> Wire {
    Wire {
        cpu_period: 50_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 96 * MIB,
        oom_score_adj: 700,
        cpuset_cpus: "0".to_owned(),
        cpuset_mems: "0".to_owned(),
        hugepage_limits: vec![pb::HugepageLimit {
            page_size: "2MB".to_owned(),
            limit: 4 << 20,
        }],
        unified: unified(&[
            ("memory.min", "4194304"),
            ("memory.low", "8388608"),
            ("memory.high", "50331648"),
            ("memory.oom.group", "1"),
            ("pids.max", "77"),
            ("io.weight", "default 50"),
        ]),
    }
}

fn create_honours_every_field(env: &mut Env<'_>) -> Result<()> {
    need(&["cpu", "cpuset", "memory", "pids", "hugetlb", "io"])?;
    let (cri, pod) = (env.cri()?, env.pod("every")?);
    let mut asked = everything();
    // Only some schedulers of block devices have weights.
    if !Path::new("/sys/fs/cgroup/harness/io.weight").exists() {
        asked.unified.remove("io.weight");
    }
    let id = sleeper(&pod, "c", asked.clone())?;
    let dir = cgroup(&cri, &id)?;
    say(
        &dir,
        &[
            ("cpu.max", "20000 50000"),
            ("cpu.weight", "59"),
            ("memory.max", "67108864"),
            ("memory.swap.max", "33554432"),
            ("memory.min", "4194304"),
            ("memory.low", "8388608"),
            ("memory.high", "50331648"),
            ("memory.oom.group", "1"),
            ("pids.max", "77"),
            ("cpuset.cpus", "0"),
            ("cpuset.mems", "0"),
            ("hugetlb.2MB.max", "4194304"),
            ("hugetlb.2MB.rsvd.max", "4194304"),
        ],
    )?;
    // The container sees the same of itself.
    let inside = cri.sh(&id, "cd /sys/fs/cgroup && cat cpu.max cpu.weight memory.max memory.swap.max pids.max cpuset.cpus hugetlb.2MB.max")?;
    equal(
        "inside",
        inside.as_str(),
        "20000 50000\n59\n67108864\n33554432\n77\n0\n4194304\n",
    )?;
    let score = cri.sh(&id, "cat /proc/1/oom_score_adj")?;
    equal("oom_score_adj", score.trim(), "700")?;
    let process = crate::users::pid(env, &id)?;
    let score = fs::read_to_string(format!("/proc/{process}/oom_score_adj"))?;
    equal("oom_score_adj from outside", score.trim(), "700")?;
    equal("status", reported(&cri, &id)?, asked)?;
    pod.remove()
}

fn update_is_what_the_kernel_says(env: &mut Env<'_>) -> Result<()> {
    need(&["cpu", "memory", "pids"])?;
    let (cri, pod) = (env.cri()?, env.pod("kernel")?);
    let id = sleeper(&pod, "c", Wire::default())?;
    let dir = cgroup(&cri, &id)?;
    let change = Wire {
        cpu_quota: 30_000,
        cpu_shares: 2048,
        memory_limit_in_bytes: 100_000_000,
        memory_swap_limit_in_bytes: 100_000_000,
        unified: unified(&[("memory.high", "90000000"), ("pids.max", "50")]),
        ..Default::default()
    };
    update(&cri, &id, change)?;
    say(
        &dir,
        &[
            ("cpu.max", "30000 100000"),
            ("cpu.weight", "174"),
            ("memory.max", "99999744"),
            ("memory.swap.max", "0"),
            ("memory.high", "89997312"),
            ("pids.max", "50"),
        ],
    )?;
    let now = reported(&cri, &id)?;
    equal("quota", (now.cpu_quota, now.cpu_period), (30_000, 100_000))?;
    equal("shares", now.cpu_shares, 2048)?;
    // Asked for in bytes, held to in pages: a client compares with what it asked for.
    equal("memory", now.memory_limit_in_bytes, 100_000_000)?;
    // What somebody else writes is in the status as well.
    fs::write(dir.join("cpu.max"), "40000 100000")?;
    fs::write(dir.join("memory.max"), "max")?;
    let now = reported(&cri, &id)?;
    equal("quota", now.cpu_quota, 40_000)?;
    equal("memory", now.memory_limit_in_bytes, 0)?;
    // A period alone keeps the quota, no quota is -1, and memory and swap together need a limit of memory.
    update(
        &cri,
        &id,
        Wire {
            cpu_period: 20_000,
            ..Default::default()
        },
    )?;
    say(&dir, &[("cpu.max", "40000 20000")])?;
    update(
        &cri,
        &id,
        Wire {
            cpu_quota: -1,
            ..Default::default()
        },
    )?;
    say(&dir, &[("cpu.max", "max 20000")])?;
    let swap = Wire {
        memory_swap_limit_in_bytes: 64 * MIB,
        ..Default::default()
    };
    refused(
        "swap alone",
        Code::InvalidArgument,
        update(&cri, &id, swap.clone()),
    )?;
    let memory = Wire {
        memory_limit_in_bytes: 48 * MIB,
        ..Default::default()
    };
    update(&cri, &id, memory)?;
    update(&cri, &id, swap)?;
    say(
        &dir,
        &[("memory.max", "50331648"), ("memory.swap.max", "16777216")],
    )?;
    pod.remove()
}

/// The CPU manager of a kubelet sends nothing but processors.
fn processors_alone_leave_the_rest(env: &mut Env<'_>) -> Result<()> {
    need(&["cpu", "cpuset", "memory"])?;
    let (cri, pod) = (env.cri()?, env.pod("cpuset")?);
    let asked = Wire {
        cpu_quota: 20_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 * MIB,
        oom_score_adj: 300,
        ..Default::default()
    };
    let id = sleeper(&pod, "c", asked)?;
    let dir = cgroup(&cri, &id)?;
    let before = limits(&dir)?;
    let processors = |list: &str| Wire {
        cpuset_cpus: list.to_owned(),
        ..Default::default()
    };
    update(&cri, &id, processors("0"))?;
    let mut after = limits(&dir)?;
    equal(
        "cpuset",
        after.insert("cpuset.cpus".to_owned(), "\n".to_owned()),
        Some("0\n".to_owned()),
    )?;
    equal("the rest", after, before)?;
    equal("score", reported(&cri, &id)?.oom_score_adj, 300)?;
    for list in ["4000", "0,4000", "0-", "a", "3-1"] {
        refused(list, Code::InvalidArgument, update(&cri, &id, processors(list)))?;
    }
    say(&dir, &[("cpuset.cpus", "0")])?;
    pod.remove()
}

fn a_bad_value_changes_nothing(env: &mut Env<'_>) -> Result<()> {
    need(&["cpu", "memory", "pids"])?;
    let (cri, pod) = (env.cri()?, env.pod("bad")?);
    let id = sleeper(&pod, "c", Wire::default())?;
    let dir = cgroup(&cri, &id)?;
    let before = (limits(&dir)?, reported(&cri, &id)?);
    let table = [
        ("pids.max", "many", Code::InvalidArgument),
        ("memory.high", "-5", Code::InvalidArgument),
        ("cpu.weight", "20000", Code::InvalidArgument),
        ("memory.nothing", "1", Code::FailedPrecondition),
        ("cgroup.procs", "1", Code::InvalidArgument),
        ("../memory.max", "1", Code::InvalidArgument),
        ("memory.max/x", "1", Code::InvalidArgument),
        ("memory.max", "1\n2", Code::InvalidArgument),
    ];
    for (file, value, code) in table {
        let change = Wire {
            cpu_quota: 10_000,
            cpu_shares: 4,
            memory_limit_in_bytes: 32 * MIB,
            unified: unified(&[("memory.low", "4096"), (file, value)]),
            ..Default::default()
        };
        let message = refused(file, code, update(&cri, &id, change))?;
        contains("message", &message, file)?;
        equal(file, (limits(&dir)?, reported(&cri, &id)?), before.clone())?;
    }
    pod.remove()
}

fn a_missing_controller_is_named(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("missing")?);
    let id = sleeper(&pod, "c", Wire::default())?;
    let dir = cgroup(&cri, &id)?;
    let before = limits(&dir)?;
    let change = Wire {
        oom_score_adj: 800,
        unified: unified(&[("nosuch.max", "1")]),
        ..Default::default()
    };
    let message = refused(
        "update",
        Code::FailedPrecondition,
        update(&cri, &id, change.clone()),
    )?;
    contains("message", &message, "nosuch controller")?;
    equal("limits", limits(&dir)?, before)?;
    ensure!(
        reported(&cri, &id)?.oom_score_adj == 0,
        "half of a refused update is in force"
    );
    let mut config = cri::shell("never", "true");
    config.linux.get_or_insert_default().resources = Some(change);
    let message = refused(
        "create",
        Code::FailedPrecondition,
        cri.create(&pod.id, &pod.config, &config),
    )?;
    contains("message", &message, "nosuch controller")?;
    pod.remove()
}

fn states_and_unknown_ids(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("states")?);
    let id = pod.started(&cri::shell("c", "true"))?;
    cri.wait_exit(&id)?;
    refused(
        "exited",
        Code::FailedPrecondition,
        update(&cri, &id, Wire::default()),
    )?;
    let unknown = "0123456789abcdef".repeat(4);
    refused("unknown", Code::NotFound, update(&cri, &unknown, Wire::default()))?;
    let of_pod = |id: &str| {
        cri.update_pod_sandbox_resources(pb::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            ..Default::default()
        })
    };
    refused("unknown pod", Code::NotFound, of_pod(&unknown))?;
    of_pod(&pod.id)?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    })?;
    refused("stopped pod", Code::FailedPrecondition, of_pod(&pod.id))?;
    pod.remove()
}

fn created_container_can_be_updated(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("created")?);
    let id = pod.created(&cri::shell("c", "cat /proc/self/oom_score_adj; exec sleep 1000"))?;
    update(
        &cri,
        &id,
        Wire {
            oom_score_adj: 900,
            ..Default::default()
        },
    )?;
    cri.start(&id)?;
    let score = cri.sh(&id, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj")?;
    equal(
        "scores of the application and of an exec",
        score.trim(),
        "900\n900",
    )?;
    pod.remove()
}

fn memory_in_use_is_not_taken_away(env: &mut Env<'_>) -> Result<()> {
    need(&["memory"])?;
    let (cri, pod) = (env.cri()?, env.pod("in-use")?);
    // 24 MiB that cannot be reclaimed: a file in memory, with swap ruled out.
    let mut config = cri::shell(
        "c",
        "dd if=/dev/zero of=/dev/shm/x bs=1048576 count=24 && exec sleep 1000",
    );
    config.linux.get_or_insert_default().resources = Some(Wire {
        memory_limit_in_bytes: 96 * MIB,
        memory_swap_limit_in_bytes: 96 * MIB,
        ..Default::default()
    });
    let id = pod.started(&config)?;
    let dir = cgroup(&cri, &id)?;
    crate::case::eventually("the file is written", || {
        let used: i64 = fs::read_to_string(dir.join("memory.current"))?.trim().parse()?;
        Ok(used > 24 * MIB)
    })?;
    let lower = |bytes| Wire {
        memory_limit_in_bytes: bytes,
        cpu_shares: 4,
        ..Default::default()
    };
    let before = limits(&dir)?;
    let message = refused(
        "less",
        Code::FailedPrecondition,
        update(&cri, &id, lower(16 * MIB)),
    )?;
    contains("message", &message, "memory.max")?;
    equal("limits", limits(&dir)?, before)?;
    update(&cri, &id, lower(64 * MIB))?;
    equal(
        "state",
        cri.container(&id)?.state(),
        pb::ContainerState::ContainerRunning,
    )?;
    let events = fs::read_to_string(dir.join("memory.events"))?;
    contains("memory.events", &events, "oom_kill 0")?;
    pod.remove()
}

fn update_outlives_podd(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("outlives")?);
    let id = sleeper(&pod, "c", Wire::default())?;
    let mut change = Wire {
        oom_score_adj: 650,
        ..Default::default()
    };
    if need(&["cpu", "memory"]).is_ok() {
        change.cpu_shares = 300;
        change.memory_limit_in_bytes = 50_000_000;
    }
    update(&cri, &id, change)?;
    let before = reported(&cri, &id)?;
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    podd.start_again()?;
    equal("after the restart", reported(&cri, &id)?, before.clone())?;
    // Of a container that is over, what it was held to last.
    cri.stop(&id, 0)?;
    let after = reported(&cri, &id)?;
    equal("score", after.oom_score_adj, 650)?;
    equal(
        "memory",
        after.memory_limit_in_bytes,
        before.memory_limit_in_bytes,
    )?;
    pod.remove()
}

/// Many clients at once, each with files of its own: every last word has to be there in the end.
fn updates_at_once_lose_no_write(env: &mut Env<'_>) -> Result<()> {
    need(&["cpu", "memory", "pids"])?;
    const ROUNDS: u32 = 250;
    let (cri, pod) = (env.cri()?, env.pod("at-once")?);
    let id = sleeper(&pod, "c", Wire::default())?;
    let dir = cgroup(&cri, &id)?;
    let change = |who: u32, round: u32| match who {
        0 => Wire {
            cpu_shares: i64::from(1000 + round),
            ..Default::default()
        },
        1 => Wire {
            cpu_quota: i64::from(10_000 + round),
            ..Default::default()
        },
        2 => Wire {
            memory_limit_in_bytes: 64 * MIB + i64::from(round) * 4096,
            ..Default::default()
        },
        _ => Wire {
            unified: unified(&[("pids.max", &(100 + round).to_string())]),
            ..Default::default()
        },
    };
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|who| {
                let (cri, id) = (cri.clone(), id.as_str());
                scope.spawn(move || -> Result<Vec<Duration>> {
                    let one = |round| {
                        let begun = Instant::now();
                        update(&cri, id, change(who, round))
                            .with_context(|| format!("client {who}, round {round}"))?;
                        Ok(begun.elapsed())
                    };
                    (1..=ROUNDS).map(one).collect()
                })
            })
            .collect();
        let ended = clients.into_iter().map(|client| client.join());
        let times = ended.map(|done| done.unwrap_or_else(|_| anyhow::bail!("a client panicked")));
        Ok::<_, anyhow::Error>(times.collect::<Result<Vec<_>>>()?.concat())
    })?;
    times.sort();
    println!(
        "{} updates of four clients, median {:.2?}, longest {:.2?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    let now = reported(&cri, &id)?;
    equal("shares", now.cpu_shares, 1250)?;
    equal("quota", now.cpu_quota, 10_250)?;
    equal("memory", now.memory_limit_in_bytes, 64 * MIB + 250 * 4096)?;
    equal("pids", now.unified, unified(&[("pids.max", "350")]))?;
    say(
        &dir,
        &[
            ("cpu.max", "10250 100000"),
            ("pids.max", "350"),
            ("memory.max", "68132864"),
        ],
    )?;
    pod.remove()
}

fn oom_score_of_running_processes(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("score")?);
    // The second child has set a score of its own, which is its own affair.
    let script = "sleep 1000 & (echo 950 >/proc/self/oom_score_adj; exec sleep 1000) & exec sleep 1000";
    let id = pod.started(&cri::shell("c", script))?;
    let scores = || -> Result<Vec<String>> {
        let script = "for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' <$p/cmdline)\" = 'sleep 1000 ' ] && cat $p/oom_score_adj; done | sort";
        Ok(cri.sh(&id, script)?.lines().map(str::to_owned).collect())
    };
    crate::case::eventually("three processes", || Ok(scores()?.len() == 3))?;
    update(
        &cri,
        &id,
        Wire {
            oom_score_adj: 600,
            ..Default::default()
        },
    )?;
    equal(
        "scores",
        scores()?,
        ["600", "600", "950"].map(str::to_owned).to_vec(),
    )?;
    equal("status", reported(&cri, &id)?.oom_score_adj, 600)?;
    for score in [1001, -1001] {
        let change = Wire {
            oom_score_adj: score,
            ..Default::default()
        };
        refused("score", Code::InvalidArgument, update(&cri, &id, change))?;
    }
    pod.remove()
}

/// Kubelets send memory.oom.group unless told to kill single processes: all of the container dies, or one.
fn oom_kills_the_group(env: &mut Env<'_>) -> Result<()> {
    need(&["memory"])?;
    let pod = env.pod("group")?;
    let script = "(x=a; while :; do x=$x$x; done); sleep 2; exit 5";
    for (group, code, reason) in [("1", 137, "OOMKilled"), ("0", 5, "Error")] {
        let mut config = cri::shell(&format!("c{group}"), script);
        config.linux.get_or_insert_default().resources = Some(Wire {
            memory_limit_in_bytes: 24 * MIB,
            unified: unified(&[("memory.oom.group", group)]),
            ..Default::default()
        });
        let (status, _) = pod.ran(&config)?;
        equal("exit", (status.exit_code, status.reason.as_str()), (code, reason))?;
    }
    pod.remove()
}
