//! Leaving: deregister, be seen to have gone, stop accepting, drain, end.

use std::sync::Arc;
use std::time::Duration;

use super::Phase;
use super::handover::Successor;
use super::rooms::{Owners, Rooms};

/// How long the store may take to confirm that this node is gone.
const DEREGISTER_WITHIN: Duration = Duration::from_secs(5);
/// How long calls of Docker may take to finish; it makes them again.
const DOCKER_WITHIN: Duration = Duration::from_secs(2);
/// How long the admin interface may take to finish its requests.
const ADMIN_WITHIN: Duration = Duration::from_secs(2);

/// Ends everything, in the order in which nobody notices.
pub(super) async fn leave(rooms: Rooms) {
    // Held to the end: load balancers in front of this node stop sending now.
    let _leaving = rooms.readiness.block("nothing: the agent is leaving");
    rooms.enter(Phase::Deregistering);
    let announced = rooms.problems.announcements.withdraw(DEREGISTER_WITHIN);
    let (deregistered, ()) = tokio::join!(rooms.registrar.deregister_all(DEREGISTER_WITHIN), announced);
    match deregistered {
        Ok(()) => wait_until_seen(&rooms).await,
        Err(error) => tracing::warn!(%error, "leaving without having deregistered"),
    }
    rooms.enter(Phase::Draining);
    rooms.owners.ingress.stop_token().cancel();
    let deadline = rooms.config.drain.deadline.get();
    let (forced, streams) = tokio::join!(rooms.ingress.drain(deadline), rooms.problems.mtls.drain(deadline));
    note_forced(forced + streams);
    rooms.owners.vip.shutdown().await;
    rooms.problems.vip.withdraw().await;
    rooms.problems.steer.withdraw().await;
    rooms.problems.link_local.withdraw().await;
    end(rooms).await;
}

/// Ends what another agent does not go on with: everything but the connections that are open, and those when they have ended.
/// Nothing is deregistered: what is registered is that agent's.
pub(super) async fn to(successor: Successor, mut rooms: Rooms) {
    let Successor { pid, version } = successor;
    tracing::info!(pid, version, "another agent goes on; open connections are finished here");
    rooms.enter(Phase::Draining);
    // At once: the session is renewed by whoever goes on, or it ends with it.
    rooms.problems.announcements.hand_over(&rooms.owners.rest);
    rooms.owners.registrar.shutdown().await;
    rooms.owners.vip.shutdown().await;
    rooms.problems.admin.leave_to_the_next();
    rooms.stop_answering().await;
    if let Some(name_server) = &rooms.name_server {
        name_server.handle.stop_accepting();
    }
    let deadline = rooms.config.drain.handover.get();
    let names = async {
        if let Some(name_server) = &rooms.name_server {
            // Those that are left are cut by the end.
            let _ = tokio::time::timeout(deadline, name_server.handle.unused()).await;
        }
    };
    // Ingress goes on to follow endpoints, for connections that are open.
    let streams = rooms.problems.mtls.hand_over(deadline);
    let (forced, streams, ()) = tokio::join!(rooms.ingress.hand_over(deadline), streams, names);
    note_forced(forced + streams);
    end(rooms).await;
}

fn note_forced(connections: u32) {
    if connections > 0 {
        tracing::warn!(connections, "reset connections that were open when the drain's deadline passed");
    }
}

/// Ends the rooms, once no connection is left.
async fn end(mut rooms: Rooms) {
    rooms.owners.ingress.shutdown().await;
    if let Some(name_server) = rooms.name_server.take() {
        name_server.end().await;
    }
    rooms.enter(Phase::Stopped);
    rooms.stop_answering().await;
    let Owners { rest, registrar, memory, .. } = &rooms.owners;
    for tasks in [registrar, memory, rest] {
        tasks.shutdown().await;
    }
    drop(rooms.ingress);
    if let Some(plane) = Arc::into_inner(rooms.plane) {
        plane.shutdown();
    }
    if rooms.owns_store {
        rooms.store.shutdown().await;
    }
}

impl Rooms {
    /// Finishes the requests that are open, those of Docker too, and takes no more.
    async fn stop_answering(&mut self) {
        if let Some(docker) = self.docker_server.take() {
            docker.drain(DOCKER_WITHIN).await;
        }
        self.admin_sockets.clear();
        if let Some(admin) = self.admin.take() {
            admin.drain(ADMIN_WITHIN).await;
        }
    }
}

/// The other nodes hear of it when this one does, give or take: wait for that, and a notice on top.
async fn wait_until_seen(rooms: &Rooms) {
    let notice = rooms.config.drain.notice.get();
    let node = &rooms.config.node.name;
    let mut changes = rooms.catalog.subscribe();
    let gone = async {
        let ours =
            || rooms.catalog.services().iter().any(|s| s.endpoints.iter().any(|e| e.instance.node == *node));
        while ours() {
            changes.changed().await;
        }
    };
    if tokio::time::timeout(DEREGISTER_WITHIN, gone).await.is_err() {
        tracing::warn!(
            "this node's instances are still in the catalog although the store has confirmed their end"
        );
    }
    tokio::time::sleep(notice).await;
}
