//! Ends registrations of the run-time API that ask for it: of what has not been well for so long that nobody waits for it any more.
//!
//! When an agent starts, all of them have their time anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::board::Board;
use crate::source::{ApiSource, InstanceKey};

/// Changes are looked at this often at most.
const PACE: Duration = Duration::from_secs(1);
/// When one that could not be deregistered is tried again.
const AGAIN: Duration = Duration::from_secs(10);

pub(super) async fn run(board: Arc<Board>, api: ApiSource) {
    let mut changes = board.version();
    // Until when each is waited for.
    let mut waited_for: BTreeMap<InstanceKey, (Duration, Instant)> = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let (lapsing, now) = (BTreeMap::from_iter(board.lapsing()), Instant::now());
        waited_for.retain(|key, (after, _)| lapsing.get(key) == Some(after));
        for (key, after) in lapsing {
            waited_for.entry(key).or_insert((after, now + after));
        }
        for (key, (after, until)) in waited_for.iter_mut().filter(|(_, (_, until))| *until <= now) {
            match api.deregister(key).await {
                Ok(()) => {
                    tracing::warn!(instance = %key, ?after, "instance deregistered: it was not well for too long")
                }
                Err(error) => tracing::warn!(instance = %key, %error, "instance cannot be deregistered"),
            }
            *until = now + AGAIN;
        }
        let next = waited_for.values().map(|(_, until)| *until).min();
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        sleep(PACE).await;
    }
}
