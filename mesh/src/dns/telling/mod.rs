//! Telling what is asked: counters of answers, the names and clients that are there most, and a log of some queries.
//!
//! It looks at finished answers, over UDP once they are sent, and takes next to nothing of their time. Everything is counted; the rest is sampled: names and
//! clients all of them while there are few queries, so many a second else; lines of the log as configured, and so many a second at most.

mod answer;
mod sample;
mod top;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use smallvec::SmallVec;

use super::metrics::{Label, Metrics, Tally, Transport};
pub(super) use answer::Answer;
use answer::written;
use sample::{Bounded, Sampled, Skip};
use top::{Count, Top};

/// Names and clients that are counted in a period; as long as [`PERIOD`] and as many as this, what is told is of the last two.
const KEPT: usize = 512;
const PERIOD: Duration = Duration::from_secs(60);
/// Lines of the query log in a second.
const MOST_LINES: u32 = 100;

/// Is told of every answer.
#[derive(Debug)]
pub(super) struct Teller {
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sampled: Sampled,
    now: Period,
    before: Option<Period>,
    /// Which queries the log has; none where there is no log.
    log: Option<Skip>,
    lines: Bounded,
}

/// What was asked in a time.
#[derive(Debug)]
struct Period {
    begun: Instant,
    queries: u64,
    names: Top<Arc<[u8]>>,
    clients: Top<Address>,
}

/// A client; itself what it is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Address(IpAddr);

impl From<&Self> for Address {
    fn from(address: &Self) -> Self {
        *address
    }
}

/// What was asked lately.
#[derive(Debug, Clone, PartialEq)]
pub struct TopReport {
    /// For how long.
    pub window: Duration,
    /// How often in all.
    pub queries: u64,
    /// The names that were asked for, the most frequent first.
    pub names: Vec<Frequent<String>>,
    /// Who asked, the most frequent first.
    pub clients: Vec<Frequent<IpAddr>>,
}

/// How often something was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frequent<T> {
    /// What.
    pub what: T,
    /// About so often, and hardly ever more.
    pub queries: u64,
    /// By so much it may be too high.
    pub over: u64,
}

impl Period {
    fn new(begun: Instant) -> Self {
        Self { begun, queries: 0, names: Top::new(KEPT), clients: Top::new(KEPT) }
    }
}

impl State {
    /// Begins the next period when this one is over.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.now.begun);
        if age >= PERIOD {
            let ended = std::mem::replace(&mut self.now, Period::new(now));
            // After a silence nothing of before is the last period.
            self.before = (age < 2 * PERIOD).then_some(ended);
        }
    }
}

impl Teller {
    /// One query in so many is logged.
    pub(super) fn new(metrics: Arc<Metrics>, query_log: Option<NonZeroU32>) -> Self {
        let now = Instant::now();
        let state = State {
            sampled: Sampled::new(now),
            now: Period::new(now),
            before: None,
            log: query_log.map(|every| Skip::new(every.get())),
            lines: Bounded::new(MOST_LINES, now),
        };
        Self { metrics, state: Mutex::new(state) }
    }

