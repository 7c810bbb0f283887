//! How nodes reach each other's instances: shown, and said for the whole mesh.

use axum::Json;
use axum::extract::{Request, State};
use hyper::StatusCode;
use nerve::model::MtlsMode;
use nerve::rules;

use super::refusal::{Answer, Refusal};
use super::write::body;
use super::{Handles, Shared};
use crate::api::{Changed, MtlsInfo, MtlsNode, MtlsRequest};

/// So many names are told; further ones are counted.
const NAMES: usize = 8;

pub(super) async fn info(State(handles): Shared) -> Answer<MtlsInfo> {
    let starting = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is still starting");
    let here = handles.mtls.as_ref().ok_or_else(starting)?;
    Ok(Json(MtlsInfo {
        mesh: handles.catalog.rules().mtls,
        mode: here.mode(),
        tunnel_port: here.port(),
        nodes: nodes(&handles),
        problems: here.problems(),
    }))
}

fn nodes(handles: &Handles) -> Vec<MtlsNode> {
    let mut nodes: Vec<_> = handles
        .catalog
        .nodes()
        .iter()
        .map(|node| MtlsNode {
            node: node.name.clone(),
            address: node.address,
            tunnel_port: node.tunnel_port,
        })
        .collect();
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    nodes
}

pub(super) async fn set(State(handles): Shared, request: Request) -> Answer<Changed> {
    let MtlsRequest { mode, force } = body(request).await?;
    let without: Vec<_> =
        nodes(&handles).into_iter().filter(|node| node.tunnel_port.is_none()).map(|node| node.node).collect();
    let mut notes = Vec::new();
    if !without.is_empty() && mode != MtlsMode::Off {
        let named: Vec<_> = without.iter().take(NAMES).map(ToString::to_string).collect();
        let more = match without.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let told = format!("{}{more} take no tunnels", named.join(", "));
        if mode == MtlsMode::Strict && !force {
            let error = format!("{told}: nobody would reach their instances from another node any more");
            let hint = "let them join first (`plexus join-token create`), or say `--force`";
            return Err(Refusal::conflict(error).hint(hint));
        }
        notes.push(format!(
            "{told}: {}",
            match mode {
                MtlsMode::Strict => "nobody reaches their instances from another node",
                MtlsMode::Permissive | MtlsMode::Off => "their instances are reached in the clear",
            }
        ));
    }
    let failed = |error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error);
    let changed = rules::set_mtls(&*handles.store, mode).await.map_err(failed)?;
    let message = match (mode, changed) {
        (mode, false) => format!("the mesh is {mode} already"),
        (MtlsMode::Off, true) => "nodes reach each other's instances in the clear".to_owned(),
        (MtlsMode::Permissive, true) => {
            "nodes reach each other's instances by mutual TLS where they can, and let in both".to_owned()
        }
        (MtlsMode::Strict, true) => "nodes reach each other's instances by mutual TLS alone".to_owned(),
    };
    Ok(Json(Changed { message, changed, notes }))
}
