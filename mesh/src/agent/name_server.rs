//! The name server's thread: a runtime of its own, so that neither connections nor the control plane delay an answer.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::dns;
use crate::drain::{self, DrainTrigger};

/// How long questions that wait for an upstream server may go on when the agent leaves.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// A name server that runs.
#[derive(Debug)]
pub(super) struct NameServer {
    pub(super) handle: dns::Handle,
    drain: DrainTrigger,
    thread: JoinHandle<()>,
}

impl NameServer {
    /// Serves from a thread of its own.
    pub(super) fn start(bound: dns::Bound) -> io::Result<Self> {
        let (handle, (drain, drained)) = (bound.handle(), drain::channel());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("dns".to_owned())
            .spawn(move || runtime.block_on(bound.run(drained)))?;
        Ok(Self { handle, drain, thread })
    }

    /// Ends it.
    pub(super) async fn end(self) {
        if self.drain.drain(DRAIN_WITHIN).await == drain::Drained::DeadlinePassed {
            tracing::warn!("the name server still waits for an upstream server; it ends with the process");
            return;
        }
        if self.thread.join().is_err() {
            tracing::error!("the name server ended by a panic");
        }
    }
}
