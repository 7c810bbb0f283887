//! Telling the others, by the store, which authorities this node believes, and who made its certificate: a rotation waits for it.

use std::sync::Arc;
use std::time::Duration;

use nerve::enrolment::rotation;
use nerve::model::NodeName;
use nerve::store::{Backoff, Store};
use tokio::sync::watch;

use super::course::Memory;
use super::state::State;

/// The pauses between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Says it whenever it is another than before, and once more whenever a rotation goes on: the store may have lost it. Does not end.
pub(super) async fn keep_told(
    store: Arc<dyn Store>,
    node: NodeName,
    state: Arc<State>,
    mut course: watch::Receiver<Memory>,
) {
    let mut reports = state.report();
    let mut backoff = Backoff::between(PAUSES.0, PAUSES.1);
    loop {
        course.mark_unchanged();
        let report = reports.borrow_and_update().clone();
        if let Some(report) = report
            && let Err(error) = rotation::report(&*store, &node, &report).await
        {
            tracing::debug!(%error, "whom this node believes is not told");
            tokio::time::sleep(backoff.next()).await;
            continue;
        }
        backoff = Backoff::between(PAUSES.0, PAUSES.1);
        tokio::select! {
            Ok(()) = reports.changed() => {}
            Ok(()) = course.changed() => {}
            // Both have ended with the agent.
            else => return,
        }
    }
}
