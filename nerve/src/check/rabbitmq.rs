//! The RabbitMQ check, by AMQP 0-9-1: a message is published and comes back.
//!
//! Keys: `rabbitmq = true` for where the instance listens, or a port; `unix`; `username` (`guest`), `password` (`guest`) or
//! `password_file`; `vhost` (`/`); `queue` (`plexus.check`). As Nerve does: the queue is declared, a message that expires
//! after 2 s is published to it, got and acknowledged. The queue stays; agents that share one get each other's messages, which
//! prove as much. It is durable, since brokers of today no longer like others; its messages are not.

use async_trait::async_trait;
use serde::Serialize;

use super::connect::Target;
use super::credentials::Credentials;
use super::wire::{Fields, MAX_MESSAGE, Wire};
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::model::ListensOn;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xce;
/// The channel that everything but the connection itself is on.
const CHANNEL: u16 = 1;
/// Kinds of frames that are passed over, heartbeats for instance: so many at most.
const MAX_FRAMES: usize = 100;

const DURABLE: u8 = 2;
/// `expiration` in the flags of a message's properties.
const EXPIRATION: u16 = 0x0100;
const EXPIRES_AFTER: &str = "2000";
const MESSAGE: &[u8] = b"plexus-check";

/// Class and method: what a frame of kind `METHOD` begins with (AMQP 0-9-1 section 1.2 of the reference).
type Method = (u16, u16);
const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CLOSE: Method = (10, 50);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const DECLARE: Method = (50, 10);
const DECLARE_OK: Method = (50, 11);
const PUBLISH: Method = (60, 40);
const GET: Method = (60, 70);
const GET_OK: Method = (60, 71);
const GET_EMPTY: Method = (60, 72);
const ACK: Method = (60, 80);

/// Sends a message through a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rabbitmq {
    #[serde(flatten)]
    target: Target,
    #[serde(flatten)]
    credentials: Credentials,
    vhost: Name,
    queue: Name,
}

/// A text that fits into AMQP's short string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Name(String);

impl Rabbitmq {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let target = Target::read(section, "rabbitmq");
        let credentials = Credentials::read_with_user(section);
        let vhost = section.or("vhost", "/".to_owned());
        let queue = section.or("queue", "plexus.check".to_owned());
        for (key, text) in [("vhost", &vhost), ("queue", &queue)] {
            if text.is_empty() || text.len() > 255 {
                return Err(section.invalid(key, "it is empty or too long", "a name of 1 to 255 bytes"));
            }
        }
        Ok(Self { target: target?, credentials: credentials?, vhost: Name(vhost), queue: Name(queue) })
    }

    /// From the first byte to an open channel.
    async fn open(&self, wire: &mut Wire) -> Result<(), String> {
        let user = self.credentials.username.as_deref().unwrap_or("guest");
        let password = match self.credentials.password().await? {
            Some(password) => password,
            None if self.credentials.username.is_none() => "guest".to_owned(),
            None => String::new(),
        };
        wire.send(b"AMQP\0\0\x09\x01").await?;
        expect(wire, START).await?;
        // With this capability the broker says that a password is wrong, instead of hanging up.
        let capability = [short("authentication_failure_close"), b"t\x01".to_vec()].concat();
        let properties = [
            short("capabilities"),
            b"F".to_vec(),
            long(&capability),
            short("product"),
            b"S".to_vec(),
            long(b"plexus-check"),
        ];
        let login = [b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat();
        let body = [long(&properties.concat()), short("PLAIN"), long(&login), short("en_US")].concat();
        wire.send(&method(0, START_OK, &body)).await?;
        let tune = expect(wire, TUNE).await?;
        let mut fields = Fields(&tune);
        let channels = fields.short_be()?;
        let frame = fields.long_be()?;
        // Heartbeats: none, for it is over before the first.
        wire.send(&method(
            0,
            TUNE_OK,
            &[&channels.to_be_bytes()[..], &frame.to_be_bytes(), &[0, 0]].concat(),
        ))
        .await?;
        wire.send(&method(0, OPEN, &[short(&self.vhost.0), vec![0, 0]].concat())).await?;
        expect(wire, OPEN_OK).await?;
        wire.send(&method(CHANNEL, CHANNEL_OPEN, &[0])).await?;
        expect(wire, CHANNEL_OPEN_OK).await?;
        Ok(())
    }

    /// A message there and back.
    async fn pass_a_message(&self, wire: &mut Wire) -> Result<String, String> {
        let queue = short(&self.queue.0);
        let none = long(b"");
        wire.send(&method(CHANNEL, DECLARE, &[&[0, 0][..], &queue, &[DURABLE], &none].concat())).await?;
        expect(wire, DECLARE_OK).await?;
        let mut publish = method(CHANNEL, PUBLISH, &[&[0, 0, 0][..], &queue, &[0]].concat());
        let size = (MESSAGE.len() as u64).to_be_bytes();
        let head =
            [&60u16.to_be_bytes()[..], &[0, 0], &size, &EXPIRATION.to_be_bytes(), &short(EXPIRES_AFTER)];
        publish.extend(frame(HEADER, CHANNEL, &head.concat()));
        publish.extend(frame(BODY, CHANNEL, MESSAGE));
        wire.send(&publish).await?;
        wire.send(&method(CHANNEL, GET, &[&[0, 0][..], &queue, &[0]].concat())).await?;
        let (got, body) = next_method(wire).await?;
        match got {
            GET_OK => {}
            GET_EMPTY => return Err(format!("get: the message did not come back from {:?}", self.queue.0)),
            _ => return Err(unexpected(GET_OK, got)),
        }
        let tag: [u8; 8] = Fields(&body).array()?;
        let (mut kind, mut payload) = next_frame(wire).await?;
        let mut left = content_size(kind, &payload)?;
        while left > 0 {
            (kind, payload) = next_frame(wire).await?;
            if kind != BODY {
                return Err("get: a message without a body".to_owned());
            }
            left = left.saturating_sub(payload.len() as u64);
        }
        wire.send(&method(CHANNEL, ACK, &[&tag[..], &[0]].concat())).await?;
        Ok("a message was published and came back".to_owned())
    }
}

