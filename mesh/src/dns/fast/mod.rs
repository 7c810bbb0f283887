//! The short road of a query over UDP: from its octets to its answer's, without hickory and without memory of its own.
//!
//! It takes plain queries (without EDNS options, but for a cookie) for the names that most of them are about: a service's addresses and ports, a node's address, and
//! what does not exist right below the domain. Whatever is unusual in any way (another EDNS option, another class or type, a name of another
//! kind, an answer that does not fit, a store that is out of reach) is left to `message`, and both give the same
//! answer: a test holds them against each other.

use std::net::IpAddr;
use std::sync::Arc;

use nerve::model::Prefix;
use rand::Rng;
use synapse::catalog::{Freshness, Service};

use super::config::{Config, RecursionFor, Upstreams};
use super::guard::{self, Asked, Guard, Said, Sent};
use super::metrics::{Transport, Verdict};
use super::ttls::Ttl;
use super::wire::{self, flag, kind};
use super::zone::{Prepared, Steps, Zone};

/// The most labels that stand before the domain in a name that is answered here.
const MOST_LABELS: usize = 2;
/// The most targets of an answer that are answered here.
const MOST_TARGETS: usize = 16;
/// A pointer to the question's name.
const QUESTION: [u8; 2] = [0xc0, 12];

/// Answers what is plain. One for all sockets.
#[derive(Debug)]
pub(super) struct Fast {
    zone: Arc<Zone>,
    guard: Arc<Guard>,
    /// The domains' octets, in lower case, with the root's.
    apexes: Box<[Box<[u8]>]>,
    /// The numbers of the SOA.
    soa: [u8; 20],
    most: usize,
    recursion: RecursionFor,
    forwards: bool,
}

/// What holds for the queries of one batch.
#[derive(Debug)]
pub(super) struct Moment {
    ranges: Arc<[Prefix]>,
    guard: guard::Moment,
}

/// A query that has nothing unusual.
struct Query<'a> {
    octets: &'a [u8],
    /// Where the name ends.
    end: usize,
    kind: u16,
    asked: Option<Asked>,
    /// What is said back to its EDNS.
    said: Option<Said>,
    /// The most octets that the answer may have.
    most: usize,
}

/// The name of a query, in lower case.
struct Lower {
    octets: [u8; 255],
    /// Where each label that stands before the domain begins and ends.
    labels: [(usize, usize); MOST_LABELS],
    count: usize,
    /// Where the domain begins.
    apex: usize,
    /// Which one it is.
    domain: usize,
}

