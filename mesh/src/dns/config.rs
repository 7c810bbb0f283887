//! What the DNS server is told: which domain it owns, where it listens, how long answers live, whom it asks.
//!
//! Every value here is valid by its type; reading it from a file is the business of the config room.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use nerve::http::{CertificateFiles, FilePath};
use nerve::model::{Instance, Prefix, Region, Zone};
use tokio::sync::watch;

use super::address::UpstreamAddress;
use super::clients::Clients;
use super::identity::Identity;
use super::suffix::{Suffix, check_labels};
use super::ttls::Ttls;

/// Longest domain: leaves room for the longest label that is put in front of it (RFC 1035 allows 255 octets a name).
const LONGEST_DOMAIN: usize = 120;

/// Everything the DNS server is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The domain that is answered from the catalog. Default `mesh.internal` (`.internal` is reserved for private use).
    /// What an answer names is under the domain that was asked for; what an address is called is under this one.
    pub domain: Domain,
    /// Further domains that have the same names. None is under another. Default: none.
    pub alt_domains: Vec<Domain>,
    /// Each address is served over UDP and TCP. Default `127.0.0.1:53`. The wildcard addresses work: replies leave from
    /// the address that was asked.
    pub listen: Vec<SocketAddr>,
    /// Where clients ask over TLS and HTTPS. Default: nowhere.
    pub encrypted: Option<Encrypted>,
    /// How long a client may keep an answer. Default 5 s, and 2 s for "there is none".
    pub ttls: Ttls,
    /// Who answers names outside the domain. Default: the name servers of `/etc/resolv.conf`.
    pub upstreams: Upstreams,
    /// Who answers names under certain domains instead; where several cover a name, the longest does. Default: none.
    pub routes: Vec<Route>,
    /// PEM: the authorities that certificates of upstreams over TLS have to come from. Default: this machine's.
    pub upstream_ca_file: Option<FilePath>,
    /// Names that have no meaning outside a host or a site (`localhost`, `onion`, reverse names of private addresses) go
    /// to upstreams as well, although no route names them. Default: no, they are answered here.
    pub forward_special_names: bool,
    /// The letters of a question over UDP are sent in random case, which the answer has to repeat. Default: yes.
    pub mixed_case: bool,
    /// An answer that is asked for shortly before its time to live is over is asked for anew. Default: yes.
    pub prefetch: bool,
    /// How long past its time to live an answer may be given while no upstream has a better one (RFC 8767); zero:
    /// never. Default: a day.
    pub serve_stale: Duration,
    /// Who may have names outside the domain answered. Default: clients from networks that are not globally routable.
    pub recursion: RecursionFor,
    /// Clients that speak of cookies get one, and whoever shows it again is believed to be where it says (RFC 7873). Default: yes.
    pub cookies: bool,
    /// How many answers over UDP a network gets that may not have asked for them; `None`: any number. Default: 200 a second,
    /// and any number for clients from networks that are not globally routable.
    pub rate_limit: Option<RateLimit>,
    /// What the server says of itself. Default: nothing.
    pub identity: Identity,
    /// So many threads answer over UDP, each with a socket of its own for each address. Default 1.
    pub threads: NonZeroUsize,
    /// One query in so many is logged. Default: none.
    pub query_log: Option<NonZeroU32>,
    /// Bounds of everything that could grow.
    pub limits: Limits,
    /// The ranges whose virtual addresses lead somewhere on this node. Default: none, so no answer names any.
    pub virtual_ranges: VirtualRanges,
    /// Instances with warnings are named only where none passes. Default: true.
    pub only_passing: bool,
    /// Where every instance fails, all are named, as the balancer tries them all. Default: true; else NODATA.
    pub panic: bool,
    /// Where this node stands: what is nearer is named first. Default: nowhere.
    pub place: Place,
}

/// Where clients ask what others are not to read, and what they are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// Addresses for DNS over TLS (RFC 7858).
    pub tls_listen: Vec<SocketAddr>,
    /// Addresses for DNS over HTTPS (RFC 8484).
    pub https_listen: Vec<SocketAddr>,
    /// The certificate; read again when its files change.
    pub certificate: CertificateFiles,
}

/// Where a node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Its region.
    pub region: Option<Region>,
    /// Its zone, in the region.
    pub zone: Option<Zone>,
}

