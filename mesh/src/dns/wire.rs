//! A DNS message as octets, as far as forwarding needs: who asks what, where the times to live stand, where EDNS stands.
//!
//! A forwarded answer is relayed as it came, so that records this program knows nothing of (signatures, new types)
//! reach the client unharmed. Reads never leave the message and never loop, whatever it says (RFC 1035 section 4.1).

/// Octets of the header.
pub(super) const HEADER: usize = 12;
/// What we can take over UDP without fragments (DNS flag day 2020), asked of upstreams and allowed to clients.
pub(super) const UDP_PAYLOAD: u16 = 1232;
/// Every client can take this much over UDP (RFC 1035 section 4.2.1).
pub(super) const PLAIN_UDP_PAYLOAD: u16 = 512;

/// The most octets of a name (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;
/// Octets of an OPT record without options.
pub(super) const EMPTY_OPT: usize = 11;

/// Types of records.
pub(super) mod kind {
    pub(in crate::dns) const A: u16 = 1;
    pub(in crate::dns) const SOA: u16 = 6;
    pub(in crate::dns) const AAAA: u16 = 28;
    pub(in crate::dns) const SRV: u16 = 33;
    pub(in crate::dns) const OPT: u16 = 41;
    pub(in crate::dns) const ANY: u16 = 255;
}

/// The greatest time to live (RFC 2181 section 8).
pub(super) const LONGEST_TTL: u32 = 0x7fff_ffff;

/// The option that makes messages equally long (RFC 7830).
const OPTION_PADDING: u16 = 12;
/// What queries are padded to a multiple of (RFC 8467 section 4.1).
const PADDED: usize = 128;

/// Flags of octets 2 and 3 of the header.
pub(super) mod flag {
    pub(in crate::dns) const RESPONSE: u16 = 0x8000;
    pub(in crate::dns) const AUTHORITATIVE: u16 = 0x0400;
    pub(in crate::dns) const TRUNCATED: u16 = 0x0200;
    pub(in crate::dns) const RECURSION_DESIRED: u16 = 0x0100;
    pub(in crate::dns) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(in crate::dns) const AUTHENTIC_DATA: u16 = 0x0020;
    pub(in crate::dns) const CHECKING_DISABLED: u16 = 0x0010;
    pub(in crate::dns) const OPCODE: u16 = 0x7800;
    pub(in crate::dns) const RCODE: u16 = 0x000f;
}

/// The response codes that forwarding tells apart.
pub(super) mod rcode {
    pub(in crate::dns) const NO_ERROR: u16 = 0;
    pub(in crate::dns) const FORM_ERR: u16 = 1;
    pub(in crate::dns) const SERV_FAIL: u16 = 2;
    pub(in crate::dns) const NX_DOMAIN: u16 = 3;
    pub(in crate::dns) const NOT_IMP: u16 = 4;
}

/// The octets of one question: name, type and class, without compression.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question(Box<[u8]>);

/// What a whole walk over a response found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Scan {
    /// Where each record's time to live stands.
    pub(super) ttls: Vec<usize>,
    /// The least of them in seconds; `None` without records.
    pub(super) least_ttl: Option<u32>,
    /// How long "there is none" may be kept: the lesser of the SOA's TTL and its last field (RFC 2308 section 5).
    pub(super) negative_ttl: Option<u32>,
    /// Is there a record of the type that was asked for in the answer section?
    pub(super) has_asked_type: bool,
    /// Which records repeat the question's name letter by letter, and do not point to it.
    pub(super) spelt: Vec<usize>,
    /// Where the OPT record begins, and how many additional records stand before it.
    pub(super) opt: Option<(usize, u16)>,
    /// The upper bits of the response code, which OPT carries.
    pub(super) extended_rcode: u8,
    /// Where the last record ends.
    pub(super) end: usize,
}

pub(super) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn put_u16(message: &mut [u8], at: usize, value: u16) {
    if let Some(place) = message.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn put_u32(message: &mut [u8], at: usize, value: u32) {
    if let Some(place) = message.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Octets 2 and 3 of the header; 0 of a message that has none.
pub(super) fn flags(message: &[u8]) -> u16 {
    u16_at(message, 2).unwrap_or(0)
}

/// Where the name that begins at `at` ends. A pointer ends it; where it points is not followed.
pub(super) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2).filter(|end| *end <= message.len()),
            64..=191 => return None,
        }
    }
}

