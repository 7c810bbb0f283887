//! How the watchers of this node stand.

use axum::Json;
use axum::extract::State;

use super::Shared;
use crate::api::WatcherList;

pub(super) async fn list(State(handles): Shared) -> Json<WatcherList> {
    Json(WatcherList { watchers: (handles.watchers)() })
}
