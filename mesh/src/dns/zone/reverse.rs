//! Whose an address is, for questions that go from an address to a name (RFC 1035 section 3.5, RFC 3596 section 2.5).
//!
//! Nodes and virtual addresses are found in the catalog. Addresses of instances, of which there are many, are in an index that a task keeps.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::rr::Name;
use nerve::model::{InstanceId, NodeName, ServiceName};
use synapse::catalog::Catalog;

/// An instance by its service and id.
type Owner = (ServiceName, InstanceId);

/// Who has which address.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// As of so many changes of nodes.
    nodes: ArcSwap<(u64, HashMap<IpAddr, NodeName>)>,
    instances: papaya::HashMap<IpAddr, Arc<[Owner]>>,
}

/// What has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owned {
    Node(NodeName),
    /// It is a virtual one.
    Service(ServiceName),
    Instances(Arc<[Owner]>),
}

impl Owners {
    pub(super) fn of(&self, address: IpAddr, catalog: &Catalog) -> Option<Owned> {
        let changes = catalog.node_changes();
        if self.nodes.load().0 != changes {
            let nodes = catalog.nodes();
            let by_address = nodes.iter().map(|node| (node.address.to_canonical(), node.name.clone()));
            self.nodes.store(Arc::new((changes, by_address.collect())));
        }
        let node = self.nodes.load().1.get(&address).cloned().map(Owned::Node);
        let instances = || self.instances.pin().get(&address).cloned().map(Owned::Instances);
        node.or_else(|| catalog.vip(address).map(Owned::Service)).or_else(instances)
    }

    /// Keeps the index, for ever.
    pub(super) async fn follow(&self, catalog: &Catalog) {
        self.instances.pin().clear();
        let mut known: HashMap<ServiceName, Vec<(IpAddr, InstanceId)>> = HashMap::new();
        let mut changes = catalog.subscribe();
        loop {
            for name in changes.changed().await {
                let of_service = |service: Arc<synapse::catalog::Service>| {
                    let instances = service.endpoints.iter().map(|endpoint| &endpoint.instance);
                    instances.map(|one| (one.address.to_canonical(), one.id.clone())).collect::<Vec<_>>()
                };
                let now = catalog.service(name.as_str()).map(of_service).unwrap_or_default();
                let before = known.remove(&name).unwrap_or_default();
                if now != before {
                    before.iter().for_each(|(address, _)| self.forget(*address, &name));
                    now.iter().for_each(|(address, id)| self.add(*address, (name.clone(), id.clone())));
                }
                if !now.is_empty() {
                    known.insert(name, now);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn forget(&self, address: IpAddr, service: &ServiceName) {
        let instances = self.instances.pin();
        let Some(owners) = instances.get(&address) else { return };
        let left: Arc<[Owner]> = owners.iter().filter(|(of, _)| of != service).cloned().collect();
        if left.is_empty() {
            instances.remove(&address);
        } else {
            instances.insert(address, left);
        }
    }

    fn add(&self, address: IpAddr, owner: Owner) {
        /// An address with more names than this has names enough.
        const MOST: usize = 16;
        let instances = self.instances.pin();
        let owners = instances.get(&address).map(|owners| owners.to_vec()).unwrap_or_default();
        if owners.len() < MOST && !owners.contains(&owner) {
            instances.insert(address, owners.into_iter().chain([owner]).collect());
        }
    }
}

/// The address that a name of `in-addr.arpa` or `ip6.arpa` spells, whole.
pub(super) fn address(name: &Name) -> Option<IpAddr> {
    let mut labels = name.iter().rev();
    if !labels.next()?.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    let zone = labels.next()?;
    let mut number = |radix: u32, longest: usize| {
        let text = std::str::from_utf8(labels.next()?).ok()?;
        let is_plain = text.len() <= longest && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_padded = text.len() > 1 && text.starts_with('0');
        if is_plain && !is_padded { u8::from_str_radix(text, radix).ok() } else { None }
    };
    let address = if zone.eq_ignore_ascii_case(b"in-addr") {
        IpAddr::V4(Ipv4Addr::from([number(10, 3)?, number(10, 3)?, number(10, 3)?, number(10, 3)?]))
    } else if zone.eq_ignore_ascii_case(b"ip6") {
        let mut whole = 0;
        for _ in 0..32 {
            whole = whole << 4 | u128::from(number(16, 1)?);
        }
        IpAddr::V6(Ipv6Addr::from(whole))
    } else {
        return None;
    };
    labels.next().is_none().then_some(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_address_is_spelled_backwards(address: IpAddr, other in "[0-9a-f.]{1,20}") {
            // hickory's own.
            prop_assert_eq!(super::address(&Name::from(address)), Some(address));
            let _ = super::address(&Name::from_ascii(format!("{other}.in-addr.arpa.")).unwrap_or_default());
        }
    }

    #[test]
    fn parts_of_an_address_are_none() {
        for name in [
            "2.0.192.in-addr.arpa.",
            "1.1.2.0.192.in-addr.arpa.",
            "01.2.0.192.in-addr.arpa.",
            "in-addr.arpa.",
            "arpa.",
            ".",
            "1.2.3.256.in-addr.arpa.",
        ] {
            assert_eq!(address(&Name::from_ascii(name).unwrap()), None, "{name}");
        }
    }
}
