//! What a configuration of HAProxy's that stands on disk still tells (pure): its servers, and what it was made from.
//!
//! Ours is read when an agent starts, so that it goes on with the numbers and options that HAProxy runs with. One that Synapse wrote
//! has the same form.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::config::ServiceConfig;
use super::render::Mark;
use super::roster::{Known, Roster};
use super::server::{State, expand, own_id, without_weight};

/// What was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Remains {
    /// What the file says to be loaded with it.
    pub(super) mark: Option<Mark>,
    servers: HashMap<String, Vec<Line>>,
}

#[derive(Debug, Clone)]
struct Line {
    name: String,
    address: SocketAddr,
    /// What follows, word by word.
    rest: Vec<String>,
}

impl Remains {
    pub(super) fn of(text: &str) -> Self {
        let mut remains = Self::default();
        let mut backend: Option<&str> = None;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("setenv"), Some(Mark::VARIABLE)) => {
                    remains.mark = words.next().and_then(|mark| mark.parse().ok());
                }
                (Some("server"), Some(name)) => {
                    let address = words.next().and_then(|address| address.parse().ok());
                    if let Some((backend, address)) = backend.zip(address) {
                        let rest = words.map(str::to_owned).collect();
                        let line = Line { name: name.to_owned(), address, rest };
                        remains.servers.entry(backend.to_owned()).or_default().push(line);
                    }
                }
                (Some("backend"), name) => backend = name,
                // Any other line without an indent begins another section.
                (Some(_), _) if !line.starts_with([' ', '\t']) => backend = None,
                _ => {}
            }
        }
        remains
    }

    /// Adds what stood in the file to what is known of a service, whose backend this is.
    pub(super) fn fill(&mut self, roster: &mut Roster, backend: &str, config: &ServiceConfig) {
        for Line { name, address, mut rest } in self.servers.remove(backend).unwrap_or_default() {
            let disabled = rest.pop_if(|word| word == "disabled").is_some();
            let mut words = rest.into_iter().peekable();
            let mut pair = |key: &str| words.next_if(|word| word == key).and_then(|_| words.next());
            let id = pair("id").and_then(|id| id.parse().ok());
            let _cookie = pair("cookie");
            let rest: Vec<String> = words.collect();
            let (options, weight) = own(&rest.join(" "), &expand(&config.server_options, &name, address));
            let known = Known {
                name: None,
                address,
                id: id.or_else(|| own_id(options.as_deref()?)),
                options,
                weight,
                labels: BTreeMap::new(),
                gone: None,
                state: if disabled { State::Maint } else { State::Ready },
            };
            // Who remembers more was read before.
            let before = roster.servers.entry(name).or_insert_with(|| known.clone());
            (before.id, before.state) = (known.id.or(before.id), known.state);
            before.gone = before.gone.filter(|_| disabled);
        }
    }
}

/// A server's own options, where those of its service are told apart, and its weight.
fn own(line: &str, template: &str) -> (Option<String>, Option<u16>) {
    let template: String = template.split_whitespace().collect::<Vec<_>>().join(" ");
    let bare = without_weight(&template);
    let rest = [template, bare].into_iter().find_map(|template| {
        let rest = line.strip_prefix(&template)?;
        (rest.is_empty() || template.is_empty() || rest.starts_with(' ')).then(|| rest.trim())
    });
    let Some(rest) = rest else { return (None, None) };
    let weight =
        rest.rsplit_once("weight ").and_then(|(before, weight)| Some((before.trim(), weight.parse().ok()?)));
    match weight {
        Some((options, weight)) => (Some(options.to_owned()), Some(weight)),
        None => (Some(rest.to_owned()), None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::tests::config;
    use super::*;

    const FILE: &str = "global\n\tdaemon\n\tsetenv PLEXUS_LOADED 00000000000000ff-3\nlisten other\n\tserver no 10.0.0.9:80\n\n\
        frontend web\n\tdefault_backend web\n\nbackend web\n\tbalance leastconn\n\
        \tserver a_10.0.0.1:80 10.0.0.1:80 id 7 cookie a_10.0.0.1:80 check inter 2s backup\n\
        \tserver b_10.0.0.2:80 [::1]:80 id 8 check inter 2s weight 9 disabled\n\
        \tserver c name.example.com:80 id 9\n\n# end\n";

    #[test]
    fn what_stands_in_the_file_is_known() {
        let (mut remains, mut roster) = (Remains::of(FILE), Roster::default());
        assert_eq!(remains.mark.unwrap().to_string(), "00000000000000ff-3");
        let config = config("{server_options: check  inter 2s}");
        remains.fill(&mut roster, "web", &config);
        remains.fill(&mut roster, "other", &config);
        let shown: Vec<_> = roster
            .servers
            .iter()
            .map(|(name, one)| (name.as_str(), one.id, one.options.as_deref(), one.weight, one.state))
            .collect();
        assert_eq!(
            shown,
            [
                ("a_10.0.0.1:80", Some(7), Some("backup"), None, State::Ready),
                ("b_10.0.0.2:80", Some(8), Some(""), Some(9), State::Maint),
            ]
        );
    }

    #[test]
    fn options_that_are_not_of_this_template_are_not_known() {
        assert_eq!(own("check inter 5s backup", "check inter 2s"), (None, None));
        assert_eq!(own("checked", "check"), (None, None));
        assert_eq!(own("check weight 5", "check weight 3"), (Some(String::new()), Some(5)));
        assert_eq!(own("check weight 3", "check weight 3"), (Some(String::new()), None));
        assert_eq!(own("backup", ""), (Some("backup".to_owned()), None));
    }
}
