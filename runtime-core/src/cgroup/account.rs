//! The rest of what a cgroup has used, and what it is held to: what metrics show and statistics do not.
//!
//! Owns the meaning of io.stat, memory.peak, memory.events, hugetlb.* and of the files of limits. As in `stats`, what
//! is not there is absent.
//!
//! ```text
//! io.stat                    major:minor key=value …\n
//! cpu.max                    quota|max period\n               (microseconds)
//! cpu.weight, *.max, *.high  number or `max`\n
//! ```

use super::limits::shares_of_weight;
use super::stats::{IoStats, StatsReader, pairs};
use super::{Cgroup, CgroupError};

/// A limit of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// No more than this.
    At(u64),
    /// None here; one further up may hold all the same.
    None,
}

/// What a cgroup has used beside [`super::CpuStats`] and [`super::MemoryStats`], and what it is held to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Use of each block device; empty without the controller.
    pub io: Vec<IoStats>,
    /// The most bytes of memory in use at once, from Linux 5.19 on.
    pub memory_peak: Option<u64>,
    /// How often memory.max was reached.
    pub memory_limit_hits: Option<u64>,
    /// Processes that were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Bytes in huge pages, by the size of the page as the files are named (`2MB`).
    pub huge_pages: Vec<(String, u64)>,
    /// Tasks, here and below.
    pub tasks: Option<u64>,
    /// pids.max.
    pub tasks_max: Option<Bound>,
    /// First number of cpu.max, in microseconds.
    pub cpu_quota: Option<Bound>,
    /// Second number of cpu.max, in microseconds.
    pub cpu_period: Option<u64>,
    /// cpu.weight as the shares that the CRI counts in.
    pub cpu_shares: Option<u64>,
    /// memory.max.
    pub memory_max: Option<Bound>,
    /// memory.high.
    pub memory_high: Option<Bound>,
    /// memory.swap.max.
    pub swap_max: Option<Bound>,
}

impl StatsReader {
    /// Reads the account of a cgroup, with huge pages of these sizes.
    ///
    /// # Errors
    /// A file is there and cannot be read.
    pub fn account(&mut self, cgroup: &Cgroup, page_sizes: &[String]) -> Result<Account, CgroupError> {
        let events = self.parse(cgroup, "memory.events", memory_events)?;
        let (memory_limit_hits, oom_kills) = events.unwrap_or_default();
        let (cpu_quota, cpu_period) = self.parse(cgroup, "cpu.max", cpu_max)?.unwrap_or_default();
        let mut huge_pages = Vec::new();
        for size in page_sizes {
            if let Some(bytes) = self.number(cgroup, &format!("hugetlb.{size}.current"))? {
                huge_pages.push((size.clone(), bytes));
            }
        }
        Ok(Account {
            io: self.parse(cgroup, "io.stat", io_devices)?.unwrap_or_default(),
            memory_peak: self.number(cgroup, "memory.peak")?,
            memory_limit_hits,
            oom_kills,
            huge_pages,
            tasks: self.tasks(cgroup)?,
            tasks_max: self.bound(cgroup, "pids.max")?,
            cpu_quota,
            cpu_period,
            cpu_shares: self.number(cgroup, "cpu.weight")?.map(shares_of_weight),
            memory_max: self.bound(cgroup, "memory.max")?,
            memory_high: self.bound(cgroup, "memory.high")?,
            swap_max: self.bound(cgroup, "memory.swap.max")?,
        })
    }

    fn bound(&mut self, cgroup: &Cgroup, file: &str) -> Result<Option<Bound>, CgroupError> {
        Ok(self
            .parse(cgroup, file, |text| bound(text.trim_ascii()))?
            .flatten())
    }
}

fn bound(word: &str) -> Option<Bound> {
    match word {
        "max" => Some(Bound::None),
        number => number.parse().ok().map(Bound::At),
    }
}

fn cpu_max(text: &str) -> (Option<Bound>, Option<u64>) {
    let mut words = text.split_ascii_whitespace();
    let quota = words.next().and_then(bound);
    (quota, words.next().and_then(|period| period.parse().ok()))
}

