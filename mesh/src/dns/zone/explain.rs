//! What DNS would answer here, and why: the same lookup as an answer's, told in words.

use hickory_proto::rr::{Name, Record, RecordType};
use serde::{Deserialize, Serialize};
use synapse::catalog::{Freshness, Reason};

use super::lookup::{self, Found, Group};
use super::origin::Origin;
use super::reverse::Owned;
use super::{Answer, Kind, Zone, left_out, none_serves};

/// What DNS would answer for a name, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The name as it was understood: lower case, with the final dot.
    pub name: String,
    /// Which rule the name falls under.
    pub rule: Rule,
    /// What a client gets.
    pub outcome: Outcome,
    /// Every record that is given for the name, as in a zone file. An answer over UDP names a random choice of them.
    pub records: Vec<String>,
    /// Endpoints of the service that are left out.
    pub excluded: Vec<Excluded>,
    /// Why the answer comes from the last known good, if it does.
    pub stale: Option<String>,
    /// In a sentence.
    pub why: String,
}

/// Which rule a name falls under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The domain itself.
    Apex,
    /// The name server's name.
    NameServer,
    /// `<service>`.
    Service,
    /// `tasks.<service>`.
    Tasks,
    /// `<service>.service`, with a tag or without.
    ConsulService,
    /// `<service>.zone.<zone>`.
    InZone,
    /// `<instance>.<service>`.
    Instance,
    /// `_<service>._tcp`.
    ServicePort,
    /// `_<port>._tcp.<service>`.
    NamedPort,
    /// A service that is a name outside the mesh.
    External,
    /// `<node>.node`.
    Node,
    /// `ip-….addr`.
    Address,
    /// `<address backwards>.in-addr.arpa` or `ip6.arpa`.
    Reverse,
    /// Nothing stands at the name, but something may stand below it.
    Empty,
    /// Under the domain, and no such name.
    Unknown,
    /// Outside the domain.
    Outside,
    /// No DNS name at all.
    Invalid,
}

/// What a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Records.
    Answer,
    /// NOERROR without records: the name exists.
    NoData,
    /// NXDOMAIN: the name does not exist.
    NxDomain,
    /// SERVFAIL: the catalog has heard nothing yet.
    NotReady,
    /// SERVFAIL: the name leads to itself, or over too many others.
    AliasLoop,
    /// What an upstream answers.
    Forwarded,
    /// REFUSED: outside the domain, and nobody to ask.
    Refused,
}

/// An endpoint that is left out of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// The instance's id.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// Where it listens.
    pub address: String,
    /// Why.
    pub reason: Reason,
    /// What its checks say, if they say anything.
    pub detail: String,
}

impl Zone {
    /// Explains a name under the domain or outside it; of one outside, who would be asked is the caller's to add.
    pub(in crate::dns) fn explain(&self, text: &str) -> Explanation {
        let mut told = Explanation {
            name: text.to_owned(),
            rule: Rule::Invalid,
            outcome: Outcome::Refused,
            records: Vec::new(),
            excluded: Vec::new(),
            stale: None,
            why: String::new(),
        };
        let Ok(mut name) = Name::from_ascii(text) else {
            told.why = format!("{text:?} is no DNS name: labels of 1 to 63 octets between dots, 255 in all");
            return told;
        };
        name.set_fqdn(true);
        let name = name.to_lowercase();
        told.name = name.to_ascii();
        if !self.covers(&name) {
            told.rule = Rule::Outside;
            told.why = self.outside(&name);
            return told;
        }
        let freshness = self.catalog.freshness();
        if let Freshness::Stale { reason, .. } = &*freshness {
            told.stale = Some(reason.clone());
        }
        let (found, origin) = self.find(&name);
        told.rule = rule(&found);
        let (mut kind, mut records) = self.everything((&found, origin), &name);
        if self.answer(&name, RecordType::A, 1, &mut rand::rng()).kind == Kind::AliasLoop {
            kind = Kind::AliasLoop;
        }
        records.sort_unstable();
        told.records = records;
        told.outcome = match kind {
            Kind::Records => Outcome::Answer,
            Kind::NoData => Outcome::NoData,
            Kind::NxDomain => Outcome::NxDomain,
            Kind::NotReady => Outcome::NotReady,
            Kind::AliasLoop => Outcome::AliasLoop,
        };
        told.excluded = excluded(&found);
        told.why = self.why(&found, &name, kind);
        told
    }

    /// The answers of every type that a name can have.
    fn everything(&self, found: (&Found, &Origin), name: &Name) -> (Kind, Vec<String>) {
        if *self.catalog.freshness() == Freshness::Awaiting {
            return (Kind::NotReady, Vec::new());
        }
        let (mut kind, mut records) = (Kind::NxDomain, Vec::new());
        let kinds = [
            RecordType::SOA,
            RecordType::NS,
            RecordType::A,
            RecordType::AAAA,
            RecordType::SRV,
            RecordType::TXT,
            RecordType::PTR,
        ];
        for each in kinds {
            let answer: Answer = self.answer_found(found, name, each, self.most_tcp, &mut rand::rng());
            for record in answer.answers.iter().map(Record::to_string) {
                // An alias is the answer to every type.
                if !records.contains(&record) {
                    records.push(record);
                }
            }
            if answer.kind == Kind::Records || kind != Kind::Records {
                kind = answer.kind;
            }
        }
        (kind, records)
    }

