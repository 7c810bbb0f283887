//! From the octets of a query to those of its answer: what is refused, what the zone answers, what is forwarded.
//!
//! Messages are read by `hickory_server`'s request and written by its response, names in the client's spelling (0x20).
//! Before it reads, the header is checked: hickory reserves memory for as many records as the header claims.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{Edns, Metadata, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::MessageResponseBuilder;

use super::config::{Config, RecursionFor, Upstreams};
use super::forward::{Client, Forwarder, Given, Start, Waiting, serv_fail};
use super::metrics::{Dropped, Metrics, Path, Refusal, Transport, Verdict};
use super::wire::{self, Question, flag, rcode};
use super::zone::{Answer, Kind, Note, Zone};

/// OPT, TSIG, a cookie's room to grow: more than this no query needs in its additional section.
const MOST_ADDITIONALS: u16 = 4;
/// The extended error's option code (RFC 8914 section 2).
const EXTENDED_ERROR: u16 = 15;

/// Answers messages. One for all sockets.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) zone: Arc<Zone>,
    pub(super) forwarder: Forwarder,
    pub(super) metrics: Arc<Metrics>,
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
    Later(Later),
    /// Nothing is to be sent.
    Drop(Dropped),
}

/// An answer that an upstream has to give.
pub(super) struct Later {
    waiting: Waiting,
    client: Client,
    began: Instant,
    metrics: Arc<Metrics>,
}

impl Later {
    /// The answer's octets. Dropping the future gives the answer up.
    pub(super) async fn wait(self) -> Vec<u8> {
        let Self { waiting, client, began, metrics } = self;
        let octets = match waiting.told().await {
            Ok(given) => make_out(&given, &client, &metrics),
            Err(why) => serv_fail(&client, Note::NO_REACHABLE_AUTHORITY, &why),
        };
        metrics.took(Path::Upstream, began.elapsed());
        octets
    }
}

fn make_out(given: &Given, client: &Client, metrics: &Metrics) -> Vec<u8> {
    let (octets, cut) = given.made_out_to(client, tokio::time::Instant::now());
    if cut {
        metrics.truncated.inc();
    }
    octets
}

