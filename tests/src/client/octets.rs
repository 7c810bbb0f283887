//! DNS messages as octets: questions that no resolver would ask, and answers read to the last flag.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::netns::Namespace;

/// Longer than an answer from memory ever takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// The id of every question but those that ask whether the server is there.
pub const ID: u16 = 0x1234;

/// Flags of the header.
pub mod flag {
    /// A response.
    pub const QR: u16 = 0x8000;
    /// From whom it has its authority.
    pub const AA: u16 = 0x0400;
    /// Cut short.
    pub const TC: u16 = 0x0200;
    /// Recursion desired.
    pub const RD: u16 = 0x0100;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
    /// Reserved.
    pub const Z: u16 = 0x0040;
    /// Authentic data.
    pub const AD: u16 = 0x0020;
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// All of the header's second word.
    pub flags: u16,
    /// Labels with dots between them.
    pub name: String,
    /// What is asked for.
    pub kind: u16,
    /// 1 is IN.
    pub class: u16,
    /// EDNS.
    pub opt: Option<Opt>,
}

/// EDNS as it is said, by either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opt {
    /// Octets that fit into a datagram.
    pub payload: u16,
    /// The upper bits of the response code.
    pub rcode: u8,
    /// 0, so far.
    pub version: u8,
    /// DO is the highest.
    pub flags: u16,
    /// Codes and data.
    pub options: Vec<(u16, Vec<u8>)>,
}

/// A record, its name left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its type.
    pub kind: u16,
    /// 1 is IN.
    pub class: u16,
    /// In seconds.
    pub ttl: u32,
    /// As it stands there, so names in it may be pointers.
    pub data: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Of all of it.
    pub length: usize,
    /// The header's second word, without the response code.
    pub flags: u16,
    /// The response code, with its upper bits.
    pub rcode: u16,
    /// The octets of the question section.
    pub question: Vec<u8>,
    /// Answers.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authority: Vec<Record>,
    /// Additional records, without OPT.
    pub additional: Vec<Record>,
    /// EDNS.
    pub opt: Option<Opt>,
}

impl Query {
    /// For a name's records, with RD and without EDNS.
    #[must_use]
    pub fn new(name: &str, kind: u16) -> Self {
        Self { flags: flag::RD, name: name.to_owned(), kind, class: 1, opt: None }
    }

    /// With EDNS of version 0.
    #[must_use]
    pub fn edns(mut self, payload: u16) -> Self {
        self.opt = Some(Opt { payload, rcode: 0, version: 0, flags: 0, options: Vec::new() });
        self
    }

    /// With an option more.
    #[must_use]
    pub fn option(self, code: u16, data: &[u8]) -> Self {
        self.opt(|opt| opt.options.push((code, data.to_vec())))
    }

    /// With something else about its EDNS.
    #[must_use]
    pub fn opt(mut self, change: impl FnOnce(&mut Opt)) -> Self {
        self.opt.as_mut().map(change);
        self
    }

    /// As it is sent.
    #[must_use]
    pub fn octets(&self) -> Vec<u8> {
        self.with_id(ID)
    }

    /// As it is sent under this id.
    #[must_use]
    pub fn with_id(&self, id: u16) -> Vec<u8> {
        let mut octets = Vec::new();
        for field in [id, self.flags, 1, 0, 0, u16::from(self.opt.is_some())] {
            octets.extend(field.to_be_bytes());
        }
        octets.extend(self.question());
        octets.extend(self.opt.iter().flat_map(Opt::octets));
        octets
    }

    /// The octets of its question.
    #[must_use]
    pub fn question(&self) -> Vec<u8> {
        let mut octets = Vec::new();
        for label in self.name.split('.').filter(|label| !label.is_empty()) {
            octets.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
            octets.extend(label.as_bytes());
        }
        octets.push(0);
        octets.extend(self.kind.to_be_bytes());
        octets.extend(self.class.to_be_bytes());
        octets
    }
}

impl Opt {
    /// The record.
    #[must_use]
    pub fn octets(&self) -> Vec<u8> {
        let mut options = Vec::new();
        for (code, data) in &self.options {
            options.extend(code.to_be_bytes());
            options.extend(u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
            options.extend(data);
        }
        let mut octets = vec![0, 0, 41];
        octets.extend(self.payload.to_be_bytes());
        octets.extend([self.rcode, self.version]);
        octets.extend(self.flags.to_be_bytes());
        octets.extend(u16::try_from(options.len()).unwrap_or(u16::MAX).to_be_bytes());
        octets.extend(options);
        octets
    }

    fn read(record: &Record) -> Option<Self> {
        let [rcode, version, high, low] = record.ttl.to_be_bytes();
        let (mut options, mut rest) = (Vec::new(), record.data.as_slice());
        while !rest.is_empty() {
            let (code, length) = (number(rest, 0)?, usize::from(number(rest, 2)?));
            options.push((code, rest.get(4..4 + length)?.to_vec()));
            rest = &rest[4 + length..];
        }
        Some(Self { payload: record.class, rcode, version, flags: u16::from_be_bytes([high, low]), options })
    }

    /// An option's data.
    #[must_use]
    pub fn option(&self, code: u16) -> Option<&[u8]> {
        self.options.iter().find(|(of, _)| *of == code).map(|(_, data)| data.as_slice())
    }
}

fn number(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(octets.get(at..at + 2)?.try_into().ok()?))
}

