//! `podd events`: what happens to pods and containers, as it happens.

use clap::Args;
use podd_proto::v1;
use serde::Serialize;

use super::cri::Cri;
use super::failure::Failure;
use super::screen::Screen;
use super::table::{self, Format};
use super::{text, time};

/// Show what happens to pods and containers, until interrupted.
#[derive(Debug, Args)]
pub struct Events {
    /// How to print; json is one object on a line for each event.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// One event.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Event {
    at: i64,
    happened: &'static str,
    /// `pod` or `container`.
    subject: &'static str,
    id: String,
    namespace: String,
    pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<v1::ContainerEventResponse> for Event {
    fn from(event: v1::ContainerEventResponse) -> Self {
        let happened = match event.container_event_type() {
            v1::ContainerEventType::ContainerCreatedEvent => "created",
            v1::ContainerEventType::ContainerStartedEvent => "started",
            v1::ContainerEventType::ContainerStoppedEvent => "stopped",
            v1::ContainerEventType::ContainerDeletedEvent => "deleted",
        };
        let pod = event.pod_sandbox_status.unwrap_or_default();
        let of_pod = pod.id == event.container_id;
        let mut statuses = event.containers_statuses.into_iter();
        // A container that was deleted has no status any more.
        let status = statuses.find(|status| status.id == event.container_id);
        let over = status
            .as_ref()
            .filter(|status| status.state() == v1::ContainerState::ContainerExited);
        let metadata = pod.metadata.unwrap_or_default();
        Self {
            at: event.created_at,
            happened,
            subject: if of_pod { "pod" } else { "container" },
            namespace: metadata.namespace,
            pod: metadata.name,
            exit_code: over.map(|status| status.exit_code),
            reason: over.map(|status| status.reason.clone()),
            container: status
                .and_then(|status| status.metadata)
                .map(|metadata| metadata.name),
            id: event.container_id,
        }
    }
}

impl Event {
    /// One line for people.
    fn line(&self) -> String {
        let mut name = format!("{}/{}", self.namespace, self.pod);
        if let Some(container) = &self.container {
            name = format!("{name}/{container}");
        }
        let end = match (self.exit_code, &self.reason) {
            (Some(code), Some(reason)) => format!("  exit code {code}, {}", text::cell(reason)),
            _ => String::new(),
        };
        let (at, id) = (time::clock(self.at), text::short(&self.id));
        let name = text::cell(&name);
        format!(
            "{at}  {:<9}  {}  {id:<13}  {name}{end}\n",
            self.subject, self.happened
        )
    }
}

impl Events {
    /// Follows.
    ///
    /// # Errors
    /// podd does not answer or stops, events were lost, or standard output is closed.
    pub fn run(&self, cri: &Cri, screen: Screen) -> Result<(), Failure> {
        cri.events(|event| {
            let event = Event::from(event);
            screen.print(&match self.output {
                Format::Json => table::json_line(&event),
                Format::Table => event.line(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_with_its_code() {
        let event = v1::ContainerEventResponse {
            container_id: "b".repeat(64),
            container_event_type: v1::ContainerEventType::ContainerStoppedEvent.into(),
            created_at: 1_000_000_000,
            pod_sandbox_status: Some(v1::PodSandboxStatus {
                id: "a".repeat(64),
                metadata: Some(v1::PodSandboxMetadata {
                    name: "web".to_owned(),
                    namespace: "shop".to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            containers_statuses: vec![v1::ContainerStatus {
                id: "b".repeat(64),
                metadata: Some(v1::ContainerMetadata {
                    name: "nginx".to_owned(),
                    attempt: 0,
                }),
                state: v1::ContainerState::ContainerExited.into(),
                exit_code: 3,
                reason: "Error".to_owned(),
                ..Default::default()
            }],
        };
        let line = Event::from(event).line();
        assert_eq!(
            line,
            "1970-01-01T00:00:01Z  container  stopped  bbbbbbbbbbbbb  shop/web/nginx  exit code 3, Error\n"
        );
    }
}
