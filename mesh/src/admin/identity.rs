//! Who this node is, join tokens, and revocations.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Path, Request, State};
use hyper::StatusCode;
use nerve::model::NodeName;

use super::refusal::{Answer, Refusal};
use super::write::body;
use super::{Handles, Shared};
use crate::api::{Changed, IdentityInfo, JoinToken, JoinTokenRequest, RevokeRequest, RevokedNode};
use crate::identity::{Handle, Terms};

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
    let token = identity(&handles)?.make_token(Terms { life, uses, node });
    let token = token.map_err(|error| Refusal::conflict(error).hint("ask such a node by `--admin`"))?;
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

fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
