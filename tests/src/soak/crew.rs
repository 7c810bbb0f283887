//! Threads inside a machine that do what they are given at once: there is always a free one, for one more is made where there is
//! not. So a client that hangs delays no other, and the pace is kept whatever happens.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::netns::Namespace;

/// More than what can hang at a time, unless something is very wrong: then work waits, and is seen to be late.
const MOST: usize = 3000;

type Work = Box<dyn FnOnce() + Send>;

/// The threads of one machine. Dropping it waits until all of them are done.
pub(super) struct Crew {
    namespace: Namespace,
    give: Option<Sender<Work>>,
    take: Arc<Mutex<Receiver<Work>>>,
    /// Threads less what they have to do.
    free: Arc<AtomicI64>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    pub(super) fn new(namespace: &Namespace) -> Self {
        let (give, take) = channel();
        Self {
            namespace: namespace.clone(),
            give: Some(give),
            take: Arc::new(Mutex::new(take)),
            free: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// Has it done by a free thread.
    pub(super) fn give(&mut self, work: impl FnOnce() + Send + 'static) {
        if self.free.fetch_sub(1, Ordering::SeqCst) <= 0 && self.threads.len() < MOST {
            self.free.fetch_add(1, Ordering::SeqCst);
            let (take, free) = (Arc::clone(&self.take), Arc::clone(&self.free));
            let thread = self.namespace.spawn("soak", move || {
                loop {
                    let work = take.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = work else { break };
                    work();
                    free.fetch_add(1, Ordering::SeqCst);
                }
            });
            self.threads.push(thread.expect("a thread inside the namespace"));
        }
        if let Some(give) = &self.give {
            give.send(Box::new(work)).expect("it is taken until the crew is dropped");
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.give = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
