//! Containers and other network namespaces of this node on overlay networks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;
use axum::Json;
use axum::extract::{Path, Request, State};
use hyper::StatusCode;
use nerve::model::{NetworkName, NodeName};

use super::Shared;
use super::refusal::{Answer, Refusal, nearest};
use super::write::body;
use crate::api::{
    AttachRequest, Attachable, Attachment, AttachmentCheck, Attachments, Changed, Encryption, NewAttachment,
};

/// Attaches and detaches. The agent composes it of the handle of the overlay, so that this room does not know its types.
#[async_trait]
pub trait Attacher: Send + Sync {
    /// Attaches a network namespace to a network.
    ///
    /// # Errors
    /// Why it was not done.
    async fn attach(&self, request: AttachRequest) -> Result<NewAttachment, NotAttached>;

    /// Detaches one; `None`: there is none of that name.
    ///
    /// # Errors
    /// Why it was not done.
    async fn detach(&self, id: &str) -> Result<Option<Attachment>, NotAttached>;

    /// Compares one with what the kernel has; `None`: there is none of that name.
    ///
    /// # Errors
    /// Why that cannot be told.
    async fn check(&self, id: &str) -> Result<Option<AttachmentCheck>, NotAttached>;

    /// What something would be given of a network here, now.
    ///
    /// # Errors
    /// Why it would be given nothing.
    async fn attachable(&self, network: &NetworkName) -> Result<Attachable, NotAttached>;

    /// What is attached on this node.
    fn attached(&self) -> Vec<Attachment>;

    /// Can what this node sends to others be encrypted?
    ///
    /// # Errors
    /// Why not.
    async fn can_encrypt(&self) -> Result<(), String>;

    /// What this node encrypts with what it sends to others, by their names and addresses.
    fn encrypts(&self) -> BTreeMap<(NodeName, IpAddr), Encryption>;
}

/// Why something was not attached or detached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAttached {
    /// The request is wrong in itself, or names what is not there.
    Wrong(String),
    /// It contradicts what is there.
    Taken(String),
    /// This node cannot at the moment.
    Unavailable(String),
}

impl fmt::Display for NotAttached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(why) | Self::Taken(why) | Self::Unavailable(why) => f.write_str(why),
        }
    }
}

impl From<NotAttached> for Refusal {
    fn from(failure: NotAttached) -> Self {
        match &failure {
            NotAttached::Wrong(_) => Self::bad_request(failure),
            NotAttached::Taken(_) => Self::conflict(failure),
            NotAttached::Unavailable(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, failure),
        }
    }
}

pub(super) async fn list(State(handles): Shared) -> Json<Attachments> {
    Json(Attachments { attachments: handles.attacher.attached() })
}

pub(super) async fn attach(State(handles): Shared, request: Request) -> Answer<NewAttachment> {
    let request: AttachRequest = body(request).await?;
    Ok(Json(handles.attacher.attach(request).await?))
}

pub(super) async fn check(State(handles): Shared, Path(id): Path<String>) -> Answer<AttachmentCheck> {
    if let Some(checked) = handles.attacher.check(&id).await? {
        return Ok(Json(checked));
    }
    let known = handles.attacher.attached();
    let refusal = Refusal::unknown("attachment", &id, known.iter().map(|known| known.id.as_str()));
    Err(refusal.or_hint("`plexus attachments` lists what is attached on this node"))
}

pub(super) async fn attachable(State(handles): Shared, Path(network): Path<String>) -> Answer<Attachable> {
    let network = NetworkName::new(&network).map_err(Refusal::bad_request)?;
    Ok(Json(handles.attacher.attachable(&network).await?))
}

pub(super) async fn detach(State(handles): Shared, Path(id): Path<String>) -> Answer<Changed> {
    if let Some(Attachment { id, network, addresses, .. }) = handles.attacher.detach(&id).await? {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let message = format!("{id} is detached from network {network}; {} is free", addresses.join(" and "));
        return Ok(Json(Changed { message, changed: true, notes: Vec::new() }));
    }
    let known = handles.attacher.attached();
    let near = nearest(&id, known.iter().map(|attachment| attachment.id.as_str()));
    let notes = near.map(|near| format!("did you mean {near:?}?")).into_iter().collect();
    Ok(Json(Changed { message: format!("{id} was not attached on this node"), changed: false, notes }))
}
