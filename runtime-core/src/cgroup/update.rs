//! Changing the limits of a cgroup that has processes: all of them or none.
//!
//! Everything is read before anything is written, so that a write that the kernel refuses can be taken back together
//! with those before it. What may be used is raised before anything is lowered: memory that has to shrink may then
//! go to the swap that it was given, and a burst never exceeds its quota (`tg_set_cfs_bandwidth`).

use std::cmp::Ordering;
use std::collections::BTreeSet;

use rustix::io::Errno;

use super::limits::{Limits, Write};
use super::{Cgroup, CgroupError, files};

/// What memory.max and its like are rounded down to.
const PAGE: u64 = 4096;

/// Attempts to push a cgroup's memory below a new limit.
const RECLAIMS: usize = 3;

/// One file, and what it says before and after.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub file: String,
    pub old: String,
    pub new: String,
}

/// What an update has changed, in the order it did; [`Updated::undo`] takes it back.
#[derive(Debug)]
#[must_use = "an update whose rest fails has to be taken back"]
pub struct Updated<'a> {
    cgroup: &'a Cgroup,
    done: Vec<Change>,
}

impl Updated<'_> {
    /// Writes back what was there before, last change first; `cause` is why.
    ///
    /// Returns the cause, or [`CgroupError::NotUndone`] with it where a file keeps its new value.
    #[must_use]
    pub fn undo(self, cause: CgroupError) -> CgroupError {
        let failed = self.write_back();
        if failed.is_empty() {
            return cause;
        }
        CgroupError::NotUndone {
            source: Box::new(cause),
            files: failed.join(", "),
        }
    }

    /// As [`Updated::undo`], where the cause is no cgroup's: the files that keep their new value.
    pub fn write_back(self) -> Vec<String> {
        let mut failed = Vec::new();
        for change in self.done.iter().rev() {
            for line in change.back() {
                if files::write(self.cgroup.dir(), &change.file, &line).is_err() {
                    failed.push(change.file.clone());
                }
            }
        }
        failed
    }
}

impl Cgroup {
    /// Writes limits, after checking all of them as [`Cgroup::check`] does, and reads back what the kernel took.
    ///
    /// memory.max is not lowered below what is in use after reclaim: the kernel would kill for it.
    ///
    /// # Errors
    /// A controller or a file is missing, memory is in use, or the kernel refuses a value or takes another: then
    /// every file says what it said before, or [`CgroupError::NotUndone`] names those that do not.
    pub fn update(&self, limits: &Limits) -> Result<Updated<'_>, CgroupError> {
        let mut planned = self.plan(limits)?;
        planned.sort_by(order);
        let mut updated = Updated {
            cgroup: self,
            done: Vec::with_capacity(planned.len()),
        };
        for change in planned {
            if let Err(e) = self.write_change(&change) {
                return Err(updated.undo(e));
            }
            updated.done.push(change);
        }
        match updated.done.iter().try_for_each(|change| self.verify(change)) {
            Ok(()) => Ok(updated),
            Err(e) => Err(updated.undo(e)),
        }
    }

    /// What has to be written: every file once, and none that says so already. A later write to a file counts, as
    /// `unified` comes last and is the more specific.
    fn plan(&self, limits: &Limits) -> Result<Vec<Change>, CgroupError> {
        let mut changes: Vec<Change> = Vec::new();
        for write in self.available(limits)? {
            let Some(old) = self.present(write)? else { continue };
            let new = write
                .value
                .resolve(|file| match changes.iter().find(|c| c.file == file) {
                    Some(change) => Ok(change.new.clone()),
                    None => self.read(file),
                })?;
            changes.retain(|change| change.file != write.file);
            changes.push(Change {
                file: write.file.clone(),
                old,
                new,
            });
        }
        changes.retain(|change| change.old != change.new);
        Ok(changes)
    }

    /// What a file says now; `None` where there is none and none is needed.
    fn present(&self, write: &Write) -> Result<Option<String>, CgroupError> {
        match files::read(self.dir(), &write.file) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(Errno::NOENT) if write.asks_nothing => Ok(None),
            Err(Errno::NOENT) => Err(CgroupError::NoFile {
                path: self.path().clone(),
                file: write.file.clone(),
            }),
            Err(source) => Err(self.read_error(&write.file, source)),
        }
    }

    fn write_change(&self, change: &Change) -> Result<(), CgroupError> {
        if let ("memory.max", Ok(limit)) = (change.file.as_str(), change.new.parse()) {
            self.make_room(limit)?;
        }
        self.write(&change.file, &change.new)
    }

    /// Reclaims until no more memory is in use than `limit`.
    fn make_room(&self, limit: u64) -> Result<(), CgroupError> {
        let used = || -> Result<u64, CgroupError> {
            let text = self.read("memory.current")?;
            text.trim().parse().map_err(|_| self.malformed("memory.current"))
        };
        for _ in 0..RECLAIMS {
            let over = used()?.saturating_sub(limit);
            if over == 0 {
                return Ok(());
            }
            // EAGAIN: less could be reclaimed than was asked for. What counts is what is in use afterwards.
            let _less_than_asked = files::write(self.dir(), "memory.reclaim", &over.to_string());
        }
        match used()? {
            used if used > limit => Err(CgroupError::MemoryInUse {
                path: self.path().clone(),
                limit,
                used,
            }),
            _ => Ok(()),
        }
    }

    fn verify(&self, change: &Change) -> Result<(), CgroupError> {
        let now = self.read(&change.file)?;
        if change.taken_as(now.trim_end()) {
            return Ok(());
        }
        Err(CgroupError::NotTaken {
            path: self.path().clone(),
            file: change.file.clone(),
            value: change.new.clone(),
            now: now.trim_end().to_owned(),
        })
    }
}

