//! Messages of netlink for what `rtnetlink` has none for: WireGuard's and IPsec's. Attributes are written and read here, requests sent and their
//! answers awaited.
//!
//! They hold keys: what is sent and what is answered is overwritten when it is not needed any more, and never shown. The kernel answers at once,
//! so nothing here is async; callers keep it off the threads that others wait for.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};
use zeroize::{Zeroize, Zeroizing};

/// The lengths of a message's and of an attribute's header (`struct nlmsghdr`, `struct nlattr` of the kernel).
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// What is asked for, answered with an error or none (`NLM_F_REQUEST`, `NLM_F_ACK`, …).
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Kinds of answers: `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// An attribute of attributes (`NLA_F_NESTED`); with the order of its bytes, what is not its kind.
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;
/// Larger than what most requests need: they do not grow, which would leave copies behind.
const CAPACITY: usize = 16 << 10;

/// The body of a message while it is written.
pub(super) struct Body(Zeroizing<Vec<u8>>);

impl Body {
    /// One that begins with this header.
    pub(super) fn new(header: &[u8]) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(CAPACITY));
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    /// Adds an attribute. None is longer than 64 KiB: those that have no fixed length are lists, which callers cut.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |body| body.0.extend_from_slice(value));
    }

    /// Adds an attribute that consists of others.
    pub(super) fn put_nested(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        self.nest(kind | NESTED, inner);
    }

    fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; ATTRIBUTE]);
        inner(self);
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        if let Some(header) = self.0.get_mut(at..at + ATTRIBUTE) {
            header.copy_from_slice(&[length.to_ne_bytes(), kind.to_ne_bytes()].concat());
        }
        let padded = self.0.len().next_multiple_of(4);
        self.0.resize(padded, 0);
    }
}

/// The attributes in these bytes, by kind. What is cut off ends them.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        let kind = u16::from_ne_bytes(array(rest, 2)?) & KIND;
        let value = rest.get(ATTRIBUTE..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// So many bytes from there on, if there are.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A connection to a part of the kernel.
pub(super) struct Kernel {
    socket: Socket,
    sequence: u32,
}

/// The bodies of answers.
pub(super) type Answers = Vec<Zeroizing<Vec<u8>>>;

impl Kernel {
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has something done; `flags` besides those that every request has.
    pub(super) fn request(&mut self, kind: u16, flags: u16, body: &Body) -> io::Result<Answers> {
        self.send(kind, REQUEST | ACK | flags, body)
    }

    /// Asks for a list.
    pub(super) fn list(&mut self, kind: u16, body: &Body) -> io::Result<Answers> {
        self.send(kind, REQUEST | DUMP, body)
    }

    fn send(&mut self, kind: u16, flags: u16, body: &Body) -> io::Result<Answers> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + body.0.len()).map_err(io::Error::other)?;
        let mut message = Zeroizing::new(Vec::with_capacity(HEADER + body.0.len()));
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&body.0);
        self.socket.send(&message, 0)?;
        let mut answers = Vec::new();
        loop {
            let (mut datagram, _) = self.socket.recv_from_full()?;
            let ended = self.take(&datagram, &mut answers);
            datagram.zeroize();
            if ended? {
                return Ok(answers);
            }
        }
    }

    /// Tells whether that was the last of it.
    fn take(&self, datagram: &[u8], answers: &mut Answers) -> io::Result<bool> {
        let mut rest = datagram;
        while let (Some(length), Some(kind), Some(sequence)) =
            (array(rest, 0).map(u32::from_ne_bytes), array(rest, 4).map(u16::from_ne_bytes), array(rest, 8))
        {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some(body) = rest.get(HEADER..length) else {
                return Err(io::Error::other("the kernel's answer is cut off"));
            };
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if u32::from_ne_bytes(sequence) != self.sequence {
                continue;
            }
            match kind {
                // Both begin with an error's number, 0 where there is none.
                ERROR | DONE => {
                    return match array(body, 0).map_or(0, i32::from_ne_bytes) {
                        0 => Ok(true),
                        number => Err(io::Error::from_raw_os_error(number.saturating_neg())),
                    };
                }
                _ => answers.push(Zeroizing::new(body.to_vec())),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut body = Body::new(&[]);
        body.put(1, b"abc");
        body.put_nested(2, |body| body.put(7, &[]));
        let read: Vec<(u16, Vec<u8>)> =
            attributes(&body.0).map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(read, [(1, b"abc".to_vec()), (2, vec![4, 0, 7, 0])]);
        assert_eq!(body.0.len() % 4, 0);
    }

    proptest! {
        /// Whatever the kernel of another version says.
        #[test]
        fn reading_ends_whatever_it_reads(bytes: Vec<u8>) {
            prop_assert!(attributes(&bytes).count() <= bytes.len() / ATTRIBUTE);
        }
    }
}
