//! A place where instances are known: what each file of a kind implements.

use std::convert::Infallible;

use async_trait::async_trait;
use nerve::store::Backoff;
use tokio::time::Instant;

use super::server::Server;

/// What stands at a place and cannot be used, and why.
pub type Refused = (String, String);

/// A place.
#[async_trait]
pub(super) trait Place: Send + Sync {
    /// Follows it, and tells each time all that stands there. Returns when it cannot go on, with why; it is begun anew later.
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String>;
}

/// Whom a place tells.
#[async_trait]
pub(super) trait Tell: Send + Sync {
    /// All that stands there now. `refused` is what cannot be used, with the reason.
    async fn found(&self, found: Vec<Server>, refused: Vec<Refused>);

    /// The place is out of reach, or cannot be understood; what it last said stays.
    async fn failed(&self, error: String);
}

/// Follows a place for ever, begun anew after a pause that grows while it fails at once.
pub(super) async fn follow_always(place: &dyn Place, told: &dyn Tell) -> Infallible {
    let mut backoff = Backoff::new();
    loop {
        let began = Instant::now();
        let Err(error) = place.follow(told).await;
        told.failed(error).await;
        if began.elapsed() > Backoff::LONGEST {
            backoff = Backoff::new();
        }
        tokio::time::sleep(backoff.next()).await;
    }
}
