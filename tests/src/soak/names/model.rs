//! What a name server should answer: the fleet as it was written, each state with the time in which it may have been seen, and
//! what each name means in it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::message::{Data, Response, kind, rcode};
use crate::soak::random::Random;

/// Services.
pub(super) const SERVICES: usize = 200;
/// The most copies of one.
const MOST_COPIES: usize = 12;
/// An agent may show what was written before for so long after the store has said that it has something else.
const NOTICE: Duration = Duration::from_secs(2);
/// Answers that are as old are not judged any more.
const MEMORY: Duration = Duration::from_secs(20);
/// Most records over UDP; over TCP, and of tasks, all of a service's stand in the answer.
const MOST_UDP: usize = 8;
pub(super) const DOMAIN: &str = "mesh.internal";
pub(super) const TAGS: [&str; 3] = ["v1", "v2", "canary"];
pub(super) const ZONES: [&str; 2] = ["east", "west"];

/// How a copy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Passing,
    Warning,
    Critical,
}

/// A copy of a service.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) number: usize,
    address: IpAddr,
    port: u16,
    http: Option<u16>,
    tag: Option<&'static str>,
    zone: Option<&'static str>,
    weight: u16,
    health: Health,
    draining: bool,
    backup: bool,
}

/// All copies of a service at some time.
type State = Arc<Vec<Copy>>;

/// A state, from when on the store may have had it, and since when it surely had.
#[derive(Debug)]
struct Version {
    state: State,
    begun: Duration,
    sure: Duration,
}

/// The fleet.
#[derive(Debug)]
pub(super) struct Model {
    start: Instant,
    services: Vec<Mutex<Vec<Version>>>,
}

/// Which copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    All,
    Tagged(&'static str),
    InZone(&'static str),
}

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Addresses and ports of copies; `all`: as many as there are.
    Copies { service: usize, group: Group, all: bool },
    /// Ports alone.
    Ports { service: usize, group: Group, http: bool },
    /// One copy.
    Copy { service: usize, number: usize },
    /// Whose address it is.
    Owner { service: usize, address: IpAddr },
    /// An address that is spelled out.
    Spelled(IpAddr),
    /// Nothing.
    Missing,
}

/// What is right.
#[derive(Debug, PartialEq, Eq)]
enum Right {
    Missing,
    /// The name is there, and has no such records.
    Nothing,
    /// So many of these.
    Some(BTreeSet<Data>, usize),
}

