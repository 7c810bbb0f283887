//! What the output is told: Synapse's `haproxy` section and what its services have under that name, in Synapse's words.
//!
//! The same readers serve `[output.haproxy]` of a node's own configuration and a configuration of Synapse's.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nerve::document::{FromValue, Mismatch, Reported, Section, Value};
use nerve::model::ServiceName;
use nerve::smartstack::{Number, Several};
use serde::{Serialize, Serializer};

use super::loose::{Line, Lines, ProxyName, Seconds, Share, Title};

/// What holds for all services, and the services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Lines of the section `global`.
    pub global: Vec<String>,
    /// Lines of the section `defaults`.
    pub defaults: Vec<String>,
    /// Are services' configurations written?
    pub do_writes: bool,
    /// HAProxy's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_file_path: Option<PathBuf>,
    /// Is HAProxy told to read it again?
    pub do_reloads: bool,
    /// How it is told: a line for the shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload_command: Option<String>,
    /// Is HAProxy told of changes while it runs?
    pub do_socket: bool,
    /// Its stats sockets, one a process.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub socket_file_path: Vec<PathBuf>,
    /// Is a configuration checked before it is used?
    pub do_checks: bool,
    /// How it is checked: a line for the shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_command: Option<String>,
    /// What is checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate_config_file_path: Option<PathBuf>,
    /// Where frontends listen.
    pub bind_address: String,
    /// Lines of the frontend that several services share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_frontend: Option<Vec<String>>,
    /// The shortest time between two reloads.
    #[serde(serialize_with = "as_seconds")]
    pub restart_interval: Duration,
    /// So much of it is added by chance, at most.
    pub restart_jitter: Share,
    /// Where servers that were there are remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_file_path: Option<PathBuf>,
    /// For how long.
    #[serde(serialize_with = "as_seconds")]
    pub state_file_ttl: Duration,
    /// What the order of servers is made from; without it, from the name of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_order_seed: Option<i64>,
    /// The highest number of a server.
    pub max_server_id: NonZeroU32,
    /// Do servers have the weights of instances?
    pub use_nerve_weights: bool,
    /// Sections as they are, by their titles.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_sections: BTreeMap<Title, Vec<String>>,
    /// The services that HAProxy serves.
    #[serde(rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
}

/// One service that HAProxy serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// The service of the catalog.
    pub service: ServiceName,
    /// What its sections are called.
    pub name: ProxyName,
    /// How.
    #[serde(flatten)]
    pub config: ServiceConfig,
}

/// What a service of Synapse's has under `haproxy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceConfig {
    /// HAProxy does not serve it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// Where its frontend listens; without it there is none, but for a `bind_address` that needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// Instead of the one of all services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<String>,
    /// What follows in the line `bind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<String>,
    /// What follows in each line `server`; `%{host}`, `%{port}` and `%{name}` stand for what they say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server_options: String,
    /// The port of each server, whatever the instance's is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_port_override: Option<NonZeroU16>,
    /// Instead of what is said for all services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_nerve_weights: Option<bool>,
    /// The order of its servers.
    pub backend_order: Order,
    /// What its backend is called, where not as its frontend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_name: Option<ProxyName>,
    /// What a server's cookie is.
    pub cookie_value_method: CookieValue,
    /// Lines of its frontend.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frontend: Vec<String>,
    /// Lines of its backend.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend: Vec<String>,
    /// Lines of whichever of the two they belong to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
    /// Lines of the frontend that several services share.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shared_frontend: Vec<String>,
}

/// In which order servers stand in their backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// By chance, on each node another one and always the same.
    #[default]
    Shuffle,
    /// By their names.
    Asc,
    /// By their names, the last first.
    Desc,
    /// As the catalog has them.
    NoShuffle,
}

/// What a server's cookie is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CookieValue {
    /// Its name.
    #[default]
    Name,
    /// The SHA-1 of its name.
    Hash,
}

