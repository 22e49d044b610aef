//! Updates of plain directories that look like cgroups: order, what is taken back, what counts as taken.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::cgroup::{CgroupPath, CgroupRoot};

fn change(file: &str, old: &str, new: &str) -> Change {
    Change {
        file: file.to_owned(),
        old: old.to_owned(),
        new: new.to_owned(),
    }
}

fn limits(json: serde_json::Value) -> Limits {
    Limits::from_oci(&serde_json::from_value(json).unwrap()).unwrap()
}

/// A plain directory with these files and the usual controllers.
fn group(dir: &Path, files: &[(&str, &str)]) -> Cgroup {
    fs::write(dir.join("cgroup.controllers"), "cpu memory pids cpuset").unwrap();
    for (file, text) in files {
        fs::write(dir.join(file), text).unwrap();
    }
    let root = CgroupRoot::open_anywhere(dir).unwrap();
    root.find(&CgroupPath::root()).unwrap().unwrap()
}

#[test]
fn what_grows_is_written_before_what_shrinks() {
    let order_of = |mut changes: Vec<Change>| -> Vec<String> {
        changes.sort_by(order);
        changes.into_iter().map(|c| c.file).collect()
    };
    let shrinking_memory = order_of(vec![
        change("memory.max", "max", "1000"),
        change("cpuset.cpus", "", "0-1"),
        change("cpu.max", "max 100000", "500 100000"),
        change("memory.swap.max", "0", "5000"),
    ]);
    assert_eq!(
        shrinking_memory,
        ["memory.swap.max", "cpuset.cpus", "memory.max", "cpu.max"]
    );
    let growing = order_of(vec![
        change("cpu.max.burst", "0", "900"),
        change("cpu.max", "100 1000", "900 1000"),
    ]);
    assert_eq!(growing, ["cpu.max", "cpu.max.burst"]);
    let shrinking = order_of(vec![
        change("cpu.max", "900 1000", "100 1000"),
        change("cpu.max.burst", "900", "0"),
    ]);
    assert_eq!(shrinking, ["cpu.max.burst", "cpu.max"]);
}

#[test]
fn a_value_is_taken_where_the_kernel_only_writes_it_differently() {
    for (file, new, now, taken) in [
        ("memory.max", "100000000", "99999744", true),
        ("memory.max", "100000000", "99995648", false),
        ("memory.high", "64M", "67108864", true),
        ("memory.max", "max", "1", false),
        ("hugetlb.2MB.max", "4194305", "4194304", true),
        ("hugetlb.2MB.max", "6291456", "4194304", false),
        ("cpu.max", "5000", "5000 100000", true),
        ("cpu.max", "5000 50000", "5000 100000", false),
        ("cpu.weight", "100", "99", false),
        ("cpuset.cpus", "0,1,3", "0-1,3", true),
        ("cpuset.cpus", "0,1", "0", false),
        ("io.max", "8:0 rbps=1", "8:0 rbps=1 wbps=max", true),
    ] {
        assert_eq!(change(file, "", new).taken_as(now), taken, "{file} {new} {now}");
    }
}

#[test]
fn keyed_files_are_taken_back_by_key() {
    let back = |file, old, new| change(file, old, new).back();
    assert_eq!(back("pids.max", "max", "5"), ["max"]);
    assert_eq!(back("cpuset.cpus", "", "0"), ["\n"]);
    let old = "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=max riops=max wiops=max";
    assert_eq!(
        back("io.max", old, "8:16 rbps=9"),
        ["8:16 rbps=2 wbps=max riops=max wiops=max"]
    );
    assert_eq!(
        back("io.max", old, "9:0 rbps=9"),
        ["9:0 rbps=max wbps=max riops=max wiops=max"]
    );
    assert_eq!(back("io.weight", "default 100", "200"), ["default 100"]);
}

#[test]
fn a_write_that_fails_takes_back_those_before_it() {
    let temp = tempfile::tempdir().unwrap();
    let group = group(
        temp.path(),
        &[
            ("cpu.weight", "100"),
            ("memory.max", "max"),
            ("memory.current", "1"),
        ],
    );
    // A directory can be read as little as written, and fails late enough when it is the last to be looked at.
    let asked =
        limits(json!({ "cpu": { "shares": 2 }, "memory": { "limit": 4096 }, "pids": { "limit": 5 } }));
    let error = group.update(&asked).unwrap_err();
    assert!(matches!(error, CgroupError::NoFile { .. }), "{error}");
    assert_eq!(fs::read_to_string(temp.path().join("cpu.weight")).unwrap(), "100");

    fs::write(temp.path().join("pids.max"), "max").unwrap();
    fs::write(temp.path().join("memory.current"), "99999999").unwrap();
    let error = group.update(&asked).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory.max of cgroup / cannot be 4096: 99999999 bytes are in use after reclaim, and the kernel would kill \
         processes to get below"
    );
    for (file, text) in [("cpu.weight", "100"), ("pids.max", "max"), ("memory.max", "max")] {
        let now = fs::read_to_string(temp.path().join(file)).unwrap();
        // A plain file keeps the end of a longer text; the kernel does not.
        assert!(now.starts_with(text), "{file} {now:?}");
    }
}

#[test]
fn nothing_is_written_that_is_there_already() {
    let temp = tempfile::tempdir().unwrap();
    let group = group(temp.path(), &[("pids.max", "5\n"), ("cpu.weight", "100\n")]);
    let asked = limits(json!({ "pids": { "limit": 5 }, "cpu": { "shares": 1024 } }));
    let updated = group.update(&asked).unwrap();
    assert_eq!(updated.done, []);
}

#[test]
fn the_last_word_on_a_file_counts() {
    let temp = tempfile::tempdir().unwrap();
    let group = group(temp.path(), &[("pids.max", "9")]);
    let asked = limits(json!({ "pids": { "limit": 5 }, "unified": { "pids.max": "7" } }));
    let updated = group.update(&asked).unwrap();
    assert_eq!(updated.done, [change("pids.max", "9", "7")]);
    assert!(updated.write_back().is_empty());
    assert_eq!(fs::read_to_string(temp.path().join("pids.max")).unwrap(), "9");
}

#[test]
fn processors_are_given_by_the_cgroup_above() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("cpuset.cpus.effective"), "0-1\n").unwrap();
    let below = temp.path().join("c");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.controllers"), "cpuset").unwrap();
    let root = CgroupRoot::open_anywhere(temp.path()).unwrap();
    let group = root.find(&"c".parse().unwrap()).unwrap().unwrap();
    let asked = |cpus: &str| limits(json!({ "cpu": { "cpus": cpus } }));
    group.check(&asked("0")).unwrap();
    group.check(&asked("0-1")).unwrap();
    assert_eq!(
        group.check(&asked("1-2")).unwrap_err().to_string(),
        "cpuset.cpus of cgroup /c cannot be \"1-2\": the cgroup above has \"0-1\""
    );
}

#[test]
fn lists_of_ids() {
    assert_eq!(id_set("").map(|ids| ids.len()), Some(0));
    assert_eq!(id_set("0-3,7\n").map(|ids| ids.len()), Some(5));
    for bad in ["a", "1-", "-1", "0-99999999", "4294967296"] {
        assert_eq!(id_set(bad), None, "{bad}");
    }
}
