//! OCI resources as writes to cgroup v2 files. Pure, but for values that add to what a file says now.

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::CgroupError;

/// When a limit is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the process exists: what only guides the kernel.
    Early,
    /// When the process waits at its start gate: what could starve or kill the process that sets it up
    /// (runc#4427 was killed by the limit of the container it was making).
    Late,
    /// All of it, on a running container.
    All,
}

impl Phase {
    pub(super) fn covers(self, late: bool) -> bool {
        match self {
            Self::Early => !late,
            Self::Late => late,
            Self::All => true,
        }
    }
}

/// What a write says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// This.
    Text(String),
    /// cpu.max with the quota in force and this period.
    CpuPeriod(u64),
    /// memory.swap.max such that memory and swap together are this, with the memory.max in force.
    MemoryPlusSwap(u64),
}

impl Value {
    /// The text to write; `read` reads a file of the same cgroup.
    pub(super) fn resolve(
        &self,
        read: impl Fn(&str) -> Result<String, CgroupError>,
    ) -> Result<String, CgroupError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::CpuPeriod(period) => {
                let now = read("cpu.max")?;
                let quota = now.split_ascii_whitespace().next().unwrap_or("max");
                Ok(format!("{quota} {period}"))
            }
            Self::MemoryPlusSwap(both) => {
                let memory = read("memory.max")?;
                match memory.trim().parse::<u64>() {
                    Ok(memory) => Ok(both.saturating_sub(memory).to_string()),
                    Err(_) => Err(limit("memory plus swap", "memory itself has no limit")),
                }
            }
        }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub controller: String,
    pub file: String,
    pub value: Value,
    pub late: bool,
    /// The value is what holds without the controller as well, such as no swap where there is none.
    pub asks_nothing: bool,
}

/// Limits of one cgroup, checked as far as they can be without it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    writes: Vec<Write>,
}

fn limit(what: &str, reason: &'static str) -> CgroupError {
    CgroupError::Limit {
        what: what.to_owned(),
        reason,
    }
}

/// A v2 weight for v1 shares: the curve through (2, 1), (1024, 100) and (262144, 10000), linear in logarithms
/// but for a quadratic term. Kubernetes, runc and crun changed to it together in 2025 (kubernetes#131216).
#[must_use]
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[expect(clippy::cast_precision_loss, reason = "shares are below 2^18 here")]
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // The exact points of the curve must not be rounded up by the last bit of the arithmetic.
            let weight = (10f64.powf(exponent) - 1e-9).ceil().clamp(1.0, 10_000.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped above"
            )]
            {
                weight as u64
            }
        }
    }
}

