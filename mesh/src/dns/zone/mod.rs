//! The zone: names of the mesh → answers from the catalog, as it is at that moment. Pure: no I/O, no clock, no state.
//!
//! What a name means is decided in `lookup`, which endpoints are named in `pick`, how records look in `records`; this
//! file puts them together by RFC 1034's rules. A name that exists without data of the asked type is NODATA; one that
//! does not exist is NXDOMAIN; while the catalog has heard nothing yet neither is known, and the answer is SERVFAIL:
//! a resolver then asks another node instead of remembering for the negative TTL that a service is gone.

mod explain;
mod lookup;
mod origin;
mod pick;
mod prepared;
mod records;
mod reverse;
mod zone_names;

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::{Name, Record, RecordType};
use nerve::model::{Node, Prefix};
use rand::Rng;
use synapse::catalog::{Catalog, Endpoint, Freshness, Reason, Service};

use super::config::{Config, VirtualRanges};
use super::ttls::{Ttl, Ttls};
pub use explain::{Excluded, Explanation, Outcome, Rule};
use lookup::{Found, Group, Known};
use origin::{Host, Origin, Origins};
use pick::Rules;
pub(super) use prepared::{Prepared, PreparedHost, Shelf, Steps, octets};
use reverse::{Owned, Owners};
use zone_names::ZoneNames;

/// Over so many names an answer leads at most.
const MOST_ALIASES: usize = 8;

/// The names of the mesh and their answers.
#[derive(Debug)]
pub(super) struct Zone {
    catalog: Catalog,
    origins: Origins,
    ttls: Ttls,
    most_tcp: usize,
    virtual_ranges: VirtualRanges,
    rules: Rules,
    owners: Owners,
    zones: ZoneNames,
}

/// What is said about one name and type.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) kind: Kind,
    pub(super) answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub(super) authority: Vec<Record>,
    /// Addresses of what the answers name; may be left out where they do not fit.
    pub(super) additionals: Vec<Record>,
    /// It comes from the last known good, since the store is out of reach.
    pub(super) stale: bool,
    /// For a human who looks at the message (RFC 8914).
    pub(super) note: Option<Note>,
    /// The answers lead to this name, which is to be asked of an upstream: it is none of ours.
    pub(super) leads_to: Option<Name>,
}

/// The things that can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    /// There are records.
    Records,
    /// The name exists; records of this type do not.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// The name leads to itself, or over too many others.
    AliasLoop,
    /// Not known yet.
    #[default]
    NotReady,
}

/// An extended DNS error (RFC 8914): a code of the IANA registry and a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) code: u16,
    pub(super) text: String,
}

impl Note {
    pub(super) const OTHER: u16 = 0;
    pub(super) const STALE_ANSWER: u16 = 3;
    pub(super) const NOT_READY: u16 = 14;
    pub(super) const PROHIBITED: u16 = 18;
    pub(super) const NOT_SUPPORTED: u16 = 21;
    pub(super) const NO_REACHABLE_AUTHORITY: u16 = 22;

