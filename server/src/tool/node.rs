//! What is on the node, as lists tell it, and which of it an operator means by a word.
//!
//! A word is an id, a prefix of one, a name, or a name with pod and namespace before it: `ns/pod/container`.

use std::collections::BTreeMap;

use podd_proto::v1;
use serde::Serialize;

use super::cri::Cri;
use super::failure::Failure;
use super::text;

/// Shortest prefix of an id that counts as one.
const SHORTEST: usize = 3;

/// Most candidates that a refusal names.
const CANDIDATES: usize = 8;

/// A pod.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
    /// The namespace.
    pub namespace: String,
    /// The uid that the kubelet knows it by.
    pub uid: String,
    /// How often it was made before.
    pub attempt: u32,
    /// `ready` or `notready`.
    pub state: &'static str,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A container.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
    /// How often it was made before.
    pub attempt: u32,
    /// `created`, `running`, `exited` or `unknown`.
    pub state: &'static str,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// The image as it was asked for.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The pod.
    pub pod_id: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
}

impl Container {
    /// Namespace, pod and name, safe to print.
    #[must_use]
    pub fn title(&self) -> String {
        text::cell(&format!("{}/{}/{}", self.namespace, self.pod, self.name))
    }
}

impl Pod {
    /// Namespace and name, safe to print.
    #[must_use]
    pub fn title(&self) -> String {
        text::cell(&format!("{}/{}", self.namespace, self.name))
    }
}

/// A pod or a container.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// A pod.
    Pod(&'a Pod),
    /// A container.
    Container(&'a Container),
}

/// All pods and containers at about one moment, newest first.
#[derive(Debug, Default)]
pub struct Node {
    /// The pods.
    pub pods: Vec<Pod>,
    /// The containers.
    pub containers: Vec<Container>,
}

impl Node {
    /// Asks podd.
    ///
    /// # Errors
    /// podd does not answer.
    pub fn read(cri: &Cri) -> Result<Self, Failure> {
        // Containers first: the pod of each is then in the second list, unless both were removed in between.
        let containers = cri
            .list_containers(v1::ListContainersRequest::default())?
            .containers;
        let pods = cri.list_pod_sandbox(v1::ListPodSandboxRequest::default())?.items;
        Ok(Self::new(pods, containers))
    }

    fn new(pods: Vec<v1::PodSandbox>, containers: Vec<v1::Container>) -> Self {
        let mut pods: Vec<Pod> = pods.into_iter().map(pod).collect();
        let mut containers: Vec<Container> = containers
            .into_iter()
            .map(|c| {
                let owner = pods.iter().find(|p| p.id == c.pod_sandbox_id);
                container(c, owner)
            })
            .collect();
        pods.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        containers.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Self { pods, containers }
    }

    /// The container that `word` means.
    ///
    /// # Errors
    /// None, or several that are not attempts of one.
    pub fn container(&self, word: &str) -> Result<&Container, Failure> {
        let named = self.containers.iter().filter(|c| names_container(word, c));
        let mut found = newest(named, |c| (&c.namespace, &c.pod, &c.name));
        by_id(word, &self.containers, |c| &c.id, &mut found);
        one(word, &found, |c| {
            format!("{} ({})", text::short(&c.id), c.title())
        })?
        .ok_or_else(|| Failure::Unknown {
            kind: "container",
            word: word.to_owned(),
            list: "podd ps -a",
        })
    }

    /// The pod that `word` means.
    ///
    /// # Errors
    /// None, or several that are not attempts of one.
    pub fn pod(&self, word: &str) -> Result<&Pod, Failure> {
        let named = self.pods.iter().filter(|p| names_pod(word, p));
        let mut found = newest(named, |p| (&p.namespace, &p.name));
        by_id(word, &self.pods, |p| &p.id, &mut found);
        one(word, &found, |p| {
            format!("{} ({})", text::short(&p.id), p.title())
        })?
        .ok_or_else(|| Failure::Unknown {
            kind: "pod",
            word: word.to_owned(),
            list: "podd pods -a",
        })
    }

    /// The container or pod that `word` means.
    ///
    /// # Errors
    /// None, or several.
    pub fn find(&self, word: &str) -> Result<Found<'_>, Failure> {
        match (self.container(word), self.pod(word)) {
            (Ok(container), Err(Failure::Unknown { .. })) => Ok(Found::Container(container)),
            (Err(Failure::Unknown { .. }), Ok(pod)) => Ok(Found::Pod(pod)),
            (Err(Failure::Unknown { .. }), Err(Failure::Unknown { word, .. })) => Err(Failure::Unknown {
                kind: "container or pod",
                word,
                list: "podd pods -a",
            }),
            (Err(e @ Failure::Ambiguous { .. }), _) | (_, Err(e)) => Err(e),
            (Err(e), Ok(_)) => Err(e),
            (Ok(container), Ok(pod)) => Err(Failure::Ambiguous {
                word: word.to_owned(),
                candidates: vec![
                    format!("container {} ({})", text::short(&container.id), container.title()),
                    format!("pod {} ({})", text::short(&pod.id), pod.title()),
                ],
            }),
        }
    }

    /// The containers of a pod.
    pub fn of_pod(&self, id: &str) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(move |c| c.pod_id == id)
    }
}

