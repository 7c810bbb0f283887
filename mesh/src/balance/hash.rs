//! Hashing that is the same on every node, in every version and on every machine: what makes hash policies sticky across
//! agents. FNV-1a (RFC 9923), whose low bits are good, then the finaliser of MurmurHash3, which makes all of them so.

use std::net::{IpAddr, SocketAddr};

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash of some bytes; `seed` makes it one of many independent ones.
pub(super) fn bytes(bytes: &[u8], seed: u64) -> u64 {
    mix(fnv1a(bytes) ^ mix(seed))
}

/// A number scattered over all 64 bits; the finaliser of MurmurHash3.
pub(super) fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// The hash of a client: of its address, and of its port when `with_port`. An IPv4 address is itself in whatever form.
pub(super) fn client(client: SocketAddr, with_port: bool) -> u64 {
    let mut key = [0u8; 18];
    let address = match client.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    key[..16].copy_from_slice(&address.octets());
    if with_port {
        key[16..].copy_from_slice(&client.port().to_be_bytes());
    }
    bytes(&key, 0)
}

/// The one of `count` shards that an address belongs to.
pub(super) fn shard(address: IpAddr, count: usize) -> usize {
    let shard = client((address, 0).into(), false) % count.max(1) as u64;
    usize::try_from(shard).unwrap_or(0)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // Test vectors of FNV's authors.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_client_is_the_same_in_both_families_and_its_port_counts_only_when_asked() {
        let hash = |text: &str, with_port| client(text.parse().unwrap(), with_port);
        assert_eq!(hash("192.0.2.1:1", false), hash("[::ffff:192.0.2.1]:2", false));
        assert_ne!(hash("192.0.2.1:1", true), hash("192.0.2.1:2", true));
        assert_ne!(hash("192.0.2.1:1", false), hash("192.0.2.2:1", false));
    }
}
