//! A table bounded by number and by size, which keeps what is asked for: SIEVE (Zhang and others, NSDI 2024).
//!
//! What comes in stands at the new end. A hand goes from the old end to the new one: what was asked for since the hand last came by
//! is spared once, the first that was not is dropped. A hit sets a flag and moves nothing, which is what makes it cheap, and
//! what is asked for once and never again leaves soon, which is what makes it better than the order of use.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Values by key.
#[derive(Debug)]
pub(super) struct Sieve<K, V> {
    most: usize,
    most_size: usize,
    size: usize,
    places: HashMap<Arc<K>, usize>,
    /// A doubly linked list in places that are used again.
    nodes: Vec<Option<Node<K, V>>>,
    free: Vec<usize>,
    newest: Option<usize>,
    oldest: Option<usize>,
    hand: Option<usize>,
}

#[derive(Debug)]
struct Node<K, V> {
    key: Arc<K>,
    value: V,
    size: usize,
    asked: bool,
    newer: Option<usize>,
    older: Option<usize>,
}

impl<K: Hash + Eq, V> Sieve<K, V> {
    /// For at most `most` values, of which the sizes make at most `most_size`.
    pub(super) fn new(most: usize, most_size: usize) -> Self {
        Self {
            most,
            most_size,
            size: 0,
            places: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            newest: None,
            oldest: None,
            hand: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The value of `key`, which is spared for that.
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        Arc<K>: Borrow<Q>,
    {
        let node = self.nodes.get_mut(*self.places.get(key)?)?.as_mut()?;
        node.asked = true;
        Some(&mut node.value)
    }

    /// Puts a value in, for that of the same key if there is one; others make room. `false`: it is too large, and nothing
    /// stands under the key.
    pub(super) fn put(&mut self, key: K, value: V, size: usize) -> bool {
        self.remove(&key);
        if self.most == 0 || size > self.most_size {
            return false;
        }
        while self.len() >= self.most || self.size + size > self.most_size {
            if !self.drop_one() {
                break;
            }
        }
        let key = Arc::new(key);
        let node = Node { key: Arc::clone(&key), value, size, asked: false, newer: None, older: self.newest };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = Some(node);
                at
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        match self.newest.and_then(|newest| self.nodes[newest].as_mut()) {
            Some(newest) => newest.newer = Some(at),
            None => self.oldest = Some(at),
        }
        self.newest = Some(at);
        self.size += size;
        self.places.insert(key, at);
        true
    }

    /// Takes a value out.
    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        Arc<K>: Borrow<Q>,
    {
        let at = self.places.remove(key)?;
        self.unlink(at).map(|node| node.value)
    }

    /// Drops the first that was not asked for since the hand came by; `false` if there is nothing.
    fn drop_one(&mut self) -> bool {
        let mut at = self.hand.or(self.oldest);
        while let Some(node) = at.and_then(|at| self.nodes[at].as_mut()) {
            if !node.asked {
                break;
            }
            node.asked = false;
            at = node.newer.or(self.oldest);
        }
        let Some(at) = at else { return false };
        self.hand = Some(at);
        match self.unlink(at) {
            Some(node) => self.places.remove(&node.key).is_some(),
            None => false,
        }
    }

    fn unlink(&mut self, at: usize) -> Option<Node<K, V>> {
        let node = self.nodes.get_mut(at)?.take()?;
        match node.newer.and_then(|newer| self.nodes[newer].as_mut()) {
            Some(newer) => newer.older = node.older,
            None => self.newest = node.older,
        }
        match node.older.and_then(|older| self.nodes[older].as_mut()) {
            Some(older) => older.newer = node.newer,
            None => self.oldest = node.newer,
        }
        if self.hand == Some(at) {
            self.hand = node.newer;
        }
        self.size -= node.size;
        self.free.push(at);
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_asked_for_outlives_what_is_not() {
        let mut table = Sieve::new(3, 100);
        (0..3).for_each(|n| assert!(table.put(n, n, 1)));
        assert_eq!(table.get(&0), Some(&mut 0));
        // A walk over many that are asked for once: the one that is asked for stays throughout.
        for n in 3..50 {
            table.put(n, n, 1);
            assert_eq!(table.get(&0), Some(&mut 0), "{n}");
        }
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn what_is_larger_than_all_is_not_kept_and_neither_is_what_it_replaces() {
        let mut table = Sieve::new(10, 100);
        assert!(table.put(1, "a", 60) && table.put(2, "b", 40));
        assert!(!table.put(1, "c", 101));
        assert_eq!(table.get(&1), None);
        assert_eq!(table.size(), 40);
        assert_eq!(table.get(&2), Some(&mut "b"));
        assert!(!Sieve::new(0, 100).put(1, "a", 1));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Put(u8, usize),
        Get(u8),
        Remove(u8),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0..20_u8, 0..40_usize).prop_map(|(key, size)| Act::Put(key, size)),
            (0..20_u8).prop_map(Act::Get),
            (0..20_u8).prop_map(Act::Remove),
        ]
    }

    proptest! {
        /// Beside a plain map: what is found is what was put in last, bounds hold, and nothing goes while there is room.
        #[test]
        fn it_finds_what_was_put_in_within_its_bounds(
            acts in proptest::collection::vec(act(), 0..300), most in 0..8_usize, most_size in 0..100_usize,
        ) {
            let mut table = Sieve::new(most, most_size);
            let mut model: HashMap<u8, (usize, usize)> = HashMap::new();
            for (number, act) in acts.into_iter().enumerate() {
                match act {
                    Act::Put(key, size) => {
                        model.remove(&key);
                        let before: usize = model.values().map(|(_, size)| size).sum();
                        let had_room = model.len() < most && before + size <= most_size;
                        prop_assert_eq!(table.put(key, number, size), most > 0 && size <= most_size);
                        if most > 0 && size <= most_size {
                            model.insert(key, (number, size));
                        }
                        let gone: Vec<u8> =
                            model.keys().copied().filter(|key| !table.places.contains_key(key)).collect();
                        prop_assert!(gone.is_empty() || !had_room);
                        prop_assert!(!gone.contains(&key));
                        model.retain(|key, _| !gone.contains(key));
                    }
                    Act::Get(key) => {
                        prop_assert_eq!(table.get(&key).map(|value| *value), model.get(&key).map(|(number, _)| *number));
                    }
                    Act::Remove(key) => {
                        prop_assert_eq!(table.remove(&key), model.remove(&key).map(|(number, _)| number));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.size(), model.values().map(|(_, size)| size).sum::<usize>());
                prop_assert!(table.len() <= most && table.size() <= most_size);
                prop_assert!(table.nodes.len() <= most.max(1) + 1);
                let (mut at, mut listed) = (table.oldest, 0);
                while let Some(node) = at.and_then(|at| table.nodes[at].as_ref()) {
                    (at, listed) = (node.newer, listed + 1);
                }
                prop_assert_eq!(listed, table.len(), "the list holds each once");
            }
        }
    }
}
