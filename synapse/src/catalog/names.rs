//! Equal names share one allocation.
//!
//! Every record that is decoded brings its own copy of its service's, node's, region's and zone's name; a hundred thousand records
//! name a few thousand different ones. What is shared here is the text only: nothing else knows or depends on it.

use std::collections::HashSet;
use std::hash::Hash;

use nerve::model::{Instance, NodeName, Region, ServiceName, Subnet, Zone};

/// So many names of a kind are remembered; then it starts over. Names that are used no more are forgotten that way.
const LIMIT: usize = 65_536;

/// The names seen of late.
#[derive(Debug, Default)]
pub(crate) struct Names {
    services: HashSet<ServiceName>,
    nodes: HashSet<NodeName>,
    regions: HashSet<Region>,
    zones: HashSet<Zone>,
}

impl Names {
    /// Replaces the names in `instance` by equal ones that others hold already.
    pub(crate) fn share(&mut self, instance: &mut Instance) {
        share(&mut self.services, &mut instance.service);
        share(&mut self.nodes, &mut instance.node);
        if let Some(region) = &mut instance.region {
            share(&mut self.regions, region);
        }
        if let Some(zone) = &mut instance.zone {
            share(&mut self.zones, zone);
        }
    }

    /// The same for the name of a subnet's node.
    pub(crate) fn share_node(&mut self, subnet: &mut Subnet) {
        share(&mut self.nodes, &mut subnet.node);
    }

    /// An equal name that others hold already.
    pub(crate) fn shared_service(&mut self, mut service: ServiceName) -> ServiceName {
        share(&mut self.services, &mut service);
        service
    }
}

fn share<T: Clone + Eq + Hash>(known: &mut HashSet<T>, name: &mut T) {
    if let Some(same) = known.get(name) {
        name.clone_from(same);
        return;
    }
    if known.len() >= LIMIT {
        known.clear();
    }
    known.insert(name.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_records_of_a_service_hold_one_name() {
        let read = || {
            let json = r#"{"service":"web","id":"1","node":"a","address":"192.0.2.1","port":80,"region":"eu","zone":"1"}"#;
            serde_json::from_str::<Instance>(json).unwrap()
        };
        let (mut names, mut one, mut other) = (Names::default(), read(), read());
        names.share(&mut one);
        names.share(&mut other);
        assert_eq!(one, read());
        assert!(std::ptr::eq(one.service.as_str(), other.service.as_str()));
        assert!(std::ptr::eq(one.node.as_str(), other.node.as_str()));
        assert!(std::ptr::eq(one.region.as_ref().unwrap().as_str(), other.region.as_ref().unwrap().as_str()));
        assert!(std::ptr::eq(one.zone.as_ref().unwrap().as_str(), other.zone.as_ref().unwrap().as_str()));
    }
}
