//! What holds for watchers of every kind (pure): which of the servers that a place names count, and what stands in for none.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use nerve::document::{FromValue, Mismatch, Reported, Section, Value};
use nerve::model::{Tag, Zone};
use serde::{Serialize, Serializer};

use super::pace::Pace;
use super::server::Server;

/// The options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Options {
    /// Stand in where the place names no server that counts.
    #[serde(serialize_with = "as_addresses", skip_serializing_if = "Vec::is_empty")]
    pub default_servers: Vec<Server>,
    /// They are there beside those that the place names, too.
    pub keep_default_servers: bool,
    /// Where the place names no server any more and there are no defaults, those that it named last stay.
    pub use_previous_backends: bool,
    /// Only the one that came first counts.
    pub leader_election: bool,
    /// The port of every server that the place names, whatever it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_port_override: Option<NonZeroU16>,
    /// All of them hold for a server that counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_filters: Vec<LabelFilter>,
    /// It has all of them.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<Tag>,
    /// It is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// Who is asked for the names of servers; nobody named: whom resolv.conf names. Not given: this machine's resolver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolvers: Option<Vec<SocketAddr>>,
    /// How soon the place is looked at again.
    #[serde(flatten)]
    pub pace: Pace,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_servers: Vec::new(),
            keep_default_servers: false,
            use_previous_backends: true,
            leader_election: false,
            backend_port_override: None,
            label_filters: Vec::new(),
            tags: BTreeSet::new(),
            zone: None,
            resolvers: None,
            pace: Pace::default(),
        }
    }
}

/// What a label of a server is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelFilter {
    /// Its key.
    pub label: String,
    /// How its value is looked at.
    pub condition: Condition,
    /// What it is compared with; one value, but for `in`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub values: BTreeSet<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It is there and is that.
    Equals,
    /// It is something else, or not there.
    NotEquals,
    /// It is there and is one of them.
    In,
    /// It is there.
    Exists,
}

/// What stands in for a place that names no server that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Instead {
    /// Those that it named last.
    Previous,
    /// Those that are configured for it.
    Defaults,
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Previous => "those that it named last",
            Self::Defaults => "the default servers",
        })
    }
}

impl Options {
    /// Reads the keys of a watcher that are the same for every kind.
    ///
    /// # Errors
    /// What is wrong was reported.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let usual = Self::default();
        let default_servers = section.or("default_servers", Vec::new());
        let keep_default_servers = section.or("keep_default_servers", usual.keep_default_servers);
        let use_previous_backends = section.or("use_previous_backends", usual.use_previous_backends);
        let leader_election = section.or("leader_election", usual.leader_election);
        let backend_port_override = section.optional("backend_port_override");
        let label_filters = section.list("label_filters", LabelFilter::read);
        let tags = section.or("tags", BTreeSet::new());
        let zone = section.optional("zone");
        let pace = Pace::read(section);
        let resolvers = section.given::<Vec<NameServer>>("resolvers")?;
        let resolvers =
            resolvers.map(|servers| servers.into_iter().map(|NameServer(server)| server).collect());
        Ok(Self {
            default_servers,
            keep_default_servers,
            use_previous_backends,
            leader_election,
            backend_port_override,
            label_filters: label_filters.into_iter().collect::<Result<_, _>>()?,
            tags,
            zone,
            resolvers,
            pace: pace?,
        })
    }

    /// The servers that count of those that a place names now, where it named `before` last.
    pub(super) fn judge(&self, found: Vec<Server>, before: &[Server]) -> (Vec<Server>, Option<Instead>) {
        let port =
            |server: Server| Server { port: self.backend_port_override.unwrap_or(server.port), ..server };
        let defaults = self.default_servers.iter().filter(|_| self.keep_default_servers).cloned();
        let mut known = BTreeSet::new();
        let mut counts: Vec<Server> =
            found.into_iter().filter(|server| self.admits(server)).map(port).chain(defaults).collect();
        counts.retain(|server| known.insert((server.host.clone(), server.port)));
        let (counts, instead) = match (counts.is_empty(), self.default_servers.is_empty()) {
            (false, _) => (counts, None),
            (true, false) => (self.default_servers.clone(), Some(Instead::Defaults)),
            (true, true) if self.use_previous_backends && !before.is_empty() => {
                (before.to_vec(), Some(Instead::Previous))
            }
            (true, true) => (counts, None),
        };
        if !self.leader_election {
            return (counts, instead);
        }
        // One that has no number came last.
        let first = counts.into_iter().min_by_key(|server| server.number.unwrap_or(u64::MAX));
        (first.into_iter().collect(), instead)
    }

    fn admits(&self, server: &Server) -> bool {
        self.label_filters.iter().all(|filter| filter.admits(server))
            && self.tags.iter().all(|tag| server.tags.contains(tag))
            && self.zone.as_ref().is_none_or(|zone| server.zone.as_ref() == Some(zone))
    }
}

