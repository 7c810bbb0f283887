//! What is to be said to HAProxy so that a backend runs as it is to (pure), and what cannot be said.
//!
//! Servers of backends that are not ours are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::render::Added;
use super::runtime::{MAX_QUESTION, Running};
use super::server::{Server, State};

/// The first version that adds and deletes servers while it runs, without calling it an experiment.
const DYNAMIC: (u32, u32) = (2, 6);
/// `SRV_ADMF_FMAINT`: in maintenance.
const MAINT: u32 = 0x01;
/// `SRV_ADMF_FDRAIN`: drained.
const DRAIN: u32 = 0x08;

/// Why HAProxy has to read its configuration again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reload {
    /// It is not known what it runs: there is no socket, or nobody answers there.
    Unknown,
    /// Its sections, or lines of them, are others.
    Sections,
    /// A server that it knows has other options.
    Options,
    /// A server that it cannot add while it runs.
    NewServer,
    /// A weight that it cannot change while it runs.
    Weight,
}

impl Reload {
    pub(super) const ALL: [Self; 5] =
        [Self::Unknown, Self::Sections, Self::Options, Self::NewServer, Self::Weight];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Sections => "sections",
            Self::Options => "options",
            Self::NewServer => "new_server",
            Self::Weight => "weight",
        }
    }
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "its file has changed, and no socket says what it runs",
            Self::Sections => "it runs other sections than those of its file",
            Self::Options => "servers that it knows have other options",
            Self::NewServer => "a server cannot be added while it runs",
            Self::Weight => "a weight cannot be changed while it runs",
        })
    }
}

/// One thing to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) kind: Kind,
    pub(super) line: String,
}

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    State,
    Weight,
    Address,
    Add,
    Check,
    Delete,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::State, Self::Weight, Self::Address, Self::Add, Self::Check, Self::Delete];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Weight => "weight",
            Self::Address => "address",
            Self::Add => "add",
            Self::Check => "check",
            Self::Delete => "delete",
        }
    }

    /// Is this what HAProxy answers where it has done it?
    pub(super) fn is_done(self, answer: &str) -> bool {
        let answer = answer.trim();
        match self {
            Self::State | Self::Weight | Self::Check => answer.is_empty(),
            Self::Add => answer.is_empty() || answer.contains("registered"),
            Self::Delete => answer.is_empty() || answer.contains("deleted"),
            // It tells what it changed from and to.
            Self::Address => answer.is_empty() || answer.contains("changed") || answer.contains("no need"),
        }
    }
}

/// What is to be said of one server, in order; the first that is not done ends it.
pub(super) type Script = Vec<Command>;

/// What a backend lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Difference {
    pub(super) scripts: Vec<Script>,
    /// Servers that are to be added, and cannot be.
    pub(super) reload: Option<Reload>,
    /// Servers that are left disabled, since this version deletes none.
    pub(super) left: usize,
}

/// How `running` becomes `wanted`.
pub(super) fn difference(
    backend: &str,
    wanted: &[Server],
    running: &BTreeMap<String, Running>,
    added: &Added,
    version: (u32, u32),
) -> Difference {
    let mut difference = Difference::default();
    let can_add = version >= DYNAMIC;
    let mut named = BTreeSet::new();
    for server in wanted {
        named.insert(server.name.as_str());
        let at = format!("{backend}/{}", server.name);
        match running.get(&server.name) {
            Some(running) => {
                difference.scripts.extend(Some(adjust(&at, server, running)).filter(|s| !s.is_empty()))
            }
            // It does nothing: that it stands in the file is enough.
            None if server.state == State::Maint => {}
            None => match can_add.then(|| add(&at, server, added)).flatten() {
                Some(script) => difference.scripts.push(script),
                None => difference.reload = Some(Reload::NewServer),
            },
        }
    }
    for (name, running) in running.iter().filter(|(name, _)| !named.contains(name.as_str())) {
        let at = format!("{backend}/{name}");
        let mut script = Script::new();
        if running.admin & MAINT == 0 {
            script.push(state(&at, State::Maint));
        }
        if can_add {
            script.push(Command { kind: Kind::Delete, line: format!("del server {at}") });
        } else {
            difference.left += 1;
        }
        difference.scripts.extend(Some(script).filter(|script| !script.is_empty()));
    }
    difference
}

fn state(at: &str, state: State) -> Command {
    Command { kind: Kind::State, line: format!("set server {at} state {}", state.as_str()) }
}

fn adjust(at: &str, server: &Server, running: &Running) -> Script {
    let mut script = Script::new();
    let (address, port) = (server.address.ip().to_string(), server.address.port());
    if running.address != address || running.port != port {
        script.push(Command {
            kind: Kind::Address,
            line: format!("set server {at} addr {address} port {port}"),
        });
    }
    if let Some(weight) = server.weight.filter(|weight| u32::from(*weight) != running.weight) {
        script.push(Command { kind: Kind::Weight, line: format!("set server {at} weight {weight}") });
    }
    let is = match running.admin {
        admin if admin & MAINT != 0 => State::Maint,
        admin if admin & DRAIN != 0 => State::Drain,
        _ => State::Ready,
    };
    if is != server.state {
        script.push(state(at, server.state));
    }
    script
}