    pub(super) fn new(code: u16, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl Zone {
    /// `serial` is the SOA's: anything that grows from one start to the next.
    pub(super) fn new(config: &Config, catalog: Catalog, serial: u32) -> Self {
        Self {
            catalog,
            origins: Origins::new(config, serial),
            ttls: config.ttls.clone(),
            most_tcp: config.limits.answers_tcp.max(1),
            virtual_ranges: config.virtual_ranges.clone(),
            owners: Owners::default(),
            zones: ZoneNames::default(),
            rules: Rules {
                only_passing: config.only_passing,
                panics: config.panic,
                place: config.place.clone(),
            },
        }
    }

    /// The domains, as they stand at the end of names in a message.
    pub(super) fn apexes(&self) -> Box<[Box<[u8]>]> {
        self.origins.all().map(|origin| octets(origin.apex())).collect()
    }

    pub(super) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The ranges whose virtual addresses lead somewhere here now.
    pub(super) fn virtual_ranges(&self) -> Arc<[Prefix]> {
        self.virtual_ranges.now()
    }

    /// May something stand below a label that is no service? Where it may, what stands there is looked up the long way.
    pub(super) fn has_below(&self, label: &str) -> bool {
        lookup::is_inner(label) || self.zones.has(label, &self.catalog)
    }

    /// Times to live.
    pub(super) fn ttls(&self) -> &Ttls {
        &self.ttls
    }

    /// The numbers of the SOA as they stand in a message.
    pub(super) fn soa_numbers(&self) -> [u8; 20] {
        self.origins.first().numbers()
    }

    /// Is this name ours to answer? Never forwarded if so.
    pub(super) fn covers(&self, name: &Name) -> bool {
        self.origins.of(name).is_some() || self.owner(name).is_some()
    }

    /// Who has the address that a name under `arpa` spells.
    fn owner(&self, name: &Name) -> Option<Owned> {
        self.owners.of(reverse::address(name)?, &self.catalog)
    }

    /// Keeps the index of addresses, for ever.
    pub(super) async fn follow_addresses(&self) {
        self.owners.follow(&self.catalog).await;
    }

    fn known(&self) -> Known<'_> {
        Known { catalog: &self.catalog, zones: &self.zones }
    }

    /// What a name means, and the domain that its answer's names are under.
    fn find(&self, name: &Name) -> (Found, &Origin) {
        if let Some(origin) = self.origins.of(name) {
            return (lookup::find(name, origin.apex(), self.known()), origin);
        }
        (self.owner(name).map_or(Found::Missing, Found::Reverse), self.origins.first())
    }

    /// Answers a name that it [covers](Self::covers), with at most `most` records; for `tasks.` with all that a
    /// TCP answer may have.
    pub(super) fn answer(&self, name: &Name, kind: RecordType, most: usize, rng: &mut impl Rng) -> Answer {
        let freshness = self.catalog.freshness();
        if *freshness == Freshness::Awaiting {
            return Answer {
                note: Some(Note::new(Note::NOT_READY, "the catalog has not heard from the store yet")),
                ..Answer::default()
            };
        }
        let mut answer = self.answer_one(name, kind, most, rng);
        // RFC 1034 section 4.3.2: where an alias leads is answered too.
        let mut passed = 1;
        while let Some(target) = answer.leads_to.take_if(|target| self.covers(target)) {
            if passed == MOST_ALIASES {
                let text =
                    format!("more than {MOST_ALIASES} names in a row lead to each other, up to {target}");
                return Answer {
                    kind: Kind::AliasLoop,
                    note: Some(Note::new(Note::OTHER, text)),
                    ..Answer::default()
                };
            }
            passed += 1;
            let next = self.answer_one(&target, kind, most, rng);
            answer.answers.extend(next.answers);
            answer = Answer { answers: answer.answers, ..next };
        }
        if let Freshness::Stale { reason, .. } = &*freshness {
            answer.stale = true;
            answer.note.get_or_insert_with(|| {
                Note::new(Note::STALE_ANSWER, format!("last known good; the store: {reason}"))
            });
        }
        answer
    }

    /// What is said of this name alone.
    fn answer_one(&self, name: &Name, kind: RecordType, most: usize, rng: &mut impl Rng) -> Answer {
        let (found, origin) = self.find(name);
        // Who asks for the tasks wants all of them: what does not fit a datagram is told by TC and fetched over TCP.
        let all = matches!(found, Found::Service { tasks: true, .. });
        let most = if all { most.max(self.most_tcp) } else { most };
        self.answer_found((&found, origin), name, kind, most, rng)
    }

    fn answer_found(
        &self,
        (found, origin): (&Found, &Origin),
        name: &Name,
        kind: RecordType,
        most: usize,
        rng: &mut impl Rng,
    ) -> Answer {
        if let Found::Missing = found {
            return self.negative(origin, Kind::NxDomain, None);
        }
        if let Found::Alias { service, target } = found {
            return self.lead(name, kind, service, target);
        }
        if kind == RecordType::ANY {
            return Answer {
                kind: Kind::Records,
                answers: vec![records::minimal_any(name, self.ttl(found))],
                ..Answer::default()
            };
        }
        let ttl = self.ttl(found);
        let mut additionals = Vec::new();
        let answers = match (found, kind) {
            (Found::Apex, RecordType::SOA) => vec![records::soa(origin, ttl)],
            (Found::Apex, RecordType::NS) => {
                additionals = self.name_server_addresses(origin, most, rng);
                vec![records::ns(origin, ttl)]
            }
            (Found::NameServer, RecordType::A | RecordType::AAAA) => {
                let mut addresses = self.name_server_addresses(origin, most, rng);
                addresses.retain(|record| record.record_type() == kind);
                addresses.iter_mut().for_each(|record| record.name = name.clone());
                addresses
            }
            (Found::Service { service, tasks: false }, RecordType::A | RecordType::AAAA)
                if self.virtual_addresses(service).next().is_some() =>
            {
                // Of both families or of one: a client that is given an endpoint's address as well may prefer that.
                let ttl = self.ttls.virtual_address(&service.name);
                let of_kind = |ip| records::address_of_kind(name, ip, kind, ttl);
                self.virtual_addresses(service).filter_map(of_kind).collect()
            }
            (
                Found::Service { service, .. } | Found::Group { service, .. },
                RecordType::A | RecordType::AAAA,
            ) => pick::addresses((&service.endpoints, found.group(), &self.rules), kind, most, rng)
                .into_iter()
                .map(|ip| records::address(name, ip, ttl))
                .collect(),
            (Found::Instance { service, at }, _) => {
                let endpoint = &service.endpoints[*at];
                additionals = self.host_of(origin, endpoint, kind);
                self.of_instance(origin, name, endpoint, kind)
            }
            (
                Found::Service { service, .. }
                | Found::Group { service, .. }
                | Found::Targets { service, .. },
                RecordType::SRV,
            ) => {
                let among = (&service.endpoints[..], found.group(), &self.rules);
                let targets = pick::targets(among, found.port(), most, rng);
                let named: Vec<_> = targets.iter().map(|t| (t, origin.host(&self.host(t)))).collect();
                additionals = records::target_addresses(&named, self.ttls.nodes);
                named.iter().map(|(target, host)| records::srv(name, target, host, ttl)).collect()
            }
            (Found::AliasPort { target, port: Some(port), .. }, RecordType::SRV) => {
                vec![records::external_srv(name, target, *port, ttl)]
            }
            (Found::Reverse(owned), RecordType::PTR) => {
                let owners = origin.owners(owned).into_iter();
                owners.map(|owner| records::ptr(name, owner, ttl)).collect()
            }
            (Found::Node(node), RecordType::TXT) => records::txt(name, node_facts(node), ttl),
            (Found::Node(node), RecordType::A | RecordType::AAAA) => {
                records::address_of_kind(name, node.address, kind, ttl).into_iter().collect()
            }
            (Found::Address(ip), RecordType::A | RecordType::AAAA) => {
                records::address_of_kind(name, *ip, kind, ttl).into_iter().collect()
            }
            _ => Vec::new(),
        };
        if answers.is_empty() && matches!(found, Found::Reverse(_)) {
            // The domain's SOA says nothing of names that are not below it.
            return Answer { kind: Kind::NoData, ..Answer::default() };
        }
        if answers.is_empty() {
            return self.negative(origin, Kind::NoData, self.none_serves(found));
        }
        // Those that fail are named.
        let note = if matches!(kind, RecordType::A | RecordType::AAAA | RecordType::SRV) {
            self.none_serves(found).filter(|_| !self.is_virtual(found))
        } else {
            None
        };
        Answer { kind: Kind::Records, answers, additionals, note, ..Answer::default() }
    }

    /// A name with an alias has no other data (RFC 1034 section 3.6.2), and to who asks for the alias it is all.
    fn lead(&self, name: &Name, kind: RecordType, service: &Service, target: &Name) -> Answer {
        let is_all = matches!(kind, RecordType::CNAME | RecordType::ANY);
        Answer {
            kind: Kind::Records,
            answers: vec![records::cname(name, target, self.ttls.service(&service.name))],
            leads_to: (!is_all).then(|| target.clone()),
            ..Answer::default()
        }
    }

    /// How long what a name means may be kept.
    fn ttl(&self, found: &Found) -> Ttl {
        match found {
            Found::Apex => self.ttls.domains,
            Found::Service { service, .. }
            | Found::Group { service, .. }
            | Found::Targets { service, .. }
            | Found::Instance { service, .. }
            | Found::Alias { service, .. }
            | Found::AliasPort { service, .. } => self.ttls.service(&service.name),
            Found::NameServer | Found::Node(_) | Found::Address(_) => self.ttls.nodes,
            Found::Reverse(_) => self.ttls.reverse,
            Found::Empty | Found::Missing => self.ttls.negative,
        }
    }

    /// The virtual addresses of a service that lead to it on this node: of each family the first, which is the one that
    /// stays where two are claimed.
    fn virtual_addresses<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = IpAddr> + 'a {
        let on = service.settings.wants_vip();
        let usable = move |ip: &IpAddr| on && self.virtual_ranges.contains(*ip);
        let first = move |v4: bool| service.vips.iter().copied().find(|ip| ip.is_ipv4() == v4 && usable(ip));
        [true, false].into_iter().filter_map(first)
    }

