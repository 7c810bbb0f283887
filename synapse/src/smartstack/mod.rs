//! A configuration of SmartStack's Synapse, as it is: where its services are found, where they are served, how they are balanced, and
//! which of them are written to files. Watchers, ports and settings are made of it; nothing here follows or serves anything: what stands in
//! nodes of ZooKeeper beside it is handed in.
//!
//! As there, JSON or YAML behind ERB, and keys that nobody knows are named and not looked at. Unlike there, what is wrong with one
//! service costs that service alone, and what HAProxy would do and nobody does here is told line by line.

mod again;
mod discovery;
mod haproxy_lines;
mod kept;
mod server;
mod service;
mod template;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use nerve::document::{Reported, Section, Value};
use nerve::model::{Address, ServiceName, ServiceSettings};
use nerve::smartstack::{Services, Several, Word};

pub use kept::Kept;
pub use nerve::smartstack::Wrong;
pub use service::Service;

use crate::output::{Target, haproxy};
use crate::watch::Znode;
use haproxy_lines::Lines;
use service::Sections;

/// HAProxy's own default.
const BIND_ADDRESS: &str = "localhost";
/// Said once, whatever says how servers are probed.
const NOBODY_PROBES: &str = "HAProxy's checks of servers (check, inter, rise, fall, option httpchk and their like) are not done: whoever \
                             registers a server checks it, and the balancer passes over one that refuses or resets connections";

/// The files of a configuration, and what they said when they were last good.
#[derive(Debug)]
pub struct Configuration {
    file: PathBuf,
    kept: Kept,
    services: Services<Service>,
    globals: Globals,
    /// What stands in nodes of ZooKeeper that may have sections.
    said: BTreeMap<Znode, Arc<str>>,
    /// Of each service the sections from there that were last good.
    good: BTreeMap<String, Elsewhere>,
}

/// Sections that stand in a node of ZooKeeper.
#[derive(Debug, Clone)]
struct Elsewhere {
    place: String,
    sections: serde_json::Value,
}

/// What the main file says beside its services.
#[derive(Debug, Clone)]
struct Globals {
    bind_address: String,
    defaults: Lines,
    /// What of the section `haproxy` is not done.
    lacks: Vec<String>,
    /// Where services are written to.
    directory: Option<PathBuf>,
    haproxy: serde_json::Value,
}

/// What is in force of a configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InForce {
    /// In the order of their names there.
    pub services: Vec<Service>,
    /// What is wrong, and costs what it is said of.
    pub wrong: Vec<Wrong>,
    /// What is not done that HAProxy would do, one line a service and one for what holds for all.
    pub lacks: Vec<String>,
    /// Where services are written to.
    pub directory: Option<PathBuf>,
    /// What HAProxy is told, if services stay there.
    pub haproxy: Option<haproxy::Config>,
    /// Nodes whose data [`Configuration::heed`] is to be told.
    pub sections_at: BTreeSet<Znode>,
}

impl Configuration {
    /// Nothing was read yet.
    #[must_use]
    pub fn of(file: PathBuf, kept: Kept) -> Self {
        let globals = Globals {
            bind_address: BIND_ADDRESS.to_owned(),
            defaults: Lines::default(),
            lacks: Vec::new(),
            directory: None,
            haproxy: serde_json::Value::Null,
        };
        let services = Services::of("SmartStack's Synapse");
        Self { file, kept, services, globals, said: BTreeMap::new(), good: BTreeMap::new() }
    }

    /// Reads the files again. Where the main one is wrong everything stays as it was, and where a service is, that one does. Blocks.
    pub fn load(&mut self) -> InForce {
        let read = self.services.load(&self.file, template::open, globals, |globals, name, section| {
            service::read(section, name, globals)
        });
        if let Some(globals) = read {
            self.globals = globals;
        }
        self.in_force()
    }

    /// Takes the sections of services from what stands in these nodes, where something does. Blocks.
    pub fn heed(&mut self, said: BTreeMap<Znode, Arc<str>>) -> InForce {
        self.said = said;
        self.in_force()
    }