impl Model {
    pub(super) fn new() -> Self {
        let start = Instant::now();
        let empty = || vec![Version { state: State::default(), begun: Duration::ZERO, sure: Duration::ZERO }];
        Self { start, services: (0..SERVICES).map(|_| Mutex::new(empty())).collect() }
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn versions(&self, service: usize) -> MutexGuard<'_, Vec<Version>> {
        self.services[service].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of one copy: where its record stands, and what is to be there; `None`: nothing. It counts from now on as possible.
    pub(super) fn change(&self, random: &mut Random) -> (usize, String, Option<String>) {
        let (service, number) = (random.below(SERVICES), random.below(MOST_COPIES));
        let mut versions = self.versions(service);
        let mut copies: Vec<Copy> = versions.last().map(|version| version.state.to_vec()).unwrap_or_default();
        copies.retain(|copy| copy.number != number);
        // Some services are small, some are not there for a while.
        let stays = random.below(10) < 1 + service % 8;
        let copy = stays.then(|| Copy::any(service, number, random));
        copies.extend(copy.clone());
        versions.push(Version { state: Arc::new(copies), begun: self.now(), sure: Duration::MAX });
        let path = format!("instances/{}/{}", name_of(service), id_of(number));
        (service, path, copy.map(|copy| copy.record(service)))
    }

    /// The store has the last change of this service.
    pub(super) fn done(&self, service: usize) {
        let now = self.now();
        let mut versions = self.versions(service);
        if let Some(last) = versions.last_mut() {
            last.sure = now;
        }
        // What was replaced long ago nobody can have seen.
        let gone = versions.windows(2).take_while(|two| two[1].sure + NOTICE + MEMORY < now).count();
        versions.drain(..gone);
    }

    /// The states that may have been seen between these times.
    fn possible(&self, service: usize, sent: Duration, received: Duration) -> Vec<State> {
        let versions = self.versions(service);
        let replaced = versions.iter().skip(1).map(|next| next.sure.saturating_add(NOTICE));
        let until = replaced.chain([Duration::MAX]);
        let seen = versions.iter().zip(until);
        let seen = seen.filter(|(version, until)| version.begun <= received && *until >= sent);
        seen.map(|(version, _)| Arc::clone(&version.state)).collect()
    }

    /// Is it the answer to a question that was on its way in that time? Else why not.
    pub(super) fn judge(
        &self,
        what: What,
        kind: u16,
        response: &Response,
        (sent, received): (Duration, Duration),
        over_udp: bool,
    ) -> Result<(), String> {
        let states = match what.service() {
            Some(service) => self.possible(service, sent, received),
            None => vec![State::default()],
        };
        let mut rights: Vec<Right> = states.iter().map(|state| what.right(state, kind, over_udp)).collect();
        if rights.iter().any(|right| right.is(response)) {
            return Ok(());
        }
        rights.dedup();
        Err(format!("right would be {rights:?}"))
    }
}

pub(super) fn name_of(service: usize) -> String {
    format!("s-{service}")
}

pub(super) fn id_of(number: usize) -> String {
    format!("copy-{number}")
}

/// Few addresses a service, so that copies share them.
pub(super) fn address_of(service: usize, number: usize) -> IpAddr {
    match number % 6 {
        low @ 0..4 => format!("10.200.{service}.{}", low + 1).parse().expect("an address"),
        low => format!("fd00:200::{service:x}:{low:x}").parse().expect("an address"),
    }
}

impl Copy {
    fn any(service: usize, number: usize, random: &mut Random) -> Self {
        let one_in = |random: &mut Random, count| random.below(count) == 0;
        Self {
            number,
            address: address_of(service, number),
            port: u16::try_from(8000 + random.below(3)).expect("a port"),
            http: one_in(random, 3).then_some(80),
            tag: one_in(random, 2).then(|| TAGS[random.below(TAGS.len())]),
            zone: one_in(random, 2).then(|| ZONES[random.below(ZONES.len())]),
            weight: u16::try_from(1 + random.below(200)).expect("a weight"),
            health: match random.below(6) {
                0 => Health::Warning,
                1 | 2 => Health::Critical,
                _ => Health::Passing,
            },
            draining: one_in(random, 8),
            backup: one_in(random, 5),
        }
    }

    /// As an agent writes it.
    fn record(&self, service: usize) -> String {
        let mut record = json!({
            "service": name_of(service), "id": id_of(self.number), "node": "elsewhere", "address": self.address, "port": self.port,
            "weight": self.weight, "backup": self.backup, "draining": self.draining,
            "health": if self.health == Health::Critical { "critical" } else { "passing" },
            "warning": self.health == Health::Warning, "tags": self.tag.into_iter().collect::<Vec<_>>(),
        });
        if let Some(zone) = self.zone {
            record["zone"] = zone.into();
        }
        if let Some(http) = self.http {
            record["ports"] = json!({ "http": http });
        }
        record.to_string()
    }

    /// The best are named, and no others.
    fn rank(&self) -> Option<u8> {
        match self.health {
            _ if self.draining => None,
            Health::Passing => Some(u8::from(self.backup)),
            Health::Warning => Some(2),
            Health::Critical => Some(3),
        }
    }

    fn is_in(&self, group: Group) -> bool {
        match group {
            Group::All => true,
            Group::Tagged(tag) => self.tag == Some(tag),
            Group::InZone(zone) => self.zone == Some(zone),
        }
    }

