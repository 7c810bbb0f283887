//! Threads that answer over UDP beside the one that does everything else. Each has sockets of its own (`SO_REUSEPORT`, socket(7)): the
//! kernel spreads clients over them, and nobody waits for a lock of another's.

use std::io;
use std::num::NonZeroUsize;
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Sockets that wait until a thread has begun.
const MOST_WAITING: usize = 256;

/// What a thread begins.
type Work = Box<dyn FnOnce() + Send>;

/// The further threads.
#[derive(Debug, Default)]
pub(super) struct Threads(Vec<Thread>);

#[derive(Debug)]
struct Thread {
    begin: mpsc::Sender<Work>,
    handle: JoinHandle<()>,
}

impl Threads {
    /// So many, the thread that calls among them. Those that cannot be had are done without.
    pub(super) fn start(count: NonZeroUsize) -> Self {
        let further = (1..count.get()).map_while(|number| {
            let thread = Thread::start(number);
            thread
                .inspect_err(|error| tracing::error!(%error, "a thread that answers DNS is done without"))
                .ok()
        });
        Self(further.collect())
    }

    /// Does `work` on the runtime of one of them, so that the tasks that it begins run there.
    pub(super) fn run_on(&self, number: usize, work: impl FnOnce() + Send + 'static) {
        let others = self.0.len();
        let Some(thread) = (number % (others + 1)).checked_sub(1).and_then(|other| self.0.get(other)) else {
            return work();
        };
        // It ended by a panic, which is in the log; or there are more addresses than anybody has.
        if let Err(TrySendError::Closed(work) | TrySendError::Full(work)) =
            thread.begin.try_send(Box::new(work))
        {
            work();
        }
    }

    /// Ends them. Call it when their tasks are done.
    pub(super) fn end(self) {
        for Thread { begin, handle } in self.0 {
            drop(begin);
            if handle.join().is_err() {
                tracing::error!("a thread that answered DNS ended by a panic");
            }
        }
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let (begin, mut begun) = mpsc::channel::<Work>(MOST_WAITING);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = async move {
            while let Some(work) = begun.recv().await {
                work();
            }
        };
        let handle =
            std::thread::Builder::new().name(format!("dns-{number}")).spawn(move || runtime.block_on(run))?;
        Ok(Self { begin, handle })
    }
}
