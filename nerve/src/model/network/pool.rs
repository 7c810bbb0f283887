//! A range of addresses that is cut into subnets of one length, numbered from 0.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::Prefix;

/// The most bits that number the subnets of a range: 16 777 216 subnets.
const MAX_SLOT_BITS: u8 = 24;
/// The fewest bits that number the addresses of a subnet: the network's own, a gateway, a container, and the broadcast.
const MIN_HOST_BITS: u8 = 2;

/// The number of a subnet. The node that holds slot n holds the n-th subnet of every range of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Slot {
    type Err = String;

    /// One spelling a number: `01` and `+1` are none.
    fn from_str(text: &str) -> Result<Self, String> {
        let slot = text.parse().map(Self).ok().filter(|slot| slot.to_string() == text);
        slot.ok_or_else(|| format!("{text:?} is no number of a subnet: write it in decimal, such as \"7\""))
    }
}

/// A range of addresses, and how long the prefixes are that it is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Record", into = "Record")]
pub struct Pool {
    cidr: Prefix,
    subnet_length: u8,
}

/// As it stands in the store.
#[derive(Serialize, Deserialize)]
struct Record {
    cidr: Prefix,
    subnet_length: u8,
}

/// Why a range cannot be cut so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cidr} cannot be cut into subnets of /{subnet_length}: {rule}")]
pub struct PoolError {
    /// The range.
    pub cidr: Prefix,
    /// The length of its subnets.
    pub subnet_length: u8,
    /// The broken rule, in words a user can act on.
    pub rule: &'static str,
}

impl Pool {
    /// Validates a range that is to be cut into prefixes of `subnet_length` bits.
    ///
    /// # Errors
    /// A subnet would be larger than the range or have fewer than four addresses, there would be more than 2^24, or the
    /// range has addresses that no container can have.
    pub fn new(cidr: Prefix, subnet_length: u8) -> Result<Self, PoolError> {
        match broken_rule(cidr, subnet_length) {
            None => Ok(Self { cidr, subnet_length }),
            Some(rule) => Err(PoolError { cidr, subnet_length, rule }),
        }
    }

    /// How long the subnets of a range of this family are unless said: what others have as well.
    #[must_use]
    pub fn usual_subnet_length(cidr: Prefix) -> u8 {
        if cidr.is_ipv4() { 24 } else { 64 }
    }

    /// The range.
    #[must_use]
    pub fn cidr(&self) -> Prefix {
        self.cidr
    }

    /// How many bits of a subnet are fixed.
    #[must_use]
    pub fn subnet_length(&self) -> u8 {
        self.subnet_length
    }

    /// How many subnets it has.
    #[must_use]
    pub fn slots(&self) -> u32 {
        1 << (self.subnet_length - self.cidr.length())
    }

    /// The subnet of this number; `None` beyond the last.
    #[must_use]
    pub fn subnet(&self, slot: Slot) -> Option<Prefix> {
        if slot.0 >= self.slots() {
            return None;
        }
        // No range is all addresses, so nothing is shifted out.
        let network = match self.cidr.network() {
            IpAddr::V4(v4) => {
                let bits = slot.0 << (32 - self.subnet_length);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | bits))
            }
            IpAddr::V6(v6) => {
                let bits = u128::from(slot.0) << (128 - self.subnet_length);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | bits))
            }
        };
        Prefix::new(network, self.subnet_length)
    }

    /// The number of the subnet that an address is in; `None` outside of the range.
    #[must_use]
    pub fn slot_of(&self, address: IpAddr) -> Option<Slot> {
        if !self.cidr.contains(address) {
            return None;
        }
        let number = match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits() >> (32 - self.subnet_length)),
            IpAddr::V6(v6) => v6.to_bits() >> (128 - self.subnet_length),
        };
        // The rest is the range's own part, the same for all of its subnets.
        u32::try_from(number % u128::from(self.slots())).ok().map(Slot)
    }
}

fn broken_rule(cidr: Prefix, subnet_length: u8) -> Option<&'static str> {
    let bits: u8 = if cidr.is_ipv4() { 32 } else { 128 };
    if is_no_ones(cidr) {
        return Some(
            "it has addresses that stand for this host, this link or a group, and that no container can have",
        );
    }
    if subnet_length > bits - MIN_HOST_BITS {
        return Some(
            "a subnet has at least four addresses: it is /30 or larger of IPv4, /126 or larger of IPv6",
        );
    }
    if subnet_length < cidr.length() {
        return Some("a subnet cannot be larger than the range");
    }
    if subnet_length - cidr.length() > MAX_SLOT_BITS {
        return Some("that would be more than 16777216 subnets; take larger ones, or a smaller range");
    }
    None
}

