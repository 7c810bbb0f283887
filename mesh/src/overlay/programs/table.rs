//! A map in the kernel, and what it has.

use std::collections::BTreeMap;
use std::io;

use super::path::Key;
use crate::sys::bpf::Map;

/// From addresses or subnets to values of so many bytes.
#[derive(Debug)]
pub(super) struct Table<const SIZE: usize> {
    pub(super) map: Map<{ size_of::<Key>() }, SIZE>,
    known: BTreeMap<Key, [u8; SIZE]>,
}

impl<const SIZE: usize> Table<SIZE> {
    /// An empty one for so many entries.
    pub(super) fn new(most: u32) -> io::Result<Self> {
        Ok(Self { map: Map::new(most)?, known: BTreeMap::new() })
    }

    /// It has these from now on and no others; what there is no room for is left out.
    pub(super) fn set(&mut self, wanted: BTreeMap<Key, [u8; SIZE]>) -> io::Result<()> {
        self.retain(|key, _| wanted.contains_key(key))?;
        wanted.into_iter().try_for_each(|(key, value)| self.change(key, Some(value)))
    }

    /// The value of a key is that from now on; `None`: it has none.
    pub(super) fn change(&mut self, key: Key, value: Option<[u8; SIZE]>) -> io::Result<()> {
        match value {
            Some(value) if self.known.get(&key) == Some(&value) => Ok(()),
            Some(value) => {
                match self.map.set(&key, &value) {
                    Err(error) if error.kind() == io::ErrorKind::ArgumentListTooLong => return Ok(()),
                    done => done?,
                }
                self.known.insert(key, value);
                Ok(())
            }
            None if self.known.contains_key(&key) => {
                self.map.remove(&key)?;
                self.known.remove(&key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Removes the others.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Key, &[u8; SIZE]) -> bool) -> io::Result<()> {
        let removed = self.known.iter().filter(|(key, value)| !is_kept(key, value)).map(|(key, _)| *key);
        removed.collect::<Vec<_>>().into_iter().try_for_each(|key| self.change(key, None))
    }
}
