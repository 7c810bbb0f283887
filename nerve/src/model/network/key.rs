//! Public keys that nodes have for encrypted networks, as they stand in the records of their subnets.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};

/// More than a node has at a time; whatever else a record says is not looked at.
const MOST: usize = 8;

/// What encrypts packets between two nodes. The first is taken where both have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cipher {
    /// WireGuard in the kernel.
    WireGuard,
    /// IPsec: Encapsulating Security Payload (RFC 4303) with AES-GCM (RFC 4106).
    Esp,
}

impl Cipher {
    /// All of them, the best first.
    pub const ALL: [Self; 2] = [Self::WireGuard, Self::Esp];
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WireGuard => "wireguard",
            Self::Esp => "esp",
        })
    }
}

/// The public half of a key pair on Curve25519 (RFC 7748). In text base64, as WireGuard's tools have it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| format!("{text:?} is no public key: it is 32 bytes in base64"))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// A key that a node receives with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeKey {
    /// What for.
    pub cipher: Cipher,
    /// Its public half.
    pub key: PublicKey,
    /// The UDP port where packets for it go, by WireGuard; 0: none, by ESP, which has no ports.
    #[serde(default, skip_serializing_if = "is_none")]
    pub port: u16,
    /// When it was made, in seconds since 1970 by its node's clock.
    pub since: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_none(port: &u16) -> bool {
    *port == 0
}

/// Keys that cannot be read, as of a newer agent's ciphers, are left out.
pub(super) fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NodeKey>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|key| serde_json::from_value(key).ok()).take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Subnet;

    #[test]
    fn a_key_reads_as_it_prints_and_has_32_bytes() {
        let key = PublicKey([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        for wrong in ["", "AAAA", &STANDARD.encode([7; 33]), "!"] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_newer_agent_encrypts_with_is_left_out_and_the_rest_bounded() {
        let one =
            format!(r#"{{"cipher":"wireguard","key":"{}","port":51882,"since":7}}"#, PublicKey([1; 32]));
        let other = format!(r#"{{"cipher":"quantum","key":"{}"}}"#, PublicKey([2; 32]));
        let with = |keys: &str| -> Subnet {
            let text =
                format!(r#"{{"node":"a","address":"192.0.2.1","mac":"02:ab:00:00:00:01","keys":[{keys}]}}"#);
            serde_json::from_str(&text).unwrap()
        };
        let subnet = with(&format!("{other},{one},7"));
        assert_eq!(serde_json::to_string(&subnet.keys).unwrap(), format!("[{one}]"));
        assert_eq!(with(&vec![one; 100].join(",")).keys.len(), MOST);
    }
}
