//! Real traffic through pods' networks: who reaches whom, with which address.

#![allow(clippy::unwrap_used, reason = "tests")]

mod arena;

use arena::{HOST4, HOST6, OUTSIDE4, OUTSIDE6, ask_udp, command, default_arena, port};
use podd_netplug::Protocol::{Tcp, Udp};

#[test]
fn pods_are_reachable_at_once_over_both_families() {
    default_arena(async |arena| {
        let one = arena.pod("one", &[]).await;
        one.netns.serve_tcp("::", 80);
        let two = arena.pod("two", &[]).await;
        let start = std::time::Instant::now();
        assert_eq!(two.netns.ask_tcp(&one.v6(), 80).unwrap(), two.v6());
        assert_eq!(
            two.netns.ask_tcp(&one.v4(), 80).unwrap(),
            format!("::ffff:{}", two.v4())
        );
        println!("first two connections took {:?}", start.elapsed());
        assert_eq!(arena.host.ask_tcp(&one.v6(), 80).unwrap(), "fd00:10:88::1");
        assert_eq!(arena.host.ask_tcp(&one.v4(), 80).unwrap(), "::ffff:10.88.0.1");
        arena.host.serve_tcp("::", 81);
        assert_eq!(
            one.netns.ask_tcp("10.88.0.1", 81).unwrap(),
            format!("::ffff:{}", one.v4())
        );
        assert_eq!(one.netns.ask_tcp("fd00:10:88::1", 81).unwrap(), one.v6());
        one.netns.serve_tcp("127.0.0.1", 82);
        assert_eq!(
            one.netns.ask_tcp("127.0.0.1", 82).unwrap(),
            "127.0.0.1",
            "loopback is up"
        );
    });
}

#[test]
fn pods_have_what_their_attachment_says() {
    default_arena(async |arena| {
        let pod = arena.pod("shape", &[]).await;
        assert_eq!(
            (pod.v4().as_str(), pod.v6().as_str()),
            ("10.88.0.2", "fd00:10:88::2")
        );
        let links = pod.netns.command("ip -o link show eth0");
        assert!(links.contains("mtu 1400"), "the uplink's MTU: {links}");
        assert!(links.contains(&pod.attachment.mac.to_string()), "{links}");
        let routes = pod.netns.command("ip route show default");
        assert!(routes.contains("via 10.88.0.1 dev eth0"), "{routes}");
        let routes = pod.netns.command("ip -6 route show default");
        assert!(routes.contains("via fd00:10:88::1 dev eth0"), "{routes}");
        let address = pod.netns.command("ip -6 -o addr show dev eth0 scope global");
        assert!(
            address.contains("nodad") && !address.contains("tentative"),
            "{address}"
        );
        let accept = pod
            .netns
            .run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra").unwrap());
        assert_eq!(accept.trim(), "0");
        let host_link = &pod.attachment.host_link;
        let host_side = command(&format!("ip -d link show {host_link}"));
        assert!(
            host_side.contains("master podd0") && host_side.contains("hairpin on"),
            "{host_side}"
        );
        assert!(host_side.contains("alias shape"), "{host_side}");
        let own = command(&format!("ip -6 -o addr show dev {host_link}"));
        assert_eq!(own, "", "the host end needs no address");
        assert!(host_side.contains(&format!("{}: {host_link}", pod.attachment.host_link_index)));
    });
}

#[test]
fn the_outside_sees_the_host() {
    default_arena(async |arena| {
        arena.outside.serve_tcp("::", 80);
        let pod = arena.pod("client", &[]).await;
        assert_eq!(
            pod.netns.ask_tcp(OUTSIDE4, 80).unwrap(),
            format!("::ffff:{HOST4}")
        );
        assert_eq!(pod.netns.ask_tcp(OUTSIDE6, 80).unwrap(), HOST6);
    });
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    default_arena(async |arena| {
        let ports = [port(Tcp, 8080, 80, None)];
        let pod = arena.pod("server", &ports).await;
        pod.netns.serve_tcp("::", 80);
        let other = arena.pod("other", &[]).await;
        assert_eq!(
            arena.outside.ask_tcp(HOST4, 8080).unwrap(),
            format!("::ffff:{OUTSIDE4}"),
            "client address is kept"
        );
        assert_eq!(arena.outside.ask_tcp(HOST6, 8080).unwrap(), OUTSIDE6);
        assert_eq!(arena.host.ask_tcp("127.0.0.1", 8080).unwrap(), "::ffff:10.88.0.1");
        assert_eq!(
            arena.host.ask_tcp(HOST4, 8080).unwrap(),
            format!("::ffff:{HOST4}")
        );
        assert_eq!(arena.host.ask_tcp(HOST6, 8080).unwrap(), HOST6);
        arena
            .host
            .ask_tcp("::1", 8080)
            .expect_err("refused at once, not lost");
        for client in [&other, &pod] {
            assert_eq!(client.netns.ask_tcp(HOST4, 8080).unwrap(), "::ffff:10.88.0.1");
            assert_eq!(
                client.netns.ask_tcp("10.88.0.1", 8080).unwrap(),
                "::ffff:10.88.0.1"
            );
            assert_eq!(client.netns.ask_tcp(HOST6, 8080).unwrap(), "fd00:10:88::1");
        }
        arena.network.detach(&pod.attachment).await.unwrap();
        arena.outside.ask_tcp(HOST4, 8080).expect_err("the port is gone");
    });
}

