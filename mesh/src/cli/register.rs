//! `plexus register SVC`: checks an instance on this node and registers it, without a file.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use clap::Args;
use hyper::Method;
use nerve::model::{InstanceId, PortName, ServiceName, Tag, UnixPath, Weight};
use serde_json::Value;

use super::output::Output;
use super::{Reach, Result, print_change};
use crate::api::{self, Changed, CheckRequest, RegisterRequest};

const AFTER_HELP: &str = "\
The agent checks the instance and registers it for as long as it is well; an instance that is registered again is changed.
It lasts until `plexus deregister`, over restarts of the agent. What a file of services.d defines is changed there.

Examples:
  plexus register web --port 8080
  plexus register web --port 8080 --check http=/healthz --interval 1s --rise 2 --fall 3
  plexus register web --port 8081 --id web-canary --tag v2 --weight 10 --check tcp
  plexus register app --socket /run/gunicorn.sock --check http=/healthz --token-file /etc/plexus/tokens/operators
  plexus register db --port 5432 --named-port metrics=9187 --label role=primary";

/// Check an instance on this node and register it
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Register {
    /// The service that it is a copy of
    service: ServiceName,
    /// Its main port
    #[arg(long, required_unless_present = "socket")]
    port: Option<NonZeroU16>,
    /// The unix socket that it listens on: how this node's balancer connects to it; only who operates, by a token or the socket, says so
    #[arg(long, value_name = "PATH")]
    socket: Option<UnixPath>,
    /// A further port, by name
    #[arg(long = "named-port", value_name = "NAME=PORT")]
    ports: Vec<Pair<PortName, NonZeroU16>>,
    /// Unique in the service across the fleet [default: made of service, node and port or socket]
    #[arg(long)]
    id: Option<InstanceId>,
    /// Where it listens [default: the node's address]
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// A mark for filters
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Tag>,
    /// Free data that travels along
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Pair<String, String>>,
    /// Its share of the traffic, 1 to 65535 [default: 100]
    #[arg(long)]
    weight: Option<NonZeroU16>,
    /// It gets traffic only while none of the others can be had
    #[arg(long)]
    backup: bool,
    /// How to check it: `tcp`, or KIND=VALUE such as `http=/healthz`; several are checked each
    #[arg(long = "check", value_name = "CHECK")]
    checks: Vec<Probe>,
    /// How often to check, such as `1s`
    #[arg(long, value_name = "DURATION", requires = "checks")]
    interval: Option<String>,
    /// How long a check may take
    #[arg(long, value_name = "DURATION", requires = "checks")]
    timeout: Option<String>,
    /// How many checks in a row must pass before it gets traffic
    #[arg(long, value_name = "N", requires = "checks")]
    rise: Option<u32>,
    /// How many checks in a row must fail before it gets none
    #[arg(long, value_name = "N", requires = "checks")]
    fall: Option<u32>,
    /// Deregister it once it has not been well for so long, such as `1h`
    #[arg(long, value_name = "DURATION", requires = "checks")]
    deregister_critical_after: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

/// `KEY=VALUE`.
#[derive(Debug, Clone)]
pub(super) struct Pair<K, V>(pub(super) K, pub(super) V);

/// The part of a check that says what is probed.
#[derive(Debug, Clone, PartialEq)]
struct Probe(String, Value);

impl<K: FromStr<Err: ToString>, V: FromStr<Err: ToString>> FromStr for Pair<K, V> {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("it has no `=`")?;
        Ok(Self(
            key.parse().map_err(|e: K::Err| e.to_string())?,
            value.parse().map_err(|e: V::Err| e.to_string())?,
        ))
    }
}

impl FromStr for Probe {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, value) = text.split_once('=').unwrap_or((text, "true"));
        if kind.is_empty() {
            return Err("it names no kind of check; write such as `tcp` or `http=/healthz`".to_owned());
        }
        let value = match value {
            "true" => Value::Bool(true),
            _ => value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from),
        };
        Ok(Self(kind.to_owned(), value))
    }
}

impl Register {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("registering an instance of {}", self.service);
        let request = self.request();
        let changed: Changed =
            self.reach.agent().send(&what, Method::POST, api::path::INSTANCES, &request).await?;
        print_change(out, self.reach.json, &changed)
    }

    fn request(&self) -> RegisterRequest {
        let checks = self.checks.iter().map(|Probe(kind, value)| {
            let mut check = CheckRequest::from([(kind.clone(), value.clone())]);
            let timing = [("interval", &self.interval), ("timeout", &self.timeout)];
            let counts = [("rise", self.rise), ("fall", self.fall)];
            check.extend(timing.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v.clone()?.into()))));
            check.extend(counts.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.into()))));
            check
        });
        RegisterRequest {
            name: self.service.clone(),
            id: self.id.clone(),
            address: self.address,
            port: self.port,
            socket: self.socket.clone(),
            ports: self.ports.iter().map(|Pair(name, port)| (name.clone(), *port)).collect(),
            tags: self.tags.iter().cloned().collect(),
            labels: self.labels.iter().map(|Pair(key, value)| (key.clone(), value.clone())).collect(),
            weight: self.weight.map(Weight),
            backup: self.backup,
            check: checks.collect(),
            deregister_critical_after: self.deregister_critical_after.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_kind_with_or_without_a_value() {
        for (text, kind, value) in [
            ("tcp", "tcp", Value::Bool(true)),
            ("tcp=8081", "tcp", Value::from(8081)),
            ("http=/healthz?a=b", "http", Value::from("/healthz?a=b")),
        ] {
            assert_eq!(text.parse::<Probe>().unwrap(), Probe(kind.to_owned(), value), "{text}");
        }
        assert!("=x".parse::<Probe>().is_err());
    }
}
