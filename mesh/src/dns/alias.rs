//! An answer that leads out of the zone: our own records that lead there, and behind them what an upstream says of where
//! they lead (RFC 1034 section 4.3.2).
//!
//! The upstream is asked as for any other name, so what it says is shared and kept as that is; only the answer to the client is put
//! together here. The code is that of the end of the way (RFC 6604), and an upstream's failure is one of the whole.

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, Record};

use super::forward::{Client, serv_fail};
use super::wire::Question;
use super::zone::{Note, octets};

/// A client's question, and our part of its answer.
#[derive(Debug)]
pub(super) struct Alias {
    client: Client,
    query: Query,
    records: Vec<Record>,
}

impl Alias {
    /// `records` lead from the name in `query`, which is the client's, to one that an upstream knows.
    pub(super) fn new(client: Client, query: Query, records: Vec<Record>) -> Self {
        Self { client, query, records }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What the upstream is asked: the client's question, of the name that is led to.
    pub(super) fn question(&self, target: &Name) -> Option<Client> {
        let name = octets(target);
        let asked = self.client.question.as_bytes();
        let kind_and_class = asked.get(asked.len().checked_sub(4)?..)?;
        let question = Question::new(&[&name, kind_and_class].concat())?;
        // How much the client takes is seen when it is all together.
        Some(Client { question, most: usize::from(u16::MAX), ..self.client.clone() })
    }

    /// The whole, of the answer to that; the flag tells that it is cut short.
    pub(super) fn complete(&self, answer: &[u8]) -> (Vec<u8>, bool) {
        let failed = |why: &str| (serv_fail(&self.client, Note::NO_REACHABLE_AUTHORITY, why), false);
        let Ok(mut message) = Message::from_vec(answer) else {
            return failed("what an upstream answered cannot be read");
        };
        if !matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return failed("the name that this one leads to cannot be had from an upstream");
        }
        message.queries = vec![self.query.clone()];
        // The first name of the answer is ours, and nobody has signed that it leads there.
        message.metadata.authoritative = true;
        message.metadata.authentic_data = false;
        message.answers.splice(0..0, self.records.iter().cloned());
        // Nobody has to have the additionals (RFC 2181 section 9).
        let ever_less: [fn(&mut Message); 3] = [|_| (), |message| message.additionals.clear(), cut_short];
        for lessen in ever_less {
            lessen(&mut message);
            match message.to_vec() {
                Ok(octets) if octets.len() <= self.client.most => {
                    return (octets, message.metadata.truncation);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "DNS answer of an alias cannot be written; the client gets SERVFAIL");
                    break;
                }
            }
        }
        failed("the answer cannot be written")
    }
}

fn cut_short(message: &mut Message) {
    message.answers.clear();
    message.authorities.clear();
    message.metadata.truncation = true;
}