fn names_container(word: &str, c: &Container) -> bool {
    match *word.split('/').collect::<Vec<_>>() {
        [name] => name == c.name,
        [pod, name] => (pod, name) == (&c.pod, &c.name),
        [namespace, pod, name] => (namespace, pod, name) == (&c.namespace, &c.pod, &c.name),
        _ => false,
    }
}

fn names_pod(word: &str, p: &Pod) -> bool {
    match *word.split('/').collect::<Vec<_>>() {
        [name] => name == p.name,
        [namespace, name] => (namespace, name) == (&p.namespace, &p.name),
        _ => false,
    }
}

/// Adds those whose id begins with `word`; a whole id means nothing else.
fn by_id<'a, T>(word: &str, all: &'a [T], id: impl Fn(&T) -> &str, found: &mut Vec<&'a T>) {
    if let Some(whole) = all.iter().find(|item| id(item) == word) {
        *found = vec![whole];
    } else if word.len() >= SHORTEST {
        let matched = all.iter().filter(|item| id(item).starts_with(word));
        for item in matched {
            if !found.iter().any(|known| id(known) == id(item)) {
                found.push(item);
            }
        }
    }
}

/// Of those with the same key, which are attempts of one, the first: lists are sorted by age.
fn newest<'a, T, K: PartialEq>(matched: impl Iterator<Item = &'a T>, key: impl Fn(&'a T) -> K) -> Vec<&'a T> {
    let mut found: Vec<&T> = Vec::new();
    for item in matched {
        if !found.iter().any(|known| key(known) == key(item)) {
            found.push(item);
        }
    }
    found
}

fn one<'a, T>(word: &str, found: &[&'a T], show: impl Fn(&T) -> String) -> Result<Option<&'a T>, Failure> {
    if found.len() < 2 {
        return Ok(found.first().copied());
    }
    let mut candidates: Vec<String> = found.iter().take(CANDIDATES).map(|item| show(item)).collect();
    if found.len() > CANDIDATES {
        candidates.push(format!("{} more", found.len() - CANDIDATES));
    }
    Err(Failure::Ambiguous {
        word: word.to_owned(),
        candidates,
    })
}

fn pod(p: v1::PodSandbox) -> Pod {
    let state = match p.state() {
        v1::PodSandboxState::SandboxReady => "ready",
        v1::PodSandboxState::SandboxNotready => "notready",
    };
    let metadata = p.metadata.unwrap_or_default();
    Pod {
        id: p.id,
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        state,
        created_at: p.created_at,
        labels: p.labels.into_iter().collect(),
    }
}

