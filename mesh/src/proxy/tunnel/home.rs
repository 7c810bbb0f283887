//! How a thread learns what became of the tunnels that it has lent to connections.
//!
//! Whoever has one gives it back when its stream is over, or drops it when it is of no more use. Either is noted here and looked
//! at by the thread's next step: a tunnel can neither be forgotten nor be given back twice.

use std::cell::RefCell;
use std::mem::take;
use std::rc::Rc;

use crate::proxy::arena::Key;

/// What was noted, of tunnels of a thread.
#[derive(Debug)]
pub(super) struct Home<T> {
    vacated: RefCell<Vec<Key>>,
    returned: RefCell<Vec<T>>,
}

/// The place of a tunnel among those of its thread, for as long as the tunnel is there.
#[derive(Debug)]
pub(super) struct Place<T> {
    key: Key,
    home: Rc<Home<T>>,
}

impl<T> Default for Home<T> {
    fn default() -> Self {
        Self { vacated: RefCell::default(), returned: RefCell::new(Vec::new()) }
    }
}

impl<T> Home<T> {
    /// Those that were given back.
    pub(super) fn returned(&self) -> Vec<T> {
        take(&mut *self.returned.borrow_mut())
    }

    /// The places of those that are no more.
    pub(super) fn vacated(&self) -> Vec<Key> {
        take(&mut *self.vacated.borrow_mut())
    }

    /// Is nothing noted?
    pub(super) fn is_quiet(&self) -> bool {
        self.returned.borrow().is_empty() && self.vacated.borrow().is_empty()
    }
}

impl<T> Place<T> {
    pub(super) fn new(key: Key, home: &Rc<Home<T>>) -> Self {
        Self { key, home: Rc::clone(home) }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    pub(super) fn home(&self) -> Rc<Home<T>> {
        Rc::clone(&self.home)
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.home.vacated.borrow_mut().push(self.key);
    }
}

impl<T> Home<T> {
    pub(super) fn give_back(&self, tunnel: T) {
        self.returned.borrow_mut().push(tunnel);
    }
}
