//! `podd stats`: what containers or pods use, as it goes.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use podd_proto::v1;
use serde::Serialize;

use super::cri::Cri;
use super::failure::Failure;
use super::node::{Found, Node};
use super::screen::Screen;
use super::table::{self, Format, Table};
use super::{text, time};

/// The first rates come after this long.
const FIRST: Duration = Duration::from_millis(500);

/// Show what running containers use, again and again.
#[derive(Debug, Args)]
pub struct Stats {
    /// Names or ids of containers or pods [default: all].
    what: Vec<String>,
    /// Pods instead of containers.
    #[arg(short, long)]
    pods: bool,
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,
    /// Look once.
    #[arg(long)]
    once: bool,
    /// How to print; json is one object a line for each look.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Look {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<Vec<Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<Vec<Row>>,
}

/// What one container or pod uses. What the kernel does not count is absent.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Row {
    id: String,
    name: String,
    pod: String,
    namespace: String,
    cpu_nanoseconds: Option<u64>,
    /// Of one processor, in thousandths, since the last look.
    cpu_milli: Option<u64>,
    memory_working_set_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    memory_rss_bytes: Option<u64>,
    swap_bytes: Option<u64>,
    disk_bytes: Option<u64>,
    disk_inodes: Option<u64>,
    processes: Option<u64>,
    received_bytes: Option<u64>,
    sent_bytes: Option<u64>,
    /// Share of the last 10 seconds in which something waited, in percent.
    cpu_pressure: Option<f64>,
    memory_pressure: Option<f64>,
    io_pressure: Option<f64>,
    #[serde(skip)]
    at: i64,
}

impl Stats {
    /// Looks and prints until it is interrupted, or once.
    ///
    /// # Errors
    /// There is no such container or pod, podd does not answer, or the result cannot be written.
    pub fn run(self, cri: &Cri, screen: Screen) -> Result<(), Failure> {
        let wanted = self.wanted(&Node::read(cri)?)?;
        let mut before = HashMap::new();
        rates(&mut before, &mut self.look(cri, &wanted)?);
        std::thread::sleep(FIRST);
        loop {
            let mut rows = self.look(cri, &wanted)?;
            rates(&mut before, &mut rows);
            self.print(rows, screen)?;
            if self.once {
                return Ok(());
            }
            std::thread::sleep(Duration::from_secs(self.interval));
        }
    }

    /// Ids of the containers and pods that were named.
    fn wanted(&self, node: &Node) -> Result<Vec<String>, Failure> {
        let id = |word: &String| {
            Ok(match self.pods {
                true => node.pod(word)?.id.clone(),
                false => match node.find(word)? {
                    Found::Container(container) => container.id.clone(),
                    Found::Pod(pod) => pod.id.clone(),
                },
            })
        };
        self.what.iter().map(id).collect()
    }

    fn look(&self, cri: &Cri, wanted: &[String]) -> Result<Vec<Row>, Failure> {
        let is_wanted = |id: &str| wanted.is_empty() || wanted.iter().any(|w| w == id);
        if self.pods {
            let stats = cri
                .list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default())?
                .stats;
            return Ok(stats
                .into_iter()
                .map(pod_row)
                .filter(|row| is_wanted(&row.id))
                .collect());
        }
        // Every look, as containers come and go.
        let node = Node::read(cri)?;
        let stats = cri
            .list_container_stats(v1::ListContainerStatsRequest::default())?
            .stats;
        let row = |stats: v1::ContainerStats| {
            let mut row = container_row(stats);
            let known = node.containers.iter().find(|c| c.id == row.id)?;
            row.pod.clone_from(&known.pod);
            row.namespace.clone_from(&known.namespace);
            (is_wanted(&row.id) || is_wanted(&known.pod_id)).then_some(row)
        };
        Ok(stats.into_iter().filter_map(row).collect())
    }

    fn print(&self, mut rows: Vec<Row>, screen: Screen) -> Result<(), Failure> {
        rows.sort_by(|a, b| {
            (&a.namespace, &a.pod, &a.name, &a.id).cmp(&(&b.namespace, &b.pod, &b.name, &b.id))
        });
        let text = match self.output {
            Format::Json => {
                let (containers, pods) = if self.pods {
                    (None, Some(rows))
                } else {
                    (Some(rows), None)
                };
                let time = time::stamp(time::now());
                table::json_line(&Look {
                    time,
                    containers,
                    pods,
                })
            }
            Format::Table => {
                let table = if self.pods {
                    draw_pods(&rows)
                } else {
                    draw_containers(&rows)
                };
                let text = table.render(screen.width());
                if self.once { text } else { screen.again(&text) }
            }
        };
        screen.print(&text)
    }
}

/// Fills in the rates since the last look, and remembers this one.
fn rates(before: &mut HashMap<String, (i64, u64)>, rows: &mut [Row]) {
    for row in &mut *rows {
        let Some(used) = row.cpu_nanoseconds else { continue };
        if let Some((at, then)) = before.get(&row.id) {
            let elapsed = u64::try_from(row.at.saturating_sub(*at)).unwrap_or(0);
            if elapsed > 0 {
                let milli = u128::from(used.saturating_sub(*then)) * 1000 / u128::from(elapsed);
                row.cpu_milli = u64::try_from(milli).ok();
            }
        }
    }
    *before = rows
        .iter()
        .filter_map(|r| Some((r.id.clone(), (r.at, r.cpu_nanoseconds?))))
        .collect();
}

fn value(it: Option<v1::UInt64Value>) -> Option<u64> {
    it.map(|it| it.value)
}

