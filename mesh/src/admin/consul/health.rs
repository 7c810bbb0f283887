//! `/v1/health/…`: how well instances and nodes are.

use axum::extract::{Path, State};
use axum::response::Response;

use super::super::refusal::Refusal;
use super::Asked;
use super::changes::Topic;
use super::filter::fields;
use super::question::Question;
use super::reads::Turn;
use crate::api::ConsulHealthCheck;

pub(in super::super) async fn service(
    State(reads): Asked,
    Path(name): Path<String>,
    question: Question,
) -> Result<Response, Refusal> {
    let filter = question.filter(fields::HEALTH_ENTRY)?;
    let index = reads.index(&Topic::Service(name.clone()), &question).await?;
    let shapes = reads.shapes();
    let service = reads.handles.catalog.service(&name);
    let chosen = service.as_ref().map(|service| shapes.chosen(service, &question, &question.tags));
    let rows = chosen
        .into_iter()
        .flatten()
        .map(|endpoint| shapes.entry(endpoint, index))
        .filter(|row| !question.passing || row.checks.iter().all(|check| check.status == "passing"));
    reads.list(&question, index, filter.as_ref(), rows)
}

pub(in super::super) async fn checks(
    State(reads): Asked,
    Path(name): Path<String>,
    question: Question,
) -> Result<Response, Refusal> {
    let filter = question.filter(fields::CHECK)?;
    let index = reads.index(&Topic::Service(name.clone()), &question).await?;
    let shapes = reads.shapes();
    let service = reads.handles.catalog.service(&name);
    let chosen = service.as_ref().map(|service| shapes.chosen(service, &question, &[]));
    let rows = chosen.into_iter().flatten().flat_map(|endpoint| shapes.checks(endpoint, index));
    reads.list(&question, index, filter.as_ref(), rows)
}

pub(in super::super) async fn node(
    State(reads): Asked,
    Path(name): Path<String>,
    question: Question,
) -> Result<Response, Refusal> {
    let filter = question.filter(fields::CHECK)?;
    let index = reads.index(&Topic::Node(name.clone()), &question).await?;
    let shapes = reads.shapes();
    let known = reads.handles.catalog.node(&name);
    let mut rows = known.map_or_else(Vec::new, |node| shapes.node_checks(&node));
    shapes.on_node(&name, |service, endpoint| {
        rows.extend(shapes.checks(endpoint, shapes.index_of(service)));
    });
    reads.list(&question, index, filter.as_ref(), rows)
}

pub(in super::super) async fn state(
    State(reads): Asked,
    Path(state): Path<String>,
    question: Question,
) -> Result<Response, Refusal> {
    if !["any", "passing", "warning", "critical", "unknown"].contains(&state.as_str()) {
        return Err(Refusal::bad_request(format!("{state:?} is no state of a check"))
            .hint("any, passing, warning or critical"));
    }
    let filter = question.filter(fields::CHECK)?;
    let index = reads.index(&Topic::Everything, &question).await?;
    let shapes = reads.shapes();
    let mut rows: Vec<ConsulHealthCheck> = Vec::new();
    for (node, has_agent) in shapes.nodes(&question) {
        if has_agent {
            rows.extend(shapes.node_checks(&node));
        }
    }
    let mut turn = Turn::default();
    for service in reads.handles.catalog.services() {
        turn.take(service.endpoints.len()).await;
        let index = shapes.index_of(&service);
        let chosen = shapes.chosen(&service, &question, &[]);
        rows.extend(chosen.into_iter().flat_map(|endpoint| shapes.checks(endpoint, index)));
    }
    rows.retain(|row| state == "any" || row.status == state);
    reads.list(&question, index, filter.as_ref(), rows)
}
