//! What is said, and how it is written: a line of JSON each, with a kind, a body, and how many descriptors come with it.
//!
//! Versions of the program meet here. A body may have more fields than are known; a kind that is not known is left out, and its
//! descriptors are closed; whatever cannot be told apart that way gets another [`PROTOCOL`]. Pure, and bounded.

use std::net::SocketAddr;

use nerve::model::UnixPath;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::inherited::Key;

/// The version of the protocol: two agents of different ones do not take over from each other.
pub(super) const PROTOCOL: u32 = 1;
/// The longest line, in bytes.
pub(super) const MAX_LINE: usize = 64 * 1024;
/// The most descriptors beside a line; the kernel takes 253 at a time (`SCM_MAX_FD`).
pub(super) const MAX_DESCRIPTORS: usize = 64;

/// Something said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "body", rename_all = "snake_case")]
pub(super) enum Message {
    /// Who speaks. First, in both directions.
    Hello(Hello),
    /// It will not be, and why.
    Refused(Refused),
    /// Listening sockets, a descriptor each.
    Sockets(Sockets),
    /// The last known good, in the form of the file on disk; one descriptor.
    Catalog,
    /// That was all; nothing has changed so far.
    Offered,
    /// Stop writing.
    Prepare,
    /// Nothing is written any more. What the next one needs to write, a descriptor each.
    Prepared(Prepared),
    /// The next one serves.
    Serving,
    /// The one before leaves.
    Leaving,
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    /// Of the program.
    pub(super) version: String,
    pub(super) pid: u32,
    /// Both must be of one node, or the records of one would be another's.
    #[serde(default)]
    pub(super) node: String,
    /// … and of one store.
    #[serde(default)]
    pub(super) store: String,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refused {
    pub(super) reason: String,
}

/// What the descriptors beside the line are, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sockets {
    pub(super) sockets: Vec<Described>,
}

/// One socket, for whoever reads along: what it is, the kernel says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Described {
    /// `tcp`, `udp` and `unix` are known; others are of a later version and closed.
    pub(super) transport: String,
    /// Where it is bound.
    pub(super) address: Option<SocketAddr>,
    /// Where it is bound, if it is a unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<UnixPath>,
    /// It is the service manager's: its file stays when whoever takes it over leaves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) lent: bool,
}

impl Described {
    pub(super) fn of(key: &Key) -> Self {
        let (transport, address, path) = match key {
            Key::Ip { transport, address } => (transport.to_string(), Some(*address), None),
            Key::Unix(path) => ("unix".to_owned(), None, Some(path.clone())),
        };
        Self { transport, address, path, lent: false }
    }

    pub(super) fn unknown() -> Self {
        Self { transport: "unknown".to_owned(), address: None, path: None, lent: false }
    }
}

/// What the descriptors beside the line are, in their order: `registrar` and `store` are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {
    pub(super) documents: Vec<String>,
}

/// A line, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// `None`: of a kind that this version does not know.
    pub(super) message: Option<Message>,
    /// How many descriptors belong to it.
    pub(super) descriptors: usize,
}

#[derive(Deserialize)]
struct Envelope {
    kind: String,
    #[serde(default)]
    body: Value,
    #[serde(default)]
    descriptors: usize,
}

impl Message {
    const KINDS: [&str; 9] =
        ["hello", "refused", "sockets", "catalog", "offered", "prepare", "prepared", "serving", "leaving"];
}

