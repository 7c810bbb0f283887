//! What names are asked for most.

use axum::Json;
use axum::extract::State;

use super::Shared;
use super::read::resolver;
use super::refusal::Answer;
use crate::api::TopList;

pub(super) async fn top(State(handles): Shared) -> Answer<TopList> {
    Ok(Json(resolver(&handles)?.top()))
}
