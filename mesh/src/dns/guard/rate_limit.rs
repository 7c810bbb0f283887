//! Response rate limiting: how many answers of a kind a network gets in a second, since whoever asks over UDP may have written somebody
//! else's address on its questions.
//!
//! A table of fixed size has for each network and kind when its answers so far would have been given at the allowed rate (the generic
//! cell rate algorithm): one word, changed by compare-and-swap, so there is no lock, and no memory is asked for. A network that has
//! no place takes that of whoever was allowed something the longest ago. Locks are taken where limiting begins and ends, which is logged.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nerve::model::Prefix;
use rand::RngExt;

use super::siphash::{self, Key};
use crate::dns::config::RateLimit;
use crate::dns::metrics::{AnswerKind, Label};

/// What counts as one network. Smaller ones are had for nothing by whoever forges addresses.
const V4: u8 = 24;
const V6: u8 = 56;
/// Places of the table, and how many of them a network may have one of.
const SETS: usize = 4096;
const WAYS: usize = 4;
/// A place that others keep changing is left alone after so many tries.
const TRIES: usize = 4;
/// Networks whose limiting is told in the log at a time.
const MOST_NAMED: usize = 32;

/// A place: 19 bits that tell whose it is, one for "limited", and 44 of time in units of 16 µs (nine years).
const TIME_BITS: u32 = 44;
const TIME: u64 = (1 << TIME_BITS) - 1;
const LIMITED: u64 = 1 << TIME_BITS;
const TAG: u64 = !(TIME | LIMITED);
/// Units of time in a second.
pub(super) const SECOND: u64 = 1_000_000 / 16;

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    /// It is sent.
    Whole,
    /// It is sent cut short, so that an honest client asks again over TCP.
    Short,
    /// It is not sent.
    None,
}

/// Counts answers by network and kind.
#[derive(Debug)]
pub(super) struct RateLimiter {
    rule: RateLimit,
    key: Key,
    places: Box<[AtomicU64]>,
    began: Instant,
    named: Mutex<Vec<Named>>,
    /// More networks are limited than are named.
    is_crowded: AtomicBool,
}

/// A network whose limiting was told in the log.
#[derive(Debug, Clone, Copy)]
struct Named {
    network: Prefix,
    kind: AnswerKind,
    at: usize,
    tag: u64,
}

impl RateLimiter {
    pub(super) fn new(rule: RateLimit) -> Self {
        Self {
            rule,
            key: rand::random(),
            places: (0..SETS * WAYS).map(|_| AtomicU64::new(0)).collect(),
            began: Instant::now(),
            named: Mutex::default(),
            is_crowded: AtomicBool::new(false),
        }
    }

    /// Does it not apply to this client at all?
    pub(super) fn exempts(&self, client: IpAddr) -> bool {
        client.to_canonical().is_loopback() || self.rule.exempt.contains(client)
    }

