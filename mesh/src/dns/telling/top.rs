//! What comes most often, of more than can be counted: Space-Saving (Metwally, Agrawal, El Abbadi 2005).
//!
//! There are so many counters and no more. Who has none takes over the least one, with what it says, which is kept as how much
//! the new count may be too high. Whatever comes more often than the least counter says is among them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Counters of the most frequent.
#[derive(Debug)]
pub(super) struct Top<K> {
    most: usize,
    slots: Vec<Slot<K>>,
    /// Slots in a heap, the least first.
    heap: Vec<usize>,
    places: HashMap<K, usize>,
}

/// One of them.
#[derive(Debug)]
struct Slot<K> {
    key: K,
    count: u64,
    over: u64,
    /// Where it stands in the heap.
    at: usize,
}

/// What is known of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count {
    /// At most so often.
    pub(super) count: u64,
    /// By so much it may be too high.
    pub(super) over: u64,
}

impl<K: Clone + Eq + Hash> Top<K> {
    /// `most` is at least 1.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), slots: Vec::new(), heap: Vec::new(), places: HashMap::new() }
    }

    /// Counts `key`, which stands for so many.
    pub(super) fn add<Q>(&mut self, key: &Q, weight: u64)
    where
        Q: Eq + Hash + ?Sized,
        K: Borrow<Q> + for<'a> From<&'a Q>,
    {
        if let Some(&place) = self.places.get(key) {
            self.slots[place].count += weight;
            self.sink(self.slots[place].at);
            return;
        }
        let key = K::from(key);
        if self.slots.len() < self.most {
            let place = self.slots.len();
            self.slots.push(Slot { key: key.clone(), count: weight, over: 0, at: place });
            self.places.insert(key, place);
            self.heap.push(place);
            self.rise(place);
            return;
        }
        let place = self.heap[0];
        let least = &mut self.slots[place];
        self.places.remove(least.key.borrow());
        (least.over, least.count) = (least.count, least.count + weight);
        least.key = key.clone();
        self.places.insert(key, place);
        self.sink(0);
    }

    /// All of them.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&K, Count)> {
        self.slots.iter().map(|slot| (&slot.key, Count { count: slot.count, over: slot.over }))
    }

    fn count_at(&self, at: usize) -> u64 {
        self.slots[self.heap[at]].count
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        for at in [a, b] {
            self.slots[self.heap[at]].at = at;
        }
    }

    /// It has become greater.
    fn sink(&mut self, mut at: usize) {
        loop {
            let below = [2 * at + 1, 2 * at + 2].into_iter().filter(|below| *below < self.heap.len());
            let Some(least) = below.min_by_key(|below| self.count_at(*below)) else { return };
            if self.count_at(least) >= self.count_at(at) {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }

    /// It is new.
    fn rise(&mut self, mut at: usize) {
        while at > 0 && self.count_at(at) < self.count_at((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What the authors prove: never too low, too high by no more than is said, and whoever has more than its share is there.
        #[test]
        fn counts_are_as_good_as_they_say(
            asked in proptest::collection::vec((0_u8..30, 1_u64..20), 0..400), most in 1_usize..20,
        ) {
            let mut top: Top<Arc<[u8]>> = Top::new(most);
            let mut exact: HashMap<u8, u64> = HashMap::new();
            for (key, weight) in &asked {
                top.add([*key].as_slice(), *weight);
                *exact.entry(*key).or_default() += weight;
            }
            let all: u64 = exact.values().sum();
            let counts: HashMap<u8, Count> = top.counts().map(|(key, count)| (key[0], count)).collect();
            prop_assert!(counts.len() <= most && counts.len() == exact.len().min(most));
            prop_assert_eq!(counts.values().map(|count| count.count).sum::<u64>(), all);
            for (key, Count { count, over }) in &counts {
                let exact = exact[key];
                prop_assert!(*count >= exact && count - over <= exact, "{}: {} is {}±{}", key, exact, count, over);
            }
            for (key, exact) in exact {
                prop_assert!(exact * most as u64 <= all || counts.contains_key(&key), "{} is missing", key);
            }
        }
    }
}