    /// One instance, whether it serves or not: its name is its own, not its service's.
    fn of_instance(
        &self,
        origin: &Origin,
        name: &Name,
        endpoint: &Endpoint,
        kind: RecordType,
    ) -> Vec<Record> {
        let instance = &endpoint.instance;
        let ttl = self.ttls.service(&instance.service);
        match kind {
            RecordType::A | RecordType::AAAA if instance.has_ports() => {
                records::address_of_kind(name, instance.address, kind, ttl).into_iter().collect()
            }
            RecordType::SRV => {
                let target = pick::target(endpoint, None);
                let srv = |target| records::srv(name, &target, &origin.host(&self.host(&target)), ttl);
                target.map(srv).into_iter().collect()
            }
            RecordType::TXT => {
                let labels = instance.labels.iter().map(|(key, value)| format!("{key}={value}"));
                records::txt(name, labels, ttl)
            }
            _ => Vec::new(),
        }
    }

    /// The address of the host that SRV names.
    fn host_of(&self, origin: &Origin, endpoint: &Endpoint, kind: RecordType) -> Vec<Record> {
        let target = pick::target(endpoint, None).filter(|_| kind == RecordType::SRV);
        let address = |target: pick::Target| {
            records::address(&origin.host(&self.host(&target)), target.address, self.ttls.nodes)
        };
        target.map(address).into_iter().collect()
    }