    /// The time that [`RateLimiter::admit`] goes by.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros() / 16).unwrap_or(u64::MAX) & TIME
    }

    /// What becomes of one more answer to this client.
    pub(super) fn admit(&self, client: IpAddr, kind: AnswerKind, now: u64) -> Passage {
        if self.takes(client, kind, now) {
            return Passage::Whole;
        }
        match NonZeroU32::new(self.rule.slip) {
            // By lot, so that nobody can arrange to be the one that gets none.
            Some(every) if rand::rng().random_ratio(1, every.get()) => Passage::Short,
            _ => Passage::None,
        }
    }

    fn takes(&self, client: IpAddr, kind: AnswerKind, now: u64) -> bool {
        let Some(network) = network(client) else { return true };
        let (set, tag) = self.find(network, kind);
        let each = SECOND / u64::from(self.rule.per_second.get());
        for _ in 0..TRIES {
            let Some((at, word)) = self.place(set, tag) else { return true };
            let place = &self.places[at];
            let is_theirs = word & TAG == tag;
            let due = if is_theirs { (word & TIME).max(now) } else { now };
            // Time off is over where everything would have been given by now.
            let was_limited = is_theirs && word & LIMITED != 0 && due > now;
            let next = due + each;
            let is_over = next > now + SECOND;
            let changed = match (is_over, was_limited) {
                (true, true) => return false,
                (true, false) => tag | LIMITED | due,
                (false, _) => tag | if was_limited { LIMITED } else { 0 } | next & TIME,
            };
            if place.compare_exchange(word, changed, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                if is_over {
                    self.name(Named { network, kind, at, tag });
                }
                return !is_over;
            }
        }
        true
    }

    /// Where a network's places are, and what tells that one is its own.
    fn find(&self, network: Prefix, kind: AnswerKind) -> (usize, u64) {
        let mut data = [0; 18];
        match network.network() {
            IpAddr::V4(ip) => data[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => data[..16].copy_from_slice(&ip.octets()),
        }
        (data[16], data[17]) = (network.length(), kind as u8);
        let hash = siphash::hash(&self.key, &data);
        let set = usize::try_from(hash % SETS as u64).unwrap_or(0);
        // Never 0, which is an empty place's.
        (set * WAYS, hash & TAG | 1 << 63)
    }

    /// The network's own place, or the one that it may take.
    fn place(&self, set: usize, tag: u64) -> Option<(usize, u64)> {
        let ways =
            (set..set + WAYS).filter_map(|at| Some((at, self.places.get(at)?.load(Ordering::Relaxed))));
        ways.min_by_key(|(_, word)| if word & TAG == tag { (0, 0) } else { (1, word & TIME) })
    }

    fn name(&self, begun: Named) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |other: &Named| other.network == begun.network && other.kind == begun.kind;
        if named.iter().any(is_same) {
            return;
        }
        if named.len() >= MOST_NAMED {
            if !self.is_crowded.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    networks = MOST_NAMED,
                    "DNS answers to more networks are limited than are logged"
                );
            }
            return;
        }
        named.push(begun);
        let (network, kind) = (begun.network.to_string(), begun.kind.as_str());
        tracing::warn!(
            network,
            kind,
            per_second = self.rule.per_second.get(),
            "DNS answers over UDP are limited: somebody asks too often, or in this network's name"
        );
    }

    /// Says whose time off is over.
    pub(super) fn tidy(&self, now: u64) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.retain(|of| {
            let word = self.places.get(of.at).map_or(0, |place| place.load(Ordering::Relaxed));
            let goes_on = word & TAG == of.tag && word & LIMITED != 0 && word & TIME > now;
            if !goes_on {
                tracing::info!(network = %of.network, kind = of.kind.as_str(), "DNS answers are no longer limited");
            }
            goes_on
        });
        if named.len() < MOST_NAMED {
            self.is_crowded.store(false, Ordering::Relaxed);
        }
    }
}

