//! The connection between two agents: lines, and descriptors beside them (`SCM_RIGHTS`, unix(7)).
//!
//! Descriptors arrive with the bytes of their line or before the line is whole, in the order of the lines; each line says
//! how many are its own. What is not asked for is closed.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::Error;
use super::message::{Line, MAX_DESCRIPTORS, MAX_LINE, Message};
use crate::credentials::{Peer, own_user};

/// Read at a time.
const CHUNK: usize = 16 * 1024;
/// Descriptors that wait for their line: those of the few lines that a chunk may hold the beginnings of.
const MOST_WAITING: usize = 16 * MAX_DESCRIPTORS;
/// Lines of a later version that are left out in a row; beyond it, nothing is to be expected any more.
const MOST_UNKNOWN: usize = 1000;

/// A connection to another agent.
#[derive(Debug)]
pub(in crate::agent) struct Wire {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: Vec::new(), descriptors: VecDeque::new() }
    }

    /// May the process at the other end have our sockets, or give us its own? One of this user may, and of root.
    pub(super) fn check_peer(&self) -> Result<(), Error> {
        let peer = Peer::of(&self.stream)?;
        if peer.is_own() { Ok(()) } else { Err(Error::Stranger { uid: peer.uid, own: own_user() }) }
    }

    /// Does something come in time? Whatever it is stays to be received.
    pub(super) async fn speaks(&self, within: Duration) -> bool {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peek = || Ok(rustix::net::recv(&self.stream, &mut byte[..], flags)?.0);
        let heard = tokio::time::timeout(within, self.stream.async_io(Interest::READABLE, peek)).await;
        matches!(heard, Ok(Ok(1..)))
    }

    /// Says something, with these descriptors.
    pub(super) async fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<(), Error> {
        let line = Line::write(message, descriptors.len()).map_err(Error::NotUnderstood)?;
        let sent = tokio::time::timeout(within, self.write(&line, descriptors)).await;
        sent.map_err(|_| Error::Late { awaited: "that it takes what is sent", within })?.map_err(Error::Io)
    }

    async fn write(&self, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut sent = 0;
        while sent < line.len() {
            // With the first bytes only: they would arrive twice.
            let beside = if sent == 0 { descriptors } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || send_beside(self.stream.as_fd(), &line[sent..], beside))
                .await?;
        }
        Ok(())
    }

    /// What is said next; lines of kinds that this version does not know are left out. A refusal is an error.
    pub(super) async fn receive(
        &mut self,
        awaited: &'static str,
        within: Duration,
    ) -> Result<(Message, Vec<OwnedFd>), Error> {
        let next = async {
            for _ in 0..MOST_UNKNOWN {
                let (message, descriptors) = self.line(awaited).await?;
                match message {
                    Some(Message::Refused(refused)) => return Err(Error::Refused(refused.reason)),
                    Some(message) => return Ok((message, descriptors)),
                    None => tracing::debug!(
                        descriptors = descriptors.len(),
                        "a message of a later version is left out"
                    ),
                }
            }
            Err(Error::NotUnderstood("it says nothing that this version knows".to_owned()))
        };
        tokio::time::timeout(within, next).await.map_err(|_| Error::Late { awaited, within })?
    }

    async fn line(&mut self, awaited: &'static str) -> Result<(Option<Message>, Vec<OwnedFd>), Error> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(end + 1);
                let line = std::mem::replace(&mut self.bytes, rest);
                let Line { message, descriptors } = Line::read(&line[..end]).map_err(Error::NotUnderstood)?;
                if descriptors > self.descriptors.len() {
                    let came = self.descriptors.len();
                    let what = format!("{descriptors} descriptors were announced and {came} came");
                    return Err(Error::NotUnderstood(what));
                }
                return Ok((message, self.descriptors.drain(..descriptors).collect()));
            }
            if self.bytes.len() > MAX_LINE {
                return Err(Error::NotUnderstood(format!("a line is longer than {MAX_LINE} bytes")));
            }
            if self.read().await? == 0 {
                return Err(Error::HungUp(awaited));
            }
        }
    }

    async fn read(&mut self) -> Result<usize, Error> {
        let (bytes, descriptors) =
            self.stream.async_io(Interest::READABLE, || receive_beside(self.stream.as_fd())).await?;
        self.bytes.extend_from_slice(&bytes);
        self.descriptors.extend(descriptors);
        if self.descriptors.len() > MOST_WAITING {
            return Err(Error::NotUnderstood("it passes descriptors that no line speaks of".to_owned()));
        }
        Ok(bytes.len())
    }
}

