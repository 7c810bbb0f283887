//! The tables of the configuration file: each key with its type, default and limits, in the order of the example file.
//!
//! A key is named here once; what is read, what is refused, what is printed and what the example is tested against all
//! come from it. What a room makes of them is in `rooms`.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::overlay::FastPath;
use crate::proxy::TrustedProxy;
use nerve::document::{FromValue, Mismatch, Reported, Section, Text, Value};
use nerve::model::{Network, NodeName, Pool, Prefix, Region, Zone};
use nerve::period::Period;
use nerve::store::{StoreConfig, StoreUrl};
use serde::{Serialize, Serializer};

use super::{Localhost, Machine};

/// `[node]`: who this node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Unique in the fleet.
    pub name: NodeName,
    /// Where other nodes reach this one, and the address of its instances.
    pub address: IpAddr,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// Where in the region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
}

/// `[store]`: where the fleet's records are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Store {
    /// Which backend, and where.
    #[serde(serialize_with = "as_text")]
    pub url: StoreUrl,
    /// What stands before every key.
    pub prefix: String,
    /// The user, if the store asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// A file whose first line is the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<SecretFile>,
    /// PEM: authorities that the store's certificate must come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM: our certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM: its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// How long a call may take.
    pub request_timeout: Period,
    /// How long the store remembers this node after it has fallen silent.
    pub session_ttl: Period,
}

/// A password: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// A password in a file of its own; printed as the file's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// The file.
    pub path: PathBuf,
    /// Its first line, as it was when the configuration was read.
    pub secret: Secret,
}

/// `[ingress]`: what this node listens on for the services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ingress {
    /// The addresses that published ports are opened on; none: all of this machine, IPv4 and IPv6.
    pub listen: Vec<IpAddr>,
    /// Ports and unix sockets for the programs of this machine alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub localhost: Vec<Localhost>,
}

/// `[vip]`: virtual addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vip {
    /// The ranges that services get their addresses from, the same on every node; none: no virtual addresses.
    pub range: Vec<Prefix>,
    /// How long the address of a service that is gone stays its own.
    pub release_after: Period,
}

/// `[overlay]`: networks of containers over all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overlay {
    /// Does this node take part?
    pub enabled: bool,
    /// The ranges of the network `default`, which is made where it is not there; none: only what `plexus network create` makes.
    pub default: Vec<Prefix>,
    /// The UDP port of the tunnels, the same on every node.
    pub port: NonZeroU16,
    /// The first UDP port of what encrypts networks.
    pub encryption_port: NonZeroU16,
    /// The age at which a key of encrypted networks is followed by the next one.
    pub key_lifetime: Period,
    /// How long a node that has fallen silent keeps its subnets.
    pub lease: Period,
    /// The way of packets between containers of different nodes through this host.
    pub fast_path: FastPath,
}

/// `[proxy]`: how connections are carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// Data-plane threads; 0: one a core.
    pub threads: usize,
    /// How long one endpoint may take to accept.
    pub connect_timeout: Period,
    /// How long the search for an endpoint that accepts may take for one client.
    pub connect_deadline: Period,
    /// A connection on which nothing was carried either way for so long is closed; without it, never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Period>,
    /// Connections at the same time, over all ports; without it, as many as the file limit allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<NonZeroU32>,
    /// When a silent peer is probed.
    pub keepalive: Period,
    /// Time between probes that are not answered.
    pub keepalive_interval: Period,
    /// How long what was sent may stay unacknowledged; without it, as long as the kernel sends it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_timeout: Option<Period>,
    /// Accept a client only when it has said something.
    pub defer_accept: bool,
    /// The kernel's buffer for sending, in bytes; without it, the kernel adapts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_buffer: Option<NonZeroU32>,
    /// The kernel's buffer for receiving, in bytes; without it, the kernel adapts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_buffer: Option<NonZeroU32>,
    /// Further addresses of this host to connect from, when the ports of one are used up.
    pub source_addresses: Vec<IpAddr>,
    /// Proxies in front of this one: ranges of addresses, and `unix`.
    #[serde(serialize_with = "all_as_text")]
    pub trusted_proxies: Vec<TrustedProxy>,
    /// A bit of packet marks, which with the next higher one is for answers to clients' own addresses.
    pub transparent_mark: u32,
    /// A routing table for them.
    pub transparent_table: u32,
    /// A UDP session on which nothing moved for so long has ended.
    pub udp_idle_timeout: Period,
    /// UDP sessions at the same time, over all ports; without it, a quarter of the connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_udp_sessions: Option<NonZeroU32>,
}

/// `[log]`: what is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Log {
    /// The least important level that is logged.
    pub level: LogLevel,
    /// The form.
    pub format: LogFormat,
}

