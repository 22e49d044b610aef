//! The census: everything a pod can leave behind, counted before and after.
//!
//! Sees the arena from inside: its process ids, mounts, cgroups, links, routes, packet filter and namespaces are the
//! arena's alone, so whatever a difference names was left by the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{podd, registry};

/// Kinds of namespaces, as `/proc/PID/ns` names them.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

const OPEN_FILE: &str = "open file of podd";

const POD_FILE: &str = "open file of podinit";

/// A multiset of things, each described by its kind and what a person recognises it by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<String, usize>);

impl Census {
    /// Counts now. `podd` is the process whose open files and mounts count as well.
    #[must_use]
    pub fn take(podd: Option<u32>) -> Self {
        let mut census = Self::default();
        census.processes();
        census.namespaces();
        census.mounts("self", "mount");
        if let Some(pid) = podd {
            census.mounts(&pid.to_string(), "mount of podd");
            census.open_files(OPEN_FILE, pid);
            census.threads(pid);
        }
        for pid in pids() {
            if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "podinit") {
                census.open_files(POD_FILE, pid);
            }
        }
        census.tree("cgroup", Path::new("/sys/fs/cgroup"), true);
        census.tree("file", Path::new(podd::STATE_DIR), false);
        census.tree("file", Path::new(podd::RUN_DIR), false);
        census.network();
        census.ipv4_addresses();
        census.packet_filter();
        census.conversations();
        census
    }

    /// Counts again until nothing differs from `self`, for at most `patience`; what still differs, by name.
    ///
    /// The kernel removes links and namespaces in its own time, so the first difference is not the last word.
    #[must_use]
    pub fn difference(&self, podd: Option<u32>, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let found = self.compare(&Self::take(podd));
            if found.is_empty() || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Counts when what goes in its own time is gone, the cables of removed pods and podd's trash: what still goes when
    /// a test begins would count as lost by it.
    pub fn settled(podd: Option<u32>, patience: Duration) -> Self {
        let deadline = Instant::now() + patience;
        loop {
            let census = Self::take(podd);
            let going = |key: &String| {
                key.starts_with("link pd") || key.contains("/trash/") || key.ends_with("podd-trash")
            };
            if !census.0.keys().any(going) || Instant::now() > deadline {
                return census;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn compare(&self, after: &Self) -> Vec<String> {
        let keys: BTreeSet<_> = self.0.keys().chain(after.0.keys()).collect();
        let count = |census: &Self, key: &str| census.0.get(key).copied().unwrap_or(0);
        keys.into_iter()
            .filter_map(|key| match (count(self, key), count(after, key)) {
                (before, after) if before == after => None,
                // A daemon that was restarted, or has closed an idle connection, has fewer.
                (before, after) if after < before && key.starts_with(OPEN_FILE) => None,
                (0, 1) => Some(format!("left behind: {key}")),
                (1, 0) => Some(format!("lost: {key}")),
                (before, after) => Some(format!("{key}: {before} before, {after} after")),
            })
            .collect()
    }

    fn add(&mut self, kind: &str, what: &str) {
        *self.0.entry(format!("{kind} {what}")).or_default() += 1;
    }

    fn processes(&mut self) {
        for pid in pids() {
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
                continue;
            };
            let name = stat
                .split_once('(')
                .and_then(|(_, r)| r.rsplit_once(')'))
                .map_or("?", |(name, _)| name);
            let zombie = stat
                .rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('Z'));
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // The harness's own helpers are over before anything is compared.
            self.add(
                if zombie { "zombie" } else { "process" },
                &format!("{name} [{}]", line.trim()),
            );
        }
    }

    /// Distinct namespaces that a process lives in or holds open.
    fn namespaces(&mut self) {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for pid in pids() {
            let of_process = NAMESPACES.iter().map(|kind| format!("/proc/{pid}/ns/{kind}"));
            let links = of_process.filter_map(|path| fs::read_link(path).ok());
            seen.extend(links.map(|l| l.to_string_lossy().into_owned()));
            let open = open_files(pid);
            seen.extend(
                open.into_iter()
                    .filter(|l| NAMESPACES.iter().any(|k| l.starts_with(&format!("{k}:[")))),
            );
        }
        for namespace in seen {
            self.add("namespace", namespace.split(':').next().unwrap_or("?"));
        }
    }

    fn mounts(&mut self, pid: &str, kind: &str) {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in table.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let source = line.split_once(" - ").map_or("", |(_, right)| right);
            let source: Vec<_> = source.split(' ').take(2).collect();
            let (root, point) = (words.get(3).unwrap_or(&""), words.get(4).unwrap_or(&""));
            self.add(kind, &format!("{point} ({} {root})", source.join(" ")));
        }
    }

    fn open_files(&mut self, kind: &str, pid: u32) {
        let to_registry = registry_sockets();
        for target in open_files(pid) {
            // Numbers differ from one socket to the next; what counts is how many there are.
            let what = match target.split_once(":[") {
                // An HTTP client keeps a few idle connections for the next pull.
                Some(("socket", number)) if to_registry.contains(number.trim_end_matches(']')) => continue,
                Some((kind, _)) => kind.to_owned(),
                None => target,
            };
            self.add(kind, &what);
        }
    }

    fn tree(&mut self, kind: &str, dir: &Path, only_dirs: bool) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, is_dir) = (entry.path(), entry.file_type().is_ok_and(|t| t.is_dir()));
            if is_dir || !only_dirs {
                self.add(kind, &path.to_string_lossy());
            }
            // What is in an unpacked layer is the images' affair; that the layer is there counts.
            if is_dir && path.components().count() < 8 {
                self.tree(kind, &path, only_dirs);
            }
        }
    }

    fn network(&mut self) {
        for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            self.add("link", &entry.file_name().to_string_lossy());
        }
        for (kind, file) in [
            ("IPv6 address", "/proc/net/if_inet6"),
            ("IPv6 route", "/proc/net/ipv6_route"),
            ("IPv4 route", "/proc/net/route"),
        ] {
            for line in fs::read_to_string(file).unwrap_or_default().lines() {
                let words: Vec<_> = line.split_whitespace().collect();
                let named: Vec<_> = match kind {
                    "IPv6 address" => [0, 5].iter().filter_map(|&i| words.get(i).copied()).collect(),
                    "IPv6 route" => [0, 1, 9].iter().filter_map(|&i| words.get(i).copied()).collect(),
                    _ => [0, 1, 7].iter().filter_map(|&i| words.get(i).copied()).collect(),
                };
                self.add(kind, &named.join(" "));
            }
        }
    }

    /// Own IPv4 addresses: the leaves of the routing trie that are `LOCAL`, each below the line of its address.
    fn ipv4_addresses(&mut self) {
        let trie = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        let mut address = "";
        let mut found = BTreeSet::new();
        for line in trie.lines() {
            match line.trim_start().split_once(' ') {
                Some(("|--", leaf)) => address = leaf,
                Some(("/32", "host LOCAL")) => _ = found.insert(address),
                _ => {}
            }
        }
        for address in found {
            self.add("IPv4 address", address);
        }
    }

    /// UDP conversations with a host port that the kernel remembers: one that outlives its pod sends the packets of a
    /// later client to nobody.
    fn conversations(&mut self) {
        let Ok(listed) = Command::new("conntrack").args(["-L", "-p", "udp"]).output() else {
            return;
        };
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let values = |key: &str| -> Vec<&str> {
                let words = line.split_whitespace();
                words.filter_map(|word| word.strip_prefix(key)).collect()
            };
            // Both directions are listed; where the answer comes from somewhere else, the target was translated.
            if let ([from, answered_by, ..], [to, ..]) = (&values("src=")[..], &values("dst=")[..])
                && answered_by != to
            {
                self.add("conversation", &format!("{from} with {to} at {answered_by}"));
            }
        }
    }

    /// Threads of podd beside those of its runtime, whose number follows the load of the last ten seconds.
    fn threads(&mut self, podd: u32) {
        for task in fs::read_dir(format!("/proc/{podd}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if !name.starts_with("tokio") {
                self.add("thread of podd", name.trim());
            }
        }
    }

    /// Every object of every nftables table, each element of a set for itself.
    fn packet_filter(&mut self) {
        let Ok(listed) = Command::new("nft").args(["-j", "list", "ruleset"]).output() else {
            return;
        };
        let all: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        for object in all["nftables"].as_array().into_iter().flatten() {
            for (kind, body) in object
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(kind, _)| *kind != "metainfo")
            {
                let mut body = body.clone();
                if let Some(fields) = body.as_object_mut() {
                    fields.remove("handle");
                    let elements = fields.remove("elem");
                    let name = fields
                        .get("name")
                        .and_then(Value::as_str)
                        .unwrap_or("?")
                        .to_owned();
                    for element in elements.iter().flat_map(|e| e.as_array()).flatten() {
                        self.add("nft element", &format!("{name} {element}"));
                    }
                }
                self.add("nft", &format!("{kind} {body}"));
            }
        }
    }
}

