//! What a cgroup has used: its counters, read beneath its directory in one pass.
//!
//! Owns the meaning of cpu.stat, memory.*, pids.current and of the pressure files; `account` has what only metrics
//! show. Decides nothing and keeps
//! nothing between two reads. A file that is not there (its controller is missing, pressure is switched off, the
//! cgroup was removed meanwhile) is a value that is absent, never an error; so is a key that an old kernel lacks.
//!
//! ```text
//! cpu.stat, memory.stat      key value\n                       (cpu.stat has usage_usec without any controller)
//! memory.current, *.max      number or `max`\n
//! *.pressure                 some|full avg10=0.00 avg60=0.00 avg300=0.00 total=microseconds\n
//! ```

use rustix::fd::BorrowedFd;
use rustix::io::Errno;

use super::{Cgroup, CgroupError, files};

/// Longer than any of these files: memory.stat has some 80 lines.
const BUFFER: usize = 16 << 10;

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureLine {
    /// Stalled time so far, in microseconds.
    pub total_usec: u64,
    /// Share of time stalled over the last 10 seconds, in percent.
    pub avg10: f64,
    /// The same over 60 seconds.
    pub avg60: f64,
    /// The same over 300 seconds.
    pub avg300: f64,
}

/// A pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Some task stalled.
    pub some: PressureLine,
    /// All tasks stalled at once.
    pub full: PressureLine,
}

/// Use of processors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuStats {
    /// Processor time so far, in microseconds.
    pub usage_usec: Option<u64>,
    /// The part of it in applications, in microseconds.
    pub user_usec: Option<u64>,
    /// The part of it in the kernel, in microseconds.
    pub system_usec: Option<u64>,
    /// Periods of cpu.max so far, and those in which the quota ran out.
    pub periods: Option<u64>,
    /// See `periods`.
    pub throttled_periods: Option<u64>,
    /// How long tasks waited for their next quota, in microseconds.
    pub throttled_usec: Option<u64>,
    /// cpu.pressure.
    pub pressure: Option<Pressure>,
}

/// Use of memory and swap. Limits are absent both without a controller and without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryStats {
    /// Bytes in use, caches included.
    pub usage: Option<u64>,
    /// memory.max.
    pub limit: Option<u64>,
    /// Bytes of file cache that were not touched for long.
    pub inactive_file: Option<u64>,
    /// Bytes of file cache.
    pub file: Option<u64>,
    /// Bytes of file cache that were touched again and again.
    pub active_file: Option<u64>,
    /// Bytes of files that are mapped.
    pub file_mapped: Option<u64>,
    /// Bytes of anonymous memory.
    pub anon: Option<u64>,
    /// Bytes of the kernel's own memory, from Linux 5.18 on.
    pub kernel: Option<u64>,
    /// Page faults so far.
    pub page_faults: Option<u64>,
    /// Page faults so far that had to wait for a disk.
    pub major_page_faults: Option<u64>,
    /// Bytes in swap.
    pub swap_usage: Option<u64>,
    /// memory.swap.max.
    pub swap_limit: Option<u64>,
    /// memory.pressure.
    pub pressure: Option<Pressure>,
}

impl MemoryStats {
    /// What the kubelet evicts by: bytes in use less the file cache that costs nothing to take away.
    #[must_use]
    pub fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file?))
    }
}

/// Use of a block device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// The device: major and minor number.
    pub device: (u32, u32),
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Reads the counters of cgroups, one after the other, into one buffer.
#[derive(Debug)]
pub struct StatsReader {
    buffer: Vec<u8>,
}

impl Default for StatsReader {
    fn default() -> Self {
        Self {
            buffer: vec![0; BUFFER],
        }
    }
}

impl StatsReader {
    /// Use of processors.
    ///
    /// # Errors
    /// A file is there and cannot be read.
    pub fn cpu(&mut self, cgroup: &Cgroup) -> Result<CpuStats, CgroupError> {
        let counters = self.parse(cgroup, "cpu.stat", cpu_counters)?;
        Ok(CpuStats {
            pressure: self.parse(cgroup, "cpu.pressure", pressure)?,
            ..counters.unwrap_or_default()
        })
    }

