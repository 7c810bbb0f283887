//! The domains of the zone, and the names under them that records are made of.
//!
//! Every domain has the same names, so nothing is kept for each of them but these few: what an answer names is under the
//! domain that the question came under, and under the first one where it came under none (`arpa`).

use std::borrow::Cow;
use std::net::IpAddr;

use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::SOA;
use nerve::model::NodeName;

use super::lookup::address_label;
use super::reverse::Owned;
use crate::dns::config::{Config, Domain};
use crate::dns::ttls::Ttl;

/// All of them.
#[derive(Debug)]
pub(super) struct Origins {
    first: Origin,
    others: Vec<Origin>,
}

/// One domain.
#[derive(Debug)]
pub(super) struct Origin {
    apex: Name,
    name_server: Name,
    soa: SOA,
}

/// What an SRV record may name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Host {
    Node(NodeName),
    Address(IpAddr),
}

impl Origins {
    pub(super) fn new(config: &Config, serial: u32) -> Self {
        let origin = |domain| Origin::new(domain, serial, config.ttls.negative);
        Self { first: origin(&config.domain), others: config.alt_domains.iter().map(origin).collect() }
    }

    pub(super) fn first(&self) -> &Origin {
        &self.first
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Origin> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The one that a name is under, or is.
    pub(super) fn of(&self, name: &Name) -> Option<&Origin> {
        self.all().find(|origin| origin.apex.zone_of(name))
    }
}

impl Origin {
    fn new(domain: &Domain, serial: u32, negative: Ttl) -> Self {
        let apex = under(&domain.as_str().split('.').collect::<Vec<_>>(), &Name::root());
        let name_server = under(&["ns", "addr"], &apex);
        let hostmaster = under(&["hostmaster"], &apex);
        // Refresh, retry and expire speak to secondaries, of which there are none: RFC 1912's lower bounds.
        let soa = SOA::new(name_server.clone(), hostmaster, serial, 1200, 180, 1_209_600, negative.get());
        Self { apex, name_server, soa }
    }

    pub(super) fn apex(&self) -> &Name {
        &self.apex
    }

    pub(super) fn name_server(&self) -> &Name {
        &self.name_server
    }

    pub(super) fn soa(&self) -> &SOA {
        &self.soa
    }

    /// The numbers of the SOA as they stand in a message, which are those of every domain.
    pub(super) fn numbers(&self) -> [u8; 20] {
        let soa = &self.soa;
        // Of the times, which are of both signs in hickory alone, each is small.
        let seconds = |time: i32| time.unsigned_abs();
        let numbers =
            [soa.serial, seconds(soa.refresh), seconds(soa.retry), seconds(soa.expire), soa.minimum];
        let mut octets = [0; 20];
        for (place, number) in octets.chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        octets
    }

    pub(super) fn host(&self, host: &Host) -> Name {
        let (label, parent) = host.labels();
        under(&[&label, parent], &self.apex)
    }

    /// The names of who has an address.
    pub(super) fn owners(&self, owned: &Owned) -> Vec<Name> {
        match owned {
            Owned::Node(node) => vec![self.host(&Host::Node(node.clone()))],
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
}

impl Host {
    fn labels(&self) -> (Cow<'_, str>, &'static str) {
        match self {
            Self::Node(node) => (node.as_str().into(), "node"),
            Self::Address(ip) => (address_label(*ip).into(), "addr"),
        }
    }

    /// Its labels as they stand in a message, in front of the domain.
    pub(super) fn octets(&self) -> Box<[u8]> {
        let (label, parent) = self.labels();
        let octets = [&*label, parent].into_iter().flat_map(|label| {
            // A label has at most 63 octets.
            std::iter::once(u8::try_from(label.len()).unwrap_or(0)).chain(label.bytes())
        });
        octets.collect()
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