    /// One query in so many is logged from now on.
    pub(super) fn log_queries(&self, query_log: Option<NonZeroU32>) {
        self.lock().log = query_log.map(|every| Skip::new(every.get()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of answers that were made together, to queries that came this way at that time. `road`: where they are from, unless they say so.
    pub(super) fn tell<'a>(
        &self,
        transport: Transport,
        road: Option<&'static str>,
        came: Instant,
        answers: impl ExactSizeIterator<Item = (Answer<'a>, SocketAddr)>,
    ) {
        let (mut tally, mut logged, mut suppressed) = (Tally::default(), SmallVec::<[_; 4]>::new(), 0);
        let mut state = self.lock();
        state.turn(came);
        state.now.queries += answers.len() as u64;
        state.sampled.expect(answers.len(), came);
        for (answer, client) in answers {
            tally.add(answer.asked_type(), answer.code());
            if let Some(weight) = state.sampled.take() {
                let address = Address(client.ip().to_canonical());
                state.now.clients.add(&address, weight);
                if let Some((name, _)) = answer.question() {
                    let mut lower: SmallVec<[u8; 256]> = name.into();
                    // Length octets are below 64, so they keep their value.
                    lower.make_ascii_lowercase();
                    state.now.names.add(&*lower, weight);
                }
            }
            if state.log.as_mut().is_some_and(Skip::hits) {
                if state.lines.take(came) {
                    logged.push((answer, client));
                } else {
                    suppressed += 1;
                }
            }
        }
        drop(state);
        self.metrics.answered(transport, &tally);
        self.metrics.query_log_suppressed.inc_by(suppressed);
        for (answer, client) in logged {
            log(answer, client, transport, road, came);
        }
    }

    /// What was asked in this period and in the one before.
    pub(super) fn top(&self) -> TopReport {
        let now = Instant::now();
        let mut state = self.lock();
        state.turn(now);
        let begun = state.before.as_ref().unwrap_or(&state.now).begun;
        let periods: SmallVec<[&Period; 2]> = state.before.iter().chain([&state.now]).collect();
        let names = most(periods.iter().flat_map(|period| period.names.counts()));
        let clients = most(periods.iter().flat_map(|period| period.clients.counts()));
        TopReport {
            window: now.saturating_duration_since(begun),
            queries: periods.iter().map(|period| period.queries).sum(),
            names: names.map(|(name, count)| frequent(written(name), count)).collect(),
            clients: clients.map(|(client, count)| frequent(client.0, count)).collect(),
        }
    }
}

/// Both periods' together, the most frequent first.
fn most<'a, K: Eq + Hash + 'a>(
    counts: impl Iterator<Item = (&'a K, Count)>,
) -> impl Iterator<Item = (&'a K, Count)> {
    let mut all: HashMap<&K, Count> = HashMap::new();
    for (key, Count { count, over }) in counts {
        let sum = all.entry(key).or_default();
        *sum = Count { count: sum.count + count, over: sum.over + over };
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(count.count));
    all.truncate(KEPT);
    all.into_iter()
}

fn frequent<T>(what: T, Count { count, over }: Count) -> Frequent<T> {
    Frequent { what, queries: count, over }
}

fn log(
    answer: Answer<'_>,
    client: SocketAddr,
    transport: Transport,
    road: Option<&'static str>,
    came: Instant,
) {
    let question = answer.question();
    let name = question.map_or_else(|| "-".to_owned(), |(name, _)| written(name));
    let kind = question.map_or_else(|| "-".to_owned(), |(_, kind)| RecordType::from(kind).to_string());
    tracing::info!(
        target: "mesh::dns::query",
        %client,
        name,
        r#type = kind,
        code = answer.code().as_str(),
        transport = transport.as_str(),
        road = road.unwrap_or_else(|| answer.road()),
        micros = u64::try_from(came.elapsed().as_micros()).unwrap_or(u64::MAX),
        "DNS query"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::metrics::{AskedType, Code};
    use crate::dns::wire::{self, Question, flag};

    fn answer(label: &str) -> Vec<u8> {
        let mut question = vec![u8::try_from(label.len()).unwrap()];
        question.extend(label.as_bytes());
        question.extend([0, 0, 1, 0, 1]);
        let flags = flag::RESPONSE | flag::AUTHORITATIVE;
        wire::query(1, flags, &Question::new(&question).unwrap(), None)
    }

    fn tell(teller: &Teller, at: Instant, labels: &[&str]) {
        let answers: Vec<_> = labels.iter().map(|label| answer(label)).collect();
        let client: SocketAddr = "192.0.2.1:5".parse().unwrap();
        teller.tell(Transport::Udp, None, at, answers.iter().map(|octets| (Answer::read(octets), client)));
    }

    #[test]
    fn few_queries_are_counted_to_the_last_and_those_of_long_ago_forgotten() {
        let metrics = Arc::new(Metrics::default());
        let teller = Teller::new(Arc::clone(&metrics), None);
        let began = Instant::now();
        tell(&teller, began, &["web", "WEB", "db", "web"]);
        let top = teller.top();
        let names: Vec<_> =
            top.names.iter().map(|name| (name.what.as_str(), name.queries, name.over)).collect();
        assert_eq!((top.queries, names), (4, vec![("web.", 3, 0), ("db.", 1, 0)]));
        assert_eq!(top.clients[0], frequent("192.0.2.1".parse().unwrap(), Count { count: 4, over: 0 }));
        assert_eq!(metrics.answers(Transport::Udp, AskedType::A, Code::NoError), 4);
        tell(&teller, began + PERIOD, &["web"]);
        assert_eq!(teller.lock().before.as_ref().unwrap().queries, 4);
        tell(&teller, began + 3 * PERIOD, &["db"]);
        assert!(teller.lock().before.is_none());
        assert_eq!(teller.lock().now.queries, 1);
    }

    #[test]
    fn many_queries_are_estimated_well() {
        let teller = Teller::new(Arc::default(), None);
        let began = Instant::now();
        let batch: Vec<&str> = ["web", "db", "web", "api"].into_iter().cycle().take(64).collect();
        // Half a million a second, for a second.
        for n in 0..8000 {
            tell(&teller, began + Duration::from_micros(125 * n), &batch);
        }
        let top = teller.top();
        let of = |name: &str| top.names.iter().find(|found| found.what == name).unwrap().queries;
        assert_eq!(top.queries, 512_000);
        assert!((190_000..322_000).contains(&of("web.")), "{}", of("web."));
        assert!((80_000..176_000).contains(&of("db.")), "{}", of("db."));
    }

    #[test]
    fn the_log_has_so_many_lines_a_second_and_the_rest_is_counted() {
        let metrics = Arc::new(Metrics::default());
        let teller = Teller::new(Arc::clone(&metrics), NonZeroU32::new(1));
        let began = Instant::now();
        let many = vec!["web"; 150];
        tell(&teller, began, &many);
        assert_eq!(metrics.query_log_suppressed.get(), 50);
        tell(&teller, began + Duration::from_secs(1), &many);
        assert_eq!(metrics.query_log_suppressed.get(), 100);
        teller.log_queries(None);
        tell(&teller, began + Duration::from_secs(2), &many);
        assert_eq!(metrics.query_log_suppressed.get(), 100, "there is no log");
        teller.log_queries(NonZeroU32::new(1));
        tell(&teller, began + Duration::from_secs(3), &many);
        assert_eq!(metrics.query_log_suppressed.get(), 150);
    }
}
