//! An upstream's answer as it is kept, and as it is made out to the client who asks.
//!
//! The octets stay as they came. What belongs to one client alone is put in: its id, its spelling of the name, the time
//! that has passed, and EDNS, which is spoken hop by hop (RFC 6891 section 6.2.3) and so is ours towards the client.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::dns::guard::Said;
use crate::dns::wire::{self, Question, Scan, flag, rcode};

/// The longest that an answer is kept, whatever it says: a mistake of somebody's is over after this.
const LONGEST: Duration = Duration::from_secs(3600);
/// The longest that "there is none" is kept; RFC 2308 section 5 recommends an upper bound.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(300);
/// How long a client may keep an answer whose time is over (RFC 8767 section 4).
const STALE_TTL: u32 = 30;

/// An upstream's answer, its OPT record cut off.
#[derive(Debug)]
pub(in crate::dns) struct Relayed {
    pub(super) message: Vec<u8>,
    pub(super) scan: Scan,
    pub(super) received: Instant,
}

/// An answer as it is given: the same to many, with what is to be said of it.
#[derive(Debug, Clone)]
pub(in crate::dns) struct Given {
    pub(super) answer: Arc<Relayed>,
    pub(super) remark: Option<Remark>,
}

/// What is to be said of an answer (RFC 8914).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remark {
    /// Its time is over, and nobody has a better one.
    Stale,
    /// It was made here.
    Synthesized,
    /// It was made here, because a route says that there is none.
    Blocked,
}

impl Remark {
    fn error(self) -> (u16, &'static str) {
        match self {
            Self::Stale => (3, "its time is over, and no upstream has a better answer"),
            Self::Synthesized => (29, "such names are answered by this node and not asked of others"),
            Self::Blocked => (15, "a route of this node's configuration says that nobody has such names"),
        }
    }
}

impl Given {
    /// As an upstream has it.
    pub(super) fn plain(answer: Arc<Relayed>) -> Self {
        Self { answer, remark: None }
    }

    /// The answer for this client; the flag tells that it is cut short.
    pub(in crate::dns) fn made_out_to(&self, client: &Client, now: Instant) -> (Vec<u8>, bool) {
        self.answer.made_out_to(client, now, self.remark)
    }
}

/// What an answer has to be made out to.
#[derive(Debug, Clone)]
pub(in crate::dns) struct Client {
    pub(in crate::dns) id: u16,
    pub(in crate::dns) question: Question,
    /// The flags of its query.
    pub(in crate::dns) flags: u16,
    /// What is said back to it, if it speaks EDNS.
    pub(in crate::dns) edns: Option<Said>,
    /// The most octets that it can take.
    pub(in crate::dns) most: usize,
}

impl Client {
    /// Did it set the DNSSEC OK bit?
    pub(in crate::dns) fn wants_signatures(&self) -> bool {
        self.edns.as_ref().is_some_and(|said| said.dnssec_ok)
    }
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
            scan.spelt.retain(|at| *at < start);
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

    /// Is it worth keeping and relaying at once, or may another upstream know more?
    pub(super) fn is_conclusive(&self) -> bool {
        matches!(self.rcode(), rcode::NO_ERROR | rcode::NX_DOMAIN)
    }

    /// Does it say that there is none: no such name, or nothing of the type at the end of the names that it leads over?
    fn is_negative(&self) -> bool {
        self.rcode() == rcode::NX_DOMAIN || !self.scan.has_asked_type
    }

    /// How long it may be kept; `None` if not at all.
    pub(super) fn life(&self) -> Option<Duration> {
        if !self.is_conclusive() || self.is_truncated() {
            return None;
        }
        let (seconds, longest) = if self.is_negative() {
            // Without a SOA nobody said how long (RFC 2308 section 5); with names on the way, not longer than those.
            (self.scan.negative_ttl?.min(self.scan.least_ttl?), LONGEST_NEGATIVE)
        } else {
            (self.scan.least_ttl?, LONGEST)
        };
        Some(Duration::from_secs(seconds.into()).min(longest)).filter(|life| !life.is_zero())
    }

    /// What it takes of memory, about.
    pub(super) fn size(&self) -> usize {
        let places = self.scan.ttls.capacity() + self.scan.spelt.capacity();
        size_of::<Self>() + self.message.capacity() + places * size_of::<usize>()
    }

