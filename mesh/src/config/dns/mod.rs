//! `[dns]`: the name server of this node, and whom it asks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr;

use nerve::document::{FromValue, Mismatch, Reported, Section, Value};
use nerve::http::{CertificateFiles, FilePath};
use nerve::period::Period;
use serde::{Serialize, Serializer};

use super::sections::{Node, all_as_text, as_text};
use crate::dns::{
    self, Clients, Domain, Encrypted, Member, RecursionFor, ServicePattern, ShownText, Suffix, Ttl,
    UpstreamAddress, Upstreams,
};
use crate::link_local::LinkLocal;

/// The port at the link-local address: what is in a resolv.conf has no other.
const PORT: u16 = 53;

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Does it run?
    pub enabled: bool,
    /// Addresses, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// An address that every node gives itself, where its name server answers as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_local: Option<LinkLocal>,
    /// Addresses for DNS over TLS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_listen: Vec<SocketAddr>,
    /// Addresses for DNS over HTTPS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub https_listen: Vec<SocketAddr>,
    /// PEM: the certificate that clients of both are shown, with those that lead to its authority behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<FilePath>,
    /// PEM: its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<FilePath>,
    /// The domain of the mesh.
    #[serde(serialize_with = "as_text")]
    pub domain: Domain,
    /// Further domains with the same names.
    #[serde(serialize_with = "all_as_text")]
    pub alt_domains: Vec<Domain>,
    /// How long an answer may be kept.
    #[serde(serialize_with = "as_text")]
    pub ttl: Ttl,
    /// The same by what is asked for.
    pub ttls: Ttls,
    /// Instances with warnings are named only where none passes.
    pub only_passing: bool,
    /// Where every instance of a service fails, all are named.
    pub panic: bool,
    /// Who may ask for other names.
    pub recursion: Recursion,
    /// Do clients get cookies?
    pub cookies: bool,
    /// How many answers over UDP a network gets.
    pub rate_limit: Rate,
    /// Of so many that are too many, one is cut short instead.
    pub rate_limit_slip: u32,
    /// Whom it does not apply to.
    #[serde(serialize_with = "show_clients")]
    pub rate_limit_exempt: Clients,
    /// What the server calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<ShownText>,
    /// What it says of its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<ShownText>,
    /// Who is asked for other names; empty: those of `/etc/resolv.conf`.
    #[serde(serialize_with = "all_as_text")]
    pub upstreams: Vec<UpstreamAddress>,
    /// PEM: authorities that certificates of upstreams must come from; without it, those of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_ca_file: Option<FilePath>,
    /// How long one of them may take to answer.
    pub upstream_timeout: Period,
    /// Are names sent on that mean nothing outside a host or a site?
    pub forward_special_names: bool,
    /// Are the letters of questions over UDP sent in random case?
    pub mixed_case: bool,
    /// Is an answer asked for anew shortly before its time is over?
    pub prefetch: bool,
    /// How long past its time an answer may be given when there is no better one.
    #[serde(serialize_with = "as_text")]
    pub serve_stale: ServeStale,
    /// Answers that are kept.
    pub cache_entries: u32,
    /// What they may take of memory.
    pub cache_bytes: NonZeroU32,
    /// Which queries are logged.
    #[serde(serialize_with = "as_text")]
    pub query_log: QueryLog,
    /// Threads that answer over UDP.
    pub threads: usize,
    /// Who is asked for names under a domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Route>,
}

/// `[dns.ttls]`: how long answers may be kept, by what they are about; `None`: as `dns.ttl` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ttls {
    /// Endpoints of services.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "given_as_text")]
    pub services: Option<Ttl>,
    /// Virtual addresses.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "given_as_text")]
    pub virtual_addresses: Option<Ttl>,
    /// Nodes, and names that spell addresses.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "given_as_text")]
    pub nodes: Option<Ttl>,
    /// Names of addresses.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "given_as_text")]
    pub reverse: Option<Ttl>,
    /// That there is none.
    #[serde(serialize_with = "as_text")]
    pub negative: Ttl,
    /// Some services.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "map_as_text")]
    pub by_name: BTreeMap<ServicePattern, Ttl>,
}

/// Who may ask for names outside the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recursion {
    /// These.
    For(RecursionFor),
    /// Nobody.
    Off,
}

/// Answers of a kind that a network gets in a second; `None`: any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub Option<NonZeroU32>);

/// How long an answer may be given past its time; `None`: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeStale(pub Option<Period>);

/// One query in so many is logged; `None`: none is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryLog(pub Option<NonZeroU32>);

/// `[[dns.route]]`: who is asked for the names under a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The domain.
    #[serde(serialize_with = "as_text")]
    pub domain: Suffix,
    /// Who is asked; nobody: there are no such names.
    #[serde(serialize_with = "all_as_text")]
    pub upstreams: Vec<UpstreamAddress>,
}

