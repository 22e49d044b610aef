//! This process as the kernel counts it, under the names that Prometheus has for that.

use std::fs;
use std::io;
use std::sync::OnceLock;

/// What podd uses itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu: f64,
    /// Bytes in memory.
    pub resident: u64,
    /// Bytes of address space.
    pub virtual_memory: u64,
    /// Threads.
    pub threads: u64,
    /// When the process began, in seconds since 1970.
    pub start: f64,
    /// Open files.
    pub open_files: u64,
    /// How many it may open.
    pub max_files: u64,
}

impl Usage {
    /// Reads it.
    ///
    /// # Errors
    /// procfs is not what it is on Linux.
    pub fn read() -> io::Result<Self> {
        use rustix::process::{Resource, getrlimit};
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat")?)
            .ok_or_else(|| io::Error::other("/proc/self/stat has another form"))?;
        let hertz = rustix::param::clock_ticks_per_second();
        let seconds = |ticks: u64| ticks as f64 / hertz as f64;
        Ok(Self {
            cpu: seconds(stat.ticks),
            resident: stat.resident_pages * rustix::param::page_size() as u64,
            virtual_memory: stat.virtual_memory,
            threads: stat.threads,
            start: boot_time() + seconds(stat.start),
            // Without the one that lists the others.
            open_files: (fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1),
            max_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        })
    }
}

/// As much of `/proc/PID/stat` as is told (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    ticks: u64,
    threads: u64,
    start: u64,
    virtual_memory: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program is in parentheses and may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // The first here is the third there.
        let field = |number: usize| -> Option<u64> { fields.get(number - 3)?.parse().ok() };
        Some(Self {
            ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start: field(22)?,
            virtual_memory: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the machine was started, in seconds since 1970. Read once: it must not change with every scrape.
fn boot_time() -> f64 {
    static BOOT: OnceLock<f64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("btime "));
        line.and_then(|seconds| seconds.trim().parse().ok())
            .unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 40 2 0 0 20 0 5 0 100 8192 3 18446744073709551615 1 1";
        let expected = Stat {
            ticks: 42,
            threads: 5,
            start: 100,
            virtual_memory: 8192,
            resident_pages: 3,
        };
        assert_eq!(Stat::parse(stat), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_alive() {
        let usage = Usage::read().unwrap();
        assert!(
            usage.resident > 1 << 20 && usage.resident < usage.virtual_memory,
            "{usage:?}"
        );
        assert!(
            usage.threads >= 1 && usage.open_files >= 3 && usage.open_files < usage.max_files,
            "{usage:?}"
        );
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age = now.as_secs_f64() - usage.start;
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
