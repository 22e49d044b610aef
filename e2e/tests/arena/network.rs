//! The pod network: addresses, reachability in every direction, both families, host ports.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri;
use podd_proto::v1 as pb;

use crate::case::{Env, Pod, cases, contains, equal, eventually};

cases!("network":
    addresses_of_both_families, loopback_is_up, reachable_from_host, pod_to_pod, pod_to_host, own_address_through_itself,
    no_two_pods_share_an_address, host_port, addresses_are_used_again, low_ports_and_ping_for_users);

/// A container that answers `hello` on TCP port 8080 of every address.
fn server() -> pb::ContainerConfig {
    cri::shell(
        "server",
        "mkdir -p /srv && echo hello >/srv/index.html && exec httpd -f -p '[::]:8080' -h /srv",
    )
}

/// Asks for `/` over HTTP.
fn get(address: &str, port: u16) -> Result<String> {
    let at = if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    };
    let mut stream = TcpStream::connect_timeout(&at.parse()?, Duration::from_secs(2)).context(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Waits for the server of `pod` and returns its addresses, IPv4 first.
fn serving(pod: &Pod) -> Result<[String; 2]> {
    pod.started(&server())?;
    let addresses = [pod.address('.')?, pod.address(':')?];
    eventually("the server answers", || Ok(get(&addresses[0], 8080).is_ok()))?;
    Ok(addresses)
}

fn addresses_of_both_families(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("addresses")?;
    let (v4, v6) = (pod.address('.')?, pod.address(':')?);
    ensure!(v4.starts_with("10.88."), "IPv4 {v4}");
    ensure!(v6.starts_with("fd00:10:88:"), "IPv6 {v6}");
    let main = pod.status()?.network.context("no network")?.ip;
    equal("the first address", &main, &v4)?;
    let inside = pod.output(&cri::shell("c", "ip addr show dev eth0; ip route; ip -6 route"))?;
    contains("addresses", &inside, &v4)?;
    contains("addresses", &inside, &v6)?;
    contains("routes", &inside, "default via 10.88.")?;
    contains("routes", &inside, "default via fd00:10:88:")?;
    pod.remove()
}

fn loopback_is_up(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("loopback")?;
    let script = "httpd -p 127.0.0.1:9 -h /etc && wget -q -O- http://127.0.0.1:9/hostname && ping -c1 -W2 ::1 >/dev/null";
    let out = pod.output(&cri::shell("c", script))?;
    pod.remove()?;
    equal("answer", out.as_str(), "loopback\n")
}

fn reachable_from_host(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("server")?;
    for address in serving(&pod)? {
        contains(&address, &get(&address, 8080)?, "hello")?;
    }
    pod.remove()
}

fn pod_to_pod(env: &mut Env<'_>) -> Result<()> {
    let (server, client) = (env.pod("server")?, env.pod("client")?);
    let [v4, v6] = serving(&server)?;
    let script =
        format!("timeout 5 wget -q -O- http://{v4}:8080/ && timeout 5 wget -q -O- 'http://[{v6}]:8080/'");
    let out = client.output(&cri::shell("c", &script))?;
    client.remove()?;
    server.remove()?;
    equal("answers", out.as_str(), "hello\nhello\n")
}

fn pod_to_host(env: &mut Env<'_>) -> Result<()> {
    // The registry listens on loopback only, so a server of the test's own answers on the bridge.
    let listener = std::net::TcpListener::bind("0.0.0.0:7070")?;
    let answer = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut request = [0; 512];
        let _ = stream.read(&mut request)?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhost\n")
    });
    let pod = env.pod("client")?;
    let script = "timeout 5 wget -q -O- http://$(ip route | awk '/default/{print $3}'):7070/";
    let out = pod.output(&cri::shell("c", script));
    if out.is_err() {
        // Nobody came: let the accepting thread go.
        drop(TcpStream::connect("127.0.0.1:7070"));
    }
    let _ = answer.join();
    pod.remove()?;
    equal("answer", out?.as_str(), "host\n")
}

fn own_address_through_itself(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("self")?;
    let [v4, _] = serving(&pod)?;
    let out = pod.output(&cri::shell(
        "c",
        &format!("timeout 5 wget -q -O- http://{v4}:8080/"),
    ))?;
    pod.remove()?;
    equal("answer", out.as_str(), "hello\n")
}

fn no_two_pods_share_an_address(env: &mut Env<'_>) -> Result<()> {
    let pods = (0..8)
        .map(|i| env.pod(&format!("p{i}")))
        .collect::<Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for pod in &pods {
        all.extend([pod.address('.')?, pod.address(':')?]);
    }
    let count = all.len();
    all.sort();
    all.dedup();
    equal("distinct addresses", all.len(), count)?;
    pods.into_iter().try_for_each(Pod::remove)
}

fn host_port(env: &mut Env<'_>) -> Result<()> {
    let mut config = cri::pod_config("port");
    config.port_mappings = vec![pb::PortMapping {
        container_port: 8080,
        host_port: 18080,
        ..Default::default()
    }];
    let (server, client) = (Pod::run(&env.cri()?, config)?, env.pod("client")?);
    serving(&server)?;
    let script = "timeout 5 wget -q -O- http://$(ip route | awk '/default/{print $3}'):18080/";
    let out = client.output(&cri::shell("c", script))?;
    equal("answer through the host port", out.as_str(), "hello\n")?;
    contains("answer on loopback", &get("127.0.0.1", 18080)?, "hello")?;
    client.remove()?;
    server.remove()?;
    ensure!(get("127.0.0.1", 18080).is_err(), "the host port outlived its pod");
    Ok(())
}

fn addresses_are_used_again(env: &mut Env<'_>) -> Result<()> {
    // A range of 254 addresses would be used up by addresses that are not given back.
    for i in 0..20 {
        let pod = env.pod(&format!("again{i}"))?;
        let address = pod.address('.')?;
        ensure!(!address.is_empty(), "no address in round {i}");
        pod.remove()?;
    }
    Ok(())
}

fn low_ports_and_ping_for_users(env: &mut Env<'_>) -> Result<()> {
    let range = "/proc/sys/net/ipv4/ping_group_range";
    let script = format!("httpd -p 80 && grep -c ':0050 ' /proc/net/tcp6; cat {range} | tr '\\t' ' '");
    let mut config = cri::shell("c", &script);
    cri::security(&mut config).run_as_user = Some(pb::Int64Value { value: 1000 });
    let pod = env.pod("low")?;
    let out = pod.output(&config)?;
    pod.remove()?;
    equal("port and range", out.as_str(), "1\n0 2147483647\n")?;
    // What the request says counts.
    let mut asked = cri::pod_config("asked");
    let name = "net.ipv4.ip_unprivileged_port_start".to_owned();
    let linux = asked.linux.get_or_insert_default();
    linux.sysctls.insert(name, "81".to_owned());
    let pod = Pod::run(&env.cri()?, asked)?;
    let out = pod.output(&config)?;
    pod.remove()?;
    equal("port and range", out.as_str(), "0 2147483647\n")
}
