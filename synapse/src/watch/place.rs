//! A place where instances are known: what each file of a kind implements.

use std::convert::Infallible;

use async_trait::async_trait;

use super::told::Told;

/// A place.
#[async_trait]
pub(super) trait Place: Send + Sync {
    /// Follows it, and tells each time all that stands there. Returns when it cannot go on, with why; it is begun anew later.
    async fn follow(&self, told: &Told) -> Result<Infallible, String>;
}
