//! `[dns]`: the name server of this node, and whom it asks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::str::FromStr;

use nerve::document::{FromValue, Mismatch, Reported, Section, Text, Value};
use nerve::http::FilePath;
use nerve::period::Period;
use serde::Serialize;

use super::sections::{Node, all_as_text, as_text};
use crate::dns::{self, Domain, RecursionFor, Suffix, UpstreamAddress, Upstreams};
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
        let link_local = section.given("link_local");
        let read = Self {
            enabled: section.or("enabled", true),
            listen: section.or("listen", vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]),
            link_local: link_local?,
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
            route: section.list("route", Route::read).into_iter().collect::<Result<_, _>>()?,
        };
        read.check_routes(section)?;
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
            listen: self.addresses(),
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
    UpstreamAddress = "an upstream such as \"192.0.2.53\", \"tcp://192.0.2.53:53\" or \"tls://192.0.2.53#dns.example.com\"",
    LinkLocal = "an address such as \"169.254.53.53\"",
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
    fn the_link_local_address_is_listened_on_once() {
        let listen = |text: &str| read(text).unwrap().for_server(&nowhere()).listen;
        let shown = |text: &str| listen(text).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let own = "link_local = \"169.254.53.53\"\n";
        assert_eq!(shown(own), "127.0.0.1:53 169.254.53.53:53");
        assert_eq!(shown(&format!("{own}listen = [\"169.254.53.53:53\"]")), "169.254.53.53:53");
        assert_eq!(shown(&format!("{own}listen = [\"0.0.0.0:53\"]")), "0.0.0.0:53");
        assert_eq!(shown(&format!("{own}listen = [\"0.0.0.0:5300\"]")), "0.0.0.0:5300 169.254.53.53:53");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let route = |domain: &str| format!("[[route]]\ndomain = \"{domain}\"\nupstreams = []\n");
        for (text, why) in [
            ("upstreams = [\"dns.example.com\"]".to_owned(), "there is no IP address in it"),
            ("recursion = \"some\"".to_owned(), "\"private\", \"everyone\" or \"off\""),
            ("serve_stale = \"2days\"".to_owned(), "1day"),
            ("upstream_ca_file = \"ca.pem\"".to_owned(), "is not absolute"),
            ("link_local = \"169.254.169.254\"".to_owned(), "clouds have their metadata"),
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