/// Where the name of labels alone ends that begins at `at`; `None`: it points elsewhere, or is longer than names are.
fn plain_name_end(message: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    loop {
        match *message.get(end)? {
            0 if end < at + LONGEST_NAME => return Some(end + 1),
            length @ 1..=63 => end += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// Where a message's only question ends, with its type and class; `None`: it has another number of them, or it is malformed.
pub(super) fn question_end(message: &[u8]) -> Option<usize> {
    let end = plain_name_end(message, HEADER)? + 4;
    (u16_at(message, 4) == Some(1) && end <= message.len()).then_some(end)
}

impl Question {
    /// Takes the octets that a client sent; `None` if they are not exactly one uncompressed question.
    pub(super) fn new(octets: &[u8]) -> Option<Self> {
        let name_end = plain_name_end(octets, 0)?;
        (octets.len() == name_end + 4).then(|| Self(octets.into()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same question for the purpose of finding it again. Length octets are below 64, so they keep their value.
    pub(super) fn lower_case(&self) -> Self {
        let (name, rest) = self.0.split_at(self.0.len() - 4);
        Self(name.to_ascii_lowercase().into_iter().chain(rest.iter().copied()).collect())
    }

    /// The name's octets.
    pub(super) fn name(&self) -> &[u8] {
        &self.0[..self.0.len() - 4]
    }

    /// The type that is asked for.
    pub(super) fn kind(&self) -> u16 {
        u16_at(&self.0, self.0.len() - 4).unwrap_or(0)
    }

    /// The same question with the case of each letter as `upper` says: what whoever forges an answer has to guess as well.
    pub(super) fn mixed_case(&self, mut upper: impl FnMut() -> bool) -> Self {
        let (name, rest) = self.0.split_at(self.0.len() - 4);
        let mix = |octet: &u8| match octet {
            b'a'..=b'z' | b'A'..=b'Z' if upper() => octet.to_ascii_uppercase(),
            other => other.to_ascii_lowercase(),
        };
        Self(name.iter().map(mix).chain(rest.iter().copied()).collect())
    }

    /// Does this message ask, or answer, exactly this? Case is the upstream's to keep or not.
    pub(super) fn is_that_of(&self, message: &[u8]) -> bool {
        u16_at(message, 4) == Some(1)
            && message.get(HEADER..HEADER + self.0.len()).is_some_and(|q| q.eq_ignore_ascii_case(&self.0))
    }

    /// Does it so letter by letter?
    pub(super) fn is_spelt_in(&self, message: &[u8]) -> bool {
        message.get(HEADER..HEADER + self.0.len()) == Some(&*self.0)
    }
}

/// A query of ours: one question, and EDNS unless an upstream does not understand it.
pub(super) fn query(id: u16, flags: u16, question: &Question, edns: Option<bool>) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + question.0.len() + 11);
    for field in [id, flags, 1, 0, 0, u16::from(edns.is_some())] {
        message.extend(field.to_be_bytes());
    }
    message.extend(question.as_bytes());
    if let Some(dnssec_ok) = edns {
        push_opt(&mut message, dnssec_ok);
    }
    message
}

/// Is this an answer to the question that was sent under `id`?
pub(super) fn answers(message: &[u8], id: u16, question: &Question) -> bool {
    let flags = flags(message);
    u16_at(message, 0) == Some(id)
        && flags & flag::RESPONSE != 0
        && flags & flag::OPCODE == 0
        && question.is_that_of(message)
}

/// Appends an OPT record without options (RFC 6891 section 6.1.2).
pub(super) fn push_opt(message: &mut Vec<u8>, dnssec_ok: bool) {
    let [kind, payload] = [kind::OPT, UDP_PAYLOAD].map(u16::to_be_bytes);
    let flags = if dnssec_ok { 0x80 } else { 0 };
    message.extend_from_slice(&[0, kind[0], kind[1], payload[0], payload[1], 0, 0, flags, 0, 0, 0]);
}

/// Makes a query with an OPT record of ours at its end as long as others are, so that its length says little about it.
pub(super) fn pad(query: &mut Vec<u8>) {
    let length = query.len() + 4;
    let padding = length.next_multiple_of(PADDED) - length;
    let (Some(at), Ok(padding)) = (query.len().checked_sub(2), u16::try_from(padding)) else { return };
    put_u16(query, at, padding + 4);
    query.extend(OPTION_PADDING.to_be_bytes());
    query.extend(padding.to_be_bytes());
    query.resize(query.len() + usize::from(padding), 0);
}

/// The text of an extended error, short enough that it never decides whether an answer fits.
pub(super) fn error_text(text: &str) -> &str {
    let end = (0..=text.len().min(120)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Walks over a whole response; `None` if it is malformed.
pub(super) fn scan(message: &[u8]) -> Option<Scan> {
    let [questions, answers, authorities, additionals] =
        [u16_at(message, 4)?, u16_at(message, 6)?, u16_at(message, 8)?, u16_at(message, 10)?];
    let mut at = HEADER;
    for _ in 0..questions {
        at = skip_name(message, at)? + 4;
    }
    let asked = message.get(HEADER..at)?;
    let asked_kind = asked.len().checked_sub(4).and_then(|kind| u16_at(asked, kind));
    let asked_name = asked.get(..asked.len().saturating_sub(4)).filter(|name| name.len() > 1);
    let mut scan = Scan::default();
    let before_additionals = u32::from(answers) + u32::from(authorities);
    for nth in 0..before_additionals + u32::from(additionals) {
        let start = at;
        let fields = skip_name(message, at)?;
        let (of, ttl) = (u16_at(message, fields)?, u32_at(message, fields + 4)?);
        at = fields + 10 + usize::from(u16_at(message, fields + 8)?);
        if at > message.len() {
            return None;
        }
        if of == kind::OPT {
            if scan.opt.is_some() || nth < before_additionals {
                return None;
            }
            scan.opt = Some((start, u16::try_from(nth - before_additionals).ok()?));
            scan.extended_rcode = *message.get(fields + 4)?;
            continue;
        }
        if let Some(name) = asked_name
            && message.get(start..fields).is_some_and(|owner| owner.eq_ignore_ascii_case(name))
        {
            scan.spelt.push(start);
        }
        if nth < u32::from(answers) && asked_kind.is_some_and(|asked| asked == of || asked == kind::ANY) {
            scan.has_asked_type = true;
        }
        // RFC 2181 section 8: a value with its highest bit set is zero.
        let ttl = if ttl > LONGEST_TTL { 0 } else { ttl };
        scan.ttls.push(fields + 4);
        scan.least_ttl = Some(scan.least_ttl.map_or(ttl, |least| least.min(ttl)));
        if of == kind::SOA && nth >= u32::from(answers) && nth < before_additionals {
            scan.negative_ttl = Some(ttl.min(u32_at(message, at.checked_sub(4)?)?));
        }
    }
    scan.end = at;
    (at <= message.len()).then_some(scan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WWW: &[u8] = b"\x03wWw\x07example\x00\x00\x01\x00\x01";

    #[test]
    fn a_question_is_one_uncompressed_name_with_type_and_class() {
        let question = Question::new(WWW).unwrap();
        assert_eq!(&question.lower_case().as_bytes()[..5], b"\x03www\x07");
        assert!(question.is_that_of(&query(7, 0, &question.lower_case(), Some(true))));
        for bad in [b"\xc0\x0c\x00\x01\x00\x01", b"\xc0\x00\x00\x01\x00\x01"] {
            assert_eq!(Question::new(bad), None, "it points elsewhere");
        }
        assert_eq!(Question::new(&WWW[..WWW.len() - 1]), None);
    }

    #[test]
    fn our_query_is_walked_to_its_opt_record() {
        let question = Question::new(WWW).unwrap();
        let mut message = query(7, flag::RECURSION_DESIRED, &question, Some(true));
        let found = scan(&message).unwrap();
        assert_eq!((found.opt, found.end), (Some((HEADER + WWW.len(), 0)), message.len()));
        assert_eq!(found.least_ttl, None);
        pad(&mut message);
        let padded = scan(&message).unwrap();
        assert_eq!((padded.opt, padded.end, message.len()), (found.opt, message.len(), PADDED));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(error_text(&"ä".repeat(100)).len(), 120);
        assert_eq!(error_text(&format!("a{}", "ä".repeat(100))).len(), 119);
    }

    proptest! {
        /// Whatever is mixed: the same question, in a spelling of its own, whose lengths of labels are untouched.
        #[test]
        fn a_question_in_mixed_case_is_the_same_question(labels in proptest::collection::vec("[ -~]{1,63}", 0..4), mix: u64) {
            let mut octets = Vec::new();
            for label in &labels {
                octets.push(u8::try_from(label.len()).unwrap());
                octets.extend(label.as_bytes());
            }
            octets.extend(b"\0\0\x01\0\x01");
            if let Some(question) = Question::new(&octets) {
                let (mut rest, mut letters) = (mix, 0);
                let mixed = question.mixed_case(|| { letters += 1; rest = rest.rotate_left(1); rest & 1 == 1 });
                prop_assert_eq!(mixed.lower_case(), question.lower_case());
                prop_assert!(question.is_that_of(&query(1, 0, &mixed, None)));
                prop_assert!(mixed.is_spelt_in(&query(1, 0, &mixed, None)));
                prop_assert_eq!(letters, question.name().iter().filter(|b| b.is_ascii_alphabetic()).count());
                prop_assert_eq!(question.mixed_case(|| false), question.lower_case());
            }
        }

        #[test]
        fn no_message_makes_the_walk_panic_or_leave_it(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(found) = scan(&octets) {
                prop_assert!(found.end <= octets.len());
                prop_assert!(found.spelt.iter().all(|at| *at < octets.len()));
                prop_assert!(found.ttls.iter().all(|at| at + 4 <= octets.len()));
            }
            let _ = Question::new(&octets);
        }
    }
}
