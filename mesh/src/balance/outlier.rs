//! Passive ejection: an endpoint is taken out for what its connections run into, and let in again with care.
//!
//! Connect failures are the endpoint's word that it serves nobody: after the ejection one connection tries it, and only
//! when that one succeeds do the others follow. Resets before the first byte and latency say less: there the ejection
//! ends by itself. Each further ejection is twice as long, until the endpoint has been well for the longest of them.
//! Numbers in atomics; whoever wins a compare-and-swap does what follows from it.

use std::fmt;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::settings::Outlier as Settings;

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ejection {
    /// Connect failures in a row.
    ConnectFailures,
    /// Connections in a row that it reset before it sent a byte.
    Resets,
    /// It is much slower than the others.
    Latency,
}

impl Ejection {
    const ALL: [Self; 3] = [Self::ConnectFailures, Self::Resets, Self::Latency];

    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailures => "connect_failures",
            Self::Resets => "resets",
            Self::Latency => "latency",
        }
    }
}

impl fmt::Display for Ejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How many of the endpoints are ejected, of how many.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) ejected: AtomicU32,
    pub(super) endpoints: AtomicU32,
}

/// What a failure came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on as before.
    Stays,
    /// It was in and is out now.
    Ejected,
    /// It was out and stays out for longer.
    Extended,
    /// It would be out, if not so many were already.
    Prevented,
}

/// What is known against one endpoint. Times are milliseconds on our clock.
#[derive(Debug, Default)]
pub(super) struct Outlier {
    failures: AtomicU32,
    resets: AtomicU32,
    /// Until when; 0 when it is in, so that the usual pick looks at no clock.
    until: AtomicU64,
    reason: AtomicU8,
    /// One connection is trying it.
    trial: AtomicBool,
    /// How often the time was doubled.
    level: AtomicU32,
    /// When the last ejection ended, or was to end.
    ended: AtomicU64,
    /// It gets no traffic anyway, or is gone: what still fails of what was under way ejects nobody.
    left: AtomicBool,
}

impl Outlier {
    /// Is it out, or in on trial only?
    pub(super) fn is_ejected(&self) -> bool {
        self.until.load(Ordering::Relaxed) != 0
    }

