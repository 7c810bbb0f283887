//! HAProxy's configuration as text (pure): what holds for all, and each service's sections.
//!
//! A service's text is made when the service changes, and by itself. What a file was made from, but for servers, has a [`Mark`]: it
//! stands in the file as a variable of HAProxy's environment, so that HAProxy can be asked which file it runs.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use nerve::hash;

use super::config::{Config, Service};
use super::keywords::Section;
use super::server::{Reason, Refused, Server};

/// What a configuration was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// All lines but those of servers.
    pub(super) lines: u64,
    /// How often servers that HAProxy knew got other options.
    pub(super) options: u64,
}

impl Mark {
    /// The variable that it stands in.
    pub(super) const VARIABLE: &str = "PLEXUS_LOADED";
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.lines, self.options)
    }
}

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-').and_then(|(lines, options)| {
            Some(Self { lines: u64::from_str_radix(lines, 16).ok()?, options: options.parse().ok()? })
        });
        parts.ok_or_else(|| format!("{text:?} is no mark"))
    }
}

/// What does not change with servers.
#[derive(Debug, Clone, Default)]
pub(super) struct Frame {
    /// Up to where the mark stands.
    head: String,
    /// From there to the first service.
    body: String,
    /// The frontend that several services share, the last of all.
    shared: String,
    /// The services' sections, without servers.
    pub(super) services: Vec<Sections>,
    /// A number for all of it.
    pub(super) lines: u64,
    /// Lines that no section takes.
    pub(super) refused: Vec<Refused>,
}

/// The sections of a service, without servers.
#[derive(Debug, Clone, Default)]
pub(super) struct Sections {
    frontend: String,
    backend: String,
    /// What its lines say of servers that are added while HAProxy runs.
    pub(super) added: Added,
}

/// What holds for servers that are added while HAProxy runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Added {
    /// The options of `default-server`, which such servers do not have by themselves.
    pub(super) defaults: String,
    /// Does anything go by cookies?
    pub(super) cookies: bool,
}

impl Frame {
    /// Of a configuration.
    pub(super) fn of(config: &Config) -> Self {
        let mut frame = Self::default();
        frame.head.push_str("# Written by Plexus: changes made here are lost.\n\nglobal\n");
        push(&mut frame.head, &config.global);
        frame.body.push_str("\ndefaults\n");
        push(&mut frame.body, &config.defaults);
        let mut defaults = config.defaults.as_slice();
        for (title, lines) in &config.extra_sections {
            let _ = writeln!(frame.body, "\n{}", title.as_str());
            push(&mut frame.body, lines);
            // Of several such sections the last one before a service's is the one that counts there.
            if title.as_str().split_whitespace().next() == Some("defaults") {
                defaults = lines;
            }
        }
        if let Some(lines) = &config.shared_frontend {
            frame.shared.push_str("\nfrontend shared-frontend\n");
            let taken = frame.taken(Section::Frontend, "shared-frontend", lines);
            push(&mut frame.shared, &taken);
        }
        for service in &config.services {
            let sections = frame.sections(service, config, defaults);
            frame.services.push(sections);
        }
        let mut all = format!("{}{}{}", frame.head, frame.body, frame.shared);
        for (service, sections) in config.services.iter().zip(&frame.services) {
            let options = &service.config;
            let _ = write!(all, "{}{}{}", sections.frontend, sections.backend, options.server_options);
            let weights = options.use_nerve_weights.unwrap_or(config.use_nerve_weights);
            let _ = write!(all, "{:?}{weights}", options.cookie_value_method);
        }
        frame.lines = hash::of(&all);
        frame
    }

