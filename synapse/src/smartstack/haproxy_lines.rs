//! What lines of HAProxy's configuration mean for a balancer of connections (pure): settings of the service, nothing, or something that
//! only HAProxy does, which is told.

use std::collections::BTreeMap;
use std::time::Duration;

use nerve::model::{ServiceSettings, SettingKey};

/// So much of what is not done is told of a service, and so much of each line, in characters.
const MAX_TOLD: usize = 20;
const MAX_LINE: usize = 80;

/// What becomes of a line that begins with certain words.
#[derive(Debug, Clone, Copy)]
enum Means {
    /// `tcp` or `http`.
    Mode,
    /// The policy.
    Balance,
    /// A setting whose value is the next word.
    Count(&'static str),
    /// A setting that is a time, which is the next word.
    Time(&'static str),
    /// How long nothing may move, as one side of a connection has it.
    Idle(Side),
    /// It is so here without being said, or does not matter.
    Nothing,
    /// How HAProxy probes servers, which nobody does here.
    Probes,
    /// Options of every server.
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Client,
    Server,
    Both,
}

/// Lines by their first words. What is not here is not done: it is told.
const LINES: &[(&str, Means)] = &[
    ("mode", Means::Mode),
    ("balance", Means::Balance),
    ("timeout connect", Means::Time("timeouts.connect")),
    ("contimeout", Means::Time("timeouts.connect")),
    ("timeout client", Means::Idle(Side::Client)),
    ("clitimeout", Means::Idle(Side::Client)),
    ("timeout server", Means::Idle(Side::Server)),
    ("srvtimeout", Means::Idle(Side::Server)),
    ("timeout tunnel", Means::Idle(Side::Both)),
    ("timeout queue", Means::Time("limits.queue_timeout")),
    ("timeout check", Means::Probes),
    ("timeout client-fin", Means::Nothing),
    ("timeout server-fin", Means::Nothing),
    ("timeout http-request", Means::Nothing),
    ("timeout http-keep-alive", Means::Nothing),
    ("maxconn", Means::Count("limits.service_connections")),
    ("rate-limit sessions", Means::Count("limits.connections_per_second")),
    ("default-server", Means::Server),
    ("retries", Means::Nothing),
    ("backlog", Means::Nothing),
    ("fullconn", Means::Nothing),
    ("log", Means::Nothing),
    ("log-format", Means::Nothing),
    ("log-tag", Means::Nothing),
    ("description", Means::Nothing),
    ("id", Means::Nothing),
    ("no log", Means::Nothing),
    ("no option", Means::Nothing),
    ("option abortonclose", Means::Nothing),
    ("option allbackups", Means::Nothing),
    ("option allredisp", Means::Nothing),
    ("option clitcpka", Means::Nothing),
    ("option contstats", Means::Nothing),
    ("option dontlog-normal", Means::Nothing),
    ("option dontlognull", Means::Nothing),
    ("option forceclose", Means::Nothing),
    ("option http-keep-alive", Means::Nothing),
    ("option http-pretend-keepalive", Means::Nothing),
    ("option http-server-close", Means::Nothing),
    ("option http-tunnel", Means::Nothing),
    ("option httpclose", Means::Nothing),
    ("option httplog", Means::Nothing),
    ("option log-separate-errors", Means::Nothing),
    ("option logasap", Means::Nothing),
    ("option nolinger", Means::Nothing),
    ("option prefer-last-server", Means::Nothing),
    ("option redispatch", Means::Nothing),
    ("option socket-stats", Means::Nothing),
    ("option splice-auto", Means::Nothing),
    ("option splice-request", Means::Nothing),
    ("option splice-response", Means::Nothing),
    ("option srvtcpka", Means::Nothing),
    ("option tcp-smart-accept", Means::Nothing),
    ("option tcp-smart-connect", Means::Nothing),
    ("option tcpka", Means::Nothing),
    ("option tcplog", Means::Nothing),
    ("redispatch", Means::Nothing),
    ("http-check", Means::Probes),
    ("tcp-check", Means::Probes),
    ("external-check", Means::Probes),
    ("option external-check", Means::Probes),
    ("option httpchk", Means::Probes),
    ("option ldap-check", Means::Probes),
    ("option log-health-checks", Means::Probes),
    ("option mysql-check", Means::Probes),
    ("option pgsql-check", Means::Probes),
    ("option redis-check", Means::Probes),
    ("option smtpchk", Means::Probes),
    ("option ssl-hello-chk", Means::Probes),
    ("option tcp-check", Means::Probes),
];

/// What becomes of an option of a server.
#[derive(Debug, Clone, Copy)]
enum OfServer {
    /// A setting whose value is the next word.
    Count(&'static str),
    /// A setting that is a time, which is the next word.
    Time(&'static str),
    /// A setting that has this value.
    Is(&'static str, &'static str),
    /// As every server has it, it means nothing; so many words more belong to it.
    Nothing(usize),
    /// How HAProxy probes servers; so many words more belong to it.
    Probes(usize),
    /// It is not done; so many words more belong to it.
    Lacks(usize),
}

/// Options of a server. What is not here is not done: it is told.
const OPTIONS: &[(&str, OfServer)] = &[
    ("maxconn", OfServer::Count("limits.endpoint_connections")),
    ("slowstart", OfServer::Time("slow_start")),
    ("send-proxy", OfServer::Is("client_address", "proxy_v1")),
    ("send-proxy-v2", OfServer::Is("client_address", "proxy_v2")),
    ("weight", OfServer::Nothing(1)),
    ("backup", OfServer::Nothing(0)),
    ("minconn", OfServer::Nothing(1)),
    ("init-addr", OfServer::Nothing(1)),
    ("non-stick", OfServer::Nothing(0)),
    ("tcp-ut", OfServer::Nothing(1)),
    ("check", OfServer::Probes(0)),
    ("no-check", OfServer::Probes(0)),
    ("inter", OfServer::Probes(1)),
    ("fastinter", OfServer::Probes(1)),
    ("downinter", OfServer::Probes(1)),
    ("rise", OfServer::Probes(1)),
    ("fall", OfServer::Probes(1)),
    ("port", OfServer::Probes(1)),
    ("addr", OfServer::Probes(1)),
    ("observe", OfServer::Probes(1)),
    ("on-error", OfServer::Probes(1)),
    ("error-limit", OfServer::Probes(1)),
    ("on-marked-down", OfServer::Probes(1)),
    ("on-marked-up", OfServer::Probes(1)),
    ("agent-check", OfServer::Probes(0)),
    ("agent-port", OfServer::Probes(1)),
    ("agent-inter", OfServer::Probes(1)),
    ("check-send-proxy", OfServer::Probes(0)),
    ("check-ssl", OfServer::Probes(0)),
    ("maxqueue", OfServer::Lacks(1)),
    ("cookie", OfServer::Lacks(1)),
    ("source", OfServer::Lacks(1)),
    ("redir", OfServer::Lacks(1)),
    ("track", OfServer::Lacks(1)),
    ("verify", OfServer::Lacks(1)),
    ("verifyhost", OfServer::Lacks(1)),
    ("ca-file", OfServer::Lacks(1)),
    ("crt", OfServer::Lacks(1)),
    ("sni", OfServer::Lacks(1)),
    ("resolvers", OfServer::Lacks(1)),
];

/// What lines have said so far. Later ones go before earlier ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    /// By the settings' names.
    said: BTreeMap<&'static str, String>,
    idle: BTreeMap<Side, Option<Duration>>,
    is_http: bool,
    /// How servers are probed was said.
    pub(super) probes: bool,
    lacks: Vec<String>,
}

impl Lines {
    /// The same for a service, which has its own to say: what is not done of these is told of them.
    pub(super) fn inherited(&self) -> Self {
        Self { lacks: Vec::new(), ..self.clone() }
    }

    /// Is it to be done what only someone does who reads requests?
    pub(super) fn is_http(&self) -> bool {
        self.is_http
    }

    /// What is not done, in words; `None`: everything is.
    pub(super) fn lacks(&self) -> Option<String> {
        let shown = self.lacks.iter().take(MAX_TOLD).map(|line| match line.char_indices().nth(MAX_LINE) {
            Some((end, _)) => format!("`{}…`", &line[..end]),
            None => format!("`{line}`"),
        });
        let more = self.lacks.len().saturating_sub(MAX_TOLD);
        let more = (more > 0).then(|| format!("{more} lines more"));
        let all: Vec<String> = shown.chain(more).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// As settings of the service.
    pub(super) fn settings(&self) -> ServiceSettings {
        let mut settings = ServiceSettings::default();
        for (name, value) in &self.said {
            // What does not do was not taken.
            let _ = SettingKey::find(name).map(|key| key.set(&mut settings, value));
        }
        settings
    }

    /// Takes a line of a section.
    pub(super) fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [first, rest @ ..] = &words[..] else { return };
        if first.starts_with('#') {
            return;
        }
        let two = rest.first().map(|second| format!("{first} {second}"));
        let known = |begin: &str| LINES.iter().find(|(known, _)| *known == begin).map(|(_, means)| *means);
        let (means, arguments) = match two.as_deref().and_then(known) {
            Some(means) => (Some(means), rest.get(1..).unwrap_or_default()),
            None => (known(first), rest),
        };
        let value = arguments.first().copied().unwrap_or_default();
        let is_taken = match means {
            None => false,
            Some(Means::Nothing) => true,
            Some(Means::Probes) => {
                self.probes = true;
                true
            }
            Some(Means::Mode) => {
                self.is_http = value == "http";
                ["tcp", "http"].contains(&value)
            }
            Some(Means::Balance) => policy(value).is_some_and(|policy| self.set("policy", policy.to_owned())),
            Some(Means::Count(key)) => self.set(key, value.to_owned()),
            Some(Means::Time(key)) => time(value).is_some_and(|time| self.set_time(key, time)),
            Some(Means::Idle(side)) => time(value).is_some_and(|time| self.set_idle(side, time)),
            Some(Means::Server) => return self.server_options(&arguments.join(" ")),
        };
        if !is_taken {
            self.lacks.push(words.join(" "));
        }
    }

    /// Takes what is said of every server.
    pub(super) fn server_options(&mut self, options: &str) {
        let words: Vec<&str> = options.split_whitespace().collect();
        let mut at = 0;
        while let Some(word) = words.get(at) {
            let known = OPTIONS.iter().find(|(known, _)| known == word);
            let means = known.map_or(OfServer::Lacks(0), |(_, means)| *means);
            let value = words.get(at + 1).copied().unwrap_or_default();
            let (is_taken, takes) = match means {
                // Without a weight there is no traffic.
                OfServer::Nothing(takes) => (*word != "weight" || value != "0", takes),
                OfServer::Probes(takes) => {
                    self.probes = true;
                    (true, takes)
                }
                OfServer::Lacks(takes) => (false, takes),
                OfServer::Count(key) => (self.set(key, value.to_owned()), 1),
                OfServer::Time(key) => (time(value).is_some_and(|time| self.set_time(key, time)), 1),
                OfServer::Is(key, value) => (self.set(key, value.to_owned()), 0),
            };
            let next = at + 1 + takes;
            if !is_taken {
                self.lacks.push(words[at..next.min(words.len())].join(" "));
            }
            at = next;
        }
    }

    /// Takes something else that is not done.
    pub(super) fn lack(&mut self, what: String) {
        self.lacks.push(what);
    }

    /// Tells whether the setting takes it.
    fn set(&mut self, key: &'static str, value: String) -> bool {
        let mut tried = ServiceSettings::default();
        let is_good = SettingKey::find(key).is_some_and(|known| known.set(&mut tried, &value).is_ok());
        if is_good {
            self.said.insert(key, value);
        }
        is_good
    }

    /// No time is for ever, which is so where nothing is said.
    fn set_time(&mut self, key: &'static str, time: Duration) -> bool {
        if time.is_zero() {
            self.said.remove(key);
            return true;
        }
        self.set(key, format!("{}ms", time.as_millis().max(1)))
    }

    /// A connection ends when it has been quiet for as long as the more patient side waits: HAProxy does not count the time that one
    /// side waits for the other.
    fn set_idle(&mut self, side: Side, time: Duration) -> bool {
        self.idle.insert(side, (!time.is_zero()).then_some(time));
        let sides = self
            .idle
            .get(&Side::Both)
            .map_or_else(|| self.idle.values().copied().collect::<Vec<_>>(), |both| vec![*both]);
        let is_endless = sides.iter().any(Option::is_none);
        let longest = sides.into_iter().flatten().max().filter(|_| !is_endless);
        self.set_time("timeouts.idle", longest.unwrap_or_default())
    }
}

fn policy(word: &str) -> Option<&'static str> {
    match word.split('(').next().unwrap_or_default() {
        "roundrobin" | "static-rr" => Some("round_robin"),
        "leastconn" => Some("least_connections"),
        "source" => Some("maglev"),
        "first" => Some("first"),
        "random" => Some("random"),
        _ => None,
    }
}

/// A time as HAProxy writes it: a number and a unit, which is milliseconds where there is none.
fn time(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let micros = match unit {
        "us" => 1,
        "" | "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    number.checked_mul(micros).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str], options: &str) -> Lines {
        let mut read = Lines::default();
        lines.iter().for_each(|line| read.line(line));
        read.server_options(options);
        read
    }

    fn set(lines: &Lines) -> Vec<String> {
        let settings = lines.settings();
        let set = SettingKey::all().filter_map(|key| Some(format!("{}={}", key.name, key.get(&settings)?)));
        set.collect()
    }

    #[test]
    fn lines_and_options_that_mean_something_for_connections_are_settings() {
        let lines = [
            "mode tcp",
            "balance leastconn",
            "timeout connect 200",
            "timeout client 30s",
            "timeout server 1m",
            "timeout queue 1500ms",
            "maxconn 5000",
            "rate-limit sessions 100",
            "option  tcplog",
            "# a comment",
            "",
        ];
        let read =
            of(&lines, "check inter 2s rise 3 fall 2 maxconn 50 slowstart 30s send-proxy-v2 weight 10");
        let expected = [
            "policy=least_connections",
            "slow_start=30s",
            "limits.endpoint_connections=50",
            "limits.service_connections=5000",
            "limits.connections_per_second=100",
            "limits.queue_timeout=1s 500ms",
            "client_address=proxy_v2",
            "timeouts.connect=200ms",
            "timeouts.idle=1m",
        ];
        assert_eq!(set(&read), expected);
        assert!((read.lacks().is_none(), read.is_http(), read.probes) == (true, false, true), "{read:?}");
    }

    #[test]
    fn what_is_not_done_is_told_to_the_word() {
        let lines = [
            "mode http",
            "acl is_x path_beg /x",
            "errorfile 503 /etc/haproxy/503.http",
            "balance uri",
            "option httpchk /ping",
            "cookie SRV insert",
            "timeout tarpit 1s",
            "maxconn many",
        ];
        let read = of(&lines, "ssl verify none check weight 0 cookie %{name}");
        let told = "`acl is_x path_beg /x`, `errorfile 503 /etc/haproxy/503.http`, `balance uri`, `cookie SRV insert`, \
                    `timeout tarpit 1s`, `maxconn many`, `ssl`, `verify none`, `weight 0`, `cookie %{name}`";
        assert_eq!(read.lacks().as_deref(), Some(told));
        assert!(read.is_http() && read.probes && set(&read).is_empty());
        let many: Vec<String> = (0..25).map(|n| format!("acl a{n} {}", "x".repeat(200))).collect();
        let many = of(&many.iter().map(String::as_str).collect::<Vec<_>>(), "").lacks().unwrap();
        assert!(many.ends_with("5 lines more") && many.len() < 2500, "{many}");
    }

    #[test]
    fn a_service_s_own_lines_go_before_the_defaults_and_for_ever_is_for_ever() {
        let defaults =
            of(&["mode http", "timeout client 1m", "timeout server 1m", "balance first", "acl x y"], "");
        let mut own = defaults.inherited();
        for line in ["mode tcp", "timeout server 2h", "balance static-rr"] {
            own.line(line);
        }
        assert_eq!(
            (set(&own), own.lacks(), own.is_http()),
            (vec!["policy=round_robin".to_owned(), "timeouts.idle=2h".to_owned()], None, false)
        );
        own.line("timeout client 0");
        assert_eq!(set(&own), ["policy=round_robin"]);
        own.line("timeout tunnel 5m");
        assert_eq!(set(&own), ["policy=round_robin", "timeouts.idle=5m"]);
    }

    #[test]
    fn the_settings_that_lines_are_exist_and_the_documentation_has_every_line() {
        let document = include_str!("../../../docs/migrating-from-smartstack.md");
        for (line, means) in LINES {
            assert!(document.contains(&format!("`{line}`")), "{line} is not documented");
            if let Means::Count(key) | Means::Time(key) = means {
                assert!(SettingKey::find(key).is_some(), "{key}");
            }
        }
        for (option, means) in OPTIONS {
            assert!(document.contains(&format!("`{option}`")), "{option} is not documented");
            if let OfServer::Count(key) | OfServer::Time(key) | OfServer::Is(key, _) = means {
                assert!(SettingKey::find(key).is_some(), "{key}");
            }
        }
    }
}
