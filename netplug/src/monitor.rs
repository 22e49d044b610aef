//! Notices when links or nftables tables vanish.
//!
//! Owns: the multicast sockets and the reading of just enough of each notice: type, family and index, at fixed
//! offsets. Full decoding would cost the daemon tens of microseconds for each of about ten notices per pod.
//! Never: decides what it means.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rustix::io::Errno;

use crate::error::Error;
use crate::veth::is;

const RTMGRP_LINK: u32 = 1;
const RTM_DELLINK: u16 = 17;
/// Group 7, NFNLGRP_NFTABLES.
const NFTABLES_GROUP: u32 = 1 << 6;
/// Subsystem 10 (nftables), message 2 (NFT_MSG_DELTABLE).
const DELETE_TABLE: u16 = 10 << 8 | 2;
const HEADER: usize = 16;
/// The largest datagram the kernel sends.
const DATAGRAM: usize = 32 * 1024;
/// Room for bursts; when it is not enough, [`Notice::Lost`] says so. The kernel caps it at `rmem_max`.
const RECEIVE_BUFFER: i32 = 1 << 20;
/// Bridges report a departed port as RTM_DELLINK of family AF_BRIDGE; only AF_UNSPEC means the link is gone.
const AF_UNSPEC: u8 = 0;

/// What the monitor saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The link of this index is gone.
    Gone(u32),
    /// Some nftables table is gone.
    TableGone,
    /// Notices were lost: look for yourself.
    Lost,
}

/// A socket that receives notices of the namespace it was opened in.
pub(crate) struct Monitor {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Listens for links; from now on nothing is missed unless [`Notice::Lost`] says so.
    pub(crate) fn links() -> Result<Self, Error> {
        Self::open(NETLINK_ROUTE, RTMGRP_LINK, "link notices")
    }

    /// Listens for changes of the ruleset, by whomever.
    pub(crate) fn tables() -> Result<Self, Error> {
        Self::open(NETLINK_NETFILTER, NFTABLES_GROUP, "nftables notices")
    }

    fn open(protocol: isize, groups: u32, what: &'static str) -> Result<Self, Error> {
        let connect = |source| Error::Connect { what, source };
        let mut socket = TokioSocket::new(protocol).map_err(connect)?;
        if let Err(error) = socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER) {
            tracing::debug!(%error, what, "the receive buffer stays small");
        }
        socket
            .socket_mut()
            .bind(&SocketAddr::new(0, groups))
            .map_err(connect)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Waits for the next datagram and returns what it says about vanished things.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<Notice>> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer).await {
            Ok(()) => Ok(notices(&self.buffer)),
            Err(error) if is(&error, Errno::NOBUFS) => Ok(vec![Notice::Lost]),
            Err(error) if is(&error, Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn notices(mut datagram: &[u8]) -> Vec<Notice> {
    let mut notices = Vec::new();
    while let Some((length, kind)) = header(datagram) {
        let body = datagram.get(HEADER..length).unwrap_or(&[]);
        if kind == RTM_DELLINK
            && let Some((&family, Some(index))) = body.first().map(|family| (family, word(body, 4)))
            && family == AF_UNSPEC
        {
            notices.push(Notice::Gone(index));
        }
        if kind == DELETE_TABLE {
            notices.push(Notice::TableGone);
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    notices
}

fn header(datagram: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(word(datagram, 0)?)
        .ok()
        .filter(|length| *length >= HEADER)?;
    let kind = datagram.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    Some((length, kind))
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..offset + 4)?
        .try_into()
        .ok()
        .map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(kind: u16, family: u8, index: u32) -> Vec<u8> {
        let mut message = 32_u32.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend([family, 0, 0, 0]);
        message.extend(index.to_ne_bytes());
        message.extend([0; 8]);
        message
    }

    #[test]
    fn only_departures_of_links_count() {
        let mut datagram = notice(16, 0, 1);
        datagram.extend(notice(RTM_DELLINK, 7, 2));
        datagram.extend(notice(RTM_DELLINK, 0, 3));
        assert_eq!(notices(&datagram), [Notice::Gone(3)]);
    }

    #[test]
    fn torn_notices_are_harmless() {
        let whole = notice(RTM_DELLINK, 0, 3);
        for length in 0..whole.len() {
            let _ = notices(&whole[..length]);
        }
        assert!(notices(&[0; 64]).is_empty());
    }
}
