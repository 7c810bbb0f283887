//! The instances of this node: what runs here, registrations and drains at run time.
//!
//! Only the agent of an instance's node can change it. Whoever asks another agent is told which one to ask.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::{Extension, Json};
use hyper::StatusCode;
use nerve::document::Document;
use nerve::model::{InstanceId, ServiceName};
use nerve::registrar::Registration;
use nerve::source::{ApiError, Draft};
use serde::Deserialize;

use super::access::{Caller, Role};
use super::refusal::{Answer, Refusal, nearest};
use super::write::{body, bytes};
use super::{Handles, Shared, checks};
use crate::api::{Changed, DrainRequest, LocalInstance, LocalInstances};

pub(super) async fn instances(State(handles): Shared) -> Json<LocalInstances> {
    Json(LocalInstances { instances: all(&handles) })
}

/// What runs on this node, as its agent has it.
pub(super) fn all(handles: &Handles) -> Vec<LocalInstance> {
    let shown = |instance: nerve::registrar::LocalInstance| {
        let definition = &instance.located.definition;
        let checks = checks::of(&instance);
        LocalInstance {
            checks,
            service: definition.key.service.clone(),
            id: definition.key.id.clone(),
            address: definition.listens_on().or_port_zero(),
            socket: definition.socket.clone(),
            source: instance.located.origin.to_string(),
            health: instance.report.health,
            health_reason: instance.report.reason,
            registered: matches!(instance.registration, Registration::Registered { .. }),
            registration: instance.registration.to_string(),
            draining: instance.draining,
        }
    };
    handles.registrar.instances().into_iter().map(shown).collect()
}

/// The body has the keys of a `[[service]]` table, and is read by the same reader.
pub(super) async fn register(
    State(handles): Shared,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer<Changed> {
    let bytes = bytes(request.into_body()).await?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| Refusal::bad_request("the request's body is not UTF-8"))?;
    let draft = Document::parse_json("request", text)
        .and_then(|document| document.decode(Draft::read))
        .map_err(|errors| Refusal::bad_request(errors.to_string().replace('\n', "; ")))?;
    let known = all(&handles);
    let definition = handles.registrar.register(draft, caller.trust()).await.map_err(refusal)?;
    let key = &definition.key;
    let replaced = known.iter().any(|known| known.service == key.service && known.id == key.id);
    let verb = if replaced { "changed" } else { "taken in" };
    let on = definition.listens_on();
    let mut notes = Vec::new();
    let message = if definition.checks.is_empty() {
        notes.push("it has no check: it gets traffic until it is deregistered, well or not".to_owned());
        format!("instance {} of {} at {on} is {verb}", key.id, key.service)
    } else {
        format!(
            "instance {} of {} at {on} is {verb}; it gets traffic once it passes its checks",
            key.id, key.service
        )
    };
    Ok(Json(Changed { message, changed: true, notes }))
}

#[derive(Debug, Deserialize)]
pub(super) struct Of {
    service: Option<ServiceName>,
}

pub(super) async fn deregister(
    State(handles): Shared,
    Path(id): Path<String>,
    of: Result<Query<Of>, QueryRejection>,
) -> Answer<Changed> {
    let Query(Of { service }) = of.map_err(|wrong| Refusal::bad_request(wrong.body_text()))?;
    let id = InstanceId::new(&id).map_err(Refusal::bad_request)?;
    let key = match handles.registrar.deregister(&id, service.as_ref()).await {
        Ok(key) => key,
        Err(error) => return Err(elsewhere(&handles, &id, service.as_ref(), error)),
    };
    let message = format!("instance {} of {} is deregistered", key.id, key.service);
    Ok(Json(Changed { message, changed: true, notes: Vec::new() }))
}

