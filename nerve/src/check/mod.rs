//! Is an instance well? Probes on a schedule, and a verdict over several of them.
//!
//! A [`CheckSpec`] says what to probe and how often; the [`Runner`] probes it in a task of its own, so that a target that
//! hangs delays nobody else; [`hysteresis`] turns results into a verdict. An instance is as well as its worst check, or as its best
//! one if it says so; one that comes and goes is held down ([`flapping`]).
//!
//! To add a kind: one file with a type that implements [`Check`], `Serialize` and `read`, and one line in `kinds!`. A kind that
//! knows warnings, or more of an instance than where it listens, implements `Judge` instead.
//! What a check never does: touch the store, or change anything at its target.

mod advice;
mod carried;
mod connect;
mod credentials;
mod dbus;
mod docker;
mod exec;
mod external;
mod flapping;
mod grpc;
mod host;
mod http;
mod hysteresis;
mod level;
mod means;
mod memcached;
mod metrics;
mod monitor;
mod mysql;
mod postgres;
mod process;
mod program;
mod rabbitmq;
mod redis;
mod reports;
mod runner;
mod schedule;
mod scram;
mod seen;
mod smtp;
mod spec;
mod status;
mod systemd;
mod tcp;
mod ttl;
mod udp;
mod weight_from;
mod wire;
mod zookeeper;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::document::{Reported, Section};
use crate::model::ListensOn;

pub use advice::Advice;
pub use carried::{Beginning, Carried, CarriedCheck, Progress, Warned};
pub use docker::Docker;
pub use exec::Exec;
pub use external::External;
pub use flapping::Damping;
pub use grpc::Grpc;
pub use http::{Http, Https};
pub use hysteresis::Hysteresis;
pub use level::{FailsOn, Level};
pub use memcached::Memcached;
pub use metrics::Metrics;
pub use monitor::{CheckStatus, Monitor, Report, Subject};
pub use mysql::Mysql;
pub use postgres::Postgres;
pub use rabbitmq::Rabbitmq;
pub use redis::Redis;
pub use reports::SelfReport;
pub use runner::Runner;
pub use schedule::START_PAUSE;
pub use smtp::Smtp;
pub use spec::{CheckMode, CheckSpec, Timing, TimingError};
pub use status::StatusSet;
pub use systemd::Systemd;
pub use tcp::Tcp;
pub use ttl::Ttl;
pub use ttl::default_id;
pub use udp::Udp;
pub use weight_from::WeightFrom;
pub use zookeeper::Zookeeper;

use means::{Means, Of};
use program::Program;
use seen::Seen;

/// So much of a probe's text is kept, in bytes: it comes from the target and goes into the store.
const MAX_TEXT: usize = 256;

/// A way to probe an instance: it is well, or it is not. The runner sets the timeout, measures the latency and bounds the text.
#[async_trait]
pub trait Check: fmt::Debug + Send + Sync + 'static {
    /// What it does, for people: `http GET /healthz`.
    fn describe(&self) -> String;

    /// Puts a word in the place of each password: for where a definition is shown.
    fn hide_secrets(&mut self) {}

    /// What it does on this node that only files of the node may ask for.
    fn liberty(&self) -> Option<Liberty> {
        None
    }

    /// Probes once. Dropped when its time is over.
    ///
    /// # Errors
    /// The instance is not well; the text says why (`status 503`).
    async fn probe(&self, instance: &ListensOn) -> Result<String, String>;
}

/// What a kind of check does, in general.
#[async_trait]
trait Judge: fmt::Debug + Send + Sync {
    /// What it does, for people.
    fn describe(&self) -> String;

    /// Puts a word in the place of each password: for where a definition is shown.
    fn hide_secrets(&mut self) {}

    /// What it does on this node that only files of the node may ask for.
    fn liberty(&self) -> Option<Liberty> {
        None
    }

    /// What one probe takes.
    fn manner(&self) -> Manner {
        Manner::Asks
    }

    /// The program that is to run for as long as the check does.
    fn program(&self, _means: &Means) -> Option<Arc<Program>> {
        None
    }

    /// Probes once. Dropped when its time is over.
    async fn judge(&self, of: &Of<'_>) -> Seen;
}

/// What a check does on this node that whoever may register instances or start containers must not get to do by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liberty {
    /// It starts a program that its definition names.
    Programs,
    /// It sends what is in a file that its definition names.
    Files,
    /// It speaks with a unix socket that its definition names, and is whom the socket takes the agent for.
    Sockets,
    /// It connects to an address that its definition names.
    Addresses,
}

