//! The header with which a stream of a tunnel begins: where it is to go, for which service, and whose it is.
//!
//! A version, then fields of a type, a length and a value, in any order. A reader passes over fields that it does not know,
//! unless their type says that they must be understood; so later versions can say more to those that listen. It comes from
//! another node, which may be of another version or not behave: whatever it is, it is read, or refused with a reason.

use std::net::{IpAddr, SocketAddr};

/// The longest header: there is nothing to say that is longer.
pub const LONGEST: usize = 512;
/// The version that is written here, and the only one that is read.
pub const VERSION: u8 = 1;
/// The longest name of a service: a DNS label.
const LONGEST_NAME: usize = 63;
/// Fields from here on must be understood by whoever reads the header.
const CRITICAL: u8 = 0x80;

/// The types of fields.
mod field {
    /// Where to connect to: an address of four or sixteen octets, and a port of two.
    pub(super) const TARGET: u8 = CRITICAL | 1;
    /// The name of the service that it is an endpoint of.
    pub(super) const SERVICE: u8 = CRITICAL | 2;
    /// Where the client is, in the form of a target.
    pub(super) const CLIENT: u8 = 3;
    /// The name of the service that the client is an instance of.
    pub(super) const CLIENT_SERVICE: u8 = 4;

    use super::CRITICAL;
}

/// What a stream begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The endpoint, as the sender knows it.
    pub target: SocketAddr,
    /// The service that it is an endpoint of; of the length of a DNS label, and nothing else is known of it.
    pub service: &'a str,
    /// The client; a client of a unix socket has no address.
    pub client: Option<SocketAddr>,
    /// The service that the client is an instance of, where the sender knows; as the other name.
    pub client_service: Option<&'a str>,
}

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// It is of a version, or has a field, that is not known here.
    #[error("a version or a field of the tunnel's header is not known here: upgrade this node")]
    Unsupported,
    /// It is none.
    #[error("what a stream of the tunnel begins with is no header")]
    Malformed,
}

/// A header as it is written.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    bytes: [u8; Self::ROOM],
    length: usize,
}

impl Written {
    /// A version, two addresses of IPv6, and two names.
    const ROOM: usize = 1 + 2 * (2 + 18) + 2 * (2 + LONGEST_NAME);

    fn field(&mut self, kind: u8, value: &[u8]) {
        // A value is shorter than a name may be, and so fits into an octet and into the room.
        let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
        self.push(&[kind, length]);
        self.push(value);
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn address(&mut self, kind: u8, address: SocketAddr) {
        let port = address.port().to_be_bytes();
        let mut value = [0; 18];
        match address.ip() {
            IpAddr::V4(ip) => {
                value[..4].copy_from_slice(&ip.octets());
                value[4..6].copy_from_slice(&port);
                self.field(kind, &value[..6]);
            }
            IpAddr::V6(ip) => {
                value[..16].copy_from_slice(&ip.octets());
                value[16..].copy_from_slice(&port);
                self.field(kind, &value);
            }
        }
    }
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Writes a header; `None` if the name is longer than that of any service.
#[must_use]
pub fn write(header: &Header<'_>) -> Option<Written> {
    if [Some(header.service), header.client_service]
        .into_iter()
        .flatten()
        .any(|name| name.len() > LONGEST_NAME)
    {
        return None;
    }
    let mut written = Written { bytes: [0; Written::ROOM], length: 0 };
    written.push(&[VERSION]);
    written.address(field::TARGET, header.target);
    written.field(field::SERVICE, header.service.as_bytes());
    if let Some(client) = header.client {
        written.address(field::CLIENT, client);
    }
    if let Some(name) = header.client_service {
        written.field(field::CLIENT_SERVICE, name.as_bytes());
    }
    Some(written)
}

/// Reads a header, which is all of `bytes`.
///
/// # Errors
/// It is not understood, or is none.
pub fn read(bytes: &[u8]) -> Result<Header<'_>, BadHeader> {
    let (version, mut rest) = bytes.split_first().ok_or(BadHeader::Malformed)?;
    if bytes.len() > LONGEST {
        return Err(BadHeader::Malformed);
    }
    if *version != VERSION {
        return Err(BadHeader::Unsupported);
    }
    let (mut target, mut service, mut client, mut client_service) = (None, None, None, None);
    while let [kind, length, after @ ..] = rest {
        let (value, after) = after.split_at_checked(usize::from(*length)).ok_or(BadHeader::Malformed)?;
        rest = after;
        match *kind {
            field::TARGET => once(&mut target, read_address(value))?,
            field::SERVICE => once(&mut service, read_name(value))?,
            field::CLIENT => once(&mut client, read_address(value))?,
            field::CLIENT_SERVICE => once(&mut client_service, read_name(value))?,
            CRITICAL.. => return Err(BadHeader::Unsupported),
            _ => {}
        }
    }
    match (target, service, rest) {
        (Some(target), Some(service), []) => Ok(Header { target, service, client, client_service }),
        _ => Err(BadHeader::Malformed),
    }
}

/// Takes the value of a field that is well-formed and was not there before.
fn once<T>(field: &mut Option<T>, value: Option<T>) -> Result<(), BadHeader> {
    let value = value.ok_or(BadHeader::Malformed)?;
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(BadHeader::Malformed),
    }
}