/// How long the message is that a header announces.
fn content_size(kind: u8, header: &[u8]) -> Result<u64, String> {
    let mut fields = Fields(header);
    fields.take(4)?;
    let size = u64::from_be_bytes(fields.array()?);
    if kind != HEADER || size > MAX_MESSAGE as u64 {
        return Err("get: that is not what was published".to_owned());
    }
    Ok(size)
}

#[async_trait]
impl Check for Rabbitmq {
    fn describe(&self) -> String {
        match self.vhost.0.as_str() {
            "/" => self.target.to_string(),
            vhost => format!("{} vhost {vhost}", self.target),
        }
    }

    fn hide_secrets(&mut self) {
        self.credentials.hide();
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty().or(self.credentials.liberty())
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let mut wire = Wire::connect(&self.target, instance).await?;
        self.open(&mut wire).await?;
        let verdict = self.pass_a_message(&mut wire).await?;
        let close = [&200u16.to_be_bytes()[..], &short("done"), &[0, 0, 0, 0]].concat();
        wire.part(&method(0, CLOSE, &close)).await;
        Ok(verdict)
    }
}

/// The arguments of the method that is to come next.
async fn expect(wire: &mut Wire, wanted: Method) -> Result<Vec<u8>, String> {
    let (got, arguments) = next_method(wire).await?;
    if got == wanted { Ok(arguments) } else { Err(unexpected(wanted, got)) }
}

fn unexpected(wanted: Method, got: Method) -> String {
    format!("AMQP method {}.{} instead of {}.{}", got.0, got.1, wanted.0, wanted.1)
}

/// The next method. One that closes is an error, with the broker's own words.
async fn next_method(wire: &mut Wire) -> Result<(Method, Vec<u8>), String> {
    for _ in 0..MAX_FRAMES {
        let (kind, payload) = next_frame(wire).await?;
        if kind != METHOD {
            continue;
        }
        let mut fields = Fields(&payload);
        let method = (fields.short_be()?, fields.short_be()?);
        if method == CLOSE || method == CHANNEL_CLOSE {
            fields.take(2)?;
            let length = usize::from(fields.byte()?);
            return Err(String::from_utf8_lossy(fields.take(length)?).into_owned());
        }
        return Ok((method, fields.0.to_vec()));
    }
    Err(format!("more than {MAX_FRAMES} frames and no answer"))
}

async fn next_frame(wire: &mut Wire) -> Result<(u8, Vec<u8>), String> {
    let head = wire.exactly(7).await?;
    // Who does not speak this protocol says which one it speaks, and hangs up.
    if head.starts_with(b"AMQP") {
        return Err("the broker speaks another version of AMQP".to_owned());
    }
    let mut fields = Fields(&head);
    let (kind, _channel, length) = (fields.byte()?, fields.short_be()?, fields.long_be()? as usize);
    let mut payload = wire.exactly(length.saturating_add(1)).await?;
    if payload.pop() != Some(END) {
        return Err("that is not what a broker answers".to_owned());
    }
    Ok((kind, payload))
}

fn method(channel: u16, (class, method): Method, arguments: &[u8]) -> Vec<u8> {
    frame(METHOD, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat())
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    [&[kind][..], &channel.to_be_bytes(), &long(payload), &[END]].concat()
}

/// AMQP's long string, which a table is written as too.
fn long(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

/// AMQP's short string. All that are sent here are short: those of others were refused.
fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap_or(u8::MAX)], text.as_bytes()].concat()
}
