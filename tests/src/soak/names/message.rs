//! DNS messages (RFC 1035), read and written here and nowhere else: what answers is not to be judged by its own code.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Types of records.
pub(super) mod kind {
    pub(in crate::soak) const A: u16 = 1;
    pub(in crate::soak) const PTR: u16 = 12;
    pub(in crate::soak) const HINFO: u16 = 13;
    pub(in crate::soak) const TXT: u16 = 16;
    pub(in crate::soak) const AAAA: u16 = 28;
    pub(in crate::soak) const SRV: u16 = 33;
    pub(in crate::soak) const OPT: u16 = 41;
    pub(in crate::soak) const HTTPS: u16 = 65;
    pub(in crate::soak) const ANY: u16 = 255;
}

/// Codes of answers.
pub(super) mod rcode {
    pub(in crate::soak) const NO_ERROR: u8 = 0;
    pub(in crate::soak) const NX_DOMAIN: u8 = 3;
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Data {
    Address(IpAddr),
    Target {
        weight: u16,
        port: u16,
        host: String,
    },
    Name(String),
    /// Of a type that nobody looks into.
    Other(u16),
}

/// A message that answers.
#[derive(Debug, Clone)]
pub(super) struct Response {
    pub(super) id: u16,
    pub(super) truncated: bool,
    pub(super) rcode: u8,
    /// Its name, octet for octet, with type and class.
    pub(super) question: Vec<u8>,
    pub(super) answers: Vec<Data>,
    /// Types in the authority section.
    pub(super) authority: Vec<u16>,
    pub(super) has_opt: bool,
}

/// What a question asks, as it stands in a message.
pub(super) fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut octets = Vec::with_capacity(name.len() + 6);
    for label in name.split('.') {
        octets.push(u8::try_from(label.len()).expect("a short label"));
        octets.extend(label.as_bytes());
    }
    octets.push(0);
    octets.extend(kind.to_be_bytes());
    octets.extend(1_u16.to_be_bytes());
    octets
}

/// A query; with EDNS if so much is taken over UDP.
pub(super) fn query(id: u16, question: &[u8], payload: Option<u16>) -> Vec<u8> {
    let mut octets = id.to_be_bytes().to_vec();
    octets.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(payload.is_some())]);
    octets.extend(question);
    if let Some(payload) = payload {
        octets.push(0);
        octets.extend(kind::OPT.to_be_bytes());
        octets.extend(payload.to_be_bytes());
        octets.extend([0; 6]);
    }
    octets
}

impl Response {
    /// Reads one; `Err`: it is no message, or no answer, or says something twice.
    pub(super) fn read(octets: &[u8]) -> Result<Self, &'static str> {
        let mut reader = Reader { octets, at: 0 };
        let (id, flags) = (reader.u16()?, reader.u16()?);
        if flags & 0x8000 == 0 {
            return Err("it is a query");
        }
        let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        let begin = reader.at;
        if counts[0] > 1 {
            return Err("it has several questions");
        }
        for _ in 0..counts[0] {
            reader.name()?;
            reader.take(4)?;
        }
        let question = octets[begin..reader.at].to_vec();
        let rcode = u8::try_from(flags & 0xf).unwrap_or(0);
        let truncated = flags & 0x200 != 0;
        let (answers, authority) = (Vec::new(), Vec::new());
        let mut response = Self { id, truncated, rcode, question, answers, authority, has_opt: false };
        let owner = reader.owner(begin);
        for _ in 0..counts[1] {
            let (name, _, data) = reader.record()?;
            if Some(name) != owner {
                return Err("an answer is of another name");
            }
            response.answers.push(data);
        }
        let unlike: HashSet<&Data> = response.answers.iter().collect();
        if unlike.len() != response.answers.len() {
            return Err("an answer stands in it twice");
        }
        for _ in 0..counts[2] {
            response.authority.push(reader.record()?.1);
        }
        for _ in 0..counts[3] {
            response.has_opt |= reader.record()?.1 == kind::OPT;
        }
        if reader.at == octets.len() { Ok(response) } else { Err("something stands behind it") }
    }
}

