//! From the octets of a query to those of its answer: what is refused, what the zone answers, what is forwarded.
//!
//! Messages are read by `hickory_server`'s request, names in the client's spelling (0x20).
//! Before it reads, the header is checked: hickory reserves memory for as many records as the header claims.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{LowerQuery, Metadata, Query, ResponseCode, emit_message_parts};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;

use super::alias::Alias;
use super::config::{Config, RecursionFor, Upstreams};
use super::forward::{Client, Forwarder, Given, Start, Waiting, serv_fail};
use super::guard::{self, Guard, Malformed, Moment, Said, Standing};
use super::identity::Identity;
use super::metrics::{CookieKind, Dropped, Metrics, Path, Refusal, Transport, Verdict};
use super::wire::{self, Question, flag, rcode};
use super::zone::{Answer, Kind, Note, Zone};

/// OPT, TSIG, a cookie's room to grow: more than this no query needs in its additional section.
const MOST_ADDITIONALS: u16 = 4;

/// Answers messages. One for all sockets.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) zone: Arc<Zone>,
    pub(super) forwarder: Forwarder,
    pub(super) metrics: Arc<Metrics>,
    guard: Arc<Guard>,
    identity: Identity,
    recursion: RecursionFor,
    forwards: bool,
    most_udp: usize,
    most_tcp: usize,
}

/// What is to be done with a message.
pub(super) enum Reply {
    /// Send this.
    Now(Vec<u8>),
    /// Wait for this, then send it.
    Later(Box<Later>),
    /// Nothing is to be sent, for this reason.
    Drop(Dropped),
}

/// An answer that an upstream has to give.
pub(super) struct Later {
    waiting: Waiting,
    client: Client,
    /// What stands before the upstream's answer, where ours leads to it.
    alias: Option<Box<Alias>>,
    began: Instant,
    metrics: Arc<Metrics>,
    guard: Arc<Guard>,
    asker: Asker,
}

/// Who asks.
#[derive(Debug, Clone)]
struct Asker {
    address: SocketAddr,
    transport: Transport,
    standing: Standing,
}

impl Asker {
    /// The most octets that an answer may have.
    fn most(&self) -> u16 {
        if self.transport == Transport::Udp { self.standing.most } else { u16::MAX }
    }
}

impl Later {
    /// The answer's octets; `None`: it is one too many to be sent to somebody who may not have asked for it.
    pub(super) async fn wait_over_udp(self) -> Option<Vec<u8>> {
        let (guard, asker) = (Arc::clone(&self.guard), self.asker.clone());
        let mut octets = self.wait().await;
        let passes = guard.pass(&mut octets, 0, &asker.standing, asker.address.ip(), &guard.again());
        passes.then_some(octets)
    }

    /// The answer's octets. Dropping the future gives the answer up.
    pub(super) async fn wait(self) -> Vec<u8> {
        let Self { waiting, client, alias, began, metrics, .. } = self;
        let octets = match waiting.told().await {
            Ok(given) => make_out(&given, &client, alias.as_deref(), &metrics),
            Err(why) => failed(&client, alias.as_deref(), &why),
        };
        metrics.took(Path::Upstream, began.elapsed());
        octets
    }
}

fn make_out(given: &Given, client: &Client, alias: Option<&Alias>, metrics: &Metrics) -> Vec<u8> {
    let made_out = given.made_out_to(client, tokio::time::Instant::now());
    let (octets, cut) = match alias {
        Some(alias) => alias.complete(&made_out.0),
        None => made_out,
    };
    if cut {
        metrics.truncated.inc();
    }
    octets
}

fn failed(client: &Client, alias: Option<&Alias>, why: &str) -> Vec<u8> {
    serv_fail(alias.map_or(client, Alias::client), Note::NO_REACHABLE_AUTHORITY, why)
}

