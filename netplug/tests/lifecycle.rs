//! Attach, detach and everything that can go wrong in between: nothing may leak.

#![allow(clippy::unwrap_used, reason = "tests")]

mod arena;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use futures::StreamExt;

use arena::{Netns, Pod, arena, command, default_arena, eventually, port};
use podd_netplug::Protocol::{Sctp, Tcp};
use podd_netplug::{AttachRequest, Attachment, Error, ErrorKind, NetConfig, Network, loopback_up};

const SOON: Duration = Duration::from_secs(3);

fn config(subnets: &[&str]) -> NetConfig {
    NetConfig {
        subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
        ..NetConfig::default()
    }
}

#[test]
fn nothing_is_left_after_fifty_pods() {
    default_arena(async |arena| {
        arena.network.ensure_host().await.unwrap();
        let rules = command("nft list table inet podd");
        for round in 0..50_u16 {
            let ports = [
                port(Tcp, 8000 + round % 3, 80, None),
                port(Sctp, 9000, 90, Some("127.0.0.1")),
            ];
            let pod = arena.pod(&format!("pod{round}"), &ports).await;
            arena.end(pod).await;
        }
        eventually("the end of all links", SOON, || arena.pod_links().is_empty()).await;
        eventually("the end of all leases", SOON, || {
            arena.network.ready().addresses_in_use == 0
        })
        .await;
        assert_eq!(command("nft list table inet podd"), rules);
    });
}

#[test]
fn ten_at_a_time_get_distinct_addresses() {
    default_arena(async |arena| {
        let netns: Vec<Netns> = (0..10).map(|_| Netns::new()).collect();
        let attach = netns.iter().enumerate().map(|(number, netns)| {
            let (network, number) = (arena.network.clone(), u16::try_from(number).unwrap());
            async move {
                let ports = [port(Tcp, 7000 + number, 80, None)];
                let id = format!("pod{number}");
                network
                    .attach(AttachRequest {
                        id: &id,
                        netns: netns.fd(),
                        ports: &ports,
                        interface: "eth0",
                    })
                    .await
            }
        });
        let attachments: Vec<Attachment> = futures::future::try_join_all(attach).await.unwrap();
        let mut addresses: Vec<String> = attachments
            .iter()
            .flat_map(|one| &one.addresses)
            .map(ToString::to_string)
            .collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 20);
        assert_eq!(arena.pod_links().len(), 10);
        futures::future::try_join_all(attachments.iter().map(|one| arena.network.detach(one)))
            .await
            .unwrap();
        drop(netns);
        eventually("the end of all links", SOON, || arena.pod_links().is_empty()).await;
    });
}

#[test]
fn an_address_is_blocked_until_its_link_is_gone() {
    arena(config(&["10.9.0.0/30"]), async |arena| {
        let Pod { netns, attachment } = arena.pod("first", &[]).await;
        arena.network.detach(&attachment).await.unwrap();
        arena.network.detach(&attachment).await.unwrap();
        let next = Netns::new();
        let full = arena.try_attach("second", &next, &[]).await.unwrap_err();
        assert!(
            matches!(full, Error::Exhausted { .. }) && full.kind() == ErrorKind::ResourceExhausted,
            "{full}"
        );
        let start = Instant::now();
        drop(netns);
        eventually("the free address", SOON, || {
            arena.network.ready().addresses_in_use == 0
        })
        .await;
        println!("the address was free {:?} after the namespace", start.elapsed());
        let second = arena.try_attach("second", &next, &[]).await.unwrap();
        assert_eq!(second.addresses, attachment.addresses);
        assert_eq!(second.mac, attachment.mac);
    });
}

#[test]
fn a_link_that_outlives_its_pod_is_deleted() {
    default_arena(async |arena| {
        let pod = arena.pod("stuck", &[]).await;
        arena.network.detach(&pod.attachment).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(arena.pod_links().len(), 1, "left to die by itself first");
        eventually("the deletion", Duration::from_secs(8), || {
            arena.pod_links().is_empty()
        })
        .await;
        eventually("the free address", SOON, || {
            arena.network.ready().addresses_in_use == 0
        })
        .await;
        drop(pod);
    });
}

