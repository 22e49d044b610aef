//! Limits as the kernel has them: files of the cgroup, and /proc/PID/limits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use serde::Serialize;

use crate::tool::procfs::LINE;

/// Files of a cgroup that limit or count (Documentation/admin-guide/cgroup-v2.rst). Which of them are there is up to
/// the controllers that the node has.
const FILES: [&str; 26] = [
    "cgroup.events",
    "cgroup.freeze",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.stat",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.cpus.effective",
    "cpuset.mems",
    "cpuset.mems.effective",
    "io.max",
    "io.weight",
    "memory.current",
    "memory.events",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.oom.group",
    "memory.peak",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.max",
    "pids.peak",
];

/// Most sizes of huge pages.
const PAGE_SIZES: usize = 16;

/// What the files of a cgroup say, by name; those that are not there are left out.
#[must_use]
pub fn of_cgroup(directory: &Path) -> BTreeMap<String, String> {
    let mut names: Vec<String> = FILES.iter().map(|&name| name.to_owned()).collect();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let huge = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.starts_with("hugetlb.") && name.ends_with(".max") && !name.contains("rsvd"));
    names.extend(huge.take(PAGE_SIZES));
    let read = |name: String| {
        let mut text = String::new();
        let file = File::open(directory.join(&name)).ok()?;
        file.take(LINE).read_to_string(&mut text).ok()?;
        Some((name, text.trim_end().to_owned()))
    };
    names.into_iter().filter_map(read).collect()
}

/// A limit of a process (getrlimit(2)).
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rlimit {
    /// As the kernel names it.
    pub name: String,
    /// What holds now: a number or `unlimited`.
    pub soft: String,
    /// What the process may raise it to.
    pub hard: String,
}

/// The lines of /proc/PID/limits, whose columns have fixed widths.
#[must_use]
pub fn parse_rlimits(text: &str) -> Vec<Rlimit> {
    let line = |line: &str| {
        let mut values = line.get(26..)?.split_ascii_whitespace();
        Some(Rlimit {
            name: line.get(..26)?.trim().to_owned(),
            soft: values.next()?.to_owned(),
            hard: values.next()?.to_owned(),
        })
    };
    text.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_limits_are_read() {
        let text = fs::read_to_string("/proc/self/limits").unwrap();
        let limits = parse_rlimits(&text);
        assert_eq!(limits.len(), 16, "{limits:?}");
        let files = limits.iter().find(|l| l.name == "Max open files").unwrap();
        assert!(
            files.soft.parse::<u64>().is_ok() || files.soft == "unlimited",
            "{files:?}"
        );
        assert!(parse_rlimits("").is_empty() && parse_rlimits("head\nshort").is_empty());
    }

    #[test]
    fn files_that_are_not_there_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cpu.max"), "max 100000\n").unwrap();
        fs::write(directory.path().join("hugetlb.2MB.max"), "0\n").unwrap();
        fs::write(directory.path().join("hugetlb.2MB.rsvd.max"), "0\n").unwrap();
        let found = of_cgroup(directory.path());
        let want = [("cpu.max", "max 100000"), ("hugetlb.2MB.max", "0")];
        assert_eq!(found, want.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert!(of_cgroup(Path::new("/nonexistent")).is_empty());
    }
}
