//! Overlay networks: which there are, who takes part in them, creating and removing one.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use hyper::StatusCode;
use nerve::model::{NetworkName, Pool, Prefix, Transport};
use nerve::networks::{self, Created, Draft, Removed};
use serde::Deserialize;
use synapse::catalog::NetworkView;

use super::read::stale;
use super::refusal::{Answer, Refusal, nearest};
use super::write::{body, store_refusal};
use super::{Handles, Shared};
use crate::api::{Changed, NetworkInfo, NetworkRequest, NetworkSummary, Networks, SubnetInfo};
use crate::routes::collision;

pub(super) async fn list(State(handles): Shared) -> Json<Networks> {
    let networks = handles.catalog.networks().iter().map(|view| summary(&handles, view)).collect();
    Json(Networks { stale: stale(&handles), networks })
}

pub(super) async fn inspect(State(handles): Shared, Path(name): Path<String>) -> Answer<NetworkInfo> {
    let view = handles.catalog.network(&name).ok_or_else(|| {
        let known = handles.catalog.networks();
        Refusal::unknown("network", &name, known.iter().map(|view| view.name.as_str()))
            .or_hint("`plexus network ls` lists them")
    })?;
    let encrypts = handles.attacher.encrypts();
    let subnets = view.subnets.all().into_iter().map(|(slot, held)| SubnetInfo {
        encryption: encrypts
            .get(&(held.node.clone(), held.address))
            .copied()
            .filter(|_| view.network.is_encrypted()),
        keys: held.keys.clone(),
        slot,
        prefixes: view.network.subnets(slot),
        node: held.node.clone(),
        address: held.address,
        mac: held.mac,
        in_use: held.in_use,
        returns: held.returns,
        unconfirmed: view.subnets.is_unconfirmed(slot),
    });
    let subnets = subnets.collect();
    let attached = handles.attacher.attached().into_iter();
    let attachments = attached.filter(|attachment| attachment.network == view.name).collect();
    let (stale, network) = (stale(&handles), summary(&handles, &view));
    Ok(Json(NetworkInfo { stale, network, subnets, attachments }))
}

pub(super) async fn create(
    State(handles): Shared,
    Path(name): Path<String>,
    request: Request,
) -> Answer<Changed> {
    let name = network_name(&name)?;
    let NetworkRequest { pools, vni, mtu, reaches, direct, encrypted } = body(request).await?;
    let transport = match (direct, encrypted) {
        (false, false) => Transport::Tunnel,
        (true, false) => Transport::Direct,
        (false, true) => Transport::Encrypted,
        (true, true) => {
            return Err(Refusal::bad_request(format!(
                "network {name} cannot be encrypted and without a tunnel: what is encrypted is the tunnel; leave --direct or --encrypted away"
            )));
        }
    };
    let ranges: Vec<Prefix> = pools.iter().map(Pool::cidr).collect();
    // One that is there has routes of its own: whether it is what is asked for is the store's to say.
    let unchecked = match handles.catalog.network(name.as_str()) {
        Some(_) => None,
        None if encrypted => {
            refuse_if_unable(&handles, &name).await?;
            refuse_if_used(&handles, &name, &ranges).await?
        }
        None => refuse_if_used(&handles, &name, &ranges).await?,
    };
    let draft = Draft { pools, vni, mtu, reaches, transport };
    let created = networks::create(&*handles.store, &name, draft).await.map_err(network_refusal)?;
    let Created { network, new } = created;
    let pools = network.pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let described = format!("{pools}, VNI {}, for at most {} nodes", network.vni, network.slots());
    let message = if new {
        format!("network {name} is created: {described}")
    } else {
        format!("network {name} is there already: {described}")
    };
    let mut notes: Vec<String> = unchecked.into_iter().collect();
    notes.extend(reach_notes(&handles, &name, &network.reaches));
    Ok(Json(Changed { message, changed: new, notes }))
}