fn container(c: v1::Container, owner: Option<&Pod>) -> Container {
    let state = state_name(c.state());
    let (metadata, image) = (c.metadata.unwrap_or_default(), c.image.unwrap_or_default());
    let asked = if image.user_specified_image.is_empty() {
        image.image
    } else {
        image.user_specified_image
    };
    Container {
        id: c.id,
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        created_at: c.created_at,
        image: asked,
        image_id: c.image_id,
        labels: c.labels.into_iter().collect(),
        pod_id: c.pod_sandbox_id,
        pod: owner.map(|p| p.name.clone()).unwrap_or_default(),
        namespace: owner.map(|p| p.namespace.clone()).unwrap_or_default(),
    }
}

/// A container's state in one word.
#[must_use]
pub fn state_name(state: v1::ContainerState) -> &'static str {
    match state {
        v1::ContainerState::ContainerCreated => "created",
        v1::ContainerState::ContainerRunning => "running",
        v1::ContainerState::ContainerExited => "exited",
        v1::ContainerState::ContainerUnknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let pod = |id: &str, name: &str, namespace: &str| v1::PodSandbox {
            id: id.to_owned(),
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let container = |id: &str, pod: &str, name: &str, attempt: u32| v1::Container {
            id: id.to_owned(),
            pod_sandbox_id: pod.to_owned(),
            metadata: Some(v1::ContainerMetadata {
                name: name.to_owned(),
                attempt,
            }),
            created_at: attempt.into(),
            ..Default::default()
        };
        Node::new(
            vec![
                pod("aaa111", "web", "shop"),
                pod("bbb222", "web", "test"),
                pod("ccc333", "db", "shop"),
            ],
            vec![
                container("0abc1", "aaa111", "nginx", 0),
                container("0abc2", "aaa111", "nginx", 1),
                container("0fff3", "bbb222", "nginx", 0),
                container("0eee4", "ccc333", "db", 0),
            ],
        )
    }

    #[test]
    fn a_word_means_one_thing() {
        let node = node();
        let id = |word: &str| {
            node.container(word)
                .map(|c| c.id.clone())
                .map_err(|e| e.to_string())
        };
        assert_eq!(id("0abc1").unwrap(), "0abc1");
        assert_eq!(id("0ff").unwrap(), "0fff3");
        assert_eq!(id("shop/web/nginx").unwrap(), "0abc2", "the newest attempt");
        assert!(
            id("0abc")
                .unwrap_err()
                .contains("0abc2 (shop/web/nginx), 0abc1 (shop/web/nginx)")
        );
        assert_eq!(id("db/db").unwrap(), "0eee4");
        let refused = id("nginx").unwrap_err();
        assert_eq!(
            refused,
            "\"nginx\" may be any of 0abc2 (shop/web/nginx), 0fff3 (test/web/nginx)"
        );
        assert!(
            id("0f")
                .unwrap_err()
                .starts_with("no container has the id or name \"0f\"")
        );
        assert!(id("shop//nginx").is_err());
        assert_eq!(node.pod("test/web").unwrap().id, "bbb222");
        assert!(
            node.pod("web")
                .unwrap_err()
                .to_string()
                .contains("aaa111 (shop/web), bbb222 (test/web)")
        );
        assert!(matches!(node.find("ccc"), Ok(Found::Pod(p)) if p.id == "ccc333"));
        let both = node.find("db").unwrap_err().to_string();
        assert_eq!(
            both,
            "\"db\" may be any of container 0eee4 (shop/db/db), pod ccc333 (shop/db)"
        );
        assert!(
            node.find("nginx")
                .unwrap_err()
                .to_string()
                .contains("may be any of")
        );
        assert!(
            node.find("none")
                .unwrap_err()
                .to_string()
                .starts_with("no container or pod")
        );
    }
}
