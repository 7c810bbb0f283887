//! The UDP socket: read, answer, write, in one task; only what waits for an upstream gets a task of its own.
//!
//! A reply leaves from the address that was asked, or the client drops it: a socket of one address does so by itself, a
//! wildcard socket learns the address from the kernel with each datagram and hands it back with the reply (ip(7),
//! IP_PKTINFO; RFC 3542 section 6.1).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Service;
use crate::dns::message::Reply;
use crate::dns::metrics::{Dropped, Transport};

/// No query that we answer is longer; the rest of a longer one is cut off, and it is malformed then.
const LONGEST_QUERY: usize = 4096;
/// After so many datagrams in a row the other tasks of the runtime have a turn.
const TURN: usize = 64;

/// Who asked, and at which of our addresses.
#[derive(Debug, Clone, Copy)]
struct Peer {
    client: SocketAddr,
    /// Known where the socket has more than one.
    asked: Option<IpAddr>,
    /// The interface that a link-local client is behind.
    interface: u32,
}

/// A UDP socket that replies from the address that was asked.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    wildcard: bool,
}

/// Answers what comes, until the stop token is cancelled.
pub(super) async fn serve(socket: Arc<Socket>, service: Service) {
    let stop = service.tasks.stop_token();
    let metrics = &service.handler.metrics;
    let mut buffer = vec![0; LONGEST_QUERY];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = service.open.closed() => return,
            ready = socket.socket.readable() => if ready.is_err() {
                metrics.dropped.inc(Dropped::ReceiveFailed);
                return;
            }
        }
        for _ in 0..TURN {
            match socket.receive(&mut buffer) {
                Ok((length, peer)) => answer(&socket, &service, &buffer[..length], peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An earlier reply's ICMP error, or too little memory: nothing that closing the socket would mend.
                Err(error) => {
                    metrics.dropped.inc(Dropped::ReceiveFailed);
                    tracing::debug!(%error, "DNS over UDP: receiving failed");
                    break;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn answer(socket: &Arc<Socket>, service: &Service, query: &[u8], peer: Peer) {
    let handler = &service.handler;
    // One message that nobody foresaw costs itself, not the task and the messages behind it.
    let reply = catch_unwind(AssertUnwindSafe(|| handler.handle(query, peer.client, Transport::Udp)));
    match reply {
        Ok(Reply::Now(octets)) => socket.send(&octets, peer, service),
        Ok(Reply::Later(later)) => {
            let (socket, again) = (Arc::clone(socket), service.clone());
            service
                .tasks
                .spawn("dns udp forward", async move { socket.send(&later.wait().await, peer, &again) });
        }
        Ok(Reply::Drop(reason)) => handler.metrics.dropped.inc(reason),
        Err(_) => {
            handler.metrics.dropped.inc(Dropped::Panic);
            tracing::error!(client = %peer.client, "handling a DNS query panicked; it is dropped");
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Socket {
    pub(super) fn new(socket: std::net::UdpSocket, wildcard: bool) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::from_std(socket)?, wildcard })
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
        if self.wildcard {
            return self.socket.try_io(Interest::READABLE, || receive_with_address(&self.socket, buffer));
        }
        let (length, client) = self.socket.try_recv_from(buffer)?;
        Ok((length, Peer { client, asked: None, interface: 0 }))
    }

    /// Never waits: where the kernel has no room the client asks again.
    fn send(&self, octets: &[u8], peer: Peer, service: &Service) {
        let sent = match peer.asked {
            None => self.socket.try_send_to(octets, peer.client).map(drop),
            Some(from) => {
                self.socket.try_io(Interest::WRITABLE, || send_from(&self.socket, octets, peer, from))
            }
        };
        if let Err(error) = sent {
            service.handler.metrics.dropped.inc(Dropped::SendFailed);
            tracing::debug!(client = %peer.client, %error, "DNS over UDP: sending failed");
        }
    }
}

fn receive_with_address(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
    let mut control = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let client = message.address.as_ref().and_then(socket_address).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "a datagram without the address of its sender")
    })?;
    let mut peer = Peer { client, asked: None, interface: 0 };
    for each in message.cmsgs()? {
        match each {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                // `ipi_spec_dst` is the local address to reply from, also where a broadcast was asked.
                peer.asked = Some(IpAddr::from(u32::from_be(info.ipi_spec_dst.s_addr).to_be_bytes()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                peer.asked = Some(IpAddr::from(info.ipi6_addr.s6_addr));
                peer.interface = info.ipi6_ifindex;
            }
            _ => {}
        }
    }
    Ok((message.bytes, peer))
}

fn send_from(socket: &UdpSocket, octets: &[u8], peer: Peer, from: IpAddr) -> io::Result<()> {
    let to = SockaddrStorage::from(peer.client);
    let parts = [IoSlice::new(octets)];
    let send = |control: ControlMessage<'_>| {
        sendmsg(socket.as_raw_fd(), &parts, &[control], MsgFlags::empty(), Some(&to))
    };
    match from {
        IpAddr::V4(ip) => send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        }))?,
        IpAddr::V6(ip) => send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
            ipi6_ifindex: if ip.is_unicast_link_local() { peer.interface } else { 0 },
        }))?,
    };
    Ok(())
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || address.as_sockaddr_in().map(|a| SocketAddrV4::from(*a).into());
    let v6 = || address.as_sockaddr_in6().map(|a| SocketAddrV6::from(*a).into());
    v4().or_else(v6)
}
