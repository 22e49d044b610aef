//! The contents of a pod's /etc/hosts, /etc/hostname and /etc/resolv.conf. Values only; writing is the engine's.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::model::DnsConfig;

/// The files that a pod brings, by their names in its directory.
pub const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// The hosts file of a pod with a network of its own.
#[must_use]
pub fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for address in addresses {
        let _writing_to_a_string_cannot_fail = writeln!(text, "{address}\t{hostname}");
    }
    text
}

/// The hostname file.
#[must_use]
pub fn hostname(hostname: &str) -> String {
    format!("{hostname}\n")
}

/// The resolver configuration: the request's, or the node's where the request has nothing to say.
#[must_use]
pub fn resolv_conf(dns: Option<&DnsConfig>, of_node: &str) -> String {
    let Some(dns) = dns.filter(|dns| **dns != DnsConfig::default()) else {
        return of_node.to_owned();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&line("search", &dns.searches));
    }
    for server in &dns.servers {
        text.push_str(&line("nameserver", std::slice::from_ref(server)));
    }
    if !dns.options.is_empty() {
        text.push_str(&line("options", &dns.options));
    }
    text
}

fn line(keyword: &str, words: &[String]) -> String {
    format!("{keyword} {}\n", words.join(" "))
}

/// The node's resolver configuration as a pod with a network of its own can use it: where the node asks a resolver
/// on its own loopback (systemd-resolved's stub), the file with the servers behind it, if there is one.
#[must_use]
pub fn reachable<'a>(of_node: &'a str, upstream: Option<&'a str>) -> &'a str {
    let mut servers = of_node
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    let loopback = |text: &str| text.trim().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match upstream {
        Some(upstream) if servers.clone().next().is_some() && servers.all(loopback) => upstream,
        _ => of_node,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_the_pod_at_each_address() {
        let text = hosts(
            "web-0",
            &["10.88.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        );
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.88.0.5\tweb-0\nfd00::5\tweb-0\n"));
        assert_eq!(hostname("web-0"), "web-0\n");
    }

    #[test]
    fn dns_of_the_request_replaces_the_nodes() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns), "nameserver 1.1.1.1\n"),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
        for nothing in [None, Some(&DnsConfig::default())] {
            assert_eq!(
                resolv_conf(nothing, "nameserver 1.1.1.1\n"),
                "nameserver 1.1.1.1\n"
            );
        }
    }

    #[test]
    fn a_stub_resolver_is_passed_over() {
        let (stub, real) = (
            "# stub\nnameserver 127.0.0.53\nsearch x\n",
            "nameserver 192.0.2.1\n",
        );
        assert_eq!(reachable(stub, Some(real)), real);
        assert_eq!(reachable(stub, None), stub);
        assert_eq!(reachable(real, Some("other")), real);
        assert_eq!(reachable("search x\n", Some(real)), "search x\n");
    }
}
