//! A claim on a virtual address, as it stands under `vips/<ip>`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ServiceName;

/// Says which service has a virtual address. Durable; written by compare-and-swap only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipClaim {
    /// The service.
    pub service: ServiceName,
    /// What a newer agent wrote and this one does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl VipClaim {
    /// A claim for this service.
    #[must_use]
    pub fn new(service: ServiceName) -> Self {
        Self { service, unknown: BTreeMap::new() }
    }
}
