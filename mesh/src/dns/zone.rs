//! The zone: names of the mesh → records, from the catalog as it is now (pure but for reading the catalog).
//!
//! | name below the domain | records |
//! | --- | --- |
//! | `<service>` | A, AAAA: its serving endpoints, some of many; SRV: with ports |
//! | `tasks.<service>` | the same, all of them |
//! | `_<service>._tcp`, `_<port>._tcp.<service>` | SRV (RFC 2782): the main port, a named port |
//! | `<node>.node` | A, AAAA: the node's address |
//! | `<hex>.addr` | A, AAAA: the address that the hexadecimal digits spell; what SRV targets are called |
//!
//! A name that exists has NODATA for the types that it does not have, also a service of which no endpoint serves
//! (RFC 2308): NXDOMAIN is for what does not exist, and is kept by resolvers for longer than an outage lasts.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nerve::model::{NodeName, PortName};
use synapse::catalog::{Catalog, Endpoint, Freshness, Service};

use super::{Config, Domain};

/// Addresses in one answer for a service's name: they fit 512 bytes, and no client uses more.
const SOME: usize = 8;
/// Endpoints in one answer at the most, for `tasks.` too: they fit a TCP message of 64 KiB.
const ALL: usize = 1000;
/// How long a negative answer may be kept: a service may appear at any moment.
const NEGATIVE_TTL: Duration = Duration::from_secs(1);

/// The names of the mesh.
#[derive(Debug)]
pub struct Zone {
    catalog: Catalog,
    domain: Domain,
    /// This node, as the zone's server: `<node>.node.<domain>`.
    server: Name,
    ttl: u32,
    /// Where the next answer begins in a service's endpoints, so that clients that take the first spread.
    turn: AtomicUsize,
}

/// What is said about a name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub(super) authority: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

/// What a name below the domain means.
#[derive(Debug)]
pub(super) enum Meaning {
    /// The domain itself.
    Apex,
    /// A service, all of its endpoints or some, by its main port or a named one.
    Service { service: std::sync::Arc<Service>, port: Option<PortName>, all: bool, srv_only: bool },
    /// A node, or an address spelt out.
    Address(IpAddr),
    /// A name that only others stand below.
    Branch,
    /// Nothing.
    Unknown,
}

