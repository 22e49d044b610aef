use std::collections::BTreeSet;

use super::*;
use crate::state::record::tests as record;

fn context(text: &str) -> Context {
    Context::parse(text).unwrap()
}

/// As Fedora's policy has it.
fn node() -> Selinux {
    Selinux {
        process: context(PROCESS),
        file: context(FILE),
        layers: context(LAYERS),
        unconfined: Some(context("system_u:system_r:spc_t:s0")),
        pairs: Pairs::new(3),
    }
}

fn label(user: &str, role: &str, kind: &str, level: &str) -> SelinuxLabel {
    SelinuxLabel {
        user: user.into(),
        role: role.into(),
        kind: kind.into(),
        level: level.into(),
    }
}

#[test]
fn contexts_are_taken_apart_and_put_together() {
    for text in ["u:r:t", "u:r:t:s0", "u:r:t:s0:c1,c2-s3:c0.c1023"] {
        assert_eq!(context(text).to_string(), text);
    }
    assert_eq!(context("u:r:t:s0:c1,c2").level.as_deref(), Some("s0:c1,c2"));
    for text in ["", "u:r", "u::t", "u:r:"] {
        assert_eq!(Context::parse(text), None, "{text}");
    }
}

#[test]
fn what_a_request_names_wins() {
    let with = |text: &str, named: &SelinuxLabel| context(text).with(Some(named)).to_string();
    let process = "system_u:system_r:container_t:s0:c1,c2";
    assert_eq!(with(process, &label("", "", "", "")), process);
    assert_eq!(
        with(process, &label("", "", "web_t", "")),
        "system_u:system_r:web_t:s0:c1,c2"
    );
    assert_eq!(with(process, &label("u", "r", "t", "s0:c9")), "u:r:t:s0:c9");
    // Without levels in the policy there is none to name.
    assert_eq!(with("u:r:t", &label("", "", "", "s0")), "u:r:t");
}

#[test]
fn levels_have_a_form() {
    for level in [
        "s0",
        "s0:c1",
        "s0:c1,c2",
        "s0:c0.c1023",
        "s0:c1,c3.c5-s15:c0.c1023",
        "s0-s0:c1",
    ] {
        assert!(is_level(level), "{level}");
    }
    for level in [
        "",
        "0",
        "s",
        "s0,c4,c5",
        "s0:",
        "s0:c",
        "s0:1",
        "s0:c1,",
        "s0:c1.",
        "s0:c1..c2",
        "s0-",
        "s0-s1-s2",
        "s0:c12345",
        "s0 ",
        "SystemLow",
    ] {
        assert!(!is_level(level), "{level}");
    }
}

#[test]
fn files_of_contexts_are_read() {
    let text = "# file = \"a\"\nprocess = \"u:r:p:s0\"\n  file=\"u:o:f:s0\"\nro_file = \"x\"\n";
    assert_eq!(context::entry(text, "process"), Some("u:r:p:s0"));
    assert_eq!(context::entry(text, "file"), Some("u:o:f:s0"));
    assert_eq!(
        context::entry("SELINUX=enforcing\nSELINUXTYPE=default\n", "SELINUXTYPE"),
        Some("default")
    );
    assert_eq!(context::entry(text, "nothing"), None);
}

#[test]
fn every_pair_comes_once_wherever_it_begins() {
    for start in [0, 1, 5, 9, 10, u32::MAX] {
        let pairs: Vec<_> = Pairs::new(5).from(start).collect();
        assert_eq!(pairs.len(), 10);
        assert_eq!(pairs.iter().collect::<BTreeSet<_>>().len(), 10);
        assert!(pairs.iter().all(|(low, high)| low < high && *high < 5));
    }
    assert_eq!(Pairs::new(5).from(9).next(), Some((3, 4)));
    assert_eq!(Pairs::new(1024).from(523_775).collect::<Vec<_>>().len(), 523_776);
}

#[test]
fn no_level_is_given_twice() {
    let node = node();
    let mut taken: Vec<String> = Vec::new();
    for _ in 0..3 {
        let level = node.free_level(|level| taken.iter().any(|one| one == level));
        taken.push(level.unwrap().unwrap());
    }
    taken.sort();
    assert_eq!(taken, ["s0:c0,c1", "s0:c0,c2", "s0:c1,c2"]);
    let refused = node.free_level(|_| true).unwrap_err();
    assert!(matches!(refused, SelinuxError::NoLevel(3)), "{refused}");
    let plain = Selinux {
        process: context("u:r:t"),
        ..node
    };
    assert_eq!(plain.free_level(|_| false).unwrap(), None);
}

#[test]
fn confinement_ends_where_the_node_is_to_be_seen() {
    let node = node();
    let confined = |change: &dyn Fn(&mut PodConfig, &mut ContainerConfig)| {
        let pod = record::pod("web", 0);
        let container = record::container(&pod, "main");
        let (mut pod, mut container) = (
            PodConfig::clone(&pod.config),
            ContainerConfig::clone(&container.config),
        );
        change(&mut pod, &mut container);
        node.is_confined(&pod, &container)
    };
    assert!(confined(&|_, _| {}));
    assert!(!confined(&|_, container| container.security.privileged = true));
    assert!(!confined(&|pod, _| pod.namespaces.ipc = Share::Node));
    assert!(!confined(
        &|_, container| container.security.pid = ContainerPid::Node
    ));
    assert!(confined(&|pod, container| {
        pod.namespaces.ipc = Share::Node;
        container.security.selinux = Some(label("", "", "web_t", ""));
    }));
}