#[test]
fn detach_works_when_everything_is_gone_already() {
    default_arena(async |arena| {
        let Pod { netns, attachment } = arena.pod("gone", &[port(Tcp, 80, 80, None)]).await;
        drop(netns);
        eventually("the end of the link", SOON, || arena.pod_links().is_empty()).await;
        command("nft delete table inet podd");
        assert_eq!(
            arena.network.ready().addresses_in_use,
            2,
            "reserved until it is detached"
        );
        arena.network.detach(&attachment).await.unwrap();
        assert_eq!(arena.network.ready().addresses_in_use, 0);
        arena.network.detach(&attachment).await.unwrap();
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    default_arena(async |arena| {
        let netns = Netns::new();
        netns.command("ip link add eth0 type bridge");
        let error = arena
            .try_attach("twin", &netns, &[port(Tcp, 80, 80, None)])
            .await
            .unwrap_err();
        assert!(matches!(error, Error::CreateVeth { .. }), "{error}");
        assert_eq!(arena.pod_links(), Vec::<String>::new());
        assert_eq!(arena.network.ready().addresses_in_use, 0);
        // A default route that is there already makes the last step inside the pod fail.
        let netns = Netns::new();
        netns.command("ip link add other type bridge");
        netns.command("ip addr add 172.16.0.1/24 dev other");
        netns.command("ip link set other up");
        netns.command("ip route add default via 172.16.0.2");
        let error = arena
            .try_attach("routed", &netns, &[port(Tcp, 80, 80, None)])
            .await
            .unwrap_err();
        assert!(matches!(error, Error::AddRoute { .. }), "{error}");
        assert_eq!(arena.pod_links(), Vec::<String>::new());
        assert_eq!(arena.network.ready().addresses_in_use, 0);
        arena.pod("next", &[port(Tcp, 80, 80, None)]).await;
    });
}

#[test]
fn a_dropped_attach_is_undone() {
    default_arena(async |arena| {
        arena.network.ensure_host().await.unwrap();
        for round in 0..20_u64 {
            let netns = Netns::new();
            let id = format!("dropped{round}");
            let ports = [port(Tcp, 80, 80, None)];
            let attach = arena.try_attach(&id, &netns, &ports);
            let patience = Duration::from_micros(round * 150);
            if let Ok(Ok(attachment)) = tokio::time::timeout(patience, attach).await {
                arena.network.detach(&attachment).await.unwrap();
                drop(netns);
            }
            eventually("the undoing", SOON, || arena.pod_links().is_empty()).await;
            eventually("the free address", SOON, || {
                arena.network.ready().addresses_in_use == 0
            })
            .await;
        }
        arena.pod("kept", &[port(Tcp, 80, 80, None)]).await;
    });
}

#[test]
fn conflicts_are_typed_and_name_the_owner() {
    default_arena(async |arena| {
        let one = arena.pod("one", &[port(Tcp, 80, 80, None)]).await;
        let netns = Netns::new();
        let error = arena
            .try_attach("two", &netns, &[port(Tcp, 80, 8080, Some("127.0.0.1"))])
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::PortConflict { owner, .. } if owner == "one"),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        let error = arena.try_attach("one", &netns, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        arena.network.detach(&one.attachment).await.unwrap();
        arena
            .try_attach("two", &netns, &[port(Tcp, 80, 8080, Some("127.0.0.1"))])
            .await
            .unwrap();
        // The same id again, while its old link still exists.
        arena.pod("one", &[]).await;
    });
}

#[test]
fn a_restart_keeps_live_pods_and_sweeps_the_rest() {
    default_arena(async |mut arena| {
        let live = arena.pod("live", &[port(Tcp, 8080, 80, None)]).await;
        live.netns.serve_tcp("::", 80);
        let lost = arena.pod("lost", &[port(Tcp, 8081, 80, None)]).await;
        let dead = arena.pod("dead", &[]).await;
        command("ip link add stranger type veth peer name stranger2");
        command("ip link set stranger master podd0");
        let Pod {
            netns,
            attachment: dead,
        } = dead;
        drop(netns);
        eventually("the end of the dead pod's link", SOON, || {
            arena.pod_links().len() == 2
        })
        .await;

        let stored = serde_json::to_string(&[&live.attachment, &dead]).unwrap();
        let stored: Vec<Attachment> = serde_json::from_str(&stored).unwrap();
        assert_eq!(stored[0], live.attachment);
        arena.network = Network::open(NetConfig::default()).await.unwrap();
        let restarted = arena.network.clone();
        let report = restarted.reconcile(&stored).await.unwrap();
        assert_eq!(report.adopted, 2);
        assert_eq!(report.dead, ["dead"]);
        assert_eq!(
            report.removed_links,
            std::slice::from_ref(&lost.attachment.host_link)
        );
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        command("ip link show stranger");

        assert!(
            arena.outside.ask_tcp(arena::HOST4, 8080).is_ok(),
            "the live pod's port"
        );
        assert!(
            !command("nft list table inet podd").contains("8081"),
            "the lost pod's port"
        );
        let netns = Netns::new();
        let request = AttachRequest {
            id: "new",
            netns: netns.fd(),
            ports: &[],
            interface: "eth0",
        };
        let new = restarted.attach(request).await.unwrap();
        assert!(!live.attachment.addresses.contains(&new.addresses[0]));
        assert!(!dead.addresses.contains(&new.addresses[0]));
        restarted.detach(&dead).await.unwrap();
        restarted.detach(&live.attachment).await.unwrap();
        drop(live);
        // The test's server still holds the namespace, so the link has to be deleted.
        eventually("the free addresses", Duration::from_secs(8), || {
            restarted.ready().addresses_in_use == 2
        })
        .await;

        drop(restarted);
        arena.network = Network::open(NetConfig::default()).await.unwrap();
        let empty = arena.network.clone();
        let report = empty.reconcile(&[]).await.unwrap();
        assert_eq!(report.removed_links, [new.host_link]);
        assert!(!command("nft list tables").contains("podd"));
    });
}

#[test]
fn a_flushed_ruleset_is_healed() {
    default_arena(async |arena| {
        let one = arena.pod("one", &[port(Tcp, 8080, 80, None)]).await;
        one.netns.serve_tcp("::", 80);
        command("nft flush ruleset");
        // Nobody attaches anything: the table comes back by itself.
        eventually("the table", SOON, || command("nft list tables").contains("podd")).await;
        assert!(arena.outside.ask_tcp(arena::HOST4, 8080).is_ok());
        command("nft flush ruleset");
        let two = arena.pod("two", &[port(Tcp, 8081, 80, None)]).await;
        two.netns.serve_tcp("::", 80);
        assert!(arena.outside.ask_tcp(arena::HOST4, 8080).is_ok());
        assert!(arena.outside.ask_tcp(arena::HOST4, 8081).is_ok());
    });
}

#[test]
fn the_bridge_is_steady_and_comes_back() {
    default_arena(async |arena| {
        arena.network.ensure_host().await.unwrap();
        let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        assert_eq!(first.trim(), "1");
        let show = || command("ip -o link show podd0");
        let before = show();
        let hardware = before.split("link/ether ").nth(1).unwrap()[..17].to_owned();
        let pod = arena.pod("one", &[]).await;
        assert!(show().contains(&hardware));
        arena.end(pod).await;
        eventually("the end of the link", SOON, || arena.pod_links().is_empty()).await;
        assert!(show().contains(&hardware));
        command("ip link del podd0");
        let pod = arena.pod("two", &[]).await;
        pod.netns.serve_tcp("::", 80);
        assert!(arena.host.ask_tcp(&pod.v4(), 80).is_ok());
        assert!(arena.host.ask_tcp(&pod.v6(), 80).is_ok());
    });
}

#[test]
fn the_pod_cidr_may_come_late_and_change() {
    arena(config(&[]), async |arena| {
        let status = arena.network.ready();
        assert!(!status.ready && status.problem.is_some());
        let netns = Netns::new();
        let error = arena.try_attach("early", &netns, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        arena
            .network
            .set_pod_cidr(&["10.1.0.0/24".parse().unwrap()])
            .await
            .unwrap();
        assert!(arena.network.ready().ready);
        let old = arena.pod("old", &[]).await;
        assert_eq!(old.v4(), "10.1.0.2");
        old.netns.serve_tcp("0.0.0.0", 80);
        arena
            .network
            .set_pod_cidr(&["10.2.0.0/24".parse().unwrap()])
            .await
            .unwrap();
        let new = arena.pod("new", &[]).await;
        assert_eq!(new.v4(), "10.2.0.2");
        arena.outside.serve_tcp("::", 80);
        for pod in [&old, &new] {
            assert_eq!(
                pod.netns.ask_tcp(arena::OUTSIDE4, 80).unwrap(),
                format!("::ffff:{}", arena::HOST4)
            );
        }
        assert_eq!(
            new.netns.ask_tcp(&old.v4(), 80).unwrap(),
            "10.2.0.2",
            "no masquerade between pods"
        );
        let twice = ["10.1.0.0/24".parse().unwrap(), "10.3.0.0/24".parse().unwrap()];
        assert_eq!(
            arena.network.set_pod_cidr(&twice).await.unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    });
}

#[test]
fn pods_live_without_ipv6() {
    default_arena(async |arena| {
        let netns = Netns::new();
        netns.run(|| {
            for scope in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
            }
        });
        let attachment = arena
            .try_attach("v4", &netns, &[port(Tcp, 8080, 80, None)])
            .await
            .unwrap();
        assert_eq!((attachment.addresses.len(), attachment.gateways.len()), (1, 1));
        assert_eq!(arena.network.ready().addresses_in_use, 1);
        netns.serve_tcp("0.0.0.0", 80);
        assert!(arena.outside.ask_tcp(arena::HOST4, 8080).is_ok());
        arena.network.detach(&attachment).await.unwrap();
    });
    default_arena(async |arena| {
        for scope in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
        let pod = arena.pod("v4", &[]).await;
        assert_eq!(pod.attachment.addresses.len(), 1);
        let status = arena.network.ready();
        assert!(
            status.ready && status.warnings.iter().any(|warning| warning.contains("IPv6")),
            "{status:?}"
        );
    });
}

#[test]
fn ipv6_alone_works() {
    arena(config(&["fd00:5::/64"]), async |arena| {
        let one = arena.pod("one", &[port(Tcp, 8080, 80, None)]).await;
        one.netns.serve_tcp("::", 80);
        assert_eq!(
            arena.outside.ask_tcp(arena::HOST6, 8080).unwrap(),
            arena::OUTSIDE6
        );
    });
}

#[test]
fn loopback_alone_can_be_had() {
    default_arena(async |_arena| {
        let netns = Netns::new();
        loopback_up(netns.fd()).unwrap();
        netns.serve_tcp("127.0.0.1", 80);
        assert!(netns.ask_tcp("127.0.0.1", 80).is_ok());
    });
}

#[test]
fn how_long_it_takes() {
    default_arena(async |arena| {
        let start = Instant::now();
        arena.network.ensure_host().await.unwrap();
        println!("ensure_host: {:?}", start.elapsed());
        for (what, ports) in [("no ports", vec![]), ("one port", vec![port(Tcp, 80, 80, None)])] {
            let (mut attach, mut detach) = (Vec::new(), Vec::new());
            for round in 0..100 {
                let netns = Netns::new();
                let start = Instant::now();
                let attachment = arena
                    .try_attach(&format!("{what}{round}"), &netns, &ports)
                    .await
                    .unwrap();
                attach.push(start.elapsed());
                let start = Instant::now();
                arena.network.detach(&attachment).await.unwrap();
                detach.push(start.elapsed());
                drop(netns);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            attach.sort();
            detach.sort();
            println!(
                "{what}: attach median {:?} p95 {:?}, detach median {:?} p95 {:?}",
                attach[50], attach[95], detach[50], detach[95]
            );
        }
        let netns: Vec<Netns> = (0..200).map(|_| Netns::new()).collect();
        let attach = |(number, netns): (usize, &Netns)| {
            let (network, id, fd) = (
                arena.network.clone(),
                format!("many{number}"),
                netns.fd().try_clone_to_owned(),
            );
            async move {
                let fd = fd.unwrap();
                let request = AttachRequest {
                    id: &id,
                    netns: fd.as_fd(),
                    ports: &[],
                    interface: "eth0",
                };
                network.attach(request).await.unwrap()
            }
        };
        let start = Instant::now();
        let ten_at_a_time = futures::stream::iter(netns.iter().enumerate().map(attach)).buffer_unordered(10);
        let attachments: Vec<Attachment> = ten_at_a_time.collect().await;
        println!("200 pods, 10 at a time: {:?}", start.elapsed());
        let start = Instant::now();
        for attachment in &attachments {
            arena.network.detach(attachment).await.unwrap();
        }
        drop(netns);
        eventually("the end of all leases", SOON, || {
            arena.network.ready().addresses_in_use == 0
        })
        .await;
        println!("200 pods detached and all addresses free: {:?}", start.elapsed());
    });
}