impl Config {
    /// Reads Synapse's section `haproxy`, and natively the services too (`[[output.haproxy.service]]`).
    ///
    /// # Errors
    /// What is wrong was reported.
    pub fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let lines = |lines: Lines| lines.0;
        let global = section.required::<Lines>("global").map(lines);
        let defaults = section.required::<Lines>("defaults").map(lines);
        let config_file_path = section.optional::<PathBuf>("config_file_path");
        let extra = section.or("extra_sections", BTreeMap::<Title, Lines>::new()).into_iter();
        let sockets = section.or("socket_file_path", Several(Vec::<PathBuf>::new())).0;
        let services = section.list("service", Service::read);
        let line = |section: &mut Section<'_>, key| section.optional::<Line>(key).map(|line| line.0);
        let config = Self {
            do_writes: section.or("do_writes", true),
            do_reloads: section.or("do_reloads", true),
            reload_command: line(section, "reload_command"),
            do_socket: section.or("do_socket", true),
            socket_file_path: sockets,
            do_checks: section.or("do_checks", false),
            check_command: line(section, "check_command"),
            candidate_config_file_path: section.optional("candidate_config_file_path"),
            bind_address: line(section, "bind_address").unwrap_or_else(|| "localhost".to_owned()),
            shared_frontend: section.optional::<Lines>("shared_frontend").map(lines),
            restart_interval: section.or("restart_interval", Seconds(Duration::from_secs(2))).0,
            restart_jitter: section.or("restart_jitter", Share::default()),
            state_file_path: section.optional("state_file_path"),
            state_file_ttl: section.or("state_file_ttl", Seconds(Duration::from_secs(86_400))).0,
            server_order_seed: section.optional::<Number<i64>>("server_order_seed").map(|seed| seed.0),
            max_server_id: section.or("max_server_id", Number(MAX_SERVER_ID)).0,
            use_nerve_weights: section.or("use_nerve_weights", false),
            extra_sections: extra.map(|(title, lines)| (title, lines.0)).collect(),
            config_file_path,
            global: global?,
            defaults: defaults?,
            services: services.into_iter().collect::<Result<_, _>>()?,
        };
        config.agrees(section)?;
        Ok(config)
    }

    /// What one key needs of another.
    fn agrees(&self, section: &Section<'_>) -> Result<(), Reported> {
        let missing = |wanted: bool, is_there: bool, key, switch| {
            let expected = format!("it, or `{switch} = false`");
            if wanted && !is_there { Err(section.invalid(key, "it is missing", expected)) } else { Ok(()) }
        };
        let file = missing(self.do_writes, self.config_file_path.is_some(), "config_file_path", "do_writes");
        let reload = missing(self.do_reloads, self.reload_command.is_some(), "reload_command", "do_reloads");
        let socket =
            missing(self.do_socket, !self.socket_file_path.is_empty(), "socket_file_path", "do_socket");
        let check = missing(self.do_checks, self.check_command.is_some(), "check_command", "do_checks");
        let same =
            self.do_checks && self.config_file_path.is_some() && self.candidate() == self.config_file_path;
        let apart = if same {
            Err(section.invalid("candidate_config_file_path", "it is config_file_path", "another file"))
        } else {
            Ok(())
        };
        let (mut frontends, mut backends) = (BTreeSet::new(), BTreeSet::new());
        let mut outcome = file.and(reload).and(socket).and(check).and(apart);
        for service in self.services.iter().filter(|service| !service.config.disabled) {
            if !frontends.insert(&service.name) || !backends.insert(service.backend()) {
                let message = format!("two services have sections that are called {}", service.backend());
                outcome = Err(section.invalid("service", message, "another `name` for one of them"));
            }
        }
        outcome
    }

    /// The same, with relative paths beginning at `base`.
    #[must_use]
    pub fn with_paths_from(mut self, base: &Path) -> Self {
        let Self { config_file_path, candidate_config_file_path, state_file_path, socket_file_path, .. } =
            &mut self;
        for path in [config_file_path, candidate_config_file_path, state_file_path].into_iter().flatten() {
            *path = base.join(&path);
        }
        for path in socket_file_path {
            *path = base.join(&path);
        }
        self
    }

    /// What is written before it is checked.
    pub(super) fn candidate(&self) -> Option<PathBuf> {
        self.candidate_config_file_path.clone().or_else(|| {
            let mut path = self.config_file_path.clone()?.into_os_string();
            path.push(".tmp");
            Some(path.into())
        })
    }
}