/// The least v1 shares that have this v2 weight or a larger one. Many shares have the same weight: who knows what was
/// asked for knows better.
#[must_use]
pub fn shares_of_weight(weight: u64) -> u64 {
    let (mut low, mut high) = (2, 262_144);
    while low < high {
        let middle = (low + high) / 2;
        if weight_of_shares(middle) < weight {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// "max" for what OCI writes as a negative number.
fn max_or(value: i64) -> String {
    u64::try_from(value).map_or_else(|_| "max".to_owned(), |value| value.to_string())
}

impl Limits {
    /// Translates the resources of an OCI spec. Absent fields, and zeros where OCI and the CRI let zero stand for
    /// absent, ask nothing. Device rules are no cgroup files in v2 and belong to the device program.
    ///
    /// # Errors
    /// A resource that cgroup v2 cannot express, or that no caller may set.
    pub fn from_oci(resources: &LinuxResources) -> Result<Self, CgroupError> {
        let mut limits = Self::default();
        if resources.block_io().is_some() || resources.network().is_some() || resources.rdma().is_some() {
            return Err(limit("blockIO, network or rdma", "to be given as unified"));
        }
        if let Some(cpu) = resources.cpu() {
            limits.cpu(cpu)?;
        }
        if let Some(memory) = resources.memory() {
            limits.memory(memory)?;
        }
        if let Some(pids) = resources.pids()
            && pids.limit() != 0
        {
            limits.push("pids", "pids.max", max_or(pids.limit()));
        }
        for page in resources.hugepage_limits().iter().flatten() {
            limits.hugepage(page)?;
        }
        let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
        unified.sort();
        for (file, value) in unified {
            limits.unified(file, value)?;
        }
        Ok(limits)
    }

    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub(super) fn writes(&self) -> &[Write] {
        &self.writes
    }

    fn push(&mut self, controller: &str, file: &str, value: String) -> &mut Write {
        self.push_value(controller, file, Value::Text(value))
    }

    fn push_value(&mut self, controller: &str, file: &str, value: Value) -> &mut Write {
        let late = matches!(file, "cpu.max" | "memory.max" | "memory.high" | "memory.swap.max");
        let (controller, file) = (controller.to_owned(), file.to_owned());
        let at = self.writes.len();
        self.writes.push(Write {
            controller,
            file,
            value,
            late,
            asks_nothing: false,
        });
        &mut self.writes[at]
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), CgroupError> {
        if cpu.realtime_runtime().unwrap_or(0) != 0 || cpu.realtime_period().unwrap_or(0) != 0 {
            return Err(limit("real-time CPU", "cgroup v2 has no such limit"));
        }
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            self.push("cpu", "cpu.weight", weight_of_shares(shares).to_string());
        }
        if let Some(idle) = cpu.idle() {
            self.push("cpu", "cpu.idle", idle.to_string());
        }
        let period = cpu.period().filter(|period| *period != 0);
        match (cpu.quota().filter(|quota| *quota != 0), period) {
            (Some(quota), Some(period)) => {
                self.push("cpu", "cpu.max", format!("{} {period}", max_or(quota)));
            }
            // One number leaves the period as it is (cgroup-v2.rst, cpu.max).
            (Some(quota), None) => {
                self.push("cpu", "cpu.max", max_or(quota));
            }
            // A period alone limits nothing: without the controller there is no quota that it could change.
            (None, Some(period)) => {
                self.push_value("cpu", "cpu.max", Value::CpuPeriod(period))
                    .asks_nothing = true;
            }
            (None, None) => {}
        }
        if let Some(burst) = cpu.burst() {
            self.push("cpu", "cpu.max.burst", burst.to_string()).late = true;
        }
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                self.push("cpuset", file, list.to_owned());
            }
        }
        Ok(())
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), CgroupError> {
        if memory.disable_oom_killer() == Some(true) {
            return Err(limit("disableOOMKiller", "cgroup v2 cannot"));
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0) {
            self.push("memory", "memory.low", max_or(low));
        }
        let limit = memory.limit().filter(|limit| *limit != 0);
        if let Some(limit) = limit {
            self.push("memory", "memory.max", max_or(limit));
        }
        match memory.swap().filter(|swap| *swap != 0) {
            None => {}
            Some(swap) => self.swap(limit, swap)?,
        }
        Ok(())
    }

    /// Swap alone is what v1's sum leaves beside the memory limit.
    fn swap(&mut self, memory: Option<i64>, both: i64) -> Result<(), CgroupError> {
        let Ok(both) = u64::try_from(both) else {
            self.push("memory", "memory.swap.max", "max".to_owned())
                .asks_nothing = true;
            return Ok(());
        };
        match memory.map(u64::try_from) {
            Some(Ok(memory)) => {
                let swap = both
                    .checked_sub(memory)
                    .ok_or_else(|| limit("memory plus swap", "less than memory alone"))?;
                self.push("memory", "memory.swap.max", swap.to_string())
                    .asks_nothing = swap == 0;
            }
            Some(Err(_)) => return Err(limit("memory plus swap", "memory itself has no limit")),
            None => {
                self.push_value("memory", "memory.swap.max", Value::MemoryPlusSwap(both));
            }
        }
        Ok(())
    }

    fn hugepage(&mut self, page: &LinuxHugepageLimit) -> Result<(), CgroupError> {
        let size = page.page_size();
        let digits = size
            .trim_end_matches("KB")
            .trim_end_matches("MB")
            .trim_end_matches("GB");
        if digits.is_empty() || digits.len() + 2 != size.len() || !digits.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(limit(size, "not a huge page size"));
        }
        // Kubelets send a zero for every size of the host; without the controller no huge page is accounted.
        let value = max_or(page.limit());
        self.push("hugetlb", &format!("hugetlb.{size}.max"), value.clone())
            .asks_nothing = page.limit() == 0;
        // Reservations count too, where the kernel knows them (Linux 5.7), or a mapping alone could hold them all.
        self.push("hugetlb", &format!("hugetlb.{size}.rsvd.max"), value)
            .asks_nothing = page.limit() == 0;
        Ok(())
    }

    fn unified(&mut self, file: &str, value: &str) -> Result<(), CgroupError> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'_' || b == b'-';
        match file.split_once('.') {
            // cgroup.procs and the like move processes and change the hierarchy.
            Some((controller, rest))
                if !controller.is_empty()
                    && !rest.is_empty()
                    && controller != "cgroup"
                    && file.bytes().all(valid) =>
            {
                self.push(controller, file, value.to_owned());
                Ok(())
            }
            _ => Err(limit(file, "not a file of a controller")),
        }
    }
}
