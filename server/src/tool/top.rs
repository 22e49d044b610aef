//! `podd top`: the processes of a container.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::cri::Cri;
use super::failure::Failure;
use super::node::Node;
use super::processes::{MOST, Process, Processes};
use super::screen::Screen;
use super::table::{self, Format, Table};
use super::text;

/// Show the processes of a container.
#[derive(Debug, Args)]
pub struct Top {
    /// Name or id of the container.
    container: String,
    /// How long to watch what the processes use, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    sample: u64,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: String,
    name: String,
    more: bool,
    processes: Vec<Row>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(flatten)]
    process: Process,
    /// Of one processor, in thousandths, during the sample.
    cpu_milli: u64,
    cpu_seconds: u64,
}

impl Top {
    /// Samples and prints.
    ///
    /// # Errors
    /// There is no such container, it does not run, or podd does not answer.
    pub fn run(self, cri: &Cri, screen: Screen) -> Result<(), Failure> {
        let node = Node::read(cri)?;
        let container = node.container(&self.container)?;
        let (_, kept) = cri.container(&container.id)?;
        let cgroup = kept.directory(&cri.cgroup_root()?).filter(|_| kept.pid.is_some());
        let cgroup = cgroup.ok_or_else(|| Failure::NoProcess {
            name: container.title(),
            state: container.state,
        })?;
        let begun = Instant::now();
        let before: HashMap<i32, u64> = read(&cgroup)?.list.iter().map(|p| (p.pid, p.ticks)).collect();
        std::thread::sleep(Duration::from_millis(self.sample).saturating_sub(begun.elapsed()));
        let now = read(&cgroup)?;
        let shown = Shown {
            id: container.id.clone(),
            name: container.title(),
            more: now.more,
            processes: rows(
                now,
                &before,
                begun.elapsed(),
                rustix::param::clock_ticks_per_second(),
            ),
        };
        screen.print(&match self.output {
            Format::Json => table::json(&shown),
            Format::Table => draw(&shown, screen.width()),
        })
    }
}

fn read(cgroup: &Path) -> Result<Processes, Failure> {
    Processes::read(cgroup).map_err(|source| Failure::Io {
        verb: "read the processes of",
        path: cgroup.to_owned(),
        source,
    })
}

/// The processes with what they used meanwhile, the busiest first.
fn rows(now: Processes, before: &HashMap<i32, u64>, elapsed: Duration, per_second: u64) -> Vec<Row> {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let row = |process: Process| {
        // A process that has just begun has used all of its time meanwhile.
        let used = process
            .ticks
            .saturating_sub(before.get(&process.pid).copied().unwrap_or(0));
        Row {
            cpu_milli: used.saturating_mul(1_000_000) / per_second.max(1) / millis,
            cpu_seconds: process.ticks / per_second.max(1),
            process,
        }
    };
    let mut rows: Vec<Row> = now.list.into_iter().map(row).collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.cpu_milli), row.process.pid));
    rows
}

fn draw(shown: &Shown, width: Option<usize>) -> String {
    let mut table = Table::new(&[
        ">PID", ">INSIDE", "USER", "STATE", ">THREADS", ">CPU%", ">TIME", ">RSS", "COMMAND",
    ]);
    for row in &shown.processes {
        let process = &row.process;
        let uid = process.uid_inside.unwrap_or(process.uid).to_string();
        table.row([
            &process.pid.to_string(),
            &process.pid_inside.to_string(),
            process.user.as_deref().unwrap_or(&uid),
            &process.state.to_string(),
            &process.threads.to_string(),
            &text::percent(row.cpu_milli, 1000),
            &format!("{}:{:02}", row.cpu_seconds / 60, row.cpu_seconds % 60),
            &text::bytes(process.rss_bytes),
            &process.command,
        ]);
    }
    let mut out = table.render(width);
    if shown.more {
        out.push_str(&format!("and more than the {MOST} that are shown\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_is_first() {
        let process = |pid, ticks| Process {
            pid,
            pid_inside: pid - 10,
            ticks,
            state: 'R',
            user: (pid == 12).then(|| "web".to_owned()),
            uid_inside: Some(7),
            command: "a\nb".to_owned(),
            rss_bytes: 4096,
            ..Process::default()
        };
        let list = vec![process(11, 6000), process(12, 150), process(13, 25)];
        let now = Processes { list, more: true };
        let before = [(11, 6000), (12, 50)].into();
        let processes = rows(now, &before, Duration::from_millis(500), 100);
        let found: Vec<_> = processes
            .iter()
            .map(|r| (r.process.pid, r.cpu_milli, r.cpu_seconds))
            .collect();
        assert_eq!(found, [(12, 2000, 1), (13, 500, 0), (11, 0, 60)]);
        let shown = Shown {
            id: String::new(),
            name: String::new(),
            more: true,
            processes,
        };
        let text = draw(&shown, None);
        assert!(
            text.contains(" 12       2  web   R            0  200.0  0:01  4.0 KiB  a\\nb\n"),
            "{text}"
        );
        assert!(text.contains("  7     R") && text.ends_with("shown\n"), "{text}");
    }
}