impl Zone {
    /// The zone of `config.domain` as `catalog` has it.
    #[must_use]
    pub fn new(config: &Config, catalog: Catalog) -> Self {
        Self {
            catalog,
            domain: config.domain.clone(),
            server: below(&config.domain, &[config.node.as_str(), "node"]),
            ttl: u32::try_from(config.ttl.as_secs()).unwrap_or(u32::MAX),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(super) fn domain_text(&self) -> String {
        self.domain.to_string()
    }

    /// Is the name the domain's, or below it?
    pub(super) fn holds(&self, name: &Name) -> bool {
        self.domain.name().zone_of(name)
    }

    /// What to say to a question of class IN for a name of this zone.
    pub(super) fn answer(&self, name: &Name, record_type: RecordType) -> Answer {
        if *self.catalog.freshness() == Freshness::Awaiting {
            // Nothing is known yet, which is not to say that nothing exists.
            return Answer { code: ResponseCode::ServFail, ..self.negative(ResponseCode::ServFail) };
        }
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        match self.meaning(name) {
            Meaning::Unknown => return self.negative(ResponseCode::NXDomain),
            Meaning::Branch => {}
            Meaning::Apex => self.apex(name, record_type, &mut answers),
            Meaning::Address(address) => answers.extend(self.address_record(name, address, record_type)),
            Meaning::Service { service, port, all, srv_only } => {
                let endpoints = self.rotated(&service, port.as_ref(), if all { ALL } else { SOME });
                match record_type {
                    RecordType::A | RecordType::AAAA if !srv_only => {
                        let mut seen = HashSet::new();
                        let fresh = endpoints.iter().filter(|(at, _)| seen.insert(at.ip()));
                        answers.extend(
                            fresh.filter_map(|(at, _)| self.address_record(name, at.ip(), record_type)),
                        );
                    }
                    RecordType::SRV => self.srv(name, &endpoints, &mut answers, &mut additionals),
                    _ => {}
                }
            }
        }
        if answers.is_empty() {
            return self.negative(ResponseCode::NoError);
        }
        Answer { code: ResponseCode::NoError, answers, authority: Vec::new(), additionals }
    }

    /// What a name of this zone means now.
    pub(super) fn meaning(&self, name: &Name) -> Meaning {
        let own = usize::from(self.domain.name().num_labels());
        let count = usize::from(name.num_labels()).saturating_sub(own);
        let labels: Option<Vec<String>> = name
            .iter()
            .take(count)
            .map(|label| std::str::from_utf8(label).map(str::to_ascii_lowercase).ok())
            .collect();
        let Some(labels) = labels else { return Meaning::Unknown };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let service = |name: &str, port: Option<PortName>, all, srv_only| match self.catalog.service(name) {
            Some(service) => Meaning::Service { service, port, all, srv_only },
            None => Meaning::Unknown,
        };
        match labels[..] {
            [] => Meaning::Apex,
            [name] if self.catalog.service(name).is_some() => service(name, None, false, false),
            ["node" | "tasks" | "addr" | "_tcp"] => Meaning::Branch,
            [_] => Meaning::Unknown,
            [node, "node"] => {
                self.catalog.node(node).map_or(Meaning::Unknown, |node| Meaning::Address(node.address))
            }
            [digits, "addr"] => spelt(digits).map_or(Meaning::Unknown, Meaning::Address),
            ["tasks", name] => service(name, None, true, false),
            ["_tcp", name] if self.catalog.service(name).is_some() => Meaning::Branch,
            [name, "_tcp"] => match name.strip_prefix('_') {
                Some(name) => service(name, None, false, true),
                None => Meaning::Unknown,
            },
            [port, "_tcp", name] => match port.strip_prefix('_').map(PortName::new) {
                Some(Ok(port)) => service(name, Some(port), false, true),
                _ => Meaning::Unknown,
            },
            _ => Meaning::Unknown,
        }
    }

    /// The serving endpoints that have the port, at most `limit`, beginning at another one each time.
    fn rotated<'a>(
        &self,
        service: &'a Service,
        port: Option<&PortName>,
        limit: usize,
    ) -> Vec<(SocketAddr, &'a Endpoint)> {
        let address = |endpoint: &'a Endpoint| {
            let instance = &endpoint.instance;
            let address = match port {
                None => instance.socket_addr(),
                Some(port) => instance.named_socket_addr(port)?,
            };
            Some((address, endpoint))
        };
        let mut endpoints: Vec<_> = service.serving().filter_map(address).collect();
        if !endpoints.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let begin = turn % endpoints.len();
            endpoints.rotate_left(begin);
        }
        endpoints.truncate(limit);
        endpoints
    }

    fn srv(
        &self,
        name: &Name,
        endpoints: &[(SocketAddr, &Endpoint)],
        answers: &mut Vec<Record>,
        additionals: &mut Vec<Record>,
    ) {
        let mut seen = HashSet::new();
        for (address, endpoint) in endpoints {
            let target = self.target(address.ip(), &endpoint.instance.node);
            if seen.insert(address.ip()) {
                let kind = if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
                additionals.extend(self.address_record(&target, address.ip(), kind));
            }
            let srv = SRV::new(0, endpoint.instance.weight.0.get(), address.port(), target);
            answers.push(Record::from_rdata(name.clone(), self.ttl, RData::SRV(srv)));
        }
    }

    /// A name for an endpoint's address: its node's where that is the address, else the address spelt out.
    fn target(&self, address: IpAddr, node: &NodeName) -> Name {
        if self.catalog.node(node.as_str()).is_some_and(|node| node.address == address) {
            return below(&self.domain, &[node.as_str(), "node"]);
        }
        let digits = match address {
            IpAddr::V4(v4) => format!("{:08x}", v4.to_bits()),
            IpAddr::V6(v6) => format!("{:032x}", v6.to_bits()),
        };
        below(&self.domain, &[&digits, "addr"])
    }

    fn apex(&self, name: &Name, record_type: RecordType, answers: &mut Vec<Record>) {
        match record_type {
            RecordType::SOA => answers.push(self.soa()),
            RecordType::NS => {
                answers.push(Record::from_rdata(name.clone(), self.ttl, RData::NS(NS(self.server.clone()))));
            }
            _ => {}
        }
    }

    fn address_record(&self, name: &Name, address: IpAddr, record_type: RecordType) -> Option<Record> {
        let data = match (address, record_type) {
            (IpAddr::V4(v4), RecordType::A) => RData::A(A(v4)),
            (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA(AAAA(v6)),
            _ => return None,
        };
        Some(Record::from_rdata(name.clone(), self.ttl, data))
    }

    /// NXDOMAIN or NODATA, with the SOA that says how long it may be kept (RFC 2308 section 3).
    fn negative(&self, code: ResponseCode) -> Answer {
        Answer { code, answers: Vec::new(), authority: vec![self.soa()], additionals: Vec::new() }
    }

    fn soa(&self) -> Record {
        let ttl = u32::try_from(NEGATIVE_TTL.as_secs()).unwrap_or(1);
        let mailbox = below(&self.domain, &["hostmaster"]);
        // No secondary transfers this zone, so the serial and its timers mean nothing.
        let soa = SOA::new(self.server.clone(), mailbox, 1, 3600, 600, 86400, ttl);
        Record::from_rdata(self.domain.name().clone(), ttl, RData::SOA(soa))
    }
}

