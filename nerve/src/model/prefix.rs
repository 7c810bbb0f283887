//! An IP prefix (`10.96.0.0/16`): a range of addresses as routes and settings name it. Host bits are zero.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A range of addresses that share their first bits. A single address is the prefix of its whole length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    network: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefix of `length` bits that `address` lies in; `None` if an address of its family has fewer bits.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let network = match address {
            IpAddr::V4(v4) if length <= 32 => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask32(length))),
            IpAddr::V6(v6) if length <= 128 => {
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask128(length)))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { network, length })
    }

    /// The first address.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// How many bits are fixed.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Is it of IPv4?
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    /// Does the address lie in it?
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.length).is_some_and(|of_address| of_address == *self)
    }

    /// Is there an address that lies in both? Then one of them lies within the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.length <= other.length { self.contains(other.network) } else { other.contains(self.network) }
    }

    /// How many addresses lie in it; as many as can be counted where there are more.
    #[must_use]
    pub fn size(&self) -> u64 {
        let bits = if self.is_ipv4() { 32 } else { 128 } - u32::from(self.length);
        1_u64.checked_shl(bits).unwrap_or(u64::MAX)
    }

    /// The address at a place, counted from the first; `None` beyond the last.
    #[must_use]
    pub fn nth(&self, place: u64) -> Option<IpAddr> {
        if place >= self.size() {
            return None;
        }
        Some(match self.network {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | u32::try_from(place).ok()?)),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | u128::from(place))),
        })
    }
}

/// `length` ones from the left.
fn mask32(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn mask128(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self { network: address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::from(self.network) {
            return fmt::Display::fmt(&self.network, f);
        }
        f.pad(&format!("{}/{}", self.network, self.length))
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Reads `10.96.0.0/16`, `fd00::/112`, and a single address. Host bits must be zero: they are a slip more often
    /// than not.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no range of addresses: write ADDRESS/LENGTH such as \"10.96.0.0/16\", or an address"
            )
        };
        let Some((address, length)) = text.split_once('/') else {
            return text.parse().map(IpAddr::into).map_err(|_| wrong());
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length = length.parse().map_err(|_| wrong())?;
        let prefix = Self::new(address, length).ok_or_else(wrong)?;
        if prefix.network != address {
            return Err(format!("{text:?} has bits set after the first {length}: the range is {prefix}"));
        }
        Ok(prefix)
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_read_as_they_print() {
        for text in ["10.96.0.0/16", "192.0.2.1", "fd00::/112", "::1", "0.0.0.0/0", "::/0"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        for bad in ["", "10.96.0.1/16", "10.96.0.0/33", "fd00::/129", "x", "10.96.0.0/"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_whole_of_a_family_can_be_counted() {
        assert_eq!(prefix("0.0.0.0/0").size(), 1 << 32);
        assert_eq!(prefix("::/0").size(), u64::MAX);
        assert_eq!(prefix("192.0.2.4/30").nth(3), Some("192.0.2.7".parse().unwrap()));
        assert_eq!(prefix("192.0.2.4/30").nth(4), None);
    }

    proptest! {
        #[test]
        fn what_is_counted_lies_within(address: IpAddr, length in 0..=128_u8, place: u64) {
            let Some(prefix) = Prefix::new(address, length) else { return Ok(()) };
            prop_assert!(prefix.contains(address));
            prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
            if let Some(nth) = prefix.nth(place % prefix.size()) {
                prop_assert!(prefix.contains(nth) && prefix.overlaps(&nth.into()) && Prefix::from(nth).overlaps(&prefix));
            }
        }

        #[test]
        fn two_overlap_if_one_holds_the_other(a: IpAddr, b: IpAddr, la in 0..=32_u8, lb in 0..=32_u8) {
            let (Some(a), Some(b)) = (Prefix::new(a, la), Prefix::new(b, lb)) else { return Ok(()) };
            prop_assert_eq!(a.overlaps(&b), a.contains(b.network()) || b.contains(a.network()));
        }
    }
}
