//! How the servers do that names outside the domain are asked of.

use axum::Json;
use axum::extract::State;

use super::Shared;
use super::read::resolver;
use super::refusal::Answer;
use crate::api::UpstreamList;

pub(super) async fn list(State(handles): Shared) -> Answer<UpstreamList> {
    Ok(Json(UpstreamList { upstreams: resolver(&handles)?.upstreams() }))
}
