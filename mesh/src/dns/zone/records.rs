//! How the zone's records look: their names, times to live and data.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::lookup::address_label;
use super::pick::Target;
use super::reverse::Owned;
use crate::dns::config::Config;

/// The fixed names and numbers that records are made of.
#[derive(Debug)]
pub(super) struct Records {
    apex: Name,
    node: Name,
    addr: Name,
    name_server: Name,
    soa: SOA,
    ttl: u32,
    negative_ttl: u32,
}

impl Records {
    pub(super) fn new(config: &Config, serial: u32) -> Self {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).min(0x7fff_ffff);
        let (ttl, negative_ttl) = (seconds(config.ttl), seconds(config.negative_ttl));
        let apex = under(&config.domain.as_str().split('.').collect::<Vec<_>>(), &Name::root());
        let addr = under(&["addr"], &apex);
        let name_server = under(&["ns"], &addr);
        // Refresh, retry and expire speak to secondaries, of which there are none: RFC 1912's lower bounds.
        let soa = SOA::new(
            name_server.clone(),
            under(&["hostmaster"], &apex),
            serial,
            1200,
            180,
            1_209_600,
            negative_ttl,
        );
        Self { node: under(&["node"], &apex), addr, name_server, soa, ttl, negative_ttl, apex }
    }

    pub(super) fn apex(&self) -> &Name {
        &self.apex
    }

    pub(super) fn numbers(&self) -> (u32, u32, [u8; 20]) {
        let soa = &self.soa;
        // Of the times, which are of both signs in hickory alone, each is small.
        let seconds = |time: i32| time.unsigned_abs();
        let numbers =
            [soa.serial, seconds(soa.refresh), seconds(soa.retry), seconds(soa.expire), soa.minimum];
        let mut octets = [0; 20];
        for (place, number) in octets.chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        (self.ttl, self.negative_ttl, octets)
    }

    pub(super) fn name_server(&self) -> Name {
        self.name_server.clone()
    }

    pub(super) fn node_name(&self, node: &nerve::model::NodeName) -> Name {
        under(&[node.as_str()], &self.node)
    }

    /// The name that spells `ip`.
    pub(super) fn address_name(&self, ip: IpAddr) -> Name {
        under(&[&address_label(ip)], &self.addr)
    }

    pub(super) fn soa(&self) -> Record {
        Record::from_rdata(self.apex.clone(), self.ttl, RData::SOA(self.soa.clone()))
    }

    /// RFC 2308 section 3: the SOA of a negative answer lives as long as the answer may.
    pub(super) fn negative_soa(&self) -> Record {
        Record::from_rdata(self.apex.clone(), self.negative_ttl, RData::SOA(self.soa.clone()))
    }

    pub(super) fn ns(&self) -> Record {
        Record::from_rdata(self.apex.clone(), self.ttl, RData::NS(NS(self.name_server.clone())))
    }

    pub(super) fn address(&self, name: &Name, ip: IpAddr) -> Record {
        let data = match ip.to_canonical() {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        };
        Record::from_rdata(name.clone(), self.ttl, data)
    }

    pub(super) fn ptr(&self, name: &Name, owner: Name) -> Record {
        Record::from_rdata(name.clone(), self.ttl, RData::PTR(PTR(owner)))
    }

    /// The names of who has an address.
    pub(super) fn owners(&self, owned: &Owned) -> Vec<Name> {
        match owned {
            Owned::Node(node) => vec![self.node_name(node)],
            Owned::Service(service) => vec![under(&[service.as_str()], &self.apex)],
            Owned::Instances(instances) => {
                let names = instances.iter().filter_map(|(service, id)| {
                    // An id with dots is several labels, and one that cannot be labels has no name.
                    let service = under(&[service.as_str()], &self.apex);
                    let labels = id.as_str().rsplit('.');
                    labels
                        .into_iter()
                        .try_fold(service, |name, label| name.prepend_label(label.as_bytes()).ok())
                });
                names.collect()
            }
        }
    }

    /// One record with these texts (RFC 1035 section 3.3.14); what no text of a record can hold is left out.
    pub(super) fn txt(&self, name: &Name, texts: impl Iterator<Item = String>) -> Vec<Record> {
        /// A text's length is one octet.
        const LONGEST: usize = 255;
        const MOST: usize = 64;
        let texts: Vec<String> = texts.filter(|text| text.len() <= LONGEST).take(MOST).collect();
        let record = |texts| Record::from_rdata(name.clone(), self.ttl, RData::TXT(TXT::new(texts)));
        (!texts.is_empty()).then(|| record(texts)).into_iter().collect()
    }

    pub(super) fn address_of_kind(&self, name: &Name, ip: IpAddr, kind: RecordType) -> Option<Record> {
        Some(self.address(name, ip)).filter(|record| record.record_type() == kind)
    }

    /// Every target has the same priority: which is better is the balancer's business, and weights say the rest.
    pub(super) fn srv(&self, name: &Name, target: &Target, host: &Name) -> Record {
        let data = SRV::new(0, target.weight, target.port, host.clone());
        Record::from_rdata(name.clone(), self.ttl, RData::SRV(data))
    }

    /// The addresses of the targets, each host once.
    pub(super) fn target_addresses(&self, targets: &[(&Target, Name)]) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::with_capacity(targets.len());
        for (target, host) in targets {
            if !records.iter().any(|record| record.name == *host) {
                records.push(self.address(host, target.address));
            }
        }
        records
    }

    /// RFC 8482 section 4.2: ANY is answered, but not with everything.
    pub(super) fn minimal_any(&self, name: &Name) -> Record {
        Record::from_rdata(
            name.clone(),
            self.ttl,
            RData::HINFO(HINFO::from_bytes(Box::from(*b"RFC8482"), Box::default())),
        )
    }
}

#[allow(
    clippy::expect_used,
    reason = "proof: labels are validated names of at most 63 octets, and a domain has at most 120, so no name under it exceeds 255"
)]
fn under(labels: &[&str], base: &Name) -> Name {
    labels.iter().rev().fold(base.clone(), |name, label| {
        name.prepend_label(label.as_bytes()).expect("a valid label in front of a short name")
    })
}
