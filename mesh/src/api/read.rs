//! Answers to reading requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nerve::model::{
    Effect, Health, InstanceId, NodeName, PortName, PublishedPort, Region, ServiceName, Tag, UnixPath,
    Weight, Zone,
};
use serde::{Deserialize, Serialize};

use super::{CheckInfo, RuleInfo, WhyRules};

/// The catalog is the last known good: the store does not confirm it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    /// For how many seconds, as of the answer.
    pub for_seconds: u64,
    /// Why, as the store's error says.
    pub reason: String,
}

/// Every service that the catalog has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Set when the list may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// In the order of their names.
    pub services: Vec<ServiceSummary>,
}

/// One line about a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Its name.
    pub name: ServiceName,
    /// Endpoints that get traffic.
    pub serving: usize,
    /// Endpoints there are.
    pub endpoints: usize,
    /// Endpoints that the store no longer confirms.
    #[serde(default)]
    pub unconfirmed: usize,
    /// Its virtual addresses, as the node that answers can use them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// Ports that nodes listen on for it.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
}

/// The endpoints of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Set when the list may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// Which service.
    pub service: ServiceName,
    /// Its virtual addresses, as the node that answers can use them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// Ports that nodes listen on for it.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
    /// In the order of their ids.
    pub endpoints: Vec<EndpointInfo>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// Its id.
    pub id: InstanceId,
    /// Where it runs.
    pub node: NodeName,
    /// Its main address; port 0 where it has no port, but a unix socket alone.
    pub address: SocketAddr,
    /// The unix socket that its own node reaches it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<UnixPath>,
    /// Its further ports by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// As its checks see it.
    pub health: Health,
    /// Does it get traffic?
    pub serving: bool,
    /// The word for why it gets none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<String>,
    /// What the deciding check saw.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub health_reason: String,
    /// The store no longer confirms it.
    #[serde(default)]
    pub unconfirmed: bool,
    /// The watcher that found it; none: the store has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watcher: Option<String>,
    /// Its share of the traffic.
    pub weight: Weight,
    /// It gets traffic only while none of the others can be had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
    /// Where its node stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// Where in the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// Its marks.
    #[serde(default)]
    pub tags: BTreeSet<Tag>,
    /// Its data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Why a service's endpoints get traffic from this node, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// Set when the list may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// Which service.
    pub service: ServiceName,
    /// The node whose balancer was asked.
    pub seen_from: NodeName,
    /// How that balancer stands; none where the node has no listener for the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<WhyBalance>,
    /// Its virtual addresses, as the node that answers can use them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// Who may be connected to it; none where nobody has said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<WhyRules>,
    /// In the order of their ids.
    pub endpoints: Vec<WhyEndpoint>,
    /// What this node listens on for it.
    pub listeners: Vec<WhyListener>,
}

/// Every rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleList {
    /// Set when the list may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// What holds where no rule applies.
    pub default: Effect,
    /// In the order of their names.
    pub rules: Vec<RuleInfo>,
}

/// How a node's balancer for a service stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyBalance {
    /// The balance policy.
    pub policy: String,
    /// So few endpoints are available that all are balanced over, the unwell too.
    pub panic: bool,
    /// Client connections that are open.
    pub connections: u64,
    /// Connections that wait for a place.
    pub queue: u64,
    /// Endpoints that the catalog gives traffic to.
    pub serving: u64,
    /// Of these, those that are ejected.
    pub ejected: u64,
}

/// What a node's balancer makes of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WhyPick {
    /// Its share of new connections by weight, in thousandths.
    pub share_permille: u32,
    /// How much of its weight counts while it is new, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_percent: Option<u8>,
    /// The word for why it is ejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected: Option<String>,
    /// For how long still; 0: the next connection tries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected_for_ms: Option<u64>,
    /// It has as many connections as it may have.
    #[serde(default)]
    pub at_limit: bool,
    /// The group of the split that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// It is in another zone of the region, and the own one is preferred.
    #[serde(default)]
    pub other_zone: bool,
    /// It is in another region, and what is nearer is preferred.
    #[serde(default)]
    pub other_region: bool,
    /// It gets traffic only while none of the others can be had.
    #[serde(default)]
    pub backup: bool,
    /// It is not in the node's subset.
    #[serde(default)]
    pub outside_subset: bool,
    /// Its latency as peak EWMA, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
}

/// Every setting of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Set when they may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// Which service.
    pub service: ServiceName,
    /// What is set is set by the node's own configuration, and for that node: nobody has set any for the fleet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_node: bool,
    /// In the order in which they are documented.
    pub settings: Vec<Setting>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// What holds, as it would be typed; empty: nothing, it is off.
    pub value: String,
    /// Nobody set it.
    pub default: bool,
    /// What it does.
    pub meaning: String,
    /// What it can be.
    pub expects: String,
}