impl LabelFilter {
    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let label = section.required("label");
        let condition = section.required("condition");
        let (value, values) = (section.optional::<String>("value"), section.or("values", BTreeSet::new()));
        let (label, condition) = (label?, condition?);
        let values: BTreeSet<String> = value.into_iter().chain(values).collect();
        let wanted = match condition {
            Condition::Equals | Condition::NotEquals => values.len() == 1,
            Condition::In => !values.is_empty(),
            Condition::Exists => values.is_empty(),
        };
        if !wanted {
            let expected = "one `value` for equals and not-equals, `values` for in, none for exists";
            return Err(section.refuse("its condition is given other values than it takes", expected));
        }
        Ok(Self { label, condition, values })
    }

    fn admits(&self, server: &Server) -> bool {
        let value = server.labels.get(&self.label);
        let is_one = value.is_some_and(|value| self.values.contains(value));
        match self.condition {
            Condition::Equals | Condition::In => is_one,
            Condition::NotEquals => !is_one,
            Condition::Exists => value.is_some(),
        }
    }
}

impl FromValue for Condition {
    fn expected() -> String {
        "\"equals\", \"not-equals\", \"in\" or \"exists\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("equals") => Ok(Self::Equals),
            Some("not-equals") => Ok(Self::NotEquals),
            Some("in") => Ok(Self::In),
            Some("exists") => Ok(Self::Exists),
            _ => Err(value.wrong_kind(Self::expected())),
        }
    }
}

/// The address of a name server, with a port or without.
struct NameServer(SocketAddr);

impl FromValue for NameServer {
    fn expected() -> String {
        "the address of a name server such as \"192.0.2.53\" or \"192.0.2.53:5353\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        const PORT: u16 = 53;
        let text = value.as_text().ok_or_else(|| value.wrong_kind(Self::expected()))?;
        let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT));
        match address.or_else(|_| text.parse()) {
            Ok(address) => Ok(Self(address)),
            Err(error) => Err(value.mismatch(error, Self::expected())),
        }
    }
}