impl Handler {
    pub(super) fn new(
        config: &Config,
        zone: Arc<Zone>,
        forwarder: Forwarder,
        guard: Arc<Guard>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            zone,
            forwarder,
            metrics,
            guard,
            identity: config.identity.clone(),
            recursion: config.recursion.clone(),
            forwards: config.upstreams != Upstreams::None,
            most_udp: config.limits.answers_udp.max(1),
            most_tcp: config.limits.answers_tcp.max(1),
        }
    }

    /// Decides about one message. Never waits.
    pub(super) fn handle(&self, octets: &[u8], client: SocketAddr, transport: Transport) -> Reply {
        let began = Instant::now();
        let Some(counts) = counts(octets) else { return Reply::Drop(Dropped::TooShort) };
        if wire::flags(octets) & flag::RESPONSE != 0 {
            return Reply::Drop(Dropped::NotAQuery);
        }
        if client.port() == 0 {
            return Reply::Drop(Dropped::NoReturnPort);
        }
        let moment = self.guard.moment();
        let stranger = || Asker {
            address: client,
            transport,
            standing: self.guard.meet(None, client.ip(), transport, &moment),
        };
        if wire::flags(octets) & flag::OPCODE != 0 {
            self.metrics.query(transport, Verdict::NotImplemented);
            return self.passed(bare(octets, rcode::NOT_IMP, None), &stranger(), &moment);
        }
        let read = match counts {
            [1, 0, 0, additionals] if additionals <= MOST_ADDITIONALS => {
                guard::read(octets, additionals, transport != Transport::Udp)
            }
            _ => Err(Malformed::Message),
        };
        let asked = match read {
            Ok(asked) => asked,
            Err(malformed) => {
                self.metrics.query(transport, Verdict::FormErr);
                if malformed == Malformed::Cookie {
                    self.metrics.cookies.inc(CookieKind::Malformed);
                }
                // Without OPT the client would take it that EDNS is not understood here (RFC 6891 section 7).
                let said = (malformed != Malformed::Message).then(Said::default);
                return self.passed(bare(octets, rcode::FORM_ERR, said.as_ref()), &stranger(), &moment);
            }
        };
        let standing = self.guard.meet(asked.as_ref(), client.ip(), transport, &moment);
        self.guard.count(&standing);
        let asker = Asker { address: client, transport, standing };
        let version = asked.map_or(0, |asked| asked.version);
        match self.decide(octets, &asker, version, began) {
            Reply::Now(octets) => self.passed(octets, &asker, &moment),
            reply => reply,
        }
    }

    /// Whether it may be sent.
    fn passed(&self, mut octets: Vec<u8>, asker: &Asker, moment: &Moment) -> Reply {
        let passes = self.guard.pass(&mut octets, 0, &asker.standing, asker.address.ip(), moment);
        if passes { Reply::Now(octets) } else { Reply::Drop(Dropped::RateLimited) }
    }

    fn decide(&self, octets: &[u8], asker: &Asker, version: u8, began: Instant) -> Reply {
        let protocol = if asker.transport == Transport::Udp { Protocol::Udp } else { Protocol::Tcp };
        let request = Request::from_bytes(octets.to_vec(), asker.address, protocol).ok();
        let query = request.as_ref().and_then(|request| match request.queries.queries() {
            [query] => Some((request, query)),
            _ => None,
        });
        let Some((request, query)) = query else {
            self.metrics.query(asker.transport, Verdict::FormErr);
            return Reply::Now(bare(octets, rcode::FORM_ERR, asker.standing.said.as_ref()));
        };
        self.answer(request, query, asker, version, began)
    }

    fn answer(
        &self,
        request: &Request,
        query: &LowerQuery,
        asker: &Asker,
        version: u8,
        began: Instant,
    ) -> Reply {
        if version > 0 {
            let answer = Answer::default();
            return Reply::Now(self.own(request, asker, Verdict::BadVersion, ResponseCode::BADVERS, &answer));
        }
        let (kind, class) = (query.query_type(), query.query_class());
        if class == DNSClass::CH
            && let Some(answer) = self.of_itself(query)
        {
            return Reply::Now(self.own(request, asker, Verdict::Answered, ResponseCode::NoError, &answer));
        }
        if class != DNSClass::IN {
            return Reply::Now(self.refuse(request, asker, Refusal::Class));
        }
        // RFC 6895 section 3.1: 128 to 255 ask for something else than data; OPT and 0 are no question.
        let code = u16::from(kind);
        if code == 0 || kind == RecordType::OPT || (128..255).contains(&code) {
            return Reply::Now(self.refuse(request, asker, Refusal::MetaType));
        }
        let name = query.original().name();
        if !self.zone.covers(name) {
            return self.forward(request, asker, began);
        }
        let most = if asker.transport == Transport::Udp { self.most_udp } else { self.most_tcp };
        let answer = self.zone.answer(name, kind, most, &mut rand::rng());
        if answer.stale {
            self.metrics.stale_answers.inc();
        }
        if let Some(reply) = self.complete(request, asker, began, &answer) {
            return reply;
        }
        let (verdict, code) = match answer.kind {
            Kind::Records => (Verdict::Answered, ResponseCode::NoError),
            Kind::NoData => (Verdict::NoData, ResponseCode::NoError),
            Kind::NxDomain => (Verdict::NxDomain, ResponseCode::NXDomain),
            Kind::NotReady => (Verdict::NotReady, ResponseCode::ServFail),
            Kind::AliasLoop => (Verdict::AliasLoop, ResponseCode::ServFail),
        };
        let octets = self.own(request, asker, verdict, code, &answer);
        self.metrics.took(Path::Zone, began.elapsed());
        Reply::Now(octets)
    }

    /// What is told of this server (RFC 4892).
    fn of_itself(&self, query: &LowerQuery) -> Option<Answer> {
        if !matches!(query.query_type(), RecordType::TXT | RecordType::ANY) {
            return None;
        }
        let name: Name = query.original().name().clone();
        let asked = name.to_ascii().to_ascii_lowercase();
        let text = self.identity.of(asked.trim_end_matches('.'))?;
        let mut record = Record::from_rdata(name, 0, RData::TXT(TXT::new(vec![text.to_string()])));
        record.dns_class = DNSClass::CH;
        Some(Answer { answers: vec![record], ..Answer::default() })
    }

    fn forward(&self, request: &Request, asker: &Asker, began: Instant) -> Reply {
        let refusal = if !self.forwards {
            Some(Refusal::NoUpstream)
        } else if !self.recursion.permits(asker.address.ip()) {
            Some(Refusal::ClientNotPermitted)
        } else if !request.metadata.recursion_desired {
            Some(Refusal::RecursionNotDesired)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return Reply::Now(self.refuse(request, asker, refusal));
        }
        let Some(client) = client(request, asker) else {
            self.metrics.query(asker.transport, Verdict::FormErr);
            let octets = bare(request.as_slice(), rcode::FORM_ERR, asker.standing.said.as_ref());
            return Reply::Now(octets);
        };
        self.ask(request, asker, began, client, None)
    }

    /// Asks an upstream for the rest of an answer that leads out of the zone; `None`: there is no rest, or it is not for this
    /// client.
    fn complete(&self, request: &Request, asker: &Asker, began: Instant, answer: &Answer) -> Option<Reply> {
        let target = answer.leads_to.as_ref()?;
        let is_permitted = self.forwards && self.recursion.permits(asker.address.ip());
        if !is_permitted || !request.metadata.recursion_desired {
            return None;
        }
        let query = request.queries.queries().first()?.original().clone();
        let alias = Alias::new(client(request, asker)?, query, answer.answers.clone());
        let client = alias.question(target)?;
        Some(self.ask(request, asker, began, client, Some(Box::new(alias))))
    }

    fn ask(
        &self,
        request: &Request,
        asker: &Asker,
        began: Instant,
        client: Client,
        alias: Option<Box<Alias>>,
    ) -> Reply {
        let start = self.forwarder.start(&client);
        if !matches!(start, Start::Refused(_)) {
            self.metrics.query(asker.transport, Verdict::Forwarded);
        }
        let octets = match start {
            Start::Known(given) => {
                let octets = make_out(&given, &client, alias.as_deref(), &self.metrics);
                self.metrics.took(Path::Cache, began.elapsed());
                octets
            }
            Start::Waiting(waiting) => {
                let (metrics, guard) = (Arc::clone(&self.metrics), Arc::clone(&self.guard));
                let later = Later { waiting, client, alias, began, metrics, guard, asker: asker.clone() };
                return Reply::Later(Box::new(later));
            }
            Start::Failed(why) => failed(&client, alias.as_deref(), &why),
            Start::Refused(refusal) => self.refuse(request, asker, refusal),
        };
        Reply::Now(octets)
    }

    fn refuse(&self, request: &Request, asker: &Asker, refusal: Refusal) -> Vec<u8> {
        self.metrics.refused.inc(refusal);
        let (code, note) = told(refusal);
        let answer = Answer { note: Some(note), ..Answer::default() };
        self.own(request, asker, Verdict::Refused, code, &answer)
    }

    /// Writes an answer of our own.
    fn own(
        &self,
        request: &Request,
        asker: &Asker,
        verdict: Verdict,
        code: ResponseCode,
        answer: &Answer,
    ) -> Vec<u8> {
        self.metrics.query(asker.transport, verdict);
        let said = asker.standing.said.as_ref();
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = code;
        metadata.authoritative = matches!(verdict, Verdict::Answered | Verdict::NoData | Verdict::NxDomain);
        metadata.recursion_available = self.forwards && self.recursion.permits(asker.address.ip());
        let query = request.queries.queries().first().map(LowerQuery::original);
        let written = query.and_then(|query| write(query, metadata, answer, said, asker.most()));
        let Some(octets) = written else {
            return bare(request.as_slice(), rcode::SERV_FAIL, said);
        };
        if is_cut(&octets) {
            self.metrics.truncated.inc();
        }
        octets
    }
}

