//! A server of a backend, and what an endpoint of the catalog is as one (pure).
//!
//! What an endpoint says of itself comes from whoever registered it: its name becomes one that HAProxy takes, and its options are
//! taken only if they can be nothing but options. Whatever it says, it is one line.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use nerve::smartstack::is_backup;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::config::{CookieValue, ServiceConfig};
use super::loose::ProxyName;
use crate::catalog::{Endpoint, Reason as Excluded};

/// The label that holds what Nerve's registrations have under that name.
const OPTIONS: &str = "haproxy_server_options";
/// The longest name of an instance, and the longest options, in bytes.
const MAX_NAME: usize = 128;
const MAX_OPTIONS: usize = 1024;
/// The highest weight that HAProxy knows.
const MAX_WEIGHT: u16 = 256;

/// What a server is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Take connections.
    Ready,
    /// Finish what it has.
    Drain,
    /// Nothing.
    Maint,
}

impl State {
    /// Its word at the stats socket.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// One line `server`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) id: Option<u32>,
    pub(super) cookie: Option<String>,
    pub(super) options: String,
    pub(super) weight: Option<u16>,
    pub(super) state: State,
}

impl Server {
    /// Its line.
    pub(super) fn write_to(&self, text: &mut String) {
        let Self { name, address, id, cookie, options, weight, state } = self;
        let _ = write!(text, "\tserver {name} {address}");
        if let Some(id) = id {
            let _ = write!(text, " id {id}");
        }
        if let Some(cookie) = cookie {
            let _ = write!(text, " cookie {cookie}");
        }
        if !options.is_empty() {
            let _ = write!(text, " {options}");
        }
        if let Some(weight) = weight {
            let _ = write!(text, " weight {weight}");
        }
        text.push_str(if *state == State::Ready { "\n" } else { " disabled\n" });
    }
}

/// Why something of an endpoint is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reason {
    /// Its name is more than one line, or holds what no terminal shows.
    ControlCharacters,
    /// What it says to be options may be something else.
    ServerOptions,
    /// All numbers are taken: it is a server without.
    OutOfIds,
    /// The line belongs in no section of that kind.
    Line,
}

impl Reason {
    pub(super) const ALL: [Self; 4] =
        [Self::ControlCharacters, Self::ServerOptions, Self::OutOfIds, Self::Line];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ControlCharacters => "control_characters",
            Self::ServerOptions => "server_options",
            Self::OutOfIds => "out_of_ids",
            Self::Line => "line",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ControlCharacters => "its name has control characters; it is left out",
            Self::ServerOptions => {
                "its haproxy_server_options are more than plain words of options; it is left out"
            }
            Self::OutOfIds => "max_server_id is reached: it has no number of its own",
            Self::Line => "no line of such a section; it is left out",
        })
    }
}

/// What is not told, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Refused {
    pub(super) what: String,
    pub(super) reason: Reason,
}

/// An endpoint as it may become a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// What the server is called.
    pub(super) server: String,
    /// What the instance is called, if anything.
    pub(super) name: Option<String>,
    pub(super) address: SocketAddr,
    /// Its own options.
    pub(super) options: String,
    pub(super) weight: u16,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) state: State,
}

/// The endpoint as a server of the service; `None`: it has no port.
pub(super) fn candidate(endpoint: &Endpoint, config: &ServiceConfig) -> Option<Result<Candidate, Refused>> {
    let instance = &endpoint.instance;
    let state = match endpoint.excluded_from(None) {
        None => State::Ready,
        Some(Excluded::Draining) => State::Drain,
        Some(Excluded::Starting | Excluded::Critical) => State::Maint,
        Some(Excluded::UnixSocketOnly) => return None,
    };
    let port = config.server_port_override.or(instance.port)?;
    let address = SocketAddr::new(instance.address, port.get());
    // Nerve calls an instance what its host is called.
    let name = match endpoint.watcher {
        Some(_) => instance.labels.get("name").map(String::as_str),
        None => Some(instance.node.as_str()),
    };
    let name = name.filter(|name| !name.trim().is_empty());
    let refused = |reason| Some(Err(Refused { what: format!("{address} ({:?})", instance.id), reason }));
    if name.is_some_and(|name| name.chars().any(char::is_control)) {
        return refused(Reason::ControlCharacters);
    }
    let options = instance.labels.get(OPTIONS).map(String::as_str).unwrap_or_default();
    if !are_options(options) {
        return refused(Reason::ServerOptions);
    }
    let server = match name {
        Some(name) => {
            let short: String = name.chars().take(MAX_NAME).collect();
            format!("{}_{}", ProxyName::sanitised(&short), plain(address))
        }
        None => plain(address),
    };
    let stands_in = (instance.backup && !is_backup(options)).then_some("backup");
    let options: Vec<&str> = options.split_whitespace().chain(stands_in).collect();
    let mut labels = instance.labels.clone();
    labels.remove(OPTIONS);
    Some(Ok(Candidate {
        server,
        name: name.map(str::to_owned),
        address,
        options: options.join(" "),
        weight: instance.weight.0.get(),
        labels,
        state,
    }))
}

