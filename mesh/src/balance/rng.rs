//! Random numbers for choosing: fast, one generator a thread, nothing shared. Never for secrets.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use super::hash;

thread_local! {
    // The standard library's random keys are the seed: threads and processes differ.
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0u8));
}

/// Any number. SplitMix64: a counter, scattered.
pub(super) fn next() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        hash::mix(next)
    })
}

/// A number below `bound`, each as likely as any other up to a part in 2⁶⁴/`bound` (Lemire's multiplication).
pub(super) fn below(bound: u64) -> u64 {
    scale(next(), bound)
}

/// A 64-bit number as one below `bound`.
pub(super) fn scale(number: u64, bound: u64) -> u64 {
    ((u128::from(number) * u128::from(bound)) >> 64) as u64
}
