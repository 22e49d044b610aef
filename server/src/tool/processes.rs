//! The processes of a container, by its cgroup and `/proc`.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::procfs::{LARGE, LINE, Proc, field};

/// Most processes of one container that are looked at.
pub const MOST: usize = 4096;

/// Most cgroups below a container's that are looked at, and how deep they may be.
const CGROUPS: usize = 1024;
const DEPTH: usize = 16;

/// Most processes whose memory keeps us waiting before the rest is not asked for its command line.
const SLOW: usize = 8;

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its pid on the node.
    pub pid: i32,
    /// Its pid in the container.
    pub pid_inside: i32,
    /// Its parent's pid on the node.
    pub parent: i32,
    /// Its user on the node.
    pub uid: u32,
    /// Its user in the container's user namespace, where that knows it.
    pub uid_inside: Option<u32>,
    /// The user's name in the container's /etc/passwd.
    pub user: Option<String>,
    /// The letter of ps(1).
    pub state: char,
    /// Its threads.
    pub threads: u32,
    /// Processor time in clock ticks.
    #[serde(skip)]
    pub ticks: u64,
    /// Memory that is resident, in bytes.
    pub rss_bytes: u64,
    /// Its command line, or its name in brackets where it has none or keeps it.
    pub command: String,
}

/// The processes of one container.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    /// By pid.
    pub list: Vec<Process>,
    /// There are more than [`MOST`].
    pub more: bool,
}

/// The pids in a cgroup and those below.
///
/// # Errors
/// The cgroup is gone or cannot be read.
pub fn pids(cgroup: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    let mut waiting: Vec<(PathBuf, usize)> = vec![(cgroup.to_owned(), 0)];
    let mut seen = 0;
    while let Some((directory, depth)) = waiting.pop() {
        seen += 1;
        match read_procs(&directory) {
            Ok(found) => pids.extend(found),
            Err(e) if depth == 0 => return Err(e),
            // Removed meanwhile, or threaded: then the processes are in the cgroup above.
            Err(_) => {}
        }
        if depth < DEPTH && pids.len() <= MOST {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if seen + waiting.len() < CGROUPS && entry.file_type().is_ok_and(|t| t.is_dir()) {
                    waiting.push((entry.path(), depth + 1));
                }
            }
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn read_procs(cgroup: &Path) -> io::Result<Vec<i32>> {
    let mut text = String::new();
    File::open(cgroup.join("cgroup.procs"))?
        .take(LARGE)
        .read_to_string(&mut text)?;
    // 0 stands for a process that this pid namespace does not see.
    Ok(text
        .lines()
        .filter_map(|l| l.parse().ok())
        .filter(|pid| *pid > 0)
        .collect())
}

impl Processes {
    /// Reads the processes in a cgroup and those below.
    ///
    /// # Errors
    /// The cgroup is gone or cannot be read.
    pub fn read(cgroup: &Path) -> io::Result<Self> {
        let mut pids = pids(cgroup)?;
        let more = pids.len() > MOST;
        pids.truncate(MOST);
        let (mut users, mut slow) = (Users::default(), 0);
        // What has ended since is left out.
        let list = pids
            .into_iter()
            .filter_map(|pid| read(pid, &mut users, &mut slow).ok())
            .collect();
        Ok(Self { list, more })
    }
}

fn read(pid: i32, users: &mut Users, slow: &mut usize) -> io::Result<Process> {
    let proc = Proc::open(pid)?;
    let status = proc.text("status", LARGE)?;
    let mut process = parse_status(pid, &status);
    process.ticks = parse_ticks(&proc.text("stat", LINE)?);
    process.uid_inside = users.inside(&proc, process.uid);
    process.user = process.uid_inside.and_then(|uid| users.name(&proc, uid));
    let name = field(&status, "Name").unwrap_or_default();
    process.command = format!("[{name}]");
    if *slow < SLOW && process.state != 'Z' {
        match proc.try_read("cmdline", LINE) {
            Some(line) if line.iter().any(|b| *b != 0) => process.command = command(&line),
            Some(_) => {}
            None => *slow += 1,
        }
    }
    Ok(process)
}

fn parse_status(pid: i32, status: &str) -> Process {
    let word = |key: &str| field(status, key).and_then(|v| v.split_ascii_whitespace().next());
    let number = |key: &str| word(key).and_then(|v| v.parse().ok());
    let inside = field(status, "NSpid").and_then(|pids| pids.split_ascii_whitespace().next_back());
    Process {
        pid,
        pid_inside: inside.and_then(|pid| pid.parse().ok()).unwrap_or(pid),
        parent: word("PPid").and_then(|v| v.parse().ok()).unwrap_or_default(),
        uid: field(status, "Uid")
            // Real, effective, saved, file system: the second is who it acts as.
            .and_then(|ids| ids.split_ascii_whitespace().nth(1)?.parse().ok())
            .unwrap_or_default(),
        state: word("State").and_then(|v| v.chars().next()).unwrap_or('?'),
        threads: word("Threads").and_then(|v| v.parse().ok()).unwrap_or_default(),
        rss_bytes: number("VmRSS").map_or(0, |kib: u64| kib.saturating_mul(1024)),
        ..Process::default()
    }
}

/// utime and stime, fields 14 and 15 of proc_pid_stat(5). The name before them may hold any character.
fn parse_ticks(stat: &str) -> u64 {
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after.split_ascii_whitespace().skip(11);
    let mut next = || {
        fields
            .next()
            .and_then(|f| f.parse::<u64>().ok())
            .unwrap_or_default()
    };
    next().saturating_add(next())
}

/// The arguments in /proc/PID/cmdline, with spaces between.
#[must_use]
pub fn command(line: &[u8]) -> String {
    let line = line.strip_suffix(&[0]).unwrap_or(line);
    String::from_utf8_lossy(line).replace('\0', " ")
}

/// Users as the container knows them. Processes of a container mostly share one map and one /etc/passwd: both are
/// read once.
#[derive(Default)]
struct Users {
    maps: HashMap<String, Vec<u8>>,
    names: Option<BTreeMap<u32, String>>,
}

impl Users {
    fn inside(&mut self, proc: &Proc, uid: u32) -> Option<u32> {
        let namespace = proc.link("ns/user").ok()?;
        let map = self
            .maps
            .entry(namespace)
            .or_insert_with(|| proc.read("uid_map", LINE * 8).unwrap_or_default());
        inside(&String::from_utf8_lossy(map), uid)
    }

    fn name(&mut self, proc: &Proc, uid: u32) -> Option<String> {
        let names = self
            .names
            .get_or_insert_with(|| parse_passwd(&proc.try_read_in_root("etc/passwd", LARGE)));
        names.get(&uid).cloned()
    }
}

/// What a user of the node is in a namespace with this map (user_namespaces(7)).
fn inside(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (first, outside, count) = (next()?, next()?, next()?);
        let offset = uid.checked_sub(outside).filter(|offset| *offset < count)?;
        first.checked_add(offset)
    })
}

