//! What an answer of ours says of itself: who asked for what, and what came of it. Read from its octets, whichever way it was made.

use std::fmt::Write;

use crate::dns::metrics::{AskedType, Code};
use crate::dns::wire::{self, flag, kind, rcode};

/// The octets of one.
#[derive(Debug, Clone, Copy)]
pub(in crate::dns) struct Answer<'a> {
    octets: &'a [u8],
    /// Where the name ends that was asked for; `None` where the query could not be read.
    name_end: Option<usize>,
}

impl<'a> Answer<'a> {
    /// One whose question's name ends there.
    pub(in crate::dns) fn to(octets: &'a [u8], name_end: usize) -> Self {
        Self { octets, name_end: Some(name_end) }
    }

    pub(in crate::dns) fn read(octets: &'a [u8]) -> Self {
        Self { octets, name_end: wire::question_end(octets).map(|end| end - 4) }
    }

    /// The name that was asked for and the type.
    pub(super) fn question(self) -> Option<(&'a [u8], u16)> {
        let end = self.name_end?;
        Some((self.octets.get(wire::HEADER..end)?, wire::u16_at(self.octets, end)?))
    }

    pub(super) fn asked_type(self) -> AskedType {
        match self.name_end.and_then(|end| wire::u16_at(self.octets, end)) {
            Some(kind::A) => AskedType::A,
            Some(2) => AskedType::Ns,
            Some(kind::SOA) => AskedType::Soa,
            Some(12) => AskedType::Ptr,
            Some(16) => AskedType::Txt,
            Some(kind::AAAA) => AskedType::Aaaa,
            Some(kind::SRV) => AskedType::Srv,
            Some(65) => AskedType::Https,
            Some(kind::ANY) => AskedType::Any,
            _ => AskedType::Other,
        }
    }

    pub(super) fn code(self) -> Code {
        // Without records it may say more than fits its header.
        let is_bare = wire::u32_at(self.octets, 6) == Some(0) && wire::u16_at(self.octets, 10) != Some(0);
        let upper = if is_bare { wire::scan(self.octets).map_or(0, |scan| scan.extended_rcode) } else { 0 };
        match u16::from(upper) << 4 | wire::flags(self.octets) & flag::RCODE {
            rcode::NO_ERROR => Code::NoError,
            rcode::FORM_ERR => Code::FormErr,
            rcode::SERV_FAIL => Code::ServFail,
            rcode::NX_DOMAIN => Code::NxDomain,
            rcode::NOT_IMP => Code::NotImp,
            5 => Code::Refused,
            16 => Code::BadVers,
            _ => Code::Other,
        }
    }

    /// Where it is from, if no upstream was asked.
    pub(super) fn road(self) -> &'static str {
        let is_own = wire::flags(self.octets) & flag::AUTHORITATIVE != 0;
        match (is_own, self.code()) {
            (true, _) => "zone",
            (false, Code::NoError | Code::NxDomain) => "cache",
            (false, _) => "none",
        }
    }
}

/// A name as it is written (RFC 1035 section 5.1), in lower case.
pub(super) fn written(name: &[u8]) -> String {
    let (mut text, mut rest) = (String::with_capacity(name.len()), name);
    while let Some((&length, after)) = rest.split_first() {
        let Some((label, after)) = after.split_at_checked(usize::from(length)).filter(|_| length > 0) else {
            break;
        };
        for octet in label.to_ascii_lowercase() {
            match octet {
                b'.' | b'\\' => text.extend(['\\', char::from(octet)]),
                b'!'..=b'~' => text.push(char::from(octet)),
                // Never fails on a text.
                _ => drop(write!(text, "\\{octet:03}")),
            }
        }
        text.push('.');
        rest = after;
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::wire::Question;

    fn answer(flags: u16, kind: u16) -> Vec<u8> {
        let mut question = b"\x03wWw\x07example\x00\x00\x00\x00\x01".to_vec();
        let at = question.len() - 4;
        wire::put_u16(&mut question, at, kind);
        wire::query(7, flag::RESPONSE | flags, &Question::new(&question).unwrap(), Some(false))
    }

    #[test]
    fn an_answer_says_what_was_asked_and_what_came_of_it() {
        for (flags, kind, asked, code, road) in [
            (flag::AUTHORITATIVE, 1, AskedType::A, Code::NoError, "zone"),
            (flag::AUTHORITATIVE | 3, 28, AskedType::Aaaa, Code::NxDomain, "zone"),
            (3, 65, AskedType::Https, Code::NxDomain, "cache"),
            (5, 255, AskedType::Any, Code::Refused, "none"),
            (2, 99, AskedType::Other, Code::ServFail, "none"),
            (9, 16, AskedType::Txt, Code::Other, "none"),
        ] {
            let octets = answer(flags, kind);
            let answer = Answer::read(&octets);
            assert_eq!((answer.asked_type(), answer.code(), answer.road()), (asked, code, road));
            assert_eq!(written(answer.question().unwrap().0), "www.example.");
        }
        let mut bad_version = answer(0, 1);
        let opt = wire::scan(&bad_version).unwrap().opt.unwrap().0;
        bad_version[opt + 5] = 1;
        assert_eq!(Answer::read(&bad_version).code(), Code::BadVers);
        // A header alone, as who cannot be understood gets it.
        let bare = [0, 7, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            (Answer::read(&bare).asked_type(), Answer::read(&bare).code()),
            (AskedType::Other, Code::FormErr)
        );
    }

    #[test]
    fn names_are_written_so_that_they_cannot_pass_for_others() {
        assert_eq!(written(b"\x03a.B\x02\\ \x00"), "a\\.b.\\\\\\032.");
        assert_eq!(written(b"\x00"), ".");
        assert_eq!(written(b"\x01\x1b\x01\n\x00"), "\\027.\\010.");
    }

    proptest! {
        #[test]
        fn no_octets_are_too_odd_to_be_told(octets in proptest::collection::vec(any::<u8>(), 0..100)) {
            let answer = Answer::read(&octets);
            let _ = (answer.asked_type(), answer.code(), answer.road());
            prop_assert!(written(&octets).is_ascii());
        }
    }
}