/// A level, then exceptions for rooms: `info`, `warn,mesh::dns=debug`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct LogLevel(String);

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// `[drain]`: how the agent leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// How long the other nodes get to notice that the instances are gone, before anything is closed.
    pub notice: Period,
    /// How long open connections may go on.
    pub deadline: Period,
    /// How long open connections may go on in an agent that another one has taken over from.
    pub handover: Period,
}

impl Node {
    pub(super) fn read(section: &mut Section<'_>, machine: &Machine) -> Result<Self, Reported> {
        let host = machine.host_name.as_deref().unwrap_or("unknown");
        let no_name = (format!("the host name ({host}) is no node name"), "a name, such as \"a\"");
        let name = or_found(section, "name", machine.node_name(), no_name);
        let no_address = (
            "this machine has no default route to take its address from".to_owned(),
            "the address that other nodes reach this one by",
        );
        let address = or_found(section, "address", machine.address, no_address);
        let region = section.optional("region");
        let zone = section.optional("zone");
        Ok(Self { name: name?, address: address?, region, zone })
    }
}

impl Store {
    pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let url = section.required::<Text<StoreUrl>>("url");
        let file = |path: PathBuf| base.join(path);
        let prefix: Option<String> = section.optional("prefix");
        let username = section.optional("username");
        let password: Option<String> = section.optional("password");
        let password_file =
            section.optional("password_file").map(file).map(|path| password_in(section, path));
        let ca_file = section.optional("ca_file").map(file);
        let cert_file = section.optional("cert_file").map(file);
        let key_file = section.optional("key_file").map(file);
        let request_timeout = section.or("request_timeout", Period::seconds(2));
        let session_ttl = section.or_where(
            "session_ttl",
            Period::seconds(10),
            "a duration from 2s to 1h: the other nodes miss a dead one for so long",
            |ttl| (2..=3600).contains(&ttl.get().as_secs()),
        );
        if password.is_some() && password_file.is_some() {
            return Err(section.invalid("password_file", "`password` is given too", "one of them"));
        }
        if request_timeout >= session_ttl {
            return Err(section.invalid(
                "request_timeout",
                "it is not below `session_ttl`",
                "less than `session_ttl`",
            ));
        }
        let url = url?.0;
        let prefix = StoreConfig { prefix, ..StoreConfig::new(url.clone()) }
            .effective_prefix()
            .map_err(|error| section.invalid("prefix", error, ""))?;
        Ok(Self {
            url,
            prefix,
            username,
            password: password.map(Secret),
            password_file: password_file.transpose()?,
            ca_file,
            cert_file,
            key_file,
            request_timeout,
            session_ttl,
        })
    }
}

impl Ingress {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let listen = section.or("listen", Vec::new());
        let localhost = section.list("localhost", Localhost::read);
        Ok(Self { listen, localhost: localhost.into_iter().collect::<Result<_, _>>()? })
    }
}

/// What IANA has for VXLAN (RFC 7348).
const VXLAN_PORT: NonZeroU16 = NonZeroU16::new(4789).unwrap();

/// The longest prefix of a range: a service or two are not worth a route.
const SMALLEST_RANGE: (u8, u8) = (30, 126);
/// The shortest: a whole family, or a large part of it, is never free on a host.
const LARGEST_RANGE: (u8, u8) = (8, 16);

impl Vip {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let range: Vec<Prefix> = section.or("range", Vec::new());
        let release_after = section.or("release_after", Period::seconds(3600));
        for (at, prefix) in range.iter().enumerate() {
            let within = |v4, v6| if prefix.is_ipv4() { v4 } else { v6 };
            let lengths =
                within(LARGEST_RANGE.0, LARGEST_RANGE.1)..=within(SMALLEST_RANGE.0, SMALLEST_RANGE.1);
            if !lengths.contains(&prefix.length()) {
                let expected = "from /8 to /30 for IPv4, from /16 to /126 for IPv6";
                return Err(section.invalid("range", format!("{prefix} is no range for services"), expected));
            }
            if let Some(other) = range[..at].iter().find(|other| other.overlaps(prefix)) {
                return Err(section.invalid("range", format!("{prefix} overlaps {other}"), "ranges apart"));
            }
        }
        Ok(Self { range, release_after })
    }
}

/// Containers live on while an agent is restarted or replaced: their addresses must not be given to others meanwhile.
const SHORTEST_LEASE: Period = Period::seconds(60);
/// Shorter, keys would be made faster than nodes hear of them.
const SHORTEST_KEY_LIFETIME: Period = Period::seconds(10);
/// Nobody else's, as far as is registered: WireGuard has none of its own, and 51820 is taken where people use it themselves.
const ENCRYPTION_PORT: NonZeroU16 = match NonZeroU16::new(51882) {
    Some(port) => port,
    None => NonZeroU16::MIN,
};

