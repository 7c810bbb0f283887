//! The fleet-wide settings of a service, as they stand under `services/<service>`.

mod balance;
mod client_address;
mod external;
mod key;
mod limits;
mod mtls;
mod published;
mod read;
mod timeouts;
mod value;
mod virtual_ip;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use balance::{
    BalanceSettings, HashOn, Locality, OutlierSettings, Policy, RetrySettings, Selector, Split,
};
pub use client_address::{ClientAddress, ProxyVersion};
pub use external::{External, ExternalError};
pub use key::Key;
pub use limits::{AtLimit, LimitSettings};
pub use mtls::MtlsMode;
pub use published::{PortRange, Protocol, PublishMode, PublishedPort};
pub use timeouts::TimeoutSettings;
pub use value::{Count, Factor, Percent};
pub use virtual_ip::VirtualIp;

/// The settings that an operator names, a group a file.
const GROUPS: &[&[Key]] =
    &[balance::KEYS, limits::KEYS, client_address::KEYS, timeouts::KEYS, external::KEYS, mtls::KEYS];

/// What holds for a service on every node. Durable: it outlives every agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceSettings {
    /// Ports that every node listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPort>,
    /// How connections are shared out among the endpoints.
    #[serde(default, skip_serializing_if = "BalanceSettings::is_default")]
    pub balance: BalanceSettings,
    /// How much endpoints and clients may take.
    #[serde(default, skip_serializing_if = "LimitSettings::is_default")]
    pub limits: LimitSettings,
    /// How endpoints learn who the client is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<ClientAddress>,
    /// How long its connections may take, and be quiet.
    #[serde(default, skip_serializing_if = "TimeoutSettings::is_default")]
    pub timeouts: TimeoutSettings,
    /// Whether it gets a virtual address.
    #[serde(default, skip_serializing_if = "VirtualIp::is_default")]
    pub vip: VirtualIp,
    /// Which name outside the mesh it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
    /// How its instances on other nodes are reached, where that is not what the nodes say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsMode>,
    /// What a newer agent wrote and this one does not know: kept, so that a change made here does not lose it.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl ServiceSettings {
    /// Has anybody set one of those that an operator names?
    #[must_use]
    pub fn is_any_set(&self) -> bool {
        Key::all().any(|key| key.get(self).is_some())
    }

    /// Does it get a virtual address where a node has ranges? What is outside the mesh has its own.
    #[must_use]
    pub fn wants_vip(&self) -> bool {
        self.vip == VirtualIp::On && self.external.is_none()
    }

    /// The same with every default filled in: what holds.
    #[must_use]
    pub fn effective(&self) -> Self {
        let mut settings = self.clone();
        for key in Key::all().filter(|key| !key.default.is_empty()) {
            if key.get(&settings).is_none() {
                // That a default can be set is a test of `key`.
                let _ = key.set(&mut settings, key.default);
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_what_a_newer_agent_wrote() {
        let text = r#"{"published":[{"port":8080}],"colour":"red","balance":{"taste":{"sweet":true}}}"#;
        let settings: ServiceSettings = serde_json::from_str(text).unwrap();
        let again = serde_json::to_string(&settings).unwrap();
        assert!(again.contains("red") && again.contains("sweet"), "{again}");
    }
}
