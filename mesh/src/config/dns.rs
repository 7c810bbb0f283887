//! `[dns]`: the name server of this node, and whom it asks.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::str::FromStr;

use nerve::document::{FromValue, Mismatch, Reported, Section, Text, Value};
use nerve::http::{CertificateFiles, FilePath};
use nerve::period::Period;
use serde::Serialize;

use super::sections::{Node, all_as_text, as_text};
use crate::dns::{self, Domain, Encrypted, RecursionFor, Suffix, UpstreamAddress, Upstreams};

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Does it run?
    pub enabled: bool,
    /// Addresses, UDP and TCP.
    pub listen: Vec<SocketAddr>,
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
    /// How long an answer may be kept.
    pub ttl: Period,
    /// Instances with warnings are named only where none passes.
    pub only_passing: bool,
    /// Where every instance of a service fails, all are named.
    pub panic: bool,
    /// Who may ask for other names.
    #[serde(serialize_with = "as_text")]
    pub recursion: Recursion,
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
    /// Who is asked for names under a domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Route>,
}

/// Who may ask for names outside the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recursion {
    /// These.
    For(RecursionFor),
    /// Nobody.
    Off,
}

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
        let ca_file = section.given("upstream_ca_file");
        let (cert_file, key_file) = (section.given("tls_cert_file"), section.given("tls_key_file"));
        let read = Self {
            enabled: section.or("enabled", true),
            listen: section.or("listen", vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]),
            tls_listen: section.or("tls_listen", Vec::new()),
            https_listen: section.or("https_listen", Vec::new()),
            tls_cert_file: cert_file?,
            tls_key_file: key_file?,
            domain: section.or("domain", Text(Domain::default())).0,
            ttl: section.or("ttl", Period::seconds(5)),
            only_passing: section.or("only_passing", usual.only_passing),
            panic: section.or("panic", usual.panic),
            recursion: section.or("recursion", Recursion::For(usual.recursion)),
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
            route: section.list("route", Route::read).into_iter().collect::<Result<_, _>>()?,
        };
        read.check_routes(section)?;
        read.check_certificate(section)?;
        Ok(read)
    }

    fn check_routes(&self, section: &Section<'_>) -> Result<(), Reported> {
        for (at, route) in self.route.iter().enumerate() {
            if self.route[..at].iter().any(|earlier| earlier.domain == route.domain) {
                let message = format!("there are two for {}", route.domain);
                return Err(section.invalid("route", message, "one, with the upstreams of both"));
            }
            if self.domain.as_str().parse().is_ok_and(|own: Suffix| own.covers(&route.domain)) {
                let message = format!("{} is under {}, which is answered here", route.domain, self.domain);
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

    /// What the name server is told.
    pub(super) fn for_server(&self, node: &Node) -> dns::Config {
        let usual = dns::Config::default();
        let recursion = match self.recursion {
            Recursion::For(clients) => clients,
            Recursion::Off => usual.recursion,
        };
        let upstreams = match (self.recursion, self.upstreams.is_empty()) {
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
            listen: self.listen.clone(),
            encrypted: self.encrypted(),
            ttl: self.ttl.get(),
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

impl Route {
    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (domain, upstreams) = (section.required("domain"), section.required("upstreams"));
        Ok(Self { domain: domain?, upstreams: upstreams? })
    }
}

impl fmt::Display for Recursion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::For(RecursionFor::PrivateClients) => "private",
            Self::For(RecursionFor::Everyone) => "everyone",
            Self::Off => "off",
        })
    }
}

impl FromStr for Recursion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "private" => Ok(Self::For(RecursionFor::PrivateClients)),
            "everyone" => Ok(Self::For(RecursionFor::Everyone)),
            "off" => Ok(Self::Off),
            _ => Err(format!("{text:?} is none of those who may ask")),
        }
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

macro_rules! texts {
    ($($type:ty = $expected:literal),* $(,)?) => {$(
        impl FromValue for $type {
            fn expected() -> String {
                $expected.to_owned()
            }

            fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
                value.parse_text($expected)
            }
        }
    )*};
}

