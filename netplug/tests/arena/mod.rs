//! A private host for one test: its own network namespace with an uplink to an "outside" namespace.
//!
//! Owns: namespaces, the uplink, small TCP and UDP services. Never: touches the machine's own network.
//!
//! ```text
//!   pods -- podd0 [host namespace] up0 192.0.2.1, 2001:db8::1  ----  out0 192.0.2.9, 2001:db8::9 [outside]
//! ```

#![allow(dead_code, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure shall panic")]

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use podd_netplug::{AttachRequest, Attachment, Error, NetConfig, Network, PortMapping, Protocol, enter};
use rtnetlink::{LinkUnspec, LinkVeth};

pub const HOST4: &str = "192.0.2.1";
pub const HOST6: &str = "2001:db8::1";
pub const OUTSIDE4: &str = "192.0.2.9";
pub const OUTSIDE6: &str = "2001:db8::9";
const PATIENCE: Duration = Duration::from_secs(2);

/// A network namespace held by a descriptor alone.
pub struct Netns(OwnedFd);

impl Netns {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap().into())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        enter(self.fd(), work).unwrap()
    }

    /// Runs a command inside.
    pub fn command(&self, line: &str) -> String {
        self.run(|| command(line))
    }

    /// Answers every TCP connection to `port` with the client's address.
    pub fn serve_tcp(&self, address: &str, port: u16) {
        let address: IpAddr = address.parse().unwrap();
        let listener = self.run(|| TcpListener::bind((address, port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_string();
                let _ = stream.write_all(peer.as_bytes());
            }
        });
    }

    /// Connects and returns the client's address as the server sees it.
    pub fn ask_tcp(&self, address: &str, port: u16) -> std::io::Result<String> {
        let target = SocketAddr::new(address.parse().unwrap(), port);
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    /// Answers every datagram with `name`.
    pub fn serve_udp(&self, port: u16, name: &'static str) {
        let socket = self.run(|| UdpSocket::bind(("0.0.0.0", port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
    }

    pub fn udp_socket(&self, port: u16) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind(("0.0.0.0", port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    }
}

/// Sends a datagram and returns the answer, if one comes.
pub fn ask_udp(socket: &UdpSocket, address: &str, port: u16) -> Option<String> {
    socket.send_to(b"?", (address, port)).ok()?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A pod: its namespace and, once attached, its attachment.
pub struct Pod {
    pub netns: Netns,
    pub attachment: Attachment,
}

impl Pod {
    pub fn v4(&self) -> String {
        self.attachment.addresses[0].address.to_string()
    }

    pub fn v6(&self) -> String {
        self.attachment.addresses[1].address.to_string()
    }
}

/// The test's host.
pub struct Arena {
    pub host: Netns,
    pub outside: Netns,
    pub network: Network,
    uplink: rtnetlink::Handle,
}

impl Arena {
    async fn new(config: NetConfig) -> Self {
        let host = Netns(File::open("/proc/thread-self/ns/net").unwrap().into());
        let (connection, uplink, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let network = Network::open(config).await.unwrap();
        let mut arena = Self {
            host,
            outside: Netns::new(),
            network,
            uplink,
        };
        arena.connect_outside().await;
        arena
    }

    async fn connect_outside(&mut self) {
        command("ip link set lo up");
        self.uplink
            .link()
            .add(LinkVeth::new("up0", "out0").build())
            .execute()
            .await
            .unwrap();
        let fd = self.outside.0.as_raw_fd();
        let moved = LinkUnspec::new_with_name("out0").setns_by_fd(fd).build();
        self.uplink.link().set(moved).execute().await.unwrap();
        command("ip addr add 192.0.2.1/24 dev up0");
        command("ip addr add 2001:db8::1/64 dev up0 nodad");
        command("ip link set up0 mtu 1400 up");
        self.outside.command("ip link set lo up");
        self.outside.command("ip addr add 192.0.2.9/24 dev out0");
        self.outside.command("ip addr add 2001:db8::9/64 dev out0 nodad");
        self.outside.command("ip link set out0 mtu 1400 up");
        command("ip route add default via 192.0.2.9");
        command("ip -6 route add default via 2001:db8::9");
    }

    pub async fn try_attach(
        &self,
        id: &str,
        netns: &Netns,
        ports: &[PortMapping],
    ) -> Result<Attachment, Error> {
        let request = AttachRequest {
            id,
            netns: netns.fd(),
            ports,
            interface: "eth0",
        };
        self.network.attach(request).await
    }

    pub async fn pod(&self, id: &str, ports: &[PortMapping]) -> Pod {
        let netns = Netns::new();
        let attachment = self.try_attach(id, &netns, ports).await.unwrap();
        Pod { netns, attachment }
    }

    /// Ends a pod the way the server does: detach, then let go of the namespace.
    pub async fn end(&self, pod: Pod) {
        self.network.detach(&pod.attachment).await.unwrap();
        drop(pod);
    }

    /// Names of pod links on the host.
    pub fn pod_links(&self) -> Vec<String> {
        let links = command("ip -o link show type veth");
        let names = links.lines().filter_map(|line| line.split(": ").nth(1));
        let names = names.map(|name| name.split('@').next().unwrap_or(name).to_owned());
        names.filter(|name| name.starts_with("pd")).collect()
    }
}

pub fn port(protocol: Protocol, host_port: u16, container_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    }
}

/// Waits until `check` holds.
pub async fn eventually(what: &str, patience: Duration, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(
            start.elapsed() < patience,
            "{what} did not happen within {patience:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs a command in the calling thread's namespace.
pub fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a test on a host of its own. Without the means it says why and passes.
pub fn arena<F, T>(config: NetConfig, test: T)
where
    F: Future<Output = ()>,
    T: FnOnce(Arena) -> F + Send + 'static,
{
    if !nix::unistd::geteuid().is_root() {
        println!("not run: needs root to make network namespaces");
        return;
    }
    for tool in ["ip", "nft"] {
        if Command::new(tool).arg("-V").output().is_err() && Command::new(tool).arg("-v").output().is_err() {
            println!("not run: needs the tool {tool} to look at the result");
            return;
        }
    }
    let host = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { test(Arena::new(config).await).await });
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The default network.
pub fn default_arena<F, T>(test: T)
where
    F: Future<Output = ()>,
    T: FnOnce(Arena) -> F + Send + 'static,
{
    arena(NetConfig::default(), test);
}
