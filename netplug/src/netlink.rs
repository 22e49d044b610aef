//! A small blocking netlink socket: many requests in one send, one outcome for each.
//!
//! Owns: sequence numbers, framing, acknowledgements, dumps. Never: knows what the messages mean.
//!
//! The kernel works through a datagram of requests inside `sendto`; all acknowledgements are queued when it
//! returns. So a batch costs one send and one short receive per answer, and never waits. Only dumps continue
//! from receive to receive.

use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

/// Large enough for the biggest datagram the kernel sends for a dump.
const BUFFER_SIZE: usize = 32 * 1024;

/// NETLINK_ROUTE, which is protocol number 0.
pub(crate) const ROUTE: Option<Protocol> = None;

/// NETLINK_NETFILTER.
pub(crate) const NETFILTER: Option<Protocol> = Some(rustix::net::netlink::NETFILTER);

/// One request: the message and its flags beside `NLM_F_REQUEST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request<M> {
    pub(crate) message: M,
    pub(crate) flags: u16,
    /// Requests without an acknowledgement have no outcome of their own unless they fail.
    pub(crate) acknowledged: bool,
}

impl<M> Request<M> {
    /// A request that is acknowledged.
    pub(crate) fn new(message: M, flags: u16) -> Self {
        Self {
            message,
            flags,
            acknowledged: true,
        }
    }

    /// A request that only reports failure, such as the end markers of a batch.
    pub(crate) fn silent(message: M) -> Self {
        Self {
            message,
            flags: 0,
            acknowledged: false,
        }
    }
}

/// What the kernel answered to one request.
#[derive(Debug)]
pub(crate) struct Outcome<M> {
    pub(crate) result: io::Result<()>,
    pub(crate) messages: Vec<M>,
}

impl<M> Outcome<M> {
    fn new((result, messages): (Option<io::Result<()>>, Vec<M>)) -> Self {
        let result = result.unwrap_or_else(|| Err(io::Error::other("the kernel gave no answer")));
        Self { result, messages }
    }
}

/// A netlink socket, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket<M> {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    messages: PhantomData<fn(M) -> M>,
}

impl<M> Socket<M>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    /// Opens a socket of `protocol` in the calling thread's network namespace.
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; BUFFER_SIZE],
            messages: PhantomData,
        })
    }

    /// Sends all requests in one datagram and returns their outcomes in order.
    ///
    /// A refused request does not stop the ones behind it (that is the family's business: nftables batches
    /// are atomic, route requests are not).
    pub(crate) fn batch(&mut self, requests: Vec<Request<M>>) -> io::Result<Vec<Outcome<M>>> {
        let first = self.sequence.wrapping_add(1);
        let mut outcomes: Vec<Option<io::Result<()>>> = Vec::with_capacity(requests.len());
        let mut collected: Vec<Vec<M>> = Vec::with_capacity(requests.len());
        let mut datagram = Vec::new();
        for request in requests {
            outcomes.push(if request.acknowledged { None } else { Some(Ok(())) });
            collected.push(Vec::new());
            let ack = if request.acknowledged { NLM_F_ACK } else { 0 };
            self.push(&mut datagram, request.message, request.flags | ack);
        }
        self.send(&datagram)?;
        loop {
            let length = match recv(
                &self.fd,
                &mut self.buffer[..],
                RecvFlags::DONTWAIT | RecvFlags::TRUNC,
            ) {
                Ok((_, length)) => length,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for (sequence, payload) in messages::<M>(&self.buffer, length)? {
                let Some(slot) = index(sequence, first, outcomes.len()) else {
                    continue;
                };
                match payload {
                    NetlinkPayload::Error(error) => outcomes[slot] = Some(status(error.raw_code())),
                    NetlinkPayload::InnerMessage(message) => collected[slot].push(message),
                    _ => {}
                }
            }
        }
        Ok(outcomes.into_iter().zip(collected).map(Outcome::new).collect())
    }

    /// Asks for a dump and calls `each` for every object.
    pub(crate) fn dump(&mut self, message: M, mut each: impl FnMut(M)) -> io::Result<()> {
        let mut datagram = Vec::new();
        let sequence = self.push(&mut datagram, message, NLM_F_DUMP);
        self.send(&datagram)?;
        loop {
            let (_, length) =
                rustix::io::retry_on_intr(|| recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC))?;
            for (answered, payload) in messages::<M>(&self.buffer, length)? {
                if answered != sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return status(error.raw_code()),
                    NetlinkPayload::InnerMessage(message) => each(message),
                    _ => {}
                }
            }
        }
    }

    fn push(&mut self, datagram: &mut Vec<u8>, message: M, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = datagram.len();
        datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut datagram[start..]);
        self.sequence
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| sendto(&self.fd, datagram, SendFlags::empty(), &kernel))?;
        Ok(())
    }
}

fn index(sequence: u32, first: u32, count: usize) -> Option<usize> {
    usize::try_from(sequence.wrapping_sub(first))
        .ok()
        .filter(|slot| *slot < count)
}

fn status(code: i32) -> io::Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(code.wrapping_neg()))
    }
}

/// Splits a datagram into its messages: (sequence number, payload).
fn messages<M: NetlinkDeserializable>(
    buffer: &[u8],
    length: usize,
) -> io::Result<Vec<(u32, NetlinkPayload<M>)>> {
    let mut rest = buffer
        .get(..length)
        .ok_or_else(|| malformed("a datagram larger than the buffer"))?;
    let mut messages = Vec::new();
    while rest.len() >= 16 {
        let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
        let (header, payload) = message.into_parts();
        messages.push((header.sequence_number, payload));
        let used = usize::try_from(header.length)
            .unwrap_or(rest.len())
            .next_multiple_of(4);
        rest = rest.get(used..).unwrap_or(&[]);
    }
    Ok(messages)
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
