//! An HTTP backend: a real process that answers with who it is, can be told to fail, and remembers who came when.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::client::http;
use crate::netns::Namespace;
use crate::process::{Process, Signal};
use crate::program::backend_program;

/// A running backend. Killed when dropped.
#[derive(Debug)]
pub struct Backend {
    id: String,
    namespace: Namespace,
    address: SocketAddr,
    process: Mutex<Process>,
}

/// What a backend has seen, in time since it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// When it first answered a probe with a failure.
    pub first_failed_probe: Option<Duration>,
    /// When the newest connection that asked something else than its health was accepted.
    pub last_connection: Option<Duration>,
    /// How many connections asked something else than its health.
    pub connections: u64,
}

impl Backend {
    /// Starts one that no agent knows of; its instance and node are called as its service.
    #[must_use]
    pub fn start_on(namespace: &Namespace, service: &str, port: u16, log: &Path) -> Self {
        Self::start(namespace, service, service, service, port, log)
    }

    pub(crate) fn start(
        namespace: &Namespace,
        service: &str,
        id: &str,
        node: &str,
        port: u16,
        log: &Path,
    ) -> Self {
        let address = SocketAddr::from((namespace.address(), port));
        let mut command = namespace.command(backend_program());
        command.args([&address.to_string(), service, id, node]);
        let process = Process::start(id, &mut command, log);
        let backend =
            Self { id: id.to_owned(), namespace: namespace.clone(), address, process: Mutex::new(process) };
        let _ = crate::eventually!(
            Duration::from_secs(10),
            {
                backend.process().assert_running();
                backend.ask("GET", "/healthz").map(|answer| answer.status)
            },
            |status| *status == Ok(200),
        );
        backend
    }

    /// Its instance id: `<service>-<node>-<port>`, which is also what an agent calls it unless told otherwise.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it answers probes with 503, and everything else as before.
    #[track_caller]
    pub fn fail(&self) {
        assert_eq!(self.ask("POST", "/fail").expect("it answers").status, 200);
    }

    /// From now on it answers probes with 200 again.
    #[track_caller]
    pub fn recover(&self) {
        assert_eq!(self.ask("POST", "/recover").expect("it answers").status, 200);
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Stops its clock: the kernel still accepts connections, nothing answers.
    pub fn freeze(&self) {
        self.process().signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process().signal(Signal::CONT);
    }

    /// What it has seen.
    ///
    /// # Panics
    /// It does not answer.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let answer = self.ask("GET", "/seen").expect("it answers");
        let seen: Value = serde_json::from_str(&answer.body).expect("JSON");
        let time = |key: &str| seen[key].as_u64().map(Duration::from_micros);
        Seen {
            first_failed_probe: time("first_failed_probe_us"),
            last_connection: time("last_connection_us"),
            connections: seen["connections"].as_u64().unwrap_or(0),
        }
    }

    fn ask(&self, method: &'static str, path: &'static str) -> Result<http::Answer, String> {
        let address = self.address;
        self.namespace.enter(move || http::ask(address, method, path).map_err(|error| error.to_string()))
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
