//! One question: from hickory-server's request to its response.

use std::time::Instant;

use async_trait::async_trait;
use hickory_proto::op::{Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::HINFO;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use std::sync::Arc;

use super::Metrics;
use super::cache::Question;
use super::forward::{Failure, Forwarder};
use super::zone::Zone;

/// What fits one packet anywhere (DNS flag day 2020); what a client says beyond it is not believed.
const PAYLOAD: u16 = 1232;

/// Answers questions from the zone, or from upstream.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) zone: Arc<Zone>,
    pub(super) forwarder: Forwarder,
    pub(super) metrics: Metrics,
}

/// A response, whoever made it.
#[derive(Debug, Default)]
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }

    fn relayed(message: Message) -> Self {
        Self {
            code: message.metadata.response_code,
            authoritative: false,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut responder: R,
    ) -> ResponseInfo {
        let started = Instant::now();
        let reply = self.reply(request).await;
        self.metrics.answer.observe(started.elapsed().as_secs_f64());
        let transport = if request.protocol() == Protocol::Udp { "udp" } else { "tcp" };
        self.metrics.queries.with_label_values(&[transport, code_label(reply.code)]).inc();

        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, PAYLOAD))
                .set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &reply.answers, &reply.authorities, [], &reply.additionals);
        match responder.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                self.metrics.unsent.inc();
                tracing::debug!(client = %request.src(), %error, "an answer could not be sent");
                let mut failed =
                    Metadata::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
                failed.response_code = ResponseCode::ServFail;
                Header { metadata: failed, counts: HeaderCounts::default() }.into()
            }
        }
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::code(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return Reply::code(ResponseCode::FormErr);
        };
        let (name, kind) = (Name::from(info.query.name().clone()), info.query.query_type());
        if info.query.query_class() != DNSClass::IN {
            return Reply::code(ResponseCode::Refused);
        }
        if self.zone.holds(&name) {
            // The question's own spelling comes back in the question section; records carry it in lower case.
            return self.own(&name, kind);
        }
        let dnssec_ok = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        if !request.metadata.recursion_desired {
            return Reply::code(ResponseCode::Refused);
        }
        self.forward(&Question { name, kind, dnssec_ok }).await
    }

    fn own(&self, name: &Name, kind: RecordType) -> Reply {
        if kind == RecordType::ANY && self.zone.answer(name, RecordType::A).code == ResponseCode::NoError {
            // RFC 8482 section 4.2: one record instead of all.
            let hinfo = HINFO::new("RFC8482".to_owned(), String::new());
            let record = Record::from_rdata(name.clone(), 3600, RData::HINFO(hinfo));
            return Reply { authoritative: true, answers: vec![record], ..Reply::default() };
        }
        let answer = self.zone.answer(name, kind);
        Reply {
            code: answer.code,
            authoritative: answer.code != ResponseCode::ServFail,
            answers: answer.answers,
            authorities: answer.authority,
            additionals: answer.additionals,
        }
    }

    async fn forward(&self, question: &Question) -> Reply {
        let result = self.forwarder.ask(question).await;
        let word = match &result {
            Ok((_, true)) => "cached",
            Ok((_, false)) => "answered",
            Err(failure) => failure.as_str(),
        };
        self.metrics.forwarded.with_label_values(&[word]).inc();
        match result {
            Ok((message, _)) => Reply::relayed(message),
            Err(Failure::NoUpstream) => Reply::code(ResponseCode::Refused),
            Err(failure) => {
                tracing::debug!(name = %question.name, error = %failure, "a question is not answered");
                Reply::code(ResponseCode::ServFail)
            }
        }
    }
}

fn code_label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "noerror",
        ResponseCode::NXDomain => "nxdomain",
        ResponseCode::Refused => "refused",
        ResponseCode::ServFail => "servfail",
        ResponseCode::FormErr => "formerr",
        ResponseCode::NotImp => "notimp",
        _ => "other",
    }
}