struct Reader<'a> {
    octets: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let taken = self.octets.get(self.at..self.at + count).ok_or("it ends early")?;
        self.at += count;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().unwrap_or_default()))
    }

    /// The name of the question that begins there.
    fn owner(&self, begin: usize) -> Option<String> {
        Reader { octets: self.octets, at: begin }.name().ok()
    }

    /// As it is spelled, with dots; pointers lead backwards.
    fn name(&mut self) -> Result<String, &'static str> {
        let mut name = String::new();
        let (mut at, mut least, mut behind) = (self.at, self.at, None);
        loop {
            let length = usize::from(*self.octets.get(at).ok_or("a name ends early")?);
            at += 1;
            match length {
                0 => break,
                1..=63 => {
                    let label = self.octets.get(at..at + length).ok_or("a label ends early")?;
                    name.push_str(&String::from_utf8_lossy(label));
                    name.push('.');
                    at += length;
                }
                192.. => {
                    let low = usize::from(*self.octets.get(at).ok_or("a pointer ends early")?);
                    let to = (length & 0x3f) << 8 | low;
                    if to >= least {
                        return Err("a pointer does not lead backwards");
                    }
                    behind.get_or_insert(at + 1);
                    (at, least) = (to, to);
                }
                _ => return Err("a label of no kind"),
            }
        }
        self.at = behind.unwrap_or(at);
        Ok(name)
    }

    /// Its name, its type, and what it says.
    fn record(&mut self) -> Result<(String, u16, Data), &'static str> {
        let (name, kind) = (self.name()?, self.u16()?);
        self.take(6)?;
        let length = usize::from(self.u16()?);
        let end = self.at + length;
        let data = match (kind, length) {
            (kind::A, 4) => {
                let octets: [u8; 4] = self.take(4)?.try_into().unwrap_or_default();
                Data::Address(Ipv4Addr::from(octets).into())
            }
            (kind::AAAA, 16) => {
                let octets: [u8; 16] = self.take(16)?.try_into().unwrap_or_default();
                Data::Address(Ipv6Addr::from(octets).into())
            }
            (kind::SRV, 7..) => {
                let (_, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
                Data::Target { weight, port, host: self.name()?.to_ascii_lowercase() }
            }
            (kind::PTR, _) => Data::Name(self.name()?.to_ascii_lowercase()),
            (other, _) => {
                self.take(length)?;
                Data::Other(other)
            }
        };
        if self.at == end { Ok((name, kind, data)) } else { Err("a record is not as long as it says") }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Target { weight, port, host } => write!(f, "{weight} {port} {host}"),
            Self::Name(name) => f.write_str(name),
            Self::Other(kind) => write!(f, "type {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_what_is_none_is_refused() {
        let asked = question("web.mesh", kind::SRV);
        let mut octets = query(7, &asked, Some(1232));
        octets[2] |= 0x84;
        octets[7] = 1;
        let opt = octets.split_off(12 + asked.len());
        // The owner and the end of the target are pointers.
        octets.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 5, 0, 10, 0, 0, 0, 9, 0, 80, 1, b'a', 0xc0, 16]);
        octets.extend(&opt);
        let response = Response::read(&octets).expect("an answer");
        assert_eq!((response.id, response.rcode, response.has_opt), (7, rcode::NO_ERROR, true));
        assert_eq!(response.question, asked);
        assert_eq!(response.answers, [Data::Target { weight: 9, port: 80, host: "a.mesh.".to_owned() }]);
        assert!(Response::read(&query(7, &asked, None)).is_err(), "a query");
        for end in 0..octets.len() {
            assert!(Response::read(&octets[..end]).is_err(), "{end}");
        }
        let itself = octets.len() - opt.len() - 1;
        octets[itself] = u8::try_from(itself - 1).expect("a short message");
        assert!(Response::read(&octets).is_err(), "a pointer to itself");
    }
}
