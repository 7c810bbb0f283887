//! Session affinity: a client's address stays with its endpoint until it has been away for a while.
//!
//! The one table of the pick that has locks: as many as buckets, each held for a look at eight entries. Bounded: a bucket
//! that is full forgets whom it has not seen for the longest, which is counted. What hash policies do needs no table.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

use super::endpoint::Endpoint;
use super::hash;
use super::metrics::ServiceMetrics;

/// Buckets, and the entries of each: 65 536 clients together.
const BUCKETS: usize = 8192;
const WAYS: usize = 8;

/// Which client is with which endpoint.
#[derive(Debug)]
pub(super) struct Affinity {
    buckets: Box<[Mutex<Bucket>]>,
}

/// Without memory of its own until somebody is in it.
type Bucket = SmallVec<[Entry; 0]>;

#[derive(Debug)]
struct Entry {
    client: IpAddr,
    endpoint: Arc<Endpoint>,
    seen: u64,
}

impl Default for Affinity {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Mutex::default()).collect() }
    }
}

impl Affinity {
    /// The endpoint of a client that was last seen at most `timeout` ago.
    pub(super) fn get(&self, client: IpAddr, now: u64, timeout: u64) -> Option<Arc<Endpoint>> {
        let mut bucket = self.bucket(client);
        let at = bucket.iter().position(|entry| entry.client == client)?;
        if now.saturating_sub(bucket[at].seen) > timeout {
            bucket.swap_remove(at);
            return None;
        }
        bucket[at].seen = now;
        Some(Arc::clone(&bucket[at].endpoint))
    }

    /// From now on the client is with `endpoint`.
    pub(super) fn put(
        &self,
        client: IpAddr,
        endpoint: &Arc<Endpoint>,
        now: u64,
        timeout: u64,
        metrics: &ServiceMetrics,
    ) {
        let entry = Entry { client, endpoint: Arc::clone(endpoint), seen: now };
        let mut bucket = self.bucket(client);
        if let Some(known) = bucket.iter_mut().find(|known| known.client == client) {
            *known = entry;
        } else if bucket.len() < WAYS {
            bucket.push(entry);
        } else if let Some(oldest) = bucket.iter_mut().min_by_key(|entry| entry.seen) {
            if now.saturating_sub(oldest.seen) <= timeout {
                metrics.affinity_evicted();
            }
            *oldest = entry;
        }
    }

    fn bucket(&self, client: IpAddr) -> MutexGuard<'_, Bucket> {
        let at = hash::shard(client, BUCKETS);
        self.buckets[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
