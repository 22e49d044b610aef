//! Which tests run in which virtual machine.
//!
//! Under emulation everything is some 15 times slower, so a boot gets what only it can say: what needs the controllers
//! of cgroup v2 or rights that the machine may not have, and a walk through the rest that shows that the kernel does
//! what podd expects. All tests run in the arena, on the kernel of the machine.

use std::time::Duration;

use podd_e2e::vm::{Init, Kernel};

use crate::arena;

/// One start of a virtual machine.
pub struct Boot {
    pub kernel: Kernel,
    pub init: Init,
    /// Names of tests, or of modules where they end in `::`.
    pub tests: &'static [&'static str],
    /// How long it may take in all.
    pub limit: Duration,
}

/// Every boot of the tier.
pub const PLAN: &[Boot] = &[
    Boot {
        kernel: Kernel::V6_1,
        init: Init::Small,
        tests: WALK,
        limit: Duration::from_secs(700),
    },
    Boot {
        kernel: Kernel::V6_12,
        init: Init::Small,
        tests: WALK,
        limit: Duration::from_secs(700),
    },
];

/// A test or two of every kind of thing that podd asks of a kernel.
const WALK: &[&str] = &[
    "runtime::",
    "lifecycle::states_and_times",
    "lifecycle::whole_process_tree_dies",
    "lifecycle::stop_is_forced_after_grace",
    "exec::streams_and_code",
    "exec::same_world_as_the_container",
    "exec::timeout_kills_everything",
    "logs::streams_and_order",
    "security::default_capabilities",
    "security::seccomp_filter",
    "security::devices_not_asked_for",
    "images::whiteouts_and_hard_links",
    "stats::counters_agree_with_the_cgroup",
    "stats::pod_counters",
    "resources::",
];

impl Boot {
    /// The names of the tests that this boot runs; with a filter those that match it, planned or not.
    pub fn cases(&self, filter: Option<&str>) -> Vec<&'static str> {
        let planned = |name: &str| {
            self.tests
                .iter()
                .any(|t| name == *t || (t.ends_with("::") && name.starts_with(t)))
        };
        let all = arena::all().into_iter().map(|case| case.name);
        all.filter(|name| filter.map_or_else(|| planned(name), |part| name.contains(part)))
            .collect()
    }
}
