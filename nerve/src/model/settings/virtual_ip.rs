//! Whether a service gets a virtual address.

use serde::{Deserialize, Serialize};

/// Does the service get an address of the ranges that nodes are configured with? Written as `true` or `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub enum VirtualIp {
    /// Where a node has ranges.
    #[default]
    On,
    /// Never: its name is answered with its endpoints.
    Off,
}

impl VirtualIp {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<bool> for VirtualIp {
    fn from(on: bool) -> Self {
        if on { Self::On } else { Self::Off }
    }
}

impl From<VirtualIp> for bool {
    fn from(vip: VirtualIp) -> Self {
        vip == VirtualIp::On
    }
}
