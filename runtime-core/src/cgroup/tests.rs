//! Limits as values, files in plain directories, and life and death on the real cgroup2 mount where there is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use serde_json::{Value as Json, json};

use super::limits::Value;
use super::*;

fn limits(json: Json) -> Result<Limits, CgroupError> {
    Limits::from_oci(&serde_json::from_value::<LinuxResources>(json).unwrap())
}

/// `file=value` per write, late ones marked `@`, those that ask nothing `?`.
fn printed(json: Json) -> Vec<String> {
    let mark = |on, mark| if on { mark } else { "" };
    let print = |write: &super::limits::Write| {
        let value = match &write.value {
            Value::Text(text) => text.clone(),
            other => format!("{other:?}"),
        };
        format!(
            "{}={value}{}{}",
            write.file,
            mark(write.late, "@"),
            mark(write.asks_nothing, "?")
        )
    };
    limits(json).unwrap().writes().iter().map(print).collect()
}

#[test]
fn shares_become_weights_on_the_current_curve() {
    for (shares, weight) in [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 2),
        (102, 17),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (262_144, 10_000),
        (u64::MAX, 10_000),
    ] {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    let weights: Vec<u64> = (2..=262_144).map(weight_of_shares).collect();
    assert!(weights.is_sorted());
}

#[test]
fn a_kubelets_resources_become_these_writes() {
    let all = printed(json!({
        "cpu": { "shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0-1", "mems": "0" },
        "memory": { "limit": 134_217_728, "swap": 134_217_728 },
        "pids": { "limit": 100 },
        "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }, { "pageSize": "1GB", "limit": 1_073_741_824 }],
        "unified": { "memory.high": "100000000", "memory.oom.group": "1" }
    }));
    assert_eq!(
        all,
        [
            "cpu.weight=100",
            "cpu.max=50000 100000@",
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
            "memory.max=134217728@",
            "memory.swap.max=0@?",
            "pids.max=100",
            "hugetlb.2MB.max=0?",
            "hugetlb.2MB.rsvd.max=0?",
            "hugetlb.1GB.max=1073741824",
            "hugetlb.1GB.rsvd.max=1073741824",
            "memory.high=100000000@",
            "memory.oom.group=1",
        ]
    );
}

#[test]
fn zero_asks_nothing_and_negative_is_no_limit() {
    let zero = json!({
        "cpu": { "shares": 0, "quota": 0, "period": 0, "cpus": "" },
        "memory": { "limit": 0, "swap": 0, "reservation": 0 },
        "pids": { "limit": 0 }
    });
    assert!(limits(zero).unwrap().is_empty());
    let unlimited = json!({
        "cpu": { "quota": -1 }, "memory": { "limit": -1, "swap": -1 }, "pids": { "limit": -1 }
    });
    assert_eq!(
        printed(unlimited),
        [
            "cpu.max=max@",
            "memory.max=max@",
            "memory.swap.max=max@?",
            "pids.max=max"
        ]
    );
}

#[test]
fn what_adds_to_the_present_value_waits_for_it() {
    assert_eq!(
        printed(json!({ "cpu": { "period": 50_000 } })),
        ["cpu.max=CpuPeriod(50000)@?"]
    );
    assert_eq!(
        printed(json!({ "memory": { "swap": 30 } })),
        ["memory.swap.max=MemoryPlusSwap(30)@"]
    );
    let read = |text: &'static str| move |_: &str| Ok(text.to_owned());
    assert_eq!(
        Value::CpuPeriod(5).resolve(read("200 100000\n")).unwrap(),
        "200 5"
    );
    assert_eq!(Value::MemoryPlusSwap(30).resolve(read("20\n")).unwrap(), "10");
    assert!(Value::MemoryPlusSwap(30).resolve(read("max\n")).is_err());
}