/// Are there addresses in it that are never a single container's (RFC 6890: this network, loopback, link-local; multicast)?
fn is_no_ones(cidr: Prefix) -> bool {
    let v4 = |a, b, length| Prefix::new(Ipv4Addr::new(a, b, 0, 0).into(), length);
    let v6 = |first, length| Prefix::new(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).into(), length);
    let such = [
        v4(0, 0, 8),
        v4(127, 0, 8),
        v4(169, 254, 16),
        v4(224, 0, 4),
        v6(0, 127),
        v6(0xfe80, 10),
        v6(0xff00, 8),
    ];
    such.iter().flatten().any(|such| such.overlaps(&cidr))
}

impl TryFrom<Record> for Pool {
    type Error = PoolError;

    fn try_from(record: Record) -> Result<Self, PoolError> {
        Self::new(record.cidr, record.subnet_length)
    }
}

impl From<Pool> for Record {
    fn from(pool: Pool) -> Self {
        Self { cidr: pool.cidr, subnet_length: pool.subnet_length }
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} in /{}", self.cidr, self.subnet_length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(cidr: &str, subnet_length: u8) -> Result<Pool, PoolError> {
        Pool::new(cidr.parse().unwrap(), subnet_length)
    }

    #[test]
    fn what_cannot_be_cut_is_refused_with_the_reason() {
        for (cidr, length, said) in [
            ("10.42.0.0/16", 15, "larger than the range"),
            ("10.42.0.0/16", 31, "at least four addresses"),
            ("fd42::/48", 127, "at least four addresses"),
            ("fd42::/48", 73, "more than 16777216"),
            ("10.42.0.1", 32, "at least four addresses"),
            ("0.0.0.0/0", 24, "no container can have"),
            ("169.254.0.0/24", 28, "no container can have"),
            ("224.0.0.0/8", 24, "no container can have"),
            ("::/64", 72, "no container can have"),
            ("ff00::/32", 48, "no container can have"),
        ] {
            let error = pool(cidr, length).unwrap_err().to_string();
            assert!(error.starts_with(cidr) && error.contains(said), "{error}");
        }
        assert_eq!(pool("10.42.0.0/30", 30).unwrap().slots(), 1);
        assert_eq!(pool("fd42::/48", 72).unwrap().slots(), 1 << 24);
        assert_eq!(pool("fd42::/126", 126).unwrap().subnet(Slot(0)), Some("fd42::/126".parse().unwrap()));
    }

    #[test]
    fn a_range_that_cannot_be_cut_never_comes_out_of_json() {
        let read = |length: u8| {
            serde_json::from_str::<Pool>(&format!(r#"{{"cidr":"10.42.0.0/16","subnet_length":{length}}}"#))
        };
        assert!(read(24).is_ok() && read(15).is_err() && read(31).is_err());
    }

    proptest! {
        #[test]
        fn subnets_lie_in_the_range_side_by_side(address: IpAddr, length in 0..=126_u8, more in 0..=24_u8, slot: u32) {
            let Some(Ok(pool)) = Prefix::new(address, length).map(|cidr| Pool::new(cidr, length.saturating_add(more))) else {
                return Ok(());
            };
            let slot = slot % pool.slots();
            let subnet = pool.subnet(Slot(slot)).unwrap();
            prop_assert_eq!(subnet.length(), pool.subnet_length());
            prop_assert!(pool.cidr().contains(subnet.network()));
            prop_assert_eq!(pool.slot_of(subnet.network()), Some(Slot(slot)));
            prop_assert_eq!(pool.slot_of(subnet.nth(3).unwrap()), Some(Slot(slot)));
            prop_assert_eq!(pool.subnet(Slot(pool.slots())), None);
            match pool.subnet(Slot(slot + 1)) {
                Some(next) => prop_assert!(subnet < next && !subnet.overlaps(&next)),
                None => prop_assert_eq!(slot + 1, pool.slots()),
            }
        }

        #[test]
        fn a_slot_has_one_spelling(slot: u32, text in "[+0-9 ]{0,11}") {
            prop_assert_eq!(slot.to_string().parse::<Slot>(), Ok(Slot(slot)));
            if let Ok(slot) = text.parse::<Slot>() {
                prop_assert_eq!(slot.to_string(), text);
            }
        }
    }
}
