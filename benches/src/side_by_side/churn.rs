//! Endpoints that come and go while a load runs, at a pace kept by the clock.

use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::pause;

use super::balancer::{Control, Peer};
use super::lab::Lab;

/// Endpoints that come and go: half of them are there at any time.
pub(crate) const SPARES: usize = 20;
/// Between two changes: a hundred a second.
const PERIOD: Duration = Duration::from_millis(10);

/// Changes under way; they end when this is finished or dropped.
pub(crate) struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<f64>>>,
}

impl Churn {
    /// Begins. Every change is made through the balancer's own interface and waits for its answer.
    pub(crate) fn start(peer: Peer, lab: &Lab, spares: Vec<SocketAddrV4>) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, socket) = (Arc::clone(&stop), Control::path(lab));
        let thread = lab.balancer.spawn("churn", move || change(peer, &socket, &spares, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; the changes a second that there were.
    pub(crate) fn finish(mut self) -> anyhow::Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished once")?;
        thread.join().map_err(|_| anyhow::anyhow!("the changes panicked"))?
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn change(peer: Peer, socket: &Path, spares: &[SocketAddrV4], stop: &AtomicBool) -> anyhow::Result<f64> {
    ensure!(!spares.is_empty(), "no endpoints to change");
    let mut control = Control::open(peer, socket)?;
    let began = Instant::now();
    let mut changes = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        // One in, and the one that came half a round ago out.
        let turn = changes as usize / 2;
        let (spare, present) = if changes.is_multiple_of(2) {
            (turn % spares.len(), true)
        } else {
            ((turn + spares.len() / 2) % spares.len(), false)
        };
        let is_there_to_leave = present || turn >= spares.len() / 2;
        if is_there_to_leave {
            control.change(spare, spares[spare], present)?;
        }
        changes += 1;
        pause((began + PERIOD * changes).saturating_duration_since(Instant::now()));
    }
    Ok(f64::from(changes) / began.elapsed().as_secs_f64())
}
