//! A connection that is kept from one probe to the next: for a while, and only so many.
//!
//! A server that accepts nobody new would look well for ever through a connection that it accepted once; so none is kept
//! for longer than [`OLDEST`]. A kept connection is a file descriptor that no probe's slot stands for; so there are at most
//! [`MOST`] of them, and beyond that each probe has one of its own.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// How long a connection is kept, from its beginning.
const OLDEST: Duration = Duration::from_secs(10);
/// So many are kept at a time by the whole process.
const MOST: usize = 1024;

static ROOM: Semaphore = Semaphore::const_new(MOST);

/// The connection of one check, while no probe has it.
pub(in crate::check) struct Kept<T>(Mutex<Option<Held<T>>>);

/// A connection, and when it began.
pub(in crate::check) struct Held<T> {
    pub(in crate::check) connection: T,
    born: Instant,
    /// Kept with it for as long as it lives.
    room: Option<SemaphorePermit<'static>>,
}

impl<T> Held<T> {
    /// One that begins now.
    pub(in crate::check) fn new(connection: T) -> Self {
        Self { connection, born: Instant::now(), room: None }
    }
}

impl<T> Kept<T> {
    /// Takes it out, if there is one that is not too old.
    pub(in crate::check) fn take(&self) -> Option<Held<T>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .filter(|held| held.born.elapsed() < OLDEST)
    }

    /// Keeps it for the next probe, if there is room.
    pub(in crate::check) fn put(&self, mut held: Held<T>) {
        if held.room.is_none() {
            let Ok(room) = ROOM.try_acquire() else { return };
            held.room = Some(room);
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

/// A copy of a check has connections of its own.
impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What is kept makes no difference to what a check is.
impl<T> PartialEq for Kept<T> {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl<T> Eq for Kept<T> {}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_given_once_and_not_when_it_is_old() {
        let kept = Kept::default();
        kept.put(Held::new(1));
        assert!(kept.clone().take().is_none());
        let held = kept.take().unwrap();
        assert!(held.connection == 1 && kept.take().is_none());
        tokio::time::advance(OLDEST / 2).await;
        kept.put(held);
        tokio::time::advance(OLDEST / 2).await;
        assert!(kept.take().is_none());
    }
}
