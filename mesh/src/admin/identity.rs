//! Who this node is, join tokens, revocations, and the rotation of the authority.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Request, State};
use hyper::StatusCode;
use nerve::model::NodeName;

use super::refusal::{Answer, Refusal};
use super::write::body;
use super::{Handles, Shared};
use crate::api::{
    AbortRequest, AwaitedNode, Changed, IdentityInfo, JoinToken, JoinTokenRequest, RevokeRequest,
    RevokedNode, RotationInfo, RotationPhase, Rotations,
};
use crate::identity::{EnrolmentError, Handle, Lack, Member, NoToken, Phase, Progress, Terms};

/// The longest that a token may be good.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

fn identity(handles: &Handles) -> Result<&Handle, Refusal> {
    let missing = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is still starting");
    handles.identity.as_ref().ok_or_else(missing)
}

pub(super) async fn info(State(handles): Shared) -> Answer<IdentityInfo> {
    let Some(info) = identity(&handles)?.info() else {
        let error = "this node proves itself to nobody: there is neither an authority nor a join token here";
        let hint = "`plexus ca init` makes an authority; start the agent with identity.authority, or with `--join TOKEN`";
        return Err(Refusal::new(StatusCode::NOT_FOUND, error).hint(hint));
    };
    let at = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
    let revoked = info.revoked.into_iter().map(|(node, since)| RevokedNode { node, at: shown(at(since)) });
    Ok(Json(IdentityInfo {
        id: info.certified.as_ref().map(|certified| certified.id.to_string()),
        not_after: info.certified.as_ref().map(|certified| shown(certified.not_after)),
        authorities: info.roots.iter().map(ToString::to_string).collect(),
        signs: info.signs,
        revoked: revoked.collect(),
        problem: info.problem,
    }))
}

pub(super) async fn make_token(State(handles): Shared, request: Request) -> Answer<JoinToken> {
    let JoinTokenRequest { ttl_seconds, uses, node } = body(request).await?;
    let life = Duration::from_secs(ttl_seconds);
    if life.is_zero() || life > LONGEST {
        return Err(Refusal::bad_request(
            "a join token is good for a second at least, and for 30 days at most",
        ));
    }
    let token = identity(&handles)?.make_token(Terms { life, uses, node }).await;
    let token = token.map_err(|error| match error {
        NoToken::SignsNot => Refusal::conflict(error).hint("ask such a node by `--admin`"),
        NoToken::Refused(_) => Refusal::conflict(error),
    })?;
    let grant = token.grant();
    tracing::info!(token = %grant.id, uses = ?grant.uses, node = ?grant.node, "made a join token");
    Ok(Json(JoinToken {
        token: token.text().to_owned(),
        id: grant.id.to_string(),
        expires: shown(grant.expires),
        authority: grant.root.to_string(),
    }))
}

pub(super) async fn revoke(
    State(handles): Shared,
    Path(node): Path<String>,
    request: Request,
) -> Answer<Changed> {
    let RevokeRequest {} = body(request).await?;
    let node = NodeName::new(&node).map_err(Refusal::bad_request)?;
    let identity = identity(&handles)?;
    let failed = |error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error);
    identity.revoke(&node).await.map_err(failed)?;
    let mut notes = Vec::new();
    if handles.catalog.node(node.as_str()).is_none() {
        notes.push(format!("no node is called {node} at the moment"));
    }
    let message = format!(
        "the certificates of {node} are refused from now on; it comes back by `plexus join-token create --node {node}`"
    );
    Ok(Json(Changed { message, changed: true, notes }))
}

pub(super) async fn rotation(State(handles): Shared) -> Answer<Rotations> {
    let progress = identity(&handles)?.rotation().await;
    let progress = progress.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error))?;
    let rotation = progress.map(|Progress { rotation, nodes, waits_for }| RotationInfo {
        from: rotation.from.to_string(),
        to: rotation.to.to_string(),
        phase: phase(rotation.phase),
        nodes,
        waits_for: waits_for.into_iter().map(|(member, lack)| awaited(member, lack)).collect(),
    });
    Ok(Json(Rotations { rotation }))
}

fn phase(phase: Phase) -> RotationPhase {
    match phase {
        Phase::Trust => RotationPhase::Trust,
        Phase::Renew => RotationPhase::Renew,
        Phase::Done => RotationPhase::Done,
        Phase::Revert => RotationPhase::Revert,
        Phase::Aborted => RotationPhase::Aborted,
    }
}

fn awaited(member: Member, lack: Lack) -> AwaitedNode {
    let why = match lack {
        Lack::Report => "it does not say whom it believes: is its agent older?",
        Lack::Trust if member.report.is_some_and(|report| report.signs) => {
            "it signs, and its directory has no key of the new authority: copy the directory"
        }
        Lack::Trust => "it does not believe the new authority yet",
        Lack::Certificate if !member.is_live => {
            "its agent does not run, and its certificate still holds: `plexus node revoke` has nobody wait for it"
        }
        Lack::Certificate => "its certificate is of the other authority",
    };
    AwaitedNode { node: member.node, why: why.to_owned() }
}

pub(super) async fn abort_rotation(State(handles): Shared, request: Request) -> Answer<Changed> {
    let AbortRequest {} = body(request).await?;
    identity(&handles)?.abort_rotation().await.map_err(|error| match error {
        EnrolmentError::NothingToAbort => Refusal::conflict(error),
        error => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error),
    })?;
    let message =
        "the rotation of the authority is taken back; `plexus ca status` shows how far that is".to_owned();
    Ok(Json(Changed { message, changed: true, notes: Vec::new() }))
}

fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
