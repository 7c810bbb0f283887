//! How the zone's records look.

use std::net::IpAddr;
use std::num::NonZeroU16;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::origin::Origin;
use super::pick::Target;
use crate::dns::ttls::Ttl;

pub(super) fn soa(origin: &Origin, ttl: Ttl) -> Record {
    record(origin.apex(), ttl, RData::SOA(origin.soa().clone()))
}

pub(super) fn ns(origin: &Origin, ttl: Ttl) -> Record {
    record(origin.apex(), ttl, RData::NS(NS(origin.name_server().clone())))
}

pub(super) fn address(name: &Name, ip: IpAddr, ttl: Ttl) -> Record {
    let data = match ip.to_canonical() {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    record(name, ttl, data)
}

pub(super) fn address_of_kind(name: &Name, ip: IpAddr, kind: RecordType, ttl: Ttl) -> Option<Record> {
    Some(address(name, ip, ttl)).filter(|record| record.record_type() == kind)
}

pub(super) fn ptr(name: &Name, owner: Name, ttl: Ttl) -> Record {
    record(name, ttl, RData::PTR(PTR(owner)))
}

/// One record with these texts (RFC 1035 section 3.3.14); what no text of a record can hold is left out.
pub(super) fn txt(name: &Name, texts: impl Iterator<Item = String>, ttl: Ttl) -> Vec<Record> {
    /// A text's length is one octet.
    const LONGEST: usize = 255;
    const MOST: usize = 64;
    let texts: Vec<String> = texts.filter(|text| text.len() <= LONGEST).take(MOST).collect();
    let whole = |texts| record(name, ttl, RData::TXT(TXT::new(texts)));
    (!texts.is_empty()).then(|| whole(texts)).into_iter().collect()
}

/// Every target has the same priority: which is better is the balancer's business, and weights say the rest.
pub(super) fn srv(name: &Name, target: &Target, host: &Name, ttl: Ttl) -> Record {
    record(name, ttl, RData::SRV(SRV::new(0, target.weight, target.port, host.clone())))
}

pub(super) fn cname(name: &Name, target: &Name, ttl: Ttl) -> Record {
    record(name, ttl, RData::CNAME(CNAME(target.clone())))
}

/// One host has the port, and so nothing to choose by (RFC 2782: weight 0).
pub(super) fn external_srv(name: &Name, target: &Name, port: NonZeroU16, ttl: Ttl) -> Record {
    record(name, ttl, RData::SRV(SRV::new(0, 0, port.get(), target.clone())))
}

/// The addresses of the targets, each host once.
pub(super) fn target_addresses(targets: &[(&Target, Name)], ttl: Ttl) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::with_capacity(targets.len());
    for (target, host) in targets {
        if !records.iter().any(|record| record.name == *host) {
            records.push(address(host, target.address, ttl));
        }
    }
    records
}

/// RFC 8482 section 4.2: ANY is answered, but not with everything.
pub(super) fn minimal_any(name: &Name, ttl: Ttl) -> Record {
    let hinfo = HINFO::from_bytes(Box::from(*b"RFC8482"), Box::default());
    record(name, ttl, RData::HINFO(hinfo))
}

fn record(name: &Name, ttl: Ttl, data: RData) -> Record {
    Record::from_rdata(name.clone(), ttl.get(), data)
}
