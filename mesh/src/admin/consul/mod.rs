//! Consul's HTTP API, as its clients speak it: what they register, ask and report is what everyone else here does.
//!
//! Here is what is asked of this node's agent; [`catalog`] and [`health`] tell of the whole fleet, and let clients wait for
//! changes ([`changes`]). Paths and shapes are Consul's; refusals are ours, with the status that Consul would give.

pub(super) mod catalog;
mod changes;
mod duration;
mod filter;
pub(super) mod health;
mod question;
mod reads;
mod shape;
mod translate;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::{Extension, Json};
use hyper::StatusCode;
use nerve::check::{CheckSpec, default_id as check_id};
use nerve::document::Document;
use nerve::model::Health;
use nerve::registrar::LocalInstance;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(super) use self::reads::{MAX_WAITING, Reads};
use self::translate::{consul_id, draft, instance_id};
use super::access::Caller;
use super::refusal::{Answer, Refusal};
use super::write::body;
use super::{Handles, Shared, checks, local};
use crate::api::{
    ConsulAgentCheck, ConsulAgentService, ConsulCheck, ConsulMember, ConsulService, ConsulWeights, folded,
};

/// Consul's own name of the one datacenter that there is unless somebody says otherwise.
const DATACENTER: &str = "dc1";
/// Where Consul's servers and agents gossip; nothing listens there.
const SERF_PORT: u16 = 8301;
const SERVER_PORT: u16 = 8300;

/// What reading answers are made of, as each of them gets it.
type Asked = State<Arc<Reads>>;

pub(super) async fn register(
    State(handles): Shared,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let service: ConsulService = received(request).await?;
    let draft = draft(&service, &handles.node.name)?;
    handles.registrar.register(draft, caller.trust()).await.map_err(local::refusal)?;
    Ok(StatusCode::OK)
}

pub(super) async fn deregister(
    State(handles): Shared,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let instance = find(&handles, &id)?;
    let key = &instance.located.definition.key;
    handles.registrar.deregister(&key.id, Some(&key.service)).await.map_err(local::refusal)?;
    Ok(StatusCode::OK)
}

pub(super) async fn services(State(handles): Shared) -> Json<BTreeMap<String, ConsulAgentService>> {
    let all = handles.registrar.instances();
    Json(
        all.iter().map(|instance| shown(&handles, instance)).map(|shown| (shown.id.clone(), shown)).collect(),
    )
}

pub(super) async fn service(State(handles): Shared, Path(id): Path<String>) -> Answer<ConsulAgentService> {
    find(&handles, &id).map(|instance| Json(shown(&handles, &instance)))
}

pub(super) async fn all_checks(State(handles): Shared) -> Json<BTreeMap<String, ConsulAgentCheck>> {
    let drains = handles.registrar.drains();
    let mut all = BTreeMap::new();
    if drains.node {
        let check = ConsulAgentCheck {
            node: handles.node.name.to_string(),
            check_id: "_node_maintenance".to_owned(),
            name: "Node Maintenance Mode".to_owned(),
            status: "critical",
            notes: String::new(),
            output: "the node is drained".to_owned(),
            service_id: String::new(),
            service_name: String::new(),
            service_tags: Vec::new(),
            kind: "maintenance".to_owned(),
        };
        all.insert(check.check_id.clone(), check);
    }
    for instance in handles.registrar.instances() {
        for check in of_instance(&handles, &instance) {
            all.insert(check.check_id.clone(), check);
        }
    }
    Json(all)
}

/// A check by itself is added to the service that it names.
pub(super) async fn register_check(
    State(handles): Shared,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let check: ConsulCheck = received(request).await?;
    let Some(service) = check.service_id.as_ref().filter(|id| !id.is_empty()) else {
        return Err(Refusal::bad_request("ServiceID: a check is of a service here, and none is named")
            .hint("name the service, or drain the node where all of it is meant"));
    };
    let instance = find(&handles, service)?;
    let default_id = check.name.clone().unwrap_or_else(|| format!("service:{service}"));
    let written = translate::check(&check, &default_id).map_err(Refusal::bad_request)?;
    let spec = Document::parse_json("request", &written.to_string())
        .and_then(|document| document.decode(CheckSpec::read))
        .map_err(|errors| Refusal::bad_request(errors.to_string().replace('\n', "; ")))?;
    let key = &instance.located.definition.key;
    handles.registrar.add_check(key, spec, caller.trust()).await.map_err(local::refusal)?;
    Ok(StatusCode::OK)
}

pub(super) async fn deregister_check(
    State(handles): Shared,
    Path(check): Path<String>,
) -> Result<StatusCode, Refusal> {
    let found = handles.registrar.instances().into_iter().find_map(|instance| {
        let place = of_instance(&handles, &instance).iter().position(|known| known.check_id == check)?;
        Some((instance.located.definition.key.clone(), place))
    });
    let Some((key, place)) = found else {
        let all = all_checks(State(handles)).await;
        return Err(Refusal::unknown("check of this node", &check, all.keys().map(String::as_str)));
    };
    handles.registrar.remove_check(&key, place).await.map_err(local::refusal)?;
    Ok(StatusCode::OK)
}

#[derive(Debug, Deserialize)]
pub(super) struct Maintenance {
    enable: Option<bool>,
}

