//! The MySQL and MariaDB check: a handshake, or a login and `select 1`.
//!
//! Keys: `mysql = true` for where the instance listens, or a port; `unix`; `username`, `password`, `password_file`; `database`.
//! Without `username` the server's greeting is enough, and the login that does not follow counts as an interrupted
//! connection there: `max_connect_errors` of them without a login between bar this host. Passwords are proven by
//! `mysql_native_password` or `caching_sha2_password` and not sent, but through a unix socket. TLS is not spoken.

use async_trait::async_trait;
use serde::Serialize;

use super::connect::Target;
use super::credentials::Credentials;
use super::scram::{mysql_native, mysql_sha2};
use super::wire::{Fields, Wire};
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::model::ListensOn;

const LONG_PASSWORD: u32 = 1;
const CONNECT_WITH_DB: u32 = 8;
const PROTOCOL_41: u32 = 0x200;
const SECURE_CONNECTION: u32 = 0x8000;
const PLUGIN_AUTH: u32 = 0x8_0000;

const NATIVE: &str = "mysql_native_password";
const SHA2: &str = "caching_sha2_password";

/// So many packets may a login take.
const MAX_PACKETS: usize = 10;
const UTF8: u8 = 33;

/// Asks a MySQL or MariaDB server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mysql {
    #[serde(flatten)]
    target: Target,
    #[serde(flatten)]
    credentials: Credentials,
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<String>,
}

/// What the server greets with.
struct Greeting {
    version: String,
    plugin: String,
    salt: Vec<u8>,
}

/// A packet and its place in the conversation.
struct Packet {
    number: u8,
    body: Vec<u8>,
}

impl Mysql {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let target = Target::read(section, "mysql");
        let credentials = Credentials::read_with_user(section);
        let database = section.given::<String>("database");
        let (target, credentials, database) = (target?, credentials?, database?);
        if database.is_some() && credentials.username.is_none() {
            return Err(section.invalid("database", "nobody logs in to it", "a `username` too"));
        }
        Ok(Self { target, credentials, database })
    }

    fn response(&self, user: &str, plugin: &str, proof: &[u8]) -> Result<Vec<u8>, String> {
        let mut capabilities = LONG_PASSWORD | PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH;
        if self.database.is_some() {
            capabilities |= CONNECT_WITH_DB;
        }
        let mut body = capabilities.to_le_bytes().to_vec();
        body.extend((1u32 << 24).to_le_bytes());
        body.push(UTF8);
        body.extend([0; 23]);
        body.extend([user.as_bytes(), b"\0"].concat());
        body.push(u8::try_from(proof.len()).map_err(|_| "the proof is too long".to_owned())?);
        body.extend(proof);
        for text in self.database.as_deref().into_iter().chain([plugin]) {
            body.extend([text.as_bytes(), b"\0"].concat());
        }
        Ok(body)
    }

    async fn login(&self, wire: &mut Wire, user: &str, greeting: Greeting) -> Result<(), String> {
        let password = self.credentials.password().await?.unwrap_or_default();
        let mut plugin = greeting.plugin;
        // The server tells of a user's own plugin afterwards.
        let proof = prove(&plugin, &password, &greeting.salt).unwrap_or_default();
        Packet { number: 1, body: self.response(user, &plugin, &proof)? }.send(wire).await?;
        for _ in 0..MAX_PACKETS {
            let Packet { number, body } = Packet::next(wire).await?;
            let mut fields = Fields(&body);
            let answer = match (fields.byte()?, fields.0) {
                (0, _) => return Ok(()),
                (0xff, error) => return Err(format!("login: {}", error_in(error))),
                (0xfe, _) => {
                    plugin = String::from_utf8_lossy(fields.until_nul()?).into_owned();
                    let salt = fields.0.strip_suffix(&[0]).unwrap_or(fields.0);
                    prove(&plugin, &password, salt).ok_or_else(|| {
                        format!(
                            "login: the user is authenticated by {plugin}, which this check does not know"
                        )
                    })?
                }
                // The server has the password in its cache, and says OK next.
                (1, [3]) => continue,
                (1, [4]) if wire.is_local => [password.as_bytes(), b"\0"].concat(),
                (1, [4]) => {
                    return Err(format!(
                        "login: the server has not this user in the cache of {plugin} and wants the password over TLS; log in once, \
                         check by its unix socket, or give the user {NATIVE}"
                    ));
                }
                (other, _) => return Err(format!("login: that is not what MySQL answers ({other:#x})")),
            };
            Packet { number: number.wrapping_add(1), body: answer }.send(wire).await?;
        }
        Err(format!("login: more than {MAX_PACKETS} packets"))
    }
}

#[async_trait]
impl Check for Mysql {
    fn describe(&self) -> String {
        self.target.to_string()
    }

