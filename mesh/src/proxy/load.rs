//! How much a data-plane thread has to do.

use std::sync::atomic::{AtomicU32, Ordering};

/// Connections of a thread; on a cache line of its own, since another thread looks at it for each client that it accepts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Load(AtomicU32);

impl Load {
    pub(super) fn add_connection(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sub_connection(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn connections(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}
