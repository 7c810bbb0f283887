//! The PROXY protocol: who the client is, said in front of its bytes.
//!
//! Versions 1 (text) and 2 (binary), read from proxies that are trusted and written to endpoints that ask for it, after
//! the specification of HAProxy's project (doc/proxy-protocol.txt, revision 2020/03/05). Pure: knows bytes, no sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nerve::model::ProxyVersion;
use smallvec::SmallVec;

/// The longest header that is read. Version 1 ends within 107 bytes; version 2 may bring type-length-values that nobody
/// here looks at, and what brings more of them than this is refused.
pub const LONGEST: usize = 2048;

/// Version 1 is at most so long, its line end included (section 2.1).
const V1_LONGEST: usize = 107;
/// What a version 2 header begins with (section 2.2).
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_FIXED: usize = 16;

/// Client and the address that it asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// The address that it asked.
    pub destination: SocketAddr,
}

/// A header that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its length; what follows is the client's.
    pub length: usize,
    /// Whom it speaks for; `None`: the proxy itself (a health check), or a client that it cannot name.
    pub addresses: Option<Addresses>,
}

/// Why what was read is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It begins like neither version.
    #[error("no PROXY protocol header")]
    NoHeader,
    /// Longer than any that is read.
    #[error("a PROXY protocol header longer than {LONGEST} bytes")]
    TooLong,
    /// A version 1 line that is not one.
    #[error("a malformed PROXY protocol header of version 1")]
    Version1,
    /// A version 2 header that is not one.
    #[error("a malformed PROXY protocol header of version 2")]
    Version2,
}

/// Reads the header at the beginning of `bytes`; `None`: it goes on beyond them.
pub fn read(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(&V2_SIGNATURE) && bytes.len() >= V2_SIGNATURE.len() {
        read_v2(bytes)
    } else if begins(b"PROXY ") && bytes.len() >= 6 {
        read_v1(bytes)
    } else if begins(&V2_SIGNATURE) || begins(b"PROXY ") {
        Ok(None)
    } else {
        Err(Malformed::NoHeader)
    }
}

fn read_v1(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let window = &bytes[..bytes.len().min(V1_LONGEST)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_LONGEST { Ok(None) } else { Err(Malformed::Version1) };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| Malformed::Version1)?;
    let length = end + 2;
    let words: SmallVec<[&str; 6]> = line.split(' ').collect();
    let addresses = match words[..] {
        // Whatever follows UNKNOWN is to be ignored.
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let address = |ip: &str, port: &str| v1_address(family, ip, port).ok_or(Malformed::Version1);
            Some(Addresses {
                source: address(source, source_port)?,
                destination: address(destination, destination_port)?,
            })
        }
        _ => return Err(Malformed::Version1),
    };
    Ok(Some(Header { length, addresses }))
}