/// A client whose question an upstream may get.
fn client(request: &Request, asker: &Asker) -> Option<Client> {
    Some(Client {
        id: request.metadata.id,
        question: Question::new(request.queries.as_bytes())?,
        flags: wire::flags(request.as_slice()),
        edns: asker.standing.said.clone(),
        most: usize::from(asker.most()),
    })
}

/// Questions, answers, authorities and additionals, as the header claims; `None` if there is no whole header.
fn counts(octets: &[u8]) -> Option<[u16; 4]> {
    Some([
        wire::u16_at(octets, 4)?,
        wire::u16_at(octets, 6)?,
        wire::u16_at(octets, 8)?,
        wire::u16_at(octets, 10)?,
    ])
}

/// Writes the most that fits: everything; without the additionals, which nobody has to have (RFC 2181 section 9); as many
/// of the answers as there is room for, marked as cut short: who cannot ask over TCP has those.
fn write(
    query: &Query,
    metadata: Metadata,
    answer: &Answer,
    said: Option<&Said>,
    most: u16,
) -> Option<Vec<u8>> {
    let note = answer.note.as_ref().map(|note| (note.code, note.text.as_ref()));
    let mut opt = Vec::new();
    if let Some(said) = said {
        said.push(&mut opt, metadata.response_code.high(), note);
    }
    let room = most.saturating_sub(u16::try_from(opt.len()).unwrap_or(u16::MAX));
    // The encoder wants room for a name before it sees that a pointer does: what fits is told by what there is in the end.
    let fits = |octets: &Vec<u8>| octets.len() <= usize::from(room) && !is_cut(octets);
    let mut octets = emit(query, metadata, answer, &answer.additionals, u16::MAX)?;
    if !fits(&octets) && !answer.additionals.is_empty() {
        octets = emit(query, metadata, answer, &[], u16::MAX)?;
    }
    if !fits(&octets) {
        octets = emit(query, metadata, answer, &[], room)?;
    }
    if said.is_some() {
        octets.append(&mut opt);
        let additionals = wire::u16_at(&octets, 10)?.saturating_add(1);
        wire::put_u16(&mut octets, 10, additionals);
    }
    Some(octets)
}