impl Line {
    /// Reads a line without its end.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        if line.len() > MAX_LINE {
            return Err(format!("a line has {} bytes and {MAX_LINE} are allowed", line.len()));
        }
        let Envelope { kind, body, descriptors } =
            serde_json::from_slice(line).map_err(|error| format!("a line is no message: {error}"))?;
        if descriptors > MAX_DESCRIPTORS {
            return Err(format!("{descriptors} descriptors beside a line and {MAX_DESCRIPTORS} are allowed"));
        }
        if !Message::KINDS.contains(&kind.as_str()) {
            return Ok(Self { message: None, descriptors });
        }
        let tagged = match body {
            Value::Null => serde_json::json!({ "kind": kind }),
            body => serde_json::json!({ "kind": kind, "body": body }),
        };
        let message = serde_json::from_value(tagged).map_err(|error| format!("{kind}: {error}"))?;
        Ok(Self { message: Some(message), descriptors })
    }

    /// Writes a line with its end.
    pub(super) fn write(message: &Message, descriptors: usize) -> Result<Vec<u8>, String> {
        let mut value = serde_json::to_value(message).map_err(|error| error.to_string())?;
        value["descriptors"] = descriptors.into();
        let mut line = value.to_string().into_bytes();
        if line.len() > MAX_LINE || descriptors > MAX_DESCRIPTORS {
            return Err(format!(
                "{} bytes and {descriptors} descriptors are too much for a line",
                line.len()
            ));
        }
        line.push(b'\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn hello() -> impl Strategy<Value = Message> {
        (any::<u32>(), ".*", any::<u32>(), ".*", ".*").prop_map(|(protocol, version, pid, node, store)| {
            Message::Hello(Hello { protocol, version, pid, node, store })
        })
    }

    fn sockets() -> impl Strategy<Value = Message> {
        let described = (".{0,9}", proptest::option::of(any::<(IpAddr, u16)>().prop_map(SocketAddr::from)))
            .prop_map(|(transport, address)| Described { transport, address, ..Described::unknown() });
        proptest::collection::vec(described, 0..MAX_DESCRIPTORS)
            .prop_map(|sockets| Message::Sockets(Sockets { sockets }))
    }

    fn message() -> impl Strategy<Value = Message> {
        let plain =
            [Message::Catalog, Message::Offered, Message::Prepare, Message::Serving, Message::Leaving];
        prop_oneof![
            hello(),
            sockets(),
            ".*".prop_map(|reason| Message::Refused(Refused { reason })),
            proptest::collection::vec("[a-z]{1,9}", 0..5)
                .prop_map(|documents| Message::Prepared(Prepared { documents })),
            proptest::sample::select(plain.to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in message(), descriptors in 0..=MAX_DESCRIPTORS) {
            let line = Line::write(&message, descriptors).unwrap();
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "a line");
            let read = Line::read(&line[..line.len() - 1]).unwrap();
            prop_assert_eq!(read, Line { message: Some(message), descriptors });
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Line::read(&bytes);
        }

        #[test]
        fn a_line_that_is_cut_short_is_refused(message in message(), cut in 0.0..1.0f64) {
            let line = Line::write(&message, 0).unwrap();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a few hundred")]
            let cut = ((line.len() - 1) as f64 * cut) as usize;
            prop_assert!(Line::read(&line[..cut]).is_err());
        }
    }

    #[test]
    fn what_a_later_version_adds_is_left_out() {
        let line =
            br#"{"kind":"hello","body":{"protocol":1,"version":"9","pid":1,"mood":"good"},"later":[1]}"#;
        assert!(matches!(Line::read(line).unwrap().message, Some(Message::Hello(hello)) if hello.pid == 1));
        let line = br#"{"kind":"tunnels","body":{"of":"a later version"},"descriptors":3}"#;
        assert_eq!(Line::read(line), Ok(Line { message: None, descriptors: 3 }));
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let long = format!(r#"{{"kind":"refused","body":{{"reason":"{}"}}}}"#, "x".repeat(MAX_LINE));
        assert!(Line::read(long.as_bytes()).unwrap_err().contains("are allowed"));
        assert!(
            Line::read(br#"{"kind":"sockets","descriptors":65}"#).unwrap_err().contains("65 descriptors")
        );
        assert!(Line::read(br#"{"kind":"sockets","descriptors":-1}"#).is_err());
        assert!(Line::write(&Message::Refused(Refused { reason: "x".repeat(MAX_LINE) }), 0).is_err());
        assert!(Line::write(&Message::Catalog, MAX_DESCRIPTORS + 1).is_err());
    }

    #[test]
    fn every_kind_is_known() {
        for kind in Message::KINDS {
            let unknown =
                Line::read(format!(r#"{{"kind":"{kind}"}}"#).as_bytes()).map(|line| line.message.is_none());
            assert_ne!(unknown, Ok(true), "{kind}");
        }
    }
}
