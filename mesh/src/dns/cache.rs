//! Answers of upstream servers, kept for as long as they allow.

use std::collections::HashMap;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::time::Instant;

/// Answers that are kept. A node asks for far fewer names; beyond it, what expires first makes room.
const ENTRIES: usize = 4096;
/// Whatever the upstream says: a changed name is seen within this.
const LONGEST: Duration = Duration::from_secs(300);
/// A negative answer without an SOA says nothing about its age (RFC 2308 section 5 would not keep it at all).
const NEGATIVE: Duration = Duration::from_secs(1);

/// What a cached answer answers. DNSSEC clients are answered differently, so the bit is a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: RecordType,
    pub(super) dnssec_ok: bool,
}

#[derive(Debug)]
struct Kept {
    message: Message,
    stored: Instant,
    expires: Instant,
}

/// A bounded map of answers.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<Question, Kept>);

impl Cache {
    /// The answer, its TTLs reduced by the time that it was kept.
    pub(super) fn get(&mut self, question: &Question) -> Option<Message> {
        let now = Instant::now();
        let kept = self.0.get(question)?;
        if kept.expires <= now {
            self.0.remove(question);
            return None;
        }
        let age = u32::try_from(now.duration_since(kept.stored).as_secs()).unwrap_or(u32::MAX);
        let mut message = kept.message.clone();
        for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
            for record in section {
                record.ttl = record.ttl.saturating_sub(age);
            }
        }
        Some(message)
    }

    /// Keeps an answer, if it may be kept.
    pub(super) fn put(&mut self, question: Question, message: &Message) {
        let Some(lifetime) = lifetime(message) else { return };
        let stored = Instant::now();
        if self.0.len() >= ENTRIES && !self.0.contains_key(&question) {
            self.make_room(stored);
        }
        self.0.insert(question, Kept { message: message.clone(), stored, expires: stored + lifetime });
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, kept| kept.expires > now);
        if self.0.len() >= ENTRIES
            && let Some(first) = self.0.iter().min_by_key(|(_, kept)| kept.expires).map(|(q, _)| q.clone())
        {
            self.0.remove(&first);
        }
    }
}

/// How long an answer may be kept; `None`: not at all.
fn lifetime(message: &Message) -> Option<Duration> {
    if message.metadata.truncation
        || !matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
    {
        return None;
    }
    let seconds = if message.answers.is_empty() {
        // RFC 2308 section 5: the lesser of the SOA's own TTL and its minimum.
        message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        })
    } else {
        message.answers.iter().map(|record| record.ttl).min()
    };
    let lifetime = seconds.map_or(NEGATIVE, |seconds| Duration::from_secs(seconds.into())).min(LONGEST);
    (!lifetime.is_zero()).then_some(lifetime)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::A;

    use super::*;

    fn question(name: &str) -> Question {
        Question { name: Name::from_str(name).unwrap(), kind: RecordType::A, dnssec_ok: false }
    }

    fn answer(ttl: u32) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.add_answer(Record::from_rdata(
            Name::from_str("x.").unwrap(),
            ttl,
            RData::A(A::new(192, 0, 2, 1)),
        ));
        message
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ages_and_expires() {
        let mut cache = Cache::default();
        cache.put(question("x."), &answer(10));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(cache.get(&question("x.")).unwrap().answers[0].ttl, 6);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(cache.get(&question("x.")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_is_bounded() {
        let mut cache = Cache::default();
        for n in 0..ENTRIES + 50 {
            cache.put(question(&format!("x{n}.")), &answer(10));
        }
        assert_eq!(cache.0.len(), ENTRIES);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_ttl_zero_are_not_kept() {
        let mut cache = Cache::default();
        cache.put(question("x."), &answer(0));
        let mut failed = answer(10);
        failed.metadata.response_code = ResponseCode::ServFail;
        cache.put(question("x."), &failed);
        assert!(cache.get(&question("x.")).is_none());
    }
}