fn network(client: IpAddr) -> Option<Prefix> {
    let client = client.to_canonical();
    Prefix::new(client, if client.is_ipv4() { V4 } else { V6 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::clients::Clients;

    fn limiter(per_second: u32, slip: u32) -> RateLimiter {
        let per_second = NonZeroU32::new(per_second).unwrap();
        RateLimiter::new(RateLimit { per_second, slip, exempt: Clients::private() })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_gets_so_many_a_second_of_each_kind_and_others_are_not_touched() {
        let limiter = limiter(10, 0);
        let count = |client: &str, kind, now| {
            (0..100).filter(|_| limiter.admit(ip(client), kind, now) == Passage::Whole).count()
        };
        assert_eq!(count("8.8.8.8", AnswerKind::Records, 0), 10);
        assert_eq!(count("8.8.8.9", AnswerKind::Records, 0), 0, "the same network");
        assert_eq!(count("8.8.9.8", AnswerKind::Records, 0), 10);
        assert_eq!(count("8.8.8.8", AnswerKind::Negative, 0), 10, "another kind");
        assert_eq!(count("2606:4700::1", AnswerKind::Error, 0), 10);
        assert_eq!(count("2606:4700:0:ff::", AnswerKind::Error, 0), 0, "the same /56");
        assert_eq!(count("2606:4700:0:100::", AnswerKind::Error, 0), 10);
        assert_eq!(count("8.8.8.8", AnswerKind::Records, SECOND / 2), 5, "as time goes by");
        assert_eq!(
            count("8.8.8.8", AnswerKind::Records, 10 * SECOND),
            10,
            "no more is saved up than a second's"
        );
    }

    #[test]
    fn whoever_is_limited_is_told_to_use_tcp_now_and_then() {
        for (slip, least, most) in [(0, 0, 0), (1, 1000, 1000), (2, 350, 650), (10, 40, 200)] {
            let limiter = limiter(1, slip);
            assert_eq!(limiter.admit(ip("8.8.8.8"), AnswerKind::Records, 0), Passage::Whole);
            let told =
                (0..1000).filter(|_| limiter.admit(ip("8.8.8.8"), AnswerKind::Records, 0) == Passage::Short);
            let told = told.count();
            assert!((least..=most).contains(&told), "one of {slip}: {told}");
        }
    }

    #[test]
    fn loopback_and_the_exempt_are_not_counted() {
        let limiter = limiter(1, 0);
        for (client, is) in [("127.0.0.1", true), ("::1", true), ("10.0.0.1", true), ("8.8.8.8", false)] {
            assert_eq!(limiter.exempts(ip(client)), is, "{client}");
        }
    }

    #[test]
    fn the_log_names_a_network_once_and_forgets_it_when_it_is_quiet() {
        let limiter = limiter(10, 0);
        let named = || limiter.named.lock().unwrap().len();
        let flood = |client, now| {
            let passed =
                (0..50).filter(|_| limiter.admit(client, AnswerKind::Records, now) == Passage::Whole);
            assert_eq!(passed.count(), 10);
        };
        flood(ip("8.8.8.8"), 0);
        assert_eq!(named(), 1);
        limiter.tidy(SECOND / 2);
        assert_eq!(named(), 1, "it goes on");
        limiter.tidy(SECOND + 1);
        assert_eq!(named(), 0);
        for third in 0..200 {
            flood([9, 9, third, 9].into(), 2 * SECOND);
        }
        assert_eq!(named(), MOST_NAMED);
        assert!(limiter.is_crowded.load(Ordering::Relaxed));
    }

    proptest! {
        /// Whatever comes when: never more in any second than two seconds' worth (what was saved up, and what came due).
        #[test]
        fn no_second_has_more_than_it_may(
            per_second in 1..300_u32, steps in proptest::collection::vec((0..SECOND / 50, 1..40_u32), 1..80)
        ) {
            let limiter = limiter(per_second, 0);
            let (mut now, mut passed) = (0, Vec::new());
            for (later, times) in steps {
                now += later;
                for _ in 0..times {
                    if limiter.admit(ip("8.8.8.8"), AnswerKind::Records, now) == Passage::Whole {
                        passed.push(now);
                    }
                }
                let recent = passed.iter().filter(|at| **at + SECOND > now).count();
                prop_assert!(recent <= 2 * per_second as usize, "{recent} of {per_second}");
            }
        }

        /// So many networks that they share places: each of them still gets something.
        #[test]
        fn a_crowd_does_not_starve_anybody(first in 0..200_u8) {
            let limiter = limiter(5, 0);
            for a in 0..100 {
                for b in 0..=255 {
                    let client = IpAddr::from([first, a, b, 1]);
                    prop_assert_eq!(limiter.admit(client, AnswerKind::Records, 7), Passage::Whole, "{}", client);
                }
            }
        }
    }
}
