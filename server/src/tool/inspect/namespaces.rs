//! Namespaces by their inode numbers, and who else is in them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::tool::procfs::Proc;

/// Kinds, as /proc/PID/ns names them.
const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Kinds that podinit holds for its pod.
const OF_POD: [&str; 5] = ["ipc", "net", "pid", "user", "uts"];

/// Most descriptors of podinit that are looked at.
const DESCRIPTORS: usize = 65_536;

/// Inode numbers by kind.
pub type Inodes = BTreeMap<&'static str, u64>;

/// A namespace of a container or pod.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    kind: &'static str,
    inode: u64,
    /// It is that of the node's first process.
    node: bool,
    /// It is one that podinit holds for the pod.
    pod: bool,
    /// Other containers that are in it.
    containers: Vec<String>,
}

impl Namespace {
    /// A row of a table.
    #[must_use]
    pub fn row(&self) -> [String; 3] {
        let node = self.node.then_some("node");
        let pod = self.pod.then_some("pod");
        let all = node
            .into_iter()
            .chain(pod)
            .chain(self.containers.iter().map(String::as_str));
        // Whoever is on the node itself shares it with everyone there.
        let shared = match self.node {
            true => "node".to_owned(),
            false => all.collect::<Vec<_>>().join(", "),
        };
        let shared = if shared.is_empty() {
            "nobody".to_owned()
        } else {
            shared
        };
        [self.kind.to_owned(), self.inode.to_string(), shared]
    }
}

/// The namespaces that a process is in.
#[must_use]
pub fn of_process(proc: &Proc) -> Inodes {
    let one = |kind: &&'static str| {
        let link = proc.link(&format!("ns/{kind}")).ok()?;
        let (found, inode) = parse(&link)?;
        (found == *kind).then_some((*kind, inode))
    };
    KINDS.iter().filter_map(one).collect()
}

/// The namespaces that a podinit holds as descriptors. A kind that it does not hold is the node's, but for pid: that
/// may also be of each container.
#[must_use]
pub fn of_pod(podinit: &Proc) -> Inodes {
    let mut inodes = of_process(podinit);
    inodes.retain(|kind, _| OF_POD.contains(kind) && *kind != "pid");
    for name in podinit.entries("fd", DESCRIPTORS).unwrap_or_default() {
        let link = podinit.link(&format!("fd/{name}")).unwrap_or_default();
        if let Some((kind, inode)) = parse(&link)
            && let Some(kind) = OF_POD.iter().find(|known| **known == kind)
        {
            inodes.insert(kind, inode);
        }
    }
    inodes
}

/// Who is in the namespaces `own`.
#[must_use]
pub fn compare(own: &Inodes, node: &Inodes, pod: &Inodes, others: &[(String, Inodes)]) -> Vec<Namespace> {
    let one = |(kind, inode): (&&'static str, &u64)| Namespace {
        kind,
        inode: *inode,
        node: node.get(kind) == Some(inode),
        pod: pod.get(kind) == Some(inode),
        containers: others
            .iter()
            .filter(|(_, theirs)| theirs.get(kind) == Some(inode))
            .map(|(name, _)| name.clone())
            .collect(),
    };
    own.iter().map(one).collect()
}

/// `net:[4026531840]`.
fn parse(link: &str) -> Option<(&str, u64)> {
    let (kind, rest) = link.split_once(":[")?;
    Some((kind, rest.strip_suffix(']')?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharing_is_told_by_inode() {
        let own: Inodes = [("net", 5), ("pid", 6), ("ipc", 7)].into();
        let node: Inodes = [("net", 1), ("pid", 2), ("ipc", 7)].into();
        let pod: Inodes = [("net", 5), ("ipc", 8)].into();
        let others = [("b".to_owned(), Inodes::from([("net", 5), ("pid", 9), ("ipc", 7)]))];
        let rows: Vec<_> = compare(&own, &node, &pod, &others)
            .iter()
            .map(Namespace::row)
            .collect();
        assert_eq!(rows[0], ["ipc", "7", "node"]);
        assert_eq!(rows[1], ["net", "5", "pod, b"]);
        assert_eq!(rows[2], ["pid", "6", "nobody"]);
        assert_eq!(parse("net:[12]"), Some(("net", 12)));
        assert_eq!(parse("socket:[12]"), Some(("socket", 12)));
        assert_eq!(parse("/dev/null"), None);
    }

    #[test]
    fn own_namespaces_are_read() {
        let own = of_process(&Proc::open(std::process::id().cast_signed()).unwrap());
        assert!(own.contains_key("mnt") && own.contains_key("user"), "{own:?}");
    }
}
