//! One service of Synapse's: what it is to us.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use nerve::document::{Reported, Section};
use nerve::model::{Address, ServiceName, ServiceSettings, UnixPath};
use nerve::smartstack::{Number, Several, Word, resolve, service_name};

use super::Globals;
use super::discovery::{self, Beside};
use super::server::server;
use crate::watch::{self, Kind, Looks, Options, Server, Znode};

/// A service as it is taken from Synapse's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// What it is called there.
    pub synapse_name: String,
    /// What it is called here.
    pub name: ServiceName,
    /// The file that it stands in.
    pub file: String,
    /// Where its servers are found.
    pub watcher: watch::Config,
    /// Where it is served; `None`: it is not, or by its name alone.
    pub listen: Option<Address>,
    /// How it is balanced, as far as this node decides.
    pub settings: ServiceSettings,
    /// Is it among those that are written to files?
    pub is_written: bool,
    /// What its HAProxy lines ask for and is not done, one sentence each.
    pub lacks: Vec<String>,
    /// Its section `haproxy` as it stands there, for whoever keeps it on a HAProxy: an object, or null.
    pub haproxy: serde_json::Value,
    /// How HAProxy is to probe its servers was said.
    pub(super) probes: bool,
    /// Where sections may stand that replace `haproxy` and `file_output`.
    pub(super) sections_at: Vec<Znode>,
}

impl Service {
    /// The same with what those sections say instead. `file` is where they stand.
    pub(super) fn told_by(&self, sections: Sections, file: String, globals: &Globals) -> Self {
        let Sections { is_written, as_it_stands, haproxy } = sections;
        let mut service = Self { file, haproxy: as_it_stands, ..self.clone() };
        service.take(haproxy, is_written, globals);
        service
    }

    fn take(&mut self, haproxy: Haproxy, is_written: bool, globals: &Globals) {
        let Haproxy { listen, settings, mut lacks, probes, .. } = haproxy;
        let name = &self.synapse_name;
        let is_file_name = !name.contains('/') && !name.chars().any(char::is_control);
        if is_written && globals.directory.is_some() && !is_file_name {
            lacks.push("file_output: not done: its name cannot be that of a file".to_owned());
        }
        (self.listen, self.settings, self.lacks, self.probes) = (listen, settings, lacks, probes);
        self.is_written = is_written && is_file_name;
    }

    /// The same where a HAProxy serves it: not by a port of ours, nor by our settings.
    pub(super) fn on_haproxy(&self) -> Self {
        let settings = ServiceSettings::default();
        Self { listen: None, settings, lacks: Vec::new(), probes: false, ..self.clone() }
    }
}

/// Reads one service.
pub(super) fn read(section: &mut Section<'_>, name: &str, globals: &Globals) -> Result<Service, Reported> {
    section.allow("load_test_concurrency");
    let default_servers = section.list("default_servers", server);
    let usual = Options::default();
    let keep_default_servers = section.or("keep_default_servers", usual.keep_default_servers);
    let use_previous_backends = section.or("use_previous_backends", usual.use_previous_backends);
    let port = section.given::<Number<NonZeroU16>>("backend_port_override");
    let leader_election = section.or("leader_election", usual.leader_election);
    let sections = Sections::read(section, globals);
    let default_servers: Result<Vec<Server>, Reported> = default_servers.into_iter().collect();
    let port = port.map(|port| port.map(|Number(port)| port));
    let overriding = port.as_ref().ok().copied().flatten();
    let beside = Beside {
        default_servers: default_servers.as_deref().unwrap_or_default(),
        port: overriding.or_else(|| sections.as_ref().ok()?.haproxy.port_override),
    };
    let place = section.section("discovery", |discovery| discovery::read(discovery, beside));
    let place =
        place.ok_or_else(|| section.invalid("discovery", "it is missing", "a table with a `method`"))??;
    let place = if section.has("discovery_multi") {
        let several =
            section.section("discovery_multi", |several| discovery::read_multi(several, place, beside));
        several.ok_or_else(|| {
            section.invalid("discovery_multi", "it is no table", "a table with `watchers`")
        })??
    } else {
        place
    };
    let (default_servers, port, Sections { is_written, as_it_stands, haproxy }) =
        (default_servers?, port?, sections?);
    let port = port.or(haproxy.port_override);
    let options = match place.kind {
        // They are what the place names.
        Kind::Static(_) if place.resolvers.is_none() => {
            Options { leader_election, label_filters: place.label_filters, ..usual }
        }
        _ => Options {
            resolvers: place.resolvers,
            default_servers,
            keep_default_servers,
            use_previous_backends,
            leader_election,
            backend_port_override: port,
            label_filters: place.label_filters,
            pace: place.pace,
            ..usual
        },
    };
    let service = service_name(name, section)?;
    let watcher = watch::Config {
        // No watcher of our own configuration can be called so.
        name: format!("synapse:{service}"),
        looks: Looks::One { service: service.clone(), kind: place.kind },
        options,
    };
    let mut service = Service {
        synapse_name: name.to_owned(),
        name: service,
        file: section.file().to_owned(),
        watcher,
        listen: None,
        settings: ServiceSettings::default(),
        is_written: false,
        lacks: Vec::new(),
        haproxy: as_it_stands,
        probes: false,
        sections_at: place.sections_at,
    };
    service.take(haproxy, is_written, globals);
    Ok(service)
}