impl Dns {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let usual = dns::Config::default();
        let entries = u32::try_from(usual.limits.cache_entries).unwrap_or(u32::MAX);
        let bytes = u32::try_from(usual.limits.cache_bytes).ok().and_then(NonZeroU32::new);
        let limit = dns::RateLimit::default();
        let (identity, version) = (section.given("identity"), section.given("version"));
        let ca_file = section.given("upstream_ca_file");
        let link_local = section.given("link_local");
        let (cert_file, key_file) = (section.given("tls_cert_file"), section.given("tls_key_file"));
        let read = Self {
            enabled: section.or("enabled", true),
            listen: section.or("listen", vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]),
            link_local: link_local?,
            tls_listen: section.or("tls_listen", Vec::new()),
            https_listen: section.or("https_listen", Vec::new()),
            tls_cert_file: cert_file?,
            tls_key_file: key_file?,
            domain: section.or("domain", Domain::default()),
            alt_domains: section.or("alt_domains", Vec::new()),
            ttl: section.or("ttl", usual.ttls.services),
            ttls: section.section_or_empty("ttls", Ttls::read)?,
            only_passing: section.or("only_passing", usual.only_passing),
            panic: section.or("panic", usual.panic),
            recursion: section.or("recursion", Recursion::For(usual.recursion)),
            cookies: section.or("cookies", usual.cookies),
            rate_limit: section.or("rate_limit", Rate(usual.rate_limit.map(|limit| limit.per_second))),
            rate_limit_slip: section.or("rate_limit_slip", limit.slip),
            rate_limit_exempt: section.or("rate_limit_exempt", Exempt(limit.exempt)).0,
            identity: identity?,
            version: version?,
            upstreams: section.or("upstreams", Vec::new()),
            upstream_ca_file: ca_file?,
            upstream_timeout: section.or("upstream_timeout", Period::seconds(2)),
            forward_special_names: section.or("forward_special_names", usual.forward_special_names),
            mixed_case: section.or("mixed_case", usual.mixed_case),
            prefetch: section.or("prefetch", usual.prefetch),
            serve_stale: section.or("serve_stale", ServeStale(Period::new(usual.serve_stale).ok())),
            cache_entries: section.or("cache_entries", entries),
            cache_bytes: section.or("cache_bytes", bytes.unwrap_or(NonZeroU32::MAX)),
            query_log: section.or("query_log", QueryLog(usual.query_log)),
            threads: section
                .or_where("threads", usual.threads.get(), "1 to 64", |threads| (1..=64).contains(threads)),
            route: section.list("route", Route::read).into_iter().collect::<Result<_, _>>()?,
        };
        read.check_domains(section)?;
        read.check_routes(section)?;
        read.check_certificate(section)?;
        Ok(read)
    }

    /// The domains, the first one first.
    fn domains(&self) -> impl Iterator<Item = &Domain> + Clone {
        std::iter::once(&self.domain).chain(&self.alt_domains)
    }

    fn check_domains(&self, section: &Section<'_>) -> Result<(), Reported> {
        for (at, domain) in self.domains().enumerate().skip(1) {
            let earlier = || self.domains().take(at);
            let message = if earlier().any(|earlier| earlier == domain) {
                format!("{domain} is there twice")
            } else if let Some(earlier) =
                earlier().find(|earlier| earlier.covers(domain) || domain.covers(earlier))
            {
                let (below, above) =
                    if earlier.covers(domain) { (domain, earlier) } else { (earlier, domain) };
                format!("{below} is under {above}, so that a name could mean two things")
            } else {
                continue;
            };
            return Err(section.invalid("alt_domains", message, "domains apart from each other"));
        }
        Ok(())
    }

    fn check_routes(&self, section: &Section<'_>) -> Result<(), Reported> {
        for (at, route) in self.route.iter().enumerate() {
            if self.route[..at].iter().any(|earlier| earlier.domain == route.domain) {
                let message = format!("there are two for {}", route.domain);
                return Err(section.invalid("route", message, "one, with the upstreams of both"));
            }
            let is_over =
                |own: &&Domain| own.as_str().parse().is_ok_and(|own: Suffix| own.covers(&route.domain));
            if let Some(own) = self.domains().find(is_over) {
                let message = format!("{} is under {own}, which is answered here", route.domain);
                return Err(section.invalid("route", message, "another domain than that of the mesh"));
            }
        }
        Ok(())
    }

    fn check_certificate(&self, section: &Section<'_>) -> Result<(), Reported> {
        let is_wanted = !(self.tls_listen.is_empty() && self.https_listen.is_empty());
        let (key, other) = match (&self.tls_cert_file, &self.tls_key_file, is_wanted) {
            (None, Some(_), _) => ("tls_cert_file", "`tls_key_file` is given"),
            (Some(_), None, _) => ("tls_key_file", "`tls_cert_file` is given"),
            (None, None, true) => ("tls_cert_file", "there are addresses for TLS or HTTPS"),
            (None, None, false) | (Some(_), Some(_), _) => return Ok(()),
        };
        Err(section.invalid(key, format!("it is missing, and {other}"), "the absolute path of a PEM file"))
    }

    /// Where clients ask over TLS and HTTPS, and what they are shown.
    fn encrypted(&self) -> Option<Encrypted> {
        if self.tls_listen.is_empty() && self.https_listen.is_empty() {
            return None;
        }
        Some(Encrypted {
            tls_listen: self.tls_listen.clone(),
            https_listen: self.https_listen.clone(),
            certificate: CertificateFiles {
                cert_file: self.tls_cert_file.clone()?,
                key_file: self.tls_key_file.clone()?,
            },
        })
    }

    /// Where it answers: as configured, and at the link-local address unless one of those is on all addresses.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let link_local = self.link_local.map(|address| SocketAddr::from((address.ip(), PORT)));
        let covered = |address: &SocketAddr| {
            let covers = |own: &SocketAddr| {
                own == address || own.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && own.port() == PORT
            };
            self.listen.iter().any(covers)
        };
        self.listen.iter().copied().chain(link_local.filter(|address| !covered(address))).collect()
    }

    /// What the name server is told.
    pub(super) fn for_server(&self, node: &Node) -> dns::Config {
        let usual = dns::Config::default();
        let recursion = match &self.recursion {
            Recursion::For(clients) => clients.clone(),
            Recursion::Off => usual.recursion,
        };
        let upstreams = match (&self.recursion, self.upstreams.is_empty()) {
            (Recursion::Off, _) => Upstreams::None,
            (_, true) => Upstreams::default(),
            (_, false) => Upstreams::List(self.upstreams.clone()),
        };
        let routes = self.route.iter().map(|route| {
            let Route { domain, upstreams } = route.clone();
            dns::Route { domain, upstreams }
        });
        dns::Config {
            domain: self.domain.clone(),
            alt_domains: self.alt_domains.clone(),
            listen: self.addresses(),
            encrypted: self.encrypted(),
            ttls: self.ttls.for_server(self.ttl),
            only_passing: self.only_passing,
            panic: self.panic,
            place: dns::Place { region: node.region.clone(), zone: node.zone.clone() },
            upstreams,
            routes: routes.collect(),
            upstream_ca_file: self.upstream_ca_file.clone(),
            forward_special_names: self.forward_special_names,
            mixed_case: self.mixed_case,
            prefetch: self.prefetch,
            serve_stale: self.serve_stale.0.map(Period::get).unwrap_or_default(),
            recursion,
            query_log: self.query_log.0,
            threads: NonZeroUsize::new(self.threads).unwrap_or(usual.threads),
            cookies: self.cookies,
            rate_limit: self.rate_limit.0.map(|per_second| dns::RateLimit {
                per_second,
                slip: self.rate_limit_slip,
                exempt: self.rate_limit_exempt.clone(),
            }),
            identity: dns::Identity { server: self.identity.clone(), version: self.version.clone() },
            limits: dns::Limits {
                upstream_timeout: self.upstream_timeout.get(),
                cache_entries: usize::try_from(self.cache_entries).unwrap_or(usize::MAX),
                cache_bytes: usize::try_from(self.cache_bytes.get()).unwrap_or(usize::MAX),
                ..usual.limits
            },
            ..usual
        }
    }
}