fn v1_address(family: &str, ip: &str, port: &str) -> Option<SocketAddr> {
    let ip: IpAddr = match family {
        "TCP4" => ip.parse::<Ipv4Addr>().ok()?.into(),
        _ => ip.parse::<Ipv6Addr>().ok()?.into(),
    };
    let is_decimal = port.bytes().all(|b| b.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
    is_decimal.then(|| port.parse().ok()).flatten().map(|port| SocketAddr::new(ip, port))
}

fn read_v2(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(fixed) = bytes.get(..V2_FIXED) else { return Ok(None) };
    let (version, command, family) = (fixed[12] >> 4, fixed[12] & 0xf, fixed[13]);
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if version != 2 || command > 1 {
        return Err(Malformed::Version2);
    }
    if length > LONGEST {
        return Err(Malformed::TooLong);
    }
    let Some(body) = bytes.get(V2_FIXED..length) else { return Ok(None) };
    let addresses = match (command, family) {
        // LOCAL: the proxy's own connection, whatever it says of addresses.
        (0, _) => None,
        (_, 0x11) => Some(v2_addresses::<4>(body).ok_or(Malformed::Version2)?),
        (_, 0x21) => Some(v2_addresses::<16>(body).ok_or(Malformed::Version2)?),
        // Unix sockets and unspecified families name nobody.
        (_, 0x00 | 0x31) => None,
        _ => return Err(Malformed::Version2),
    };
    Ok(Some(Header { length, addresses }))
}

/// Source, destination, their ports; type-length-values may follow.
fn v2_addresses<const N: usize>(body: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let ip = |at: usize| body.get(at..at + N)?.try_into().ok().map(|octets: [u8; N]| IpAddr::from(octets));
    let port = |at: usize| body.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    Some(Addresses {
        source: SocketAddr::new(ip(0)?, port(2 * N)?),
        destination: SocketAddr::new(ip(N)?, port(2 * N + 2)?),
    })
}

/// The header that tells an endpoint of `addresses`. Families are mixed only where an IPv6 socket took an IPv4 client; then
/// both are written as IPv6.
pub fn write(version: ProxyVersion, addresses: Addresses) -> SmallVec<[u8; 128]> {
    let Addresses { source, destination } = addresses;
    let is_v4 = source.is_ipv4() && destination.is_ipv4();
    let (source_ip, destination_ip) = match is_v4 {
        true => (source.ip(), destination.ip()),
        false => (as_v6(source.ip()), as_v6(destination.ip())),
    };
    let mut header = SmallVec::new();
    match version {
        ProxyVersion::V1 => {
            let family = if is_v4 { "TCP4" } else { "TCP6" };
            let (from, to) = (source.port(), destination.port());
            let line = format!("PROXY {family} {source_ip} {destination_ip} {from} {to}\r\n");
            header.extend_from_slice(line.as_bytes());
        }
        ProxyVersion::V2 => {
            header.extend_from_slice(&V2_SIGNATURE);
            header.extend_from_slice(if is_v4 { &[0x21, 0x11, 0, 12] } else { &[0x21, 0x21, 0, 36] });
            for ip in [source_ip, destination_ip] {
                match ip {
                    IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
                }
            }
            header.extend_from_slice(&source.port().to_be_bytes());
            header.extend_from_slice(&destination.port().to_be_bytes());
        }
    }
    header
}

/// The header that tells an endpoint that the client has no address: `UNKNOWN` in version 1, the command `LOCAL` in version 2.
pub(super) fn write_unknown(version: ProxyVersion) -> SmallVec<[u8; 128]> {
    let mut header = SmallVec::new();
    match version {
        ProxyVersion::V1 => header.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        ProxyVersion::V2 => {
            header.extend_from_slice(&V2_SIGNATURE);
            header.extend_from_slice(&[0x20, 0x00, 0, 0]);
        }
    }
    header
}

fn as_v6(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        v6 @ IpAddr::V6(_) => v6,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        let v4 = "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET / HTTP/1.1\r\n";
        let header = read(v4.as_bytes()).unwrap().unwrap();
        assert_eq!(header.addresses, Some(addresses("192.168.0.1:56324", "192.168.0.11:443")));
        assert_eq!(&v4[header.length..], "GET / HTTP/1.1\r\n");
        let longest = "PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"
            .replace("f...f", "ffff:ffff:ffff:ffff:ffff:ffff");
        assert!(read(longest.as_bytes()).unwrap().unwrap().addresses.is_some());
        assert_eq!(read(b"PROXY UNKNOWN\r\n").unwrap().unwrap().addresses, None);
        let unknown = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        assert_eq!(
            read(unknown.as_bytes()).unwrap().unwrap(),
            Header { length: unknown.len(), addresses: None }
        );
    }

    #[test]
    fn a_local_command_names_nobody() {
        let mut header = write(ProxyVersion::V2, addresses("192.0.2.1:1", "192.0.2.2:2"));
        header[12] = 0x20;
        assert_eq!(read(&header).unwrap().unwrap(), Header { length: 28, addresses: None });
    }

    #[test]
    fn a_client_without_an_address_is_nobody_in_both_versions() {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let header = write_unknown(version);
            let read = read(&header).unwrap().unwrap();
            assert_eq!(read, Header { length: header.len(), addresses: None }, "{version:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for (bytes, error) in [
            (&b"GET / HTTP/1.1\r\n"[..], Malformed::NoHeader),
            (b"PROXX", Malformed::NoHeader),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", Malformed::Version1),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", Malformed::Version1),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", Malformed::Version1),
            (b"PROXY TCP4 ::1 ::2 1 2\r\n", Malformed::Version1),
            (b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", Malformed::Version1),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", Malformed::Version1),
            (b"PROXY SCTP 1.2.3.4 5.6.7.8 1 2\r\n", Malformed::Version1),
            (&[b'P', b'R', b'O', b'X', b'Y', b' ', 0xff, b'\r', b'\n'], Malformed::Version1),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", Malformed::Version2),
            (b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c", Malformed::Version2),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x01\0", Malformed::Version2),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", Malformed::TooLong),
        ] {
            assert_eq!(read(bytes), Err(error), "{}", bytes.escape_ascii());
        }
        let endless = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        assert_eq!(read(&endless), Err(Malformed::Version1));
    }

    fn any_address(v4: bool) -> BoxedStrategy<SocketAddr> {
        let ip = if v4 {
            any::<Ipv4Addr>().prop_map(IpAddr::from).boxed()
        } else {
            any::<Ipv6Addr>().prop_map(IpAddr::from).boxed()
        };
        (ip, any::<u16>()).prop_map(SocketAddr::from).boxed()
    }

    fn any_header() -> impl Strategy<Value = (ProxyVersion, Addresses)> {
        let version = prop_oneof![Just(ProxyVersion::V1), Just(ProxyVersion::V2)];
        let pair = any::<bool>().prop_flat_map(|v4| (any_address(v4), any_address(v4)));
        (version, pair.prop_map(|(source, destination)| Addresses { source, destination }))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_arrives((version, addresses) in any_header(), rest in proptest::collection::vec(any::<u8>(), 0..40)) {
            let header = write(version, addresses);
            let bytes = [&header[..], &rest].concat();
            for length in 0..header.len() {
                prop_assert_eq!(read(&bytes[..length]), Ok(None), "after {} bytes", length);
            }
            prop_assert_eq!(read(&bytes), Ok(Some(Header { length: header.len(), addresses: Some(addresses) })));
        }

        #[test]
        fn no_bytes_make_it_panic_or_read_beyond_them(bytes in proptest::collection::vec(any::<u8>(), 0..300), prefix in 0..3_usize) {
            let prefix = [&b""[..], b"PROXY ", &V2_SIGNATURE][prefix];
            let bytes = [prefix, &bytes].concat();
            if let Ok(Some(header)) = read(&bytes) {
                prop_assert!(header.length <= bytes.len().min(LONGEST));
            }
        }
    }
}
