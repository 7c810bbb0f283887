//! Answers of upstreams, kept as long as their times to live allow. Pure: the caller says what time it is.
//!
//! Bounded by number and by the size of what is kept. When it is full the oldest goes: with the short lives of answers
//! that is nearly the least recently asked, and costs no list to maintain on a hit.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use super::answer::Relayed;
use crate::dns::wire::rcode;

/// The longest that an answer is kept, whatever it says: a mistake of somebody's is over after this.
const LONGEST: Duration = Duration::from_secs(3600);
/// The longest that "there is none" is kept; RFC 2308 section 5 recommends an upper bound.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(300);
/// Larger answers are relayed and not kept.
const LARGEST: usize = 4096;

/// Answers by question.
#[derive(Debug)]
pub(super) struct Cache {
    most: usize,
    answers: HashMap<Key, Kept>,
    /// Keys in the order they came, each with the number of what it then stood for: a key whose answer was replaced
    /// stands here twice, and its first place is void.
    order: VecDeque<(Key, u64)>,
    number: u64,
}

#[derive(Debug)]
struct Kept {
    answer: Arc<Relayed>,
    until: Instant,
    number: u64,
}

impl Cache {
    pub(super) fn new(most: usize) -> Self {
        Self { most, answers: HashMap::new(), order: VecDeque::new(), number: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<Arc<Relayed>> {
        match self.answers.get(key) {
            Some(kept) if now < kept.until => Some(Arc::clone(&kept.answer)),
            Some(_) => {
                self.answers.remove(key);
                None
            }
            None => None,
        }
    }

    /// Keeps `answer`, if it may be kept.
    pub(super) fn put(&mut self, key: Key, answer: &Arc<Relayed>) {
        let Some(life) = life(answer).filter(|_| self.most > 0) else { return };
        while self.answers.len() >= self.most && !self.answers.contains_key(&key) {
            self.drop_oldest();
        }
        self.number += 1;
        let kept = Kept { answer: Arc::clone(answer), until: answer.received + life, number: self.number };
        self.order.push_back((key.clone(), self.number));
        self.answers.insert(key, kept);
        // Void places are at most as many as answers: the work of dropping them is paid by the puts that made them.
        while self.order.len() > 2 * self.most {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((key, number)) = self.order.pop_front()
            && self.answers.get(&key).is_some_and(|kept| kept.number == number)
        {
            self.answers.remove(&key);
        }
    }
}

/// How long it may be kept; `None` if not at all.
fn life(answer: &Relayed) -> Option<Duration> {
    if answer.message.len() > LARGEST || answer.is_truncated() {
        return None;
    }
    let negative = answer.scan.answers == 0;
    let seconds = match answer.rcode() {
        rcode::NO_ERROR if !negative => answer.scan.least_ttl?,
        // Without a SOA nobody said how long (RFC 2308 section 5).
        rcode::NO_ERROR | rcode::NX_DOMAIN => answer.scan.negative_ttl?.min(answer.scan.least_ttl?),
        _ => return None,
    };
    let longest = if negative { LONGEST_NEGATIVE } else { LONGEST };
    Some(Duration::from_secs(seconds.into()).min(longest)).filter(|life| !life.is_zero())
}

#[cfg(test)]
mod tests {
    use super::super::answer::tests::relayed;
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> Key {
        let question = crate::dns::wire::Question::new(&[1, n, 0, 0, 1, 0, 1]).unwrap();
        Key { question, flags: 0, dnssec_ok: false }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_least_ttl_and_not_longer() {
        let mut cache = Cache::new(4);
        let answer = Arc::new(relayed(rcode::NO_ERROR, &[300, 7], None));
        cache.put(key(1), &answer);
        assert!(cache.get(&key(1), Instant::now() + Duration::from_millis(6_999)).is_some());
        assert!(cache.get(&key(1), Instant::now() + Duration::from_secs(7)).is_none());
        assert_eq!(cache.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_negative_answer_is_kept_as_its_soa_says_and_not_at_all_without() {
        let mut cache = Cache::new(4);
        cache.put(key(1), &Arc::new(relayed(rcode::NX_DOMAIN, &[], Some((9, 3)))));
        assert!(cache.get(&key(1), Instant::now() + Duration::from_secs(2)).is_some());
        assert!(cache.get(&key(1), Instant::now() + Duration::from_secs(3)).is_none());
        cache.put(key(2), &Arc::new(relayed(rcode::NX_DOMAIN, &[], None)));
        cache.put(key(3), &Arc::new(relayed(rcode::SERV_FAIL, &[60], None)));
        assert_eq!(cache.len(), 0);
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_its_bound(keys in proptest::collection::vec(0..20_u8, 0..200), most in 0..8_usize) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _guard = runtime.enter();
            let mut cache = Cache::new(most);
            let answer = Arc::new(relayed(rcode::NO_ERROR, &[60], None));
            for n in keys {
                cache.put(key(n), &answer);
                prop_assert!(cache.len() <= most && cache.order.len() <= 2 * most);
                prop_assert_eq!(cache.get(&key(n), answer.received).is_some(), most > 0);
            }
        }
    }
}
