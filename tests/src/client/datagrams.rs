//! A steady load of datagrams: from a new port each, and from ports that are kept.
//!
//! Each question is asked once, and an answer that does not come is a failure: between these machines nothing else loses any.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::udp::Talk;
use crate::netns::Namespace;
use crate::wait::pause;

/// Longer than any pause that a test tolerates.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two questions of one thread.
const PACE: Duration = Duration::from_millis(5);
/// Threads that ask from new ports, and as many that keep theirs.
const THREADS: usize = 2;

/// Datagrams that go on; stopped when dropped.
#[derive(Debug)]
pub struct Datagrams {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What they have seen.
#[derive(Debug, Clone, Default)]
pub struct Exchanged {
    /// Questions that were answered: from new ports, from kept ones.
    pub answered: [u64; 2],
    /// When, from the beginning on, those were asked that were not; and how.
    pub lost: Vec<(Duration, &'static str)>,
}

#[derive(Debug)]
struct Shared {
    namespace: Namespace,
    to: SocketAddr,
    start: Instant,
    stop: AtomicBool,
    exchanged: Mutex<Exchanged>,
}

impl Datagrams {
    /// Asks `to` from inside a namespace.
    ///
    /// # Panics
    /// Its threads cannot be made.
    #[must_use]
    pub fn start(from: &Namespace, to: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            namespace: from.clone(),
            to,
            start: Instant::now(),
            stop: AtomicBool::new(false),
            exchanged: Mutex::default(),
        });
        let threads = (0..2 * THREADS).map(|number| {
            let shared = Arc::clone(&shared);
            from.spawn("datagrams", move || shared.ask(number % 2 == 1))
                .expect("a thread inside the namespace")
        });
        Self { threads: threads.collect(), shared }
    }

    /// Waits until `count` more were answered of each kind.
    #[track_caller]
    pub fn wait_for(&self, count: u64) {
        let enough = self.shared.so_far().answered.map(|answered| answered + count);
        crate::eventually!(Duration::from_secs(60), self.shared.so_far().answered, |seen| {
            seen.iter().zip(enough).all(|(seen, enough)| *seen >= enough)
        });
    }

    /// Ends it and returns what it has seen.
    #[must_use]
    pub fn stop(mut self) -> Exchanged {
        self.end();
        self.shared.so_far()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.end();
    }
}

impl Exchanged {
    /// Panics when a question had no answer, or none was asked.
    #[track_caller]
    pub fn assert_unharmed(&self) {
        assert!(self.lost.is_empty() && !self.answered.contains(&0), "{self}");
    }
}

impl fmt::Display for Exchanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered: [new, kept], lost } = self;
        write!(f, "{} datagrams lost; answered: {new} from new ports, {kept} from kept ones", lost.len())?;
        lost.iter().take(10).try_for_each(|(at, how)| write!(f, "\n  at {at:.3?} from a {how} port"))
    }
}

impl Shared {
    fn so_far(&self) -> Exchanged {
        self.exchanged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ask(&self, keeps: bool) {
        let mut kept = None;
        while !self.stop.load(Ordering::SeqCst) {
            let at = self.start.elapsed();
            let talk = kept.take().or_else(|| Talk::open(&self.namespace, self.to).ok());
            let answered = talk.as_ref().is_some_and(|talk| talk.instance(PATIENCE).is_some());
            let mut exchanged = self.exchanged.lock().unwrap_or_else(PoisonError::into_inner);
            if answered {
                exchanged.answered[usize::from(keeps)] += 1;
            } else {
                exchanged.lost.push((at, if keeps { "kept" } else { "new" }));
            }
            drop(exchanged);
            kept = talk.filter(|_| keeps);
            pause(PACE);
        }
    }
}
