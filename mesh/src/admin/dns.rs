//! Where this node's name server answers.

use axum::Json;
use axum::extract::State;

use super::Shared;
use super::read::resolver;
use super::refusal::Answer;
use crate::api::DnsInfo;

pub(super) async fn info(State(handles): Shared) -> Answer<DnsInfo> {
    resolver(&handles)?;
    Ok(Json((handles.name_server)()))
}