impl fmt::Display for Liberty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Programs => "runs a program on this node, and only the node's own files may say which",
            Self::Files => {
                "sends what is in a file of this node, and only the node's own files may say which"
            }
            Self::Sockets => {
                "connects to a unix socket of this node with the agent's rights, and only the node's own files, or \
                 whoever may operate it, say which"
            }
            Self::Addresses => {
                "connects to another address than the instance's, and labels may not say which"
            }
        })
    }
}

/// How a kind comes to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It connects to something: a descriptor for as long as the probe lasts.
    Asks,
    /// It runs a program for each probe.
    RunsAProgram,
    /// It waits for whoever tells it: it has all the time there is.
    IsTold,
}

#[async_trait]
impl<T: Check> Judge for T {
    fn describe(&self) -> String {
        Check::describe(self)
    }

    fn hide_secrets(&mut self) {
        Check::hide_secrets(self);
    }

    fn liberty(&self) -> Option<Liberty> {
        Check::liberty(self)
    }

    async fn judge(&self, of: &Of<'_>) -> Seen {
        self.probe(of.on).await.into()
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $key:literal => $variant:ident),* $(,)?) => {
        /// What a check probes: one variant a kind.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        #[allow(clippy::large_enum_variant, reason = "there are a few an instance, and none is moved around")]
        pub enum Probe {
            $($(#[$doc])* $variant($variant),)*
        }

        impl Probe {
            /// The key that names each kind.
            pub const KINDS: &[&str] = &[$($key),*];

            /// The key that names this kind: a metric label.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $key),* }
            }

            /// Puts a word in the place of each password: for where a definition is shown.
            pub fn hide_secrets(&mut self) {
                match self { $(Self::$variant(check) => Judge::hide_secrets(check)),* }
            }

            /// What it does on this node that only files of the node may ask for.
            pub fn liberty(&self) -> Option<Liberty> {
                self.check().liberty()
            }

            fn check(&self) -> &dyn Judge {
                match self { $(Self::$variant(check) => check),* }
            }

            fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
                let named: Vec<&str> = Self::KINDS.iter().copied().filter(|kind| section.has(kind)).collect();
                match *named.as_slice() {
                    $([$key] => $variant::read(section).map(Self::$variant),)*
                    _ => {
                        for kind in Self::KINDS {
                            section.allow(kind);
                        }
                        let kinds = Self::KINDS.join("`, `");
                        Err(section.refuse(
                            if named.is_empty() { "it names no kind of check" } else { "it names two kinds of check" },
                            format!("one key of `{kinds}`"),
                        ))
                    }
                }
            }
        }
    };
}

kinds! {
    /// A container's own HEALTHCHECK.
    "docker" => Docker,
    /// A program that is run, and its exit code.
    "exec" => Exec,
    /// A program that is asked many times.
    "external" => External,
    /// A service says by the gRPC health protocol that it serves.
    "grpc" => Grpc,
    /// A request is answered as expected.
    "http" => Http,
    /// A request by TLS is answered as expected.
    "https" => Https,
    /// memcached tells its version.
    "memcached" => Memcached,
    /// A MySQL or MariaDB server greets, or answers a query.
    "mysql" => Mysql,
    /// A PostgreSQL server lets clients in, or answers a query.
    "postgres" => Postgres,
    /// A message passes through a RabbitMQ broker.
    "rabbitmq" => Rabbitmq,
    /// A Redis server answers.
    "redis" => Redis,
    /// A mail server greets.
    "smtp" => Smtp,
    /// A unit is active.
    "systemd" => Systemd,
    /// Something accepts a connection.
    "tcp" => Tcp,
    /// The application reports.
    "ttl" => Ttl,
    /// A datagram is answered, or not refused.
    "udp" => Udp,
    /// It says itself how much it can take.
    "weight_from" => WeightFrom,
    /// A ZooKeeper server answers, or serves in a role.
    "zookeeper" => Zookeeper,
}

/// How one probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Was it well, at least with a warning?
    pub healthy: bool,
    /// Was there something to look after?
    #[serde(default)]
    pub warning: bool,
    /// What was seen: `status 200`, `connect to 127.0.0.1:80: refused`; at most 256 bytes, one line.
    pub text: String,
    /// What a program printed, as it is; at most 4 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// From the beginning of the probe to its end.
    pub latency: Duration,
    /// When it ended.
    pub at: SystemTime,
}

