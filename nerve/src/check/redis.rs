//! The Redis check: `PING` is answered, and optionally `EXISTS` of a key.
//!
//! Keys: `redis = true` for where the instance listens, or a port; `unix`; `username`, `password`, `password_file`; `key`.
//! `EXISTS` is for a proxy, which answers `PING` itself: any count is well, for it is the server behind that counts.
//! Writes nothing.

use async_trait::async_trait;
use serde::Serialize;

use super::connect::Target;
use super::credentials::Credentials;
use super::wire::Wire;
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::model::ListensOn;

/// Asks a Redis server, or what speaks its protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Redis {
    #[serde(flatten)]
    target: Target,
    #[serde(flatten)]
    credentials: Credentials,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Redis {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let target = Target::read(section, "redis");
        let credentials = Credentials::read(section);
        let key = section.given::<String>("key");
        let (target, credentials, key) = (target?, credentials?, key?);
        if credentials.username.is_some() && !credentials.has_password() {
            return Err(section.invalid("username", "there is no password with it", "a `password` too"));
        }
        Ok(Self { target, credentials, key })
    }

    async fn ask(&self, wire: &mut Wire) -> Result<String, String> {
        if let Some(password) = self.credentials.password().await? {
            let user = self.credentials.username.as_deref();
            let words: Vec<&str> = ["AUTH"].into_iter().chain(user).chain([&*password]).collect();
            wire.send(&command(&words)).await?;
            expect(wire, "AUTH", |reply| reply == "+OK").await?;
        }
        wire.send(&command(&["PING"])).await?;
        expect(wire, "PING", |reply| reply == "+PONG").await?;
        let Some(key) = &self.key else { return Ok("PONG".to_owned()) };
        wire.send(&command(&["EXISTS", key])).await?;
        let reply = expect(wire, "EXISTS", |reply| reply.starts_with(':')).await?;
        Ok(format!("PONG, EXISTS {}", &reply[1..]))
    }
}

#[async_trait]
impl Check for Redis {
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
        let verdict = self.ask(&mut wire).await?;
        wire.part(&command(&["QUIT"])).await;
        Ok(verdict)
    }
}

/// A command as Redis's protocol has it, whatever is in its words.
fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    bytes
}

/// The reply to a command, if it is as `well` says.
async fn expect(wire: &mut Wire, command: &str, well: impl Fn(&str) -> bool) -> Result<String, String> {
    let reply = wire.line().await.map_err(|error| format!("{command}: {error}"))?;
    if well(&reply) {
        return Ok(reply);
    }
    match reply.strip_prefix('-') {
        Some(error) => Err(format!("{command}: {error}")),
        None => Err(format!("{command}: {reply:?} is not what Redis answers")),
    }
}