fn memory_events(text: &str) -> (Option<u64>, Option<u64>) {
    let count = |wanted| pairs(text).find(|(key, _)| *key == wanted)?.1.parse().ok();
    (count("max"), count("oom_kill"))
}

fn io_devices(text: &str) -> Vec<IoStats> {
    text.lines().filter_map(io_device).collect()
}

/// A line of io.stat; none for a device without counters, which the kernel writes as a number alone.
fn io_device(line: &str) -> Option<IoStats> {
    let (device, values) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let mut one = IoStats {
        device: (major.parse().ok()?, minor.parse().ok()?),
        ..IoStats::default()
    };
    let mut counted = false;
    for (key, value) in values.split(' ').filter_map(|word| word.split_once('=')) {
        let field = match key {
            "rbytes" => &mut one.read_bytes,
            "wbytes" => &mut one.written_bytes,
            "rios" => &mut one.reads,
            "wios" => &mut one.writes,
            _ => continue,
        };
        *field = value.parse().ok()?;
        counted = true;
    }
    counted.then_some(one)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{CgroupPath, CgroupRoot};
    use super::*;

    fn account(files: &[(&str, &str)]) -> Account {
        let temp = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(temp.path().join(name), text).unwrap();
        }
        let root = CgroupRoot::open_anywhere(temp.path()).unwrap();
        let group = root.find(&CgroupPath::root()).unwrap().unwrap();
        let sizes = ["2MB".to_owned(), "1GB".to_owned()];
        StatsReader::default().account(&group, &sizes).unwrap()
    }

    #[test]
    fn an_account_is_read_as_the_kernel_writes_it() {
        let account = account(&[
            (
                "io.stat",
                "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n253:1 \n\
                 254:3 rbytes=100 wbytes=200 rios=3 wios=4 dbytes=0 dios=0\n",
            ),
            ("memory.peak", "2000\n"),
            ("memory.events", "low 0\nhigh 5\nmax 6\noom 2\noom_kill 1\n"),
            ("hugetlb.2MB.current", "4194304\n"),
            ("pids.current", "5\n"),
            ("pids.max", "100\n"),
            ("cpu.max", "20000 100000\n"),
            ("cpu.weight", "39\n"),
            ("memory.max", "67108864\n"),
            ("memory.high", "max\n"),
            ("memory.swap.max", "0\n"),
        ]);
        let device = |device, read_bytes, written_bytes, reads, writes| IoStats {
            device,
            read_bytes,
            written_bytes,
            reads,
            writes,
        };
        let expected = Account {
            io: vec![device((8, 0), 4096, 8192, 1, 2), device((254, 3), 100, 200, 3, 4)],
            memory_peak: Some(2000),
            memory_limit_hits: Some(6),
            oom_kills: Some(1),
            huge_pages: vec![("2MB".to_owned(), 4 << 20)],
            tasks: Some(5),
            tasks_max: Some(Bound::At(100)),
            cpu_quota: Some(Bound::At(20_000)),
            cpu_period: Some(100_000),
            cpu_shares: Some(shares_of_weight(39)),
            memory_max: Some(Bound::At(64 << 20)),
            memory_high: Some(Bound::None),
            swap_max: Some(Bound::At(0)),
        };
        assert_eq!(account, expected);
    }

    #[test]
    fn no_limit_is_told_from_no_controller() {
        let unlimited = account(&[("cpu.max", "max 100000\n"), ("pids.max", "max\n")]);
        assert_eq!(unlimited.cpu_quota, Some(Bound::None));
        assert_eq!(unlimited.tasks_max, Some(Bound::None));
        assert_eq!((unlimited.memory_max, unlimited.cpu_shares), (None, None));
        assert_eq!(account(&[]), Account::default());
        // What makes no sense is no number.
        assert_eq!(
            account(&[("cpu.max", "many\n"), ("io.stat", "8:x rbytes=1\n")]),
            Account::default()
        );
    }
}
