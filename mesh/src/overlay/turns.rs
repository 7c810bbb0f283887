//! One thing at a time for each link of a container, and not too many at once.
//!
//! Whatever is done to one container is done in turn: who attaches, who detaches and who looks whether it is gone never meet.
//! Different containers wait for each other only where the kernel makes them: it changes one link after the other, so that more
//! than a few at once are nothing but threads that wait.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

/// Containers that are worked on at once.
const AT_ONCE: usize = 16;
/// So many queues for all links; two that share one wait for each other for no reason, now and then.
const QUEUES: usize = 1024;

/// Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    at_once: Semaphore,
    queues: Vec<Mutex<()>>,
}

/// It is somebody's turn until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _one: MutexGuard<'a, ()>,
    _few: Option<SemaphorePermit<'a>>,
}

impl Turns {
    pub(super) fn new() -> Self {
        let queues = std::iter::repeat_with(Mutex::default).take(QUEUES).collect();
        Self(Arc::new(Inner { at_once: Semaphore::new(AT_ONCE), queues }))
    }

    /// Waits until nobody else does anything to this link, and few do anything to others. Nobody may wait for a second one while it
    /// has a turn.
    pub(super) async fn wait(&self, link: &str) -> Turn<'_> {
        // In this order: who waits for its own link holds nobody else up.
        let turn = self.wait_among_many(link).await;
        // It is never closed.
        let few = self.0.at_once.acquire().await.ok();
        Turn { _few: few, ..turn }
    }

    /// Waits until nobody else does anything to this link, for what costs nothing but waiting.
    pub(super) async fn wait_among_many(&self, link: &str) -> Turn<'_> {
        let queue = nerve::hash::of(link) % self.0.queues.len() as u64;
        let one = self.0.queues[usize::try_from(queue).unwrap_or(0)].lock().await;
        Turn { _one: one, _few: None }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_for_a_link_and_few_for_all() {
        let turns = Turns::new();
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = async |link: String| {
            let _turn = turns.wait(&link).await;
            most.fetch_max(at_once.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            at_once.fetch_sub(1, Ordering::Relaxed);
        };
        futures_util::future::join_all((0..20).map(|_| work("same".to_owned()))).await;
        assert_eq!(most.swap(0, Ordering::Relaxed), 1);
        futures_util::future::join_all((0..500).map(|n| work(format!("link{n}")))).await;
        assert_eq!(most.load(Ordering::Relaxed), AT_ONCE);
    }
}
