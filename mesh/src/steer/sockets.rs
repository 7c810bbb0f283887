//! Where open sockets with clients' addresses lead, asked of the kernel (`sock_diag(7)`): also those of an agent before this one, which
//! finishes its connections in a process of its own.
//!
//! The kernel picks them out by the mark, so only they are listed, however many others there are. Bytes are written and read by
//! hand: one question is not worth a dependency.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::ruleset::Marks;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h: the question, and each socket of the answer.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`: a list.
const LIST: u16 = 0x301;
/// `NLMSG_ERROR` and `NLMSG_DONE`: what a list ends with, with an error number in front.
const ENDS: [u16; 2] = [2, 3];
/// `INET_DIAG_REQ_BYTECODE` of linux/inet_diag.h: which sockets.
const WHICH: u16 = 1;
/// `INET_DIAG_BC_MARK_COND`: those with a mark.
const MARKED: u8 = 10;
/// `IPPROTO_TCP` and `IPPROTO_UDP`.
const PROTOCOLS: [u8; 2] = [6, 17];
/// `AF_INET` and `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];
/// A bit for each state of tcp_states.h but `TCP_TIME_WAIT`, `TCP_CLOSE` and `TCP_LISTEN`. A UDP socket that is connected is
/// `TCP_ESTABLISHED`.
const OPEN: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10);

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// It, `struct inet_diag_req_v2`, and the condition.
const QUESTION: u32 = 16 + 56 + 16;
/// `struct nlattr`, `struct inet_diag_bc_op`, `struct inet_diag_markcond`.
const CONDITION: u16 = 4 + 4 + 8;
/// Where `struct inet_diag_msg` has the address that a socket is connected to.
const DESTINATION: usize = 4 + 4 + 16;

/// The endpoints of all open sockets of ours.
pub(super) async fn destinations(marks: Marks) -> io::Result<BTreeSet<IpAddr>> {
    let mut socket = TokioSocket::new(NETLINK_SOCK_DIAG)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    let mut found = BTreeSet::new();
    for protocol in PROTOCOLS {
        for family in FAMILIES {
            socket.send(&question(family, protocol, marks)).await?;
            loop {
                let (answer, _) = socket.recv_from_full().await?;
                match read(&answer, &mut found) {
                    Ok(true) => break,
                    Ok(false) => {}
                    // A kernel that cannot list the sockets of a protocol.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(found)
}

/// `ss --tcp 'fwmark = MARK/MASK'`, and the like.
fn question(family: u8, protocol: u8, marks: Marks) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(QUESTION.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(LIST.to_ne_bytes());
    bytes.extend([0; 8]);
    // Whatever its addresses, and nothing beside what every answer has.
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(OPEN.to_ne_bytes());
    bytes.extend([0; 48]);
    bytes.extend(CONDITION.to_ne_bytes());
    bytes.extend(WHICH.to_ne_bytes());
    // Where to go on: at the end of the condition, which is yes, or beyond it, which is no.
    bytes.extend([MARKED, 12]);
    bytes.extend(16_u16.to_ne_bytes());
    bytes.extend(marks.ours.to_ne_bytes());
    bytes.extend(marks.mask.to_ne_bytes());
    bytes
}

/// Reads what has come of an answer. Tells whether that was the end of it.
fn read(mut bytes: &[u8], found: &mut BTreeSet<IpAddr>) -> io::Result<bool> {
    let malformed =
        || io::Error::new(io::ErrorKind::InvalidData, "what the kernel says of sockets is not understood");
    while !bytes.is_empty() {
        let length = front(bytes).map_or(0, u32::from_ne_bytes);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let body = bytes.get(HEADER..length).ok_or_else(malformed)?;
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        if ENDS.contains(&kind) {
            // Negative, as system calls return them inside the kernel.
            let error = front(body).map(i32::from_ne_bytes).ok_or_else(malformed)?;
            return if error == 0 {
                Ok(true)
            } else {
                Err(io::Error::from_raw_os_error(error.saturating_neg()))
            };
        }
        if kind == BY_FAMILY {
            found.insert(destination(body).ok_or_else(malformed)?);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn destination(body: &[u8]) -> Option<IpAddr> {
    let at = body.get(DESTINATION..)?;
    if body[0] == FAMILIES[0] {
        return front::<4>(at).map(IpAddr::from);
    }
    front::<16>(at).map(IpAddr::from)
}

/// The bytes in front.
fn front<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// As the kernel describes a socket, with something behind it.
    fn socket(family: u8, to: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 79];
        body[0] = family;
        body[DESTINATION..DESTINATION + to.len()].copy_from_slice(to);
        message(BY_FAMILY, &body)
    }

    fn end(error: i32) -> Vec<u8> {
        message(ENDS[1], &error.to_ne_bytes())
    }

    #[test]
    fn a_question_is_as_long_as_it_says() {
        let question = question(2, 6, Marks::new(0x10));
        assert_eq!(question.len(), usize::try_from(QUESTION).unwrap());
        assert_eq!(question[question.len() - 8..], [0x10_u32.to_ne_bytes(), 0x30_u32.to_ne_bytes()].concat());
    }

    #[test]
    fn sockets_of_both_families_are_read_until_the_end() {
        let mut found = BTreeSet::new();
        let v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        let some = [socket(2, &[172, 30, 0, 2]), socket(10, &v6)].concat();
        assert!(!read(&some, &mut found).unwrap());
        assert!(read(&[socket(2, &[172, 30, 0, 2]), end(0)].concat(), &mut found).unwrap());
        let expected = ["172.30.0.2", "2001:db8::2"].map(|ip| ip.parse().unwrap());
        assert_eq!(found, expected.into());
    }

    #[test]
    fn errors_of_the_kernel_are_errors() {
        let refused = read(&message(ENDS[0], &(-1_i32).to_ne_bytes()), &mut BTreeSet::new()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(read(&end(-2), &mut BTreeSet::new()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, &mut BTreeSet::new());
        }

        #[test]
        fn an_answer_that_is_cut_short_is_no_end(cut in 0..100_usize) {
            let answer = [socket(2, &[172, 30, 0, 2]), end(0)].concat();
            let cut = cut.min(answer.len() - 1);
            prop_assert!(!matches!(read(&answer[..cut], &mut BTreeSet::new()), Ok(true)));
        }
    }
}
