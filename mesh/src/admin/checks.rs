//! What applications of this node report of themselves, in our shape and in Consul's; and how the checks of an instance stand.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use hyper::StatusCode;
use nerve::check::{CheckStatus, Level, SelfReport};
use nerve::registrar::{LocalInstance, ReportError};
use nerve::source::InstanceKey;
use serde::Deserialize;

use super::refusal::{Answer, Refusal};
use super::write::body;
use super::{Handles, Shared};
use crate::api::{CheckInfo, ConsulUpdate, ProbeInfo, ReportRequest, Reported};

/// The checks of an instance of this node.
pub(super) fn of(instance: &LocalInstance) -> Vec<CheckInfo> {
    let definition = &instance.located.definition;
    let specs = &definition.checks;
    let shown = |(place, check): (usize, &CheckStatus)| CheckInfo {
        kind: check.kind.to_owned(),
        description: check.description.clone(),
        id: specs.get(place).and_then(|spec| spec.report_id(definition.key.id.as_str(), place, specs.len())),
        health: check.health,
        last: check.last.as_ref().map(|last| ProbeInfo {
            result: last.level().as_str().to_owned(),
            text: last.text.clone(),
            output: last.output.clone(),
            latency_us: u64::try_from(last.latency.as_micros()).unwrap_or(u64::MAX),
            at_unix_ms: since_1970(last.at),
        }),
    };
    instance.report.checks.iter().enumerate().map(shown).collect()
}

fn since_1970(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis()).unwrap_or(u64::MAX)
}

pub(super) async fn report(
    State(handles): Shared,
    Path(check): Path<String>,
    request: Request,
) -> Answer<Reported> {
    let ReportRequest { status, output } = body(request).await?;
    tell(&handles, &check, level(&status)?, output)
        .map(|InstanceKey { service, id }| Json(Reported { service, instance: id }))
}

/// What comes with a status that stands in the path.
#[derive(Debug, Deserialize)]
pub(super) struct Note {
    #[serde(default)]
    note: String,
}

/// `/v1/agent/check/{pass,warn,fail}/ID?note=`: an empty answer, as Consul gives it.
pub(super) async fn consul(
    State(handles): Shared,
    Path((verb, check)): Path<(String, String)>,
    note: Result<Query<Note>, QueryRejection>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let (level, text) = match verb.as_str() {
        "pass" => (Level::Passing, None),
        "warn" => (Level::Warning, None),
        "fail" => (Level::Critical, None),
        "update" => {
            let ConsulUpdate { status, output } = body(request).await?;
            (level(&status)?, Some(output))
        }
        _ => {
            let error = format!("there is nothing at /v1/agent/check/{verb}");
            return Err(Refusal::new(StatusCode::NOT_FOUND, error).hint("pass, warn, fail or update"));
        }
    };
    let Query(Note { note }) = note.map_err(|wrong| Refusal::bad_request(wrong.body_text()))?;
    tell(&handles, &check, level, text.unwrap_or(note)).map(|_| StatusCode::OK)
}

fn level(word: &str) -> Result<Level, Refusal> {
    [Level::Passing, Level::Warning, Level::Critical]
        .into_iter()
        .find(|level| level.as_str() == word)
        .ok_or_else(|| {
            Refusal::bad_request(format!("{word:?} is no status")).hint("`passing`, `warning` or `critical`")
        })
}

fn tell(handles: &Handles, check: &str, level: Level, text: String) -> Result<InstanceKey, Refusal> {
    handles.registrar.report(check, SelfReport { level, text }).map_err(|error| match error {
        ReportError::Unknown(_) => Refusal::new(StatusCode::NOT_FOUND, error),
        ReportError::Ambiguous { .. } => Refusal::conflict(error),
    })
}
