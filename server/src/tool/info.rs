//! `podd info`: the daemon behind the socket.

use std::collections::HashMap;

use clap::Args;
use podd_proto::v1;
use serde::Serialize;
use serde_json::Value;

use super::cri::Cri;
use super::failure::Failure;
use super::screen::Screen;
use super::table::{self, Format};
use super::text;

/// Show the daemon's version, health and features.
#[derive(Debug, Args)]
pub struct Info {
    /// How to print; json has the daemon's configuration too.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    runtime: String,
    version: String,
    api_version: String,
    conditions: Vec<Condition>,
    features: Features,
    info: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    name: String,
    holds: bool,
    reason: String,
    message: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    recursive_read_only_mounts: bool,
    user_namespaces: bool,
    user_namespaces_host_network: bool,
    supplemental_groups_policy: bool,
    mount_options: bool,
}

impl Info {
    /// Asks and prints.
    ///
    /// # Errors
    /// podd does not answer, or the result cannot be written.
    pub fn run(self, cri: &Cri, screen: Screen) -> Result<(), Failure> {
        let version = cri.version(v1::VersionRequest::default())?;
        let status = cri.status(v1::StatusRequest { verbose: true })?;
        let shown = shown(version, status);
        screen.print(&match self.output {
            Format::Json => table::json(&shown),
            Format::Table => draw(&shown),
        })
    }
}

fn shown(version: v1::VersionResponse, status: v1::StatusResponse) -> Shown {
    let conditions = status.status.unwrap_or_default().conditions;
    let mut handlers = status.runtime_handlers.into_iter();
    let handler = handlers.find(|h| h.name.is_empty()).and_then(|h| h.features);
    let (handler, features) = (handler.unwrap_or_default(), status.features.unwrap_or_default());
    Shown {
        runtime: version.runtime_name,
        version: version.runtime_version,
        api_version: version.runtime_api_version,
        conditions: conditions
            .into_iter()
            .map(|c| Condition {
                name: c.r#type,
                holds: c.status,
                reason: c.reason,
                message: c.message,
            })
            .collect(),
        features: Features {
            recursive_read_only_mounts: handler.recursive_read_only_mounts,
            user_namespaces: handler.user_namespaces,
            user_namespaces_host_network: features.user_namespaces_host_network,
            supplemental_groups_policy: features.supplemental_groups_policy,
            mount_options: features.mount_options,
        },
        info: kept(&status.info),
    }
}

/// What podd tells of itself when it is asked to be verbose, with its configuration.
fn kept(info: &HashMap<String, String>) -> Value {
    let read = |key: &str| {
        info.get(key)
            .and_then(|text| serde_json::from_str::<Value>(text).ok())
    };
    let mut kept = read("info").unwrap_or_default();
    if let (Some(kept), Some(config)) = (kept.as_object_mut(), read("config")) {
        kept.insert("config".to_owned(), config);
    }
    kept
}

fn draw(shown: &Shown) -> String {
    let mut lines = vec![
        (
            "runtime",
            format!("{} {}", text::cell(&shown.runtime), text::cell(&shown.version)),
        ),
        ("CRI", text::cell(&shown.api_version)),
    ];
    for condition in &shown.conditions {
        let state = match condition.holds {
            true => "yes".to_owned(),
            false => text::cell(&format!("no: {} {}", condition.reason, condition.message)),
        };
        lines.push((condition.name.as_str(), state));
    }
    let yes = |holds: bool| if holds { "yes" } else { "no" }.to_owned();
    let features = &shown.features;
    lines.extend([
        (
            "recursive read-only mounts",
            yes(features.recursive_read_only_mounts),
        ),
        ("user namespaces", yes(features.user_namespaces)),
        (
            "user namespaces with host network",
            yes(features.user_namespaces_host_network),
        ),
        (
            "supplemental groups policy",
            yes(features.supplemental_groups_policy),
        ),
        ("mount options", yes(features.mount_options)),
    ]);
    for (name, key) in [
        ("pods", "/pods"),
        ("containers", "/containers"),
        ("cgroup driver", "/config/cgroup/driver"),
    ] {
        match shown.info.pointer(key) {
            Some(Value::String(value)) => lines.push((name, text::cell(value))),
            Some(value) => lines.push((name, text::cell(&value.to_string()))),
            None => {}
        }
    }
    super::table::pairs(&lines)
}