    /// Might a pick get it now? Changes nothing: [`Outlier::enter`] does.
    pub(super) fn is_open(&self, now: u64) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        until == 0 || until <= now
    }

    /// Lets a pick in: always when it is not ejected; when the time of connect failures is over, one connection in the
    /// time of a first ejection.
    pub(super) fn enter(&self, now: u64, settings: &Settings, census: &Census) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        if until > now {
            return false;
        }
        if self.reason() != Ejection::ConnectFailures {
            self.restore(until, now, census);
            return true;
        }
        let next = now + settings.ejection.max(1);
        let won = self.until.compare_exchange(until, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if won {
            self.trial.store(true, Ordering::Release);
        }
        won
    }

    /// Ends an ejection whose time is over, of the kinds that end by themselves.
    pub(super) fn expire(&self, now: u64, census: &Census) {
        let until = self.until.load(Ordering::Relaxed);
        if until != 0 && until <= now && self.reason() != Ejection::ConnectFailures {
            self.restore(until, now, census);
        }
    }

    /// A connect failed.
    pub(super) fn connect_failed(&self, now: u64, settings: &Settings, census: &Census) -> Verdict {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if self.is_ejected() && self.reason() == Ejection::ConnectFailures {
            // Of those that were under way when it was ejected none says anything new; the trial does.
            if !self.trial.swap(false, Ordering::AcqRel) {
                return Verdict::Stays;
            }
            self.until.store(now + self.next_time(now, settings), Ordering::Release);
            return Verdict::Extended;
        }
        if settings.failures == 0 || failures < settings.failures {
            return Verdict::Stays;
        }
        self.eject(Ejection::ConnectFailures, now, settings, census)
    }

    /// A connect succeeded.
    pub(super) fn connected(&self, now: u64, census: &Census) {
        // Loads before stores: the usual connection finds zeros and leaves the cache line alone.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        let until = self.until.load(Ordering::Relaxed);
        if until != 0 && self.reason() == Ejection::ConnectFailures {
            self.restore(until, now, census);
        }
    }

    /// A connection was reset before the endpoint had sent a byte.
    pub(super) fn reset(&self, now: u64, settings: &Settings, census: &Census) -> Verdict {
        let resets = self.resets.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if settings.resets == 0 || resets < settings.resets || self.is_ejected() {
            return Verdict::Stays;
        }
        // It may reset the next connection after the ejection and be out again.
        self.resets.store(settings.resets - 1, Ordering::Relaxed);
        self.eject(Ejection::Resets, now, settings, census)
    }

    /// The endpoint has sent something.
    pub(super) fn answered(&self) {
        if self.resets.load(Ordering::Relaxed) != 0 {
            self.resets.store(0, Ordering::Relaxed);
        }
    }

    /// It is much slower than the others.
    pub(super) fn slow(&self, now: u64, settings: &Settings, census: &Census) -> Verdict {
        if self.is_ejected() { Verdict::Stays } else { self.eject(Ejection::Latency, now, settings, census) }
    }

    /// Its checks decide now: nothing is held against it.
    pub(super) fn forget(&self, census: &Census) {
        self.failures.store(0, Ordering::Relaxed);
        self.resets.store(0, Ordering::Relaxed);
        if self.until.swap(0, Ordering::SeqCst) != 0 {
            census.ejected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// It is not among those that get traffic, now or for good: it is not to be counted among the ejected.
    pub(super) fn leave(&self, census: &Census) {
        self.left.store(true, Ordering::SeqCst);
        self.forget(census);
    }

    /// It is among those that get traffic.
    pub(super) fn join(&self, census: &Census) {
        if self.left.load(Ordering::SeqCst) {
            // What failed after it had left says nothing of it now.
            self.forget(census);
            self.left.store(false, Ordering::SeqCst);
        }
    }

    /// Why it is out, and for how many milliseconds still (0: the next connection tries it).
    pub(super) fn ejection(&self, now: u64) -> Option<(Ejection, u64)> {
        let until = self.until.load(Ordering::Relaxed);
        (until != 0).then(|| (self.reason(), until.saturating_sub(now)))
    }

    fn reason(&self) -> Ejection {
        let reason = self.reason.load(Ordering::Relaxed);
        Ejection::ALL.get(usize::from(reason)).copied().unwrap_or(Ejection::ConnectFailures)
    }

    fn eject(&self, reason: Ejection, now: u64, settings: &Settings, census: &Census) -> Verdict {
        if self.left.load(Ordering::SeqCst) {
            return Verdict::Stays;
        }
        let endpoints = u64::from(census.endpoints.load(Ordering::Relaxed));
        // One may always be ejected: of three endpoints a share of 10 % would be none.
        let most = (endpoints * u64::from(settings.max_ejected_percent) / 100).max(1);
        let reserved = census.ejected.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |ejected| {
            (u64::from(ejected) < most).then_some(ejected + 1)
        });
        if reserved.is_err() {
            return Verdict::Prevented;
        }
        let until = now + self.next_time(now, settings);
        if self.until.compare_exchange(0, until, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            census.ejected.fetch_sub(1, Ordering::Relaxed);
            return Verdict::Stays;
        }
        // It left at this very moment: one of the two sees the other, and takes the count back.
        if self.left.load(Ordering::SeqCst) {
            self.forget(census);
            return Verdict::Stays;
        }
        self.reason.store(reason as u8, Ordering::Relaxed);
        self.trial.store(false, Ordering::Relaxed);
        Verdict::Ejected
    }

    /// `ejection × 2ˡᵉᵛᵉˡ`, at most `max_ejection`; the level falls to nothing when it was well for the longest.
    fn next_time(&self, now: u64, settings: &Settings) -> u64 {
        let ended = self.ended.load(Ordering::Relaxed);
        let long_ago = ended != 0 && now.saturating_sub(ended) > settings.max_ejection;
        let level = if ended == 0 || long_ago { 0 } else { self.level.load(Ordering::Relaxed) + 1 };
        let time = settings.ejection.saturating_mul(1 << level.min(20)).min(settings.max_ejection).max(1);
        self.level.store(level.min(20), Ordering::Relaxed);
        self.ended.store(now + time, Ordering::Relaxed);
        time
    }

    fn restore(&self, until: u64, now: u64, census: &Census) {
        if self.until.compare_exchange(until, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.trial.store(false, Ordering::Relaxed);
            self.ended.store(now, Ordering::Relaxed);
            census.ejected.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> Settings {
        super::super::settings::Settings::default().outlier
    }

    fn census(endpoints: u32) -> Census {
        Census { ejected: AtomicU32::new(0), endpoints: AtomicU32::new(endpoints) }
    }

    fn ejected(census: &Census) -> u32 {
        census.ejected.load(Ordering::Relaxed)
    }

    #[test]
    fn after_its_time_one_connection_tries_it_and_the_others_follow_its_success() {
        let (outlier, settings, census) = (Outlier::default(), settings(), census(3));
        assert_eq!(outlier.connect_failed(1000, &settings, &census), Verdict::Ejected);
        assert_eq!(outlier.ejection(1400), Some((Ejection::ConnectFailures, 600)));
        assert!(!outlier.enter(1999, &settings, &census));
        assert!(outlier.enter(2000, &settings, &census));
        assert!(!outlier.enter(2000, &settings, &census), "one tries it");
        outlier.connected(2001, &census);
        assert!(outlier.enter(2001, &settings, &census));
        assert_eq!((outlier.is_ejected(), ejected(&census)), (false, 0));
    }

    #[test]
    fn each_failed_trial_doubles_the_time_up_to_the_longest() {
        let (outlier, settings, census) = (Outlier::default(), settings(), census(3));
        let mut now = 1000;
        outlier.connect_failed(now, &settings, &census);
        let mut times = Vec::new();
        for _ in 0..6 {
            now += outlier.ejection(now).unwrap().1;
            assert!(outlier.enter(now, &settings, &census));
            assert_eq!(outlier.connect_failed(now, &settings, &census), Verdict::Extended);
            times.push(outlier.ejection(now).unwrap().1);
        }
        assert_eq!(times, [2000, 4000, 8000, 10_000, 10_000, 10_000]);
        assert_eq!(ejected(&census), 1);
    }

    #[test]
    fn failures_that_were_under_way_do_not_make_it_longer() {
        let (outlier, settings, census) = (Outlier::default(), settings(), census(3));
        outlier.connect_failed(1000, &settings, &census);
        for _ in 0..100 {
            assert_eq!(outlier.connect_failed(1000, &settings, &census), Verdict::Stays);
        }
        assert_eq!(outlier.ejection(1000).unwrap().1, 1000);
    }

    #[test]
    fn a_trial_that_never_ends_is_not_the_last() {
        let (outlier, settings, census) = (Outlier::default(), settings(), census(3));
        outlier.connect_failed(1000, &settings, &census);
        assert!(outlier.enter(2000, &settings, &census));
        assert!(!outlier.enter(2999, &settings, &census));
        assert!(outlier.enter(3000, &settings, &census));
    }

    #[test]
    fn resets_in_a_row_eject_and_the_ejection_ends_by_itself() {
        let (outlier, settings, census) = (Outlier::default(), settings(), census(3));
        for _ in 0..4 {
            assert_eq!(outlier.reset(1000, &settings, &census), Verdict::Stays);
        }
        outlier.answered();
        for _ in 0..4 {
            assert_eq!(outlier.reset(1000, &settings, &census), Verdict::Stays);
        }
        assert_eq!(outlier.reset(1000, &settings, &census), Verdict::Ejected);
        outlier.connected(1001, &census);
        assert!(outlier.is_ejected(), "that it accepts says nothing against resets");
        outlier.expire(2000, &census);
        assert_eq!((outlier.is_ejected(), ejected(&census)), (false, 0));
        assert_eq!(outlier.reset(2001, &settings, &census), Verdict::Ejected, "one more is enough then");
        assert_eq!(outlier.ejection(2001).unwrap().1, 2000);
    }

    #[test]
    fn who_has_left_is_not_ejected_by_what_was_under_way_and_begins_anew_when_it_is_back() {
        let (outlier, settings, census) = (Outlier::default(), settings(), census(3));
        assert_eq!(outlier.connect_failed(1000, &settings, &census), Verdict::Ejected);
        outlier.leave(&census);
        assert_eq!((outlier.is_ejected(), ejected(&census)), (false, 0));
        assert_eq!(outlier.connect_failed(1001, &settings, &census), Verdict::Stays);
        assert_eq!((outlier.is_ejected(), ejected(&census)), (false, 0));
        outlier.join(&census);
        assert_eq!(outlier.connect_failed(1002, &settings, &census), Verdict::Ejected);
        assert_eq!(ejected(&census), 1);
    }

    #[test]
    fn what_was_long_ago_is_forgiven() {
        let (outlier, settings, census) = (Outlier::default(), settings(), census(3));
        outlier.slow(1000, &settings, &census);
        outlier.expire(2000, &census);
        outlier.slow(2000 + settings.max_ejection + 1, &settings, &census);
        assert_eq!(outlier.ejection(0).unwrap().1, 2000 + settings.max_ejection + 1 + settings.ejection);
    }

    proptest! {
        #[test]
        fn at_most_the_share_is_ejected_and_never_miscounted(
            endpoints in 1..12usize,
            percent in 0..101u32,
            steps in proptest::collection::vec((0..12usize, 0..8u8, 0..3000u64), 1..200),
        ) {
            let settings = Settings { max_ejected_percent: percent, ..settings() };
            let census = census(u32::try_from(endpoints).unwrap());
            let outliers: Vec<Outlier> = (0..endpoints).map(|_| Outlier::default()).collect();
            let most = (endpoints * percent as usize / 100).max(1);
            let mut now = 1;
            for (at, step, passes) in steps {
                now += passes;
                let outlier = &outliers[at % endpoints];
                match step {
                    0 => drop(outlier.connect_failed(now, &settings, &census)),
                    1 => outlier.connected(now, &census),
                    2 => drop(outlier.reset(now, &settings, &census)),
                    3 => drop(outlier.slow(now, &settings, &census)),
                    4 => drop(outlier.enter(now, &settings, &census)),
                    5 => outlier.leave(&census),
                    6 => outlier.join(&census),
                    _ => outlier.expire(now, &census),
                }
                let out = outliers.iter().filter(|outlier| outlier.is_ejected()).count();
                prop_assert_eq!(ejected(&census) as usize, out);
                prop_assert!(out <= most);
            }
        }
    }
}