    fn in_force(&mut self) -> InForce {
        let mut wrong = self.services.wrong().to_vec();
        let mut good = std::mem::take(&mut self.good);
        let all = self.services.all().values();
        let all: Vec<Service> = all.map(|service| self.told(service, &mut good, &mut wrong)).collect();
        good.retain(|name, _| self.services.all().contains_key(name));
        self.good = good;
        let mut names: BTreeMap<&ServiceName, &str> = BTreeMap::new();
        let mut places: BTreeMap<Address, &str> = BTreeMap::new();
        let mut services = Vec::new();
        for service in &all {
            let own = service.synapse_name.as_str();
            let served = if self.kept.keeps(own) { service.on_haproxy() } else { service.clone() };
            let mut refuse = |message| wrong.push(Wrong { place: service.file.clone(), message });
            if let Some(other) = names.get(&service.name) {
                refuse(format!(
                    "services.{own}: it is called {} here, as {other:?} is, which goes first; nothing of it is in force",
                    service.name
                ));
                continue;
            }
            if let Some((listen, other)) =
                served.listen.as_ref().and_then(|listen| Some((listen, places.get(listen)?)))
            {
                refuse(format!(
                    "services.{own}: it is to listen on {listen}, as {other:?} is, which goes first; nothing of it is in force"
                ));
                continue;
            }
            names.insert(&service.name, own);
            places.extend(served.listen.as_ref().map(|listen| (listen.clone(), own)));
            services.push(served);
        }
        let all_kept = self.kept.is_all();
        let probes =
            !all_kept && self.globals.defaults.probes || services.iter().any(|service| service.probes);
        let of_all = self
            .globals
            .lacks
            .iter()
            .filter(|_| !all_kept)
            .cloned()
            .chain(probes.then(|| NOBODY_PROBES.to_owned()));
        let of_each = services.iter().filter(|service| !service.lacks.is_empty());
        let of_each =
            of_each.map(|service| format!("{}: {}", service.synapse_name, service.lacks.join("; ")));
        let lacks = of_all.chain(of_each).collect();
        let file = self.file.display().to_string();
        let (haproxy, unread) = self.kept.told(&file, &self.globals.haproxy, &services);
        wrong.extend(unread);
        let sections_at = all.iter().flat_map(|service| service.sections_at.iter().cloned()).collect();
        InForce { services, wrong, lacks, directory: self.globals.directory.clone(), haproxy, sections_at }
    }

    /// A service with the sections that stand elsewhere, if any do. Those that are wrong leave the last good ones in force.
    fn told(
        &self,
        service: &Service,
        good: &mut BTreeMap<String, Elsewhere>,
        wrong: &mut Vec<Wrong>,
    ) -> Service {
        let name = &service.synapse_name;
        let before = good.remove(name);
        let texts = service.sections_at.iter().filter_map(|node| Some((node, self.said.get(node)?)));
        let mut read = texts.map(|(node, text)| Elsewhere::read(node.to_string(), text));
        let now = match read.find_map(Result::transpose) {
            None => return service.clone(),
            Some(now) => now.and_then(|now| Ok((now.told_to(service, &self.globals)?, now))),
        };
        let (told, elsewhere) = match now {
            Ok((told, now)) => (told, now),
            Err(errors) => {
                let kept = before.and_then(|before| {
                    let told = before.told_to(service, &self.globals).ok()?;
                    Some((told, before))
                });
                let instead = match kept {
                    Some(_) => "its last good sections stay in force",
                    None => "those of the configuration are in force",
                };
                let errors = errors.into_iter();
                wrong.extend(errors.map(|Wrong { place, message }| Wrong {
                    place,
                    message: format!("services.{name}: {message}; {instead}"),
                }));
                match kept {
                    Some(kept) => kept,
                    None => return service.clone(),
                }
            }
        };
        good.insert(name.clone(), elsewhere);
        told
    }
}