#[derive(Debug, Deserialize)]
pub(super) struct Removal {
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove(
    State(handles): Shared,
    Path(name): Path<String>,
    removal: Result<Query<Removal>, QueryRejection>,
) -> Answer<Changed> {
    let name = network_name(&name)?;
    let Query(Removal { force }) = removal.map_err(|wrong| Refusal::bad_request(wrong.body_text()))?;
    let removed = networks::remove(&*handles.store, &name, force).await.map_err(network_refusal)?;
    let (message, changed, notes) = match removed {
        Removed::Done(_) => {
            let notes = reached_by(&handles, &name).into_iter().map(|other| {
                format!("network {other} reaches {name}: it will reach another network of this name as well")
            });
            (format!("network {name} is removed: nodes let go of it"), true, notes.collect())
        }
        Removed::Unchanged => {
            let known = handles.catalog.networks();
            let near = nearest(name.as_str(), known.iter().map(|view| view.name.as_str()));
            let notes = near.map(|near| format!("did you mean {near:?}?"));
            (format!("there is no network {name}"), false, notes.into_iter().collect())
        }
    };
    Ok(Json(Changed { message, changed, notes }))
}

fn summary(handles: &Handles, view: &NetworkView) -> NetworkSummary {
    let network = &*view.network;
    NetworkSummary {
        name: view.name.clone(),
        vni: network.vni,
        pools: network.pools.clone(),
        mtu: network.mtu,
        reaches: network.reaches.clone(),
        reached_by: reached_by(handles, &view.name),
        direct: network.transport == Transport::Direct,
        encrypted: network.is_encrypted(),
        nodes: view.subnets.len(),
        slots: network.slots(),
    }
}

/// The networks that name this one as reached.
fn reached_by(handles: &Handles, name: &NetworkName) -> BTreeSet<NetworkName> {
    let networks = handles.catalog.networks();
    let reaching = networks.iter().filter(|view| view.network.reaches.contains(name));
    reaching.map(|view| view.name.clone()).collect()
}

/// An error if this node cannot encrypt: it would take no part in the network that it is asked for.
async fn refuse_if_unable(handles: &Handles, name: &NetworkName) -> Result<(), Refusal> {
    let node = &handles.node.name;
    handles.attacher.can_encrypt().await.map_err(|reason| {
        Refusal::conflict(format!("network {name} cannot be encrypted: node {node} encrypts by neither WireGuard nor IPsec: {reason}"))
            .hint("load the module wireguard, or esp4, esp6 and xfrm_interface; or ask a node whose kernel has them")
    })
}

/// An error if this host uses some of the addresses; a note where that cannot be told.
async fn refuse_if_used(
    handles: &Handles,
    name: &NetworkName,
    ranges: &[Prefix],
) -> Result<Option<String>, Refusal> {
    let node = &handles.node.name;
    match (handles.host_routes)().await {
        Ok(routes) => match collision(ranges, &routes) {
            Some(collision) => {
                let range = collision.range;
                let error = format!("network {name} cannot have {range}: on node {node}, {collision}");
                let shown_by = collision.shown_by();
                let hint = format!("take a range that is free, or remove that (`{shown_by}` shows it)");
                Err(Refusal::conflict(error).hint(hint))
            }
            None => Ok(None),
        },
        Err(error) => {
            Ok(Some(format!("whether node {node} uses some of the addresses could not be checked: {error}")))
        }
    }
}

/// Who reaches whom besides, and what was probably mistyped.
fn reach_notes(handles: &Handles, name: &NetworkName, reaches: &BTreeSet<NetworkName>) -> Vec<String> {
    let is_missing = |other: &&NetworkName| handles.catalog.network(other.as_str()).is_none();
    let missing = reaches.iter().filter(is_missing).map(|other| {
        let known = handles.catalog.networks();
        match nearest(other.as_str(), known.iter().map(|view| view.name.as_str())) {
            Some(near) => format!("there is no network {other} yet; did you mean {near:?}?"),
            None => format!("there is no network {other} yet"),
        }
    });
    let reaching = reached_by(handles, name).into_iter();
    missing.chain(reaching.map(|other| format!("network {other} reaches {name}"))).collect()
}

fn network_name(text: &str) -> Result<NetworkName, Refusal> {
    NetworkName::new(text).map_err(Refusal::bad_request)
}

fn network_refusal(error: networks::Error) -> Refusal {
    match error {
        networks::Error::Pools { .. } => Refusal::bad_request(error),
        networks::Error::Exists { .. }
        | networks::Error::InTheClear { .. }
        | networks::Error::VniTaken { .. }
        | networks::Error::NoVni { .. }
        | networks::Error::Overlaps { .. }
        | networks::Error::Held { .. }
        | networks::Error::Contended { .. } => Refusal::conflict(error),
        networks::Error::Form { .. } => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error),
        networks::Error::Store(error) => store_refusal("networks", &error),
    }
}
