//! What labels say a container is (pure): one vocabulary, whoever runs the container.
//!
//! `plexus.service` names the services; `plexus.port`, `plexus.ports`, `plexus.tags`, `plexus.weight`, `plexus.backup`, `plexus.check` and its timing say the
//! rest of all of them, and `plexus.service.NAME.KEY` of one of them alone. What a container is called, and which ports its image
//! has, stand in where labels say nothing. Other labels are not for this room.
//!
//! Every label that begins with `plexus.` is known, or refused: a mistyped one must not be a service that nobody checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde_json::{Map, Value, json};

use super::{Definition, Draft, Local};
use crate::check::CheckSpec;
use crate::document::{Document, Errors};
use crate::model::{InstanceId, PortName, ServiceName, Tag, Weight};

/// What labels that are for the mesh begin with.
pub(super) const PREFIX: &str = "plexus.";
/// The names of the services; `none` for none.
const SERVICE: &str = "service";
const PORT: &str = "port";
/// `NAME=PORT`, several of them.
const PORTS: &str = "ports";
const TAGS: &str = "tags";
const WEIGHT: &str = "weight";
/// `true` or `false`.
const BACKUP: &str = "backup";
/// `tcp`, the path of an HTTP check, or a kind and what it probes; several of them.
const CHECK: &str = "check";
/// How often to check and what makes a verdict, as in a table of `check`.
const TIMING: [&str; 4] = ["interval", "timeout", "rise", "fall"];
/// Of which Docker's container on several networks has the address.
pub(super) const NETWORK: &str = "network";
/// Where clients reach Docker's container, unless as others.
pub(super) const ADDRESS: &str = "address";

/// A label that cannot be what it is, in words that name it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LabelError(String);

/// The labels of one container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Labels<'a>(&'a BTreeMap<String, String>);

/// The part of an instance that labels do not say.
#[derive(Debug)]
pub(super) struct Rest<'a> {
    /// The end of its id, which tells the container from others of its node.
    pub(super) container: &'a str,
    /// Its main port, where no label says.
    pub(super) port: Option<NonZeroU16>,
    /// Free data that travels along.
    pub(super) free: BTreeMap<String, String>,
    /// Where its ports are.
    pub(super) reached: Reached<'a>,
}

/// Where the ports that labels name are reached: labels name those that a container listens on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reached<'a> {
    /// At the container's address.
    Directly,
    /// Where the runtime has published them, over TCP.
    Published(&'a BTreeMap<NonZeroU16, (IpAddr, NonZeroU16)>),
}

impl Reached<'_> {
    fn at(self, address: IpAddr, port: NonZeroU16) -> Result<(IpAddr, NonZeroU16), String> {
        match self {
            Self::Directly => Ok((address, port)),
            Self::Published(published) => published.get(&port).copied().ok_or_else(|| {
                format!("port {port} of the container is not published where other nodes reach it; publish it (-p)")
            }),
        }
    }

    /// What to do where nothing says which port is the main one.
    fn advice(self) -> String {
        match self {
            Self::Directly => format!("add the label {PREFIX}{PORT}"),
            Self::Published(_) => "publish one (-p), where other nodes reach it".to_owned(),
        }
    }
}

/// What labels say of an instance.
struct Said {
    port: Option<NonZeroU16>,
    ports: BTreeMap<PortName, NonZeroU16>,
    tags: BTreeSet<Tag>,
    weight: Weight,
    backup: bool,
    checks: Vec<CheckSpec>,
}

impl Said {
    fn instance(
        self,
        service: &ServiceName,
        address: IpAddr,
        port: NonZeroU16,
        rest: &Rest<'_>,
        local: &Local,
    ) -> Result<Definition, LabelError> {
        let Self { mut ports, tags, weight, backup, checks, .. } = self;
        let reached = |key: &str, port| {
            let at = rest.reached.at(address, port);
            at.map_err(|why| wrong(&format!("{PREFIX}{key}"), why))
        };
        for port in ports.values_mut() {
            *port = reached(PORTS, *port)?.1;
        }
        let (address, port) = reached(PORT, port)?;
        let id = InstanceId::new(&format!("{service}-{}-{}", local.node, rest.container));
        let id = Some(id.map_err(|error| LabelError(error.to_string()))?);
        let (address, labels) = (Some(address), rest.free.clone());
        let plain = Draft::new(service.clone(), port);
        let draft = Draft { id, address, ports, tags, labels, weight, backup, checks, ..plain };
        draft.resolve(local).map_err(|error| LabelError(error.to_string()))
    }
}