fn some(psi: Option<v1::PsiStats>) -> Option<f64> {
    psi.and_then(|psi| psi.some).map(|data| data.avg10)
}

fn usage(row: &mut Row, cpu: Option<v1::CpuUsage>, memory: Option<v1::MemoryUsage>, io: Option<v1::IoUsage>) {
    if let Some(cpu) = cpu {
        row.at = cpu.timestamp;
        row.cpu_nanoseconds = value(cpu.usage_core_nano_seconds);
        row.cpu_pressure = some(cpu.psi);
    }
    if let Some(memory) = memory {
        row.memory_working_set_bytes = value(memory.working_set_bytes);
        row.memory_rss_bytes = value(memory.rss_bytes);
        let available = value(memory.available_bytes).filter(|bytes| *bytes > 0);
        row.memory_limit_bytes = available.and_then(|bytes| bytes.checked_add(row.memory_working_set_bytes?));
        row.memory_pressure = some(memory.psi);
    }
    row.io_pressure = io.and_then(|io| some(io.psi));
}

fn container_row(stats: v1::ContainerStats) -> Row {
    let attributes = stats.attributes.unwrap_or_default();
    let layer = stats.writable_layer.unwrap_or_default();
    let mut row = Row {
        id: attributes.id,
        name: attributes.metadata.unwrap_or_default().name,
        swap_bytes: stats.swap.and_then(|swap| value(swap.swap_usage_bytes)),
        disk_bytes: value(layer.used_bytes),
        disk_inodes: value(layer.inodes_used),
        ..Row::default()
    };
    usage(&mut row, stats.cpu, stats.memory, stats.io);
    row
}

fn pod_row(stats: v1::PodSandboxStats) -> Row {
    let attributes = stats.attributes.unwrap_or_default();
    let metadata = attributes.metadata.unwrap_or_default();
    let linux = stats.linux.unwrap_or_default();
    let interface = linux
        .network
        .and_then(|network| network.default_interface)
        .unwrap_or_default();
    let mut row = Row {
        id: attributes.id,
        pod: metadata.name.clone(),
        name: metadata.name,
        namespace: metadata.namespace,
        processes: linux.process.and_then(|process| value(process.process_count)),
        received_bytes: value(interface.rx_bytes),
        sent_bytes: value(interface.tx_bytes),
        ..Row::default()
    };
    usage(&mut row, linux.cpu, linux.memory, linux.io);
    row
}

fn bytes(count: Option<u64>) -> String {
    count.map_or_else(String::new, text::bytes)
}

fn number(count: Option<u64>) -> String {
    count.map_or_else(String::new, |count| count.to_string())
}

fn processor(row: &Row) -> String {
    row.cpu_milli
        .map_or_else(String::new, |milli| text::percent(milli, 1000))
}

fn draw_containers(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "CONTAINER",
        "NAME",
        "POD",
        "NAMESPACE",
        ">CPU%",
        ">MEMORY",
        ">LIMIT",
        ">RSS",
        ">SWAP",
        ">DISK",
        ">INODES",
    ]);
    for row in rows {
        table.row([
            text::short(&row.id),
            &row.name,
            &row.pod,
            &row.namespace,
            &processor(row),
            &bytes(row.memory_working_set_bytes),
            &bytes(row.memory_limit_bytes),
            &bytes(row.memory_rss_bytes),
            &bytes(row.swap_bytes),
            &bytes(row.disk_bytes),
            &number(row.disk_inodes),
        ]);
    }
    table
}

fn draw_pods(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "POD",
        "NAME",
        "NAMESPACE",
        ">CPU%",
        ">MEMORY",
        ">LIMIT",
        ">PROCESSES",
        ">RECEIVED",
        ">SENT",
    ]);
    for row in rows {
        table.row([
            text::short(&row.id),
            &row.name,
            &row.namespace,
            &processor(row),
            &bytes(row.memory_working_set_bytes),
            &bytes(row.memory_limit_bytes),
            &number(row.processes),
            &bytes(row.received_bytes),
            &bytes(row.sent_bytes),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, used: Option<u64>) -> Vec<Row> {
        let row = Row {
            id: "a".to_owned(),
            at: seconds * 1_000_000_000,
            cpu_nanoseconds: used,
            ..Row::default()
        };
        vec![row]
    }

    #[test]
    fn rates_are_between_looks() {
        let mut before = HashMap::new();
        let mut rate = |mut rows: Vec<Row>| {
            rates(&mut before, &mut rows);
            rows[0].cpu_milli
        };
        assert_eq!(rate(at(10, Some(0))), None);
        assert_eq!(rate(at(12, Some(3_000_000_000))), Some(1500));
        assert_eq!(rate(at(12, Some(3_000_000_000))), None);
        assert_eq!(rate(at(13, Some(1))), Some(0));
        assert_eq!(rate(at(14, None)), None);
        assert_eq!(rate(at(15, Some(1))), None);
    }

    #[test]
    fn what_is_not_counted_is_a_dash() {
        let stats = v1::ContainerStats {
            memory: Some(v1::MemoryUsage {
                working_set_bytes: Some(v1::UInt64Value { value: 1 << 20 }),
                available_bytes: Some(v1::UInt64Value { value: 1 << 20 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let row = container_row(stats);
        assert_eq!(row.memory_limit_bytes, Some(2 << 20));
        let text = draw_containers(&[row]).render(None);
        assert!(
            text.ends_with("-  1.0 MiB  2.0 MiB    -     -     -       -\n"),
            "{text}"
        );
    }
}