impl Ttls {
    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let usual = dns::Ttls::default();
        let [services, virtual_addresses, nodes, reverse] =
            ["services", "virtual_addresses", "nodes", "reverse"].map(|key| section.given(key));
        Ok(Self {
            services: services?,
            virtual_addresses: virtual_addresses?,
            nodes: nodes?,
            reverse: reverse?,
            negative: section.or("negative", usual.negative),
            by_name: section.or("by_name", BTreeMap::new()),
        })
    }

    fn for_server(&self, ttl: Ttl) -> dns::Ttls {
        dns::Ttls {
            domains: ttl,
            services: self.services.unwrap_or(ttl),
            virtual_addresses: self.virtual_addresses.unwrap_or(ttl),
            nodes: self.nodes.unwrap_or(ttl),
            reverse: self.reverse.unwrap_or(ttl),
            negative: self.negative,
            of_services: self.by_name.clone().into_iter().collect(),
        }
    }
}

fn given_as_text<S: Serializer>(ttl: &Option<Ttl>, serializer: S) -> Result<S::Ok, S::Error> {
    match ttl {
        Some(ttl) => serializer.collect_str(ttl),
        None => serializer.serialize_none(),
    }
}

fn map_as_text<S: Serializer>(
    ttls: &BTreeMap<ServicePattern, Ttl>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(ttls.iter().map(|(pattern, ttl)| (pattern.to_string(), ttl.to_string())))
}