impl<'a> Labels<'a> {
    /// Those of `labels` that are for the mesh. `more` are keys that are known besides.
    pub(super) fn read(labels: &'a BTreeMap<String, String>, more: &[&str]) -> Result<Self, LabelError> {
        let is_known =
            |key: &str| [PORT, PORTS, TAGS, WEIGHT, BACKUP, CHECK].contains(&key) || TIMING.contains(&key);
        for label in labels.keys() {
            let Some(key) = label.strip_prefix(PREFIX) else { continue };
            let known =
                match key.strip_prefix("service.").map(|rest| rest.split_once('.').unwrap_or((rest, ""))) {
                    Some((name, key)) => {
                        ServiceName::new(name).map_err(|error| wrong(label, error))?;
                        is_known(key)
                    }
                    None => key == SERVICE || is_known(key) || more.contains(&key),
                };
            if !known {
                return Err(wrong(label, unknown(more)));
            }
        }
        let read = Self(labels);
        match TIMING.into_iter().find_map(|key| read.any(key)).filter(|_| read.any(CHECK).is_none()) {
            Some(timing) => Err(wrong(timing, format!("there is no check; add the label {PREFIX}{CHECK}"))),
            None => Ok(read),
        }
    }

    /// The services that a label names; `None`: no label does.
    pub(super) fn services(self) -> Result<Option<BTreeSet<ServiceName>>, LabelError> {
        let Some((label, text)) = self.find(None, SERVICE) else { return Ok(None) };
        let named = words(text).filter(|word| *word != "none");
        named
            .map(|name| ServiceName::new(name).map_err(|error| wrong(&label, error)))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Says none of them anything?
    pub(super) fn is_silent(self) -> bool {
        self.0.keys().all(|label| !label.starts_with(PREFIX))
    }

    /// The value of a label that is not a service's.
    pub(super) fn get(self, key: &str) -> Option<&'a str> {
        self.0.get(&format!("{PREFIX}{key}")).map(String::as_str)
    }

    /// An instance of each of these services, at its address. One without a port is none, unless a label names it.
    pub(super) fn instances(
        self,
        services: &BTreeMap<ServiceName, IpAddr>,
        rest: &Rest<'_>,
        local: &Local,
    ) -> Result<Vec<Definition>, LabelError> {
        self.refuse_strangers(services)?;
        let is_named = self.services()?.is_some();
        if services.is_empty() {
            // What is wrong is told before it matters.
            let _ = self.said(None, Reached::Directly)?;
        }
        let mut instances = Vec::new();
        for (service, address) in services {
            let said = self.said(Some(service), rest.reached)?;
            match said.port.or(rest.port) {
                Some(port) => instances.push(said.instance(service, *address, port, rest, local)?),
                None if is_named => {
                    let label = format!("{PREFIX}{SERVICE}");
                    let why = format!("there is no port of {service}; {}", rest.reached.advice());
                    return Err(wrong(&label, why));
                }
                None => {}
            }
        }
        Ok(instances)
    }

    /// What lacks for an instance of each of its names.
    pub(super) fn lacks(self, called: &BTreeSet<ServiceName>) -> Option<LabelError> {
        if let Some(alias) = called.iter().find(|alias| self.find(Some(alias), PORT).is_none()) {
            let why = "there is no port to connect to; add the label";
            return Some(LabelError(format!("the alias {alias} leads nowhere: {why} {PREFIX}{PORT}")));
        }
        let label = self.0.keys().find(|label| label.starts_with(PREFIX) && called.is_empty())?;
        let why =
            format!("nothing says of which service that is; add the label {PREFIX}{SERVICE}, or an alias");
        Some(wrong(label, why))
    }

