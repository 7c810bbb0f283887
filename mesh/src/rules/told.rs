//! Which refusals were told in the log: each pair once, until the rules change.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nerve::model::ServiceName;

use super::By;

/// So many pairs are told of; of more, it is said that there are.
const MOST: usize = 1000;

/// The pairs of which the log has a line.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<HashSet<(Option<ServiceName>, ServiceName)>>);

impl Told {
    /// Says that a client was refused, if that is new.
    pub(super) fn tell(&self, from: Option<&ServiceName>, client: Option<IpAddr>, to: &ServiceName, by: &By) {
        let pair = (from.cloned(), to.clone());
        let known = {
            let mut pairs = self.pairs();
            let known = pairs.len();
            if known > MOST || !pairs.insert(pair) {
                return;
            }
            known
        };
        if known == MOST {
            return tracing::info!(
                pairs = MOST,
                "more pairs are refused by rules than are told of; metrics count them"
            );
        }
        let client = client.map(tracing::field::display);
        let from = from.map_or("unknown", |from| from.as_str());
        tracing::info!(
            %to, from, client, %by,
            "a connection is refused by the rules (`plexus why` explains it); the next ones of these two are only counted"
        );
    }

    /// The rules are others: what they refuse is told anew.
    pub(super) fn forget(&self) {
        self.pairs().clear();
    }

    fn pairs(&self) -> MutexGuard<'_, HashSet<(Option<ServiceName>, ServiceName)>> {
        // A set of names, whole whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
