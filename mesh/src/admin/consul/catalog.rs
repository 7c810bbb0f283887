//! `/v1/catalog/…`: which services and nodes there are, whatever their health.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;

use super::super::refusal::Refusal;
use super::changes::Topic;
use super::filter::{fields, kept};
use super::question::Question;
use super::reads::{Reads, Turn};
use super::shape::all_tags;
use super::{Asked, DATACENTER};
use crate::api::{ConsulNodeServiceList, ConsulNodeServices};

pub(in super::super) async fn datacenters(_: Question) -> Json<[&'static str; 1]> {
    Json([DATACENTER])
}

pub(in super::super) async fn services(State(reads): Asked, question: Question) -> Result<Response, Refusal> {
    let filter = question.filter(fields::CATALOG_SERVICE)?;
    let is_whole = filter.is_none() && question.node_meta.is_empty();
    // What a filter lets in may change with anything.
    let topic = if is_whole { Topic::Services } else { Topic::Everything };
    let index = reads.index(&topic, &question).await?;
    let shapes = reads.shapes();
    let mut services: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut turn = Turn::default();
    for service in reads.handles.catalog.services() {
        turn.take(service.endpoints.len()).await;
        let mut chosen = shapes.chosen(&service, &question, &[]);
        if let Some(filter) = &filter {
            let index = shapes.index_of(&service);
            chosen.retain(|endpoint| filter.keeps(&shapes.catalog_service(endpoint, index)));
        }
        if !chosen.is_empty() {
            services.insert(service.name.to_string(), all_tags(&chosen));
        }
    }
    reads.answer(&question, index, services.is_empty(), &services)
}

pub(in super::super) async fn service(
    State(reads): Asked,
    Path(name): Path<String>,
    question: Question,
) -> Result<Response, Refusal> {
    let filter = question.filter(fields::CATALOG_SERVICE)?;
    let index = reads.index(&Topic::Service(name.clone()), &question).await?;
    let shapes = reads.shapes();
    let service = reads.handles.catalog.service(&name);
    let chosen = service.as_ref().map(|service| shapes.chosen(service, &question, &question.tags));
    let rows = chosen.into_iter().flatten().map(|endpoint| shapes.catalog_service(endpoint, index));
    reads.list(&question, index, filter.as_ref(), rows)
}

pub(in super::super) async fn nodes(State(reads): Asked, question: Question) -> Result<Response, Refusal> {
    let filter = question.filter(fields::NODE)?;
    let index = reads.index(&Topic::Nodes, &question).await?;
    let shapes = reads.shapes();
    let rows = shapes.nodes(&question).into_iter().map(|(node, _)| shapes.node(&node));
    reads.list(&question, index, filter.as_ref(), rows)
}

/// A node that is not known is `null`, as Consul has it.
pub(in super::super) async fn node(
    State(reads): Asked,
    Path(name): Path<String>,
    question: Question,
) -> Result<Response, Refusal> {
    let (index, list) = on_node(&reads, &name, &question).await?;
    let answer = list.node.map(|node| {
        let mut services = BTreeMap::new();
        for instance in list.services {
            let taken = services.contains_key(&instance.id);
            let key =
                if taken { format!("{}:{}", instance.service, instance.id) } else { instance.id.clone() };
            services.insert(key, instance);
        }
        ConsulNodeServices { node, services }
    });
    reads.answer(&question, index, answer.is_none(), &answer)
}

pub(in super::super) async fn node_services(
    State(reads): Asked,
    Path(name): Path<String>,
    question: Question,
) -> Result<Response, Refusal> {
    let (index, list) = on_node(&reads, &name, &question).await?;
    reads.answer(&question, index, list.node.is_none(), &list)
}

async fn on_node(
    reads: &Reads,
    name: &str,
    question: &Question,
) -> Result<(u64, ConsulNodeServiceList), Refusal> {
    let filter = question.filter(fields::INSTANCE)?;
    let index = reads.index(&Topic::Node(name.to_owned()), question).await?;
    let shapes = reads.shapes();
    let node = shapes.find_node(name).map(|(node, _)| shapes.node(&node));
    let mut services = Vec::new();
    if node.is_some() {
        shapes.on_node(name, |service, endpoint| {
            services.push(shapes.instance(endpoint, shapes.index_of(service)));
        });
    }
    Ok((index, ConsulNodeServiceList { node, services: kept(filter.as_ref(), services) }))
}
