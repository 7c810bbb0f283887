//! EDNS with clients (RFC 6891): what a query's OPT record asks, and the one that is said back. Options that are not known here are
//! passed over, as are flags (section 6.1.2, 6.1.4).

use std::sync::Arc;

use super::cookie::{Cookie, Sent};
use crate::dns::wire::{self, kind};

/// Options (IANA's registry of EDNS0 option codes).
pub(in crate::dns) const COOKIE: u16 = 10;
const NSID: u16 = 3;
const KEEPALIVE: u16 = 11;
const EXTENDED_ERROR: u16 = 15;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dns) struct Asked {
    /// The octets that it can take over UDP, as it says.
    pub(in crate::dns) payload: u16,
    pub(in crate::dns) version: u8,
    pub(in crate::dns) dnssec_ok: bool,
    pub(in crate::dns) cookie: Option<Sent>,
    /// It wants to know who answers (RFC 5001).
    pub(in crate::dns) nsid: bool,
    /// It wants to know how long its connection may be idle (RFC 7828).
    pub(in crate::dns) keepalive: bool,
}

/// What is said back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::dns) struct Said {
    pub(in crate::dns) dnssec_ok: bool,
    pub(in crate::dns) cookie: Option<Cookie>,
    pub(in crate::dns) nsid: Option<Arc<str>>,
    /// In units of 100 ms.
    pub(in crate::dns) keepalive: Option<u16>,
}

/// What is wrong with a query's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dns) enum Malformed {
    /// It cannot be told whether the client speaks EDNS.
    Message,
    /// It does, and says something that cannot be.
    Options,
    /// Its cookie has a length that no cookie has.
    Cookie,
}

/// Reads a query of one question and of `additionals` further records, which have to be all that there is.
pub(in crate::dns) fn read(
    query: &[u8],
    additionals: u16,
    over_stream: bool,
) -> Result<Option<Asked>, Malformed> {
    let mut at = wire::question_end(query).ok_or(Malformed::Message)?;
    let mut opt = None;
    for _ in 0..additionals {
        let (name, fields) = (at, wire::skip_name(query, at).ok_or(Malformed::Message)?);
        let number = |at| wire::u16_at(query, at).ok_or(Malformed::Message);
        let data = fields + 10;
        at = data + usize::from(number(fields + 8)?);
        let data = query.get(data..at).ok_or(Malformed::Message)?;
        if number(fields)? == kind::OPT {
            // Section 6.1.1: there is one, and its name is the root.
            if opt.is_some() || fields != name + 1 {
                return Err(Malformed::Message);
            }
            opt = Some((fields, data));
        }
    }
    if at != query.len() {
        return Err(Malformed::Message);
    }
    let Some((fields, data)) = opt else { return Ok(None) };
    let (payload, flags) = (wire::u16_at(query, fields + 2), wire::u32_at(query, fields + 4));
    let (Some(payload), Some(flags)) = (payload, flags) else { return Err(Malformed::Message) };
    let [_, version, high, _] = flags.to_be_bytes();
    let mut asked = Asked::plain(payload, high & 0x80 != 0);
    asked.version = version;
    // What options of another version look like is not known.
    if version == 0 {
        asked.read_options(data, over_stream)?;
    }
    Ok(Some(asked))
}

impl Asked {
    /// Version 0, without options.
    pub(in crate::dns) fn plain(payload: u16, dnssec_ok: bool) -> Self {
        Self { payload, version: 0, dnssec_ok, cookie: None, nsid: false, keepalive: false }
    }

