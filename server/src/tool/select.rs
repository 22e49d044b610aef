//! Which pods and containers a list is about.

use clap::Args;

use super::failure::Failure;
use super::node::{Container, Pod};

/// Filters of lists.
#[derive(Debug, Default, Args)]
pub struct Select {
    /// Only of pods with this name, or `namespace/name`, or this beginning of an id.
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// Only of this Kubernetes namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only with this label; may be repeated.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), Failure> {
    let both = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = both.ok_or_else(|| Failure::Label(text.to_owned()))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Select {
    /// Whether a pod is meant.
    #[must_use]
    pub fn takes_pod(&self, pod: &Pod) -> bool {
        self.takes(&pod.id, &pod.name, &pod.namespace)
            && self
                .label
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
    }

    /// Whether a container is meant; its labels are its own.
    #[must_use]
    pub fn takes_container(&self, container: &Container) -> bool {
        self.takes(&container.pod_id, &container.pod, &container.namespace)
            && self
                .label
                .iter()
                .all(|(key, value)| container.labels.get(key) == Some(value))
    }

    fn takes(&self, pod_id: &str, pod: &str, namespace: &str) -> bool {
        let named = |word: &str| {
            word == pod
                || word.split_once('/') == Some((namespace, pod))
                || (word.len() >= 3 && pod_id.starts_with(word))
        };
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.pod.as_deref().is_none_or(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_joined_by_and() {
        let container = Container {
            pod_id: "abcdef".to_owned(),
            pod: "web".to_owned(),
            namespace: "shop".to_owned(),
            labels: [("app".to_owned(), "a".to_owned())].into(),
            ..Default::default()
        };
        let takes = |pod: Option<&str>, namespace: Option<&str>, labels: &[&str]| {
            let select = Select {
                pod: pod.map(str::to_owned),
                namespace: namespace.map(str::to_owned),
                label: labels.iter().map(|l| label(l).unwrap()).collect(),
            };
            select.takes_container(&container)
        };
        assert!(takes(None, None, &[]));
        assert!(takes(Some("web"), Some("shop"), &["app=a"]));
        assert!(takes(Some("shop/web"), None, &[]) && takes(Some("abc"), None, &[]));
        assert!(!takes(Some("we"), None, &[]) && !takes(Some("ab"), None, &[]));
        assert!(!takes(None, Some("test"), &[]) && !takes(None, None, &["app=b"]));
        assert!(!takes(None, None, &["app=a", "tier=x"]));
        assert!(label("app").is_err() && label("=a").is_err());
        assert_eq!(label("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
    }
}
