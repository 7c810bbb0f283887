//! Answers of upstreams: kept as long as their times to live allow, and given past that for want of better ones (RFC 8767).
//! Pure: the caller says what time it is.
//!
//! That a question could not be answered is kept too, for a few seconds (RFC 9520): it is not asked again at once by everyone,
//! and the answer that is there is given without a wait. Bounded by number and size; what is asked for stays (`sieve`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answer::Relayed;
use super::sieve::Sieve;
use super::{Key, Told};

/// Larger answers are relayed and not kept.
const LARGEST: usize = 16 * 1024;
/// How long a question that nobody answered is not asked again.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// What an entry takes of memory besides its answer, about.
const OVERHEAD: usize = 2 * size_of::<Kept>() + 2 * size_of::<Key>();

/// Answers by question.
#[derive(Debug)]
pub(super) struct Cache {
    kept: Sieve<Key, Kept>,
    stale_for: Duration,
}

#[derive(Debug)]
struct Kept {
    answer: Option<Live>,
    failed: Option<(Instant, Told)>,
}

#[derive(Debug, Clone)]
struct Live {
    answer: Arc<Relayed>,
    until: Instant,
    life: Duration,
}

/// What is known of a question.
#[derive(Debug)]
pub(super) enum Found {
    /// This holds; `ask` if it soon will not, so that somebody who asks then need not wait.
    Holds { answer: Arc<Relayed>, ask: bool },
    /// The time of this is over; `ask` unless that has just failed.
    Stale { answer: Arc<Relayed>, ask: bool },
    /// Asking has just failed, and there is nothing else.
    Failed(Told),
    /// It has to be asked.
    Nothing,
}

impl Cache {
    /// For at most `most` answers of `most_bytes` together, given for `stale_for` past their time.
    pub(super) fn new(most: usize, most_bytes: usize, stale_for: Duration) -> Self {
        Self { kept: Sieve::new(most, most_bytes), stale_for }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.kept.size()
    }

    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Found {
        let Some(kept) = self.kept.get(key) else { return Found::Nothing };
        kept.failed.take_if(|(until, _)| *until <= now);
        kept.answer.take_if(|live| now >= live.until + self.stale_for);
        let has_failed = kept.failed.is_some();
        match (&kept.answer, &kept.failed) {
            (Some(live), _) => {
                let answer = Arc::clone(&live.answer);
                let left = live.until.saturating_duration_since(now);
                if left.is_zero() {
                    return Found::Stale { answer, ask: !has_failed };
                }
                Found::Holds { answer, ask: !has_failed && left <= live.life / 10 }
            }
            (None, Some((_, told))) => Found::Failed(told.clone()),
            (None, None) => {
                self.kept.remove(key);
                Found::Nothing
            }
        }
    }

    /// Keeps `answer`, if it may be kept; what was known before is over either way.
    pub(super) fn put(&mut self, key: Key, answer: &Arc<Relayed>) {
        let Some(life) = answer.life().filter(|_| answer.message.len() <= LARGEST) else {
            self.kept.remove(&key);
            return;
        };
        let live = Live { answer: Arc::clone(answer), until: answer.received + life, life };
        let size = OVERHEAD + key.size() + answer.size();
        self.kept.put(key, Kept { answer: Some(live), failed: None }, size);
    }

