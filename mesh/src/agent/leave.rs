//! Leaving: deregister, be seen to have gone, stop accepting, drain, end.

use std::sync::Arc;
use std::time::Duration;

use super::Phase;
use super::rooms::Rooms;

/// How long the store may take to confirm that this node is gone.
const DEREGISTER_WITHIN: Duration = Duration::from_secs(5);
/// How long the admin interface may take to finish its requests.
const ADMIN_WITHIN: Duration = Duration::from_secs(2);

/// Ends everything, in the order in which nobody notices.
pub(super) async fn leave(mut rooms: Rooms) {
    // Held to the end: load balancers in front of this node stop sending now.
    let _leaving = rooms.readiness.block("nothing: the agent is leaving");
    rooms.enter(Phase::Deregistering);
    match rooms.registrar.deregister_all(DEREGISTER_WITHIN).await {
        Ok(()) => wait_until_seen(&rooms).await,
        Err(error) => tracing::warn!(%error, "leaving without having deregistered"),
    }
    rooms.enter(Phase::Draining);
    rooms.ingress_tasks.stop_token().cancel();
    let forced = rooms.ingress.drain().await;
    if forced > 0 {
        tracing::warn!(
            connections = forced,
            "reset connections that were open when the drain's deadline passed"
        );
    }
    rooms.ingress_tasks.shutdown().await;
    rooms.vip.withdraw().await;
    if let Some(name_server) = rooms.name_server.take() {
        name_server.end().await;
    }
    rooms.enter(Phase::Stopped);
    rooms.admin.drain(ADMIN_WITHIN).await;
    rooms.tasks.shutdown().await;
    drop(rooms.ingress);
    if let Some(plane) = Arc::into_inner(rooms.plane) {
        plane.shutdown();
    }
    if rooms.owns_store {
        rooms.store.shutdown().await;
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