    fn sections(&mut self, service: &Service, config: &Config, defaults: &[String]) -> Sections {
        let mut sections = Sections::default();
        let (name, own) = (service.name.as_str(), &service.config);
        if own.disabled {
            return sections;
        }
        let of_listen = |section: Section| own.listen.iter().filter(move |line| section.takes(line)).cloned();
        for line in
            own.listen.iter().filter(|line| !Section::Frontend.takes(line) && !Section::Backend.takes(line))
        {
            self.refuse(name, "listen", line);
        }
        let bind_address = own.bind_address.as_ref().unwrap_or(&config.bind_address);
        let bind = match own.port {
            Some(port) => Some(format!("{bind_address}:{port}")),
            None => {
                Some(bind_address.clone()).filter(|_| own.bind_address.as_deref().is_some_and(needs_no_port))
            }
        };
        let mut frontend = self.taken(Section::Frontend, name, &own.frontend);
        frontend.extend(of_listen(Section::Frontend));
        if let Some(bind) = bind {
            let _ = writeln!(sections.frontend, "\nfrontend {name}");
            push(&mut sections.frontend, &frontend);
            let options = own.bind_options.iter().map(|options| format!(" {options}")).collect::<String>();
            let _ = writeln!(
                sections.frontend,
                "\tbind {bind}{options}\n\tdefault_backend {}",
                service.backend()
            );
        }
        let mut backend = self.taken(Section::Backend, name, &own.backend);
        backend.extend(of_listen(Section::Backend));
        let _ = writeln!(sections.backend, "\nbackend {}", service.backend());
        push(&mut sections.backend, &backend);
        let lines =
            || defaults.iter().chain(&backend).map(|line| line.split_whitespace().collect::<Vec<_>>());
        sections.added.cookies = lines().any(|words| words.first() == Some(&"cookie"));
        let options = lines().filter(|words| words.first() == Some(&"default-server"));
        sections.added.defaults = options.map(|words| words[1..].join(" ")).collect::<Vec<_>>().join(" ");
        if config.shared_frontend.is_some() {
            let taken = self.taken(Section::Frontend, name, &own.shared_frontend);
            push(&mut self.shared, &taken);
        } else {
            for line in &own.shared_frontend {
                self.refuse(name, "shared frontend, which there is none of", line);
            }
        }
        sections
    }

    /// The lines that the section takes.
    fn taken(&mut self, section: Section, of: &str, lines: &[String]) -> Vec<String> {
        let (taken, other): (Vec<_>, Vec<_>) = lines.iter().cloned().partition(|line| section.takes(line));
        for line in other {
            self.refuse(of, section.as_str(), &line);
        }
        taken
    }

    fn refuse(&mut self, of: &str, section: &str, line: &str) {
        self.refused.push(Refused { what: format!("{of}: {line:?} in its {section}"), reason: Reason::Line });
    }

    /// The whole text, with the services' sections in their order.
    pub(super) fn text<'a>(&self, mark: Mark, services: impl Iterator<Item = &'a str>) -> String {
        let mut text = format!("{}\tsetenv {} {mark}\n{}", self.head, Mark::VARIABLE, self.body);
        for service in services {
            text.push_str(service);
        }
        text + &self.shared
    }
}

impl Sections {
    /// With these servers.
    pub(super) fn text(&self, servers: &[Server]) -> String {
        let mut text = format!("{}{}", self.frontend, self.backend);
        if self.backend.is_empty() {
            return text;
        }
        for server in servers {
            server.write_to(&mut text);
        }
        text
    }
}

/// A unix socket, or a descriptor.
fn needs_no_port(bind_address: &str) -> bool {
    bind_address.starts_with('/')
        || ["unix@", "abns@", "fd@", "sockpair@"].iter().any(|kind| bind_address.starts_with(kind))
}