impl Elsewhere {
    /// `None`: nothing is said there.
    fn read(place: String, text: &str) -> Result<Option<Self>, Vec<Wrong>> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        match serde_json::from_str(text) {
            Ok(serde_json::Value::Object(none)) if none.is_empty() => Ok(None),
            Ok(sections @ serde_json::Value::Object(_)) => Ok(Some(Self { place, sections })),
            Ok(_) => {
                let message =
                    "what stands there is no JSON object; `generator_config_path: disabled` leaves it alone";
                Err(vec![Wrong { place, message: message.to_owned() }])
            }
            Err(error) => {
                let message = format!(
                    "what stands there is no JSON ({error}); `generator_config_path: disabled` leaves it alone"
                );
                Err(vec![Wrong { place, message }])
            }
        }
    }

    fn told_to(&self, service: &Service, globals: &Globals) -> Result<Service, Vec<Wrong>> {
        let read = |root: &mut Section<'_>| Sections::read(root, globals);
        let (sections, unknown) = again::read_again(&self.place, "", &self.sections, read)?;
        let mut told = service.told_by(sections, self.place.clone(), globals);
        if !unknown.is_empty() {
            let keys: Vec<&str> = unknown.iter().map(|problem| problem.key.as_str()).collect();
            told.lacks.push(format!("keys that mean nothing here: {}", keys.join(", ")));
        }
        Ok(told)
    }
}

impl InForce {
    /// How its services are balanced on this node, as far as it says so.
    #[must_use]
    pub fn settings(&self) -> HashMap<ServiceName, Arc<ServiceSettings>> {
        let said = self.services.iter().filter(|service| service.settings != ServiceSettings::default());
        said.map(|service| (service.name.clone(), Arc::new(service.settings.clone()))).collect()
    }

    /// Its services as files, if they are to be.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        let directory = self.directory.clone()?;
        let written = self.services.iter().filter(|service| service.is_written);
        let written = written.map(|service| (service.name.clone(), service.synapse_name.clone()));
        Some(Target { directory, services: Some(written.collect()) })
    }
}

fn globals(root: &mut Section<'_>) -> Result<Globals, Reported> {
    root.allow("statsd");
    let directory = root.section("file_output", |output| output.required::<PathBuf>("output_directory"));
    let haproxy = root.section_or_empty("haproxy", |haproxy| {
        for key in [
            "global",
            "do_writes",
            "config_file_path",
            "do_reloads",
            "reload_command",
            "do_socket",
            "socket_file_path",
            "do_checks",
            "check_command",
            "candidate_config_file_path",
            "restart_interval",
            "restart_jitter",
            "state_file_path",
            "state_file_ttl",
            "server_order_seed",
            "max_server_id",
            "use_nerve_weights",
        ] {
            haproxy.allow(key);
        }
        let bind_address = haproxy.or("bind_address", Word(BIND_ADDRESS.to_owned()));
        let given = haproxy.or("defaults", Several(Vec::new()));
        let shared = haproxy.or("shared_frontend", Several(Vec::<Word>::new()));
        let extra = haproxy.optional::<Value>("extra_sections");
        let mut defaults = Lines::default();
        given.0.iter().for_each(|Word(line)| defaults.line(line));
        let mut lacks: Vec<String> = defaults
            .lacks()
            .map(|lacks| format!("haproxy.defaults: not done: {lacks}"))
            .into_iter()
            .collect();
        if !shared.0.is_empty() {
            lacks.push("haproxy.shared_frontend: not done: a port leads to one service".to_owned());
        }
        let extra = extra.and_then(|extra| serde_json::to_value(extra).ok());
        if let Some(serde_json::Value::Object(extra)) = extra.filter(|extra| extra != &serde_json::json!({}))
        {
            let titles: Vec<&str> = extra.keys().map(String::as_str).collect();
            lacks.push(format!("haproxy.extra_sections: not done: {}", titles.join(", ")));
        }
        Globals {
            bind_address: bind_address.0,
            defaults,
            lacks,
            directory: None,
            haproxy: serde_json::Value::Null,
        }
    });
    Ok(Globals { directory: directory.transpose()?, haproxy: as_it_stands(root), ..haproxy })
}

/// The section `haproxy`. `Document::parse_json` makes a document of its text.
fn as_it_stands(section: &mut Section<'_>) -> serde_json::Value {
    let value = section.optional::<Value>("haproxy");
    value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
