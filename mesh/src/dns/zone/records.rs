//! How the zone's records look: their times to live and data.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::origin::Origin;
use super::pick::Target;
use crate::dns::config::Config;

/// The numbers that records are made of.
#[derive(Debug)]
pub(super) struct Records {
    ttl: u32,
    negative_ttl: u32,
}

impl Records {
    pub(super) fn new(config: &Config) -> Self {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).min(0x7fff_ffff);
        Self { ttl: seconds(config.ttl), negative_ttl: seconds(config.negative_ttl) }
    }

    pub(super) fn ttls(&self) -> (u32, u32) {
        (self.ttl, self.negative_ttl)
    }

    pub(super) fn soa(&self, origin: &Origin) -> Record {
        Record::from_rdata(origin.apex().clone(), self.ttl, RData::SOA(origin.soa().clone()))
    }

    /// RFC 2308 section 3: the SOA of a negative answer lives as long as the answer may.
    pub(super) fn negative_soa(&self, origin: &Origin) -> Record {
        Record::from_rdata(origin.apex().clone(), self.negative_ttl, RData::SOA(origin.soa().clone()))
    }

    pub(super) fn ns(&self, origin: &Origin) -> Record {
        Record::from_rdata(origin.apex().clone(), self.ttl, RData::NS(NS(origin.name_server().clone())))
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