impl Place {
    /// The greatest distance.
    pub(super) const FAR: u8 = 2;

    pub(super) fn is_known(&self) -> bool {
        self.region.is_some() || self.zone.is_some()
    }

    /// 0: the same zone; 1: the same region; else [`Place::FAR`].
    pub(super) fn distance(&self, instance: &Instance) -> u8 {
        match (self.region == instance.region, self.zone == instance.zone) {
            (true, true) => 0,
            (true, false) if self.region.is_some() => 1,
            _ => Self::FAR,
        }
    }
}

/// Ranges of addresses that change while the server runs.
#[derive(Debug, Clone)]
pub struct VirtualRanges(watch::Receiver<Arc<[Prefix]>>);

impl VirtualRanges {
    pub(super) fn now(&self) -> Arc<[Prefix]> {
        Arc::clone(&self.0.borrow())
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.borrow().iter().any(|range| range.contains(address))
    }
}

impl From<watch::Receiver<Arc<[Prefix]>>> for VirtualRanges {
    fn from(ranges: watch::Receiver<Arc<[Prefix]>>) -> Self {
        Self(ranges)
    }
}

impl Default for VirtualRanges {
    fn default() -> Self {
        // Without a sender it stays what it is.
        Self(watch::channel(Arc::from([])).1)
    }
}

impl PartialEq for VirtualRanges {
    fn eq(&self, other: &Self) -> bool {
        *self.0.borrow() == *other.0.borrow()
    }
}

impl Eq for VirtualRanges {}

/// Who answers names outside the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// The `nameserver` lines of this file, read again when it changes; our own addresses among them are left out.
    ResolvConf(PathBuf),
    /// These, in the order of preference.
    List(Vec<UpstreamAddress>),
    /// Nobody, whatever routes there are: such names are refused.
    None,
}

/// Who answers the names under a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The names.
    pub domain: Suffix,
    /// Whom to ask, in the order of preference. Nobody: there are no such names.
    pub upstreams: Vec<UpstreamAddress>,
}

/// Who may have names outside the domain answered. The domain itself is answered to everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecursionFor {
    /// These. An open resolver on a public address serves reflection attacks, so they are usually those without one.
    Only(Clients),
    /// Everyone who reaches the socket.
    Everyone,
}

/// How many answers over UDP a network gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Answers of a kind in a second, at most [`RateLimit::FASTEST`]. Default 200.
    pub per_second: NonZeroU32,
    /// Of so many that are too many, one is sent cut short, so that an honest client asks again over TCP; 0: none is. Default 2.
    pub slip: u32,
    /// Whom it does not apply to, besides this host and those who show a cookie. Default: clients from networks that are not globally
    /// routable.
    pub exempt: Clients,
}

/// Bounds of everything that could grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most records in an answer over UDP; a random choice when there are more. Default 8, which fits 512 octets; never 0.
    pub answers_udp: usize,
    /// Most records in an answer over TCP. Default 256.
    pub answers_tcp: usize,
    /// Queries that wait for an upstream at a time; those beyond get SERVFAIL. Each costs at most one socket. Default 512.
    pub forwards_in_flight: usize,
    /// Answers of upstreams that are kept; 0 keeps none. Default 16384, of at most 16 KiB each.
    pub cache_entries: usize,
    /// What they may take of memory together, in bytes. Default 16 MiB.
    pub cache_bytes: usize,
    /// How long one upstream may take to answer. Another is asked long before that. Default 2 s.
    pub upstream_timeout: Duration,
    /// How long a connection to an upstream that nothing moves on is kept. Default 10 s.
    pub upstream_idle: Duration,
    /// How long a client waits before it gets an answer whose time is over, if there is one. Default 1.8 s (RFC 8767
    /// section 5: a stub resolver gives up after two seconds, or soon after).
    pub client_patience: Duration,
    /// Connections at a time over all addresses, with TLS and without; those beyond are closed at once. Default 256.
    pub tcp_connections: usize,
    /// How long a connection may be idle, or take to accept an answer. Default 10 s.
    pub tcp_idle: Duration,
    /// How long a client may take for the handshake of TLS. Default 5 s.
    pub tls_handshake: Duration,
    /// How often an address that could not be bound is tried again. Default 5 s.
    pub retry: Duration,
}

