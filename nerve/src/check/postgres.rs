//! The PostgreSQL check: the server answers a startup message, or logs a user in and answers `select 1`.
//!
//! Keys: `postgres = true` for where the instance listens, or a port; `unix`; `username`, `password`, `password_file`;
//! `database` (the user's name). Without `username` nobody logs in: as for `pg_isready`, any answer is well with which the
//! server says that it lets clients in. Passwords are proven by SCRAM-SHA-256 or md5, never sent. TLS is not spoken.

use async_trait::async_trait;
use serde::Serialize;

use super::connect::Target;
use super::credentials::Credentials;
use super::scram::{Scram, postgres_md5};
use super::wire::{Fields, Wire};
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::model::ListensOn;

/// Protocol 3.0.
const PROTOCOL: u32 = 3 << 16;
/// So many messages may an answer have.
const MAX_MESSAGES: usize = 200;
/// As whom a check without a user knocks. It need not exist.
const KNOCKS_AS: &str = "plexus";

/// Asks a PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Postgres {
    #[serde(flatten)]
    target: Target,
    #[serde(flatten)]
    credentials: Credentials,
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<String>,
}

/// One message of the server.
struct Message {
    kind: u8,
    body: Vec<u8>,
}

impl Postgres {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let target = Target::read(section, "postgres");
        let credentials = Credentials::read_with_user(section);
        let database = section.given::<String>("database");
        let (target, credentials, database) = (target?, credentials?, database?);
        if database.is_some() && credentials.username.is_none() {
            return Err(section.invalid("database", "nobody logs in to it", "a `username` too"));
        }
        Ok(Self { target, credentials, database })
    }

    async fn login(&self, wire: &mut Wire, user: &str) -> Result<(), String> {
        for _ in 0..MAX_MESSAGES {
            let message = Message::next(wire).await?;
            match message.kind {
                b'R' => self.authenticate(wire, user, &message.body).await?,
                b'Z' => return Ok(()),
                b'E' => return Err(format!("login: {}", message.error().1)),
                _ => {}
            }
        }
        Err(format!("login: more than {MAX_MESSAGES} messages"))
    }

    async fn authenticate(&self, wire: &mut Wire, user: &str, request: &[u8]) -> Result<(), String> {
        let mut fields = Fields(request);
        let way = fields.long_be()?;
        if way == 0 {
            return Ok(());
        }
        let password = self.credentials.password().await?;
        let password = password.ok_or("login: the server asks for a password, and none is configured")?;
        match way {
            5 => {
                let proof = postgres_md5(user, &password, fields.array()?);
                wire.send(&message(b'p', &[proof.as_bytes(), b"\0"].concat())?).await
            }
            10 => {
                if !fields.0.split(|byte| *byte == 0).any(|way| way == b"SCRAM-SHA-256") {
                    return Err("login: the server asks for SASL, but not for SCRAM-SHA-256".to_owned());
                }
                scram(wire, password).await
            }
            3 => Err("login: the server asks for the password in the clear, which is not done; set \
                      password_encryption = 'scram-sha-256' there"
                .to_owned()),
            other => Err(format!(
                "login: the server asks for authentication {other}, which this check does not know"
            )),
        }
    }

    async fn select(&self, wire: &mut Wire) -> Result<(), String> {
        wire.send(&message(b'Q', b"select 1\0")?).await?;
        let mut row = false;
        for _ in 0..MAX_MESSAGES {
            let message = Message::next(wire).await?;
            match message.kind {
                b'D' => row = true,
                b'E' => return Err(format!("select 1: {}", message.error().1)),
                b'Z' if row => return Ok(()),
                b'Z' => return Err("select 1: no row".to_owned()),
                _ => {}
            }
        }
        Err(format!("select 1: more than {MAX_MESSAGES} messages"))
    }
}