    fn hide_secrets(&mut self) {
        self.credentials.hide();
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty().or(self.credentials.liberty())
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let mut wire = Wire::connect(&self.target, instance).await?;
        let greeting = Greeting::read(&Packet::next(&mut wire).await?.body)?;
        let Some(user) = &self.credentials.username else {
            return Ok(format!("version {}", greeting.version));
        };
        let version = greeting.version.clone();
        self.login(&mut wire, user, greeting).await?;
        select(&mut wire).await?;
        Packet { number: 0, body: b"\x01".to_vec() }.part(wire).await;
        Ok(format!("version {version}, select 1 answered"))
    }
}

/// A number of columns, a column, a mark, a row, a mark (`COM_QUERY_Response`).
async fn select(wire: &mut Wire) -> Result<(), String> {
    Packet { number: 0, body: b"\x03select 1".to_vec() }.send(wire).await?;
    let mut answer = Vec::new();
    for _ in 0..5 {
        let Packet { body, .. } = Packet::next(wire).await?;
        if let [0xff, error @ ..] = body.as_slice() {
            return Err(format!("select 1: {}", error_in(error)));
        }
        answer.push(body);
    }
    if answer[3] == b"\x011" { Ok(()) } else { Err("select 1: the answer is not 1".to_owned()) }
}

/// What proves the password; `None` for a plugin that is not known here.
fn prove(plugin: &str, password: &str, salt: &[u8]) -> Option<Vec<u8>> {
    match plugin {
        NATIVE => Some(mysql_native(password, salt)),
        SHA2 => Some(mysql_sha2(password, salt)),
        _ => None,
    }
}

/// Code, mark and state stand before the text, the latter two not in every error.
fn error_in(error: &[u8]) -> String {
    let text = error.get(2..).unwrap_or_default();
    let text = if text.first() == Some(&b'#') { text.get(6..).unwrap_or_default() } else { text };
    String::from_utf8_lossy(text).into_owned()
}

impl Greeting {
    fn read(body: &[u8]) -> Result<Self, String> {
        let mut fields = Fields(body);
        match fields.byte()? {
            10 => {}
            0xff => return Err(error_in(fields.0)),
            _ => return Err("that is not what MySQL greets with".to_owned()),
        }
        let version = String::from_utf8_lossy(fields.until_nul()?).into_owned();
        fields.take(4)?;
        let mut salt = fields.take(8)?.to_vec();
        // A filler, capabilities, the character set, the status, more capabilities.
        fields.take(8)?;
        let length = usize::from(fields.byte()?);
        fields.take(10)?;
        let rest = fields.take(length.saturating_sub(8).max(13))?;
        salt.extend(rest.strip_suffix(&[0]).unwrap_or(rest));
        let plugin = fields
            .until_nul()
            .map_or_else(|_| NATIVE.to_owned(), |name| String::from_utf8_lossy(name).into_owned());
        Ok(Self { version, plugin, salt })
    }
}

impl Packet {
    async fn next(wire: &mut Wire) -> Result<Self, String> {
        let head = wire.exactly(4).await?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize;
        Ok(Self { number: head[3], body: wire.exactly(length).await? })
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        let length =
            u16::try_from(self.body.len()).map_err(|_| "too long to be sent".to_owned())?.to_le_bytes();
        Ok([&[length[0], length[1], 0, self.number], self.body.as_slice()].concat())
    }

    async fn send(&self, wire: &mut Wire) -> Result<(), String> {
        wire.send(&self.bytes()?).await
    }

    async fn part(&self, wire: Wire) {
        if let Ok(bytes) = self.bytes() {
            wire.part(&bytes).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_says_version_plugin_and_salt_and_may_be_an_error() {
        let mut body =
            b"\x0a5.5.5-10.11.19-MariaDB\0\x01\0\0\0abcdefgh\0\xfe\xf7\x2d\x02\0\xff\x81\x15".to_vec();
        body.extend(b"\0\0\0\0\0\0\x1d\0\0\0ijklmnopqrst\0mysql_native_password\0");
        let greeting = Greeting::read(&body).unwrap();
        assert_eq!(greeting.version, "5.5.5-10.11.19-MariaDB");
        assert_eq!(
            (greeting.plugin.as_str(), greeting.salt.as_slice()),
            (NATIVE, b"abcdefghijklmnopqrst".as_slice())
        );
        let barred = Greeting::read(b"\xff\x69\x04Host 'a' is blocked").map(|_| ()).unwrap_err();
        assert_eq!(barred, "Host 'a' is blocked");
        for cut in 0..body.len() {
            // Whatever is cut off, nothing panics.
            let _ = Greeting::read(&body[..cut]);
        }
    }
}
