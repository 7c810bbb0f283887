//! The signals that an agent listens to.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To leave; the signal's name.
    Leave(&'static str),
    /// To read the configuration again.
    Reload,
    /// To start the program anew, which takes over.
    Replace,
}

/// SIGTERM, SIGINT, SIGHUP and SIGUSR2 as things to wait for.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next signal. Cancel-safe.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Leave("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Leave("SIGINT"),
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.user.recv() => Asked::Replace,
        }
    }

    /// Completes when the process is asked to leave, with the signal's name. Cancel-safe.
    pub(super) async fn leave(&mut self) -> &'static str {
        loop {
            if let Asked::Leave(signal) = self.next().await {
                return signal;
            }
        }
    }
}