/// `host:port`, without the brackets that HAProxy takes in no name.
fn plain(address: SocketAddr) -> String {
    format!("{}:{}", address.ip(), address.port())
}

/// Can it be nothing but words of options, in the file and at the socket?
fn are_options(text: &str) -> bool {
    let is_plain = |c: char| c == ' ' || (c.is_ascii_graphic() && !"#\"'`\\;$<>".contains(c));
    text.len() <= MAX_OPTIONS && text.chars().all(is_plain)
}

/// Can what was remembered stand in a line?
pub(super) fn can_stand(server: &str, options: &str) -> bool {
    server.parse::<ProxyName>().is_ok() && are_options(options)
}

/// The service's options for one of its servers: `%{host}`, `%{port}` and `%{name}` stand for what they say, `%%` for `%`.
pub(super) fn expand(template: &str, server: &str, address: SocketAddr) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let known = [("{host}", address.ip().to_string()), ("{port}", address.port().to_string())];
        let known = known.into_iter().chain([("{name}", server.to_owned()), ("%", "%".to_owned())]);
        let found = known.into_iter().find_map(|(word, value)| Some((after.strip_prefix(word)?, value)));
        rest = match found {
            Some((after, value)) => {
                text.push_str(&value);
                after
            }
            None => {
                text.push('%');
                after
            }
        };
    }
    text + rest
}