impl Route {
    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (domain, upstreams) = (section.required("domain"), section.required("upstreams"));
        Ok(Self { domain: domain?, upstreams: upstreams? })
    }
}

impl Serialize for Recursion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::For(RecursionFor::Everyone) => serializer.serialize_str("everyone"),
            Self::For(RecursionFor::Only(clients)) => show_clients(clients, serializer),
            Self::Off => serializer.serialize_str("off"),
        }
    }
}

impl FromValue for Recursion {
    fn expected() -> String {
        "\"private\", \"everyone\", \"off\", or a list of ranges such as [\"private\", \"198.51.100.0/24\"]"
            .to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("everyone") => Ok(Self::For(RecursionFor::Everyone)),
            Some("off") => Ok(Self::Off),
            _ => read_clients(value, &Self::expected()).map(|clients| Self::For(RecursionFor::Only(clients))),
        }
    }
}

/// `"private"`, or a list of ranges in which it may stand as well.
fn read_clients(value: &Value, expected: &str) -> Result<Clients, Vec<Mismatch>> {
    if value.as_text() == Some("private") {
        return Ok(Clients::private());
    }
    if value.as_list().is_none() {
        return Err(value.parse_text::<Member>(expected).err().unwrap_or_else(|| value.wrong_kind(expected)));
    }
    let members: Vec<Member> = Vec::from_value(value)?;
    Clients::new(&members).map_err(|error| value.mismatch(error, expected))
}

fn show_clients<S: Serializer>(clients: &Clients, serializer: S) -> Result<S::Ok, S::Error> {
    if *clients == Clients::private() {
        return serializer.serialize_str("private");
    }
    serializer.collect_seq(clients.members().map(|member| member.to_string()))
}

/// Whom the limit does not apply to, as it is read.
struct Exempt(Clients);

impl FromValue for Exempt {
    fn expected() -> String {
        "\"private\", or a list of ranges such as [\"private\", \"198.51.100.0/24\"]".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        read_clients(value, &Self::expected()).map(Self)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(rate) => serializer.serialize_u32(rate.get()),
            None => serializer.serialize_str("off"),
        }
    }
}

impl FromValue for Rate {
    fn expected() -> String {
        format!("a number of answers in a second from 1 to {}, or \"off\"", dns::RateLimit::FASTEST)
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        if value.as_text() == Some("off") {
            return Ok(Self(None));
        }
        let rate = value.as_integer().ok_or_else(|| value.wrong_kind(Self::expected()))?;
        let rate = u32::try_from(rate).ok().filter(|rate| *rate <= dns::RateLimit::FASTEST);
        let rate = rate.and_then(NonZeroU32::new);
        rate.map(|rate| Self(Some(rate)))
            .ok_or_else(|| value.mismatch("it is out of range", Self::expected()))
    }
}

impl fmt::Display for ServeStale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(period) => period.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for ServeStale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" { Ok(Self(None)) } else { text.parse().map(|period| Self(Some(period))) }
    }
}

impl fmt::Display for QueryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(NonZeroU32::get) {
            None => f.write_str("off"),
            Some(1) => f.write_str("all"),
            Some(every) => write!(f, "1/{every}"),
        }
    }
}

impl FromStr for QueryLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("1/")) {
            ("off", _) => Ok(Self(None)),
            ("all", _) => Ok(Self(Some(NonZeroU32::MIN))),
            (_, Some(every)) => {
                every.parse().map(|every| Self(Some(every))).map_err(|error| format!("{every:?}: {error}"))
            }
            (_, None) => Err(format!("{text:?} is no part of the queries")),
        }
    }
}

nerve::texts! {
    ShownText = "a text of 1 to 64 characters of ASCII",
    Member = "\"private\", or a range of addresses such as \"10.0.0.0/8\"",
    Domain = "a domain such as \"mesh.internal\"",
    Ttl = "whole seconds up to a day, such as \"5s\" or \"0s\"",
    ServeStale = "a duration up to \"1day\", or \"off\"",
    QueryLog = "\"off\", \"all\", or one in so many: \"1/1000\"",
    UpstreamAddress = "an upstream such as \"192.0.2.53\", \"tcp://192.0.2.53:53\" or \"tls://192.0.2.53#dns.example.com\"",
    LinkLocal = "an address such as \"169.254.53.53\"",
    Suffix = "a domain such as \"corp.example\" or \"10.in-addr.arpa\"",
}

#[cfg(test)]
mod tests;
