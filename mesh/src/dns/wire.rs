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

/// Octets of an OPT record without options.
pub(super) const EMPTY_OPT: usize = 11;

/// Types of records.
pub(super) mod kind {
    pub(in crate::dns) const A: u16 = 1;
    pub(in crate::dns) const SOA: u16 = 6;
    pub(in crate::dns) const AAAA: u16 = 28;
    pub(in crate::dns) const SRV: u16 = 33;
    pub(in crate::dns) const OPT: u16 = 41;
}

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
    /// Records in the answer section.
    pub(super) answers: u16,
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

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
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
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2).filter(|end| *end <= message.len()),
            64..=191 => return None,
        }
    }
}

impl Question {
    /// Takes the octets that a client sent; `None` if they are not exactly one uncompressed question.
    pub(super) fn new(octets: &[u8]) -> Option<Self> {
        let name_end = skip_name(octets, 0)?;
        let compressed = octets.get(name_end.checked_sub(1)?) != Some(&0);
        (!compressed && name_end <= 255 && octets.len() == name_end + 4).then(|| Self(octets.into()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same question for the purpose of finding it again. Length octets are below 64, so they keep their value.
    pub(super) fn lower_case(&self) -> Self {
        let (name, rest) = self.0.split_at(self.0.len() - 4);
        Self(name.to_ascii_lowercase().into_iter().chain(rest.iter().copied()).collect())
    }

    /// Does this message ask, or answer, exactly this? Case is the upstream's to keep or not.
    pub(super) fn is_that_of(&self, message: &[u8]) -> bool {
        u16_at(message, 4) == Some(1)
            && message.get(HEADER..HEADER + self.0.len()).is_some_and(|q| q.eq_ignore_ascii_case(&self.0))
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
        push_opt(&mut message, dnssec_ok, None);
    }
    message
}

/// Appends an OPT record (RFC 6891 section 6.1.2), with an extended error (RFC 8914) if there is one to tell.
pub(super) fn push_opt(message: &mut Vec<u8>, dnssec_ok: bool, error: Option<(u16, &str)>) {
    message.push(0);
    message.extend(kind::OPT.to_be_bytes());
    message.extend(UDP_PAYLOAD.to_be_bytes());
    message.extend([0, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
    let mut data = Vec::new();
    if let Some((code, text)) = error {
        let text = error_text(text);
        let length = u16::try_from(text.len() + 2).unwrap_or(2);
        for field in [15, length, code] {
            data.extend(field.to_be_bytes());
        }
        data.extend(text.as_bytes());
    }
    message.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
    message.extend(data);
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
    let mut scan = Scan { answers, ..Scan::default() };
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
        // RFC 2181 section 8: a value with its highest bit set is zero.
        let ttl = if ttl > 0x7fff_ffff { 0 } else { ttl };
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
        assert_eq!(Question::new(b"\xc0\x0c\x00\x01\x00\x01"), None);
        assert_eq!(Question::new(&WWW[..WWW.len() - 1]), None);
    }

    #[test]
    fn our_query_is_walked_to_its_opt_record() {
        let question = Question::new(WWW).unwrap();
        let message = query(7, flag::RECURSION_DESIRED, &question, Some(true));
        let found = scan(&message).unwrap();
        assert_eq!((found.opt, found.end), (Some((HEADER + WWW.len(), 0)), message.len()));
        assert_eq!(found.least_ttl, None);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(error_text(&"ä".repeat(100)).len(), 120);
        assert_eq!(error_text(&format!("a{}", "ä".repeat(100))).len(), 119);
    }

    proptest! {
        #[test]
        fn no_message_makes_the_walk_panic_or_leave_it(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(found) = scan(&octets) {
                prop_assert!(found.end <= octets.len());
                prop_assert!(found.ttls.iter().all(|at| at + 4 <= octets.len()));
            }
            let _ = Question::new(&octets);
        }
    }
}