/// Where a name ends.
fn name_end(octets: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *octets.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

impl Answer {
    /// Reads a whole answer to a question of [`ID`]; `None` if it is malformed, has something behind it, or is for somebody else.
    #[must_use]
    pub fn read(octets: &[u8]) -> Option<Self> {
        let mut header = [0; 6];
        for (at, field) in header.iter_mut().enumerate() {
            *field = number(octets, 2 * at)?;
        }
        let [id, flags, questions, answers, authority, additional] = header;
        if id != ID || flags & flag::QR == 0 {
            return None;
        }
        let mut at = 12;
        for _ in 0..questions {
            at = name_end(octets, at)? + 4;
        }
        let question = octets.get(12..at)?.to_vec();
        let mut section = |count: u16| {
            let mut records = Vec::new();
            for _ in 0..count {
                let fields = name_end(octets, at)?;
                let ttl =
                    u32::from(number(octets, fields + 4)?) << 16 | u32::from(number(octets, fields + 6)?);
                let end = fields + 10 + usize::from(number(octets, fields + 8)?);
                let data = octets.get(fields + 10..end)?.to_vec();
                let (kind, class) = (number(octets, fields)?, number(octets, fields + 2)?);
                records.push(Record { kind, class, ttl, data });
                at = end;
            }
            Some(records)
        };
        let (answers, authority, mut additional) =
            (section(answers)?, section(authority)?, section(additional)?);
        if at != octets.len() {
            return None;
        }
        let opts: Vec<Record> = additional.extract_if(.., |record| record.kind == 41).collect();
        let opt = match opts.as_slice() {
            [] => None,
            [one] => Some(Opt::read(one)?),
            _ => return None,
        };
        let high = opt.as_ref().map_or(0, |opt| u16::from(opt.rcode));
        let rcode = high << 4 | flags & 0xf;
        Some(Self {
            length: octets.len(),
            flags: flags & !0xf,
            rcode,
            question,
            answers,
            authority,
            additional,
            opt,
        })
    }

    /// Is this flag set?
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Asks one server over UDP, from one port.
#[derive(Debug)]
pub struct Line {
    socket: UdpSocket,
    canary: Query,
}

impl Line {
    /// `canary` is a question that the server always answers.
    ///
    /// # Panics
    /// There is no way to it.
    #[must_use]
    pub fn open(from: &Namespace, server: SocketAddr, canary: Query) -> Self {
        let socket = from.enter(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a port");
            socket.connect(server).expect("a way to the server");
            socket
        });
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        Self { socket, canary }
    }

    /// Sends octets, and behind them a question that is answered: what comes before its answer is the answer, if anything does.
    ///
    /// # Panics
    /// The question behind is not answered.
    #[track_caller]
    #[must_use]
    pub fn send(&self, octets: &[u8]) -> Option<Vec<u8>> {
        let id = !ID;
        self.socket.send(octets).expect("sent");
        self.socket.send(&self.canary.with_id(id)).expect("sent");
        let (mut answer, mut buffer) = (None, vec![0; 65_535]);
        loop {
            let length = self.socket.recv(&mut buffer);
            let length = length.unwrap_or_else(|error| panic!("no more answers after {octets:x?}: {error}"));
            if buffer.starts_with(&id.to_be_bytes()) {
                return answer;
            }
            answer = Some(buffer[..length].to_vec());
        }
    }

    /// Asks.
    ///
    /// # Panics
    /// There is no answer, or it is malformed.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, query: &Query) -> Answer {
        let octets = self.send(&query.octets()).unwrap_or_else(|| panic!("no answer to {query:?}"));
        Answer::read(&octets).unwrap_or_else(|| panic!("to {query:?}: {octets:x?}"))
    }
}

/// Sends these messages over one connection, in one piece, and reads as many answers; fewer where the server ends it.
///
/// # Panics
/// There is no connection.
#[must_use]
pub fn over_tcp(from: &Namespace, server: SocketAddr, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let framed = messages.iter().flat_map(|message| {
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
        length.into_iter().chain(message.iter().copied())
    });
    let (framed, count): (Vec<u8>, _) = (framed.collect(), messages.len());
    from.enter(move || {
        let mut stream = TcpStream::connect(server).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.write_all(&framed).expect("written");
        let mut answers = Vec::new();
        while answers.len() < count {
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_err() {
                break;
            }
            let mut answer = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut answer).expect("a whole answer");
            answers.push(answer);
        }
        answers
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let query =
            Query::new("a.example", 1).edns(1232).option(10, b"12345678").opt(|opt| opt.flags = 0x8000);
        let mut octets = query.octets();
        assert_eq!(Answer::read(&octets), None, "a question");
        octets[2] |= 0x80;
        let answer = Answer::read(&octets).expect("an answer");
        assert_eq!((answer.question, answer.opt), (query.question(), query.opt));
        assert_eq!(Answer::read(&[octets.as_slice(), b"x"].concat()), None);
        assert_eq!(Answer::read(&octets[..octets.len() - 1]), None);
    }
}
