//! The demo's instances: backends as processes of their own, started again a while after they were killed.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use crate::netns::Namespace;

/// Long enough to look at what the mesh makes of it, short enough to see it return.
pub(super) const RESTART_AFTER: Duration = Duration::from_secs(15);

/// What happens to an instance, as it is told to the person who watches.
#[derive(Debug)]
pub(super) enum Event {
    Started { instance: String, pid: u32, address: SocketAddr },
    Ended { instance: String, how: String },
    Failed { instance: String, error: io::Error },
}

/// A backend's process. It ends when the lifeline, its standard input, is closed.
struct Running {
    child: Child,
    pid: u32,
    address: SocketAddr,
    _lifeline: Option<ChildStdin>,
}

/// Keeps one backend running, inside `namespace` if there is one, until `stop`.
pub(super) struct Supervisor {
    pub(super) program: PathBuf,
    pub(super) backend: Backend,
    pub(super) namespace: Option<Namespace>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) stop: CancellationToken,
}

impl Supervisor {
    /// Starts the thread that a process must be started from to be inside the namespace.
    pub(super) fn start(self) -> io::Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new().name(format!("demo-{}", self.backend.instance)).spawn(move || {
            let work = || {
                tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.supervise());
                Ok(())
            };
            let done = match &self.namespace {
                Some(namespace) => namespace.run(work),
                None => work(),
            };
            if let Err(error) = done {
                tracing::error!(instance = %self.backend.instance, %error, "cannot supervise an instance of the demo");
            }
        })
    }

    async fn supervise(&self) {
        let mut listen = self.backend.listen;
        loop {
            let instance = self.backend.instance.to_string();
            let event = match self.spawn(listen).await {
                Ok(Running { mut child, pid, address, _lifeline }) => {
                    // A port that was free at the first start is this instance's from then on.
                    listen = address;
                    self.tell(Event::Started { instance: instance.clone(), pid, address }).await;
                    tokio::select! {
                        () = self.stop.cancelled() => {
                            // It may be stopped (SIGSTOP); only SIGKILL ends it surely. It has nothing to save.
                            if let Err(error) = child.kill().await {
                                tracing::warn!(%instance, %error, "cannot kill an instance of the demo");
                            }
                            return;
                        }
                        status = child.wait() => match status {
                            Ok(status) => Event::Ended { instance, how: status.to_string() },
                            Err(error) => Event::Failed { instance, error },
                        },
                    }
                }
                Err(error) => Event::Failed { instance, error },
            };
            self.tell(event).await;
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(RESTART_AFTER) => {}
            }
        }
    }

    async fn tell(&self, event: Event) {
        // Nobody listens any more: the demo is ending.
        let _ = self.events.send(event).await;
    }

    async fn spawn(&self, listen: SocketAddr) -> io::Result<Running> {
        let backend = &self.backend;
        let mut child = Command::new(&self.program)
            .arg("demo-backend")
            .args(["--service", backend.service.as_str(), "--instance", backend.instance.as_str()])
            .args(["--node", backend.node.as_str(), "--listen", &listen.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the demo, which then ends its instances in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let no_address = || io::Error::other("the backend did not say where it listens");
        let output = child.stdout.take().ok_or_else(no_address)?;
        let line = BufReader::new(output).lines().next_line().await?.ok_or_else(no_address)?;
        let address = line.trim().parse().map_err(|_| no_address())?;
        let pid = child.id().ok_or_else(no_address)?;
        // Taken out, because waiting for a child closes the input that it still holds.
        let lifeline = child.stdin.take();
        Ok(Running { child, pid, address, _lifeline: lifeline })
    }
}