#[test]
fn impossible_limits_are_refused() {
    for bad in [
        json!({ "memory": { "limit": 100, "swap": 50 } }),
        json!({ "memory": { "limit": -1, "swap": 50 } }),
        json!({ "memory": { "disableOOMKiller": true } }),
        json!({ "cpu": { "realtimeRuntime": 1 } }),
        json!({ "hugepageLimits": [{ "pageSize": "2MB/../../x", "limit": 1 }] }),
        json!({ "hugepageLimits": [{ "pageSize": "MB", "limit": 1 }] }),
        json!({ "unified": { "cgroup.procs": "1" } }),
        json!({ "unified": { "memory.max/../cpu.max": "1" } }),
        json!({ "unified": { "memory": "1" } }),
        json!({ "unified": { "../memory.max": "1" } }),
        json!({ "blockIO": { "weight": 10 } }),
    ] {
        assert!(limits(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn paths_stay_below_the_root() {
    let path: CgroupPath = "/kubepods/burstable".parse().unwrap();
    assert_eq!(path.as_str(), "kubepods/burstable");
    assert_eq!(path.join("pod1").unwrap().parent(), Some(path.clone()));
    assert_eq!(path.name(), "burstable");
    assert_eq!(CgroupPath::root().parent(), None);
    assert_eq!("/".parse(), Ok(CgroupPath::root()));
    for bad in [
        "a//b",
        "a/",
        "..",
        "a/../b",
        "a/.",
        "a\nb",
        "a\0",
        &"x".repeat(256),
    ] {
        assert!(bad.parse::<CgroupPath>().is_err(), "{bad:?}");
        assert!(path.join(bad).is_err(), "{bad:?}");
    }
    assert!(path.join("").is_err());
}

/// A plain directory with the files that a cgroup with these controllers would have.
fn fake(dir: &Path, controllers: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
    fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
    for file in ["cpu.max", "memory.max", "memory.swap.max"] {
        fs::write(dir.join(file), "max").unwrap();
    }
}

#[test]
fn a_limit_without_its_controller_is_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    fake(temp.path(), "cpu");
    let root = CgroupRoot::open_anywhere(temp.path()).unwrap();
    let group = root.find(&CgroupPath::root()).unwrap().unwrap();
    let refused = limits(json!({ "cpu": { "quota": 1000 }, "memory": { "limit": 4096 } })).unwrap();
    let error = group.apply(&refused, Phase::All).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory.max needs the memory controller, which is not available in cgroup /"
    );
    // Nothing was written, not even what could have been.
    assert_eq!(fs::read_to_string(temp.path().join("cpu.max")).unwrap(), "max");

    let zero = limits(json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }] })).unwrap();
    group.apply(&zero, Phase::All).unwrap();
}

#[test]
fn late_limits_are_written_late() {
    let temp = tempfile::tempdir().unwrap();
    fake(temp.path(), "cpu memory");
    fs::write(temp.path().join("cpu.weight"), "").unwrap();
    let root = CgroupRoot::open_anywhere(temp.path()).unwrap();
    let group = root.find(&CgroupPath::root()).unwrap().unwrap();
    let asked =
        limits(json!({ "cpu": { "shares": 2, "period": 5000 }, "memory": { "limit": 4096 } })).unwrap();
    let read = |file| fs::read_to_string(temp.path().join(file)).unwrap();

    group.apply(&asked, Phase::Early).unwrap();
    assert_eq!(
        [read("cpu.weight"), read("cpu.max"), read("memory.max")],
        ["1", "max", "max"]
    );
    group.apply(&asked, Phase::Late).unwrap();
    assert_eq!(
        [read("cpu.weight"), read("cpu.max"), read("memory.max")],
        ["1", "max 5000", "4096"]
    );
}

#[test]
fn a_plain_directory_is_no_cgroup() {
    let temp = tempfile::tempdir().unwrap();
    assert!(matches!(
        CgroupRoot::open(temp.path()),
        Err(CgroupError::NotCgroup2(_))
    ));
    assert!(matches!(
        CgroupRoot::open(&temp.path().join("none")),
        Err(CgroupError::Open { .. })
    ));
}

/// A directory of this test's own below the machine's cgroup2 mount, removed at the end.
pub(super) struct Real {
    pub(super) root: CgroupRoot,
    dir: PathBuf,
}

