//! Whose fault was it? A probe that fails because this host has no descriptor or no port left says nothing of its target.
//!
//! Kinds tell their failures as texts, for people. What this host refused is noted beside that, by whoever made the system
//! call, for the probe that is running; so no kind needs to know of it.

use std::cell::Cell;
use std::io;

/// What this host lacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// This process may open no more descriptors (`EMFILE`).
    Descriptors,
    /// This host has no descriptor left (`ENFILE`).
    HostDescriptors,
    /// There is no local port left to connect from (`EADDRNOTAVAIL`).
    Ports,
    /// No process can be started (`EAGAIN`, `ENOMEM` of fork).
    Processes,
}

impl Lack {
    /// The word for it: a metric label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::HostDescriptors => "host_descriptors",
            Self::Ports => "ports",
            Self::Processes => "processes",
        }
    }

    pub(super) const ALL: [Self; 4] =
        [Self::Descriptors, Self::HostDescriptors, Self::Ports, Self::Processes];

    fn of(error: &io::Error) -> Option<Self> {
        use rustix::io::Errno;
        match Errno::from_io_error(error)? {
            Errno::MFILE => Some(Self::Descriptors),
            Errno::NFILE => Some(Self::HostDescriptors),
            Errno::ADDRNOTAVAIL => Some(Self::Ports),
            _ => None,
        }
    }
}

tokio::task_local! {
    static LACK: Cell<Option<Lack>>;
}

/// Runs a probe, and tells what this host lacked for it.
pub(super) async fn watched<T>(probe: impl Future<Output = T>) -> (T, Option<Lack>) {
    LACK.scope(Cell::new(None), async {
        let done = probe.await;
        (done, LACK.with(Cell::get))
    })
    .await
}

/// Notes an error of a system call that asks this host for something.
pub(super) fn note(error: &io::Error) {
    lacks(Lack::of(error));
}

/// Notes an error of starting a process.
pub(super) fn note_fork(error: &io::Error) {
    let no_process = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory);
    lacks(if no_process { Some(Lack::Processes) } else { Lack::of(error) });
}

fn lacks(lack: Option<Lack>) {
    if lack.is_some() {
        // Outside of a probe nobody asks.
        let _ = LACK.try_with(|noted| noted.set(lack));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_host_refuses_is_told_beside_the_result() {
        let error = |code| io::Error::from_raw_os_error(code);
        let refused = async {
            note(&error(111));
            "x"
        };
        assert_eq!(watched(refused).await, ("x", None), "a refused connection is the target's");
        for (code, lack) in [(24, Lack::Descriptors), (23, Lack::HostDescriptors), (99, Lack::Ports)] {
            assert_eq!(watched(async { note(&error(code)) }).await, ((), Some(lack)));
        }
        assert_eq!(watched(async { note_fork(&error(11)) }).await, ((), Some(Lack::Processes)));
        note(&error(24));
    }
}