/// `host:port`.
impl FromValue for Server {
    fn expected() -> String {
        "a server such as \"192.0.2.7:8080\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

/// As they are written.
pub(super) fn as_addresses<S: Serializer>(servers: &[Server], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(servers.iter().map(Server::to_string))
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Options, String> {
        Document::parse("x", text).unwrap().decode(Options::read).map_err(|errors| errors.to_string())
    }

    fn servers(texts: &[&str]) -> Vec<Server> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn labelled(text: &str, label: &str, value: &str) -> Server {
        let mut server: Server = text.parse().unwrap();
        server.labels.insert(label.to_owned(), value.to_owned());
        server
    }

    #[test]
    fn a_leader_is_the_one_that_came_first_of_those_that_count() {
        let numbered = |text: &str, number| Server { number, ..labelled(text, "az", "a") };
        let (late, early) = (numbered("192.0.2.1:80", Some(12)), numbered("192.0.2.2:80", Some(9)));
        let other = Server { number: Some(1), ..labelled("192.0.2.3:80", "az", "b") };
        let options = "leader_election = true\nlabel_filters = [{ label = \"az\", condition = \"equals\", value = \"a\" }]";
        let options = read(options).unwrap();
        let found = vec![numbered("192.0.2.4:80", None), late.clone(), early.clone(), other];
        assert_eq!(options.judge(found, &[]), (vec![early.clone()], None));
        assert_eq!(
            options.judge(vec![late.clone()], std::slice::from_ref(&early)),
            (vec![late.clone()], None)
        );
        assert_eq!(
            options.judge(Vec::new(), std::slice::from_ref(&late)),
            (vec![late], Some(Instead::Previous))
        );
    }

    #[test]
    fn a_place_that_names_nothing_keeps_its_last_word_unless_it_may_not() {
        let before = servers(&["192.0.2.1:80"]);
        assert_eq!(Options::default().judge(Vec::new(), &before), (before.clone(), Some(Instead::Previous)));
        assert_eq!(Options::default().judge(Vec::new(), &[]), (Vec::new(), None));
        let purges = read("use_previous_backends = false").unwrap();
        assert_eq!(purges.judge(Vec::new(), &before), (Vec::new(), None));
        let defaults = read("default_servers = [\"192.0.2.9:80\"]").unwrap();
        let ninth = servers(&["192.0.2.9:80"]);
        assert_eq!(defaults.judge(Vec::new(), &before), (ninth.clone(), Some(Instead::Defaults)));
        assert_eq!(defaults.judge(before.clone(), &[]), (before.clone(), None));
        let both = read("default_servers = [\"192.0.2.9:80\"]\nkeep_default_servers = true").unwrap();
        assert_eq!(both.judge(before.clone(), &[]), ([before, ninth].concat(), None));
    }

    #[test]
    fn filters_admit_what_all_of_them_admit() {
        let found = [
            labelled("192.0.2.1:80", "az", "a"),
            labelled("192.0.2.2:80", "az", "b"),
            labelled("192.0.2.3:80", "rack", "1"),
        ];
        let admitted = |text: &str| {
            let (servers, _) = read(text).unwrap().judge(found.to_vec(), &[]);
            servers.iter().map(|server| server.host.to_string().pop().unwrap()).collect::<String>()
        };
        for (filter, expected) in [
            ("condition = \"equals\", value = \"a\"", "1"),
            ("condition = \"not-equals\", value = \"a\"", "23"),
            ("condition = \"in\", values = [\"a\", \"b\"]", "12"),
            ("condition = \"exists\"", "12"),
        ] {
            let text =
                format!("label_filters = [{{ label = \"az\", {filter} }}]\nbackend_port_override = 81");
            assert_eq!(admitted(&text), expected, "{filter}");
        }
        assert_eq!(admitted("zone = \"a\""), "");
        for bad in ["\"equals\"", "\"exists\", value = \"a\"", "\"like\", value = \"a\""] {
            assert!(
                read(&format!("label_filters = [{{ label = \"az\", condition = {bad} }}]")).is_err(),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_counts_is_never_twice_and_never_lost(ports in proptest::collection::vec(1..6u16, 0..12)) {
            let found: Vec<Server> = ports.iter().map(|port| format!("192.0.2.1:{port}").parse().unwrap()).collect();
            let (counts, instead) = Options::default().judge(found, &[]);
            let distinct: BTreeSet<u16> = ports.into_iter().collect();
            prop_assert_eq!(counts.iter().map(|server| server.port.get()).collect::<BTreeSet<_>>(), distinct.clone());
            prop_assert_eq!((counts.len(), instead), (distinct.len(), None));
        }
    }
}