impl Outcome {
    /// How bad it was.
    #[must_use]
    pub fn level(&self) -> Level {
        match (self.healthy, self.warning) {
            (false, _) => Level::Critical,
            (true, true) => Level::Warning,
            (true, false) => Level::Passing,
        }
    }
}

/// A text of the target on one line and within bounds.
fn bounded(text: &str) -> String {
    let mut bounded = String::with_capacity(text.len().min(MAX_TEXT));
    for character in text.chars() {
        let character = if character.is_control() { ' ' } else { character };
        if bounded.len() + character.len_utf8() > MAX_TEXT {
            break;
        }
        bounded.push(character);
    }
    bounded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstanceId, ServiceName};
    use crate::tasks::Tasks;

    /// What one probe of `web/a` there says.
    pub(super) async fn judged(check: &impl Judge, on: ListensOn) -> Seen {
        let (service, id) = (ServiceName::new("web").unwrap(), InstanceId::new("a").unwrap());
        let (means, reports) = (Means::new(Tasks::new()), reports::Reports::new());
        let timeout = Duration::from_secs(5);
        let of = Of { service: &service, id: &id, on: &on, timeout, means: &means, reports: &reports };
        check.judge(&of).await
    }

    #[test]
    fn what_a_target_says_is_kept_to_one_line_and_256_bytes() {
        assert_eq!(bounded("a\r\nb\u{1b}[31m"), "a  b [31m");
        let long = bounded(&"ä".repeat(1000));
        assert!(long.len() <= MAX_TEXT && long.chars().all(|c| c == 'ä'));
    }

    fn read(text: &str) -> CheckSpec {
        let document = crate::document::Document::parse("x", text).unwrap();
        document.decode(CheckSpec::read).unwrap_or_else(|errors| panic!("{text}: {errors}"))
    }

    #[test]
    fn each_kind_written_as_json_reads_back_the_same() {
        for text in [
            "grpc = 81\nservice = \"a.B\"\nhost = \"a.b\"\ntls = true\ninsecure = true",
            "http = \"/x?y\"\nsend = \"a\"\nmethod = \"PUT\"\nmatches = \"^a+$\"\nkeep_alive = false",
            "https = \"/\"\nca_file = \"/ca\"\ncert_file = \"/c\"\nkey_file = \"/k\"\nserver_name = \"a.b\"",
            "memcached = true\nunix = \"/run/x\"",
            "mysql = true\nusername = \"a\"\npassword = \"b\"\ndatabase = \"c\"",
            "postgres = true\nusername = \"a\"\npassword_file = \"/b\"\ndatabase = \"c\"",
            "rabbitmq = true\nvhost = \"a\"\nqueue = \"b\"",
            "redis = 6380\npassword = \"b\"\nkey = \"c\"",
            "smtp = true\nehlo = \"a.b\"",
            "udp = 53\nsend_hex = \"00 ff\"\nexpect = \"a\"",
            "zookeeper = true\nrole = [\"leader\", \"follower\"]",
        ] {
            let spec = read(text);
            let json = serde_json::to_string(&spec).unwrap();
            let again = crate::document::Document::parse_json("x", &json).unwrap().decode(CheckSpec::read);
            assert_eq!(again.unwrap(), spec, "{json}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        for text in [
            "mysql = true\nusername = \"a\"\npassword = \"s3cret\"",
            "postgres = true\nusername = \"a\"\npassword = \"s3cret\"",
            "rabbitmq = true\nusername = \"a\"\npassword = \"s3cret\"",
            "redis = true\npassword = \"s3cret\"",
            "http = \"/\"\nheaders = { Authorization = \"s3cret\" }",
            "https = \"/\"\nheaders = { Cookie = \"s3cret\" }",
        ] {
            let mut spec = read(text);
            assert!(!format!("{spec:?} {}", spec.probe.check().describe()).contains("s3cret"), "{text}");
            assert!(
                serde_json::to_string(&spec).unwrap().contains("s3cret"),
                "it is to be read again: {text}"
            );
            spec.probe.hide_secrets();
            assert!(!serde_json::to_string(&spec).unwrap().contains("s3cret"), "{text}");
        }
    }
}