    /// What is said of a service, or of all of them.
    fn said(self, service: Option<&ServiceName>, reached: Reached<'_>) -> Result<Said, LabelError> {
        let list = |key| self.find(service, key).unwrap_or_default();
        let named = |label: &str, pair: &str| {
            let (name, number) = pair.split_once('=').unwrap_or((pair, ""));
            let name = PortName::new(name).map_err(|error| wrong(label, error))?;
            match port(number) {
                Some(number) => Ok((name, number)),
                None => Err(wrong(label, format!("{pair:?} is no NAME=PORT, such as metrics=9187"))),
            }
        };
        let (label, ports) = list(PORTS);
        let ports = words(ports).map(|pair| named(&label, pair)).collect::<Result<_, _>>()?;
        let (label, tags) = list(TAGS);
        let tags = words(tags).map(|tag| Tag::new(tag).map_err(|error| wrong(&label, error)));
        let tags = tags.collect::<Result<_, _>>()?;
        let weight = match self.find(service, WEIGHT) {
            None => Weight::default(),
            Some((label, text)) => Weight(text.trim().parse().map_err(|_| {
                wrong(&label, format!("{text:?} is no weight; expected a number from 1 to 65535"))
            })?),
        };
        let backup = match self.find(service, BACKUP) {
            None => false,
            Some((label, text)) => text
                .trim()
                .parse()
                .map_err(|_| wrong(&label, format!("{text:?} is neither true nor false")))?,
        };
        let port = match self.find(service, PORT) {
            None => None,
            Some((label, text)) => {
                Some(port(text).ok_or_else(|| wrong(&label, format!("{text:?} is no port")))?)
            }
        };
        Ok(Said { port, ports, tags, weight, backup, checks: self.checks(service, reached)? })
    }

    /// By the reader of `check = […]`, so that the same holds for both.
    fn checks(
        self,
        service: Option<&ServiceName>,
        reached: Reached<'_>,
    ) -> Result<Vec<CheckSpec>, LabelError> {
        let Some((label, text)) = self.find(service, CHECK) else { return Ok(Vec::new()) };
        let timing = || TIMING.into_iter().filter_map(|key| Some((key, self.find(service, key)?.1)));
        let written = |word| {
            let (kind, mut probed) = probe(word);
            // A number is the port that the container listens on.
            if let (Some(port), Reached::Published(_)) = (number_of_port(&probed), reached) {
                let at = reached.at(IpAddr::from([0; 4]), port).map_err(|why| wrong(&label, why))?;
                probed = at.1.get().into();
            }
            let mut check = Map::from_iter([(kind.to_owned(), probed)]);
            check.extend(timing().map(|(key, text)| (key.to_owned(), number_or_text(text.trim()))));
            Ok(Value::Object(check))
        };
        let checks: Vec<Value> = words(text).map(written).collect::<Result<_, LabelError>>()?;
        let document = Document::parse_json("labels", &json!({"check": checks}).to_string());
        let read = document.and_then(|document| {
            document
                .decode(|root| root.list("check", CheckSpec::read).into_iter().collect::<Result<Vec<_>, _>>())
        });
        let checks = read.map_err(|errors| self.of_check(service, &label, &errors))?;
        match checks.iter().find_map(|check| Some((check.probe.kind(), check.probe.liberty()?))) {
            // Whoever may start a container may not run or read what he likes outside of it.
            Some((kind, liberty)) => Err(wrong(&label, format!("`{kind}` {liberty}"))),
            None => Ok(checks),
        }
    }

    /// What the reader of checks found, said of the label that it stands in.
    fn of_check(self, service: Option<&ServiceName>, check: &str, errors: &Errors) -> LabelError {
        let Some(problem) = errors.iter().next() else { return wrong(check, errors) };
        let key = problem.key.rsplit('.').next().unwrap_or_default();
        let timing = TIMING.contains(&key).then(|| self.find(service, key)).flatten();
        let label = timing.map_or_else(|| check.to_owned(), |(label, _)| label);
        let expected = match errors.iter().find_map(|problem| problem.suggestion.as_ref()) {
            Some(kind) => format!("; did you mean `{kind}`?"),
            None if problem.expected.is_empty() => String::new(),
            None => format!("; expected {}", problem.expected),
        };
        let hint =
            if label == check { ". A check is `tcp`, a path such as `/healthz`, or KIND=VALUE" } else { "" };
        wrong(&label, format!("{}{expected}{hint}", problem.message))
    }

    /// Labels of one service that the container is no instance of.
    fn refuse_strangers(self, services: &BTreeMap<ServiceName, IpAddr>) -> Result<(), LabelError> {
        for label in self.0.keys() {
            let Some(name) = label.strip_prefix(PREFIX).and_then(|key| key.strip_prefix("service.")) else {
                continue;
            };
            let name = name.split('.').next().unwrap_or_default();
            if !services.contains_key(name) {
                let known: Vec<&str> = services.keys().map(ServiceName::as_str).collect();
                let known = if known.is_empty() {
                    "of no service".to_owned()
                } else {
                    format!("of {} alone", known.join(", "))
                };
                let why =
                    format!("it is an instance {known}; name {name} in the label {PREFIX}{SERVICE} as well");
                return Err(wrong(label, why));
            }
        }
        Ok(())
    }

