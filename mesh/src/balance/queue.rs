//! Connections that wait for a place, the oldest first.
//!
//! Nobody waits unless every endpoint is at its limit, so the lock is off the usual path: whoever frees a place looks at
//! one number first. A waiter is never handed a place. It is woken, picks like everyone else, and says
//! [`Ticket::again`] if it was not lucky, keeping its turn.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::metrics::ServiceMetrics;
use super::refused::Refused;

/// Who waits.
#[derive(Debug)]
pub(super) struct Queue {
    metrics: Arc<ServiceMetrics>,
    /// Readable without the lock.
    length: AtomicUsize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_turn: BTreeMap<u64, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    waker: Waker,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be woken.
    Asleep,
    /// Woken, and expected to pick.
    Awake,
    /// Woken, and meanwhile a further place got free that nobody else was there for.
    AwakeAgain,
}

/// A turn in the queue; dropping it leaves the queue.
pub struct Ticket {
    queue: Arc<Queue>,
    turn: u64,
}

impl Queue {
    pub(super) fn new(metrics: Arc<ServiceMetrics>) -> Self {
        Self { metrics, length: AtomicUsize::new(0), waiting: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.length.load(Ordering::SeqCst)
    }

    /// A place may have got free: the oldest that sleeps is woken. Costs one load when nobody waits.
    pub(super) fn wake_one(&self) {
        // SeqCst here and in `join`: either we see the waiter, or the waiter, which picks once more after it has joined,
        // sees the place.
        if self.len() == 0 {
            return;
        }
        let waker = {
            let mut waiting = self.lock();
            let asleep = waiting.by_turn.values_mut().find(|waiter| waiter.state == State::Asleep);
            match asleep {
                Some(waiter) => {
                    waiter.state = State::Awake;
                    Some(waiter.waker.clone())
                }
                None => {
                    let first = waiting.by_turn.values_mut().next();
                    first.into_iter().for_each(|waiter| waiter.state = State::AwakeAgain);
                    None
                }
            }
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// The endpoints or the limits are different now: everyone looks again.
    pub(super) fn wake_all(&self) {
        if self.len() == 0 {
            return;
        }
        let mut woken = Vec::new();
        for waiter in self.lock().by_turn.values_mut() {
            match waiter.state {
                State::Asleep => {
                    waiter.state = State::Awake;
                    woken.push(waiter.waker.clone());
                }
                State::Awake | State::AwakeAgain => waiter.state = State::AwakeAgain,
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Joins the queue, unless `limit` are in it. The waker is called at once: what got free between the pick that
    /// failed and now would otherwise be missed.
    pub(super) fn join(self: &Arc<Self>, limit: usize, waker: Waker) -> Result<Ticket, Refused> {
        let turn = {
            let mut waiting = self.lock();
            if waiting.by_turn.len() >= limit {
                self.metrics.refused(Refused::QueueFull);
                return Err(Refused::QueueFull);
            }
            let turn = waiting.next;
            waiting.next += 1;
            waiting.by_turn.insert(turn, Waiter { waker: waker.clone(), state: State::Awake });
            self.length.store(waiting.by_turn.len(), Ordering::SeqCst);
            turn
        };
        self.metrics.queued();
        self.metrics.queue().inc();
        waker.wake();
        Ok(Ticket { queue: Arc::clone(self), turn })
    }
}

impl Ticket {
    /// The pick after a wake-up found no place: sleep on, in the same turn.
    pub fn again(&self, waker: Waker) {
        let mut waiting = self.queue.lock();
        let Some(waiter) = waiting.by_turn.get_mut(&self.turn) else { return };
        if waiter.state == State::AwakeAgain {
            waiter.state = State::Awake;
            waiter.waker = waker.clone();
            drop(waiting);
            waker.wake();
        } else {
            waiter.state = State::Asleep;
            waiter.waker = waker;
        }
    }

    /// Leaves the queue because it took too long, which is counted. Returns the reason for whoever closes the connection.
    #[must_use]
    pub fn timed_out(self) -> Refused {
        self.queue.metrics.refused(Refused::QueueTimeout);
        Refused::QueueTimeout
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let queue = &self.queue;
        {
            let mut waiting = queue.lock();
            waiting.by_turn.remove(&self.turn);
            queue.length.store(waiting.by_turn.len(), Ordering::SeqCst);
        }
        queue.metrics.queue().dec();
        // Whoever leaves passes a wake-up on: it may have been meant for a place that was not taken, and there may be
        // more places than wake-ups (an endpoint that came back brings many).
        queue.wake_one();
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("turn", &self.turn).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    use super::super::metrics::Metrics;
    use super::*;

    #[derive(Debug, Default)]
    struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Bell {
        fn rung(&self) -> u32 {
            self.0.swap(0, Ordering::SeqCst)
        }
    }

    fn queue() -> Arc<Queue> {
        Arc::new(Queue::new(Arc::new(Metrics::new().unwrap().of_service("web"))))
    }

    fn join(queue: &Arc<Queue>, limit: usize) -> Result<(Ticket, Arc<Bell>), Refused> {
        let bell = Arc::new(Bell::default());
        let ticket = queue.join(limit, Arc::clone(&bell).into())?;
        assert_eq!(bell.rung(), 1, "who joins looks once more");
        ticket.again(Arc::clone(&bell).into());
        Ok((ticket, bell))
    }

    #[test]
    fn the_oldest_is_woken_and_keeps_its_turn() {
        let queue = queue();
        let (first, bell) = join(&queue, 2).unwrap();
        let (_second, other) = join(&queue, 2).unwrap();
        assert_eq!(join(&queue, 2).unwrap_err(), Refused::QueueFull);
        queue.wake_one();
        assert_eq!((bell.rung(), other.rung()), (1, 0));
        first.again(Arc::clone(&bell).into());
        queue.wake_one();
        assert_eq!((bell.rung(), other.rung()), (1, 0));
    }

    #[test]
    fn who_leaves_passes_the_wake_up_on() {
        let queue = queue();
        let (first, _bell) = join(&queue, 2).unwrap();
        let (_second, other) = join(&queue, 2).unwrap();
        queue.wake_one();
        drop(first);
        assert_eq!((other.rung(), queue.len()), (1, 1));
    }

    #[test]
    fn a_place_that_gets_free_while_everyone_is_awake_is_not_missed() {
        let queue = queue();
        let (only, bell) = join(&queue, 2).unwrap();
        queue.wake_one();
        assert_eq!(bell.rung(), 1);
        queue.wake_one();
        only.again(Arc::clone(&bell).into());
        assert_eq!(bell.rung(), 1, "the second place");
        only.again(Arc::clone(&bell).into());
        assert_eq!(bell.rung(), 0);
    }

    #[test]
    fn waiting_too_long_is_counted() {
        let queue = queue();
        let (ticket, _bell) = join(&queue, 1).unwrap();
        assert_eq!(ticket.timed_out(), Refused::QueueTimeout);
        assert_eq!(queue.metrics.refused_so_far(Refused::QueueTimeout), 1);
        assert_eq!(queue.len(), 0);
    }
}
