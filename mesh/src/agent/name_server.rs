//! The name server's thread: a runtime of its own, so that neither connections nor the control plane delay an answer.

use std::io;
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use crate::dns;

/// A name server that runs.
#[derive(Debug)]
pub(super) struct NameServer {
    pub(super) server: dns::Server,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl NameServer {
    /// Serves from a thread of its own.
    pub(super) fn start(bound: dns::Bound) -> io::Result<Self> {
        let (server, stop) = (bound.server(), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("dns".to_owned())
            .spawn(move || runtime.block_on(bound.run(stopped)))?;
        Ok(Self { server, stop, thread })
    }

    /// Ends it. Blocks for the moment that it takes.
    pub(super) fn end(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            tracing::error!("the name server ended by a panic");
        }
    }
}
