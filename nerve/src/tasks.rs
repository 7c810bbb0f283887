//! Background tasks that have an owner.
//!
//! A [`Tasks`] is a tracker and a stop signal. Whoever makes one waits for all of its tasks at the end; nothing that it
//! spawned outlives it. The panic of a task is logged, counted and, for a task that is to live as long as its owner,
//! answered by a restart with back-off. Stands in the lowest crate because every room above it needs it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A task that lived this long has recovered: its next failure starts over with the first pause.
const RECOVERED: Duration = Duration::from_secs(60);

/// The owner of a set of tasks. Clones are handles of the same owner.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    panics: Arc<AtomicU64>,
}

impl Tasks {
    /// An owner of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the owner shuts down.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Panics of tasks so far.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Runs `task` once. It is expected to end by itself when the stop token is cancelled.
    #[allow(clippy::disallowed_methods, reason = "this is the owner that the lint asks for")]
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let panics = Arc::clone(&self.panics);
        tokio::spawn(self.tracker.track_future(async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(task = name, panic = panic_text(&*panic), "task panicked");
            }
        }));
    }

    /// Runs `task` once: until it ends, or it is dropped where it waits when the owner shuts down.
    pub fn spawn_while_wanted(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, until(self.stop.clone(), task));
    }

    /// Runs what `make` makes until the owner shuts down; when it panics or returns early it is made anew after a pause.
    pub fn spawn_restarted<F>(&self, name: &'static str, make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.keep(name, false, make);
    }

    /// Runs what `make` makes until it returns, or it is dropped where it waits when the owner shuts down; when it panics it is made
    /// anew after a pause.
    pub fn spawn_until_done<F>(&self, name: &'static str, mut make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.keep(name, true, move || until(stop.clone(), make()));
    }

    fn keep<F>(&self, name: &'static str, may_end: bool, mut make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        let panics = Arc::clone(&self.panics);
        self.spawn(name, async move {
            let mut pause = FIRST_PAUSE;
            while !stop.is_cancelled() {
                let started = Instant::now();
                match AssertUnwindSafe(make()).catch_unwind().await {
                    Ok(()) if may_end || stop.is_cancelled() => break,
                    Ok(()) => tracing::warn!(task = name, "task ended early; it is restarted"),
                    Err(panic) => {
                        panics.fetch_add(1, Ordering::Relaxed);
                        tracing::error!(
                            task = name,
                            panic = panic_text(&*panic),
                            "task panicked; it is restarted"
                        );
                    }
                }
                if started.elapsed() > RECOVERED {
                    pause = FIRST_PAUSE;
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                }
            }
        });
    }

    /// The same for a task that knows nothing of the end: when the owner shuts down it is dropped where it waits, and does not
    /// get to run once more.
    pub fn spawn_until_stopped<F>(&self, name: &'static str, mut make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.spawn_restarted(name, move || until(stop.clone(), make()));
    }

    /// Tells every task to stop and waits until all have.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = task => {}
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("not a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_may_end_is_restarted_for_a_panic_alone() {
        let tasks = Tasks::new();
        let runs = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&runs);
        tasks.spawn_until_done("once more", move || {
            let seen = Arc::clone(&seen);
            async move { assert!(seen.fetch_add(1, Ordering::Relaxed) > 0, "not yet") }
        });
        tasks.tracker.close();
        let ended = tokio::time::timeout(LONGEST_PAUSE * 10, tasks.tracker.wait()).await;
        assert_eq!((ended, runs.load(Ordering::Relaxed), tasks.panics()), (Ok(()), 2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_restarted_until_shutdown() {
        let tasks = Tasks::new();
        let runs = Arc::new(AtomicU64::new(0));
        let (seen, stop) = (Arc::clone(&runs), tasks.stop_token());
        tasks.spawn_restarted("twice", move || {
            let (seen, stop) = (Arc::clone(&seen), stop.clone());
            async move {
                assert!(seen.fetch_add(1, Ordering::Relaxed) > 1, "not yet");
                stop.cancelled().await;
            }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert_eq!(tasks.panics(), 2);
        tasks.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_knows_of_no_end_ends_with_its_owner() {
        let tasks = Tasks::new();
        let runs = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&runs);
        tasks.spawn_until_stopped("endless", move || {
            let seen = Arc::clone(&seen);
            async move {
                assert!(seen.fetch_add(1, Ordering::Relaxed) > 0, "not yet");
                std::future::pending::<()>().await;
            }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        tasks.shutdown().await;
        assert_eq!((runs.load(Ordering::Relaxed), tasks.panics()), (2, 1));
    }
}