fn push(text: &mut String, lines: &[String]) {
    for line in lines {
        let _ = writeln!(text, "\t{line}");
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;
    use proptest::prelude::*;

    use super::super::server::State;
    use super::*;

    fn config(text: &str) -> Config {
        Document::parse_yaml("x", text).unwrap().decode(Config::read).unwrap()
    }

    fn with(services: &str) -> Config {
        config(&format!(
            "{{do_writes: false, do_reloads: false, do_socket: false, global: [daemon], defaults: [mode http, retries 3],
              bind_address: 127.0.0.1, extra_sections: {{\"listen stats :3212\": [stats enable]}}, service: [{services}]}}"
        ))
    }

    fn server() -> Server {
        let address = "10.0.0.1:80".parse().unwrap();
        Server {
            name: "a_10.0.0.1:80".to_owned(),
            address,
            id: Some(1),
            cookie: None,
            options: "check".to_owned(),
            weight: None,
            state: State::Ready,
        }
    }

    fn text(config: &Config) -> String {
        let frame = Frame::of(config);
        let sections: Vec<_> = frame.services.iter().map(|sections| sections.text(&[server()])).collect();
        frame.text(Mark { lines: 1, options: 2 }, sections.iter().map(String::as_str))
    }

    #[test]
    fn a_configuration_has_the_shape_of_synapse_s() {
        let web = "{service: web, port: 3213, bind_address: 127.0.0.2, bind_options: accept-proxy, listen: [mode http, option httpchk /ping],
                    frontend: [timeout client 30s], backend: [balance leastconn]}";
        assert_eq!(
            text(&with(&format!("{web}, {{service: api, backend_name: api.v2}}"))),
            "# Written by Plexus: changes made here are lost.\n\nglobal\n\tdaemon\n\tsetenv PLEXUS_LOADED 0000000000000001-2\n\n\
             defaults\n\tmode http\n\tretries 3\n\nlisten stats :3212\n\tstats enable\n\n\
             frontend web\n\ttimeout client 30s\n\tmode http\n\tbind 127.0.0.2:3213 accept-proxy\n\tdefault_backend web\n\n\
             backend web\n\tbalance leastconn\n\tmode http\n\toption httpchk /ping\n\tserver a_10.0.0.1:80 10.0.0.1:80 id 1 check\n\n\
             backend api.v2\n\tserver a_10.0.0.1:80 10.0.0.1:80 id 1 check\n"
        );
    }

    #[test]
    fn services_share_a_frontend_where_there_is_one() {
        let api = "{service: api, shared_frontend: [acl is_api path_beg /api, use_backend api if is_api]}";
        let mut config = with(api);
        let frame = Frame::of(&config);
        assert_eq!(frame.refused.len(), 2);
        config.shared_frontend = Some(vec!["bind :80".to_owned(), "balance first".to_owned()]);
        assert!(text(&config).ends_with(
            "\nfrontend shared-frontend\n\tbind :80\n\tacl is_api path_beg /api\n\tuse_backend api if is_api\n"
        ));
        assert_eq!(Frame::of(&config).refused[0].what, "shared-frontend: \"balance first\" in its frontend");
    }

    #[test]
    fn a_frontend_listens_on_a_port_or_a_socket_or_is_not_there() {
        let bound = |service: &str| {
            let text = text(&with(&format!("{{service: web, {service}}}")));
            text.lines().find_map(|line| line.strip_prefix("\tbind ").map(str::to_owned))
        };
        assert_eq!(bound("port: 80").unwrap(), "127.0.0.1:80");
        assert_eq!(
            bound("bind_address: /run/web.sock, bind_options: mode 666").unwrap(),
            "/run/web.sock mode 666"
        );
        assert_eq!(bound("bind_address: 127.0.0.9"), None);
        assert!(!text(&with("{service: web, port: 80, disabled: true}")).contains("web"));
    }

    #[test]
    fn a_mark_changes_with_lines_and_not_with_servers() {
        let lines = |service: &str| Frame::of(&with(&format!("{{service: web{service}}}"))).lines;
        let all = [
            "",
            ", port: 80",
            ", server_options: check",
            ", backend: [balance first]",
            ", use_nerve_weights: true",
        ];
        let numbers: std::collections::BTreeSet<u64> = all.iter().map(|service| lines(service)).collect();
        assert_eq!((numbers.len(), lines("")), (all.len(), lines(", frontend: []")));
        let mark = Mark { lines: 255, options: 7 };
        assert_eq!(mark.to_string().parse(), Ok(mark));
        assert!("x".parse::<Mark>().is_err() && "1-".parse::<Mark>().is_err());
    }

    #[test]
    fn servers_that_are_added_later_have_what_the_file_gives_those_before() {
        let added = |backend: &str| {
            Frame::of(&with(&format!("{{service: web, backend: [{backend}]}}"))).services[0].added.clone()
        };
        assert_eq!(added("balance first"), Added::default());
        let both = added("default-server inter 2s, default-server  fall 3, cookie SRV insert");
        assert_eq!((both.defaults.as_str(), both.cookies), ("inter 2s fall 3", true));
    }

    proptest! {
        /// Whatever stands in a configuration that is read: a line of it is one line, in the section that it was for.
        #[test]
        fn no_value_adds_a_section(value in "\\PC{0,20}[\\r\\t \u{85}\u{2028}]?[a-z #\"]{0,20}", key in 0..5_usize) {
            let key = ["server_options", "bind_options", "bind_address", "frontend", "listen"][key];
            let quoted = serde_json::to_string(&value).unwrap();
            let text_of = format!("{{do_writes: false, do_reloads: false, do_socket: false, global: [], defaults: [],
                service: [{{service: web, port: 80, {key}: {quoted}}}]}}");
            let document = Document::parse_yaml("x", &text_of);
            if let Some(config) = document.ok().and_then(|document| document.decode(Config::read).ok()) {
                let whole = text(&config);
                let sections: Vec<_> = whole.lines().filter(|line| !line.is_empty() && !line.starts_with(['\t', '#'])).collect();
                prop_assert_eq!(sections, ["global", "defaults", "frontend web", "backend web"], "{}", whole);
                prop_assert_eq!(whole.split(['\n', '\r', '\u{85}', '\u{2028}']).count(), whole.lines().count() + 1);
            }
        }
    }
}