pub(super) async fn drain(
    State(handles): Shared,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer<Changed> {
    let DrainRequest { instance, service, draining } = body(request).await?;
    match instance {
        Some(id) => drain_instance(&handles, &id, service.as_ref(), draining).await,
        None if service.is_some() => Err(Refusal::bad_request("`service` is given without `instance`")),
        None => {
            caller.may(Role::Operate)?;
            drain_node(&handles, draining).await
        }
    }
}

async fn drain_instance(
    handles: &Arc<Handles>,
    id: &InstanceId,
    service: Option<&ServiceName>,
    draining: bool,
) -> Answer<Changed> {
    let before = handles.registrar.drains();
    let key = match handles.registrar.set_drain(id, service, draining).await {
        Ok(key) => key,
        Err(error) => return Err(elsewhere(handles, id, service, error)),
    };
    let changed = before.instances.contains(&key) != draining;
    let message = match (draining, changed) {
        (true, true) => {
            format!("instance {} of {} is drained: it gets no new connections", key.id, key.service)
        }
        (true, false) => format!("instance {} of {} was already drained", key.id, key.service),
        (false, true) => format!("instance {} of {} is no longer drained", key.id, key.service),
        (false, false) => format!("instance {} of {} was not drained", key.id, key.service),
    };
    let note = (!draining && before.node)
        .then(|| "its node is still drained: `plexus undrain --node` ends that".to_owned());
    Ok(Json(Changed { message, changed, notes: note.into_iter().collect() }))
}

async fn drain_node(handles: &Arc<Handles>, draining: bool) -> Answer<Changed> {
    let before = handles.registrar.drains();
    handles.registrar.set_node_drain(draining).await.map_err(refusal)?;
    let changed = before.node != draining;
    let node = &handles.node.name;
    let message = match (draining, changed) {
        (true, true) => format!("node {node} is drained: its instances get no new connections"),
        (true, false) => format!("node {node} was already drained"),
        (false, true) => format!("node {node} is no longer drained"),
        (false, false) => format!("node {node} was not drained"),
    };
    let still = before.instances.len();
    let note = (!draining && still > 0)
        .then(|| format!("{still} of its instances are still drained: `plexus undrain ID` ends that"));
    Ok(Json(Changed { message, changed, notes: note.into_iter().collect() }))
}

/// An instance that is not here may be on another node: says which agent to ask.
fn elsewhere(handles: &Handles, id: &InstanceId, service: Option<&ServiceName>, error: ApiError) -> Refusal {
    if !matches!(error, ApiError::Unknown(_)) {
        return refusal(error);
    }
    let services = match service {
        Some(service) => handles.catalog.service(service.as_str()).into_iter().collect(),
        None => handles.catalog.services(),
    };
    let found = services.iter().find_map(|service| service.endpoint(id));
    let Some(endpoint) = found.filter(|endpoint| endpoint.instance.node != handles.node.name) else {
        let here = all(handles);
        let refusal = refusal(error);
        return match nearest(id.as_str(), here.iter().map(|instance| instance.id.as_str())) {
            Some(near) => refusal.hint(format!("did you mean {near:?}?")),
            None => refusal,
        };
    };
    let node = &endpoint.instance.node;
    let address = handles.catalog.node(node.as_str()).map(|node| node.address);
    let admin = SocketAddr::new(address.unwrap_or(endpoint.instance.address), 7070);
    Refusal::conflict(format!(
        "instance {id} runs on node {node} ({}), and this is node {}",
        admin.ip(),
        handles.node.name
    ))
    .hint(format!(
        "run this there, or pass --admin http://{admin} if its admin interface listens on that address"
    ))
}

pub(super) fn refusal(error: ApiError) -> Refusal {
    let status = match &error {
        ApiError::Draft(_) => StatusCode::BAD_REQUEST,
        ApiError::Unknown(_) => StatusCode::NOT_FOUND,
        ApiError::Ambiguous { .. } | ApiError::DefinedElsewhere { .. } => StatusCode::CONFLICT,
        ApiError::HandedOver => StatusCode::SERVICE_UNAVAILABLE,
        ApiError::Full => StatusCode::INSUFFICIENT_STORAGE,
        ApiError::Write { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::new(status, error)
}