    /// The answer for this client; the flag tells that it is cut short.
    fn made_out_to(&self, client: &Client, now: Instant, remark: Option<Remark>) -> (Vec<u8>, bool) {
        let mut message = self.message.clone();
        let age = u32::try_from(now.saturating_duration_since(self.received).as_secs()).unwrap_or(u32::MAX);
        // Whoever keeps "there is none" for as long as its SOA's own time is to end with us.
        let most = if self.is_negative() { self.scan.negative_ttl.unwrap_or(u32::MAX) } else { u32::MAX };
        for &at in &self.scan.ttls {
            let ttl = wire::u32_at(&message, at).filter(|ttl| *ttl <= wire::LONGEST_TTL).unwrap_or(0);
            let left = if remark == Some(Remark::Stale) {
                ttl.min(STALE_TTL)
            } else {
                ttl.min(most).saturating_sub(age)
            };
            wire::put_u32(&mut message, at, left);
        }
        let name = client.question.name();
        for &at in &self.scan.spelt {
            if let Some(place) = message.get_mut(at..at + name.len()) {
                place.copy_from_slice(name);
            }
        }
        let mut flags = wire::flags(&message);
        // From here on it is hearsay; whether signatures were checked is told to those who asked for it (RFC 6840 5.8).
        flags &= !(flag::AUTHORITATIVE | flag::CHECKING_DISABLED | flag::RECURSION_DESIRED);
        if !client.wants_signatures() && client.flags & flag::AUTHENTIC_DATA == 0 {
            flags &= !flag::AUTHENTIC_DATA;
        }
        flags |= flag::RESPONSE | flag::RECURSION_AVAILABLE;
        flags |= client.flags & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        address(&mut message, client, flags);
        // A remark is for whoever looks: it does not decide whether the answer fits.
        let length = message.len() + client.edns.as_ref().map_or(0, Said::length);
        let cut = length > client.most;
        let error = remark.map(Remark::error);
        let error = error.filter(|(_, text)| cut || length + 6 + text.len() <= client.most);
        if cut {
            message.truncate(wire::HEADER + client.question.as_bytes().len());
            wire::put_u16(&mut message, 2, flags | flag::TRUNCATED);
            [6, 8, 10].into_iter().for_each(|at| wire::put_u16(&mut message, at, 0));
        }
        finish(&mut message, client, error);
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
    if let Some(said) = &client.edns {
        said.push(message, 0, error);
        let additionals = wire::u16_at(message, 10).unwrap_or(0);
        wire::put_u16(message, 10, additionals.saturating_add(1));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hickory_proto::op::Message;
    use proptest::prelude::*;

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
        Said { dnssec_ok: true, ..Said::default() }.push(&mut message, 0, Some((0, "of the upstream")));
        wire::put_u16(&mut message, 6, u16::try_from(ttls.len()).unwrap());
        wire::put_u16(&mut message, 8, u16::from(soa.is_some()));
        wire::put_u16(&mut message, 10, 1);
        Relayed::new(message, Instant::now()).unwrap()
    }

    fn client(edns: Option<bool>, most: usize) -> Client {
        let question = Question::new(b"\x01a\x00\x00\x01\x00\x01").unwrap();
        let edns = edns.map(|dnssec_ok| Said { dnssec_ok, ..Said::default() });
        Client { id: 99, question, flags: flag::RECURSION_DESIRED, edns, most }
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_gets_its_id_its_spelling_and_what_is_left_of_the_ttl() {
        let kept = relayed(rcode::NO_ERROR, &[60, 300], None);
        let later = Instant::now() + Duration::from_secs(20);
        let (octets, cut) = kept.made_out_to(&client(None, 512), later, None);
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
        let (octets, _) = kept.made_out_to(&client(Some(true), 1232), Instant::now(), None);
        let message = Message::from_vec(&octets).unwrap();
        let edns = message.edns.unwrap();
        assert!(edns.flags().dnssec_ok && edns.options().as_ref().is_empty());
        assert!(message.metadata.authentic_data);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_cut_to_the_question() {
        let kept = relayed(rcode::NO_ERROR, &[60; 40], None);
        let (octets, cut) = kept.made_out_to(&client(Some(false), 512), Instant::now(), None);
        let message = Message::from_vec(&octets).unwrap();
        assert!(cut && message.metadata.truncation && message.answers.is_empty() && message.edns.is_some());
        assert!(!kept.made_out_to(&client(Some(false), 65535), Instant::now(), None).1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_past_its_time_says_so_and_is_soon_asked_for_again() {
        let kept = relayed(rcode::NO_ERROR, &[60, 7], None);
        let later = Instant::now() + Duration::from_secs(500);
        let (octets, _) = kept.made_out_to(&client(Some(false), 512), later, Some(Remark::Stale));
        let message = Message::from_vec(&octets).unwrap();
        assert_eq!(message.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [30, 7]);
        assert!(octets.windows(16).any(|w| w == b"its time is over"));
        // Where the remark would not fit, it is the remark that is left out.
        let most = octets.len() - 1;
        let (octets, cut) = kept.made_out_to(&client(Some(false), most), later, Some(Remark::Stale));
        assert!(!cut && Message::from_vec(&octets).unwrap().answers.len() == 2);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_none_ends_with_the_soa_s_last_field_for_the_client_too() {
        let kept = relayed(rcode::NX_DOMAIN, &[], Some((3600, 60)));
        let later = Instant::now() + Duration::from_secs(20);
        let message = Message::from_vec(&kept.made_out_to(&client(None, 512), later, None).0).unwrap();
        assert_eq!(message.authorities[0].ttl, 40);
        assert_eq!(kept.life(), Some(Duration::from_secs(60)));
    }

    #[test]
    fn names_that_lead_to_nothing_are_kept_as_nothing_is() {
        let question = Question::new(b"\x01A\x00\x00\x1c\x00\x01").unwrap();
        let with = |rcode: u16, kind: u16, soa: bool| {
            let mut message = wire::query(1, flag::RESPONSE | rcode, &question, None);
            record(&mut message, kind, 300, b"\x01b\x00");
            if soa {
                let mut data = vec![0; 18];
                data.extend(9_u32.to_be_bytes());
                record(&mut message, 6, 3600, &data);
            }
            wire::put_u16(&mut message, 6, 1);
            wire::put_u16(&mut message, 8, u16::from(soa));
            Relayed::new(message, Instant::now()).unwrap().life().map(|life| life.as_secs())
        };
        let (cname, aaaa) = (5, 28);
        assert_eq!(with(rcode::NO_ERROR, cname, true), Some(9));
        assert_eq!(with(rcode::NX_DOMAIN, cname, true), Some(9));
        assert_eq!(with(rcode::NO_ERROR, cname, false), None);
        assert_eq!(with(rcode::NO_ERROR, aaaa, true), Some(300));
    }

    #[test]
    fn a_name_that_is_written_out_is_given_in_the_client_s_spelling() {
        let question = Question::new(QUESTION).unwrap();
        let mut message = wire::query(1, flag::RESPONSE, &question, None);
        message.extend(b"\x01A\x00\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01");
        wire::put_u16(&mut message, 6, 1);
        let kept = Relayed::new(message, Instant::now()).unwrap();
        let (octets, _) = kept.made_out_to(&client(None, 512), Instant::now(), None);
        assert_eq!(Message::from_vec(&octets).unwrap().answers[0].name.to_ascii(), "a.");
    }

    proptest! {
        /// Whatever an upstream sends is refused or made out: never longer than the client takes, never living longer than before.
        #[test]
        fn whatever_comes_from_upstream_is_made_out_within_bounds(
            rest in proptest::collection::vec(any::<u8>(), 0..250), counts: [u8; 3], flags: u16, age in 0..100_000_u64,
            edns: Option<bool>, stale: bool, most in 120..200_usize,
        ) {
            let mut message = wire::query(1, flags, &Question::new(QUESTION).unwrap(), None);
            for (nth, count) in counts.iter().enumerate() {
                wire::put_u16(&mut message, 6 + 2 * nth, u16::from(count % 4));
            }
            message.extend(&rest);
            let now = Instant::now();
            if let Some(kept) = Relayed::new(message, now) {
                let later = now + Duration::from_secs(age);
                let remark = stale.then_some(Remark::Stale);
                let (octets, _) = kept.made_out_to(&client(edns, most), later, remark);
                prop_assert!(octets.len() <= most);
                let found = wire::scan(&octets).expect("what was well-formed still is");
                prop_assert_eq!(found.opt.is_some(), edns.is_some());
                for (before, after) in kept.scan.ttls.iter().zip(&found.ttls) {
                    let ttl = |message: &[u8], at| wire::u32_at(message, at).unwrap();
                    let (before, after) = (ttl(&kept.message, *before), ttl(&octets, *after));
                    if before > wire::LONGEST_TTL {
                        prop_assert_eq!(after, 0);
                    } else if stale {
                        prop_assert!(after <= 30 && after <= before);
                    } else {
                        prop_assert!(u64::from(after) <= u64::from(before).saturating_sub(age));
                    }
                }
            }
        }
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
