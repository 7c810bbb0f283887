//! What `/v1/plexus/…` says and is told: the JSON between the agent's admin address and its clients.
//!
//! Plain data shared by `admin`, which writes it, and `cli`, which reads it, so that neither imports the other. Words
//! from closed lists (a reason, a phase) travel as text, and unknown fields are ignored: an older command line reads a
//! newer agent. Imports the model only, and never decides anything.

mod attach;
mod check;
mod consul;
mod consul_reads;
mod dns;
mod doctor;
mod identity;
mod mtls;
mod names;
mod network;
mod read;
mod rules;
mod upstreams;
mod watchers;
mod write;

use std::time::Duration;

pub use attach::{
    AttachRequest, Attachable, Attachment, AttachmentCheck, AttachmentInstance, AttachmentOwner,
    AttachmentRoute, Attachments, NewAttachment,
};
pub use check::{CheckInfo, ConsulUpdate, ProbeInfo, ReportRequest, Reported};
pub use consul::{
    ConsulAgentCheck, ConsulAgentService, ConsulCheck, ConsulMember, ConsulService, ConsulWeights, folded,
};
pub use consul_reads::{
    ConsulAddress, ConsulCatalogService, ConsulHealthCheck, ConsulHealthEntry, ConsulInstance, ConsulNode,
    ConsulNodeServiceList, ConsulNodeServices,
};
pub use dns::{DnsInfo, DnsListener, DnsOthers};
pub use doctor::{Checkup, Finding};
pub use identity::{
    AbortRequest, AwaitedNode, IdentityInfo, JoinToken, JoinTokenRequest, RevokeRequest, RevokedNode,
    RotationInfo, RotationPhase, Rotations,
};
pub use mtls::{MtlsInfo, MtlsNode, MtlsRequest};
pub use names::{TopEntry, TopList};
pub use network::{Encryption, NetworkInfo, NetworkRequest, NetworkSummary, Networks, SubnetInfo};
pub use read::{
    Awaited, EndpointInfo, Endpoints, LocalInstance, LocalInstances, NodeInfo, Nodes, PlainFor, Problem,
    Resolution, RuleList, ServiceSummary, Services, Setting, Settings, Stale, Status, TookOver, Why,
    WhyBalance, WhyEndpoint, WhyListener, WhyPick, WhyPlain,
};
pub use rules::{DefaultRequest, RuleInfo, RuleRequest, WhyRules, WhyVerdict};
pub use upstreams::{UpstreamInfo, UpstreamList};
pub use watchers::{WatcherInfo, WatcherList};
pub use write::{
    Changed, CheckRequest, DrainRequest, ErrorBody, PublishRequest, RegisterRequest, SettingsRequest,
    VipRequest,
};

/// Where the agent answers over TCP unless told otherwise, and where the command line asks that finds no socket.
pub const DEFAULT_ADDRESS: (&str, u16) = ("127.0.0.1", 7070);

/// The environment variable that says where the command line asks instead.
pub const URL_VARIABLE: &str = "PLEXUS_ADMIN";

/// The environment variable that names a file with the token to show there.
pub const TOKEN_VARIABLE: &str = "PLEXUS_TOKEN_FILE";

/// How long an agent takes for a request at most: then it says itself that it was not done. Longer than any call to the store; what is
/// attached or detached waits its turn besides, of which a node may have hundreds at once, and clients of Consul's may ask to wait for a change.
#[must_use]
pub fn within(path: &str) -> Duration {
    let is_below = |paths: &[&str]| paths.iter().any(|start| path.starts_with(start));
    if is_below(&[path::ATTACHMENTS]) {
        Duration::from_secs(60)
    } else if is_below(&[path::CONSUL_CATALOG, path::CONSUL_HEALTH]) {
        LONGEST_WAIT + LONGEST_WAIT / WAIT_SPREAD + Duration::from_secs(10)
    } else {
        Duration::from_secs(10)
    }
}

/// The longest that a client of Consul's may ask to wait for a change, as Consul has it.
pub const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// A wait may be longer by one part of so many, so that those who began together do not all end together.
pub const WAIT_SPREAD: u32 = 16;