pub(super) async fn maintain_service(
    State(handles): Shared,
    Path(id): Path<String>,
    query: Result<Query<Maintenance>, QueryRejection>,
) -> Result<StatusCode, Refusal> {
    let enable = enabled(query)?;
    let instance = find(&handles, &id)?;
    let key = &instance.located.definition.key;
    handles.registrar.set_drain(&key.id, Some(&key.service), enable).await.map_err(local::refusal)?;
    Ok(StatusCode::OK)
}

pub(super) async fn maintain_node(
    State(handles): Shared,
    query: Result<Query<Maintenance>, QueryRejection>,
) -> Result<StatusCode, Refusal> {
    handles.registrar.set_node_drain(enabled(query)?).await.map_err(local::refusal)?;
    Ok(StatusCode::OK)
}

/// The body, whatever the case of its keys.
async fn received<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let value: Value = body(request).await?;
    serde_json::from_value(folded(value))
        .map_err(|error| Refusal::bad_request(format!("the request's body is not what is expected: {error}")))
}

fn enabled(query: Result<Query<Maintenance>, QueryRejection>) -> Result<bool, Refusal> {
    let Query(Maintenance { enable }) = query.map_err(|wrong| Refusal::bad_request(wrong.body_text()))?;
    enable.ok_or_else(|| Refusal::bad_request("`enable` is missing").hint("?enable=true or ?enable=false"))
}

pub(super) async fn this_agent(State(handles): Shared) -> Json<Value> {
    let member = member(handles.node.name.as_str(), &handles.node.address.to_string());
    let config = json!({
        "Datacenter": DATACENTER,
        "NodeName": handles.node.name,
        "Server": false,
        "Version": handles.node.version,
    });
    Json(json!({"Config": config, "Member": member, "Meta": {}, "Stats": {}}))
}

pub(super) async fn members(State(handles): Shared) -> Json<Vec<ConsulMember>> {
    let nodes = handles.catalog.nodes();
    Json(nodes.iter().map(|node| member(node.name.as_str(), &node.address.to_string())).collect())
}

/// There are no servers to be led: whoever asks wants to know that somebody is there.
pub(super) async fn leader(State(handles): Shared) -> Json<String> {
    Json(server(&handles))
}

pub(super) async fn peers(State(handles): Shared) -> Json<[String; 1]> {
    Json([server(&handles)])
}

fn server(handles: &Handles) -> String {
    std::net::SocketAddr::new(handles.node.address, SERVER_PORT).to_string()
}

fn member(name: &str, address: &str) -> ConsulMember {
    let tags = BTreeMap::from([("role", "node".to_owned()), ("dc", DATACENTER.to_owned())]);
    ConsulMember { name: name.to_owned(), addr: address.to_owned(), port: SERF_PORT, tags, status: 1 }
}

/// The instance that a client of Consul's calls so; those that others have defined are called as they are.
fn find(handles: &Arc<Handles>, id: &str) -> Result<LocalInstance, Refusal> {
    let own = instance_id(id, &handles.node.name).ok();
    let all = handles.registrar.instances();
    let known = |instance: &&LocalInstance| {
        let known = &instance.located.definition.key.id;
        Some(known) == own.as_ref() || known.as_str() == id
    };
    all.iter().find(known).cloned().ok_or_else(|| {
        let ids =
            all.iter().map(|instance| consul_id(&instance.located.definition.key.id, &handles.node.name));
        Refusal::unknown("service of this node", id, ids)
    })
}

fn shown(handles: &Handles, instance: &LocalInstance) -> ConsulAgentService {
    let definition = &instance.located.definition;
    let passing = definition.weight.0.get();
    ConsulAgentService {
        kind: "",
        id: consul_id(&definition.key.id, &handles.node.name).to_owned(),
        service: definition.key.service.to_string(),
        tags: definition.tags.iter().map(ToString::to_string).collect(),
        meta: definition.labels.clone(),
        port: definition.port.map_or(0, std::num::NonZeroU16::get),
        address: definition.address.to_string(),
        weights: ConsulWeights { passing, warning: passing },
        enable_tag_override: false,
        datacenter: DATACENTER,
    }
}

fn of_instance(handles: &Handles, instance: &LocalInstance) -> Vec<ConsulAgentCheck> {
    let definition = &instance.located.definition;
    let id = consul_id(&definition.key.id, &handles.node.name).to_owned();
    let infos = checks::of(instance);
    let all = infos.len();
    let check = |check_id: String, name: String, status, output: String, kind: String| ConsulAgentCheck {
        node: handles.node.name.to_string(),
        check_id,
        name,
        status,
        notes: String::new(),
        output,
        service_id: id.clone(),
        service_name: definition.key.service.to_string(),
        service_tags: definition.tags.iter().map(ToString::to_string).collect(),
        kind,
    };
    let mut shown: Vec<_> = infos
        .into_iter()
        .enumerate()
        .map(|(place, info)| {
            let default = || check_id(&id, place, all);
            let output = info.last.map(|last| last.text).unwrap_or_default();
            check(info.id.unwrap_or_else(default), info.description, status(info.health), output, info.kind)
        })
        .collect();
    if instance.draining {
        let maintenance = format!("_service_maintenance:{id}");
        let (name, output) = ("Service Maintenance Mode".to_owned(), "it is drained".to_owned());
        shown.push(check(maintenance, name, "critical", output, "maintenance".to_owned()));
    }
    shown
}

/// Consul has no word for one that has not decided: its checks begin critical.
fn status(health: Health) -> &'static str {
    match health {
        Health::Passing => "passing",
        Health::Warning => "warning",
        Health::Starting | Health::Critical => "critical",
    }
}
