//! The fleet-wide settings of a service, as they stand under `services/<service>`.

mod client_address;
mod published;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use client_address::{ClientAddress, ProxyVersion};
pub use published::{Protocol, PublishedPort};

/// What holds for a service on every node. Durable: it outlives every agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceSettings {
    /// Ports that every node listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPort>,
    /// What a newer agent wrote and this one does not know: kept, so that a change made here does not lose it.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_what_a_newer_agent_wrote() {
        let text = r#"{"published":[{"port":8080}],"policy":"maglev"}"#;
        let settings: ServiceSettings = serde_json::from_str(text).unwrap();
        let again = serde_json::to_value(&settings).unwrap();
        assert_eq!(again["policy"], "maglev");
    }
}