    fn target(&self, port: u16) -> Data {
        let host = match self.address {
            IpAddr::V4(address) => address.octets().map(|octet| octet.to_string()).join("-"),
            IpAddr::V6(address) => address.segments().map(|part| format!("{part:x}")).join("-"),
        };
        Data::Target { weight: self.weight, port, host: format!("ip-{host}.addr.{DOMAIN}.") }
    }
}

impl What {
    fn service(self) -> Option<usize> {
        match self {
            Self::Copies { service, .. }
            | Self::Ports { service, .. }
            | Self::Copy { service, .. }
            | Self::Owner { service, .. } => Some(service),
            Self::Spelled(_) | Self::Missing => None,
        }
    }

    fn right(self, copies: &[Copy], kind: u16, over_udp: bool) -> Right {
        let most = if over_udp { MOST_UDP } else { usize::MAX };
        match self {
            Self::Missing => Right::Missing,
            Self::Spelled(address) => some(addresses([address], kind), kind, most),
            Self::Copies { group, .. } | Self::Ports { group, .. }
                if !copies.iter().any(|copy| copy.is_in(group)) =>
            {
                Right::Missing
            }
            Self::Copies { group, all, .. } => {
                let named = named(copies, group);
                let all = if all { usize::MAX } else { most };
                let data = match kind {
                    kind::SRV => distinct(named.iter().map(|copy| (copy, copy.port))),
                    _ => (addresses(named.iter().map(|copy| copy.address), kind), None),
                };
                some_of(data, kind, all)
            }
            Self::Ports { http: true, .. } if copies.iter().all(|copy| copy.http.is_none()) => Right::Missing,
            Self::Ports { group, http, .. } => {
                let named = named(copies, group);
                let ports =
                    named.iter().filter_map(|copy| Some((copy, if http { copy.http? } else { copy.port })));
                let data = if kind == kind::SRV { distinct(ports) } else { Default::default() };
                some_of(data, kind, most)
            }
            Self::Copy { number, .. } => match copies.iter().find(|copy| copy.number == number) {
                None => Right::Missing,
                Some(copy) if kind == kind::SRV => some([copy.target(copy.port)].into(), kind, most),
                Some(copy) => some(addresses([copy.address], kind), kind, most),
            },
            Self::Owner { service, address } => {
                let there = copies.iter().filter(|copy| copy.address == address);
                let names = there
                    .map(|copy| Data::Name(format!("{}.{}.{DOMAIN}.", id_of(copy.number), name_of(service))));
                match names.collect::<BTreeSet<Data>>() {
                    none if none.is_empty() => Right::Missing,
                    names if kind == kind::PTR || kind == kind::ANY => some(names, kind, most),
                    _ => Right::Nothing,
                }
            }
        }
    }
}

/// Those that an answer may name.
fn named(copies: &[Copy], group: Group) -> Vec<&Copy> {
    let of_group = || copies.iter().filter(|copy| copy.is_in(group));
    let best = of_group().filter_map(Copy::rank).min();
    of_group().filter(|copy| best.is_some() && copy.rank() == best).collect()
}

fn addresses(all: impl IntoIterator<Item = IpAddr>, kind: u16) -> BTreeSet<Data> {
    let is_of_kind = |address: &IpAddr| match kind {
        kind::A => address.is_ipv4(),
        kind::AAAA => address.is_ipv6(),
        _ => false,
    };
    all.into_iter().filter(is_of_kind).map(Data::Address).collect()
}

/// What may stand in an answer, and how much of it if that is less: of copies that share an address and a port one is named.
type Choice = (BTreeSet<Data>, Option<usize>);

fn distinct<'a>(copies: impl Iterator<Item = (&'a &'a Copy, u16)>) -> Choice {
    let (mut data, mut places) = (BTreeSet::new(), BTreeSet::new());
    for (copy, port) in copies {
        places.insert((copy.address, port));
        data.insert(copy.target(port));
    }
    let count = places.len();
    (data, Some(count))
}

fn some(data: BTreeSet<Data>, kind: u16, most: usize) -> Right {
    some_of((data, None), kind, most)
}

