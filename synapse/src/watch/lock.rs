//! A lock that a panic does not close for ever.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nothing is left half-done behind it by a panic.
pub(in crate::watch) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
