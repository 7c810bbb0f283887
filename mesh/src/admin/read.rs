//! Answers to reading requests, made of the rooms' handles as they are at this moment.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use hyper::{StatusCode, header};
use nerve::model::{NodeName, ServiceName};
use prometheus::TextEncoder;
use serde::Deserialize;
use synapse::catalog::{Endpoint, Freshness, Service};

use super::refusal::{Answer, Refusal};
use super::{Counts, Handles, Resolver, Shared, checks, local, who_may};
use crate::api::{
    Awaited, EndpointInfo, Endpoints, NodeInfo, Nodes, Problem, Resolution, ServiceSummary, Services, Stale,
    Status, Why, WhyEndpoint,
};

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(handles): Shared) -> Response {
    let awaited = handles.readiness.awaited();
    let ready = awaited.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Awaited { ready, awaited })).into_response()
}

pub(super) async fn metrics(State(handles): Shared) -> Result<Response, Refusal> {
    let text = TextEncoder::new().encode_to_string(&handles.registry.gather()).map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics cannot be written: {error}"))
    })?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

pub(super) async fn services(State(handles): Shared) -> Json<Services> {
    let services = handles.catalog.services().iter().map(|service| summary(&handles, service)).collect();
    Json(Services { stale: stale(&handles), services })
}

pub(super) async fn service(State(handles): Shared, Path(name): Path<String>) -> Answer<Endpoints> {
    let service = find(&handles, &name)?;
    Ok(Json(Endpoints {
        stale: stale(&handles),
        service: service.name.clone(),
        vips: (handles.virtual_addresses)(&service),
        published: service.published().map(|(port, _)| port.clone()).collect(),
        endpoints: service.endpoints.iter().map(endpoint).collect(),
    }))
}

pub(super) async fn nodes(State(handles): Shared) -> Json<Nodes> {
    let mut counts: HashMap<NodeName, (usize, usize)> = HashMap::new();
    for service in handles.catalog.services() {
        for endpoint in &service.endpoints {
            let (serving, instances) = counts.entry(endpoint.instance.node.clone()).or_default();
            *serving += usize::from(endpoint.is_serving());
            *instances += 1;
        }
    }
    let nodes = handles.catalog.nodes();
    let nodes = nodes.iter().map(|node| {
        let (serving, instances) = counts.get(&node.name).copied().unwrap_or_default();
        NodeInfo {
            name: node.name.clone(),
            address: node.address,
            region: node.region.clone(),
            zone: node.zone.clone(),
            version: node.version.clone(),
            draining: node.draining,
            serving,
            instances,
        }
    });
    let nodes = nodes.collect();
    Json(Nodes { stale: stale(&handles), this: handles.node.name.clone(), nodes })
}

pub(super) async fn status(State(handles): Shared) -> Json<Status> {
    let awaited = handles.readiness.awaited();
    let freshness = handles.catalog.freshness();
    Json(Status {
        node: handles.node.name.clone(),
        address: handles.node.address,
        version: handles.node.version.clone(),
        phase: (*handles.phase.borrow()).to_owned(),
        uptime_seconds: handles.started.elapsed().as_secs(),
        took_over: handles.took_over.clone(),
        ready: awaited.is_empty(),
        awaited,
        store: handles.store.url().to_owned(),
        catalog: match *freshness {
            Freshness::Awaiting => "awaiting",
            Freshness::Live => "live",
            Freshness::Stale { .. } => "stale",
        }
        .to_owned(),
        stale: stale(&handles),
        services: handles.catalog.service_count(),
        instances: local::all(&handles),
        problems: problems(&handles),
    })
}

/// Whom `why` is about besides the service.
#[derive(Debug, Deserialize)]
pub(super) struct Client {
    from: Option<ServiceName>,
}

pub(super) async fn why(
    State(handles): Shared,
    Path(name): Path<String>,
    client: Result<Query<Client>, QueryRejection>,
) -> Answer<Why> {
    let service = find(&handles, &name)?;
    let Query(Client { from }) = client.map_err(|wrong| Refusal::bad_request(wrong.body_text()))?;
    let (balance, mut picks) =
        handles.traffic.balance(&service.name).map_or_else(Default::default, |(b, picks)| (Some(b), picks));
    let mut here: HashMap<_, _> = handles
        .registrar
        .instances()
        .into_iter()
        .filter(|instance| instance.located.definition.key.service == service.name)
        .map(|instance| (instance.located.definition.key.id.clone(), checks::of(&instance)))
        .collect();
    let endpoints = service.endpoints.iter().map(|known| {
        let is_here = known.instance.node == handles.node.name;
        let checks = is_here.then(|| here.remove(&known.instance.id)).flatten().unwrap_or_default();
        let pick = picks.remove(&known.instance.id);
        let Counts { in_flight, connections, connect_failures } =
            handles.traffic.endpoint(&service.name, &known.instance.id);
        let shown = (handles.plain)(&service, &known.instance);
        let mut endpoint = endpoint(known);
        if let Some(reason) = known.excluded_from(Some(&handles.node.name)) {
            (endpoint.serving, endpoint.excluded) = (false, Some(reason.as_str().to_owned()));
        }
        WhyEndpoint { endpoint, in_flight, connections, connect_failures, checks, pick, shown }
    });
    Ok(Json(Why {
        stale: stale(&handles),
        service: service.name.clone(),
        seen_from: handles.node.name.clone(),
        vips: (handles.virtual_addresses)(&service),
        rules: who_may::why(&handles, from, &service.name),
        endpoints: endpoints.collect(),
        balance,
        listeners: handles.traffic.listeners(&service.name),
    }))
}

