//! The rules about who may talk to whom, whatever becomes of their record.

use super::*;

pub(super) fn rules() -> Entry {
    let rule = serde_json::json!({"effect": "deny", "from": "web", "to": "api"});
    entry("rules/mesh", &serde_json::json!({"rules": {"a": rule}}), 1)
}

#[tokio::test(start_paused = true)]
async fn rules_hold_until_someone_deletes_them_and_not_because_a_store_lost_them() {
    let mut world = world();
    let mut changes = world.catalog.subscribe_rules();
    assert!(changes.take() && !changes.take());
    world.after([snapshot_at(50, &[instance("1"), rules()], SnapshotCause::First)]).await;
    assert!(world.catalog.forbids_anything() && changes.take());
    world.after([snapshot_at(51, &[instance("1"), rules()], SnapshotCause::Resync)]).await;
    assert!(!changes.take(), "they are the same");
    let broken = entry("rules/mesh", &serde_json::json!([]), 2);
    world.after([put(broken), WatchEvent::Disconnected(error())]).await;
    assert!(world.catalog.forbids_anything());
    world.after([snapshot_at(2, &[], SnapshotCause::Reset)]).await;
    assert!(world.catalog.forbids_anything() && world.follower.next_write().is_some());
    world.after([put(rules()), deleted("rules/mesh")]).await;
    assert!(!world.catalog.forbids_anything() && world.catalog.rules().is_empty() && changes.take());
}