    /// Use of memory and swap.
    ///
    /// # Errors
    /// As for [`StatsReader::cpu`].
    pub fn memory(&mut self, cgroup: &Cgroup) -> Result<MemoryStats, CgroupError> {
        let Some(usage) = self.number(cgroup, "memory.current")? else {
            // Without the controller none of the others is there, but pressure may be.
            return Ok(MemoryStats {
                pressure: self.parse(cgroup, "memory.pressure", pressure)?,
                ..MemoryStats::default()
            });
        };
        let counters = self.parse(cgroup, "memory.stat", memory_counters)?;
        let swap_usage = self.number(cgroup, "memory.swap.current")?;
        let swap_limit = match swap_usage {
            Some(_) => self.number(cgroup, "memory.swap.max")?,
            None => None,
        };
        Ok(MemoryStats {
            usage: Some(usage),
            limit: self.number(cgroup, "memory.max")?,
            swap_usage,
            swap_limit,
            pressure: self.parse(cgroup, "memory.pressure", pressure)?,
            ..counters.unwrap_or_default()
        })
    }

    /// memory.max; absent where there is no limit, and without the controller.
    ///
    /// # Errors
    /// As for [`StatsReader::cpu`].
    pub fn memory_limit(&mut self, cgroup: &Cgroup) -> Result<Option<u64>, CgroupError> {
        self.number(cgroup, "memory.max")
    }

    /// io.pressure.
    ///
    /// # Errors
    /// As for [`StatsReader::cpu`].
    pub fn io_pressure(&mut self, cgroup: &Cgroup) -> Result<Option<Pressure>, CgroupError> {
        self.parse(cgroup, "io.pressure", pressure)
    }

    /// Tasks (threads, not processes) here and below; absent without the controller.
    ///
    /// # Errors
    /// As for [`StatsReader::cpu`].
    pub fn tasks(&mut self, cgroup: &Cgroup) -> Result<Option<u64>, CgroupError> {
        self.number(cgroup, "pids.current")
    }

    pub(super) fn number(&mut self, cgroup: &Cgroup, file: &str) -> Result<Option<u64>, CgroupError> {
        let parsed = self.parse(cgroup, file, |text| text.trim_ascii().parse().ok())?;
        Ok(parsed.flatten())
    }

    pub(super) fn parse<T>(
        &mut self,
        cgroup: &Cgroup,
        file: &str,
        parse: impl FnOnce(&str) -> T,
    ) -> Result<Option<T>, CgroupError> {
        match read(cgroup.dir(), file, &mut self.buffer) {
            Ok(text) => Ok(Some(parse(text))),
            // Not there, cgroup removed while it was open, pressure switched off.
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
            Err(source) => Err(CgroupError::Read {
                path: cgroup.path().clone(),
                file: file.to_owned(),
                source,
            }),
        }
    }
}

/// Reads what fits into the buffer in one read(2): each of these files is a single record of seq_file, which the
/// kernel hands out whole.
fn read<'a>(dir: BorrowedFd<'_>, file: &str, buffer: &'a mut [u8]) -> Result<&'a str, Errno> {
    let open = files::open_read(dir, file)?;
    let length = loop {
        match rustix::io::read(&open, &mut *buffer) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if length == buffer.len() {
        return Err(Errno::FBIG);
    }
    std::str::from_utf8(buffer.get(..length).unwrap_or_default()).map_err(|_| Errno::ILSEQ)
}

/// The lines of a flat keyed file.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(' '))
}

fn cpu_counters(text: &str) -> CpuStats {
    let mut counters = CpuStats::default();
    for (key, value) in pairs(text) {
        let field = match key {
            "usage_usec" => &mut counters.usage_usec,
            "user_usec" => &mut counters.user_usec,
            "system_usec" => &mut counters.system_usec,
            "nr_periods" => &mut counters.periods,
            "nr_throttled" => &mut counters.throttled_periods,
            "throttled_usec" => &mut counters.throttled_usec,
            _ => continue,
        };
        *field = value.parse().ok();
    }
    counters
}

fn memory_counters(text: &str) -> MemoryStats {
    let mut counters = MemoryStats::default();
    for (key, value) in pairs(text) {
        let field = match key {
            "anon" => &mut counters.anon,
            "file" => &mut counters.file,
            "inactive_file" => &mut counters.inactive_file,
            "active_file" => &mut counters.active_file,
            "file_mapped" => &mut counters.file_mapped,
            "kernel" => &mut counters.kernel,
            "pgfault" => &mut counters.page_faults,
            "pgmajfault" => &mut counters.major_page_faults,
            _ => continue,
        };
        *field = value.parse().ok();
    }
    counters
}

fn pressure(text: &str) -> Pressure {
    let mut both = Pressure::default();
    for (kind, values) in pairs(text) {
        let line = match kind {
            "some" => &mut both.some,
            "full" => &mut both.full,
            _ => continue,
        };
        for (key, value) in values.split(' ').filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => line.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => line.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => line.avg300 = value.parse().unwrap_or(0.0),
                "total" => line.total_usec = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    both
}

#[cfg(test)]
mod tests;
