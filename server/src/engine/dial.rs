//! Connections into a pod, for PortForward.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use runtime_core::pod::{Request, launch_flag};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};

use super::keeper::{Keeper, POD_HANDLE};
use super::native::NativeError;
use super::{Engine, EngineError, blocking};
use crate::model::Share;
use crate::state::store::Pod;

/// How long a connection within one machine may take: longer than a full backlog, shorter than clients wait.
const CONNECT: Duration = Duration::from_secs(20);

/// A running pod, to connect to.
#[derive(Debug, Clone)]
pub struct Target {
    keeper: Arc<Keeper>,
    own_network: bool,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Neither address answers; this is what the last one said.
    #[error("cannot connect to port {port} in the pod: {source}")]
    Refused {
        /// The port.
        port: u16,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pod is gone, or the host lacks something.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Target {
    /// The pod, if it runs.
    ///
    /// # Errors
    /// It does not.
    pub fn new(engine: &Engine, pod: &Pod) -> Result<Self, EngineError> {
        Ok(Self {
            keeper: engine.native.keeper(&pod.record.id)?,
            own_network: pod.config.namespaces.network == Share::Pod,
        })
    }

    /// Waits until the pod is stopped or lost.
    pub async fn gone(&self) {
        self.keeper.gone().await;
    }

    /// Connects to a port of the pod's loopback, by IPv4 or else by IPv6.
    ///
    /// # Errors
    /// Nobody listens there, or the pod is gone.
    pub async fn connect(&self, port: u16) -> Result<TcpStream, DialError> {
        let [v4, v6] = self.sockets().await?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (socket, address) in [
            (v4, SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            (v6, SocketAddr::from((Ipv6Addr::LOCALHOST, port))),
        ] {
            // A kernel without IPv6 has no such socket, and the answer of IPv4 counts.
            let Ok(socket) = socket else { continue };
            let connecting = TcpSocket::from_std_stream(socket).connect(address);
            match tokio::time::timeout(CONNECT, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => last = source,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(DialError::Refused { port, source: last })
    }

    /// A socket of each family that belongs to the pod's network: a socket keeps the namespace that it was made
    /// in, whoever connects it.
    async fn sockets(&self) -> Result<[io::Result<StdStream>; 2], EngineError> {
        if !self.own_network {
            return Ok(both());
        }
        // Asked for each connection, so that no namespace outlives its pod because a client is slow to go.
        let reply = self.keeper.call(POD_HANDLE, Request::Namespaces, &[]).await?;
        let network = reply
            .body
            .iter()
            .position(|bit| u32::from(*bit) == launch_flag::NET)
            .and_then(|at| reply.fds.into_iter().nth(at))
            .ok_or(NativeError::PodinitGone)?;
        blocking("PortForward", move || inside(network.as_fd())).await
    }
}

fn both() -> [io::Result<StdStream>; 2] {
    [AddressFamily::INET, AddressFamily::INET6].map(|family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
        Ok(socket.into())
    })
}

/// Makes the sockets on a thread that ends in the pod's network. Blocks.
fn inside(network: BorrowedFd<'_>) -> Result<[io::Result<StdStream>; 2], NativeError> {
    podd_netplug::enter(network, both).map_err(NativeError::from)
}