#[derive(Debug, Deserialize)]
pub(super) struct Question {
    name: String,
    #[serde(rename = "type", default = "Question::address")]
    record_type: String,
}

impl Question {
    fn address() -> String {
        "A".to_owned()
    }
}

pub(super) async fn resolve(
    State(handles): Shared,
    question: Result<Query<Question>, QueryRejection>,
) -> Answer<Resolution> {
    let Query(question) = question.map_err(|wrong| Refusal::bad_request(wrong.body_text()))?;
    resolver(&handles)?.explain(&question.name, &question.record_type).map(Json).map_err(Refusal::bad_request)
}

/// What answers names here.
pub(super) fn resolver(handles: &Handles) -> Result<&Arc<dyn Resolver>, Refusal> {
    handles
        .resolver
        .as_ref()
        .ok_or_else(|| Refusal::conflict("DNS does not run on this node").hint("set [dns] enabled = true"))
}

/// Everything that fails on this node, in one list.
pub(super) fn problems(handles: &Handles) -> Vec<Problem> {
    let mut problems = (handles.problems)();
    let registrar = handles.registrar.problems().into_iter();
    problems.extend(registrar.map(|problem| Problem { what: problem.subject, message: problem.message }));
    if let Freshness::Stale { reason, .. } = &*handles.catalog.freshness() {
        let message = format!("the store does not confirm what is served: {reason}");
        problems.push(Problem { what: "store".to_owned(), message });
    }
    problems.sort();
    problems.dedup();
    problems
}

/// The service of this name, or what to say instead.
pub(super) fn find(handles: &Handles, name: &str) -> Result<Arc<Service>, Refusal> {
    handles.catalog.service(name).ok_or_else(|| {
        let services = handles.catalog.services();
        let refusal = Refusal::unknown("service", name, services.iter().map(|s| s.name.as_str()));
        match &*handles.catalog.freshness() {
            Freshness::Awaiting => {
                refusal.hint("the catalog is still empty: nothing was heard from the store yet")
            }
            Freshness::Live | Freshness::Stale { .. } => refusal,
        }
    })
}

pub(super) fn stale(handles: &Handles) -> Option<Stale> {
    match &*handles.catalog.freshness() {
        Freshness::Live => None,
        Freshness::Awaiting => {
            let reason = "nothing was heard from the store yet".to_owned();
            Some(Stale { for_seconds: handles.started.elapsed().as_secs(), reason })
        }
        Freshness::Stale { since, reason } => {
            let age = SystemTime::now().duration_since(*since).unwrap_or_default();
            Some(Stale { for_seconds: age.as_secs(), reason: reason.clone() })
        }
    }
}

fn summary(handles: &Handles, service: &Service) -> ServiceSummary {
    ServiceSummary {
        name: service.name.clone(),
        serving: service.serving().count(),
        endpoints: service.endpoints.len(),
        unconfirmed: service.endpoints.iter().filter(|e| e.unconfirmed).count(),
        vips: (handles.virtual_addresses)(service),
        published: service.published().map(|(port, _)| port.clone()).collect(),
    }
}

pub(super) fn endpoint(endpoint: &Endpoint) -> EndpointInfo {
    let instance = &endpoint.instance;
    EndpointInfo {
        id: instance.id.clone(),
        node: instance.node.clone(),
        address: instance.listens_on().or_port_zero(),
        socket: instance.socket.clone(),
        ports: instance.ports.iter().map(|(name, port)| (name.to_string(), port.get())).collect(),
        health: instance.health,
        serving: endpoint.is_serving(),
        excluded: endpoint.excluded().map(|reason| reason.as_str().to_owned()),
        health_reason: instance.health_reason.clone(),
        unconfirmed: endpoint.unconfirmed,
        watcher: endpoint.watcher.as_deref().map(str::to_owned),
        weight: instance.weight,
        backup: instance.backup,
        region: instance.region.clone(),
        zone: instance.zone.clone(),
        tags: instance.tags.clone(),
        labels: instance.labels.clone(),
    }
}