fn read_address(value: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = value.split_last_chunk::<2>()?;
    let ip: IpAddr = match ip.len() {
        4 => <[u8; 4]>::try_from(ip).ok()?.into(),
        16 => <[u8; 16]>::try_from(ip).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

fn read_name(value: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(value).ok()?;
    (1..=LONGEST_NAME).contains(&name.len()).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 8080);

    fn web() -> Vec<u8> {
        write(&Header { target: V4, service: "web", client: None, client_service: None })
            .unwrap()
            .as_ref()
            .to_vec()
    }

    #[test]
    fn a_field_that_is_not_known_is_passed_over_unless_it_must_be_understood() {
        let known = web();
        let optional = [&known[..], &[0x7f, 2, 9, 9]].concat();
        assert_eq!(read(&optional), read(&known));
        let critical = [&known[..], &[0xff, 0]].concat();
        assert_eq!(read(&critical), Err(BadHeader::Unsupported));
        let other = [&[VERSION + 1], &known[1..]].concat();
        assert_eq!(read(&other), Err(BadHeader::Unsupported));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let target = [field::TARGET, 6, 192, 0, 2, 1, 0, 80];
        let service = [field::SERVICE, 3, b'w', b'e', b'b'];
        for bytes in [
            &[][..],
            &[VERSION],
            &[&[VERSION][..], &target].concat(),
            &[&[VERSION][..], &service].concat(),
            &[&[VERSION][..], &target, &service, &service].concat(),
            &[&[VERSION][..], &target, &service, &[0]].concat(),
            &[&[VERSION][..], &target, &service, &[0, 1]].concat(),
            &[&[VERSION][..], &target, &[field::SERVICE, 0]].concat(),
            &[&[VERSION][..], &target, &[field::SERVICE, 1, 0xff]].concat(),
            &[&[VERSION][..], &service, &[field::TARGET, 5, 192, 0, 2, 1, 0]].concat(),
            &[&[VERSION][..], &target, &service, &vec![0; LONGEST]].concat(),
        ] {
            assert_eq!(read(bytes), Err(BadHeader::Malformed), "{bytes:?}");
        }
        let (web, long) = ("web", "w".repeat(64));
        for (service, client_service) in [(&*long, None), (web, Some(&*long))] {
            assert!(write(&Header { target: V4, service, client: None, client_service }).is_none());
        }
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_no_part_of_it_is_enough(
            target in any_address(), service in "[a-z0-9-]{1,63}", client in proptest::option::of(any_address()),
            client_service in proptest::option::of("[a-z0-9-]{1,63}"),
        ) {
            let client_service = client_service.as_deref();
            let header = Header { target, service: &service, client, client_service };
            let written = write(&header).unwrap();
            let bytes = written.as_ref();
            prop_assert!(bytes.len() <= LONGEST);
            prop_assert_eq!(read(bytes), Ok(header));
            for length in 0..bytes.len() {
                let part = read(&bytes[..length]);
                // Without its last fields, which may be left out, it is one as well.
                let rest = part.map(|part| (part.target, part.service));
                prop_assert!(part.is_err() || rest == Ok((target, service.as_str())), "{} octets: {:?}", length, part);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), versioned in any::<bool>()) {
            if versioned && let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            if let Ok(header) = read(&bytes) {
                let written = write(&header).unwrap();
                prop_assert_eq!(read(written.as_ref()), Ok(header));
            }
        }
    }
}