/// Logs in, to what the server has agreed with itself. The rounds of hashing are another thread's.
async fn scram(wire: &mut Wire, password: String) -> Result<(), String> {
    let scram = Scram::begin()?;
    let first = scram.first();
    let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
    wire.send(&message(b'p', &[b"SCRAM-SHA-256\0".as_slice(), &length, first.as_bytes()].concat())?).await?;
    let challenge = Message::next(wire).await?.sasl(11)?;
    let proof = tokio::task::spawn_blocking(move || scram.prove(&challenge, &password));
    let proof = proof.await.map_err(|error| format!("login: {error}"))??;
    wire.send(&message(b'p', proof.message.as_bytes())?).await?;
    let answer = Message::next(wire).await?.sasl(12)?;
    if answer == proof.answer {
        Ok(())
    } else {
        Err("login: the server does not know the password itself: it is not the one that it claims to be"
            .to_owned())
    }
}

#[async_trait]
impl Check for Postgres {
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
        let Some(user) = &self.credentials.username else {
            wire.send(&startup(KNOCKS_AS, "postgres")?).await?;
            let verdict = knocked(&Message::next(&mut wire).await?)?;
            wire.part(b"").await;
            return Ok(verdict);
        };
        wire.send(&startup(user, self.database.as_deref().unwrap_or(user))?).await?;
        self.login(&mut wire, user).await?;
        self.select(&mut wire).await?;
        wire.part(&message(b'X', b"")?).await;
        Ok("select 1 answered".to_owned())
    }
}

/// What the first message says of a server that nobody logs in to.
fn knocked(first: &Message) -> Result<String, String> {
    match first.kind {
        b'R' => Ok("asks who it is".to_owned()),
        b'E' => {
            let (code, text) = first.error();
            // 57P: it starts, stops or recovers. 53: it is out of connections, memory or disk.
            if code.starts_with("57P") || code.starts_with("53") {
                Err(text)
            } else {
                Ok(format!("answers: {text}"))
            }
        }
        _ => Err("that is not what PostgreSQL answers".to_owned()),
    }
}

fn startup(user: &str, database: &str) -> Result<Vec<u8>, String> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for text in ["user", user, "database", database, "application_name", "plexus-check", ""] {
        body.extend(text.bytes());
        body.push(0);
    }
    with_length(&body)
}

fn message(kind: u8, body: &[u8]) -> Result<Vec<u8>, String> {
    Ok([vec![kind], with_length(body)?].concat())
}

/// The length counts itself.
fn with_length(body: &[u8]) -> Result<Vec<u8>, String> {
    let length = u32::try_from(body.len() + 4).map_err(|_| "too long to be sent".to_owned())?;
    Ok([&length.to_be_bytes(), body].concat())
}

impl Message {
    async fn next(wire: &mut Wire) -> Result<Self, String> {
        let head = wire.exactly(5).await?;
        let mut fields = Fields(&head);
        let (kind, length) = (fields.byte()?, fields.long_be()? as usize);
        let length = length.checked_sub(4).ok_or("that is not what PostgreSQL answers")?;
        Ok(Self { kind, body: wire.exactly(length).await? })
    }

    /// The code and the text of an error.
    fn error(&self) -> (String, String) {
        let mut fields = Fields(&self.body);
        let (mut code, mut text) = (String::new(), String::new());
        while let (Ok(name @ 1..), Ok(value)) = (fields.byte(), fields.until_nul()) {
            let value = String::from_utf8_lossy(value).into_owned();
            match name {
                b'C' => code = value,
                b'M' => text = value,
                _ => {}
            }
        }
        (code, text)
    }

    /// The text of a step of SASL.
    fn sasl(&self, step: u32) -> Result<String, String> {
        let mut fields = Fields(&self.body);
        match self.kind {
            b'E' => Err(format!("login: {}", self.error().1)),
            b'R' if fields.long_be()? == step => Ok(String::from_utf8_lossy(fields.0).into_owned()),
            _ => Err("login: the server leaves SCRAM half-way".to_owned()),
        }
    }
}
