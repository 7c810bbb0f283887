//! Made-up fleets: any number of services with any number of endpoints, spread over a hundred nodes in three zones.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use anyhow::Context;
use nerve::model::{Health, Instance, InstanceId, NodeName, Region, ServiceName, Tag, Weight, Zone};
use synapse::catalog::{Catalog, Change, Writer};

/// Nodes that the endpoints stand on.
const NODES: usize = 100;

/// The name of service `number`.
pub fn service_name(number: usize) -> anyhow::Result<ServiceName> {
    Ok(ServiceName::new(&format!("service-{number:05}"))?)
}

/// Endpoint `number` of a service, as an agent registers it. `weight` is what the benchmarks change.
pub fn instance(service: &ServiceName, number: usize, weight: u16) -> anyhow::Result<Instance> {
    let node = number % NODES;
    let host = u8::try_from(node + 1)?;
    Ok(Instance {
        service: service.clone(),
        id: InstanceId::new(&format!("{service}-{node:03}-{number}"))?,
        node: NodeName::new(&format!("node-{node:03}"))?,
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)),
        port: Some(NonZeroU16::new(u16::try_from(1024 + number % 60_000)?).context("a port")?),
        socket: None,
        ports: std::collections::BTreeMap::default(),
        tags: [Tag::new("v2")?].into(),
        labels: std::collections::BTreeMap::default(),
        weight: Weight(NonZeroU16::new(weight).context("a weight")?),
        backup: false,
        region: Some(Region::new("eu-1")?),
        zone: Some(Zone::new(&format!("eu-1{}", ["a", "b", "c"][node % 3]))?),
        health: Health::Passing,
        health_reason: String::new(),
        draining: false,
    })
}

/// Every endpoint of a fleet.
pub fn instances(services: usize, endpoints: usize) -> anyhow::Result<Vec<Instance>> {
    let mut all = Vec::with_capacity(services * endpoints);
    for number in 0..services {
        let service = service_name(number)?;
        for number in 0..endpoints {
            all.push(instance(&service, number, 100)?);
        }
    }
    Ok(all)
}

/// A catalog of a fleet.
pub fn catalog(services: usize, endpoints: usize) -> anyhow::Result<(Catalog, Writer)> {
    let (catalog, mut writer) = Catalog::new();
    writer.apply(instances(services, endpoints)?.into_iter().map(Arc::new).map(Change::PutInstance));
    Ok((catalog, writer))
}