    /// Remembers that nobody could answer, beside the answer that is there.
    pub(super) fn fail(&mut self, key: Key, told: &Told, now: Instant) {
        let failed = Some((now + FAILED_FOR, told.clone()));
        if let Some(kept) = self.kept.get(&key) {
            kept.failed = failed;
            return;
        }
        let size = told.as_ref().map_or(size_of::<Told>(), |answer| answer.size());
        if size <= LARGEST {
            let size = OVERHEAD + key.size() + size;
            self.kept.put(key, Kept { answer: None, failed }, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::answer::tests::relayed;
    use super::super::upstream::Failure;
    use super::*;
    use crate::dns::wire::rcode;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn key(n: u8) -> Key {
        let question = crate::dns::wire::Question::new(&[1, n, 0, 0, 1, 0, 1]).unwrap();
        Key { question, flags: 0, dnssec_ok: false }
    }

    fn after(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_for_its_least_ttl_and_is_asked_anew_shortly_before() {
        let mut cache = Cache::new(4, 1 << 20, Duration::ZERO);
        let answer = Arc::new(relayed(rcode::NO_ERROR, &[300, 10], None));
        cache.put(key(1), &answer);
        assert!(matches!(cache.get(&key(1), after(8_900)), Found::Holds { ask: false, .. }));
        assert!(matches!(cache.get(&key(1), after(9_100)), Found::Holds { ask: true, .. }));
        assert!(matches!(cache.get(&key(1), after(10_000)), Found::Nothing));
        assert_eq!((cache.len(), cache.bytes()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_negative_answer_is_kept_as_its_soa_says_and_not_at_all_without() {
        let mut cache = Cache::new(4, 1 << 20, Duration::ZERO);
        cache.put(key(1), &Arc::new(relayed(rcode::NX_DOMAIN, &[], Some((9, 3)))));
        assert!(matches!(cache.get(&key(1), after(2_000)), Found::Holds { .. }));
        assert!(matches!(cache.get(&key(1), after(3_000)), Found::Nothing));
        cache.put(key(2), &Arc::new(relayed(rcode::NX_DOMAIN, &[], None)));
        cache.put(key(3), &Arc::new(relayed(rcode::SERV_FAIL, &[60], None)));
        assert_eq!(cache.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn past_its_time_an_answer_is_there_until_it_is_too_old_or_replaced() {
        let mut cache = Cache::new(4, 1 << 20, DAY);
        cache.put(key(1), &Arc::new(relayed(rcode::NO_ERROR, &[10], None)));
        assert!(matches!(cache.get(&key(1), after(10_000)), Found::Stale { ask: true, .. }));
        cache.fail(key(1), &Err(Failure::NoUpstream), after(10_000));
        assert!(matches!(cache.get(&key(1), after(14_900)), Found::Stale { ask: false, .. }));
        assert!(matches!(cache.get(&key(1), after(15_000)), Found::Stale { ask: true, .. }));
        assert!(matches!(cache.get(&key(1), after(86_400_000 + 9_999)), Found::Stale { .. }));
        assert!(matches!(cache.get(&key(1), after(86_400_000 + 10_000)), Found::Nothing));
        cache.put(key(1), &Arc::new(relayed(rcode::NO_ERROR, &[10], None)));
        cache.put(key(1), &Arc::new(relayed(rcode::NO_ERROR, &[0], None)));
        assert!(matches!(cache.get(&key(1), after(0)), Found::Nothing), "what may not be kept replaces too");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_for_seconds() {
        let mut cache = Cache::new(4, 1 << 20, DAY);
        cache.fail(key(1), &Err(Failure::NoUpstream), after(0));
        assert!(matches!(cache.get(&key(1), after(4_900)), Found::Failed(Err(Failure::NoUpstream))));
        assert!(matches!(cache.get(&key(1), after(5_000)), Found::Nothing));
        assert_eq!(cache.len(), 0);
    }

    #[derive(Debug, Clone)]
    enum Act {
        Put { key: u8, ttl: u32 },
        Fail { key: u8 },
        Get { key: u8 },
        Wait { millis: u64 },
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0..12_u8, 0..20_u32).prop_map(|(key, ttl)| Act::Put { key, ttl }),
            (0..12_u8).prop_map(|key| Act::Fail { key }),
            (0..12_u8).prop_map(|key| Act::Get { key }),
            (0..30_000_u64).prop_map(|millis| Act::Wait { millis }),
        ]
    }

    proptest! {
        /// Beside a map that forgets nothing: nothing holds past its time, nothing is given past that and what is allowed on
        /// top, a failure hides no answer, and the bounds hold.
        #[test]
        fn nothing_is_given_past_its_time(
            acts in proptest::collection::vec(act(), 0..200),
            most in 1..16_usize, most_bytes in 0..8000_usize, stale in 0..40_u64,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _guard = runtime.enter();
            let (begin, stale_for) = (Instant::now(), Duration::from_secs(stale));
            let mut now = begin;
            let mut cache = Cache::new(most, most_bytes, stale_for);
            let mut model: HashMap<u8, (Arc<Relayed>, Instant)> = HashMap::new();
            let mut failures: HashMap<u8, Instant> = HashMap::new();
            for act in acts {
                match act {
                    Act::Wait { millis } => now += Duration::from_millis(millis),
                    Act::Fail { key: n } => {
                        cache.fail(key(n), &Err(Failure::NoUpstream), now);
                        failures.insert(n, now + FAILED_FOR);
                    }
                    Act::Put { key: n, ttl } => {
                        let mut answer = relayed(rcode::NO_ERROR, &[ttl], None);
                        answer.received = now;
                        let answer = Arc::new(answer);
                        cache.put(key(n), &answer);
                        failures.remove(&n);
                        model.insert(n, (answer, now + Duration::from_secs(ttl.into())));
                    }
                    Act::Get { key: n } => {
                        let failed = failures.get(&n).is_some_and(|until| now < *until);
                        match cache.get(&key(n), now) {
                            Found::Holds { answer, ask } => {
                                prop_assert!(Arc::ptr_eq(&answer, &model[&n].0) && now < model[&n].1);
                                prop_assert!(!(ask && failed));
                            }
                            Found::Stale { answer, ask } => {
                                let until = model[&n].1;
                                prop_assert!(Arc::ptr_eq(&answer, &model[&n].0));
                                prop_assert!(until <= now && now < until + stale_for);
                                prop_assert!(!(ask && failed));
                            }
                            Found::Failed(_) => prop_assert!(failed),
                            Found::Nothing => {}
                        }
                    }
                }
                prop_assert!(cache.len() <= most && cache.bytes() <= most_bytes);
            }
        }
    }
}
