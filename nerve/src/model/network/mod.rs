//! An overlay network, as it stands under `networks/<network>`, and the subnets of it that nodes hold.

mod key;
mod pool;
mod subnet;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{NetworkName, Prefix};

pub use key::{Cipher, NodeKey, PublicKey};
pub use pool::{Pool, PoolError, Slot};
pub use subnet::{Mac, Subnet};

/// The number that the packets of a network carry between nodes (RFC 7348, VXLAN Network Identifier): 1 to 16 777 215.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The largest: it has 24 bits.
    pub const MAX: Self = Self(0xff_ffff);

    /// This number, if it is one.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (1..=Self::MAX.0).contains(&number).then_some(Self(number))
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        Self::new(number).ok_or_else(|| format!("{number} is no VNI: it is a number from 1 to {}", Self::MAX))
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vni {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse::<u32>().ok().and_then(Self::new);
        number.ok_or_else(|| format!("{text:?} is no VNI: it is a number from 1 to {}", Self::MAX))
    }
}

/// The largest packet of a network, in bytes: 1280 (RFC 8200 section 5) to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Mtu(u16);

impl Mtu {
    /// The smallest: what every link of an IPv6 network carries.
    pub const MIN: Self = Self(1280);

    /// This many bytes, if that is enough.
    #[must_use]
    pub fn new(bytes: u16) -> Option<Self> {
        (bytes >= Self::MIN.0).then_some(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Mtu {
    type Error = String;

    fn try_from(bytes: u16) -> Result<Self, String> {
        Self::new(bytes).ok_or_else(|| format!("{bytes} is no MTU of a network: it is from 1280 to 65535"))
    }
}

impl From<Mtu> for u16 {
    fn from(mtu: Mtu) -> Self {
        mtu.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = text.parse::<u16>().ok().and_then(Self::new);
        bytes.ok_or_else(|| format!("{text:?} is no MTU of a network: it is from 1280 to 65535"))
    }
}

/// How the packets of a network travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Transport {
    /// In tunnels (VXLAN).
    #[default]
    Tunnel,
    /// As they are between nodes on one link, in tunnels elsewhere.
    Direct,
    /// In tunnels that the kernel encrypts, and in no other way.
    Encrypted,
}

/// What holds for an overlay network on every node. Durable: it outlives every agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Record", into = "Record")]
pub struct Network {
    /// What its packets carry between nodes; no other network has it.
    pub vni: Vni,
    /// The ranges of its addresses: one, or one of each family.
    pub pools: Vec<Pool>,
    /// The largest packet of its containers; made of the underlay's unless set.
    pub mtu: Option<Mtu>,
    /// Networks whose containers may reach this one's, and be reached by them. One of the two has to name the other.
    pub reaches: BTreeSet<NetworkName>,
    /// How its packets travel between nodes.
    pub transport: Transport,
    /// What a newer agent wrote and this one does not know.
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// As it stands in the store. The ranges of an encrypted network have a key of their own: an agent of a version that knows of no
/// encryption finds a network without ranges, which it cannot read, and so takes no part instead of sending in the clear.
#[derive(Serialize, Deserialize)]
struct Record {
    vni: Vni,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pools: Vec<Pool>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    encrypted_pools: Vec<Pool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<Mtu>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    reaches: BTreeSet<NetworkName>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    direct: bool,
    #[serde(flatten)]
    unknown: BTreeMap<String, serde_json::Value>,
}

impl TryFrom<Record> for Network {
    type Error = String;

    fn try_from(record: Record) -> Result<Self, String> {
        let Record { vni, pools, encrypted_pools, mtu, reaches, direct, unknown } = record;
        let (pools, transport) = match (pools.is_empty(), encrypted_pools.is_empty(), direct) {
            (true, false, false) => (encrypted_pools, Transport::Encrypted),
            (_, true, true) => (pools, Transport::Direct),
            (_, true, false) => (pools, Transport::Tunnel),
            (_, false, _) => {
                return Err("an encrypted network has no other ranges, and is not direct".to_owned());
            }
        };
        Self::check_pools(&pools).map_err(|error| error.to_string())?;
        Ok(Self { vni, pools, mtu, reaches, transport, unknown })
    }
}

impl From<Network> for Record {
    fn from(network: Network) -> Self {
        let Network { vni, pools, mtu, reaches, transport, unknown } = network;
        let (pools, encrypted_pools) = match transport {
            Transport::Encrypted => (Vec::new(), pools),
            Transport::Tunnel | Transport::Direct => (pools, Vec::new()),
        };
        let direct = transport == Transport::Direct;
        Self { vni, pools, encrypted_pools, mtu, reaches, direct, unknown }
    }
}

/// Why ranges are not those of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolsError {
    /// There is none.
    #[error("a network has a range of addresses; give it one, such as 10.42.0.0/16")]
    None,
    /// Two are of one family.
    #[error("a network has one range of each family; {0} and {1} are of the same")]
    SameFamily(Prefix, Prefix),
}

impl Network {
    /// Can these be the ranges of a network?
    ///
    /// # Errors
    /// There is none, or two of one family.
    pub fn check_pools(pools: &[Pool]) -> Result<(), PoolsError> {
        let of_family = |v4: bool| pools.iter().map(Pool::cidr).filter(move |cidr| cidr.is_ipv4() == v4);
        for v4 in [true, false] {
            let mut of_family = of_family(v4);
            if let (Some(one), Some(other)) = (of_family.next(), of_family.next()) {
                return Err(PoolsError::SameFamily(one, other));
            }
        }
        if pools.is_empty() { Err(PoolsError::None) } else { Ok(()) }
    }

    /// Do its packets leave a node encrypted or not at all?
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.transport == Transport::Encrypted
    }

    /// How many nodes can take part: as many as there are subnets in the range that has the fewest.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.pools.iter().map(Pool::slots).min().unwrap_or_default()
    }

