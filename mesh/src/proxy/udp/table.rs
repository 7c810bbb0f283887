//! Sessions of a thread by who talks to whom, the longest idle ones at hand.
//!
//! Those whose client has answered a reply are *assured*, as conntrack calls it: its address is no invention. Where one has to make
//! room, the others go first, so that a flood from invented addresses pushes out its own sessions and nobody else's. Finding,
//! noting and removing one costs the same however many there are. Nothing here knows a socket or a clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::proxy::arena::{Arena, Key};
use crate::sys::control::Local;

/// What tells sessions apart. The hash is keyed, since clients choose what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) listener: Key,
    /// In the form of the listener's socket: IPv4 may be mapped.
    pub(super) client: SocketAddr,
    /// The address that the client sent to and expects its answers from.
    pub(super) asked: Option<Local>,
}

#[derive(Debug)]
pub(super) struct Table<T> {
    entries: Arena<Entry<T>>,
    by_flow: HashMap<Flow, Key>,
    /// Nobody knows yet whether the client is there.
    unassured: List,
    assured: List,
}

#[derive(Debug)]
struct Entry<T> {
    flow: Flow,
    value: T,
    active: Instant,
    is_assured: bool,
    newer: Option<Key>,
    older: Option<Key>,
}

/// Entries by when they were active last.
#[derive(Debug, Default)]
struct List {
    newest: Option<Key>,
    oldest: Option<Key>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            entries: Arena::default(),
            by_flow: HashMap::new(),
            unassured: List::default(),
            assured: List::default(),
        }
    }
}

impl<T> Table<T> {
    pub(super) fn len(&self) -> usize {
        self.by_flow.len()
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<Key> {
        self.by_flow.get(flow).copied()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<(&Flow, &mut T)> {
        self.entries.get_mut(key).map(|entry| (&entry.flow, &mut entry.value))
    }

    /// Adds what `find` has not found.
    pub(super) fn insert(&mut self, flow: Flow, value: T, now: Instant) -> Option<Key> {
        let entry = Entry { flow, value, active: now, is_assured: false, newer: None, older: None };
        let key = self.entries.insert(entry)?;
        self.by_flow.insert(flow, key);
        self.link(key);
        Some(key)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<(Flow, T)> {
        self.unlink(key);
        let entry = self.entries.remove(key)?;
        self.by_flow.remove(&entry.flow);
        Some((entry.flow, entry.value))
    }

    /// It was active just now.
    pub(super) fn touch(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.active = now;
        if entry.newer.is_some() {
            self.unlink(key);
            self.link(key);
        }
    }

    /// Its client is where it says that it is.
    pub(super) fn assure(&mut self, key: Key) {
        if self.entries.get_mut(key).is_some_and(|entry| !entry.is_assured) {
            self.unlink(key);
            if let Some(entry) = self.entries.get_mut(key) {
                entry.is_assured = true;
            }
            self.link(key);
        }
    }

    /// Which one has to go when there are too many.
    pub(super) fn victim(&self) -> Option<Key> {
        self.unassured.oldest.or(self.assured.oldest)
    }

    /// The one that has been idle for longest, and since when.
    pub(super) fn oldest(&self) -> Option<(Key, Instant)> {
        let [a, b] = [self.unassured.oldest, self.assured.oldest]
            .map(|key| key.and_then(|key| self.entries.get(key).map(|entry| (key, entry.active))));
        a.into_iter().chain(b).min_by_key(|(_, active)| *active)
    }

    /// Every entry with its flow and when it was active last.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &Flow, Instant)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.flow, entry.active))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.value))
    }

    fn list(&mut self, is_assured: bool) -> &mut List {
        if is_assured { &mut self.assured } else { &mut self.unassured }
    }

    /// Puts it at the head of its list.
    fn link(&mut self, key: Key) {
        let Some(is_assured) = self.entries.get_mut(key).map(|entry| entry.is_assured) else { return };
        let list = self.list(is_assured);
        let before = list.newest.replace(key);
        list.oldest.get_or_insert(key);
        if let Some(entry) = self.entries.get_mut(key) {
            (entry.newer, entry.older) = (None, before);
        }
        if let Some(entry) = before.and_then(|before| self.entries.get_mut(before)) {
            entry.newer = Some(key);
        }
    }

    fn unlink(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let (is_assured, newer, older) = (entry.is_assured, entry.newer.take(), entry.older.take());
        match newer.and_then(|newer| self.entries.get_mut(newer)) {
            Some(entry) => entry.older = older,
            None => self.list(is_assured).newest = older,
        }
        match older.and_then(|older| self.entries.get_mut(older)) {
            Some(entry) => entry.newer = newer,
            None => self.list(is_assured).oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn flow(client: u16) -> Flow {
        let listener = Key::from_bits(0);
        Flow { listener, client: SocketAddr::from(([192, 0, 2, 1], client)), asked: None }
    }

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Datagram(u16),
        Assure(u16),
        Remove(u16),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..24_u16).prop_map(Op::Datagram),
            2 => (0..24_u16).prop_map(Op::Assure),
            1 => (0..24_u16).prop_map(Op::Remove),
        ]
    }

    proptest! {
        /// The same as a list that is searched from one end to the other.
        #[test]
        fn it_holds_no_more_than_allowed_and_the_longest_idle_goes(
            ops in proptest::collection::vec(op(), 1..300),
            limit in 1..16_usize,
        ) {
            let start = Instant::now();
            let mut table = Table::default();
            // (client, active, assured), in no order.
            let mut model: Vec<(u16, u64, bool)> = Vec::new();
            for (time, op) in (0_u64..).zip(ops) {
                let now = start + Duration::from_millis(time);
                match op {
                    Op::Datagram(client) => match table.find(&flow(client)) {
                        Some(key) => {
                            table.touch(key, now);
                            model.iter_mut().filter(|entry| entry.0 == client).for_each(|entry| entry.1 = time);
                        }
                        None => {
                            if table.len() >= limit {
                                let (_, gone) = table.victim().and_then(|key| table.remove(key)).unwrap();
                                let expected = *model.iter().min_by_key(|entry| (entry.2, entry.1)).unwrap();
                                prop_assert_eq!(gone, expected.0);
                                model.retain(|entry| entry.0 != gone);
                            }
                            table.insert(flow(client), client, now).unwrap();
                            model.push((client, time, false));
                        }
                    },
                    Op::Assure(client) => if let Some(key) = table.find(&flow(client)) {
                        // As it happens: with a datagram.
                        table.touch(key, now);
                        table.assure(key);
                        model.iter_mut().filter(|e| e.0 == client).for_each(|e| (e.1, e.2) = (time, true));
                    },
                    Op::Remove(client) => if let Some(key) = table.find(&flow(client)) {
                        prop_assert_eq!(table.remove(key).map(|(_, value)| value), Some(client));
                        model.retain(|entry| entry.0 != client);
                    },
                }
                prop_assert!(table.len() <= limit);
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.iter().count(), model.len());
                let oldest = table.oldest().map(|(_, active)| active);
                let expected = model.iter().map(|entry| entry.1).min();
                prop_assert_eq!(oldest, expected.map(|time| start + Duration::from_millis(time)));
                for (client, ..) in &model {
                    let key = table.find(&flow(*client)).unwrap();
                    prop_assert_eq!(table.get_mut(key).map(|(_, value)| *value), Some(*client));
                }
            }
        }
    }
}
