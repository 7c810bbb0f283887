//! The way to a server, in tests: it can be cut and mended.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::StoreUrl;
use crate::tasks::Tasks;

/// A forwarder to a port that can be cut: open connections break and new ones are refused.
pub(super) struct Gate {
    pub(super) port: u16,
    open: watch::Sender<bool>,
    tasks: Tasks,
}

impl Gate {
    pub(super) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, seen) = watch::channel(true);
        let tasks = Tasks::new();
        let connections = tasks.clone();
        tasks.spawn("gate", async move {
            while let Ok((mut inner, _)) = listener.accept().await {
                let mut seen = seen.clone();
                connections.spawn("gate connection", async move {
                    if !*seen.borrow() {
                        return;
                    }
                    let Ok(mut outer) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut inner, &mut outer) => {}
                        _ = seen.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { port, open, tasks }
    }

    pub(super) fn cut(&self) {
        self.open.send_replace(false);
    }

    pub(super) fn open(&self) {
        self.open.send_replace(true);
    }

    pub(super) fn url(&self, scheme: &str) -> StoreUrl {
        let _ = &self.tasks;
        format!("{scheme}://127.0.0.1:{}", self.port).parse().unwrap()
    }
}
