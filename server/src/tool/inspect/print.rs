//! `podd inspect` for people.

use std::collections::BTreeMap;

use super::namespaces::Namespace;
use super::{Kernel, ShownContainer, ShownPod};
use crate::tool::screen::Screen;
use crate::tool::table::{self, Table};
use crate::tool::{text, time};

/// A container.
#[must_use]
pub fn container(shown: &ShownContainer<'_>, screen: Screen) -> String {
    let (it, status) = (shown.container, &shown.status);
    let mut lines = vec![
        ("container", text::cell(&it.id)),
        ("name", it.title()),
        ("pod", text::cell(&it.pod_id)),
        ("attempt", it.attempt.to_string()),
        ("image", text::cell(&it.image)),
        ("image id", text::cell(&it.image_id)),
        ("state", it.state.to_owned()),
        ("created", time::clock(it.created_at)),
        ("started", time::clock(status.started_at)),
        ("finished", time::clock(status.finished_at)),
    ];
    if it.state == "exited" {
        lines.push(("exit code", status.exit_code.to_string()));
        lines.push(("reason", text::cell(&status.reason)));
        lines.push(("message", text::cell(&status.message)));
    }
    if let Some(user) = &status.user {
        let groups: Vec<String> = user.groups.iter().map(i64::to_string).collect();
        lines.push((
            "user",
            format!(
                "{}:{} groups {}",
                user.uid,
                user.gid,
                text::cell(&groups.join(" "))
            ),
        ));
    }
    lines.push(("stop signal", text::cell(&status.stop_signal)));
    lines.push(("log", text::cell(&status.log_path)));
    lines.push(("cgroup", text::cell(shown.cgroup.as_deref().unwrap_or_default())));
    let mut out = table::pairs(&lines);
    if let Some(kernel) = &shown.process {
        process(&mut out, kernel);
    }
    map(&mut out, "CGROUP", &shown.cgroup_files);
    if let Some(kernel) = &shown.process {
        namespaces(&mut out, &kernel.namespaces, screen);
        limits_and_mounts(&mut out, kernel, screen);
    }
    map(&mut out, "LABELS", &it.labels);
    map(&mut out, "ANNOTATIONS", &status.annotations);
    out
}

fn process(out: &mut String, kernel: &Kernel) {
    out.push_str("\nPROCESS\n");
    let mut lines = vec![
        ("pid", kernel.pid.to_string()),
        ("command", text::cell(&kernel.command)),
        ("processes", kernel.processes.to_string()),
        (
            "open files",
            kernel
                .open_files
                .map_or_else(|| "-".to_owned(), |count| count.to_string()),
        ),
    ];
    let confinement = kernel.confinement.lines();
    lines.extend(
        confinement
            .into_iter()
            .map(|(name, value)| (name, text::safe(&value))),
    );
    out.push_str(&table::pairs(&lines));
}

fn namespaces(out: &mut String, all: &[Namespace], screen: Screen) {
    let mut table = Table::new(&["NAMESPACE", ">INODE", "SHARED WITH"]);
    for namespace in all {
        let [kind, inode, shared] = namespace.row();
        table.row([&kind, &inode, &shared]);
    }
    out.push('\n');
    out.push_str(&table.render(screen.width()));
}

fn limits_and_mounts(out: &mut String, kernel: &Kernel, screen: Screen) {
    let mut limits = Table::new(&["LIMIT", ">SOFT", ">HARD"]);
    for limit in &kernel.rlimits {
        limits.row([&limit.name, &limit.soft, &limit.hard]);
    }
    let mut mounts = Table::new(&["MOUNT", "TYPE", "SOURCE", "ROOT", "PROPAGATION", "OPTIONS"]);
    for mount in &kernel.mounts {
        mounts.row([
            &mount.target,
            &mount.kind,
            &mount.source,
            &mount.root,
            &mount.propagation,
            &mount.options,
        ]);
    }
    for table in [limits, mounts] {
        out.push('\n');
        out.push_str(&table.render(screen.width()));
    }
}

/// A pod.
#[must_use]
pub fn pod(shown: &ShownPod<'_>, screen: Screen) -> String {
    let it = shown.pod;
    let mut out = table::pairs(&[
        ("pod", text::cell(&it.id)),
        ("name", it.title()),
        ("uid", text::cell(&it.uid)),
        ("attempt", it.attempt.to_string()),
        ("state", it.state.to_owned()),
        ("created", time::clock(it.created_at)),
        ("addresses", text::cell(&shown.addresses.join(" "))),
        ("handler", text::cell(&shown.runtime_handler)),
        (
            "podinit",
            shown.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        ),
        ("cgroup", text::cell(shown.cgroup.as_deref().unwrap_or_default())),
    ]);
    let mut table = Table::new(&["CONTAINER", "NAME", "STATE", ">ATTEMPT", "IMAGE"]);
    for container in &shown.containers {
        table.row([
            text::short(&container.id),
            &container.name,
            container.state,
            &container.attempt.to_string(),
            &container.image,
        ]);
    }
    out.push('\n');
    out.push_str(&table.render(screen.width()));
    map(&mut out, "CGROUP", &shown.cgroup_files);
    namespaces(&mut out, &shown.namespaces, screen);
    map(&mut out, "LABELS", &it.labels);
    map(&mut out, "ANNOTATIONS", &shown.annotations);
    out
}

/// Names and values below a head; nothing where there are none. A value of several lines is shown on one.
fn map(out: &mut String, head: &str, all: &BTreeMap<String, String>) {
    if all.is_empty() {
        return;
    }
    let lines: Vec<(&str, String)> = all
        .iter()
        .map(|(name, value)| (name.as_str(), text::cell(&value.replace('\n', ", "))))
        .collect();
    out.push_str(&format!("\n{head}\n{}", table::pairs(&lines)));
}