    /// A label and its value: the service's own one, or that of all.
    fn find(self, service: Option<&ServiceName>, key: &str) -> Option<(String, &'a str)> {
        let own = service.map(|service| format!("{PREFIX}{SERVICE}.{service}.{key}"));
        let of_all = format!("{PREFIX}{key}");
        let mut labels = own.into_iter().chain([of_all]);
        labels.find_map(|label| self.0.get(&label).map(|text| (label, text.as_str())))
    }

    /// A label with this key, whichever service it is of.
    fn any(self, key: &str) -> Option<&'a str> {
        let is_it = |label: &&String| {
            label.strip_prefix(PREFIX).is_some_and(|own| own.rsplit('.').next() == Some(key))
        };
        self.0.keys().find(is_it).map(String::as_str)
    }
}

/// Labels that are not for the mesh: free data.
pub(super) fn free(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels
        .iter()
        .filter(|(label, _)| !label.starts_with(PREFIX))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// What is probed: `/healthz`, `tcp`, `tcp=8081`, `http=/healthz`.
fn probe(word: &str) -> (&str, Value) {
    if word.starts_with('/') {
        return ("http", word.into());
    }
    match word.split_once('=') {
        None | Some((_, "true")) => (word.trim_end_matches("=true"), Value::Bool(true)),
        Some((kind, value)) => (kind, number_or_text(value)),
    }
}

fn number_or_text(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| text.into(), Value::from)
}

fn number_of_port(value: &Value) -> Option<NonZeroU16> {
    NonZeroU16::new(u16::try_from(value.as_u64()?).ok()?)
}

fn port(text: &str) -> Option<NonZeroU16> {
    text.trim().parse().ok()
}

/// With commas between, or blanks.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ']).filter(|word| !word.is_empty())
}

fn wrong(label: &str, why: impl Display) -> LabelError {
    LabelError(format!("{label}: {why}"))
}