/// One endpoint as this node's balancer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyEndpoint {
    /// As registered.
    #[serde(flatten)]
    pub endpoint: EndpointInfo,
    /// Connections from here that are open, over all listeners of this node.
    #[serde(default)]
    pub in_flight: u64,
    /// Connections from here so far.
    #[serde(default)]
    pub connections: u64,
    /// Of these, those that could not be established.
    #[serde(default)]
    pub connect_failures: u64,
    /// Its checks, where it runs on this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckInfo>,
    /// What the balancer makes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pick: Option<WhyPick>,
    /// Where it sees the node's address although the service asks for the clients'.
    #[serde(flatten)]
    pub shown: WhyPlain,
}

/// Where an endpoint sees the node's address although its service asks for the clients'; empty where nobody asks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WhyPlain {
    /// Why, whoever the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<String>,
    /// The word for that, as metrics have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain_reason: Option<String>,
    /// It sees the addresses of clients, but of these it sees the node's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_for: Vec<PlainFor>,
}

/// Clients whose address an endpoint cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlainFor {
    /// The word for why, as metrics have it.
    pub reason: String,
    /// Who they are, in words that follow "clients".
    pub clients: String,
}

/// One listener of this node for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyListener {
    /// `published`, `localhost` or `virtual`.
    pub kind: String,
    /// Where it listens, or would.
    pub address: String,
    /// Its transport: `tcp`, `udp`, or `unix`.
    pub protocol: String,
    /// The port of the instances that it leads to, by name or number; their main port where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PortName>,
    /// It leads to the instances of this node only.
    #[serde(default)]
    pub this_node_only: bool,
    /// Is it open?
    pub listening: bool,
    /// Somebody else serves it on this node, who is to: no fault.
    #[serde(default)]
    pub held: bool,
    /// Why it is not, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Every node that the catalog has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// Set when the list may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// The node that answers.
    pub this: NodeName,
    /// In the order of their names.
    pub nodes: Vec<NodeInfo>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: NodeName,
    /// Where other nodes reach it.
    pub address: IpAddr,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// Where in the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// The version of its agent.
    pub version: String,
    /// Its instances get no new traffic.
    #[serde(default)]
    pub draining: bool,
    /// Instances that it registered and that get traffic.
    pub serving: usize,
    /// Instances that it registered.
    pub instances: usize,
}

/// What this node's DNS would answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// The name as it was looked up, fully qualified.
    pub name: String,
    /// The record type asked for.
    pub record_type: String,
    /// `NOERROR`, `NXDOMAIN`, …; empty where the question is forwarded.
    pub code: String,
    /// The records, as in a zone file.
    pub answers: Vec<String>,
    /// How the answer comes about, a sentence each.
    pub why: Vec<String>,
}

/// What runs on this node according to its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalInstances {
    /// In the order of service and id.
    pub instances: Vec<LocalInstance>,
}

/// One instance that this node's agent checks and registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalInstance {
    /// Its service.
    pub service: ServiceName,
    /// Its id.
    pub id: InstanceId,
    /// Its main address; port 0 where it has no port, but a unix socket alone.
    pub address: SocketAddr,
    /// The unix socket that it listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<UnixPath>,
    /// Where its definition comes from: a file and line, or the run-time registrations.
    pub source: String,
    /// As its checks see it.
    pub health: Health,
    /// What the deciding check saw.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub health_reason: String,
    /// Each of its checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckInfo>,
    /// Does the store hold it?
    pub registered: bool,
    /// How its record stands in the store, in words.
    pub registration: String,
    /// Is it drained?
    #[serde(default)]
    pub draining: bool,
}

/// How the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: NodeName,
    /// The address that other nodes reach it by.
    pub address: IpAddr,
    /// The agent's version.
    pub version: String,
    /// Where in its life it is: `starting`, `running`, `draining`, …
    pub phase: String,
    /// For how many seconds it runs.
    pub uptime_seconds: u64,
    /// The agent that it took over from when it started, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_over: Option<TookOver>,
    /// Is nothing awaited?
    pub ready: bool,
    /// What is awaited.
    #[serde(default)]
    pub awaited: Vec<String>,
    /// The store's URL without credentials.
    pub store: String,
    /// `awaiting`, `live` or `stale`.
    pub catalog: String,
    /// Set when the catalog is the last known good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// Services in the catalog.
    pub services: usize,
    /// What runs on this node, as its agent has it.
    #[serde(default)]
    pub instances: Vec<LocalInstance>,
    /// Everything that fails at the moment.
    pub problems: Vec<Problem>,
}

/// The agent that another one took over from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TookOver {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When, in seconds since 1970.
    pub at_unix_seconds: u64,
}

/// Something that fails, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The room that it is in: `store`, `ingress`, `config`, …
    pub what: String,
    /// What fails, why, and what to do.
    pub message: String,
}

/// What the agent waits for before it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// Is nothing awaited?
    pub ready: bool,
    /// The names of what is, the longest awaited first.
    pub awaited: Vec<String>,
}
