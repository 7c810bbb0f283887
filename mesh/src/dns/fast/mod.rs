//! The short road of a query over UDP: from its octets to its answer's, without hickory and without memory of its own.
//!
//! It takes plain queries (without EDNS options, but for a cookie) for the names that most of them are about: a service's addresses and ports, a node's address, and
//! what does not exist right below the domain. Whatever is unusual in any way (another EDNS option, another class or type, a name of another
//! kind, an answer that does not fit, a store that is out of reach) is left to `message`, and both give the same
//! answer: a test holds them against each other.

use std::net::IpAddr;
use std::ptr;
use std::sync::Arc;

use nerve::model::Prefix;
use rand::Rng;
use rand::rngs::StdRng;
use smallvec::SmallVec;
use synapse::catalog::Freshness;

use super::config::{Config, RecursionFor, Upstreams};
use super::guard::{self, Asked, Guard, Said, Sent};
use super::metrics::{Transport, Verdict};
use super::ttls::Ttl;
use super::wire::{self, flag, kind};
use super::zone::{Prepared, PreparedHost, Shelf, Steps, Zone};

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
    soa: Soa,
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

/// What a task that answers keeps from one query to the next.
#[derive(Debug)]
pub(super) struct Desk {
    shelf: Shelf,
    rng: StdRng,
}

