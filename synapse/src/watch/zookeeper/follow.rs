//! One-shot watches, which every version of ZooKeeper has: what is watched is looked at again after each, and each time that the session
//! is connected again. A slow tick reads everything without any.

use std::convert::Infallible;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, timeout};
use zookeeper_client::{Client, Error, OneshotWatcher, SessionState};

/// How long the ensemble may take to answer a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Everything is read again so often.
const READ_AGAIN: Duration = Duration::from_secs(300);
/// Whether the session stands is asked so often while it is not connected.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is watched.
#[async_trait]
pub(super) trait Watched: Send {
    /// Sets a watch, and takes what stands there now.
    async fn look(&mut self, client: &Client) -> Result<OneshotWatcher, String>;

    /// It could not be looked at; it is tried again.
    async fn failed(&mut self, error: String);

    /// What was read before is not to be relied on.
    fn forget(&mut self);

    /// Waits where it is to be looked at again.
    async fn pause(&self);
}

/// Looks each time that something may have changed. Returns when the session is over, with why.
pub(super) async fn follow(client: &Client, watched: &mut dyn Watched) -> Result<Infallible, String> {
    let mut state = client.state_watcher();
    let mut read_again = Instant::now() + READ_AGAIN;
    loop {
        let watcher = match watched.look(client).await {
            Ok(watcher) => Some(watcher),
            Err(error) if client.state().is_terminated() => return Err(error),
            Err(error) => {
                watched.failed(error).await;
                None
            }
        };
        let again = if watcher.is_some() { read_again } else { Instant::now() + LOOK_AGAIN };
        let event = async {
            match watcher {
                Some(watcher) => drop(watcher.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = event => watched.pause().await,
            now = state.changed() => match now {
                SessionState::SyncConnected | SessionState::ConnectedReadOnly => {}
                now if now.is_terminated() => return Err(format!("the session is over: {now}")),
                now => watched.failed(format!("the session is not connected: {now}")).await,
            },
            () = tokio::time::sleep_until(again) => if again == read_again {
                read_again = Instant::now() + READ_AGAIN;
                watched.forget();
            },
        }
    }
}

/// A watch for a node that is not there yet, or may be there by now.
pub(super) async fn appears(client: &Client, path: &str) -> Result<OneshotWatcher, String> {
    match answered(client.check_and_watch_stat(path)).await? {
        Ok((_, watcher)) => Ok(watcher),
        Err(error) => Err(format!("look for {path}: {error}")),
    }
}

/// What was answered in time.
pub(super) async fn answered<T>(
    request: impl Future<Output = Result<T, Error>>,
) -> Result<Result<T, Error>, String> {
    let answer = timeout(ANSWER_WITHIN, request).await;
    answer.map_err(|_| format!("no answer within {ANSWER_WITHIN:?}"))
}