fn some_of((data, count): Choice, kind: u16, most: usize) -> Right {
    match kind {
        // RFC 8482: one record that says so.
        kind::ANY => Right::Some([Data::Other(kind::HINFO)].into(), 1),
        _ if data.is_empty() => Right::Nothing,
        _ => {
            let count = count.unwrap_or(data.len()).min(most);
            Right::Some(data, count)
        }
    }
}

impl Right {
    fn is(&self, response: &Response) -> bool {
        const SOA: u16 = 6;
        let is_negative = response.answers.is_empty() && response.authority == [SOA];
        match self {
            Self::Missing => response.rcode == rcode::NX_DOMAIN && is_negative,
            Self::Nothing => response.rcode == rcode::NO_ERROR && is_negative,
            Self::Some(data, count) => {
                let is_whole =
                    response.answers.len() == *count || response.truncated && response.answers.len() < *count;
                response.rcode == rcode::NO_ERROR
                    && is_whole
                    && response.answers.iter().all(|answer| data.contains(answer))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(number: usize) -> Copy {
        let health = Health::Passing;
        let (tag, zone, http) = (None, None, None);
        let address = address_of(3, number);
        Copy { number, address, port: 80, http, tag, zone, weight: 1, health, draining: false, backup: false }
    }

    fn answer(rcode: u8, answers: Vec<Data>) -> Response {
        let authority = if answers.is_empty() { vec![6] } else { Vec::new() };
        Response { id: 0, truncated: false, rcode, question: Vec::new(), answers, authority, has_opt: false }
    }

    #[test]
    fn the_best_are_named_and_what_is_not_there_is_missing() {
        let what = What::Copies { service: 3, group: Group::All, all: false };
        let backup = Copy { backup: true, ..copy(1) };
        let warning = Copy { health: Health::Warning, ..copy(2) };
        let critical = Copy { health: Health::Critical, ..copy(3) };
        let drained = Copy { draining: true, ..copy(0) };
        let right = |copies: &[Copy]| what.right(copies, kind::A, true);
        let only = |number| Right::Some([Data::Address(address_of(3, number))].into(), 1);
        let mut all = vec![drained, critical.clone(), warning, backup, copy(0)];
        for number in [0, 1, 2, 3] {
            assert_eq!(right(&all), only(number));
            all.pop();
        }
        assert_eq!(right(&all), Right::Nothing);
        assert_eq!(right(&[]), Right::Missing);
        let tagged = What::Copies { service: 3, group: Group::Tagged("v1"), all: false };
        assert_eq!(tagged.right(&[critical], kind::A, true), Right::Missing);
    }

    #[test]
    fn a_state_may_be_seen_until_a_while_after_the_next_is_sure() {
        let model = Model::new();
        let what = What::Copies { service: 0, group: Group::All, all: false };
        let (missing, right) = (
            answer(rcode::NX_DOMAIN, vec![]),
            answer(rcode::NO_ERROR, vec![Data::Address(address_of(0, 0))]),
        );
        let judge = |response, sent, received| model.judge(what, kind::A, response, (sent, received), true);
        let state = Arc::new(vec![Copy { address: address_of(0, 0), ..copy(0) }]);
        let second = Duration::from_secs(1);
        model.versions(0).push(Version { state, begun: 10 * second, sure: Duration::MAX });
        assert!(
            judge(&missing, 8 * second, 9 * second).is_ok() && judge(&right, 8 * second, 9 * second).is_err()
        );
        assert!(
            judge(&missing, 99 * second, 99 * second).is_ok()
                && judge(&right, 99 * second, 99 * second).is_ok()
        );
        model.versions(0).last_mut().expect("a version").sure = 11 * second;
        assert!(judge(&missing, 13 * second, 99 * second).is_ok());
        assert!(
            judge(&missing, 14 * second, 99 * second).is_err()
                && judge(&right, 14 * second, 99 * second).is_ok()
        );
        let wrong = answer(rcode::NO_ERROR, vec![Data::Address(address_of(1, 0))]);
        assert!(judge(&wrong, 14 * second, 99 * second).unwrap_err().contains("10.200.0.1"));
    }
}
