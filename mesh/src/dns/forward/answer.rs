//! An upstream's answer as it is kept, and as it is made out to the client who asks.
//!
//! The octets stay as they came. What belongs to one client alone is put in: its id, its spelling of the name, the time
//! that has passed, and EDNS, which is spoken hop by hop (RFC 6891 section 6.2.3) and so is ours towards the client.

use tokio::time::Instant;

use crate::dns::wire::{self, Question, Scan, flag, rcode};

/// An upstream's answer, its OPT record cut off.
#[derive(Debug)]
pub(in crate::dns) struct Relayed {
    pub(super) message: Vec<u8>,
    pub(super) scan: Scan,
    pub(super) received: Instant,
}

/// What an answer has to be made out to.
#[derive(Debug, Clone)]
pub(in crate::dns) struct Client {
    pub(in crate::dns) id: u16,
    pub(in crate::dns) question: Question,
    /// The flags of its query.
    pub(in crate::dns) flags: u16,
    /// Its DNSSEC OK bit, if it speaks EDNS.
    pub(in crate::dns) edns: Option<bool>,
    /// The most octets that it can take.
    pub(in crate::dns) most: usize,
}

impl Relayed {
    /// Takes a message that answers our question; `None` if it is malformed.
    pub(super) fn new(mut message: Vec<u8>, received: Instant) -> Option<Self> {
        let mut scan = wire::scan(&message)?;
        message.truncate(scan.end);
        if let Some((start, before)) = scan.opt {
            // It nearly always stands last. What follows it is only additional, and may hold pointers into itself.
            message.truncate(start);
            wire::put_u16(&mut message, 10, before);
            scan.ttls.retain(|at| *at < start);
        }
        Some(Self { message, scan, received })
    }

    pub(super) fn rcode(&self) -> u16 {
        wire::flags(&self.message) & flag::RCODE | u16::from(self.scan.extended_rcode) << 4
    }

    pub(super) fn is_truncated(&self) -> bool {
        wire::flags(&self.message) & flag::TRUNCATED != 0
    }

    pub(super) fn has_opt(&self) -> bool {
        self.scan.opt.is_some()
    }

    /// The answer for this client; the flag tells that it is cut short.
    pub(in crate::dns) fn made_out_to(&self, client: &Client, now: Instant) -> (Vec<u8>, bool) {
        let mut message = self.message.clone();
        let age = u32::try_from(now.saturating_duration_since(self.received).as_secs()).unwrap_or(u32::MAX);
        for &at in &self.scan.ttls {
            let ttl = message
                .get(at..at + 4)
                .and_then(|octets| octets.try_into().ok())
                .map_or(0, u32::from_be_bytes);
            wire::put_u32(&mut message, at, ttl.saturating_sub(age));
        }
        let mut flags = wire::flags(&message);
        // From here on it is hearsay; whether signatures were checked is told to those who asked for it (RFC 6840 5.8).
        flags &= !(flag::AUTHORITATIVE | flag::CHECKING_DISABLED | flag::RECURSION_DESIRED);
        if client.edns != Some(true) && client.flags & flag::AUTHENTIC_DATA == 0 {
            flags &= !flag::AUTHENTIC_DATA;
        }
        flags |= flag::RESPONSE | flag::RECURSION_AVAILABLE;
        flags |= client.flags & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        address(&mut message, client, flags);
        let opt = if client.edns.is_some() { 11 } else { 0 };
        let cut = message.len() + opt > client.most;
        if cut {
            message.truncate(wire::HEADER + client.question.as_bytes().len());
            wire::put_u16(&mut message, 2, flags | flag::TRUNCATED);
            [6, 8, 10].into_iter().for_each(|at| wire::put_u16(&mut message, at, 0));
        }
        finish(&mut message, client, None);
        (message, cut)
    }
}

/// SERVFAIL, with the reason for those who speak EDNS.
pub(in crate::dns) fn serv_fail(client: &Client, code: u16, reason: &str) -> Vec<u8> {
    let kept = client.flags & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
    let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | kept | rcode::SERV_FAIL;
    let mut message = wire::query(client.id, flags, &client.question, None);
    finish(&mut message, client, Some((code, reason)));
    message
}

