//! How many client connections may be open at once, over all threads.

use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
pub(super) struct ConnectionLimit {
    used: AtomicU32,
    limit: u32,
}

impl ConnectionLimit {
    pub(super) fn new(limit: u32) -> Self {
        Self { used: AtomicU32::new(0), limit }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// A permission for one more, to be given back when it has ended.
    pub(super) fn take(&self) -> bool {
        if self.used.fetch_add(1, Ordering::Relaxed) < self.limit {
            return true;
        }
        self.give_back();
        false
    }

    pub(super) fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }
}