const MAX_SERVER_ID: NonZeroU32 = NonZeroU32::new(65_535).unwrap();

impl Service {
    /// Reads one `[[output.haproxy.service]]` table.
    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let service = section.required::<ServiceName>("service");
        let name = section.given::<ProxyName>("name");
        let config = ServiceConfig::read(section);
        let service = service?;
        let name = name?.unwrap_or_else(|| ProxyName::sanitised(service.as_str()));
        Ok(Self { service, name, config: config? })
    }

    /// What its backend is called.
    pub(super) fn backend(&self) -> &ProxyName {
        self.config.backend_name.as_ref().unwrap_or(&self.name)
    }
}

impl ServiceConfig {
    /// Reads what a service of Synapse's has under `haproxy`.
    ///
    /// # Errors
    /// What is wrong was reported.
    pub fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let line = |section: &mut Section<'_>, key| section.given::<Line>(key).map(|line| line.map(|l| l.0));
        let port = section.given::<Number<NonZeroU16>>("port");
        let port_override = section.given::<Number<NonZeroU16>>("server_port_override");
        let backend_name = section.given::<ProxyName>("backend_name");
        let bind_address = line(section, "bind_address");
        let bind_options = line(section, "bind_options");
        let server_options = line(section, "server_options");
        let mut lines = |key| section.or(key, Lines(Vec::new())).0;
        let [frontend, backend, listen, shared_frontend] =
            ["frontend", "backend", "listen", "shared_frontend"].map(&mut lines);
        Ok(Self {
            disabled: section.or("disabled", false),
            use_nerve_weights: section.optional("use_nerve_weights"),
            backend_order: section.or("backend_order", Order::default()),
            cookie_value_method: section.or("cookie_value_method", CookieValue::default()),
            port: port?.map(|port| port.0),
            bind_address: bind_address?.filter(|address| !address.is_empty()),
            bind_options: bind_options?.filter(|options| !options.is_empty()),
            server_options: server_options?.unwrap_or_default(),
            server_port_override: port_override?.map(|port| port.0),
            backend_name: backend_name?,
            frontend,
            backend,
            listen,
            shared_frontend,
        })
    }
}

impl FromValue for Order {
    fn expected() -> String {
        "\"asc\", \"desc\", \"no_shuffle\" or \"shuffle\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("asc") => Ok(Self::Asc),
            Some("desc") => Ok(Self::Desc),
            Some("no_shuffle") => Ok(Self::NoShuffle),
            Some("shuffle") => Ok(Self::Shuffle),
            Some(other) => Err(value.mismatch(format_args!("{other:?} is no order"), Self::expected())),
            None => Err(value.wrong_kind(Self::expected())),
        }
    }
}

impl FromValue for CookieValue {
    fn expected() -> String {
        "\"name\" or \"hash\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("name") => Ok(Self::Name),
            Some("hash") => Ok(Self::Hash),
            Some(other) => Err(value.mismatch(format_args!("{other:?} is neither"), Self::expected())),
            None => Err(value.wrong_kind(Self::expected())),
        }
    }
}

fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use nerve::document::{Document, Errors};

    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let document = Document::parse_yaml("x", text).unwrap();
        document.decode(Config::read).map_err(|errors: Errors| errors.to_string())
    }

    const LEAST: &str = "{global: [daemon], defaults: [mode http], config_file_path: /h.cfg, \
                         reload_command: reload, socket_file_path: /h.sock";

    #[test]
    fn what_synapse_writes_is_read_with_its_defaults() {
        let least = read(&format!("{LEAST}}}")).unwrap();
        assert_eq!(
            (least.bind_address.as_str(), least.restart_interval, least.max_server_id.get()),
            ("localhost", Duration::from_secs(2), 65_535)
        );
        assert_eq!(least.candidate(), Some("/h.cfg.tmp".into()));
        assert_eq!(least.socket_file_path, [Path::new("/h.sock")]);
        let more = read(&format!(
            "{LEAST}, restart_interval: \"10\", restart_jitter: 0.1, extra_sections: {{\"listen stats :3212\": [stats enable]}}, \
             server_order_seed: 12, shared_frontend: bind :80}}"
        ))
        .unwrap();
        assert_eq!(more.restart_interval, Duration::from_secs(10));
        assert_eq!(more.extra_sections.keys().next().unwrap().as_str(), "listen stats :3212");
        assert_eq!(more.shared_frontend, Some(vec!["bind :80".to_owned()]));
    }

    #[test]
    fn what_is_switched_on_needs_what_it_works_with() {
        for (text, key) in [
            ("{global: [], defaults: [], reload_command: x, socket_file_path: x}", "config_file_path"),
            ("{global: [], defaults: [], config_file_path: x, socket_file_path: x}", "reload_command"),
            ("{global: [], defaults: [], config_file_path: x, reload_command: x}", "socket_file_path"),
            (&format!("{LEAST}, do_checks: true}}"), "check_command"),
            ("{defaults: []}", "global"),
        ] {
            let shown = read(text).unwrap_err();
            assert!(shown.contains(&format!(": {key}: it is missing")), "{shown}");
        }
        assert!(
            read("{global: [], defaults: [], do_writes: false, do_reloads: false, do_socket: false}").is_ok()
        );
    }

    #[test]
    fn services_stand_in_the_same_section_natively() {
        let with = |services: &str| read(&format!("{LEAST}, service: [{services}]}}"));
        let config = with("{service: web, port: \"80\", listen: mode tcp, backend_order: asc}").unwrap();
        let web = &config.services[0];
        assert_eq!((web.backend().as_str(), web.config.port), ("web", NonZeroU16::new(80)));
        assert_eq!(
            (web.config.listen.as_slice(), web.config.backend_order),
            (&["mode tcp".to_owned()][..], Order::Asc)
        );
        assert!(with("{service: web}, {service: web}").unwrap_err().contains("another `name`"));
        assert!(with("{service: web}, {service: api, backend_name: web}").is_err());
        assert!(with("{service: web}, {service: web, name: web2, backend_name: web2}").is_ok());
        assert!(with("{service: web, backend_order: x}").unwrap_err().contains("no_shuffle"));
        assert!(with("{service: web, bind_options: \"a\\nb\"}").is_err());
    }

    #[test]
    fn what_only_synapse_knows_is_listed_and_nothing_else_is_lost() {
        let text = r#"{"global": ["daemon"], "defaults": "mode http", "do_writes": true, "config_file_path": "/h.cfg",
            "reload_command": "sudo service haproxy reload", "socket_file_path": ["/a.sock", "/b.sock"], "state_file_ttl": "1800",
            "do_checks": true, "check_command": "haproxy -c -f /c.cfg", "candidate_config_file_path": "/c.cfg", "nginx_like": 1}"#;
        let document = Document::parse_yaml("synapse.conf.json", text).unwrap();
        let (config, unknown) = document.decode_tolerantly(Config::read).unwrap();
        assert_eq!((config.socket_file_path.len(), config.state_file_ttl), (2, Duration::from_secs(1800)));
        assert_eq!((config.candidate(), config.services.len()), (Some("/c.cfg".into()), 0));
        assert_eq!(unknown.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), ["nginx_like"]);
        let service = r#"{"port": null, "bind_address": "/run/web.sock", "server_options": "check", "listen": ["mode tcp"],
            "cookie_value_method": "hash", "backend_name": "web_main", "unknown": true}"#;
        let document = Document::parse_yaml("web.json", service).unwrap();
        let (config, unknown) = document.decode_tolerantly(ServiceConfig::read).unwrap();
        assert_eq!((config.port, config.cookie_value_method), (None, CookieValue::Hash));
        assert_eq!(unknown.len(), 1);
    }

    #[test]
    fn relative_paths_begin_where_the_configuration_stands() {
        let config = read(
            "{global: [], defaults: [], config_file_path: h.cfg, reload_command: x, socket_file_path: [a, /b]}",
        );
        let config = config.unwrap().with_paths_from(Path::new("/etc/plexus"));
        assert_eq!(config.config_file_path, Some("/etc/plexus/h.cfg".into()));
        assert_eq!(config.socket_file_path, [Path::new("/etc/plexus/a"), Path::new("/b")]);
    }
}
