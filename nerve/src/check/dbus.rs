//! One question to a D-Bus, over its unix socket: the value of a property that is a text.
//!
//! As much of the D-Bus specification as that takes: the EXTERNAL handshake, `Hello`, `Properties.Get`, and the answer. Messages
//! of others are skipped. A whole client library is ten times the rest of this room. What the bus says is bounded.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::host;
use crate::model::UnixPath;

/// The longest message that is read, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// The longest line of the handshake.
const MAX_LINE: usize = 512;
/// So many messages of others are skipped before an answer.
const MAX_SKIPPED: usize = 64;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// The fields of a header (D-Bus specification, "Header Fields").
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A connection to a bus.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
}

/// A method, and the texts that it is called with.
struct Call<'a> {
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    member: &'a str,
    arguments: &'a [&'a str],
}

/// What a message says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    kind: u8,
    reply_to: Option<u32>,
    error: Option<String>,
    body: Vec<u8>,
    is_little: bool,
}

impl Bus {
    /// Connects and says who we are.
    pub(super) async fn connect(socket: &UnixPath) -> Result<Self, String> {
        let stream = UnixStream::connect(socket.as_path()).await.inspect_err(host::note);
        let stream = stream.map_err(|error| format!("connect to {socket}: {error}"))?;
        let mut bus = Self { stream, serial: 0 };
        bus.handshake().await.map_err(|error| format!("the bus at {socket}: {error}"))?;
        let hello = Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            arguments: &[],
        };
        bus.call(&hello).await?;
        Ok(bus)
    }

    /// The value of a property, which is a text.
    pub(super) async fn text_property(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        property: &str,
    ) -> Result<String, String> {
        let get = Call {
            destination,
            path,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            arguments: &[interface, property],
        };
        let answer = self.call(&get).await?;
        variant_text(&answer)
            .ok_or_else(|| format!("{destination} says {property} in a form that is no text"))
    }

    async fn handshake(&mut self) -> Result<(), String> {
        let user = rustix::process::geteuid().as_raw().to_string();
        let user: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.write(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes()).await?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > MAX_LINE {
                return Err("its greeting has no end".to_owned());
            }
            line.push(self.stream.read_u8().await.map_err(|error| broken(&error))?);
        }
        let line = String::from_utf8_lossy(&line);
        if !line.starts_with("OK ") {
            return Err(format!("it does not let this user in: {}", line.trim()));
        }
        self.write(b"BEGIN\r\n").await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).await.map_err(|error| broken(&error))
    }

    async fn call(&mut self, call: &Call<'_>) -> Result<Message, String> {
        self.serial += 1;
        let message = call.message(self.serial);
        self.write(&message).await?;
        for _ in 0..MAX_SKIPPED {
            let message = self.read().await?;
            if message.reply_to != Some(self.serial) {
                continue;
            }
            return match message.kind {
                METHOD_RETURN => Ok(message),
                ERROR => {
                    let name = message.error.clone().unwrap_or_default();
                    let said = text_at(&message.body, 0, message.is_little).unwrap_or_default();
                    Err(format!("{} refuses {}: {said} ({name})", call.destination, call.member))
                }
                _ => continue,
            };
        }
        Err(format!("the bus talks of other things than {}", call.member))
    }

    async fn read(&mut self) -> Result<Message, String> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).await.map_err(|error| broken(&error))?;
        let is_little = head[0] == b'l';
        let length = |at| number_at(&head, at, is_little).and_then(|length| usize::try_from(length).ok());
        let (Some(body), Some(fields)) = (length(4), length(12)) else { return Err(nonsense()) };
        if body > MAX_MESSAGE || fields > MAX_MESSAGE {
            return Err(format!("the bus sends a message of more than {MAX_MESSAGE} bytes"));
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.stream.read_exact(&mut rest).await.map_err(|error| broken(&error))?;
        let mut message = Message { kind: head[1], is_little, ..Message::default() };
        message.take_fields(&rest[..fields]).ok_or_else(nonsense)?;
        message.body = rest.split_off(fields.next_multiple_of(8));
        Ok(message)
    }
}