impl Handler {
    pub(super) fn new(config: &Config, zone: Arc<Zone>, forwarder: Forwarder, metrics: Arc<Metrics>) -> Self {
        Self {
            zone,
            forwarder,
            metrics,
            recursion: config.recursion,
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
        if wire::flags(octets) & flag::OPCODE != 0 {
            self.metrics.query(transport, Verdict::NotImplemented);
            return Reply::Now(bare(octets, rcode::NOT_IMP));
        }
        let protocol = match transport {
            Transport::Udp => Protocol::Udp,
            // Of the others it only counts that their answers are as long as they like.
            Transport::Tcp | Transport::Tls | Transport::Https => Protocol::Tcp,
        };
        let request = match counts {
            [1, 0, 0, additionals] if additionals <= MOST_ADDITIONALS => {
                Request::from_bytes(octets.to_vec(), client, protocol).ok()
            }
            _ => None,
        };
        let Some(request) = request else {
            self.metrics.query(transport, Verdict::FormErr);
            return Reply::Now(bare(octets, rcode::FORM_ERR));
        };
        self.decide(&request, transport, began)
    }

    fn decide(&self, request: &Request, transport: Transport, began: Instant) -> Reply {
        let [query] = request.queries.queries() else {
            return Reply::Now(bare(request.as_slice(), rcode::FORM_ERR));
        };
        if request.version() > 0 {
            return self.own(
                request,
                transport,
                Verdict::BadVersion,
                ResponseCode::BADVERS,
                &Answer::default(),
            );
        }
        let (kind, class) = (query.query_type(), query.query_class());
        if class != DNSClass::IN {
            return self.refuse(request, transport, Refusal::Class);
        }
        // RFC 6895 section 3.1: 128 to 255 ask for something else than data; OPT and 0 are no question.
        let code = u16::from(kind);
        if code == 0 || kind == RecordType::OPT || (128..255).contains(&code) {
            return self.refuse(request, transport, Refusal::MetaType);
        }
        let name = query.original().name();
        if !self.zone.covers(name) {
            return self.forward(request, transport, began);
        }
        let most = match transport {
            Transport::Udp => self.most_udp,
            Transport::Tcp | Transport::Tls | Transport::Https => self.most_tcp,
        };
        let answer = self.zone.answer(name, kind, most, &mut rand::rng());
        let (verdict, code) = match answer.kind {
            Kind::Records => (Verdict::Answered, ResponseCode::NoError),
            Kind::NoData => (Verdict::NoData, ResponseCode::NoError),
            Kind::NxDomain => (Verdict::NxDomain, ResponseCode::NXDomain),
            Kind::NotReady => (Verdict::NotReady, ResponseCode::ServFail),
        };
        if answer.stale {
            self.metrics.stale_answers.inc();
        }
        let reply = self.own(request, transport, verdict, code, &answer);
        self.metrics.took(Path::Zone, began.elapsed());
        reply
    }

    fn forward(&self, request: &Request, transport: Transport, began: Instant) -> Reply {
        if !self.forwards {
            return self.refuse(request, transport, Refusal::NoUpstream);
        }
        if !self.recursion.permits(request.src().ip()) {
            return self.refuse(request, transport, Refusal::ClientNotPermitted);
        }
        if !request.metadata.recursion_desired {
            return self.refuse(request, transport, Refusal::RecursionNotDesired);
        }
        let Some(question) = Question::new(request.queries.as_bytes()) else {
            self.metrics.query(transport, Verdict::FormErr);
            return Reply::Now(bare(request.as_slice(), rcode::FORM_ERR));
        };
        let client = Client {
            id: request.metadata.id,
            question,
            flags: wire::flags(request.as_slice()),
            edns: request.edns.as_ref().map(|edns| edns.flags().dnssec_ok),
            most: usize::from(largest(request, transport)),
        };
        match self.forwarder.start(&client) {
            Start::Known(given) => {
                self.metrics.query(transport, Verdict::Forwarded);
                let octets = make_out(&given, &client, &self.metrics);
                self.metrics.took(Path::Cache, began.elapsed());
                Reply::Now(octets)
            }
            Start::Waiting(waiting) => {
                self.metrics.query(transport, Verdict::Forwarded);
                Reply::Later(Later { waiting, client, began, metrics: Arc::clone(&self.metrics) })
            }
            Start::Failed(why) => {
                self.metrics.query(transport, Verdict::Forwarded);
                Reply::Now(serv_fail(&client, Note::NO_REACHABLE_AUTHORITY, &why))
            }
            Start::Refused(refusal) => self.refuse(request, transport, refusal),
        }
    }

    fn refuse(&self, request: &Request, transport: Transport, refusal: Refusal) -> Reply {
        self.metrics.refused.inc(refusal);
        let (code, note) = told(refusal);
        let answer = Answer { note: Some(note), ..Answer::default() };
        self.own(request, transport, Verdict::Refused, code, &answer)
    }

    /// Writes an answer of our own.
    fn own(
        &self,
        request: &Request,
        transport: Transport,
        verdict: Verdict,
        code: ResponseCode,
        answer: &Answer,
    ) -> Reply {
        self.metrics.query(transport, verdict);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = code;
        metadata.authoritative = matches!(verdict, Verdict::Answered | Verdict::NoData | Verdict::NxDomain);
        metadata.recursion_available = self.forwards && self.recursion.permits(request.src().ip());
        let edns = request.edns.as_ref().map(|asked| edns(asked, answer.note.as_ref()));
        let Some(octets) = write(request, metadata, answer, edns.as_ref(), largest(request, transport))
        else {
            return Reply::Now(bare(request.as_slice(), rcode::SERV_FAIL));
        };
        if wire::flags(&octets) & flag::TRUNCATED != 0 {
            self.metrics.truncated.inc();
        }
        Reply::Now(octets)
    }
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

/// The most octets that an answer may have.
fn largest(request: &Request, transport: Transport) -> u16 {
    match (transport, &request.edns) {
        (Transport::Tcp | Transport::Tls | Transport::Https, _) => u16::MAX,
        (Transport::Udp, None) => wire::PLAIN_UDP_PAYLOAD,
        // RFC 6891 section 6.2.3: less than 512 means 512.
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(wire::PLAIN_UDP_PAYLOAD, wire::UDP_PAYLOAD),
    }
}

/// Our side of EDNS, with the reason of the answer for a human who looks.
fn edns(asked: &Edns, note: Option<&Note>) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(wire::UDP_PAYLOAD);
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    if let Some(note) = note {
        let mut data = note.code.to_be_bytes().to_vec();
        data.extend(wire::error_text(&note.text).as_bytes());
        edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
    }
    edns
}

/// Writes the most that fits: everything; without the additionals, which nobody has to have (RFC 2181 section 9); the
/// question alone, marked as cut short.
fn write(
    request: &Request,
    mut metadata: Metadata,
    answer: &Answer,
    edns: Option<&Edns>,
    most: u16,
) -> Option<Vec<u8>> {
    let emit = |metadata: Metadata, answers: &[Record], authority: &[Record], additionals: &[Record]| {
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = edns {
            builder.edns(edns);
        }
        let mut octets = Vec::with_capacity(usize::from(wire::PLAIN_UDP_PAYLOAD));
        let mut encoder = BinEncoder::new(&mut octets);
        encoder.set_max_size(most);
        let response = builder.build(metadata, answers, authority, &[], additionals);
        match response.destructive_emit(&mut encoder) {
            Ok(_) => Some(octets),
            Err(error) => {
                tracing::warn!(%error, "DNS answer cannot be written; the client gets SERVFAIL");
                None
            }
        }
    };
    let whole = |octets: &Vec<u8>| wire::flags(octets) & flag::TRUNCATED == 0;
    let first = emit(metadata, &answer.answers, &answer.authority, &answer.additionals)?;
    if whole(&first) {
        return Some(first);
    }
    let second = emit(metadata, &answer.answers, &answer.authority, &[])?;
    if whole(&second) {
        return Some(second);
    }
    metadata.truncation = true;
    emit(metadata, &[], &[], &[])
}

/// A header alone, for what could not be read any further.
fn bare(octets: &[u8], rcode: u16) -> Vec<u8> {
    let mut header = vec![0; wire::HEADER];
    wire::put_u16(&mut header, 0, wire::u16_at(octets, 0).unwrap_or(0));
    let kept = wire::flags(octets) & (flag::OPCODE | flag::RECURSION_DESIRED);
    wire::put_u16(&mut header, 2, flag::RESPONSE | kept | rcode & flag::RCODE);
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
            Note::new(Note::PROHIBITED, "names outside the domain are answered to private addresses only"),
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