texts! {
    Recursion = "\"private\", \"everyone\" or \"off\"",
    ServeStale = "a duration up to \"1day\", or \"off\"",
    QueryLog = "\"off\", \"all\", or one in so many: \"1/1000\"",
    UpstreamAddress = "an upstream such as \"192.0.2.53\", \"tcp://192.0.2.53:53\" or \"tls://192.0.2.53#dns.example.com\"",
    Suffix = "a domain such as \"corp.example\" or \"10.in-addr.arpa\"",
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn read(text: &str) -> Result<Dns, String> {
        let document = Document::parse("x", text).unwrap();
        document.decode(Dns::read).map_err(|errors| errors.to_string())
    }

    fn nowhere() -> Node {
        Node { name: "a".parse().unwrap(), address: Ipv4Addr::LOCALHOST.into(), region: None, zone: None }
    }

    #[test]
    fn what_is_not_given_is_as_the_room_has_it() {
        assert_eq!(read("").unwrap().for_server(&nowhere()), dns::Config::default());
    }

    #[test]
    fn upstreams_and_routes_are_read_as_they_are_written() {
        let text = "upstreams = [\"192.0.2.53\", \"tls://192.0.2.54#dns.example.com\"]\nserve_stale = \"off\"\n\
                    cache_entries = 0\n[[route]]\ndomain = \"corp.example\"\nupstreams = [\"tcp://192.0.2.55\"]\n\
                    [[route]]\ndomain = \"secret.example\"\nupstreams = []\n";
        let config = read(text).unwrap().for_server(&nowhere());
        assert!(matches!(&config.upstreams, Upstreams::List(list) if list.len() == 2));
        assert_eq!(config.routes.len(), 2);
        assert_eq!((config.serve_stale.as_secs(), config.limits.cache_entries), (0, 0));
        let off = read(&format!("recursion = \"off\"\n{text}")).unwrap().for_server(&nowhere());
        assert_eq!(off.upstreams, Upstreams::None);
        let everyone = read("recursion = \"everyone\"").unwrap().for_server(&nowhere());
        assert_eq!(everyone.recursion, RecursionFor::Everyone);
    }

    #[test]
    fn clients_are_spoken_with_over_tls_where_there_is_an_address_for_it() {
        let files = "tls_cert_file = \"/a\"\ntls_key_file = \"/b\"\n";
        let of = |text: &str| read(&format!("{text}\n{files}")).unwrap().for_server(&nowhere()).encrypted;
        assert_eq!(of(""), None);
        let encrypted = of("tls_listen = [\"127.0.0.1:853\", \"[::1]:853\"]").unwrap();
        assert_eq!((encrypted.tls_listen.len(), encrypted.https_listen.len()), (2, 0));
        assert_eq!(encrypted.certificate.key_file.path(), std::path::Path::new("/b"));
        assert_eq!(of("https_listen = [\"127.0.0.1:443\"]").unwrap().https_listen.len(), 1);
    }

    #[test]
    fn the_query_log_has_none_all_or_a_part() {
        for (text, every) in [("off", None), ("all", Some(1)), ("1/1000", Some(1000))] {
            let config = read(&format!("query_log = {text:?}")).unwrap();
            assert_eq!(config.for_server(&nowhere()).query_log.map(NonZeroU32::get), every);
            assert_eq!(config.query_log.to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let route = |domain: &str| format!("[[route]]\ndomain = \"{domain}\"\nupstreams = []\n");
        for (text, why) in [
            ("upstreams = [\"dns.example.com\"]".to_owned(), "there is no IP address in it"),
            (
                "tls_listen = [\"127.0.0.1:853\"]".to_owned(),
                "tls_cert_file: it is missing, and there are addresses",
            ),
            (
                "tls_cert_file = \"/a\"".to_owned(),
                "tls_key_file: it is missing, and `tls_cert_file` is given",
            ),
            (
                "https_listen = [\"127.0.0.1:443\"]\ntls_key_file = \"/a\"".to_owned(),
                "tls_cert_file: it is missing",
            ),
            ("query_log = \"1/0\"".to_owned(), "\"off\", \"all\", or one in so many"),
            ("query_log = \"some\"".to_owned(), "\"off\", \"all\", or one in so many"),
            ("recursion = \"some\"".to_owned(), "\"private\", \"everyone\" or \"off\""),
            ("serve_stale = \"2days\"".to_owned(), "1day"),
            ("upstream_ca_file = \"ca.pem\"".to_owned(), "is not absolute"),
            ("[[route]]\ndomain = \"a\"".to_owned(), "route[0].upstreams: it is missing"),
            (route("."), "the root is what `upstreams` are asked for"),
            (route("a.example") + &route("A.example."), "there are two for a.example"),
            (route("x.mesh.internal"), "x.mesh.internal is under mesh.internal, which is answered here"),
        ] {
            let shown = read(&text).unwrap_err();
            assert!(shown.contains(why), "{text}: {shown}");
        }
    }
}