/// The domain that is answered from the catalog: lower-case DNS labels, without the final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(String);

/// Why a text is no domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no DNS domain to serve: {rule}")]
pub struct DomainError {
    value: String,
    rule: &'static str,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: Domain::default(),
            alt_domains: Vec::new(),
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))],
            encrypted: None,
            ttls: Ttls::default(),
            upstreams: Upstreams::default(),
            routes: Vec::new(),
            upstream_ca_file: None,
            forward_special_names: false,
            mixed_case: true,
            prefetch: true,
            serve_stale: Duration::from_secs(24 * 60 * 60),
            recursion: RecursionFor::Only(Clients::private()),
            cookies: true,
            rate_limit: Some(RateLimit::default()),
            identity: Identity::default(),
            threads: NonZeroUsize::MIN,
            query_log: None,
            limits: Limits::default(),
            virtual_ranges: VirtualRanges::default(),
            only_passing: true,
            panic: true,
            place: Place::default(),
        }
    }
}

impl Default for Domain {
    /// `mesh.internal`: ICANN reserved `internal` for private use.
    fn default() -> Self {
        Self("mesh.internal".to_owned())
    }
}

impl Default for Upstreams {
    fn default() -> Self {
        Self::ResolvConf(PathBuf::from("/etc/resolv.conf"))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answers_udp: 8,
            answers_tcp: 256,
            forwards_in_flight: 512,
            cache_entries: 16384,
            cache_bytes: 16 << 20,
            upstream_timeout: Duration::from_secs(2),
            upstream_idle: Duration::from_secs(10),
            client_patience: Duration::from_millis(1800),
            tcp_connections: 256,
            tcp_idle: Duration::from_secs(10),
            tls_handshake: Duration::from_secs(5),
            retry: Duration::from_secs(5),
        }
    }
}

impl RateLimit {
    /// The most answers in a second that are told from no limit.
    pub const FASTEST: u32 = 50_000;
}

impl Default for RateLimit {
    fn default() -> Self {
        let per_second = NonZeroU32::MIN.saturating_add(199);
        Self { per_second, slip: 2, exempt: Clients::private() }
    }
}

impl RecursionFor {
    /// May a client of this address have names outside the domain answered?
    #[must_use]
    pub fn permits(&self, client: IpAddr) -> bool {
        match self {
            Self::Everyone => true,
            Self::Only(clients) => clients.contains(client),
        }
    }
}

impl Domain {
    /// The domain as text, without the final dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is the other one under this one, or the same?
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let before = other.0.strip_suffix(&self.0);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    /// Reads `mesh.internal`, `Mesh.Internal.`; never the root.
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let refuse = |rule| DomainError { value: text.chars().take(80).collect(), rule };
        let domain = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if domain.is_empty() {
            return Err(refuse("the root belongs to no mesh; write a domain such as mesh.internal"));
        }
        if domain.len() > LONGEST_DOMAIN {
            return Err(refuse("it has more than 120 characters, which leaves no room for names under it"));
        }
        check_labels(&domain).map_err(refuse)?;
        Ok(Self(domain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_lower_cased_labels_without_final_dot() {
        assert_eq!("Mesh.Internal.".parse::<Domain>().unwrap().as_str(), "mesh.internal");
        assert_eq!("corp".parse::<Domain>().unwrap().as_str(), "corp");
        let covers = |one: &str, other: &str| one.parse::<Domain>().unwrap().covers(&other.parse().unwrap());
        assert!(covers("consul", "dc1.consul") && covers("consul", "CONSUL"));
        assert!(!covers("consul", "myconsul") && !covers("dc1.consul", "consul"));
        for bad in ["", ".", "a..b", "-a.b", "a_b", "ä.b", &"x".repeat(64), &"ab.".repeat(50)] {
            let error = bad.parse::<Domain>().unwrap_err().to_string();
            assert!(error.contains("is no DNS domain to serve: "), "{error}");
        }
    }

    #[test]
    fn only_clients_without_a_global_address_are_forwarded_for_unless_told() {
        for (client, usually) in [("10.1.2.3", true), ("8.8.8.8", false)] {
            assert_eq!(Config::default().recursion.permits(client.parse().unwrap()), usually, "{client}");
            assert!(RecursionFor::Everyone.permits(client.parse().unwrap()), "{client}");
        }
    }
}
