//! Names that servers are known by, looked up: by this machine's resolver, or by asking name servers, who also say for how long an
//! answer holds.

mod ask;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::lookup_host;
use tokio::time::timeout;

use ask::{Asked, ask};

/// An answer of this machine's resolver, which does not say it, holds for so long.
const USUALLY: Duration = Duration::from_secs(30);
/// No answer holds for less, whatever it says: who says 0 is not asked without end.
pub(super) const LEAST: Duration = Duration::from_secs(5);
/// No answer holds for longer.
const LONGEST: Duration = Duration::from_secs(600);
/// How long this machine's resolver may take.
const WITHIN: Duration = Duration::from_secs(5);
/// What names the name servers of this machine.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// resolv.conf(5) has three; whoever writes more is listened to, within reason.
const MOST_SERVERS: usize = 16;

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resolver {
    /// This machine's resolver, with its files and its search list.
    System,
    /// These name servers; none: those that resolv.conf names now.
    Servers(Vec<SocketAddr>),
}

/// What was found, and for how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found<T> {
    pub(super) all: BTreeSet<T>,
    pub(super) holds: Duration,
}

/// Where a service is (RFC 2782): those of the lowest priority that is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// A name.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) weight: u16,
}

impl Resolver {
    /// The addresses of a name, of both families. A name that does not exist has none.
    pub(super) async fn addresses(&self, name: &str) -> Result<Found<IpAddr>, String> {
        let Self::Servers(servers) = self else { return of_this_machine(name).await };
        let (parsed, servers) = (absolute(name)?, name_servers(servers).await?);
        let (four, six) =
            tokio::join!(ask(&servers, &parsed, RecordType::A), ask(&servers, &parsed, RecordType::AAAA));
        let (four, six) = match (four, six) {
            // One family is better than none: there are servers that do not answer for the other.
            (Ok(four), Err(_)) if !four.records.is_empty() => (four, Asked::none()),
            (Err(_), Ok(six)) if !six.records.is_empty() => (Asked::none(), six),
            (four, six) => (four?, six?),
        };
        let holds = [&four, &six].into_iter().filter_map(|asked| asked.ttl).min();
        let address = |data: &RData| match data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        };
        let all = four.records.iter().chain(&six.records).filter_map(address).collect();
        Ok(Found { all, holds: bounded(holds) })
    }

    /// Where a service is, by its SRV records.
    pub(super) async fn targets(&self, name: &str) -> Result<Found<Target>, String> {
        let servers = match self {
            Self::System => &[][..],
            Self::Servers(servers) => servers,
        };
        let asked = ask(&name_servers(servers).await?, &absolute(name)?, RecordType::SRV).await?;
        let read = |data: &RData| match data {
            // "." says that the service is decidedly not there.
            RData::SRV(srv) if !srv.target.is_root() => Some((
                srv.priority,
                Target {
                    host: srv.target.to_ascii().trim_end_matches('.').to_owned(),
                    port: srv.port,
                    weight: srv.weight,
                },
            )),
            _ => None,
        };
        let all: Vec<(u16, Target)> = asked.records.iter().filter_map(read).collect();
        let lowest = all.iter().map(|(priority, _)| *priority).min();
        let all = all.into_iter().filter(|(priority, _)| Some(*priority) == lowest).map(|(_, target)| target);
        Ok(Found { all: all.collect(), holds: bounded(asked.ttl) })
    }
}

async fn of_this_machine(name: &str) -> Result<Found<IpAddr>, String> {
    let looked_up = timeout(WITHIN, lookup_host((name, 0))).await;
    let found = looked_up.map_err(|_| format!("no answer within {WITHIN:?}"))?;
    let all = found.map_err(|error| error.to_string())?.map(|address| address.ip()).collect();
    Ok(Found { all, holds: USUALLY })
}

fn bounded(ttl: Option<Duration>) -> Duration {
    ttl.unwrap_or(USUALLY).clamp(LEAST, LONGEST)
}

/// Names are whole: no search list.
fn absolute(name: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(name).map_err(|error| format!("{name:?} is no name: {error}"))?;
    name.set_fqdn(true);
    Ok(name)
}

async fn name_servers(configured: &[SocketAddr]) -> Result<Vec<SocketAddr>, String> {
    if !configured.is_empty() {
        return Ok(configured.to_vec());
    }
    let text = tokio::fs::read_to_string(Path::new(RESOLV_CONF)).await;
    let text = text.map_err(|error| format!("read {RESOLV_CONF}: {error}"))?;
    let servers = named(&text);
    if servers.is_empty() { Err(format!("{RESOLV_CONF} names no name server")) } else { Ok(servers) }
}

/// The `nameserver` lines; what is no address is skipped, as the C library does.
fn named(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    let named = words.filter_map(|words| match words[..] {
        ["nameserver", address] => Some(SocketAddr::new(address.parse().ok()?, ask::PORT)),
        _ => None,
    });
    named.take(MOST_SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_names_the_servers() {
        let text =
            "# x\nsearch a.b\nnameserver 127.0.0.1\nnameserver\t2001:db8::1 # x\nnameserver\nnameserver x\n";
        let shown: Vec<String> = named(text).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn an_answer_holds_for_a_while_whatever_it_says() {
        assert_eq!(bounded(Some(Duration::ZERO)), LEAST);
        assert_eq!(bounded(Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(bounded(Some(Duration::from_secs(u64::from(u32::MAX)))), LONGEST);
        assert_eq!(bounded(None), USUALLY);
    }
}
