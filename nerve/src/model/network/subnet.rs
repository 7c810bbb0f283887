//! Which node holds a subnet of a network, as it stands under `subnets/<network>/<slot>`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::NodeKey;
use crate::model::{NodeName, Prefix};

/// The address of a device on a link (IEEE 802: EUI-48).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no MAC address: write it as 02:00:5e:10:00:01");
        let (mut bytes, mut parts) = ([0; 6], text.split(':'));
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(wrong)?;
        }
        if parts.next().is_none() { Ok(Self(bytes)) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// Says which node holds a subnet. Leased, for longer than an agent takes to be restarted; written by compare-and-swap only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The node.
    pub node: NodeName,
    /// The address of the node in the network beneath, where other nodes send the packets.
    pub address: IpAddr,
    /// The address of the node's VXLAN device.
    pub mac: Mac,
    /// Containers of the node are attached to the network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_use: bool,
    /// What its containers answer goes back by the node that the question came from, whoever asked: that node may pass
    /// clients' own addresses on to them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub returns: bool,
    /// The node's other addresses: a client that has one is that node itself.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub own: BTreeSet<IpAddr>,
    /// The range of the link that `address` is on, of a network whose nodes reach each other without a tunnel there: those that
    /// say the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Prefix>,
    /// Of an encrypted network: the keys that the node receives with, the oldest first of each cipher.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "super::key::known")]
    pub keys: Vec<NodeKey>,
    /// What a newer agent wrote and this one does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl Subnet {
    /// What a node says that holds a subnet, and has no containers on it yet.
    #[must_use]
    pub fn new(node: NodeName, address: IpAddr, mac: Mac) -> Self {
        Self {
            node,
            address,
            mac,
            in_use: false,
            returns: false,
            own: BTreeSet::new(),
            link: None,
            keys: Vec::new(),
            unknown: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_reads_as_it_was_written_and_keeps_what_a_newer_agent_wrote() {
        let text = r#"{"node":"a","address":"192.0.2.1","mac":"02:ab:00:00:00:01","link":"192.0.2.0/24","port":8472}"#;
        let subnet: Subnet = serde_json::from_str(text).unwrap();
        assert_eq!(subnet.mac, Mac([2, 0xab, 0, 0, 0, 1]));
        assert_eq!(serde_json::to_string(&subnet).unwrap(), text);
    }

    #[test]
    fn what_is_no_mac_address_is_refused() {
        for bad in [
            "",
            "02:ab:00:00:00",
            "02:ab:00:00:00:01:02",
            "2:ab:0:0:0:1",
            "02-ab-00-00-00-01",
            "+2:ab:00:00:00:01",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_mac_address_reads_as_it_prints(bytes: [u8; 6]) {
            let text = Mac(bytes).to_string();
            prop_assert_eq!(text.parse::<Mac>(), Ok(Mac(bytes)));
            prop_assert_eq!(text.to_uppercase().parse::<Mac>(), Ok(Mac(bytes)));
        }
    }
}
