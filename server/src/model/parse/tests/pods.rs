//! What is refused of a pod.

use std::collections::HashMap;

use super::*;

#[test]
fn host_names_and_log_directories_are_checked() {
    assert_eq!(pod_with(|pod| pod.hostname.clear()).unwrap().hostname, None);
    assert!(pod_with(|pod| pod.hostname = "node_1.example.com".into()).is_ok());
    for bad in ["-a", "a-", "a..b", "a b", "a\n", ".", &"x".repeat(65), "ä"] {
        assert_eq!(
            field(pod_with(|pod| pod.hostname = bad.into())),
            "config.hostname",
            "{bad}"
        );
    }
    for bad in ["var/log", "/var/../etc", "/a\nb"] {
        assert_eq!(
            field(pod_with(|pod| pod.log_directory = bad.into())),
            "config.log_directory",
            "{bad}"
        );
    }
}

#[test]
fn cgroup_parents_have_the_shape_of_a_driver() {
    let parent =
        |text: &str| pod_linux(|linux| linux.cgroup_parent = text.into()).map(|pod| pod.cgroup_parent);
    let slice = |name: &str| Some(CgroupParent::Slice(name.into()));
    assert_eq!(parent("").unwrap(), None);
    assert_eq!(parent("a/b/").unwrap(), Some(CgroupParent::Path("a/b".into())));
    assert_eq!(
        parent("kubepods-pod7a_1b.slice").unwrap(),
        slice("kubepods-pod7a_1b.slice")
    );
    assert_eq!(parent("/system.slice").unwrap(), slice("system.slice"));
    assert_eq!(
        parent("/a.slice/a-b.slice/a-b-c.slice").unwrap(),
        slice("a-b-c.slice")
    );
    assert_eq!(parent("-.slice").unwrap(), slice("-.slice"));
    for bad in [
        "/../x",
        "a//b",
        "a/./b",
        "/a\nb",
        "a/x.slice",
        "a--b.slice",
        "-a.slice",
        ".slice",
        "a b.slice",
        "/b.slice/a-b.slice",
    ] {
        assert_eq!(field(parent(bad)), "config.linux.cgroup_parent", "{bad}");
    }
}

#[test]
fn ports_are_numbers_of_ports() {
    let port = |container_port, host_port, host_ip: &str| {
        let host_ip = host_ip.to_owned();
        let mapping = v1::PortMapping {
            protocol: 0,
            container_port,
            host_port,
            host_ip,
        };
        pod_with(|pod| pod.port_mappings = vec![mapping]).map(|pod| pod.port_mappings[0])
    };
    let mapped = port(80, 8080, "::1").unwrap();
    assert_eq!((mapped.container_port, mapped.host_port), (Some(80), Some(8080)));
    assert_eq!(port(80, 0, "").unwrap().host_port, None);
    assert_eq!(port(0, 0, "").unwrap().container_port, None);
    assert_eq!(
        field(port(65536, 0, "")),
        "config.port_mappings[0].container_port"
    );
    assert_eq!(field(port(0, 80, "")), "config.port_mappings[0].container_port");
    assert_eq!(field(port(80, -1, "")), "config.port_mappings[0].host_port");
    assert_eq!(
        field(port(80, 80, "localhost")),
        "config.port_mappings[0].host_ip"
    );
    let protocol = v1::PortMapping {
        protocol: 9,
        ..Default::default()
    };
    assert_eq!(
        field(pod_with(|pod| pod.port_mappings = vec![protocol])),
        "config.port_mappings[0].protocol"
    );
}

#[test]
fn dns_words_cannot_make_lines() {
    let dns = |server: &str, search: &str, option: &str| {
        let list = |text: &str| {
            if text.is_empty() {
                vec![]
            } else {
                vec![text.to_owned()]
            }
        };
        let config = v1::DnsConfig {
            servers: list(server),
            searches: list(search),
            options: list(option),
        };
        pod_with(|pod| pod.dns_config = Some(config))
    };
    assert!(dns("fe80::1%eth0", "svc.cluster.local", "ndots:5").is_ok());
    for (server, search, option, path) in [
        ("dns.example", "", "", "servers"),
        ("10.0.0.1\nx", "", "", "servers"),
        ("10.0.0.1%eth0", "", "", "servers"),
        ("fe80::1%", "", "", "servers"),
        ("", "a b", "", "searches"),
        ("", "", "x\nnameserver 6.6.6.6", "options"),
    ] {
        assert_eq!(
            field(dns(server, search, option)),
            format!("config.dns_config.{path}[0]")
        );
    }
}

#[test]
fn only_namespaced_sysctls_pass() {
    let sysctl = |key: &str, value: &str| {
        pod_linux(|linux| linux.sysctls = HashMap::from([(key.into(), value.into())]))
            .map(|pod| pod.sysctls[0].key.clone())
    };
    for (key, path) in [
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
        ("kernel/msgmax", "kernel/msgmax"),
        ("kernel.sem", "kernel/sem"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ("net.ipv4.ip_local_port_range", "net/ipv4/ip_local_port_range"),
        (
            "net/ipv4/conf/eth0.100/rp_filter",
            "net/ipv4/conf/eth0.100/rp_filter",
        ),
        (
            "net.ipv4.conf.eth0/100.rp_filter",
            "net/ipv4/conf/eth0.100/rp_filter",
        ),
    ] {
        assert_eq!(sysctl(key, "1 2").unwrap(), path);
    }
    for key in [
        "kernel.core_pattern",
        "vm.swappiness",
        "kernel.semaphore",
        "fs.mqueue",
        "net",
        "net.core",
        "kernel",
        "",
        "net.ipv4.../kernel.x",
        "net/ipv4/../../kernel/core_pattern",
        "net/./core/x",
        "net//core/x",
        "net.core.a b",
        "kernel.shm.x",
        "net.ipv4.x=1",
        "/net/core/somaxconn",
    ] {
        assert_eq!(field(sysctl(key, "1")), format!("config.linux.sysctls[{key:?}]"));
    }
    for value in ["", "1+kernel.core_pattern=x", "1\n2", "a\0b", &"1".repeat(5000)] {
        assert!(sysctl("net.core.somaxconn", value).is_err(), "{value:?}");
    }
    let both = HashMap::from([
        ("net.core.somaxconn".to_owned(), "1".to_owned()),
        ("net/core/somaxconn".to_owned(), "2".to_owned()),
    ]);
    assert!(pod_linux(|linux| linux.sysctls = both).is_err());
}

#[test]
fn sysctls_of_the_node_are_out_of_reach() {
    let on_host = |key: &str, network: v1::NamespaceMode, ipc: v1::NamespaceMode| {
        pod_linux(|linux| {
            let options = linux
                .security_context
                .as_mut()
                .unwrap()
                .namespace_options
                .as_mut()
                .unwrap();
            (options.network, options.ipc) = (network.into(), ipc.into());
            linux.sysctls = HashMap::from([(key.into(), "1".into())]);
        })
    };
    let (pod, node) = (v1::NamespaceMode::Pod, v1::NamespaceMode::Node);
    assert!(on_host("net.core.somaxconn", pod, node).is_ok());
    assert!(on_host("kernel.sem", node, pod).is_ok());
    assert!(on_host("net.core.somaxconn", node, pod).is_err());
    assert!(on_host("kernel.sem", pod, node).is_err());
    assert!(on_host("fs.mqueue.msg_max", pod, node).is_err());
}