/// What says how it is served: what Synapse calls generators.
pub(super) struct Sections {
    is_written: bool,
    as_it_stands: serde_json::Value,
    haproxy: Haproxy,
}

impl Sections {
    /// Reads them.
    pub(super) fn read(section: &mut Section<'_>, globals: &Globals) -> Result<Self, Reported> {
        let is_written = section.section_or_empty("file_output", |output| !output.or("disabled", false));
        let as_it_stands = super::as_it_stands(section);
        let haproxy = section.section_or_empty("haproxy", |haproxy| Haproxy::read(haproxy, globals))?;
        Ok(Self { is_written, as_it_stands, haproxy })
    }
}

/// What the section `haproxy` of a service says.
#[derive(Debug, Default)]
struct Haproxy {
    listen: Option<Address>,
    port_override: Option<NonZeroU16>,
    settings: ServiceSettings,
    lacks: Vec<String>,
    probes: bool,
}

impl Haproxy {
    fn read(section: &mut Section<'_>, globals: &Globals) -> Result<Self, Reported> {
        for key in ["backend_name", "backend_order", "use_nerve_weights", "cookie_value_method"] {
            section.allow(key);
        }
        let disabled = section.or("disabled", false);
        let port_override = section.given::<Number<NonZeroU16>>("server_port_override");
        let port = section.given::<Number<NonZeroU16>>("port");
        let bind_address = section.given::<Word>("bind_address");
        let bind_options = section.given::<Word>("bind_options");
        let server_options = section.given::<Word>("server_options");
        let given = ["listen", "frontend", "backend"].map(|key| section.given::<Several<Word>>(key));
        let shared = section.given::<Several<Word>>("shared_frontend");
        let port_override = port_override?.map(|Number(port)| port);
        let (port, bind_address, bind_options) = (port?, bind_address?, bind_options?);
        let (server_options, shared) = (server_options?, shared?);
        let mut lines = globals.defaults.inherited();
        for given in given {
            given?.into_iter().flat_map(|Several(lines)| lines).for_each(|Word(line)| lines.line(&line));
        }
        if disabled {
            return Ok(Self { port_override, ..Self::default() });
        }
        lines.server_options(&server_options.map_or_else(String::new, |Word(options)| options));
        if let Some(Word(options)) = bind_options.filter(|Word(options)| !options.trim().is_empty()) {
            lines.lack(format!("bind {options}"));
        }
        for Word(line) in shared.into_iter().flat_map(|Several(lines)| lines) {
            lines.lack(format!("shared_frontend: {line}"));
        }
        let bind_address = bind_address.map_or_else(|| globals.bind_address.clone(), |Word(address)| address);
        let listen = listen(&bind_address, port.map(|Number(port)| port))
            .map_err(|wrong| section.invalid("bind_address", wrong, "an address of this machine"))?;
        let mut lacks: Vec<String> =
            lines.lacks().map(|lacks| format!("not done: {lacks}")).into_iter().collect();
        if lines.is_http() {
            lacks.push(
                "mode http is served as TCP: a connection stays with one server, requests and answers are neither read nor \
                 changed, and where no server can be reached it is closed instead of answered with 503"
                    .to_owned(),
            );
        }
        if listen.is_none() {
            lacks.push(
                "it has no port: it is reached by its name, and where a port is published for it".to_owned(),
            );
        }
        Ok(Self { listen, port_override, settings: lines.settings(), lacks, probes: lines.probes })
    }
}

/// Where HAProxy would listen. Blocks while a name is looked up.
fn listen(bind_address: &str, port: Option<NonZeroU16>) -> Result<Option<Address>, String> {
    let path = bind_address.strip_prefix("unix@").unwrap_or(bind_address);
    if path.starts_with('/') {
        let path = path.parse::<UnixPath>().map_err(|wrong| wrong.to_string())?;
        return Ok(Some(Address::Unix(path)));
    }
    let Some(port) = port else { return Ok(None) };
    let host = bind_address.strip_prefix("ipv4@").or_else(|| bind_address.strip_prefix("ipv6@"));
    let host = match host.unwrap_or(bind_address) {
        "" | "*" => "0.0.0.0",
        // Also where no file of hosts says so.
        "localhost" => "127.0.0.1",
        host => host,
    };
    Ok(Some(Address::Ip(SocketAddr::new(resolve(host)?, port.get()))))
}
