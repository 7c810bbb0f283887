//! The vocabulary of the whole program: what a service, an instance, a node are, as they stand in the store.
//!
//! The writer owns a record's form, so it lives in the lowest crate. Readers accept unknown fields: agents of
//! different versions share one store. Imports of ours
//! the leaf `period` alone.

mod address;
mod fingerprint;
mod health;
mod instance;
mod name;
mod network;
mod node;
mod prefix;
mod rules;
mod settings;
mod token_id;
mod unix_path;
mod vip;

pub use address::{Address, ListensOn};
pub use fingerprint::{Fingerprint, FingerprintError};
pub use health::Health;
pub use instance::{Instance, Weight};
pub use name::{
    InstanceId, NameError, NetworkName, NodeName, PortName, Region, RuleName, ServiceName, Tag, Zone,
};
pub use network::{
    Cipher, Mac, Mtu, Network, NodeKey, Pool, PoolError, PoolsError, PublicKey, Slot, Subnet, Transport, Vni,
};
pub use node::Node;
pub use prefix::Prefix;
pub use rules::{
    Effect, LabelSelector, MAX_RULES, Rule, RuleRecord, RuleSet, RulesError, SelectorError, ServiceSelector,
};
pub use settings::{
    AtLimit, BalanceSettings, ClientAddress, Count, External, ExternalError, Factor, HashOn,
    Key as SettingKey, LimitSettings, Locality, MtlsMode, OutlierSettings, Percent, Policy, PortRange,
    Protocol, ProxyVersion, PublishMode, PublishedPort, RetrySettings, Selector, ServiceSettings, Split,
    TimeoutSettings, VirtualIp,
};
pub use token_id::{TokenId, TokenIdError};
pub use unix_path::{UnixPath, UnixPathError};
pub use vip::VipClaim;
