//! Starting what this node proves itself by, and what goes between nodes by that.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use nerve::model::Node;
use nerve::registrar;
use nerve::store::Store;
use nerve::tasks::Tasks;
use prometheus::Registry;
use synapse::catalog::Catalog;

use super::rooms::Owners;
use crate::config::Config;
use crate::inherited::Inherited;
use crate::proxy::DataPlane;
use crate::rules::Rules;
use crate::{identity, mtls};

/// This node proves itself, where there is something to prove it by.
pub(super) fn start_identity(
    config: &Config,
    catalog: &Catalog,
    store: &Arc<dyn Store>,
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<identity::Handle> {
    let metrics = identity::Metrics::new()?;
    metrics.register(registry)?;
    let (catalog, given) = (catalog.clone(), config.identity.signers.clone());
    let listed = move || {
        let nodes = catalog.nodes();
        let signer = |node: &Arc<Node>| Some((node.address, node.signer_port?).into());
        nodes.iter().filter_map(signer).collect()
    };
    let signers: identity::Signers =
        if given.is_empty() { Arc::new(listed) } else { Arc::new(move || given.clone()) };
    let handle = identity::start(config.identity()?, store, signers, &metrics, tasks);
    handle.context("identity: this node is to certify others, and cannot")
}

/// The port where this node takes other nodes' tunnels from the beginning; `None`: it has nothing to prove itself by yet.
pub(super) fn tunnel_port(config: &Config, identity: &identity::Handle) -> Option<u16> {
    identity.holds_for()?;
    config.mtls().listen.first().map(SocketAddr::port)
}

/// Tunnels between nodes.
pub(super) fn start_mtls(
    config: &Config,
    (plane, identity, catalog, registrar): (&Arc<DataPlane>, &identity::Handle, &Catalog, &registrar::Handle),
    rules: &Rules,
    inherited: Inherited,
    registry: &Registry,
    owners: &Owners,
) -> anyhow::Result<mtls::Handle> {
    let metrics = mtls::Metrics::new()?;
    metrics.register(registry)?;
    let (local, offering) = (registrar.clone(), registrar.clone());
    let means = mtls::Means {
        plane: Arc::clone(plane),
        identity: identity.clone(),
        catalog: catalog.clone(),
        registered: mtls::Registered {
            instances: Arc::new(move || local.records()),
            changes: registrar.changes(),
        },
        offer: Arc::new(move |port| offering.offer_tunnel(port)),
        rules: rules.clone(),
        inherited,
        metrics,
    };
    let of = mtls::Owners { keeper: &owners.rest, wall: &owners.vip };
    Ok(mtls::start(config.mtls(), means, of))
}
