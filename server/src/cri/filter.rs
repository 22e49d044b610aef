//! Which pods and containers a List call is about. Pure.

use std::collections::{BTreeMap, HashMap};

use podd_proto::v1;

use super::convert;
use crate::state::store::{Container, Pod};

/// Whether a filter lets a pod through. What is being created never passes.
#[must_use]
pub fn pod(filter: &v1::PodSandboxFilter, pod: &Pod) -> bool {
    pod.is_listed()
        && id(&filter.id, pod.record.id.as_str())
        && filter
            .state
            .is_none_or(|s| s.state == convert::pod_state(pod) as i32)
        && labels(&filter.label_selector, &pod.config.labels)
}

/// Whether a filter lets a container through. What is being created never passes.
#[must_use]
pub fn container(filter: &v1::ContainerFilter, container: &Container) -> bool {
    container.is_listed()
        && id(&filter.id, container.record.id.as_str())
        && id(&filter.pod_sandbox_id, container.record.pod.as_str())
        && filter
            .state
            .is_none_or(|s| s.state == convert::container_state(container) as i32)
        && labels(&filter.label_selector, &container.config.labels)
}

/// Whether a filter for statistics lets a pod through.
#[must_use]
pub fn pod_stats(filter: &v1::PodSandboxStatsFilter, pod: &Pod) -> bool {
    pod.is_listed()
        && id(&filter.id, pod.record.id.as_str())
        && labels(&filter.label_selector, &pod.config.labels)
}

/// Whether a filter for statistics lets a container through.
#[must_use]
pub fn container_stats(filter: &v1::ContainerStatsFilter, container: &Container) -> bool {
    container.is_listed()
        && id(&filter.id, container.record.id.as_str())
        && id(&filter.pod_sandbox_id, container.record.pod.as_str())
        && labels(&filter.label_selector, &container.config.labels)
}

/// An empty filter passes all; the beginning of an id is enough, as for every other call.
fn id(wanted: &str, id: &str) -> bool {
    id.starts_with(wanted)
}

/// Every label asked for is there with that value.
fn labels(wanted: &HashMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::phase::{ContainerPhase, PodPhase};
    use crate::state::record::tests;

    #[test]
    fn pods_are_filtered_by_id_state_and_labels() {
        let mut it = tests::pod("a", 0);
        let all = v1::PodSandboxFilter::default();
        assert!(!pod(&all, &it), "being created");
        it.record.phase = PodPhase::Ready;
        let state = |s: v1::PodSandboxState| v1::PodSandboxFilter {
            state: Some(v1::PodSandboxStateValue { state: s as i32 }),
            ..Default::default()
        };
        let label = |k: &str, v: &str| v1::PodSandboxFilter {
            label_selector: [(k.to_owned(), v.to_owned())].into(),
            ..Default::default()
        };
        let of_id = |id: &str| v1::PodSandboxFilter {
            id: id.to_owned(),
            ..Default::default()
        };
        for (filter, passes) in [
            (all, true),
            (of_id(it.record.id.as_str()), true),
            (of_id(it.record.id.short()), true),
            (of_id("no such id"), false),
            (state(v1::PodSandboxState::SandboxReady), true),
            (state(v1::PodSandboxState::SandboxNotready), false),
            (label("app", "a"), true),
            (label("app", "b"), false),
            (label("none", "a"), false),
        ] {
            assert_eq!(pod(&filter, &it), passes, "{filter:?}");
        }
    }

    #[test]
    fn containers_are_filtered_by_id_pod_state_and_labels() {
        let parent = tests::pod("a", 0);
        let mut it = tests::container(&parent, "c");
        let all = v1::ContainerFilter::default();
        assert!(!container(&all, &it), "being created");
        it.record.phase = ContainerPhase::Created { pid: 1 };
        let state = |s: v1::ContainerState| v1::ContainerFilter {
            state: Some(v1::ContainerStateValue { state: s as i32 }),
            ..Default::default()
        };
        let of_pod = |id: &str| v1::ContainerFilter {
            pod_sandbox_id: id.to_owned(),
            ..Default::default()
        };
        for (filter, passes) in [
            (all, true),
            (of_pod(parent.record.id.as_str()), true),
            (of_pod("no such pod"), false),
            (
                v1::ContainerFilter {
                    id: it.record.id.to_string(),
                    ..Default::default()
                },
                true,
            ),
            (
                v1::ContainerFilter {
                    id: parent.record.id.to_string(),
                    ..Default::default()
                },
                false,
            ),
            (state(v1::ContainerState::ContainerCreated), true),
            (state(v1::ContainerState::ContainerRunning), false),
        ] {
            assert_eq!(container(&filter, &it), passes, "{filter:?}");
        }
    }
}