/// Names of users that are names: the file is the container's.
fn parse_passwd(bytes: &[u8]) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in String::from_utf8_lossy(bytes).lines() {
        let mut fields = line.split(':');
        let (name, uid) = (
            fields.next().unwrap_or_default(),
            fields.nth(1).unwrap_or_default(),
        );
        let good = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if let (true, Ok(uid)) = (good, uid.parse()) {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_move_fields() {
        let tail = "S 1 2 3 0 -1 4194560 1 0 0 0 7 5 0 0 20 0 1 0 100 1 1";
        for name in ["(sleep)", "(a) R 9 9 9)", "(()", "(a\n)"] {
            assert_eq!(parse_ticks(&format!("12 {name} {tail}")), 12, "{name}");
        }
        assert_eq!(parse_ticks("garbage"), 0);
    }

    #[test]
    fn status_is_read_as_the_kernel_writes_it() {
        let status = "Name:\tsh\nState:\tS (sleeping)\nPPid:\t10\nUid:\t5\t1000\t5\t5\n\
            NSpid:\t77\t3\nVmRSS:\t    1024 kB\nThreads:\t2\n";
        let process = parse_status(77, status);
        assert_eq!((process.pid, process.pid_inside, process.parent), (77, 3, 10));
        assert_eq!((process.uid, process.state, process.threads), (1000, 'S', 2));
        assert_eq!(process.rss_bytes, 1 << 20);
        assert_eq!(parse_status(5, "").state, '?');
    }

    #[test]
    fn users_are_mapped_and_named() {
        let map = "         0     100000      65536\n     70000 5 1\n";
        assert_eq!(inside(map, 100_000), Some(0));
        assert_eq!(inside(map, 165_535), Some(65_535));
        assert_eq!(inside(map, 5), Some(70_000));
        assert_eq!(inside(map, 165_536), None);
        assert_eq!(inside("4294967295 0 4294967295", 1), None);
        let names = parse_passwd(
            b"root:x:0:0::/:/bin/sh\n\xffbad:x:1:1\ntoor:x:0:0\nweb:x:33:33\nx\x1b[1m:x:2:2\nnone\n",
        );
        assert_eq!(names, [(0, "root".to_owned()), (33, "web".to_owned())].into());
    }

    #[test]
    fn own_processes_are_found() {
        let own = std::process::id().cast_signed();
        let process = read(own, &mut Users::default(), &mut 0).unwrap();
        assert_eq!((process.pid, process.user.as_deref().is_some()), (own, true));
        assert!(
            process.rss_bytes > 0 && !process.command.starts_with('['),
            "{process:?}"
        );
        assert_eq!(command(b"sh\0-c\0a b\0"), "sh -c a b");
    }
}