/// What was put behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub(super) verdict: Verdict,
    /// Where the question's name ends.
    pub(super) name_end: usize,
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
    V4(&'a Steps<[[u8; 4]; 4]>, Ttl),
    V6(&'a Steps<[[u8; 16]; 1]>, Ttl),
    Targets(&'a Prepared),
    NoData,
    NxDomain,
}

impl Desk {
    /// What has to be done now and then.
    pub(super) fn tidy(&mut self) {
        self.shelf.tidy();
    }
}

impl Fast {
    pub(super) fn new(config: &Config, zone: Arc<Zone>, guard: Arc<Guard>) -> Self {
        Self {
            apexes: zone.apexes(),
            soa: Soa::new(zone.ttls().negative, zone.soa_numbers()),
            most: config.limits.answers_udp.max(1),
            recursion: config.recursion.clone(),
            forwards: config.upstreams != Upstreams::None,
            zone,
            guard,
        }
    }

    /// What holds now, also at this desk, for queries that have come; `None` while nothing is answered here.
    pub(super) fn moment(&self, desk: &mut Desk) -> Option<Moment> {
        let is_live = matches!(&*self.zone.catalog().freshness(), Freshness::Live);
        is_live.then(|| {
            desk.shelf.renew();
            Moment { ranges: self.zone.virtual_ranges(), guard: self.guard.moment() }
        })
    }

    pub(super) fn desk(&self) -> Desk {
        Desk { shelf: Shelf::new(Arc::clone(&self.zone)), rng: rand::make_rng() }
    }

    /// Puts the answer behind what is in `out`, or nothing if it is not to be sent; `None`, and nothing more in `out`: it is to be
    /// answered elsewhere.
    pub(super) fn answer(
        &self,
        query: &[u8],
        client: IpAddr,
        moment: &Moment,
        desk: &mut Desk,
        out: &mut Vec<u8>,
    ) -> Option<Made> {
        let mut query = Query::read(query)?;
        let name = Lower::read(&query, &self.apexes)?;
        let mut standing = self.guard.meet(query.asked.as_ref(), client, Transport::Udp, &moment.guard);
        (query.said, query.most) = (standing.said.take(), standing.most.into());
        let begin = out.len();
        let verdict = self.find(&query, &name, client, moment, desk, out);
        let Some(verdict) = verdict.filter(|_| out.len() - begin <= query.most) else {
            out.truncate(begin);
            return None;
        };
        self.guard.count(&standing);
        standing.said = query.said;
        // Nothing is behind `begin` where it does not pass.
        let _ = self.guard.pass(out, begin, &standing, client, &moment.guard);
        Some(Made { verdict, name_end: query.end })
    }

    fn find(
        &self,
        query: &Query<'_>,
        name: &Lower,
        client: IpAddr,
        moment: &Moment,
        Desk { shelf, rng }: &mut Desk,
        out: &mut Vec<u8>,
    ) -> Option<Verdict> {
        let mut write = |found: &Found<'_>| self.write(query, name, client, found, rng, out);
        match (name.label(0)?, name.label(1)) {
            (one, None) => match shelf.service(one) {
                Some(service) => self.of_service(service, query, Some(&moment.ranges), write),
                None if self.zone.has_below(std::str::from_utf8(one).ok()?) => None,
                None => write(&Found::NxDomain),
            },
            (service, Some(b"service")) => self.of_service(shelf.service(service)?, query, None, write),
            (node, Some(b"node")) => {
                let node = self.zone.catalog().node(std::str::from_utf8(node).ok()?)?;
                let address = node.address.to_canonical();
                match (query.kind, address) {
                    (kind::A, IpAddr::V4(_)) | (kind::AAAA, IpAddr::V6(_)) => {
                        write(&Found::Address(address, self.zone.ttls().nodes))
                    }
                    (kind::A | kind::AAAA, _) => write(&Found::NoData),
                    _ => None,
                }
            }
            (service, Some(b"_tcp" | b"_udp")) if query.kind == kind::SRV => {
                self.of_service(shelf.service(service.strip_prefix(b"_")?)?, query, None, write)
            }
            _ => None,
        }
    }

    /// By its virtual addresses that are in these ranges if there are any, else by its endpoints.
    fn of_service(
        &self,
        service: &Prepared,
        query: &Query<'_>,
        ranges: Option<&[Prefix]>,
        mut write: impl FnMut(&Found<'_>) -> Option<Verdict>,
    ) -> Option<Verdict> {
        if service.is_external {
            return None;
        }
        if let (Some(ranges), Some(ttl)) = (ranges, service.virtual_ttl)
            && matches!(query.kind, kind::A | kind::AAAA)
        {
            let usable = |ip: &&IpAddr| ranges.iter().any(|range| range.contains(**ip));
            let mut vips = service.vips.iter().filter(usable).peekable();
            if vips.peek().is_some() {
                return match vips.find(|ip| ip.is_ipv4() == (query.kind == kind::A)) {
                    Some(ip) => write(&Found::Address(*ip, ttl)),
                    None if service.is_out => None,
                    None => write(&Found::NoData),
                };
            }
        }
        // There is more to be said about it.
        if service.is_out {
            return None;
        }
        match query.kind {
            kind::A if !service.v4.is_empty() => write(&Found::V4(&service.v4, service.ttl)),
            kind::AAAA if !service.v6.is_empty() => write(&Found::V6(&service.v6, service.ttl)),
            kind::SRV if !service.targets.is_empty() => write(&Found::Targets(service)),
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
        // The header comes last.
        out.extend_from_slice(&[0; wire::HEADER]);
        // In the client's spelling.
        out.extend_from_slice(&query.octets[wire::HEADER..query.end + 4]);
        let most = query.most.saturating_sub(query.said.as_ref().map_or(0, Said::length));
        let (mut answers, mut authorities, mut additionals) = (0, 0, 0);
        let verdict = match found {
            Found::Address(ip, ttl) => {
                push_address(*ip, QUESTION, *ttl, out);
                answers = 1;
                Verdict::Answered
            }
            Found::V4(all, ttl) => {
                answers = all.pick(self.most, rng, |ip| push_record(QUESTION, kind::A, *ttl, ip, out));
                Verdict::Answered
            }
            Found::V6(all, ttl) => {
                answers = all.pick(self.most, rng, |ip| push_record(QUESTION, kind::AAAA, *ttl, ip, out));
                Verdict::Answered
            }
            Found::Targets(prepared) => {
                (answers, additionals) = self.targets((prepared, name), begin, most, rng, out)?;
                Verdict::Answered
            }
            Found::NoData | Found::NxDomain => {
                self.soa.push(u16::try_from(wire::HEADER + name.apex).ok()?, out);
                authorities = 1;
                if matches!(found, Found::NxDomain) { Verdict::NxDomain } else { Verdict::NoData }
            }
        };
        if let Some(said) = &query.said {
            said.push(out, 0, None);
            additionals += 1;
        }
        let counts = [answers, authorities, additionals].map(u16::try_from);
        let [Ok(answers), Ok(authorities), Ok(additionals)] = counts else { return None };
        let mut header = [0; wire::HEADER];
        header[..2].copy_from_slice(&query.octets[..2]);
        let numbers = [self.flags(query, client, verdict), 1, answers, authorities, additionals];
        for (place, number) in header[2..].chunks_exact_mut(2).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        out[begin..begin + wire::HEADER].copy_from_slice(&header);
        Some(verdict)
    }

    fn flags(&self, query: &Query<'_>, client: IpAddr, verdict: Verdict) -> u16 {
        let asked = wire::flags(query.octets) & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        let recursion = self.forwards && self.recursion.permits(client);
        let available = if recursion { flag::RECURSION_AVAILABLE } else { 0 };
        let code = if verdict == Verdict::NxDomain { wire::rcode::NX_DOMAIN } else { wire::rcode::NO_ERROR };
        flag::RESPONSE | flag::AUTHORITATIVE | asked | available | code
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
        let mut hosts = SmallVec::<[(&PreparedHost, usize); MOST_TARGETS]>::new();
        let answers = prepared.targets.pick(self.most, rng, |target| {
            let host = &*target.host;
            push_head(QUESTION, kind::SRV, prepared.ttl, 6 + host.name.len() + apex.len(), out);
            for number in [0, target.weight, target.port] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            if hosts.iter().all(|(known, _)| !ptr::eq(*known, host)) {
                hosts.push((host, out.len() - begin));
            }
            // RFC 2782: never compressed.
            out.extend_from_slice(&host.name);
            out.extend_from_slice(apex);
        });
        if out.len() - begin > most {
            return None;
        }
        let (end, mut count) = (out.len(), hosts.len());
        for (host, at) in hosts {
            let pointer = u16::try_from(at).ok()? | 0xc000;
            push_address(host.address, pointer.to_be_bytes(), self.zone.ttls().nodes, out);
        }
        if out.len() - begin > most {
            // Nobody has to have them (RFC 2181 section 9).
            out.truncate(end);
            count = 0;
        }
        Some((answers, count))
    }
}

/// The SOA of a negative answer, but for where in the message the domain stands.
#[derive(Debug)]
struct Soa {
    octets: Box<[u8]>,
    /// Where pointers to the domain belong.
    pointers: [usize; 3],
}

impl Soa {
    fn new(ttl: Ttl, numbers: [u8; 20]) -> Self {
        const NAMES: [&[u8]; 2] = [b"\x02ns\x04addr", b"\x0ahostmaster"];
        let length = NAMES.iter().map(|name| name.len() + 2).sum::<usize>() + numbers.len();
        let (mut octets, mut pointers) = (Vec::new(), [0; 3]);
        push_head([0; 2], kind::SOA, ttl, length, &mut octets);
        for (name, pointer) in NAMES.iter().zip(&mut pointers[1..]) {
            octets.extend_from_slice(name);
            *pointer = octets.len();
            octets.extend_from_slice(&[0; 2]);
        }
        octets.extend_from_slice(&numbers);
        Self { octets: octets.into(), pointers }
    }

    fn push(&self, apex: u16, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&self.octets);
        for pointer in self.pointers {
            wire::put_u16(out, begin + pointer, apex | 0xc000);
        }
    }
}

/// What stands before a record's data; the owner is a pointer.
fn push_head(owner: [u8; 2], kind: u16, ttl: Ttl, length: usize, out: &mut Vec<u8>) {
    let ([kind_high, kind_low], ttl) = (kind.to_be_bytes(), ttl.get().to_be_bytes());
    // An address, or at most two names and five numbers.
    let [high, low] = u16::try_from(length).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&[
        owner[0], owner[1], kind_high, kind_low, 0, 1, ttl[0], ttl[1], ttl[2], ttl[3], high, low,
    ]);
}

fn push_record<const N: usize>(owner: [u8; 2], kind: u16, ttl: Ttl, data: &[u8; N], out: &mut Vec<u8>) {
    push_head(owner, kind, ttl, N, out);
    out.extend_from_slice(data);
}

fn push_address(ip: IpAddr, owner: [u8; 2], ttl: Ttl, out: &mut Vec<u8>) {
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

    fn label(&self, at: usize) -> Option<&[u8]> {
        let (begin, end) = *self.labels[..self.count].get(at)?;
        self.octets.get(begin..end)
    }
}

#[cfg(test)]
mod tests;
