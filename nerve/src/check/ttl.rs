//! The TTL check: the application reports, and silence is critical.
//!
//! Keys: `ttl` (how long a report holds), `id` (by which it is reported to; default `service:<instance>`, and where an instance
//! has several checks `service:<instance>:<place of the check, from 1>`, as Consul has it). One report decides: `rise` and `fall`
//! are 1 unless said. Nothing is asked, so there is no `interval` and no `timeout`.

use async_trait::async_trait;
use serde::Serialize;

use super::means::Of;
use super::reports::SelfReport;
use super::seen::Seen;
use super::{Judge, Manner};
use crate::document::{Reported, Section};
use crate::period::Period;

/// The longest id, in bytes.
const MAX_ID: usize = 128;

/// Waits for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ttl {
    ttl: Period,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

impl Ttl {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let ttl = section.required("ttl");
        let id = section.given::<String>("id");
        let (ttl, id) = (ttl?, id?);
        let bad = |id: &String| {
            id.is_empty() || id.len() > MAX_ID || id.chars().any(|c| c.is_control() || c == '/')
        };
        if let Some(id) = id.as_ref().filter(|id| bad(id)) {
            return Err(section.invalid(
                "id",
                format!("{id:?} cannot stand in a path"),
                format!("1 to {MAX_ID} bytes without \"/\" and control characters"),
            ));
        }
        Ok(Self { ttl, id })
    }

    /// By what it is reported to, at this place of an instance with so many checks.
    #[must_use]
    pub fn id(&self, instance: &str, place: usize, of: usize) -> String {
        match &self.id {
            Some(id) => id.clone(),
            None => default_id(instance, place, of),
        }
    }
}

/// What a check is called that has no id of its own, at this place of an instance with so many checks; as Consul has it.
#[must_use]
pub fn default_id(instance: &str, place: usize, of: usize) -> String {
    if of == 1 { format!("service:{instance}") } else { format!("service:{instance}:{}", place + 1) }
}

#[async_trait]
impl Judge for Ttl {
    fn describe(&self) -> String {
        format!("ttl {}", self.ttl)
    }

    fn manner(&self) -> Manner {
        Manner::IsTold
    }

    async fn judge(&self, of: &Of<'_>) -> Seen {
        match tokio::time::timeout(self.ttl.get(), of.reports.next()).await {
            Ok(SelfReport { level, text }) if text.is_empty() => {
                Seen::new(level, format!("it reports {}", level.as_str()))
            }
            Ok(SelfReport { level, text }) => Seen::new(level, text),
            Err(_) => Seen::critical(format!("no report within {}", self.ttl)),
        }
    }
}