/// The paths of the interface, spelled once.
pub mod path {
    /// `GET`: [`super::Services`].
    pub const SERVICES: &str = "/v1/plexus/services";
    /// `GET`: [`super::Endpoints`].
    pub const SERVICE: &str = "/v1/plexus/services/{service}";
    /// `PUT` a [`super::PublishRequest`]: [`super::Changed`].
    pub const PORTS: &str = "/v1/plexus/services/{service}/ports";
    /// `DELETE`: [`super::Changed`].
    pub const PORT: &str = "/v1/plexus/services/{service}/ports/{port}/{protocol}";
    /// `GET`: [`super::Settings`]; `PUT` a [`super::SettingsRequest`]: [`super::Changed`].
    pub const SETTINGS: &str = "/v1/plexus/services/{service}/settings";
    /// `PUT` a [`super::VipRequest`]: [`super::Changed`].
    pub const VIP: &str = "/v1/plexus/services/{service}/vip";
    /// `GET ?from=`: [`super::Why`].
    pub const WHY: &str = "/v1/plexus/why/{service}";
    /// `GET`: [`super::Nodes`].
    pub const NODES: &str = "/v1/plexus/nodes";
    /// `PUT` a [`super::RevokeRequest`]: [`super::Changed`].
    pub const REVOCATION: &str = "/v1/plexus/nodes/{node}/revocation";
    /// `GET`: [`super::IdentityInfo`].
    pub const IDENTITY: &str = "/v1/plexus/identity";
    /// `GET`: [`super::MtlsInfo`]; `PUT` a [`super::MtlsRequest`]: [`super::Changed`].
    pub const MTLS: &str = "/v1/plexus/mtls";
    /// `POST` a [`super::JoinTokenRequest`]: [`super::JoinToken`].
    pub const JOIN_TOKENS: &str = "/v1/plexus/identity/tokens";
    /// `GET`: [`super::Rotations`].
    pub const ROTATION: &str = "/v1/plexus/identity/rotation";
    /// `PUT` a [`super::AbortRequest`]: [`super::Changed`].
    pub const ROTATION_ABORT: &str = "/v1/plexus/identity/rotation/abort";
    /// `GET`: [`super::WatcherList`].
    pub const WATCHERS: &str = "/v1/plexus/watchers";
    /// `GET`: [`super::DnsInfo`].
    pub const DNS: &str = "/v1/plexus/dns";
    /// The servers that other names are asked of.
    pub const UPSTREAMS: &str = "/v1/plexus/upstreams";
    /// `GET`: [`super::TopList`].
    pub const DNS_TOP: &str = "/v1/plexus/dns/top";
    /// `GET`: [`super::Networks`].
    pub const NETWORKS: &str = "/v1/plexus/networks";
    /// `GET`: [`super::NetworkInfo`]; `PUT` a [`super::NetworkRequest`] and `DELETE ?force=`: [`super::Changed`].
    pub const NETWORK: &str = "/v1/plexus/networks/{network}";
    /// `GET`: [`super::RuleList`]; `POST` a [`super::RuleRequest`], and `PUT` a [`super::DefaultRequest`]: [`super::Changed`].
    pub const RULES: &str = "/v1/plexus/rules";
    /// `DELETE`: [`super::Changed`].
    pub const RULE: &str = "/v1/plexus/rules/{rule}";
    /// `GET ?name=&type=`: [`super::Resolution`].
    pub const RESOLVE: &str = "/v1/plexus/resolve";
    /// `GET`: [`super::LocalInstances`]; `POST` a [`super::RegisterRequest`]: [`super::Changed`].
    pub const INSTANCES: &str = "/v1/plexus/instances";
    /// `DELETE`: [`super::Changed`].
    pub const INSTANCE: &str = "/v1/plexus/instances/{id}";
    /// `PUT` a [`super::ReportRequest`]: [`super::Reported`].
    pub const CHECK: &str = "/v1/plexus/checks/{check}";
    /// `PUT ?note=`, or a [`super::ConsulUpdate`] where the verb is `update`: nothing, as Consul has it.
    pub const CONSUL_CHECK: &str = "/v1/agent/check/{verb}/{check}";
    /// `PUT` a [`super::ConsulCheck`]: nothing.
    pub const CONSUL_CHECK_REGISTER: &str = "/v1/agent/check/register";
    /// `PUT`: nothing.
    pub const CONSUL_CHECK_DEREGISTER: &str = "/v1/agent/check/deregister/{check}";
    /// `GET`: [`super::ConsulAgentCheck`]s by id.
    pub const CONSUL_CHECKS: &str = "/v1/agent/checks";
    /// `PUT` a [`super::ConsulService`]: nothing.
    pub const CONSUL_REGISTER: &str = "/v1/agent/service/register";
    /// `PUT`: nothing.
    pub const CONSUL_DEREGISTER: &str = "/v1/agent/service/deregister/{id}";
    /// `PUT ?enable=`: nothing.
    pub const CONSUL_MAINTENANCE: &str = "/v1/agent/service/maintenance/{id}";
    /// `GET`: [`super::ConsulAgentService`].
    pub const CONSUL_SERVICE: &str = "/v1/agent/service/{id}";
    /// `GET`: [`super::ConsulAgentService`]s by id.
    pub const CONSUL_SERVICES: &str = "/v1/agent/services";
    /// `PUT ?enable=`: nothing.
    pub const CONSUL_NODE_MAINTENANCE: &str = "/v1/agent/maintenance";
    /// `GET`: what Consul's agents say of themselves.
    pub const CONSUL_SELF: &str = "/v1/agent/self";
    /// `GET`: [`super::ConsulMember`]s.
    pub const CONSUL_MEMBERS: &str = "/v1/agent/members";
    /// `GET`: an address.
    pub const CONSUL_LEADER: &str = "/v1/status/leader";
    /// `GET`: addresses.
    pub const CONSUL_PEERS: &str = "/v1/status/peers";
    /// What is below is asked of the catalog.
    pub const CONSUL_CATALOG: &str = "/v1/catalog/";
    /// `GET`: names.
    pub const CONSUL_DATACENTERS: &str = "/v1/catalog/datacenters";
    /// `GET`: [`super::ConsulNode`]s.
    pub const CONSUL_CATALOG_NODES: &str = "/v1/catalog/nodes";
    /// `GET`: [`super::ConsulNodeServices`].
    pub const CONSUL_CATALOG_NODE: &str = "/v1/catalog/node/{node}";
    /// `GET`: [`super::ConsulNodeServiceList`].
    pub const CONSUL_CATALOG_NODE_SERVICES: &str = "/v1/catalog/node-services/{node}";
    /// `GET`: tags by service.
    pub const CONSUL_CATALOG_SERVICES: &str = "/v1/catalog/services";
    /// `GET`: [`super::ConsulCatalogService`]s.
    pub const CONSUL_CATALOG_SERVICE: &str = "/v1/catalog/service/{service}";
    /// What is below is asked of checks.
    pub const CONSUL_HEALTH: &str = "/v1/health/";
    /// `GET`: [`super::ConsulHealthEntry`]s.
    pub const CONSUL_HEALTH_SERVICE: &str = "/v1/health/service/{service}";
    /// `GET`: [`super::ConsulHealthCheck`]s of a service.
    pub const CONSUL_HEALTH_CHECKS: &str = "/v1/health/checks/{service}";
    /// `GET`: [`super::ConsulHealthCheck`]s of a node and what runs there.
    pub const CONSUL_HEALTH_NODE: &str = "/v1/health/node/{node}";
    /// `GET`: [`super::ConsulHealthCheck`]s that are so.
    pub const CONSUL_HEALTH_STATE: &str = "/v1/health/state/{state}";
    /// `PUT` a [`super::DrainRequest`]: [`super::Changed`].
    pub const DRAIN: &str = "/v1/plexus/drain";
    /// `GET`: [`super::Attachments`]; `POST` an [`super::AttachRequest`]: [`super::NewAttachment`].
    pub const ATTACHMENTS: &str = "/v1/plexus/attachments";
    /// `DELETE`: [`super::Changed`].
    pub const ATTACHMENT: &str = "/v1/plexus/attachments/{id}";
    /// `GET`: [`super::AttachmentCheck`].
    pub const ATTACHMENT_CHECK: &str = "/v1/plexus/attachments/{id}/check";
    /// `GET`: [`super::Attachable`].
    pub const ATTACHABLE: &str = "/v1/plexus/networks/{network}/attachable";
    /// `GET`: [`super::Checkup`].
    pub const DOCTOR: &str = "/v1/plexus/doctor";
    /// `GET`: [`super::Status`].
    pub const STATUS: &str = "/v1/plexus/status";
    /// `GET`: 200 for as long as the process answers.
    pub const HEALTHZ: &str = "/healthz";
    /// `GET`: 200 or 503 with [`super::Awaited`].
    pub const READYZ: &str = "/readyz";
    /// `GET`: Prometheus's text format.
    pub const METRICS: &str = "/metrics";
}