/// What an answer has.
enum Found<'a> {
    Address(IpAddr, Ttl),
    V4(&'a Steps<[u8; 4]>, Ttl),
    V6(&'a Steps<[u8; 16]>, Ttl),
    Targets(&'a Prepared),
    NoData,
    NxDomain,
}

impl Fast {
    pub(super) fn new(config: &Config, zone: Arc<Zone>, guard: Arc<Guard>) -> Self {
        Self {
            apexes: zone.apexes(),
            soa: zone.soa_numbers(),
            most: config.limits.answers_udp.max(1),
            recursion: config.recursion.clone(),
            forwards: config.upstreams != Upstreams::None,
            zone,
            guard,
        }
    }

    /// What holds now; `None` while nothing is answered here.
    pub(super) fn moment(&self) -> Option<Moment> {
        let is_live = matches!(&*self.zone.catalog().freshness(), Freshness::Live);
        is_live.then(|| Moment { ranges: self.zone.virtual_ranges(), guard: self.guard.moment() })
    }

    /// Puts the answer behind what is in `out`, or nothing if it is not to be sent; `None`, and nothing more in `out`: it is to be
    /// answered elsewhere.
    pub(super) fn answer(
        &self,
        query: &[u8],
        client: IpAddr,
        moment: &Moment,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> Option<Verdict> {
        let mut query = Query::read(query)?;
        let name = Lower::read(&query, &self.apexes)?;
        let mut standing = self.guard.meet(query.asked.as_ref(), client, Transport::Udp, &moment.guard);
        (query.said, query.most) = (standing.said.take(), standing.most.into());
        let begin = out.len();
        let verdict = self.find(&query, &name, client, moment, rng, out);
        if verdict.is_none() || out.len() - begin > query.most {
            out.truncate(begin);
            return None;
        }
        self.guard.count(&standing);
        standing.said = query.said;
        // Nothing is behind `begin` where it does not pass.
        let _ = self.guard.pass(out, begin, &standing, client, &moment.guard);
        verdict
    }

    fn find(
        &self,
        query: &Query<'_>,
        name: &Lower,
        client: IpAddr,
        moment: &Moment,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> Option<Verdict> {
        let mut write = |found: &Found<'_>| self.write(query, name, client, found, rng, out);
        let catalog = self.zone.catalog();
        match (name.label(0)?, name.label(1)) {
            (one, None) => match catalog.service(one) {
                Some(service) => self.of_service(&service, query, Some(moment), write),
                None if self.zone.has_below(one) => None,
                None => write(&Found::NxDomain),
            },
            (service, Some("service")) => self.of_service(&*catalog.service(service)?, query, None, write),
            (node, Some("node")) => {
                let address = catalog.node(node)?.address.to_canonical();
                match (query.kind, address) {
                    (kind::A, IpAddr::V4(_)) | (kind::AAAA, IpAddr::V6(_)) => {
                        write(&Found::Address(address, self.zone.ttls().nodes))
                    }
                    (kind::A | kind::AAAA, _) => write(&Found::NoData),
                    _ => None,
                }
            }
            (service, Some("_tcp" | "_udp")) if query.kind == kind::SRV => {
                let service = catalog.service(service.strip_prefix('_')?)?;
                self.of_service(&service, query, None, write)
            }
            _ => None,
        }
    }

    /// By its virtual addresses where there is a moment to know them by, else by its endpoints.
    fn of_service(
        &self,
        service: &Service,
        query: &Query<'_>,
        moment: Option<&Moment>,
        mut write: impl FnMut(&Found<'_>) -> Option<Verdict>,
    ) -> Option<Verdict> {
        if service.settings.external.is_some() {
            return None;
        }
        let prepared = self.zone.prepared(service);
        if let Some(moment) = moment.filter(|_| matches!(query.kind, kind::A | kind::AAAA))
            && service.settings.wants_vip()
        {
            let usable = |ip: &&IpAddr| moment.ranges.iter().any(|range| range.contains(**ip));
            let mut vips = service.vips.iter().filter(usable).peekable();
            if vips.peek().is_some() {
                return match vips.find(|ip| ip.is_ipv4() == (query.kind == kind::A)) {
                    Some(ip) => write(&Found::Address(*ip, prepared.virtual_ttl)),
                    None if prepared.is_out => None,
                    None => write(&Found::NoData),
                };
            }
        }
        // There is more to be said about it.
        if prepared.is_out {
            return None;
        }
        match query.kind {
            kind::A if !prepared.v4.is_empty() => write(&Found::V4(&prepared.v4, prepared.ttl)),
            kind::AAAA if !prepared.v6.is_empty() => write(&Found::V6(&prepared.v6, prepared.ttl)),
            kind::SRV if !prepared.targets.is_empty() => write(&Found::Targets(&prepared)),
            kind::A | kind::AAAA | kind::SRV => write(&Found::NoData),
            _ => None,
        }
    }

    fn write(
        &self,
        query: &Query<'_>,
        name: &Lower,
        client: IpAddr,
        found: &Found<'_>,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> Option<Verdict> {
        let begin = out.len();
        let asked = wire::flags(query.octets);
        let is_missing = matches!(found, Found::NxDomain);
        let mut flags = flag::RESPONSE | flag::AUTHORITATIVE;
        flags |= asked & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        if self.forwards && self.recursion.permits(client) {
            flags |= flag::RECURSION_AVAILABLE;
        }
        flags |= if is_missing { wire::rcode::NX_DOMAIN } else { wire::rcode::NO_ERROR };
        out.extend_from_slice(&query.octets[..2]);
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        // In the client's spelling.
        out.extend_from_slice(&query.octets[wire::HEADER..query.end + 4]);
        let most = query.most.saturating_sub(query.said.as_ref().map_or(0, Said::length));
        let (mut answers, mut authorities, mut additionals) = (0, 0, 0);
        let verdict = match found {
            Found::Address(ip, ttl) => {
                push_address(*ip, &QUESTION, *ttl, out);
                answers = 1;
                Verdict::Answered
            }
            Found::V4(all, ttl) => {
                answers = all.pick(self.most, rng, |ip| push_record(&QUESTION, kind::A, *ttl, ip, out));
                Verdict::Answered
            }
            Found::V6(all, ttl) => {
                answers = all.pick(self.most, rng, |ip| push_record(&QUESTION, kind::AAAA, *ttl, ip, out));
                Verdict::Answered
            }
            Found::Targets(prepared) => {
                (answers, additionals) = self.targets((prepared, name), begin, most, rng, out)?;
                Verdict::Answered
            }
            Found::NoData | Found::NxDomain => {
                self.soa(u16::try_from(wire::HEADER + name.apex).ok()?, out);
                authorities = 1;
                if is_missing { Verdict::NxDomain } else { Verdict::NoData }
            }
        };
        if let Some(said) = &query.said {
            said.push(out, 0, None);
            additionals += 1;
        }
        for (at, count) in [(6, answers), (8, authorities), (10, additionals)] {
            wire::put_u16(out, begin + at, u16::try_from(count).ok()?);
        }
        Some(verdict)
    }

    /// The answers, and behind them the addresses of their hosts where they fit. Tells how many of each there are.
    fn targets(
        &self,
        (prepared, asked): (&Prepared, &Lower),
        begin: usize,
        most: usize,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> Option<(usize, usize)> {
        if prepared.targets.count(self.most) > MOST_TARGETS {
            return None;
        }
        // Targets are under the domain that was asked for.
        let apex = &self.apexes[asked.domain];
        // Where the name of each host stands, so that its address may point there.
        let (mut hosts, mut count) = ([(0, 0); MOST_TARGETS], 0);
        let answers = prepared.targets.pick(self.most, rng, |target| {
            let (name, _) = &prepared.hosts[target.host];
            push_head(&QUESTION, kind::SRV, prepared.ttl, 6 + name.len() + apex.len(), out);
            for number in [0, target.weight, target.port] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            if hosts[..count].iter().all(|(host, _)| *host != target.host) {
                hosts[count] = (target.host, out.len() - begin);
                count += 1;
            }
            // RFC 2782: never compressed.
            out.extend_from_slice(name);
            out.extend_from_slice(apex);
        });
        if out.len() - begin > most {
            return None;
        }
        let end = out.len();
        for (host, at) in &hosts[..count] {
            let pointer = u16::try_from(*at).ok()? | 0xc000;
            push_address(prepared.hosts[*host].1, &pointer.to_be_bytes(), self.zone.ttls().nodes, out);
        }
        if out.len() - begin > most {
            // Nobody has to have them (RFC 2181 section 9).
            out.truncate(end);
            count = 0;
        }
        Some((answers, count))
    }

    /// The SOA of a negative answer; the domain stands in the question.
    fn soa(&self, apex: u16, out: &mut Vec<u8>) {
        const NAMES: [&[u8]; 2] = [b"\x02ns\x04addr", b"\x0ahostmaster"];
        let pointer = (apex | 0xc000).to_be_bytes();
        let length = NAMES.iter().map(|name| name.len() + 2).sum::<usize>() + self.soa.len();
        push_head(&pointer, kind::SOA, self.zone.ttls().negative, length, out);
        for name in NAMES {
            out.extend_from_slice(name);
            out.extend_from_slice(&pointer);
        }
        out.extend_from_slice(&self.soa);
    }
}

/// What stands before a record's data.
fn push_head(owner: &[u8], kind: u16, ttl: Ttl, length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(owner);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&ttl.get().to_be_bytes());
    // An address, or at most two names and five numbers.
    out.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
}

fn push_record(owner: &[u8], kind: u16, ttl: Ttl, data: &[u8], out: &mut Vec<u8>) {
    push_head(owner, kind, ttl, data.len(), out);
    out.extend_from_slice(data);
}

fn push_address(ip: IpAddr, owner: &[u8], ttl: Ttl, out: &mut Vec<u8>) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => push_record(owner, kind::A, ttl, &ip.octets(), out),
        IpAddr::V6(ip) => push_record(owner, kind::AAAA, ttl, &ip.octets(), out),
    }
}

impl<'a> Query<'a> {
    fn read(octets: &'a [u8]) -> Option<Self> {
        let plain = flag::RECURSION_DESIRED | flag::CHECKING_DISABLED | flag::AUTHENTIC_DATA;
        let edns = match octets.get(..wire::HEADER)? {
            [_, _, high, low, 0, 1, 0, 0, 0, 0, 0, edns @ (0 | 1)]
                if u16::from_be_bytes([*high, *low]) & !plain == 0 =>
            {
                *edns == 1
            }
            _ => return None,
        };
        let mut end = wire::HEADER;
        loop {
            match *octets.get(end)? {
                0 => break,
                length @ 1..=63 => end += 1 + usize::from(length),
                _ => return None,
            }
        }
        end += 1;
        let (kind, class) = (wire::u16_at(octets, end)?, wire::u16_at(octets, end + 2)?);
        let asked = match (edns, octets.get(end + 4..)?) {
            (false, []) => None,
            // The root, the type, a payload, version 0, flags, the length of all options: none, or a cookie.
            (true, [0, 0, 41, high, low, 0, 0, dnssec_ok @ (0 | 0x80), 0, 0, length, options @ ..])
                if options.len() == usize::from(*length) =>
            {
                let mut asked = Asked::plain(u16::from_be_bytes([*high, *low]), *dnssec_ok != 0);
                asked.cookie = match options {
                    [] => None,
                    [0, code, 0, length, cookie @ ..]
                        if u16::from(*code) == guard::COOKIE && cookie.len() == usize::from(*length) =>
                    {
                        Some(Sent::read(cookie)?)
                    }
                    _ => return None,
                };
                Some(asked)
            }
            _ => return None,
        };
        let most = usize::from(wire::PLAIN_UDP_PAYLOAD);
        (class == 1 && end - wire::HEADER <= 255).then_some(Self {
            octets,
            end,
            kind,
            asked,
            said: None,
            most,
        })
    }
}

impl Lower {
    /// `None`: it is not below a domain, or has more labels there than a name that is answered here.
    fn read(query: &Query<'_>, apexes: &[Box<[u8]>]) -> Option<Self> {
        let name = &query.octets[wire::HEADER..query.end];
        let mut lower =
            Self { octets: [0; 255], labels: [(0, 0); MOST_LABELS], count: 0, apex: 0, domain: 0 };
        let room = lower.octets.get_mut(..name.len())?;
        room.copy_from_slice(name);
        // Length octets are below 64, so they keep their value.
        room.make_ascii_lowercase();
        lower.domain = apexes.iter().position(|apex| room.ends_with(apex))?;
        let below = name.len() - apexes[lower.domain].len();
        lower.apex = below;
        let mut at = 0;
        while at < below {
            let end = at + 1 + usize::from(name[at]);
            *lower.labels.get_mut(lower.count)? = (at + 1, end);
            lower.count += 1;
            at = end;
        }
        // Else the domain's octets began within a label.
        (at == below).then_some(lower)
    }

    fn label(&self, at: usize) -> Option<&str> {
        let (begin, end) = *self.labels[..self.count].get(at)?;
        std::str::from_utf8(&self.octets[begin..end]).ok()
    }
}

#[cfg(test)]
mod tests;