impl Call<'_> {
    fn message(&self, serial: u32) -> Vec<u8> {
        let mut body = Vec::new();
        for argument in self.arguments {
            put_text(&mut body, argument);
        }
        let mut fields = Vec::new();
        let texts = [
            (PATH, b'o', self.path),
            (DESTINATION, b's', self.destination),
            (INTERFACE, b's', self.interface),
            (MEMBER, b's', self.member),
        ];
        for (field, kind, text) in texts {
            pad(&mut fields, 8);
            fields.extend([field, 1, kind, 0]);
            put_text(&mut fields, text);
        }
        if !self.arguments.is_empty() {
            pad(&mut fields, 8);
            fields.extend([SIGNATURE, 1, b'g', 0]);
            let signature = "s".repeat(self.arguments.len());
            fields.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
            fields.extend(signature.as_bytes());
            fields.push(0);
        }
        let mut message = vec![b'l', METHOD_CALL, 0, 1];
        put_length(&mut message, body.len());
        message.extend(serial.to_le_bytes());
        put_length(&mut message, fields.len());
        message.extend(fields);
        pad(&mut message, 8);
        message.extend(body);
        message
    }
}

impl Message {
    /// Reads the fields of the header that matter; `None` where they are cut off.
    fn take_fields(&mut self, fields: &[u8]) -> Option<()> {
        let mut at = 0;
        while at < fields.len() {
            let (field, kind) = (*fields.get(at)?, *fields.get(at + 2)?);
            let value = at + 4;
            let end = match kind {
                b's' | b'o' => {
                    let text = text_at(fields, value, self.is_little)?;
                    let end = value + 4 + text.len() + 1;
                    if field == ERROR_NAME {
                        self.error = Some(text);
                    }
                    end
                }
                b'u' => {
                    let number = number_at(fields, value, self.is_little)?;
                    if field == REPLY_SERIAL {
                        self.reply_to = Some(number);
                    }
                    value + 4
                }
                b'g' => value + 1 + usize::from(*fields.get(value)?) + 1,
                _ => return None,
            };
            // The start of a field is aligned to 8, and so is the array that it stands in.
            at = end.next_multiple_of(8);
        }
        Some(())
    }
}

/// The text in a variant: its signature `s`, then the text.
fn variant_text(message: &Message) -> Option<String> {
    (message.body.get(..3)? == [1, b's', 0]).then(|| text_at(&message.body, 4, message.is_little))?
}

fn text_at(bytes: &[u8], at: usize, is_little: bool) -> Option<String> {
    let length = usize::try_from(number_at(bytes, at, is_little)?).ok()?;
    let text = bytes.get(at + 4..)?.get(..length)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn number_at(bytes: &[u8], at: usize, is_little: bool) -> Option<u32> {
    let number = bytes.get(at..)?.first_chunk::<4>()?;
    Some(if is_little { u32::from_le_bytes(*number) } else { u32::from_be_bytes(*number) })
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    put_length(bytes, text.len());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn broken(error: &io::Error) -> String {
    format!("the bus breaks off: {error}")
}

fn nonsense() -> String {
    "the bus sends what is no message".to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_is_what_the_specification_says() {
        let call = Call { destination: "a.b", path: "/", interface: "c.d", member: "E", arguments: &["x"] };
        let message = call.message(7);
        assert_eq!(&message[..4], b"l\x01\0\x01");
        assert_eq!(number_at(&message, 4, true), Some(6), "one text: length, x, zero");
        assert_eq!(number_at(&message, 8, true), Some(7));
        assert_eq!(&message[message.len() - 6..], b"\x01\0\0\0x\0");
        let fields = usize::try_from(number_at(&message, 12, true).unwrap()).unwrap();
        assert_eq!((16 + fields).next_multiple_of(8) + 6, message.len());
        let mut read = Message { is_little: true, ..Message::default() };
        assert_eq!(read.take_fields(&message[16..16 + fields]), Some(()));
    }

    proptest! {
        #[test]
        fn no_message_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200), is_little: bool) {
            let mut message = Message { is_little, ..Message::default() };
            let _ = message.take_fields(&bytes);
            message.body = bytes;
            let _ = variant_text(&message);
        }
    }
}
