//! What is to be listened on (pure): claims of services on ports, and who holds a port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU16;

use nerve::model::{PortName, Protocol, ServiceName, ServiceSettings};

/// A port of every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) protocol: Protocol,
    pub(super) port: NonZeroU16,
}

/// Which service wants which port, and where the port leads. Two services may claim one port.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_port: HashMap<Port, BTreeMap<ServiceName, Option<PortName>>>,
    by_service: HashMap<ServiceName, BTreeSet<Port>>,
    holders: HashMap<Port, ServiceName>,
}

/// The claim that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) service: ServiceName,
    pub(super) target: Option<PortName>,
}

impl Claims {
    /// Takes over what a service publishes now (`None`: the service is gone) and returns the ports that this touches.
    pub(super) fn set(
        &mut self,
        service: &ServiceName,
        settings: Option<&ServiceSettings>,
    ) -> BTreeSet<Port> {
        let wanted: BTreeMap<Port, Option<PortName>> = settings
            .map_or(&[][..], |settings| &settings.published)
            .iter()
            .map(|p| (Port { protocol: p.protocol, port: p.port }, p.target.clone()))
            .collect();
        let mut touched = self.by_service.remove(service).unwrap_or_default();
        for port in &touched {
            if let Some(claims) = self.by_port.get_mut(port) {
                claims.remove(service);
            }
        }
        touched.extend(wanted.keys().copied());
        if !wanted.is_empty() {
            self.by_service.insert(service.clone(), wanted.keys().copied().collect());
        }
        for (port, target) in wanted {
            self.by_port.entry(port).or_default().insert(service.clone(), target);
        }
        for port in &touched {
            self.elect(*port);
        }
        touched
    }

    /// Whoever has it keeps it while it claims it; else the first by name.
    fn elect(&mut self, port: Port) {
        let Some(claims) = self.by_port.get(&port).filter(|claims| !claims.is_empty()) else {
            self.by_port.remove(&port);
            self.holders.remove(&port);
            return;
        };
        let keeps = self.holders.get(&port).is_some_and(|holder| claims.contains_key(holder));
        if !keeps && let Some(first) = claims.keys().next() {
            self.holders.insert(port, first.clone());
        }
    }

    /// Who has the port.
    pub(super) fn holder(&self, port: Port) -> Option<Holder> {
        let service = self.holders.get(&port)?;
        let target = self.by_port.get(&port)?.get(service)?.clone();
        Some(Holder { service: service.clone(), target })
    }

    /// Services that want a port which another one has: port, service, holder.
    pub(super) fn losers(&self) -> impl Iterator<Item = (Port, &ServiceName, &ServiceName)> {
        self.by_port.iter().filter(|(_, claims)| claims.len() > 1).flat_map(|(port, claims)| {
            let holder = self.holders.get(port);
            claims
                .keys()
                .filter_map(move |service| holder.filter(|h| *h != service).map(|h| (*port, service, h)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    fn publishes(ports: &[&str]) -> ServiceSettings {
        ServiceSettings {
            published: ports.iter().map(|p| p.parse().unwrap()).collect(),
            ..Default::default()
        }
    }

    fn port(text: &str) -> Port {
        let published: nerve::model::PublishedPort = text.parse().unwrap();
        Port { protocol: published.protocol, port: published.port }
    }

    #[test]
    fn a_port_stays_with_the_service_that_has_it() {
        let mut claims = Claims::default();
        claims.set(&name("web"), Some(&publishes(&["8080"])));
        claims.set(&name("api"), Some(&publishes(&["8080"])));
        assert_eq!(claims.holder(port("8080")).unwrap().service, name("web"));
        assert_eq!(claims.losers().collect::<Vec<_>>(), vec![(port("8080"), &name("api"), &name("web"))]);
        assert_eq!(claims.set(&name("web"), None), BTreeSet::from([port("8080")]));
        assert_eq!(claims.holder(port("8080")).unwrap().service, name("api"));
    }

    proptest! {
        #[test]
        fn a_claimed_port_has_exactly_one_holder(ops in proptest::collection::vec((0..4u8, proptest::collection::vec(1..5u16, 0..3)), 1..30)) {
            let mut claims = Claims::default();
            let mut published: BTreeMap<u8, Vec<u16>> = BTreeMap::new();
            for (service, ports) in ops {
                let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                claims.set(&name(&format!("s{service}")), Some(&publishes(&texts)));
                published.insert(service, ports);
                for number in 1..5u16 {
                    let claimants: Vec<_> = published.iter().filter(|(_, p)| p.contains(&number)).map(|(s, _)| name(&format!("s{s}"))).collect();
                    match claims.holder(port(&number.to_string())) {
                        Some(holder) => prop_assert!(claimants.contains(&holder.service)),
                        None => prop_assert!(claimants.is_empty()),
                    }
                }
            }
        }
    }
}
