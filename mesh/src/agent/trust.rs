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
    (plane, identity, catalog, registrar, inherited): (
        &Arc<DataPlane>,
        &identity::Handle,
        &Catalog,
        &registrar::Handle,
        Inherited,
    ),
    registry: &Registry,
    owners: &Owners,
) -> anyhow::Result<mtls::Handle> {
    let metrics = mtls::Metrics::new()?;
    metrics.register(registry)?;
    let (local, offering) = (registrar.clone(), registrar.clone());
    let instances = move || {
        let instances = local.instances();
        let addresses = |instance: &registrar::LocalInstance| {
            let definition = &instance.located.definition;
            let (service, ip) = (definition.key.service.clone(), definition.address);
            let ports: Vec<_> =
                definition.port.into_iter().chain(definition.ports.values().copied()).collect();
            ports.into_iter().map(move |port| (service.clone(), SocketAddr::new(ip, port.get())))
        };
        instances.iter().flat_map(addresses).collect()
    };
    let means = mtls::Means {
        plane: Arc::clone(plane),
        identity: identity.clone(),
        catalog: catalog.clone(),
        registered: mtls::Registered { instances: Arc::new(instances), changes: registrar.changes() },
        offer: Arc::new(move |port| offering.offer_tunnel(port)),
        inherited,
        metrics,
    };
    let of = mtls::Owners { keeper: &owners.rest, wall: &owners.vip };
    Ok(mtls::start(config.mtls(), means, of))
}