fn unknown(more: &[&str]) -> String {
    let of_one = [PORT, PORTS, TAGS, WEIGHT, BACKUP, CHECK].into_iter().chain(TIMING);
    let keys: Vec<&str> = [SERVICE].into_iter().chain(of_one).chain(more.iter().copied()).collect();
    format!(
        "there is no such label; there are {PREFIX}KEY and, for one service, {PREFIX}{SERVICE}.NAME.KEY, with the keys {}",
        keys.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Local {
        Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() }
    }

    /// The instances of a container that is called `called`, with these labels.
    fn instances(called: &[&str], labels: &[(&str, &str)]) -> Result<Vec<Definition>, String> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let read = || {
            let labels = Labels::read(&labels, &[])?;
            let called = || called.iter().map(|name| ServiceName::new(name).unwrap()).collect();
            let services = labels.services()?.unwrap_or_else(called);
            let services = services.into_iter().map(|name| (name, "10.42.3.5".parse().unwrap())).collect();
            labels.instances(
                &services,
                &Rest { container: "one", port: None, free: free(labels.0), reached: Reached::Directly },
                &local(),
            )
        };
        read().map_err(|error: LabelError| error.to_string())
    }

    fn shown(instances: &[Definition]) -> Vec<String> {
        instances.iter().map(|one| format!("{} {}", one.key, one.listens_on())).collect()
    }

    #[test]
    fn one_container_is_several_services_each_with_ports_weight_and_checks_of_its_own() {
        let told = instances(
            &["alias"],
            &[
                ("plexus.service", "web, metrics"),
                ("plexus.port", "8080"),
                ("plexus.ports", "admin=8081, debug=8082"),
                ("plexus.tags", "v2"),
                ("plexus.weight", "10"),
                ("plexus.check", "/healthz, tcp=8081"),
                ("plexus.interval", "500ms"),
                ("plexus.rise", "1"),
                ("plexus.service.metrics.port", "9100"),
                ("plexus.service.metrics.ports", ""),
                ("plexus.service.metrics.check", "tcp"),
                ("plexus.service.metrics.weight", "7"),
                ("plexus.service.metrics.backup", "true"),
                ("role", "primary"),
            ],
        );
        let told = told.unwrap();
        assert_eq!(shown(&told), ["metrics/metrics-a-one 10.42.3.5:9100", "web/web-a-one 10.42.3.5:8080"]);
        let [metrics, web] = told.as_slice() else { panic!("two of them") };
        assert_eq!((metrics.weight.0.get(), web.weight.0.get()), (7, 10));
        assert_eq!((metrics.backup, web.backup), (true, false));
        assert_eq!((metrics.ports.len(), web.ports.len(), web.ports["admin"].get()), (0, 2, 8081));
        assert_eq!((metrics.checks.len(), web.checks.len()), (1, 2));
        assert_eq!((web.checks[0].probe.kind(), web.checks[1].probe.kind()), ("http", "tcp"));
        assert!(
            told.iter().flat_map(|one| &one.checks).all(|check| check.timing.interval().as_millis() == 500)
        );
        assert!(told.iter().all(|one| one.labels["role"] == "primary" && one.tags.len() == 1));
    }

    #[test]
    fn what_is_called_something_is_an_instance_of_it_once_it_has_a_port() {
        assert_eq!(shown(&instances(&["web"], &[]).unwrap()), [""; 0]);
        assert_eq!(
            shown(&instances(&["web"], &[("plexus.port", "80")]).unwrap()),
            ["web/web-a-one 10.42.3.5:80"]
        );
        assert_eq!(
            shown(&instances(&["web"], &[("plexus.port", "80"), ("plexus.service", "none")]).unwrap()),
            [""; 0]
        );
        let of_one = [("plexus.service.web.port", "80")];
        assert_eq!(shown(&instances(&["db", "web"], &of_one).unwrap()), ["web/web-a-one 10.42.3.5:80"]);
    }

    #[test]
    fn the_label_that_is_wrong_is_named_and_what_it_should_be() {
        let web = ("plexus.service", "web");
        let port = ("plexus.port", "80");
        for (labels, said) in [
            (&[("plexus.service", "My_Web")][..], "plexus.service: \"My_Web\" is no service name"),
            (&[web], "plexus.service: there is no port of web; add the label plexus.port"),
            (&[web, ("plexus.port", "http")], "plexus.port: \"http\" is no port"),
            (&[web, ("plexus.port", "0")], "plexus.port: \"0\" is no port"),
            (&[web, ("plexus.prot", "80")], "plexus.prot: there is no such label; there are plexus.KEY"),
            (
                &[web, port, ("plexus.service.web.prot", "80")],
                "plexus.service.web.prot: there is no such label",
            ),
            (&[web, port, ("plexus.service.web", "80")], "plexus.service.web: there is no such label"),
            (&[web, port, ("plexus.network", "x")], "plexus.network: there is no such label"),
            (
                &[web, port, ("plexus.service.wbe.port", "80")],
                "it is an instance of web alone; name wbe in the label",
            ),
            (&[web, port, ("plexus.ports", "metrics")], "plexus.ports: \"metrics\" is no NAME=PORT"),
            (&[web, port, ("plexus.ports", "A=1")], "plexus.ports: \"A\" is no port name"),
            (&[web, port, ("plexus.weight", "0")], "plexus.weight: \"0\" is no weight"),
            (&[web, port, ("plexus.backup", "yes")], "plexus.backup: \"yes\" is neither true nor false"),
            (
                &[web, port, ("plexus.interval", "1s")],
                "plexus.interval: there is no check; add the label plexus.check",
            ),
            (&[web, port, ("plexus.check", "healthz")], "plexus.check: "),
            (&[web, port, ("plexus.check", "htp=/x")], "did you mean `http`?"),
            (&[web, port, ("plexus.check", "tcp"), ("plexus.interval", "soon")], "plexus.interval: "),
            (
                &[web, port, ("plexus.check", "tcp"), ("plexus.service.web.rise", "0")],
                "plexus.service.web.rise: ",
            ),
            (&[web, port, ("", "x")], "labels: \"\": it is empty"),
            // Also where it is an instance of nothing so far.
            (&[("plexus.weight", "0")], "plexus.weight: \"0\" is no weight"),
            (&[port, ("plexus.check", "ftp")], "plexus.check: it names no kind of check"),
        ] {
            let why = instances(&[], labels).unwrap_err();
            assert!(why.contains(said), "{labels:?}: {why}");
        }
    }
}
