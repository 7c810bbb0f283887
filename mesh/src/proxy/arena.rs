//! Things of one thread by key: no allocation once it has grown, and a key outlives what it named without naming another.

/// Names a thing in an [`Arena`] for as long as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    index: u32,
    /// How often the place was given away before: an event for what is gone must not reach what came after it.
    generation: u32,
}

/// Values in places that are used again.
#[derive(Debug)]
pub(super) struct Arena<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl Key {
    /// Generations wrap here, so that a key and a kind fit into the 64 bits that epoll keeps for us.
    const GENERATION_BITS: u32 = 28;

    /// The key in the lower 60 bits.
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// What [`Key::to_bits`] made, whatever stands above its 60 bits.
    pub(super) fn from_bits(bits: u64) -> Self {
        let generation = (bits >> 32) as u32 & ((1 << Self::GENERATION_BITS) - 1);
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is the index")]
        Self { index: bits as u32, generation }
    }
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Arena<T> {
    /// Gives `value` a place; `None` when there are 2³² already.
    pub(super) fn insert(&mut self, value: T) -> Option<Key> {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.value = Some(value);
            return Some(Key { index, generation: place.generation });
        }
        let index = u32::try_from(self.places.len()).ok()?;
        self.places.push(Place { generation: 0, value: Some(value) });
        Some(Key { index, generation: 0 })
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        if place.generation == key.generation { place.value.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation == key.generation { place.value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let value = place.value.take()?;
        place.generation = (place.generation + 1) & ((1 << Key::GENERATION_BITS) - 1);
        self.free.push(key.index);
        Some(value)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().zip(0_u32..).filter_map(|(place, index)| {
            let key = Key { index, generation: place.generation };
            place.value.as_ref().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_names_one_value_and_never_another(ops in proptest::collection::vec(any::<Option<u8>>(), 1..200)) {
            let mut arena = Arena::default();
            let mut live: HashMap<u64, u32> = HashMap::new();
            let mut gone: Vec<Key> = Vec::new();
            for (value, op) in (0_u32..).zip(ops) {
                match op {
                    None => { live.insert(arena.insert(value).unwrap().to_bits(), value); }
                    Some(n) => if let Some(bits) = live.keys().nth(usize::from(n) % live.len().max(1)).copied() {
                        prop_assert_eq!(arena.remove(Key::from_bits(bits)), live.remove(&bits));
                        gone.push(Key::from_bits(bits));
                    },
                }
                prop_assert_eq!(arena.len(), live.len());
                prop_assert!(gone.iter().all(|key| arena.get_mut(*key).is_none()));
                prop_assert!(live.iter().all(|(bits, value)| arena.get_mut(Key::from_bits(*bits)) == Some(&mut value.clone())));
                prop_assert_eq!(arena.iter().count(), live.len());
            }
        }
    }
}
