//! The processes of a runtime: what they hold in memory and what they took of the processors.

use std::fs;

use podd_e2e::census;
use serde_json::{Value, json};

/// How the processes of a runtime are told from all others: by words of their command lines.
#[derive(Debug, Clone)]
pub struct Processes {
    /// The daemon.
    pub daemon: String,
    /// What it keeps running for pods: several separated by `|`.
    pub procs: String,
}

/// Memory of a runtime in KiB, as /proc/PID/smaps_rollup counts it (proc(5)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Resident size of the daemon.
    pub daemon_rss: u64,
    /// Proportional size of the daemon.
    pub daemon_pss: u64,
    /// Number of the other processes.
    pub procs: u64,
    /// Their resident sizes together.
    pub rss: u64,
    /// Their proportional sizes together.
    pub pss: u64,
}

impl Memory {
    /// All of it, under the keys of the report.
    pub fn report(&self) -> Value {
        json!({"daemon_rss": self.daemon_rss, "daemon_pss": self.daemon_pss, "procs": self.procs,
            "rss": self.rss, "pss": self.pss})
    }
}

impl Processes {
    /// Every process of the runtime: its id, and whether it is the daemon.
    fn all(&self) -> impl Iterator<Item = (u32, bool)> {
        let own = std::process::id();
        census::pids()
            .into_iter()
            .filter(move |pid| *pid != own)
            .filter_map(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                let daemon = line.contains(&self.daemon);
                let helper = self.procs.split('|').any(|word| line.contains(word));
                (daemon || helper).then_some((pid, daemon))
            })
    }

    /// What they hold now.
    pub fn memory(&self) -> Memory {
        let mut total = Memory::default();
        for (pid, daemon) in self.all() {
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue;
            };
            let (rss, pss) = (kib(&text, "Rss:"), kib(&text, "Pss:"));
            if daemon {
                total.daemon_rss += rss;
                total.daemon_pss += pss;
            } else {
                total.procs += 1;
                total.rss += rss;
                total.pss += pss;
            }
        }
        total
    }

    /// User and system seconds of them all, ended children included.
    pub fn cpu(&self) -> f64 {
        let ticks = |pid: u32| -> u32 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            // proc_pid_stat(5): utime, stime, cutime and cstime are fields 14 to 17.
            rest.split(' ')
                .skip(11)
                .take(4)
                .filter_map(|n| n.parse::<u32>().ok())
                .sum()
        };
        // USER_HZ is 100 on every architecture podd supports.
        f64::from(self.all().map(|(pid, _)| ticks(pid)).sum::<u32>()) / 100.0
    }
}

/// A value in KiB of a table as /proc writes them.
fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    let number = line.and_then(|l| l.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}