    fn outside(&self, name: &Name) -> String {
        let apexes: Vec<String> = self.origins.all().map(|origin| origin.apex().to_string()).collect();
        let mut why = format!("{name} is not under {}", apexes.join(" or "));
        let apex = self.origins.first().apex();
        if lookup_of(name, apex)
            .is_some_and(|n| !matches!(lookup::find(&n, apex, self.known()), Found::Missing))
        {
            why.push_str(&format!("; {name}{apex} is"));
        }
        why
    }

    fn why(&self, found: &Found, name: &Name, kind: Kind) -> String {
        if kind == Kind::NotReady {
            return "the catalog has heard neither from the store nor from its memory on disk: \
                    SERVFAIL, so that nobody remembers that the name does not exist"
                .to_owned();
        }
        match found {
            Found::Apex => "the domain that this node answers".to_owned(),
            Found::NameServer => "every node of the catalog, since all of them answer DNS".to_owned(),
            Found::Instance { service, at } => {
                let instance = &service.endpoints[*at].instance;
                format!("instance {} of service {}, whether it serves or not", instance.id, service.name)
            }
            Found::Service { service, .. }
            | Found::Group { service, .. }
            | Found::Targets { service, .. } => {
                let members = || service.endpoints.iter().filter(|endpoint| found.group().has(endpoint));
                let (all, serving) = (members().count(), members().filter(|e| e.is_serving()).count());
                let vips: Vec<String> = match found {
                    Found::Service { service, tasks: false } => {
                        self.virtual_addresses(service).map(|ip| ip.to_string()).collect()
                    }
                    _ => Vec::new(),
                };
                if !vips.is_empty() {
                    let (name, vips) = (&service.name, vips.join(" and "));
                    return format!(
                        "the virtual address of service {name}, {vips}: every node takes it for its own; \
                         {serving} of {all} endpoints serve behind it"
                    );
                }
                let of = match found.group() {
                    Group::All => format!("service {}", service.name),
                    Group::Tagged(tag) => format!("service {} with the tag {tag}", service.name),
                    Group::InZone(zone) => format!("service {} in the zone {zone}", service.name),
                };
                match none_serves(service, found.group()) {
                    Some(note) if kind == Kind::Records => {
                        format!("{}: all that fail are named, since a check may be wrong", note.text)
                    }
                    Some(note) => format!("{}: NODATA, since the name exists", note.text),
                    None => format!("{serving} of {all} endpoints of {of} serve"),
                }
            }
            Found::Alias { service, target } if kind == Kind::AliasLoop => {
                format!(
                    "service {} leads to {target}, and that over too many others or back: SERVFAIL",
                    service.name
                )
            }
            Found::Alias { service, target } | Found::AliasPort { service, target, port: Some(_) } => {
                format!("service {} is {target}, as its setting `external` says", service.name)
            }
            Found::AliasPort { service, target, port: None } => {
                format!(
                    "service {} is {target} as its setting `external` says, without a port: NODATA",
                    service.name
                )
            }
            Found::Node(node) => format!("the address that node {} registered", node.name),
            Found::Address(ip) => format!("the name spells {ip}"),
            Found::Reverse(Owned::Node(node)) => format!("the address of node {node}"),
            Found::Reverse(Owned::Service(service)) => format!("the virtual address of service {service}"),
            Found::Reverse(Owned::Instances(_)) => "the address of instances".to_owned(),
            Found::Empty => "no name of its own, but names stand below it: NODATA".to_owned(),
            Found::Missing => format!("no service, node or port of the catalog is called {name}"),
        }
    }
}

/// A relative name as the user may have meant it: under the domain.
fn lookup_of(name: &Name, apex: &Name) -> Option<Name> {
    let mut relative = name.clone();
    relative.set_fqdn(false);
    relative.append_domain(apex).ok()
}

fn rule(found: &Found) -> Rule {
    match found {
        Found::Apex => Rule::Apex,
        Found::NameServer => Rule::NameServer,
        Found::Service { tasks: false, .. } => Rule::Service,
        Found::Service { tasks: true, .. } => Rule::Tasks,
        Found::Group { group: Group::InZone(_), .. } => Rule::InZone,
        Found::Group { .. } => Rule::ConsulService,
        Found::Instance { .. } => Rule::Instance,
        Found::Targets { port: None, .. } => Rule::ServicePort,
        Found::Targets { port: Some(_), .. } => Rule::NamedPort,
        Found::Alias { .. } | Found::AliasPort { .. } => Rule::External,
        Found::Node(_) => Rule::Node,
        Found::Address(_) => Rule::Address,
        Found::Reverse(_) => Rule::Reverse,
        Found::Empty => Rule::Empty,
        Found::Missing => Rule::Unknown,
    }
}

fn excluded(found: &Found) -> Vec<Excluded> {
    let endpoints = found.service().map_or(&[][..], |service| &service.endpoints);
    let one = |endpoint: &synapse::catalog::Endpoint| {
        let instance = &endpoint.instance;
        Some(Excluded {
            instance: instance.id.to_string(),
            node: instance.node.to_string(),
            address: instance.listens_on().to_string(),
            reason: left_out(endpoint)?,
            detail: instance.health_reason.clone(),
        })
    };
    endpoints.iter().filter(|endpoint| found.group().has(endpoint)).filter_map(one).collect()
}