impl Overlay {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let read = Self {
            enabled: section.or("enabled", false),
            default: section.or("default", Vec::new()),
            port: section.or("port", VXLAN_PORT),
            encryption_port: section.or("encryption_port", ENCRYPTION_PORT),
            key_lifetime: section.or_where(
                "key_lifetime",
                Period::seconds(86400),
                "10s or longer",
                |lifetime| *lifetime >= SHORTEST_KEY_LIFETIME,
            ),
            lease: section
                .or_where("lease", Period::seconds(900), "1m or longer", |lease| *lease >= SHORTEST_LEASE),
            fast_path: section.or("fast_path", FastPath::default()),
        };
        let pools = read.default.iter().map(|range| Pool::new(*range, Pool::usual_subnet_length(*range)));
        let pools = pools.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string());
        if let Err(error) = pools.and_then(|pools| match pools.as_slice() {
            [] => Ok(()),
            pools => Network::check_pools(pools).map_err(|error| error.to_string()),
        }) {
            return Err(section.invalid(
                "default",
                error,
                "a range of each family at most, such as [\"10.42.0.0/16\"]",
            ));
        }
        Ok(read)
    }
}

impl Proxy {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            threads: section.or_where("threads", 0, "0 (one a core) to 1024", |threads| *threads <= 1024),
            connect_timeout: section.or("connect_timeout", Period::seconds(1)),
            connect_deadline: section.or("connect_deadline", Period::seconds(5)),
            idle_timeout: section.optional("idle_timeout"),
            max_connections: section.optional("max_connections"),
            keepalive: section.or("keepalive", Period::seconds(60)),
            keepalive_interval: section.or("keepalive_interval", Period::seconds(15)),
            user_timeout: section.optional("user_timeout"),
            defer_accept: section.or("defer_accept", false),
            send_buffer: section.optional("send_buffer"),
            receive_buffer: section.optional("receive_buffer"),
            source_addresses: section.or("source_addresses", Vec::new()),
            trusted_proxies: section.or("trusted_proxies", Vec::new()),
            transparent_mark: section.or_where(
                "transparent_mark",
                0x1000_0000,
                "one bit, from 0x1 to 0x40000000",
                |mark| mark.is_power_of_two() && *mark < 1 << 31,
            ),
            transparent_table: section.or_where(
                "transparent_table",
                8180,
                "the number of a routing table, but for 253 to 255, which the kernel uses",
                |table| *table > 0 && !(253..=255).contains(table),
            ),
            udp_idle_timeout: section.or("udp_idle_timeout", Period::seconds(60)),
            max_udp_sessions: section.optional("max_udp_sessions"),
        }
    }
}

impl Log {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let level = section.or("level", Text(LogLevel("info".to_owned()))).0;
        let format = section.or("format", Text(LogFormat::Text)).0;
        Self { level, format }
    }
}

impl Drain {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            notice: section.or("notice", Period::seconds(2)),
            deadline: section.or("deadline", Period::seconds(30)),
            handover: section.or("handover", Period::seconds(3600)),
        }
    }
}

impl FromValue for FastPath {
    fn expected() -> String {
        "\"programs\", \"filter\" or \"off\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

impl FromValue for TrustedProxy {
    fn expected() -> String {
        "a range of addresses such as \"192.0.2.0/24\", or \"unix\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

impl LogLevel {
    /// As `tracing` filters are written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = |word: &str| matches!(word, "error" | "warn" | "info" | "debug" | "trace" | "off");
        let room =
            |part: &str| part.split_once('=').is_some_and(|(room, word)| !room.is_empty() && level(word));
        let mut parts = text.split(',');
        if parts.next().is_some_and(level) && parts.all(room) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} is no log level: write error, warn, info, debug or trace, then exceptions such as `,mesh::dns=debug`"
        ))
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is no log format: it is \"text\" or \"json\"")),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

impl Serialize for SecretFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

pub(super) fn all_as_text<T: fmt::Display, S: Serializer>(
    values: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(T::to_string))
}

pub(super) fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// The value of `key`, or what was found on this machine; if nothing was, that is reported.
fn or_found<T: FromValue>(
    section: &mut Section<'_>,
    key: &'static str,
    found: Option<T>,
    (message, expected): (String, &str),
) -> Result<T, Reported> {
    if section.has(key) {
        return section.required(key);
    }
    // Asked for although it is not there, so that it counts as a known key.
    section.optional::<T>(key).or(found).ok_or_else(|| section.invalid(key, message, expected))
}

/// The first line of a file that holds a password.
fn password_in(section: &Section<'_>, path: PathBuf) -> Result<SecretFile, Reported> {
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let secret = Secret(text.lines().next().unwrap_or_default().to_owned());
            Ok(SecretFile { path, secret })
        }
        Err(error) => {
            let message = format!("{} cannot be read: {error}", path.display());
            Err(section.invalid("password_file", message, "a file that this user may read"))
        }
    }
}