    fn is_virtual(&self, found: &Found) -> bool {
        matches!(found, Found::Service { service, tasks: false } if self.virtual_addresses(service).next().is_some())
    }

    /// Says why nobody of those that are meant serves; `None` if somebody does.
    fn none_serves(&self, found: &Found) -> Option<Note> {
        match found {
            Found::Instance { .. } => None,
            found => none_serves(found.service()?, found.group()),
        }
    }

    fn negative(&self, origin: &Origin, kind: Kind, note: Option<Note>) -> Answer {
        Answer { kind, authority: vec![records::soa(origin, self.ttls.negative)], note, ..Answer::default() }
    }

    /// Every node's agent answers DNS, so a delegation to the mesh may ask any.
    fn name_server_addresses(&self, origin: &Origin, most: usize, rng: &mut impl Rng) -> Vec<Record> {
        let nodes = self.catalog.nodes();
        pick::walk(nodes.len(), rng)
            .take(most)
            .map(|at| records::address(origin.name_server(), nodes[at].address, self.ttls.nodes))
            .collect()
    }

    /// What an endpoint's host is called: as its node, unless it listens on another address than the node's.
    fn host(&self, target: &pick::Target) -> Host {
        match self.catalog.node(target.node.as_str()) {
            Some(node) if node.address == target.address => Host::Node(target.node.clone()),
            _ => Host::Address(target.address),
        }
    }
}

/// Why no answer names an endpoint: it does not serve, or has no port that a client could connect to.
fn left_out(endpoint: &Endpoint) -> Option<Reason> {
    endpoint.excluded().or((!endpoint.instance.has_ports()).then_some(Reason::UnixSocketOnly))
}

fn node_facts(node: &Node) -> impl Iterator<Item = String> {
    let region = node.region.as_ref().map(|region| format!("region={region}"));
    let zone = node.zone.as_ref().map(|zone| format!("zone={zone}"));
    region.into_iter().chain(zone).chain([format!("version={}", node.version)])
}

/// Says why none of a service's endpoints serves; `None` if one does.
fn none_serves(service: &Service, group: &Group) -> Option<Note> {
    let members = || service.endpoints.iter().filter(|endpoint| group.has(endpoint));
    if members().any(|endpoint| left_out(endpoint).is_none()) {
        return None;
    }
    let mut reasons: std::collections::BTreeMap<_, usize> = std::collections::BTreeMap::new();
    members().filter_map(left_out).for_each(|r| *reasons.entry(r).or_default() += 1);
    let reasons: Vec<_> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let text = match reasons.as_slice() {
        [] => format!("service {} has no instance", service.name),
        some => format!("no instance of service {} serves: {}", service.name, some.join(", ")),
    };
    Some(Note::new(Note::OTHER, text))
}

#[cfg(test)]
mod tests;
