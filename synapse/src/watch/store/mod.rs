//! The store's watch → the catalog.
//!
//! One watch over everything below the prefix: one stream is one order and one revision, so a snapshot is consistent
//! across services, instances, nodes and networks, and reconnecting costs one round trip. Keys of newer agents come along and are
//! counted and left out.
//!
//! What an event does to the catalog is [`follow`]'s; here are the waiting and the writing. It never blocks on the store:
//! lost durable records are written back beside the watch.

mod follow;
mod grace;
mod handle;
mod restore;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nerve::store::{self, Expect, Key, Path, Store, Swap};
use nerve::tasks::Tasks;
use tokio::time::Instant;

use crate::Metrics;
use crate::catalog::Writer;
use crate::watch::Recalled;

use follow::Follower;
pub use handle::{Handle, Status};

/// So many durable records are written back at a time.
const WRITES_AT_ONCE: usize = 16;

/// How the watcher judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How long what the store lost keeps its traffic after a reconnection. Longer than the session TTL of the agents
    /// and the moment that they need to register again.
    pub reconnect_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { reconnect_grace: Duration::from_secs(15) }
    }
}

/// Starts the watcher with what memory recalls of an earlier life. When this returns, the catalog holds that.
#[must_use]
pub fn start(
    config: Config,
    store: Arc<dyn Store>,
    writer: Writer,
    recalled: Option<Recalled>,
    metrics: Metrics,
    tasks: &Tasks,
) -> Handle {
    let (follower, handle) = Follower::new(&config, store.url(), writer, recalled, metrics);
    // One follower over restarts: it is the only writer, and what it dooms must not be forgotten.
    let follower = Arc::new(tokio::sync::Mutex::new(follower));
    let stop = tasks.stop_token();
    tasks.spawn_restarted("store watcher", move || {
        let (follower, store, stop) = (Arc::clone(&follower), Arc::clone(&store), stop.clone());
        async move {
            let mut follower = follower.lock().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = run(&mut follower, &store) => {}
            }
        }
    });
    handle
}

/// Never returns: a store that was shut down leaves the last known good.
async fn run(follower: &mut Follower, store: &Arc<dyn Store>) {
    let mut watch = store.watch(&Path::root());
    let mut writes = FuturesUnordered::new();
    follower.restart();
    loop {
        while writes.len() < WRITES_AT_ONCE
            && let Some((key, value)) = follower.next_lost()
        {
            writes.push(write_back(Arc::clone(store), key, value));
        }
        let idle = writes.len() < WRITES_AT_ONCE;
        tokio::select! {
            event = watch.next() => match event {
                Some(event) => follower.handle(event).await,
                None => {
                    follower.ended();
                    return std::future::pending().await;
                }
            },
            () = sleep_until(follower.next_doom()) => follower.drop_doomed(),
            () = sleep_until(follower.next_write()), if idle => {}
            Some((key, result)) = writes.next() => follower.written_back(key, result),
        }
    }
}

/// Writes a lost record, unless someone else has.
async fn write_back(store: Arc<dyn Store>, key: Key, value: Arc<str>) -> (Key, store::Result<Swap>) {
    let value = Some(value.as_bytes().to_vec());
    let swap = store.compare_and_swap(&key.path(), Expect::Absent, value, None).await;
    (key, swap)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