fn is_cut(octets: &[u8]) -> bool {
    wire::flags(octets) & flag::TRUNCATED != 0
}

/// The sections one after the other, each as far as there is room; the first that has none for all sets TC.
fn emit(
    query: &Query,
    metadata: Metadata,
    answer: &Answer,
    additionals: &[Record],
    room: u16,
) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(usize::from(wire::PLAIN_UDP_PAYLOAD));
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_max_size(room);
    let written = emit_message_parts(
        &metadata,
        // Not the octets that came: names are to point to this one.
        &mut std::iter::once(query),
        &mut answer.answers.iter(),
        &mut answer.authority.iter(),
        &mut additionals.iter(),
        None,
        None,
        &mut encoder,
    );
    // What was begun and did not fit is behind it still.
    let end = encoder.offset();
    match written {
        Ok(_) => {
            octets.truncate(end);
            Some(octets)
        }
        Err(error) => {
            tracing::warn!(%error, "DNS answer cannot be written; the client gets SERVFAIL");
            None
        }
    }
}

/// A header alone, for what could not be read any further.
fn bare(octets: &[u8], rcode: u16, said: Option<&Said>) -> Vec<u8> {
    let mut header = vec![0; wire::HEADER];
    wire::put_u16(&mut header, 0, wire::u16_at(octets, 0).unwrap_or(0));
    let kept = wire::flags(octets) & (flag::OPCODE | flag::RECURSION_DESIRED);
    wire::put_u16(&mut header, 2, flag::RESPONSE | kept | rcode & flag::RCODE);
    if let Some(said) = said {
        wire::put_u16(&mut header, 10, 1);
        said.push(&mut header, 0, None);
    }
    header
}

/// What a client is told that is refused.
fn told(refusal: Refusal) -> (ResponseCode, Note) {
    use ResponseCode::{Refused, ServFail};
    match refusal {
        Refusal::Class => (Refused, Note::new(Note::NOT_SUPPORTED, "only class IN is answered")),
        Refusal::MetaType => {
            (Refused, Note::new(Note::NOT_SUPPORTED, "zone transfers and meta types are not answered"))
        }
        Refusal::RecursionNotDesired => (
            Refused,
            Note::new(Note::PROHIBITED, "outside the domain, and the query does not ask for recursion"),
        ),
        Refusal::ClientNotPermitted => (
            Refused,
            Note::new(Note::PROHIBITED, "names outside the domain are not answered to this address"),
        ),
        Refusal::NoUpstream => (
            Refused,
            Note::new(Note::NO_REACHABLE_AUTHORITY, "outside the domain, and no upstream is configured"),
        ),
        Refusal::TooManyForwards => {
            (ServFail, Note::new(Note::OTHER, "too many queries wait for an upstream; ask again"))
        }
    }
}