fn address(message: &mut [u8], client: &Client, flags: u16) {
    wire::put_u16(message, 0, client.id);
    wire::put_u16(message, 2, flags);
    let question = client.question.as_bytes();
    if let Some(place) = message.get_mut(wire::HEADER..wire::HEADER + question.len()) {
        place.copy_from_slice(question);
    }
}

fn finish(message: &mut Vec<u8>, client: &Client, error: Option<(u16, &str)>) {
    if let Some(dnssec_ok) = client.edns {
        wire::push_opt(message, dnssec_ok, error);
        let additionals = wire::u16_at(message, 10).unwrap_or(0);
        wire::put_u16(message, 10, additionals.saturating_add(1));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use hickory_proto::op::Message;

    use super::*;

    const QUESTION: &[u8] = b"\x01A\x00\x00\x01\x00\x01";

    fn record(message: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
        message.extend([0xc0, 0x0c]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(data);
    }

    /// An answer with A records of these times to live, a SOA of (ttl, minimum), and an OPT record.
    pub(in super::super) fn relayed(rcode: u16, ttls: &[u32], soa: Option<(u32, u32)>) -> Relayed {
        let question = Question::new(QUESTION).unwrap();
        let flags = flag::RESPONSE | flag::AUTHORITATIVE | flag::AUTHENTIC_DATA | rcode;
        let mut message = wire::query(1, flags, &question, None);
        for ttl in ttls {
            record(&mut message, 1, *ttl, &[192, 0, 2, 1]);
        }
        if let Some((ttl, minimum)) = soa {
            let mut data = vec![0; 18];
            data.extend(minimum.to_be_bytes());
            record(&mut message, 6, ttl, &data);
        }
        wire::push_opt(&mut message, true, Some((0, "of the upstream")));
        wire::put_u16(&mut message, 6, u16::try_from(ttls.len()).unwrap());
        wire::put_u16(&mut message, 8, u16::from(soa.is_some()));
        wire::put_u16(&mut message, 10, 1);
        Relayed::new(message, Instant::now()).unwrap()
    }

    fn client(edns: Option<bool>, most: usize) -> Client {
        let question = Question::new(b"\x01a\x00\x00\x01\x00\x01").unwrap();
        Client { id: 99, question, flags: flag::RECURSION_DESIRED, edns, most }
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_gets_its_id_its_spelling_and_what_is_left_of_the_ttl() {
        let kept = relayed(rcode::NO_ERROR, &[60, 300], None);
        let (octets, cut) = kept.made_out_to(&client(None, 512), Instant::now() + Duration::from_secs(20));
        let message = Message::from_vec(&octets).unwrap();
        assert_eq!((message.metadata.id, cut), (99, false));
        assert_eq!(message.queries[0].name().to_ascii(), "a.");
        assert_eq!(message.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [40, 280]);
        let flags = message.metadata;
        assert!(flags.recursion_available && !flags.authoritative && !flags.authentic_data);
        assert!(message.edns.is_none() && message.additionals.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn edns_is_ours_and_only_for_those_who_speak_it() {
        let kept = relayed(rcode::NO_ERROR, &[60], None);
        let (octets, _) = kept.made_out_to(&client(Some(true), 1232), Instant::now());
        let message = Message::from_vec(&octets).unwrap();
        let edns = message.edns.unwrap();
        assert!(edns.flags().dnssec_ok && edns.options().as_ref().is_empty());
        assert!(message.metadata.authentic_data);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_cut_to_the_question() {
        let kept = relayed(rcode::NO_ERROR, &[60; 40], None);
        let (octets, cut) = kept.made_out_to(&client(Some(false), 512), Instant::now());
        let message = Message::from_vec(&octets).unwrap();
        assert!(cut && message.metadata.truncation && message.answers.is_empty() && message.edns.is_some());
        assert!(!kept.made_out_to(&client(Some(false), 65535), Instant::now()).1);
    }

    #[test]
    fn a_failure_tells_its_reason() {
        let octets = serv_fail(&client(Some(false), 512), 22, "nobody answers");
        let message = Message::from_vec(&octets).unwrap();
        assert_eq!(message.metadata.response_code, hickory_proto::op::ResponseCode::ServFail);
        assert!(octets.windows(14).any(|w| w == b"nobody answers"));
        assert!(message.edns.is_some());
    }
}
