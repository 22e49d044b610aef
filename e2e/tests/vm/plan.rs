//! Which tests run in which virtual machine.
//!
//! Under emulation everything is some 15 times slower, so a boot gets what only it can say: what needs the controllers
//! of cgroup v2 or rights that the machine may not have, and a walk through the rest that shows that the kernel does
//! what podd expects. All tests of the arena run on the kernel of the machine as well.

use std::time::Duration;

use podd_e2e::vm::{Init, Kernel};

use crate::guest::Case;
use crate::{arena, guest, reboot, systemd};

/// One start of a virtual machine.
pub struct Boot {
    pub kernel: Kernel,
    pub init: Init,
    pub tests: Tests,
    /// Boots of the same name have the same disk, one after the other.
    pub disk: Option<&'static str>,
    /// How long it may take in all, in seconds.
    pub limit: u64,
}

/// What a boot runs.
pub enum Tests {
    /// Tests of the arena in an arena, by name, or by module where the name ends in `::`.
    Arena(&'static [&'static str]),
    /// Tests that own the guest.
    Guest(&'static [Case]),
}

/// Every boot of the tier.
pub const PLAN: &[Boot] = &[
    Boot::new(Kernel::V6_1, Init::Small, Tests::Arena(WALK), 900),
    Boot::new(Kernel::V6_12, Init::Small, Tests::Arena(WALK), 900),
    Boot::new(Kernel::V6_1, Init::Systemd, Tests::Guest(systemd::CASES), 900),
    Boot::new(Kernel::V6_12, Init::Systemd, Tests::Guest(systemd::CASES), 900),
    Boot::new(Kernel::V6_12, Init::Selinux, Tests::Arena(LABELS), 600),
    Boot::new(Kernel::V6_1, Init::Selinux, Tests::Arena(LABELS_OF_OLD), 300),
    Boot::new(Kernel::V6_1, Init::Small, Tests::Guest(reboot::BEFORE), 200).on("reboot"),
    Boot::new(Kernel::V6_12, Init::Small, Tests::Guest(reboot::AFTER), 200).on("reboot"),
];

/// Whatever needs controllers, and a test or two of everything else that podd asks of a kernel.
const WALK: &[&str] = &[
    "runtime::",
    "resources::",
    "pod_limits::",
    "lifecycle::states_and_times",
    "lifecycle::whole_process_tree_dies",
    "lifecycle::stop_is_forced_after_grace",
    "lifecycle::a_stop_is_no_lack_of_memory",
    "lifecycle::a_limit_smaller_than_the_set_up",
    "exec::streams_and_code",
    "exec::same_world_as_the_container",
    "exec::timeout_kills_everything",
    "logs::streams_and_order",
    "security::default_capabilities",
    "security::seccomp_filter",
    "security::devices_not_asked_for",
    "security::apparmor_default",
    "security::apparmor_by_name",
    "security::apparmor_not_loaded",
    "users::",
    "isolation::",
    "images::whiteouts_and_hard_links",
    "stats::counters_agree_with_the_cgroup",
    "stats::pod_counters",
    "agreement::",
    "metrics::nothing_that_is_asked_for_is_missing",
    "metrics::limits",
    "events::a_whole_life",
    "recovery::killed_with_live_pods",
    "crash::",
];

/// What needs a policy, and runs nowhere else.
const LABELS: &[&str] = &["selinux::"];

/// An old kernel mounts by a string, and looks at the labels of layers.
const LABELS_OF_OLD: &[&str] = &["selinux::contexts_of_a_pod"];

impl Boot {
    const fn new(kernel: Kernel, init: Init, tests: Tests, limit: u64) -> Self {
        Self {
            kernel,
            init,
            tests,
            disk: None,
            limit,
        }
    }

    const fn on(mut self, disk: &'static str) -> Self {
        self.disk = Some(disk);
        self
    }

    /// The names of the tests that this boot runs; with a filter those that match it, in the arena also unplanned ones.
    pub fn cases(&self, filter: Option<&str>) -> Vec<&'static str> {
        let matches = |name: &str| filter.is_none_or(|part| name.contains(part));
        match self.tests {
            Tests::Guest(cases) if cases.iter().any(|case| matches(case.name)) => {
                // Each goes on where the one before has ended.
                cases.iter().map(|case| case.name).collect()
            }
            Tests::Guest(_) => Vec::new(),
            Tests::Arena(list) => {
                let planned = |name: &str| {
                    list.iter()
                        .any(|t| name == *t || (t.ends_with("::") && name.starts_with(t)))
                };
                let all = arena::all().into_iter().map(|case| case.name);
                // Without a policy, or with one that all the others were not written for, nothing is planned that is not.
                let others = self.init == Init::Small;
                all.filter(|name| match filter {
                    Some(_) if others => matches(name) && !name.starts_with(LABELS[0]),
                    Some(_) => matches(name) && planned(name),
                    None => planned(name),
                })
                .collect()
            }
        }
    }

    /// The environment that tells the guest which tests to run.
    pub fn asked(&self, cases: &[&str]) -> (String, String) {
        let name = match self.tests {
            Tests::Arena(_) => arena::CASES,
            Tests::Guest(_) => guest::CASES,
        };
        (name.to_owned(), cases.join(","))
    }

    /// How long it may take in all.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }
}
