//! What a process may do: capabilities, seccomp, security modules.

use std::collections::BTreeMap;

use runtime_core::compile::CapSet;
use serde::Serialize;

use crate::tool::procfs::{LINE, Proc, field};

/// Sets of capabilities, as the CRI names them and as /proc/PID/status does.
const SETS: [(&str, &str); 5] = [
    ("effective", "CapEff"),
    ("permitted", "CapPrm"),
    ("inheritable", "CapInh"),
    ("bounding", "CapBnd"),
    ("ambient", "CapAmb"),
];

/// What a process may do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Confinement {
    capabilities: BTreeMap<&'static str, Vec<&'static str>>,
    no_new_privileges: bool,
    /// `off`, `strict` or `filter`.
    seccomp: &'static str,
    seccomp_filters: u64,
    /// The AppArmor profile and its mode, where that module is on.
    apparmor: Option<String>,
    /// The SELinux context, where that module is on.
    selinux: Option<String>,
    oom_score_adj: Option<i64>,
}

impl Confinement {
    /// Reads what the kernel has for a process, given its status file.
    #[must_use]
    pub fn read(proc: &Proc, status: &str) -> Self {
        let word = |path: &str| {
            let text = proc.text(path, LINE).ok()?;
            let text = text.trim_end_matches(['\0', '\n']);
            (!text.is_empty()).then(|| text.to_owned())
        };
        let number = |key: &str| field(status, key).and_then(|v| v.parse::<u64>().ok());
        // Of the two modules one owns the older file; an SELinux context has colons, a profile of AppArmor none.
        let current = word("attr/current");
        Self {
            capabilities: capabilities(status),
            no_new_privileges: number("NoNewPrivs") == Some(1),
            seccomp: match number("Seccomp") {
                Some(1) => "strict",
                Some(2) => "filter",
                _ => "off",
            },
            seccomp_filters: number("Seccomp_filters").unwrap_or(0),
            apparmor: word("attr/apparmor/current"),
            selinux: current.filter(|text| text.matches(':').count() >= 3),
            oom_score_adj: word("oom_score_adj").and_then(|text| text.parse().ok()),
        }
    }

    /// Lines for people.
    #[must_use]
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let none = || "none".to_owned();
        let mut lines = Vec::new();
        for (set, _) in SETS {
            let names = self.capabilities.get(set).map_or(&[][..], Vec::as_slice);
            lines.push((set, if names.is_empty() { none() } else { names.join(" ") }));
        }
        let seccomp = match self.seccomp_filters {
            0 => self.seccomp.to_owned(),
            count => format!("{}, {count} in all", self.seccomp),
        };
        lines.extend([
            (
                "no new privileges",
                if self.no_new_privileges { "yes" } else { "no" }.to_owned(),
            ),
            ("seccomp", seccomp),
            ("AppArmor", self.apparmor.clone().unwrap_or_else(none)),
            ("SELinux", self.selinux.clone().unwrap_or_else(none)),
            (
                "oom_score_adj",
                self.oom_score_adj.map_or_else(none, |adj| adj.to_string()),
            ),
        ]);
        lines
    }
}

fn capabilities(status: &str) -> BTreeMap<&'static str, Vec<&'static str>> {
    let set = |key| {
        let bits = field(status, key).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        CapSet::from_bits(bits.unwrap_or(0)).names().collect()
    };
    SETS.iter().map(|(name, key)| (*name, set(key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_named() {
        let found = capabilities("CapEff:\t0000000000002001\nCapBnd:\t0000000000000000\n");
        assert_eq!(found["effective"].len(), 2, "{found:?}");
        assert!(
            found["effective"].iter().any(|name| name.contains("NET_RAW")),
            "{found:?}"
        );
        assert!(found["bounding"].is_empty() && found["ambient"].is_empty());
    }

    #[test]
    fn own_confinement_is_read() {
        let own = Proc::open(std::process::id().cast_signed()).unwrap();
        let status = own.text("status", 1 << 20).unwrap();
        let lines = Confinement::read(&own, &status).lines();
        assert_eq!(lines.len(), 10);
        assert!(
            lines
                .iter()
                .any(|(name, value)| *name == "oom_score_adj" && value.parse::<i64>().is_ok())
        );
    }
}
