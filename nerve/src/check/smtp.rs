//! The SMTP check: a greeting with 220, and optionally an answer to `EHLO` with 250 (RFC 5321 sections 3.1 and 3.2).
//!
//! Keys: `smtp = true` for where the instance listens, or a port; `unix`; `ehlo`, the name to say it with.
//! It leaves by `QUIT`, and never begins a mail.

use async_trait::async_trait;
use serde::Serialize;

use super::connect::Target;
use super::wire::Wire;
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::model::ListensOn;

/// So many lines may one reply have.
const MAX_LINES: usize = 100;

/// Waits for the greeting of a mail server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Smtp {
    #[serde(flatten)]
    target: Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    ehlo: Option<String>,
}

impl Smtp {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (target, ehlo) = (Target::read(section, "smtp"), section.given::<String>("ehlo"));
        let (target, ehlo) = (target?, ehlo?);
        let is_name = |name: &String| {
            !name.is_empty() && name.len() <= 255 && name.bytes().all(|b| b.is_ascii_graphic())
        };
        if ehlo.as_ref().is_some_and(|name| !is_name(name)) {
            return Err(section.invalid(
                "ehlo",
                "it is no name of a host",
                "such as \"monitor.example.com\"",
            ));
        }
        Ok(Self { target, ehlo })
    }
}

#[async_trait]
impl Check for Smtp {
    fn describe(&self) -> String {
        self.target.to_string()
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty()
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let mut wire = Wire::connect(&self.target, instance).await?;
        let greeting = reply(&mut wire, "220").await?;
        if let Some(name) = &self.ehlo {
            wire.send(format!("EHLO {name}\r\n").as_bytes()).await?;
            reply(&mut wire, "250").await.map_err(|error| format!("EHLO: {error}"))?;
        }
        wire.part(b"QUIT\r\n").await;
        Ok(greeting)
    }
}

/// The first line of a reply, all of which is read; it is to have this code.
async fn reply(wire: &mut Wire, code: &str) -> Result<String, String> {
    let mut first = None;
    for _ in 0..MAX_LINES {
        let line = wire.line().await?;
        let goes_on = line.as_bytes().get(3) == Some(&b'-');
        if !line.starts_with(code) {
            return Err(format!("{line:?} instead of a {code}"));
        }
        let first = first.get_or_insert(line);
        if !goes_on {
            return Ok(std::mem::take(first));
        }
    }
    Err(format!("a reply of more than {MAX_LINES} lines"))
}
