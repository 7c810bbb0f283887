//! The memcached check: `version` is answered.
//!
//! Keys: `memcached = true` for where the instance listens, or a port; `unix`.

use async_trait::async_trait;
use serde::Serialize;

use super::connect::Target;
use super::wire::Wire;
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::model::ListensOn;

/// Asks memcached for its version, by its text protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Memcached {
    target: Target,
}

impl Memcached {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        Ok(Self { target: Target::read(section, "memcached")? })
    }
}

#[async_trait]
impl Check for Memcached {
    fn describe(&self) -> String {
        self.target.to_string()
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty()
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let mut wire = Wire::connect(&self.target, instance).await?;
        wire.send(b"version\r\n").await?;
        let reply = wire.line().await?;
        let Some(version) = reply.strip_prefix("VERSION ") else {
            return Err(format!("{reply:?} is not what memcached answers"));
        };
        wire.part(b"quit\r\n").await;
        Ok(format!("version {version}"))
    }
}