#[test]
fn bound_host_ports_answer_on_their_address_only() {
    default_arena(async |arena| {
        let one = arena.pod("one", &[port(Tcp, 8080, 80, Some(HOST4))]).await;
        let two = arena
            .pod(
                "two",
                &[
                    port(Tcp, 8080, 80, Some("127.0.0.1")),
                    port(Tcp, 8081, 80, Some(HOST6)),
                ],
            )
            .await;
        one.netns.serve_tcp("::", 80);
        two.netns.serve_tcp("::", 80);
        assert!(arena.outside.ask_tcp(HOST4, 8080).is_ok());
        arena.outside.ask_tcp(HOST6, 8080).expect_err("bound to IPv4");
        assert_eq!(arena.outside.ask_tcp(HOST6, 8081).unwrap(), OUTSIDE6);
        assert!(arena.host.ask_tcp("127.0.0.1", 8080).is_ok());
        arena
            .host
            .ask_tcp("10.88.0.1", 8080)
            .expect_err("not bound there");
        // From a pod through a bound port: the answer must come back through the host.
        assert_eq!(two.netns.ask_tcp(HOST4, 8080).unwrap(), "::ffff:10.88.0.1");
        assert_eq!(one.netns.ask_tcp(HOST6, 8081).unwrap(), "fd00:10:88::1");
    });
}

#[test]
fn direct_pod_traffic_keeps_its_source() {
    default_arena(async |arena| {
        let server = arena.pod("server", &[port(Tcp, 80, 80, None)]).await;
        server.netns.serve_tcp("::", 80);
        let client = arena.pod("client", &[]).await;
        assert_eq!(
            client.netns.ask_tcp(&server.v4(), 80).unwrap(),
            format!("::ffff:{}", client.v4())
        );
        assert_eq!(client.netns.ask_tcp(&server.v6(), 80).unwrap(), client.v6());
    });
}

#[test]
fn pods_cannot_reach_the_hosts_loopback() {
    default_arena(async |arena| {
        arena.host.serve_tcp("127.0.0.1", 9000);
        let pod = arena.pod("nosy", &[port(Tcp, 8080, 80, None)]).await;
        pod.netns.serve_tcp("::", 80);
        assert!(
            arena.host.ask_tcp("127.0.0.1", 8080).is_ok(),
            "route_localnet is on"
        );
        pod.netns.command("ip addr del 127.0.0.1/8 dev lo");
        pod.netns
            .command("ip route add 127.0.0.1/32 via 10.88.0.1 dev eth0");
        pod.netns
            .run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap());
        pod.netns
            .ask_tcp("127.0.0.1", 9000)
            .expect_err("a pod must not reach the host's loopback");
    });
}

#[test]
fn stale_udp_connections_do_not_survive_a_change_of_pod() {
    default_arena(async |arena| {
        let client = arena.outside.udp_socket(4000);
        // Before the port exists: an entry to the host itself.
        arena.network.ensure_host().await.unwrap();
        arena.host.serve_udp(5300, "host");
        assert_eq!(ask_udp(&client, HOST4, 5300).as_deref(), Some("host"));
        let ports = [port(Udp, 5300, 53, None)];
        let first = arena.pod("first", &ports).await;
        first.netns.serve_udp(53, "first");
        assert_eq!(
            ask_udp(&client, HOST4, 5300).as_deref(),
            Some("first"),
            "stale entry from before the port"
        );
        arena.network.detach(&first.attachment).await.unwrap();
        assert_eq!(
            ask_udp(&client, HOST4, 5300).as_deref(),
            Some("host"),
            "stale entry after detach"
        );
        let second = arena.pod("second", &ports).await;
        second.netns.serve_udp(53, "second");
        assert_eq!(
            ask_udp(&client, HOST4, 5300).as_deref(),
            Some("second"),
            "stale entry of the first pod"
        );
    });
}