impl Change {
    /// Lines of `KEY SETTING…`, one written at a time (cgroup-v2.rst, "Nested keyed").
    fn is_keyed(&self) -> bool {
        matches!(
            self.file.as_str(),
            "io.max" | "io.latency" | "io.weight" | "io.bfq.weight" | "rdma.max" | "misc.max" | "dmem.max"
        )
    }

    /// Whether a file that says `now` has taken the value. Sizes are rounded down to pages, lists of processors
    /// are written in another way, and a quota alone keeps its period.
    fn taken_as(&self, now: &str) -> bool {
        if self.is_keyed() || self.new == now {
            return true;
        }
        if self.file.starts_with("cpuset.cpus") || self.file.starts_with("cpuset.mems") {
            return id_set(&self.new) == id_set(now);
        }
        let mut now = now.split_ascii_whitespace();
        self.new.split_ascii_whitespace().all(|asked| {
            let Some(now) = now.next() else { return false };
            match (asked.parse::<u64>(), now.parse::<u64>()) {
                (Ok(asked), Ok(now)) => now <= asked && asked - now < self.unit(),
                // `64M` and the like: the kernel knows what it means.
                (Err(_), _) if asked.bytes().any(|b| b.is_ascii_digit()) => true,
                _ => asked == now,
            }
        })
    }

    /// What values of this file are rounded down to.
    fn unit(&self) -> u64 {
        if self.file.starts_with("memory.") {
            return PAGE;
        }
        let size = self.file.strip_prefix("hugetlb.").unwrap_or_default();
        let (size, _) = size.split_once('.').unwrap_or((size, ""));
        let scale = match size.get(size.len().saturating_sub(2)..) {
            Some("KB") => 1 << 10,
            Some("MB") => 1 << 20,
            Some("GB") => 1 << 30,
            _ => return 1,
        };
        let digits = size.trim_end_matches(|c: char| !c.is_ascii_digit());
        digits.parse::<u64>().unwrap_or(1).saturating_mul(scale)
    }

    /// What is written to have the old value back.
    fn back(&self) -> Vec<String> {
        if !self.is_keyed() {
            // An empty list of processors is a line without any.
            return vec![if self.old.is_empty() {
                "\n".to_owned()
            } else {
                self.old.clone()
            }];
        }
        self.new.lines().filter_map(|line| self.line_back(line)).collect()
    }

    fn line_back(&self, line: &str) -> Option<String> {
        let key = match line.split_once(' ') {
            Some((key, _)) => key,
            None => "default",
        };
        let of_key = |old: &&str| old.split(' ').next() == Some(key);
        if let Some(old) = self.old.lines().find(of_key) {
            return Some(old.to_owned());
        }
        let unset = match self.file.as_str() {
            "io.max" => "rbps=max wbps=max riops=max wiops=max",
            "io.latency" => "target=0",
            "io.weight" | "io.bfq.weight" => "default",
            "rdma.max" => "hca_handle=max hca_object=max",
            "misc.max" | "dmem.max" => "max",
            _ => return None,
        };
        Some(format!("{key} {unset}"))
    }

    /// How a change compares with what was: by the first number, `max` above all.
    fn direction(&self) -> Ordering {
        let first = |text: &str| match text.split_ascii_whitespace().next() {
            Some("max") => Some(u64::MAX),
            Some(word) => word.parse::<u64>().ok(),
            None => None,
        };
        match (first(&self.new), first(&self.old)) {
            (Some(new), Some(old)) => new.cmp(&old),
            _ => Ordering::Equal,
        }
    }

    /// Where a file stands among those that are raised; what is lowered goes the other way round.
    fn rank(&self) -> i8 {
        match self.file.as_str() {
            "cpu.max" => 0,
            "memory.swap.max" => 1,
            "memory.max" => 2,
            "cpu.max.burst" => 4,
            _ => 3,
        }
    }
}

/// Raised, then neither, then lowered.
pub(super) fn order(a: &Change, b: &Change) -> Ordering {
    let place = |change: &Change| match change.direction() {
        Ordering::Greater => (0, change.rank()),
        Ordering::Equal => (1, change.rank()),
        Ordering::Less => (2, -change.rank()),
    };
    place(a).cmp(&place(b))
}

/// The numbers of a list such as `0-3,7`; `None` where it is none.
pub(super) fn id_set(list: &str) -> Option<BTreeSet<u32>> {
    /// More processors than any kernel is built for (`NR_CPUS`).
    const MOST: u32 = 1 << 16;
    let mut ids = BTreeSet::new();
    for item in list.trim().split(',').filter(|item| !item.is_empty()) {
        let (low, high) = item.split_once('-').unwrap_or((item, item));
        let (low, high) = (low.trim().parse::<u32>().ok()?, high.trim().parse::<u32>().ok()?);
        if high >= MOST {
            return None;
        }
        ids.extend(low..=high);
    }
    Some(ids)
}

#[cfg(test)]
mod tests;