    fn read_options(&mut self, mut data: &[u8], over_stream: bool) -> Result<(), Malformed> {
        while !data.is_empty() {
            let (Some(code), Some(length)) = (wire::u16_at(data, 0), wire::u16_at(data, 2)) else {
                return Err(Malformed::Options);
            };
            let end = 4 + usize::from(length);
            let option = data.get(4..end).ok_or(Malformed::Options)?;
            data = &data[end..];
            match code {
                // RFC 7873 section 5.2: the first counts.
                COOKIE if self.cookie.is_none() => {
                    self.cookie = Some(Sent::read(option).ok_or(Malformed::Cookie)?);
                }
                NSID => self.nsid = true,
                // RFC 7828 section 3.2: of no meaning over UDP; a client never says a time.
                KEEPALIVE if over_stream && !option.is_empty() => return Err(Malformed::Options),
                KEEPALIVE => self.keepalive = over_stream,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Said {
    /// Octets of the record without an extended error.
    pub(in crate::dns) fn length(&self) -> usize {
        let option = |length: usize| 4 + length;
        wire::EMPTY_OPT
            + self.cookie.map_or(0, |cookie| option(cookie.len()))
            + self.nsid.as_ref().map_or(0, |text| option(text.len()))
            + self.keepalive.map_or(0, |_| option(2))
    }

    /// Appends the record, with an extended error (RFC 8914) if there is one to tell.
    pub(in crate::dns) fn push(&self, message: &mut Vec<u8>, high_rcode: u8, error: Option<(u16, &str)>) {
        let at = message.len();
        wire::push_opt(message, self.dnssec_ok);
        if let Some(place) = message.get_mut(at + 5) {
            *place = high_rcode;
        }
        if let Some(cookie) = &self.cookie {
            push_option(message, COOKIE, &[cookie]);
        }
        if let Some(text) = &self.nsid {
            push_option(message, NSID, &[text.as_bytes()]);
        }
        if let Some(time) = self.keepalive {
            push_option(message, KEEPALIVE, &[&time.to_be_bytes()]);
        }
        if let Some((code, text)) = error {
            let text = wire::error_text(text);
            push_option(message, EXTENDED_ERROR, &[&code.to_be_bytes(), text.as_bytes()]);
        }
        let options = message.len().saturating_sub(at + wire::EMPTY_OPT);
        wire::put_u16(message, at + wire::EMPTY_OPT - 2, u16::try_from(options).unwrap_or(0));
    }
}

fn push_option(message: &mut Vec<u8>, code: u16, data: &[&[u8]]) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    message.extend_from_slice(&code.to_be_bytes());
    message.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
    data.iter().for_each(|part| message.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header, the question for the root's A, and these records.
    fn query(records: &[&[u8]]) -> Vec<u8> {
        [b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\0\0\x01\0\x01".as_slice(), &records.concat()].concat()
    }

    fn opt(options: &[u8]) -> Vec<u8> {
        let length = u16::try_from(options.len()).unwrap().to_be_bytes();
        [b"\0\0\x29\x04\xd0\0\0\x80\0".as_slice(), &length, options].concat()
    }

    #[test]
    fn one_record_of_the_root_is_read_with_its_options() {
        assert_eq!(read(&query(&[]), 0, false), Ok(None));
        assert_eq!(read(&query(&[&opt(b"")]), 1, false), Ok(Some(Asked::plain(1232, true))));
        let options = b"\0\x64\0\x02ab\0\x03\0\0\0\x0b\0\0\0\x0a\0\x08CLIENTCO\0\x0a\0\x01x";
        let asked = read(&query(&[&opt(options)]), 1, true).unwrap().unwrap();
        assert_eq!((asked.cookie, asked.nsid, asked.keepalive), (Sent::read(b"CLIENTCO"), true, true));
        assert!(!read(&query(&[&opt(options)]), 1, false).unwrap().unwrap().keepalive, "not over UDP");
        let (a, one) = (b"\0\0\x01\0\x01\0\0\0\0\0\x04abcd".as_slice(), opt(b""));
        assert!(read(&query(&[a, &one]), 2, false).unwrap().is_some());
        assert!(read(&query(&[&one, a]), 2, false).unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_is_malformed() {
        let one = opt(b"");
        let named = [b"\x01a".as_slice(), &one].concat();
        let mut newer = opt(b"\0\x0a\0\x01x");
        for (records, additionals, expected) in [
            (query(&[&one, &one]), 2, Malformed::Message),
            (query(&[&named]), 1, Malformed::Message),
            (query(&[&one]), 0, Malformed::Message),
            (query(&[&one]), 2, Malformed::Message),
            (query(&[&one, b"x"]), 1, Malformed::Message),
            (query(&[&one[..10]]), 1, Malformed::Message),
            (query(&[&opt(b"\0\x64\0\x05ab")]), 1, Malformed::Options),
            (query(&[&opt(b"\0\x64\0")]), 1, Malformed::Options),
            (query(&[&opt(b"\0\x0b\0\x02\0\0")]), 1, Malformed::Options),
            (query(&[&newer]), 1, Malformed::Cookie),
        ] {
            assert_eq!(read(&records, additionals, true), Err(expected), "{records:x?}");
        }
        newer[6] = 1;
        assert_eq!(read(&query(&[&newer]), 1, false).unwrap().unwrap().version, 1, "options of others");
    }

    proptest! {
        #[test]
        fn what_is_said_is_as_long_as_it_says_and_is_a_record(
            cookie: Option<[u8; 24]>, nsid in proptest::option::of("[a-z]{1,64}"), keepalive: Option<u16>,
            dnssec_ok: bool, high: u8, error in proptest::option::of((any::<u16>(), ".{0,80}")),
        ) {
            let said = Said { dnssec_ok, cookie, nsid: nsid.map(Arc::from), keepalive };
            let mut message = query(&[]);
            let before = message.len();
            said.push(&mut message, high, None);
            prop_assert_eq!(message.len() - before, said.length());
            message.truncate(before);
            said.push(&mut message, high, error.as_ref().map(|(code, text)| (*code, text.as_str())));
            wire::put_u16(&mut message, 10, 1);
            let scan = wire::scan(&message).unwrap();
            prop_assert_eq!((scan.end, scan.extended_rcode), (message.len(), high));
        }

        #[test]
        fn no_octets_make_the_reading_panic(octets in proptest::collection::vec(any::<u8>(), 0..200), additionals in 0..5_u16) {
            let _ = read(&octets, additionals, true);
            let _ = read(&query(&[&octets]), additionals, true);
            let _ = read(&query(&[&opt(&octets)]), 1, true);
        }
    }
}