/// A new server is in maintenance, its checks off, until it is told otherwise. `None`: it cannot be said.
fn add(at: &str, server: &Server, added: &Added) -> Option<Script> {
    let Server { address, id, cookie, options, weight, .. } = server;
    let mut line = format!("add server {at} {address}");
    let mut more = |word: String| {
        line.push(' ');
        line.push_str(&word);
    };
    if let Some(id) = id {
        more(format!("id {id}"));
    }
    // Versions that refuse it cannot have it where it counts, and it need not be said where it does not.
    if let Some(cookie) = cookie.as_ref().filter(|_| added.cookies) {
        more(format!("cookie {cookie}"));
    }
    for options in [&added.defaults, options] {
        if !options.is_empty() {
            more(options.clone());
        }
    }
    if let Some(weight) = weight {
        more(format!("weight {weight}"));
    }
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"'`\\;#$<>".contains(c) || c == ' ';
    if line.len() > MAX_QUESTION || !line.chars().all(is_plain) {
        return None;
    }
    let mut script = vec![Command { kind: Kind::Add, line }];
    let words: Vec<&str> = added.defaults.split_whitespace().chain(options.split_whitespace()).collect();
    for (word, checks) in [("check", "health"), ("agent-check", "agent")] {
        if words.contains(&word) {
            script.push(Command { kind: Kind::Check, line: format!("enable {checks} {at}") });
        }
    }
    script.push(state(at, server.state));
    Some(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: u8, options: &str, state: State) -> Server {
        let address = format!("10.0.0.{host}:80").parse().unwrap();
        let (name, cookie) = (format!("s{host}"), Some(format!("s{host}")));
        Server {
            name,
            address,
            id: Some(host.into()),
            cookie,
            options: options.to_owned(),
            weight: None,
            state,
        }
    }

    fn running(servers: &[(u8, u32)]) -> BTreeMap<String, Running> {
        let one = |(host, admin): &(u8, u32)| {
            let running = Running { address: format!("10.0.0.{host}"), port: 80, admin: *admin, weight: 1 };
            (format!("s{host}"), running)
        };
        servers.iter().map(one).collect()
    }

    fn said(difference: &Difference) -> Vec<Vec<&str>> {
        difference.scripts.iter().map(|script| script.iter().map(|one| one.line.as_str()).collect()).collect()
    }

    fn told(wanted: &[Server], was: &[(u8, u32)], version: (u32, u32)) -> Difference {
        difference("web", wanted, &running(was), &Added::default(), version)
    }

    #[test]
    fn nothing_is_said_where_nothing_differs() {
        let wanted = [
            server(1, "", State::Ready),
            server(2, "", State::Drain),
            server(3, "", State::Maint),
            server(4, "", State::Maint),
        ];
        assert_eq!(told(&wanted, &[(1, 0), (2, 8), (3, 5)], (2, 6)), Difference::default());
    }

    #[test]
    fn what_differs_is_said_server_by_server() {
        let mut moved = server(1, "", State::Ready);
        (moved.address, moved.weight) = ("[::1]:81".parse().unwrap(), Some(7));
        let wanted =
            [moved, server(2, "", State::Ready), server(3, "", State::Drain), server(4, "", State::Maint)];
        assert_eq!(
            said(&told(&wanted, &[(1, 0), (2, 5), (3, 0), (4, 8)], (1, 8))),
            [
                vec!["set server web/s1 addr ::1 port 81", "set server web/s1 weight 7"],
                vec!["set server web/s2 state ready"],
                vec!["set server web/s3 state drain"],
                vec!["set server web/s4 state maint"],
            ]
        );
    }

    #[test]
    fn servers_come_and_go_where_the_version_can() {
        let wanted = [server(1, "check inter 2s", State::Ready)];
        assert_eq!(
            said(&told(&wanted, &[(2, 0), (3, 1)], (2, 6))),
            [
                vec![
                    "add server web/s1 10.0.0.1:80 id 1 check inter 2s",
                    "enable health web/s1",
                    "set server web/s1 state ready"
                ],
                vec!["set server web/s2 state maint", "del server web/s2"],
                vec!["del server web/s3"],
            ]
        );
        let old = told(&wanted, &[(2, 0), (3, 1)], (2, 5));
        assert_eq!(said(&old), [["set server web/s2 state maint"]]);
        assert_eq!((old.reload, old.left), (Some(Reload::NewServer), 2));
    }

    #[test]
    fn an_added_server_has_what_the_file_would_give_it_or_is_not_added() {
        let line = |added: &Added, options: &str| {
            let wanted = [server(1, options, State::Drain)];
            let told = difference("web", &wanted, &BTreeMap::new(), added, (3, 0));
            told.scripts.first().map(|script| script[0].line.clone())
        };
        let added = Added { defaults: "inter 1s check".to_owned(), cookies: true };
        let whole = "add server web/s1 10.0.0.1:80 id 1 cookie s1 inter 1s check backup";
        assert_eq!(line(&added, "backup").as_deref(), Some(whole));
        for options in ["x; shutdown sessions", "a\"b c\"", "a\\ b", "a\nb", &"x ".repeat(5000)] {
            assert_eq!(line(&added, options), None, "{options:?}");
        }
    }

    #[test]
    fn answers_tell_whether_it_was_done() {
        for (kind, answer, done) in [
            (Kind::State, "\n", true),
            (Kind::State, "No such server.\n", false),
            (Kind::Add, "New server registered.\n\n", true),
            (Kind::Add, "'cookie' option is not accepted for dynamic server\n", false),
            (Kind::Delete, "Server deleted.\n", true),
            (Kind::Delete, "Server still has connections attached to it, cannot remove it.\n", false),
            (Kind::Address, "IP changed from '10.0.0.1' to '10.0.0.2' by 'stats socket command'\n", true),
        ] {
            assert_eq!(kind.is_done(answer), done, "{kind:?} {answer:?}");
        }
    }
}