fn send_beside(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a message takes"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

fn receive_beside(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; CHUNK];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags)?;
    bytes.truncate(received.bytes);
    let descriptors = beside
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "descriptors were lost on the way: this process may open too few; raise LimitNOFILE (ulimit -n)",
        ));
    }
    Ok((bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::super::message::{Described, Sockets};
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn pair() -> (Wire, Wire) {
        let (a, b) = UnixStream::pair().unwrap();
        (Wire::new(a), Wire::new(b))
    }

    /// The other end as raw bytes.
    fn raw() -> (Wire, std::os::unix::net::UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        let b = b.into_std().unwrap();
        b.set_nonblocking(false).unwrap();
        (Wire::new(a), b)
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_line_also_between_lines_without() {
        let (here, mut there) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let described =
            Described { transport: "tcp".to_owned(), address: Some(address), ..Described::unknown() };
        let sockets = Message::Sockets(Sockets { sockets: vec![described] });
        here.send(&Message::Prepare, &[], SOON).await.unwrap();
        here.send(&sockets, &[listener.as_fd()], SOON).await.unwrap();
        here.send(&Message::Offered, &[], SOON).await.unwrap();
        here.send(&Message::Catalog, &[listener.as_fd()], SOON).await.unwrap();
        drop((here, listener));
        assert_eq!(there.receive("", SOON).await.unwrap().0, Message::Prepare);
        let (message, mut passed) = there.receive("", SOON).await.unwrap();
        assert_eq!((message, passed.len()), (sockets, 1));
        let (message, none) = there.receive("", SOON).await.unwrap();
        assert_eq!((message, none.len()), (Message::Offered, 0));
        assert_eq!(there.receive("", SOON).await.unwrap().1.len(), 1);
        let passed = TcpListener::from(passed.remove(0));
        assert_eq!(
            passed.local_addr().unwrap(),
            address,
            "it listens on though its first owner has closed it"
        );
        assert!(matches!(there.receive("more", SOON).await, Err(Error::HungUp("more"))));
    }

    #[tokio::test]
    async fn as_many_as_fit_go_with_a_line() {
        let (here, mut there) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let many = vec![listener.as_fd(); MAX_DESCRIPTORS];
        for _ in 0..20 {
            let (sent, received) =
                tokio::join!(here.send(&Message::Catalog, &many, SOON), there.receive("", SOON));
            sent.unwrap();
            assert_eq!(received.unwrap().1.len(), MAX_DESCRIPTORS);
        }
    }

    #[tokio::test]
    async fn a_kind_of_a_later_version_is_left_out_and_its_descriptors_closed() {
        let (here, mut there) = pair();
        let (kept, mut watched) = std::os::unix::net::UnixStream::pair().unwrap();
        let line = b"{\"kind\":\"tunnels\",\"descriptors\":1}\n";
        assert_eq!(send_beside(here.stream.as_fd(), line, &[kept.as_fd()]).unwrap(), line.len());
        drop(kept);
        here.send(&Message::Serving, &[], SOON).await.unwrap();
        assert_eq!(there.receive("", SOON).await.unwrap().0, Message::Serving);
        watched.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(watched.read(&mut [0; 1]).unwrap(), 0, "closed");
    }

    #[tokio::test]
    async fn what_is_no_protocol_is_an_error_and_never_a_hang() {
        let long = vec![b'x'; MAX_LINE + CHUNK];
        let cases: [(&[u8], &str); 4] = [
            (b"GET / HTTP/1.1\r\n\r\n", "no message"),
            (b"{\"kind\":\"catalog\",\"descriptors\":1}\n", "1 descriptors were announced and 0 came"),
            (&long, "longer than"),
            (b"{\"kind\":\"refused\",\"body\":{\"reason\":\"busy\"}}\n", "refuses: busy"),
        ];
        for (bytes, expected) in cases {
            let (mut wire, mut other) = raw();
            let bytes = bytes.to_vec();
            let writer = std::thread::spawn(move || {
                // Whoever stops reading has said why.
                let _ = other.write_all(&bytes);
            });
            let error = wire.receive("anything", SOON).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            drop(wire);
            writer.join().unwrap();
        }
        let (mut wire, mut other) = raw();
        other.write_all(b"{\"kind\":\"hel").unwrap();
        let within = Duration::from_millis(50);
        assert!(matches!(wire.receive("hello", within).await, Err(Error::Late { awaited: "hello", .. })));
        drop(other);
        assert!(matches!(wire.receive("hello", SOON).await, Err(Error::HungUp("hello"))), "cut short");
    }

    #[tokio::test]
    async fn a_process_of_this_user_may_take_part() {
        let (here, there) = pair();
        assert!(here.check_peer().is_ok() && there.check_peer().is_ok());
    }
}
