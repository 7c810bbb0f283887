//! The data-plane threads as they see one another: how much each has to do, and how it is given something.

use std::sync::Arc;

use super::command::Command;
use super::inbox::Inbox;
use super::load::Load;

/// A data-plane thread.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) inbox: Arc<Inbox<Command>>,
    pub(super) load: Arc<Load>,
}

impl Seat {
    pub(super) fn new(inbox: Arc<Inbox<Command>>) -> Self {
        Self { inbox, load: Arc::default() }
    }

    fn load(&self) -> u32 {
        self.load.connections()
    }
}

/// Which thread serves a client that this one has accepted.
///
/// The kernel spreads clients over the sockets of a port by a hash, which for a few dozen of them is uneven: the clients of
/// the thread that has twice as many wait twice as long, for as long as they stay connected. Of two choices, this thread and
/// one of the others in turn, the one with clearly fewer connections serves.
#[derive(Debug)]
pub(super) struct Spread {
    own: usize,
    seats: Arc<[Arc<Seat>]>,
    next: usize,
}

impl Spread {
    pub(super) fn new(own: usize, seats: Arc<[Arc<Seat>]>) -> Self {
        Self { own, seats, next: own }
    }

    /// The thread that is to serve the next client.
    pub(super) fn choose(&mut self) -> usize {
        let other = self.other();
        let (own_load, other_load) = (self.seats[self.own].load(), self.seats[other].load());
        if is_worth_it(own_load, other_load) { other } else { self.own }
    }

    /// Each of the others in turn; this one if there is no other.
    fn other(&mut self) -> usize {
        self.next = (self.next + 1) % self.seats.len();
        if self.next == self.own {
            self.next = (self.next + 1) % self.seats.len();
        }
        self.next
    }
}

/// Handing a client over costs a wake-up of the other thread: it is not done for a difference that comes and goes.
fn is_worth_it(own: u32, other: u32) -> bool {
    own > other.saturating_add(1 + other / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(count: usize) -> Arc<[Arc<Seat>]> {
        (0..count).map(|_| Arc::new(Seat::new(Arc::new(Inbox::new().unwrap())))).collect()
    }

    #[test]
    fn one_thread_serves_all_it_accepts() {
        let seats = seats(1);
        let mut spread = Spread::new(0, Arc::clone(&seats));
        for _ in 0..100 {
            assert_eq!(spread.choose(), 0);
            seats[0].load.add_connection();
        }
    }

    #[test]
    fn whatever_the_kernel_does_connections_that_stay_are_spread() {
        for threads in [2, 3, 8] {
            let seats = seats(threads);
            let mut spread = Spread::new(1, Arc::clone(&seats));
            for _ in 0..threads * 100 {
                seats[spread.choose()].load.add_connection();
            }
            let loads: Vec<_> = seats.iter().map(|seat| seat.load()).collect();
            assert!(loads.iter().all(|load| (80..=120).contains(load)), "{loads:?}");
        }
    }

    #[test]
    fn a_small_difference_hands_nobody_over() {
        assert!(!is_worth_it(1, 0));
        assert!(is_worth_it(2, 0));
        assert!(!is_worth_it(113, 100));
        assert!(is_worth_it(114, 100));
        assert!(!is_worth_it(u32::MAX, u32::MAX));
    }
}