impl Real {
    /// `None` when this process may not make cgroups: then there is nothing to test here.
    pub(super) fn new(name: &str) -> Option<Self> {
        let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .iter()
            .find(|mount| CgroupRoot::open(Path::new(mount)).is_ok())?;
        let dir = Path::new(mount).join(format!("podd-unit-{}-{name}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        Some(Self {
            root: CgroupRoot::open(&dir).unwrap(),
            dir,
        })
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _only_a_failed_test_leaves_it = fs::remove_dir(&self.dir);
    }
}

pub(super) fn sleeper(group: &Cgroup) -> Child {
    let child = Command::new("sleep").arg("60").spawn().unwrap();
    group.attach(child.id()).unwrap();
    child
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn root_killed_groups_become_empty_and_go() {
    let Some(real) = Real::new("kill") else { return };
    let path: CgroupPath = "pod/container".parse().unwrap();
    let group = real.root.create(&path).unwrap();
    assert!(!group.populated().unwrap());
    group.wait_empty(Instant::now()).unwrap();

    let inner = real
        .root
        .create(&path.join("made-by-the-container").unwrap())
        .unwrap();
    let mut child = sleeper(&inner);
    assert_eq!(inner.procs().unwrap(), [child.id()]);
    assert!(group.populated().unwrap());
    let short = Instant::now() + Duration::from_millis(20);
    assert!(matches!(group.wait_empty(short), Err(CgroupError::Deadline(_))));
    assert!(matches!(
        real.root.remove(&path, Instant::now()),
        Err(CgroupError::Deadline(_))
    ));

    group.kill().unwrap();
    let reaper = std::thread::spawn(move || child.wait());
    group.wait_empty(soon()).unwrap();
    group.remove(soon()).unwrap();
    reaper.join().unwrap().unwrap();
    assert!(real.root.find(&path).unwrap().is_none());
    real.root.remove(&path, soon()).unwrap();
    real.root.remove(&"pod".parse().unwrap(), soon()).unwrap();
}

#[test]
fn root_an_open_group_that_was_removed_is_empty() {
    let Some(real) = Real::new("gone") else { return };
    let path: CgroupPath = "x".parse().unwrap();
    let group = real.root.create(&path).unwrap();
    real.root.remove(&path, soon()).unwrap();
    assert!(!group.populated().unwrap());
    group.wait_empty(soon()).unwrap();
    assert_eq!(group.memory_events().unwrap(), None);
}

#[test]
fn root_creating_twice_is_fine_and_controllers_are_handed_down() {
    let Some(real) = Real::new("twice") else { return };
    let path: CgroupPath = "a/b".parse().unwrap();
    let first = real.root.create(&path).unwrap();
    let again = real.root.create(&path).unwrap();
    assert_eq!(first.path(), again.path());
    // Whatever this machine delegates arrives at the bottom.
    assert_eq!(again.controllers().unwrap(), real.root.controllers().unwrap());
    real.root.remove(&"a".parse().unwrap(), soon()).unwrap();
}

#[test]
fn weights_become_shares_that_become_the_weight() {
    for weight in [1, 2, 17, 100, 174, 9_999, 10_000] {
        assert_eq!(weight_of_shares(shares_of_weight(weight)), weight, "{weight}");
    }
    assert_eq!(shares_of_weight(1), 2);
}

#[test]
fn root_scores_change_where_nobody_set_another() {
    let Some(real) = Real::new("score") else { return };
    let path: CgroupPath = "c".parse().unwrap();
    let group = real.root.create(&path).unwrap();
    // First the processes: a cgroup that has handed controllers down takes none.
    let (first, third) = (sleeper(&group), sleeper(&group));
    let below = real
        .root
        .create(&path.join("made-by-the-container").unwrap())
        .unwrap();
    let mut children = [first, sleeper(&below), third];
    let file = |child: &Child| format!("/proc/{}/oom_score_adj", child.id());
    let from: i32 = fs::read_to_string(file(&children[0]))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    fs::write(file(&children[2]), "999").unwrap();
    group.change_oom_score_adj(from, 900).unwrap();
    let now: Vec<String> = children
        .iter()
        .map(|child| fs::read_to_string(file(child)).unwrap().trim().to_owned())
        .collect();
    assert_eq!(now, ["900", "900", "999"]);
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    real.root.remove(&path, soon()).unwrap();
}
