//! The place that is DNS: names with addresses, and names whose SRV records say where a service is. Asked again when an answer holds no
//! more.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use nerve::document::{FromValue, Mismatch, Value};
use nerve::model::Weight;
use serde::{Serialize, Serializer};

use super::place::{Place, Tell};
use super::resolve::{self, Resolver};
use super::server::{Host, Server};

/// So many names are asked for at a time.
const AT_ONCE: usize = 16;
/// After nobody answered, it is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// A name that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// The addresses of a name, and the port that is served there.
    Addresses(String, NonZeroU16),
    /// SRV records, which have ports.
    Service(String),
}

/// Names, and who is asked.
#[derive(Debug)]
pub(super) struct DnsPlace {
    pub(super) questions: Vec<Question>,
    pub(super) resolver: Resolver,
}

/// What the last good answer to a question was.
type Known = BTreeMap<Question, Vec<Server>>;

#[async_trait]
impl Place for DnsPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        let mut known = Known::new();
        loop {
            let answers: Vec<_> = stream::iter(self.questions.clone())
                .map(|question| async move {
                    let answer = self.ask(&question).await;
                    (question, answer)
                })
                .buffered(AT_ONCE)
                .collect()
                .await;
            let (mut refused, mut holds) = (Vec::new(), Duration::MAX);
            let mut heard = 0;
            for (question, answer) in answers {
                match answer {
                    Ok((servers, time)) => {
                        heard += 1;
                        holds = holds.min(time);
                        known.insert(question, servers);
                    }
                    Err(why) => {
                        holds = holds.min(AGAIN);
                        refused.push((question.to_string(), why));
                    }
                }
            }
            match refused.first() {
                Some((_, why)) if heard == 0 => told.failed(why.clone()).await,
                // Of those that were not answered, what they last were.
                _ => told.found(known.values().flatten().cloned().collect(), refused).await,
            }
            tokio::time::sleep(holds.max(resolve::LEAST)).await;
            told.pace().before_another_look().await;
        }
    }
}

impl DnsPlace {
    async fn ask(&self, question: &Question) -> Result<(Vec<Server>, Duration), String> {
        match question {
            Question::Addresses(name, port) => {
                let found = self.resolver.addresses(name).await?;
                let at = |address: IpAddr| Server {
                    name: Some(name.clone()),
                    ..Server::at(Host::Address(address), *port)
                };
                Ok((found.all.into_iter().map(at).collect(), found.holds))
            }
            Question::Service(name) => {
                let found = self.resolver.targets(name).await?;
                let mut servers = Vec::new();
                let mut holds = found.holds;
                for target in found.all {
                    let Some(port) = NonZeroU16::new(target.port) else { continue };
                    // 0 is the smallest share there is (RFC 2782), not none.
                    let weight = NonZeroU16::new(target.weight).unwrap_or(NonZeroU16::MIN);
                    let addresses = self.resolver.addresses(&target.host).await?;
                    holds = holds.min(addresses.holds);
                    servers.extend(addresses.all.into_iter().map(|address| Server {
                        name: Some(target.host.clone()),
                        weight: Weight(weight),
                        ..Server::at(Host::Address(address), port)
                    }));
                }
                Ok((servers, holds))
            }
        }
    }
}

/// `name:port`, or a name that begins with `_`.
impl FromStr for Question {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |host: Host| match host {
            Host::Name(name) => Ok(name.trim_end_matches('.').to_owned()),
            Host::Address(_) => Err(format!("{text:?} is no name; an address is for `static`")),
        };
        if text.starts_with('_') && !text.contains(':') {
            return Ok(Self::Service(name(text.parse()?)?));
        }
        let server: Server = text.parse()?;
        Ok(Self::Addresses(name(server.host)?, server.port))
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(name, port) => write!(f, "{name}:{port}"),
            Self::Service(name) => f.write_str(name),
        }
    }
}

impl Serialize for Question {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromValue for Question {
    fn expected() -> String {
        "a name with a port such as \"web.example.com:8080\", or one with SRV records such as \"_http._tcp.web.example.com\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_name_with_a_port_or_one_of_a_service() {
        for (text, shown) in [
            ("web.example.com:80", "web.example.com:80"),
            ("web.example.com.:80", "web.example.com:80"),
            ("_http._tcp.web.example.com", "_http._tcp.web.example.com"),
        ] {
            assert_eq!(text.parse::<Question>().unwrap().to_string(), shown);
        }
        assert!(matches!("_http._tcp.a".parse(), Ok(Question::Service(_))));
        for bad in ["web.example.com", "192.0.2.1:80", "web:0", "_http._tcp.a b"] {
            assert!(bad.parse::<Question>().is_err(), "{bad}");
        }
    }
}
