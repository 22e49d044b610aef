//! `podd pods`: the tree of pods, their containers, and the processes of those.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::cri::Cri;
use super::failure::Failure;
use super::node::{Container, Node, Pod};
use super::processes::{Process, Processes};
use super::screen::Screen;
use super::select::Select;
use super::table::{self, Format};
use super::{text, time};

/// Show pods as a tree, with their containers and processes.
#[derive(Debug, Args)]
pub struct Pods {
    /// Also pods that are not ready and containers that do not run.
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    select: Select,
    /// Leave the processes out.
    #[arg(long)]
    no_processes: bool,
    /// Print whole ids of pods only.
    #[arg(short, long)]
    quiet: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tree<'a> {
    #[serde(flatten)]
    pod: &'a Pod,
    addresses: Vec<String>,
    containers: Vec<Branch<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Branch<'a> {
    #[serde(flatten)]
    container: &'a Container,
    processes: Vec<Process>,
    more_processes: bool,
}

impl Pods {
    /// Reads and prints.
    ///
    /// # Errors
    /// podd does not answer, or the result cannot be written.
    pub fn run(self, cri: &Cri, screen: Screen) -> Result<(), Failure> {
        let node = Node::read(cri)?;
        let wanted = |p: &&Pod| (self.all || p.state == "ready") && self.select.takes_pod(p);
        let pods = node.pods.iter().filter(wanted);
        if self.quiet {
            return screen.print(&pods.map(|p| p.id.clone() + "\n").collect::<String>());
        }
        let root = cri.cgroup_root()?;
        let mut trees = Vec::new();
        for pod in pods {
            match self.tree(cri, &node, pod, &root) {
                Ok(tree) => trees.push(tree),
                // It was removed since the list was made.
                Err(e) if e.is_gone() => {}
                Err(e) => return Err(e),
            }
        }
        screen.print(&match self.output {
            Format::Json => table::json(&trees),
            Format::Table => draw(&trees, screen.width(), time::now()),
        })
    }

    fn tree<'a>(&self, cri: &Cri, node: &'a Node, pod: &'a Pod, root: &Path) -> Result<Tree<'a>, Failure> {
        let network = cri.pod(&pod.id)?.0.network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|more| more.ip);
        let addresses = std::iter::once(network.ip)
            .chain(more)
            .filter(|ip| !ip.is_empty());
        let mut containers = Vec::new();
        for container in node.of_pod(&pod.id) {
            if !self.all && container.state != "running" {
                continue;
            }
            let processes = match self.no_processes || container.state == "exited" {
                true => Processes::default(),
                false => processes(cri, container, root)?,
            };
            containers.push(Branch {
                container,
                processes: processes.list,
                more_processes: processes.more,
            });
        }
        Ok(Tree {
            pod,
            addresses: addresses.collect(),
            containers,
        })
    }
}

/// The processes of a container; none when it has just ended.
fn processes(cri: &Cri, container: &Container, root: &Path) -> Result<Processes, Failure> {
    match cri.container(&container.id) {
        Ok((_, kept)) => {
            let cgroup = kept.directory(root);
            Ok(cgroup.and_then(|c| Processes::read(&c).ok()).unwrap_or_default())
        }
        Err(e) if e.is_gone() => Ok(Processes::default()),
        Err(e) => Err(e),
    }
}

fn draw(trees: &[Tree<'_>], width: Option<usize>, now: i64) -> String {
    let mut lines = Vec::new();
    for tree in trees {
        lines.push(format!(
            "{}  {}  {}  {}  {}",
            tree.pod.title(),
            text::short(&tree.pod.id),
            tree.pod.state,
            time::age(tree.pod.created_at, now),
            text::cell(&tree.addresses.join(" ")),
        ));
        for (at, branch) in tree.containers.iter().enumerate() {
            let last = at + 1 == tree.containers.len();
            let container = branch.container;
            lines.push(format!(
                "{} {}  {}  {}  {}",
                if last { "└─" } else { "├─" },
                text::cell(&container.name),
                text::short(&container.id),
                container.state,
                text::cell(&container.image),
            ));
            let margin = if last { "   " } else { "│  " };
            lines.extend(
                nest(&branch.processes)
                    .into_iter()
                    .map(|line| margin.to_owned() + &line),
            );
            if branch.more_processes {
                lines.push(format!("{margin}… and more"));
            }
        }
    }
    let longest = width.unwrap_or(text::LONGEST);
    lines.iter().map(|line| text::cut(line, longest) + "\n").collect()
}

/// Deepest level that is drawn as one.
const DEEPEST: usize = 24;

/// What is still to be drawn, the next at the end: with what its ancestors have put before it, and whether it is the
/// last of its level.
type Waiting<'a> = Vec<(&'a Process, String, bool)>;

fn push<'a>(waiting: &mut Waiting<'a>, level: Vec<&'a Process>, margin: &str) {
    let count = level.len();
    for (at, process) in level.into_iter().enumerate().rev() {
        waiting.push((process, margin.to_owned(), at + 1 == count));
    }
}

/// The lines of a container's processes, children below their parents.
fn nest(processes: &[Process]) -> Vec<String> {
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        let parent = processes
            .iter()
            .find(|p| p.pid == process.parent && p.pid != process.pid);
        children
            .entry(parent.map_or(0, |p| p.pid))
            .or_default()
            .push(process);
    }
    let mut lines = Vec::new();
    let mut waiting = Waiting::new();
    push(&mut waiting, children.remove(&0).unwrap_or_default(), "");
    while let Some((process, margin, last)) = waiting.pop() {
        let branch = if last { "└─" } else { "├─" };
        lines.push(format!(
            "{margin}{branch} {} {}",
            process.pid,
            text::cell(&process.command)
        ));
        if let Some(level) = children.remove(&process.pid) {
            let deeper = match margin.chars().count() / 3 < DEEPEST {
                true => margin + if last { "   " } else { "│  " },
                false => margin,
            };
            push(&mut waiting, level, &deeper);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, command: &str) -> Process {
        Process {
            pid,
            parent,
            command: command.to_owned(),
            ..Process::default()
        }
    }

    #[test]
    fn children_are_below_their_parents() {
        let processes = [
            process(10, 1, "sh"),
            process(11, 10, "a\x1b[1m"),
            process(12, 10, "b"),
            process(13, 11, "c"),
            process(20, 3, "exec'd"),
        ];
        assert_eq!(
            nest(&processes),
            [
                "├─ 10 sh",
                "│  ├─ 11 a\\u{1b}[1m",
                "│  │  └─ 13 c",
                "│  └─ 12 b",
                "└─ 20 exec'd"
            ]
        );
    }

    #[test]
    fn every_process_has_a_line_however_deep() {
        let deep: Vec<_> = (1..200).map(|pid| process(pid, pid - 1, "x")).collect();
        let lines = nest(&deep);
        assert_eq!(lines.len(), 199);
        assert!(lines.iter().all(|l| l.chars().count() < 100));
        // What changes while it is read can even look like a ring: then nothing is a root, and nothing hangs.
        assert!(nest(&[process(1, 2, "a"), process(2, 1, "b")]).is_empty());
    }
}
