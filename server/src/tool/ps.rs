//! `podd ps`: containers.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::cri::Cri;
use super::failure::Failure;
use super::node::{Container, Node};
use super::screen::Screen;
use super::select::Select;
use super::table::{self, Format, Table};
use super::{text, time};

/// List containers: those that run, unless asked for others.
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run.
    #[arg(short, long)]
    all: bool,
    /// Only in this state; may be repeated.
    #[arg(long, value_name = "STATE")]
    state: Vec<State>,
    #[command(flatten)]
    select: Select,
    /// Print whole ids only.
    #[arg(short, long)]
    quiet: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// States of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    #[serde(flatten)]
    container: &'a Container,
    #[serde(flatten)]
    end: Option<End>,
}

/// How a container has ended.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    exit_code: i32,
    reason: String,
    finished_at: i64,
}

impl Ps {
    /// Lists.
    ///
    /// # Errors
    /// podd does not answer, or the result cannot be written.
    pub fn run(self, cri: &Cri, screen: Screen) -> Result<(), Failure> {
        let node = Node::read(cri)?;
        let wanted = |c: &&Container| self.wants(c) && self.select.takes_container(c);
        let containers = node.containers.iter().filter(wanted);
        if self.quiet {
            return screen.print(&containers.map(|c| c.id.clone() + "\n").collect::<String>());
        }
        let mut rows = Vec::new();
        for container in containers {
            match end(cri, container) {
                Ok(end) => rows.push(Row { container, end }),
                // It was removed since the list was made.
                Err(e) if e.is_gone() => {}
                Err(e) => return Err(e),
            }
        }
        screen.print(&match self.output {
            Format::Json => table::json(&rows),
            Format::Table => draw(&rows, time::now()).render(screen.width()),
        })
    }

    fn wants(&self, container: &Container) -> bool {
        if self.state.is_empty() {
            self.all || container.state == "running"
        } else {
            self.state.iter().any(|s| s.name() == container.state)
        }
    }
}

fn end(cri: &Cri, container: &Container) -> Result<Option<End>, Failure> {
    if container.state != "exited" {
        return Ok(None);
    }
    let (status, _) = cri.container(&container.id)?;
    Ok(Some(End {
        exit_code: status.exit_code,
        reason: status.reason,
        finished_at: status.finished_at,
    }))
}

fn draw(rows: &[Row<'_>], now: i64) -> Table {
    let mut table = Table::new(&[
        "CONTAINER",
        "NAME",
        "POD",
        "NAMESPACE",
        "STATE",
        "AGE",
        ">ATTEMPT",
        "IMAGE",
    ]);
    for Row { container, end } in rows {
        let state = match end {
            None => container.state.to_owned(),
            Some(end) if end.exit_code == 0 => "exited".to_owned(),
            Some(end) => format!("exited {} {}", end.exit_code, end.reason),
        };
        table.row([
            text::short(&container.id),
            &container.name,
            &container.pod,
            &container.namespace,
            &state,
            &time::age(container.created_at, now),
            &container.attempt.to_string(),
            &container.image,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_with_its_reason() {
        let container = Container {
            id: "0123456789abcdef".to_owned(),
            name: "c".to_owned(),
            pod: "p".to_owned(),
            namespace: "n".to_owned(),
            state: "exited",
            image: "busybox:1".to_owned(),
            ..Default::default()
        };
        let end = |exit_code, reason: &str| {
            Some(End {
                exit_code,
                reason: reason.to_owned(),
                finished_at: 2,
            })
        };
        let rows = [
            Row {
                container: &container,
                end: end(0, "Completed"),
            },
            Row {
                container: &container,
                end: end(137, "OOMKilled"),
            },
        ];
        let text = draw(&rows, 1).render(None);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].starts_with("0123456789abc  c     p    n          exited "),
            "{text}"
        );
        assert!(lines[2].contains("exited 137 OOMKilled"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&table::json(&rows)).unwrap();
        assert_eq!(json[1]["exitCode"], 137);
        assert_eq!(json[1]["podId"], "");
    }
}