/// Options without `weight`, which the instance's goes before.
pub(super) fn without_weight(options: &str) -> String {
    let mut kept = Vec::new();
    let mut words = options.split_whitespace();
    while let Some(word) = words.next() {
        if word == "weight" {
            let _ = words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// The number that options give a server themselves.
pub(super) fn own_id(options: &str) -> Option<u32> {
    let mut words = options.split_whitespace();
    words.find(|word| *word == "id")?;
    words.next()?.parse().ok()
}

/// A server's cookie.
pub(super) fn cookie(server: &str, method: CookieValue) -> String {
    match method {
        CookieValue::Name => server.to_owned(),
        CookieValue::Hash => {
            let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, server.as_bytes());
            digest.as_ref().iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        }
    }
}

/// A weight as HAProxy takes it, where `most` is the highest of the service: in proportion where that is too high.
pub(super) fn scaled(weight: u16, most: u16) -> u16 {
    if most <= MAX_WEIGHT {
        return weight;
    }
    let share = u32::from(weight) * u32::from(MAX_WEIGHT) / u32::from(most);
    u16::try_from(share).unwrap_or(MAX_WEIGHT).max(1)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use nerve::document::Document;
    use nerve::model::Instance;
    use proptest::prelude::*;

    use super::*;

    /// An instance at an address, with these keys beside, as it would stand in the store.
    pub(in super::super) fn endpoint(address: &str, more: serde_json::Value) -> Endpoint {
        let address: SocketAddr = address.parse().unwrap();
        let mut record = serde_json::json!({
            "service": "web", "id": plain(address), "node": "a", "address": address.ip(), "port": address.port(),
            "health": "passing",
        });
        let record_of = record.as_object_mut().unwrap();
        record_of.extend(more.as_object().unwrap().clone());
        let instance: Instance = serde_json::from_value(record).unwrap();
        Endpoint { instance: Arc::new(instance), unconfirmed: false, watcher: Some("zk".into()) }
    }

    pub(in super::super) fn config(text: &str) -> ServiceConfig {
        Document::parse_yaml("x", text).unwrap().decode(ServiceConfig::read).unwrap()
    }

    fn named(name: &str, options: &str) -> Endpoint {
        endpoint("10.0.0.1:80", serde_json::json!({"labels": {"name": name, OPTIONS: options}}))
    }

    #[test]
    fn a_server_is_called_as_synapse_calls_it() {
        let called = |endpoint: &Endpoint| candidate(endpoint, &config("{}")).unwrap().unwrap().server;
        assert_eq!(called(&named("web-07", "")), "web-07_10.0.0.1:80");
        assert_eq!(called(&named("web 07/é", "")), "web_07___10.0.0.1:80");
        assert_eq!(called(&endpoint("10.0.0.1:80", serde_json::json!({}))), "10.0.0.1:80");
        assert_eq!(called(&endpoint("[2001:db8::1]:80", serde_json::json!({}))), "2001:db8::1:80");
        let mut of_store = named("web-07", "");
        of_store.watcher = None;
        assert_eq!(called(&of_store), "a_10.0.0.1:80");
        let other_port = candidate(&named("x", ""), &config("{server_port_override: 81}")).unwrap().unwrap();
        assert_eq!(other_port.server, "x_10.0.0.1:81");
    }

    #[test]
    fn what_an_endpoint_says_is_refused_where_it_may_be_more_than_it_seems() {
        let reason = |endpoint: &Endpoint| candidate(endpoint, &config("{}")).unwrap().unwrap_err().reason;
        assert_eq!(reason(&named("a\nb", "")), Reason::ControlCharacters);
        for options in ["x\ny", "# x", "x; shutdown", "\"", "$HOME", "a\\", &"x ".repeat(600)] {
            assert_eq!(reason(&named("a", options)), Reason::ServerOptions, "{options:?}");
        }
    }

    #[test]
    fn health_says_what_a_server_is_to_do() {
        let state = |more| candidate(&endpoint("10.0.0.1:80", more), &config("{}")).unwrap().unwrap().state;
        assert_eq!(state(serde_json::json!({})), State::Ready);
        assert_eq!(state(serde_json::json!({"draining": true})), State::Drain);
        assert_eq!(state(serde_json::json!({"health": "critical"})), State::Maint);
    }

    #[test]
    fn options_are_made_of_a_template() {
        let address = "10.0.0.1:80".parse().unwrap();
        let expanded = |template| expand(template, "n", address);
        assert_eq!(
            expanded("check port %{port} addr %{host} sni str(%{name})"),
            "check port 80 addr 10.0.0.1 sni str(n)"
        );
        assert_eq!(expanded("100%% 5% %{x} %"), "100% 5% %{x} %");
        assert_eq!(without_weight("check weight 5 inter 2s"), "check inter 2s");
        assert_eq!((own_id("check id 7"), own_id("check"), own_id("id x")), (Some(7), None, None));
    }

    #[test]
    fn weights_that_haproxy_does_not_know_keep_their_proportions() {
        assert_eq!([scaled(1, 100), scaled(256, 256), scaled(0, 10)], [1, 256, 0]);
        assert_eq!([scaled(1000, 1000), scaled(500, 1000), scaled(1, 1000)], [256, 128, 1]);
        assert_eq!(cookie("abc", CookieValue::Hash), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    proptest! {
        /// Whatever is registered: one line, and nothing that would end it early.
        #[test]
        fn no_value_adds_a_line(name: String, options: String, template in "[ -~]{0,40}") {
            let own = named(&name, &options);
            if let Some(Ok(candidate)) = candidate(&own, &config("{}")) {
                let expanded = expand(&template, &candidate.server, candidate.address);
                let options = format!("{expanded} {}", candidate.options);
                let (name, address) = (candidate.server, candidate.address);
                let cookie = Some(cookie(&name, CookieValue::Name));
                let server = Server { name, address, id: Some(1), cookie, options, weight: None, state: State::Maint };
                let mut line = String::new();
                server.write_to(&mut line);
                prop_assert_eq!(line.lines().count(), 1);
                prop_assert!(line.ends_with(" disabled\n") && !line[1..line.len() - 1].contains(char::is_control));
                let words: Vec<_> = line.split_whitespace().collect();
                prop_assert_eq!(words[2], "10.0.0.1:80");
            }
        }
    }
}