fn below(domain: &Domain, labels: &[&str]) -> Name {
    let name = Name::from_labels(labels.iter().map(|label| label.as_bytes()));
    // Labels are validated names of ours and the domain leaves room for them; were one refused, the domain names itself.
    name.and_then(|name| name.append_domain(domain.name())).unwrap_or_else(|_| domain.name().clone())
}

/// `c0000201` → 192.0.2.1; 32 digits → IPv6.
fn spelt(digits: &str) -> Option<IpAddr> {
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    match digits.len() {
        8 => u32::from_str_radix(digits, 16).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
        32 => u128::from_str_radix(digits, 16).ok().map(|bits| Ipv6Addr::from_bits(bits).into()),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::str::FromStr;
    use std::sync::Arc;

    use nerve::model::Instance;
    use proptest::prelude::*;
    use synapse::catalog::{Change, Writer};

    use super::*;

    pub(in super::super) fn zone() -> (Zone, Writer) {
        let (catalog, mut writer) = Catalog::new();
        writer.set_freshness(Freshness::Live);
        let config = Config {
            node: NodeName::new("a").unwrap(),
            listen: Vec::new(),
            domain: Domain::default(),
            ttl: Duration::from_secs(5),
            upstreams: Vec::new(),
        };
        (Zone::new(&config, catalog), writer)
    }

    pub(in super::super) fn instance(fields: &serde_json::Value) -> Change {
        let mut json = serde_json::json!({"service": "web", "node": "a", "address": "192.0.2.1", "port": 80});
        json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Change::PutInstance(Arc::new(serde_json::from_value::<Instance>(json).unwrap()))
    }

    fn node(name: &str, address: &str) -> Change {
        let json = serde_json::json!({"name": name, "address": address, "version": "1"});
        Change::PutNode(Arc::new(serde_json::from_value(json).unwrap()))
    }

    fn ask(zone: &Zone, name: &str, record_type: RecordType) -> (ResponseCode, Vec<String>) {
        let answer = zone.answer(&Name::from_str(&format!("{name}.")).unwrap(), record_type);
        (answer.code, answer.answers.iter().map(|record| record.data.to_string()).collect())
    }

    fn none() -> Vec<String> {
        Vec::new()
    }

    #[test]
    fn a_service_is_the_addresses_of_its_serving_endpoints() {
        let (zone, mut writer) = zone();
        writer.apply([
            instance(&serde_json::json!({"id": "1"})),
            instance(&serde_json::json!({"id": "2", "address": "192.0.2.2"})),
            instance(&serde_json::json!({"id": "3", "address": "192.0.2.3", "health": "critical"})),
            instance(&serde_json::json!({"id": "4", "address": "2001:db8::4"})),
        ]);
        let (code, mut addresses) = ask(&zone, "WEB.mesh.internal", RecordType::A);
        addresses.sort();
        assert_eq!((code, addresses), (ResponseCode::NoError, vec!["192.0.2.1".into(), "192.0.2.2".into()]));
        assert_eq!(ask(&zone, "web.mesh.internal", RecordType::AAAA).1, ["2001:db8::4"]);
    }

    #[test]
    fn what_exists_without_records_of_the_type_is_not_nxdomain() {
        let (zone, mut writer) = zone();
        writer
            .apply([instance(&serde_json::json!({"id": "1", "health": "critical"})), node("a", "192.0.2.1")]);
        for name in ["web.mesh.internal", "mesh.internal", "node.mesh.internal", "tasks.web.mesh.internal"] {
            assert_eq!(ask(&zone, name, RecordType::A), (ResponseCode::NoError, none()), "{name}");
        }
        assert_eq!(ask(&zone, "a.node.mesh.internal", RecordType::AAAA), (ResponseCode::NoError, none()));
        for name in
            ["api.mesh.internal", "b.node.mesh.internal", "x.web.mesh.internal", "zz.addr.mesh.internal"]
        {
            let answer = zone.answer(&Name::from_str(&format!("{name}.")).unwrap(), RecordType::A);
            assert_eq!(answer.code, ResponseCode::NXDomain, "{name}");
            assert!(matches!(answer.authority[0].data, RData::SOA(_)));
        }
    }

    #[test]
    fn srv_targets_resolve() {
        let (zone, mut writer) = zone();
        writer.apply([
            instance(&serde_json::json!({"id": "1", "ports": {"metrics": 9100}})),
            instance(&serde_json::json!({"id": "2", "node": "b", "address": "10.0.0.7"})),
            node("a", "192.0.2.1"),
            node("b", "192.0.2.2"),
        ]);
        let srv = zone.answer(&Name::from_str("_web._tcp.mesh.internal.").unwrap(), RecordType::SRV);
        assert_eq!(srv.answers.len(), 2);
        for record in srv.answers {
            let RData::SRV(srv) = record.data else { panic!("SRV") };
            assert_eq!(zone.answer(&srv.target, RecordType::A).answers.len(), 1, "{}", srv.target);
        }
        let (_, named) = ask(&zone, "_metrics._tcp.web.mesh.internal", RecordType::SRV);
        assert_eq!(named, ["0 100 9100 a.node.mesh.internal."]);
    }

    #[test]
    fn nothing_known_yet_is_not_nothing_there() {
        let (zone, mut writer) = zone();
        writer.set_freshness(Freshness::Awaiting);
        assert_eq!(ask(&zone, "web.mesh.internal", RecordType::A).0, ResponseCode::ServFail);
    }

    #[test]
    fn answers_begin_at_another_endpoint_each_time() {
        let (zone, mut writer) = zone();
        writer.apply(
            (1..=20).map(|n| {
                instance(&serde_json::json!({"id": n.to_string(), "address": format!("192.0.2.{n}")}))
            }),
        );
        let first: HashSet<String> =
            (0..20).map(|_| ask(&zone, "web.mesh.internal", RecordType::A).1[0].clone()).collect();
        assert_eq!(first.len(), 20);
        assert_eq!(ask(&zone, "web.mesh.internal", RecordType::A).1.len(), SOME);
        assert_eq!(ask(&zone, "tasks.web.mesh.internal", RecordType::A).1.len(), 20);
    }

    proptest! {
        #[test]
        fn no_name_crashes_the_zone(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..5)) {
            let (zone, mut writer) = zone();
            writer.apply([instance(&serde_json::json!({"id": "1"}))]);
            if let Ok(name) = Name::from_labels(labels.iter().map(Vec::as_slice))
                && let Ok(name) = name.append_domain(Domain::default().name())
            {
                for kind in [RecordType::A, RecordType::SRV, RecordType::TXT, RecordType::ANY] {
                    let answer = zone.answer(&name, kind);
                    prop_assert!(answer.answers.is_empty() || answer.code == ResponseCode::NoError);
                }
            }
        }

        #[test]
        fn only_serving_endpoints_are_answered(health in proptest::collection::vec(0..4u8, 1..15)) {
            let (zone, mut writer) = zone();
            let words = ["passing", "critical", "starting", "passing"];
            writer.apply(health.iter().enumerate().map(|(n, h)| instance(&serde_json::json!({
                "id": n.to_string(), "address": format!("192.0.2.{n}"), "health": words[usize::from(*h)], "draining": *h == 3,
            }))));
            let (_, addresses) = ask(&zone, "tasks.web.mesh.internal", RecordType::A);
            let serving: HashSet<String> = health.iter().enumerate().filter(|(_, h)| **h == 0).map(|(n, _)| format!("192.0.2.{n}")).collect();
            prop_assert_eq!(addresses.into_iter().collect::<HashSet<_>>(), serving);
        }
    }
}