/// Every process of the arena.
#[must_use]
pub fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Number of links of the arena: loopback, podd's bridge, and one for each pod.
#[must_use]
pub fn links() -> usize {
    fs::read_dir("/sys/class/net").into_iter().flatten().count()
}

/// Number of cgroups of the arena.
#[must_use]
pub fn cgroups() -> usize {
    fn below(dir: &Path) -> usize {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        dirs.map(|e| 1 + below(&e.path())).sum()
    }
    below(Path::new("/sys/fs/cgroup"))
}

/// Number of mounts of the arena.
#[must_use]
pub fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .count()
}

/// Number of trees that podd has yet to delete.
#[must_use]
pub fn trash() -> usize {
    fs::read_dir(Path::new(podd::STATE_DIR).join("trash"))
        .into_iter()
        .flatten()
        .count()
}

/// What cannot be counted here, and the command that is missing for it.
#[must_use]
pub fn uncounted() -> Vec<(&'static str, &'static str)> {
    let missing = |command: &str| Command::new(command).arg("--version").output().is_err();
    [("nftables", "nft"), ("UDP conversations", "conntrack")]
        .into_iter()
        .filter(|(_, command)| missing(command))
        .collect()
}

/// Number of threads of a process.
#[must_use]
pub fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .count()
}

/// Inodes of the sockets that are connected to the registry.
fn registry_sockets() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let peer = format!(":{:04X}", registry::PORT);
    let lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let connected = lines.filter(|words| words.get(2).is_some_and(|address| address.ends_with(&peer)));
    connected
        .filter_map(|words| words.get(9).map(|inode| (*inode).to_owned()))
        .collect()
}

fn open_files(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|e| Some(fs::read_link(e.path()).ok()?.to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_was_left_and_lost() {
        let (mut before, mut after) = (Census::default(), Census::default());
        before.add("link", "lo");
        before.add("cgroup", "/a");
        after.add("link", "lo");
        after.add("link", "veth0");
        after.add("process", "podinit");
        after.add("process", "podinit");
        let named = before.compare(&after);
        assert_eq!(
            named,
            [
                "lost: cgroup /a",
                "left behind: link veth0",
                "process podinit: 0 before, 2 after"
            ]
        );
    }
}