    /// The subnets of the node that holds this slot: one of each range; none beyond the last slot.
    #[must_use]
    pub fn subnets(&self, slot: Slot) -> Vec<Prefix> {
        if slot.0 >= self.slots() {
            return Vec::new();
        }
        self.pools.iter().filter_map(|pool| pool.subnet(slot)).collect()
    }

    /// The slot whose subnet an address is in; `None` for an address of no subnet of this network.
    #[must_use]
    pub fn slot_of(&self, address: IpAddr) -> Option<Slot> {
        let slot = self.pools.iter().find_map(|pool| pool.slot_of(address))?;
        (slot.0 < self.slots()).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = r#"{"vni":4096,"pools":[{"cidr":"10.42.0.0/16","subnet_length":24},{"cidr":"fd42::/48","subnet_length":64}]}"#;

    fn read(text: &str) -> Result<Network, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn one_slot_is_one_subnet_of_each_range_and_the_smaller_range_says_how_many() {
        let network = read(BOTH).unwrap();
        assert_eq!((network.pools[1].slots(), network.slots()), (65_536, 256));
        let of = |slot| network.subnets(Slot(slot)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(255), ["10.42.255.0/24", "fd42:0:0:ff::/64"]);
        assert_eq!(of(256), [""; 0]);
    }

    #[test]
    fn a_record_reads_as_it_was_written_and_keeps_what_a_newer_agent_wrote() {
        assert_eq!(serde_json::to_string(&read(BOTH).unwrap()).unwrap(), BOTH);
        let text = r#"{"vni":1,"pools":[{"cidr":"fd42::/48","subnet_length":64}],"mtu":1280,"reaches":["red"],"direct":true,"encrypt":{"by":"wireguard"}}"#;
        assert_eq!(serde_json::to_string(&read(text).unwrap()).unwrap(), text);
    }

    #[test]
    fn an_agent_that_knows_no_encryption_cannot_read_an_encrypted_network() {
        #[derive(Deserialize)]
        struct Before {
            #[expect(dead_code, reason = "it is only asked whether there is one")]
            pools: Vec<Pool>,
        }
        let network = Network { transport: Transport::Encrypted, ..read(BOTH).unwrap() };
        let text = serde_json::to_string(&network).unwrap();
        assert!(serde_json::from_str::<Before>(BOTH).is_ok());
        assert!(serde_json::from_str::<Before>(&text).is_err(), "{text}");
        assert_eq!(read(&text).unwrap(), network);
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_reason() {
        let pool = r#"{"cidr":"10.42.0.0/16","subnet_length":24}"#;
        let other = r#"{"cidr":"10.43.0.0/16","subnet_length":24}"#;
        for (text, said) in [
            (r#"{"vni":1,"pools":[]}"#.to_owned(), "a network has a range"),
            (format!(r#"{{"vni":1,"pools":[{pool},{other}]}}"#), "10.42.0.0/16 and 10.43.0.0/16"),
            (format!(r#"{{"vni":1,"pools":[{pool}],"encrypted_pools":[{pool}]}}"#), "no other ranges"),
            (format!(r#"{{"vni":1,"encrypted_pools":[{pool}],"direct":true}}"#), "is not direct"),
            (format!(r#"{{"vni":0,"pools":[{pool}]}}"#), "from 1 to 16777215"),
            (format!(r#"{{"vni":16777216,"pools":[{pool}]}}"#), "from 1 to 16777215"),
            (format!(r#"{{"vni":1,"pools":[{pool}],"mtu":1279}}"#), "from 1280 to 65535"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_vni_and_an_mtu_read_as_they_print() {
        for text in ["1", "4096", "16777215"] {
            assert_eq!(text.parse::<Vni>().unwrap().to_string(), text);
        }
        for text in ["1280", "65535"] {
            assert_eq!(text.parse::<Mtu>().unwrap().to_string(), text);
        }
        assert!(["0", "16777216", "-1", "x"].iter().all(|text| text.parse::<Vni>().is_err()));
        assert!(["1279", "65536", "x"].iter().all(|text| text.parse::<Mtu>().is_err()));
    }
}
