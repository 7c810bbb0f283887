//! Changes that a user asks for: published ports, instances of this node, drains.

use axum::Json;
use axum::body::{Body, HttpBody};
use axum::extract::{Path, Request, State};
use hyper::StatusCode;
use nerve::model::{PublishedPort, ServiceName, SettingKey};
use nerve::publish::{self, Published, Unpublished};
use nerve::settings;
use nerve::store::ErrorKind;
use serde::de::DeserializeOwned;

use super::refusal::{Answer, Refusal, nearest};
use super::{Handles, Shared};
use crate::api::{Changed, PublishRequest};

/// The largest request body. The longest that is meant is one definition of an instance.
const MAX_BODY_BYTES: usize = 64 * 1024;
pub(super) async fn publish(
    State(handles): Shared,
    Path(service): Path<String>,
    request: Request,
) -> Answer<Changed> {
    let service = service_name(&service)?;
    let PublishRequest { port } = body(request).await?;
    let done = publish::publish(&*handles.store, &service, port.clone()).await.map_err(publish_refusal)?;
    let message = match &done {
        Published::Added => format!("{port} is published for {service}: every node opens it"),
        Published::Changed(before) => format!("{port} is published for {service}; it was {before} before"),
        Published::Unchanged => format!("{port} is already published for {service}"),
    };
    let notes = publication_notes(&handles, &service, &port);
    Ok(Json(Changed { message, changed: done != Published::Unchanged, notes }))
}

pub(super) async fn unpublish(
    State(handles): Shared,
    Path((service, port, protocol)): Path<(String, String, String)>,
) -> Answer<Changed> {
    let service = service_name(&service)?;
    let port: PublishedPort = format!("{port}/{protocol}").parse().map_err(Refusal::bad_request)?;
    let PublishedPort { port, protocol, .. } = port;
    let done =
        publish::unpublish(&*handles.store, &service, port, protocol).await.map_err(publish_refusal)?;
    let mut notes = Vec::new();
    let (message, changed) = match &done {
        Unpublished::Removed(port) => {
            (format!("{port} is no longer published for {service}: every node closes it"), true)
        }
        Unpublished::Unchanged => {
            notes.extend(unknown_service(&handles, &service));
            (format!("{port}/{protocol} was not published for {service}"), false)
        }
    };
    Ok(Json(Changed { message, changed, notes }))
}

/// What a user should know about a publication that worked: it may lead nowhere yet.
fn publication_notes(handles: &Handles, service: &ServiceName, port: &PublishedPort) -> Vec<String> {
    let known = handles.catalog.service(service.as_str()).filter(|known| !known.endpoints.is_empty());
    let Some(known) = known else {
        return vec![unknown_service(handles, service).unwrap_or_else(|| {
            format!("service {service} has no endpoint yet: connections are refused until one is registered")
        })];
    };
    let Some(target) = &port.target else { return Vec::new() };
    if known.endpoints.iter().any(|e| e.instance.ports.contains_key(target)) {
        return Vec::new();
    }
    vec![format!("no endpoint of {service} has a port named {target}: connections are refused until one has")]
}

/// A hint at the service that was probably meant, where none is known by this name.
pub(super) fn unknown_service(handles: &Handles, service: &ServiceName) -> Option<String> {
    if handles.catalog.service(service.as_str()).is_some_and(|known| !known.endpoints.is_empty()) {
        return None;
    }
    let services = handles.catalog.services();
    let known = services.iter().filter(|s| !s.endpoints.is_empty() && s.name != *service);
    nearest(service.as_str(), known.map(|s| s.name.as_str()))
        .map(|near| format!("service {service} has no endpoint yet; did you mean {near:?}?"))
}

fn publish_refusal(error: publish::Error) -> Refusal {
    match error {
        publish::Error::Taken { .. } => Refusal::conflict(error),
        publish::Error::Settings(error) => settings_refusal(error),
        publish::Error::Store(error) => store_refusal(&error),
    }
}

pub(super) fn settings_refusal(error: settings::Error) -> Refusal {
    match error {
        settings::Error::Unknown { name } => {
            let known = SettingKey::all().map(|key| key.name);
            let refusal = Refusal::unknown("setting", &name, known);
            refusal.or_hint("`plexus settings SERVICE` lists them")
        }
        settings::Error::Value(_) => Refusal::bad_request(error),
        settings::Error::Contended { .. } => Refusal::conflict(error),
        settings::Error::Unreadable { .. } => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error),
        settings::Error::Store(error) => store_refusal(&error),
    }
}

fn store_refusal(error: &nerve::store::Error) -> Refusal {
    let status = match error.kind {
        ErrorKind::Unavailable | ErrorKind::SessionLost => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Corrupt => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let refusal = Refusal::new(status, error);
    if error.is_retryable() {
        refusal
            .hint("the settings of services are kept in the store: try again when it is reachable (`plexus status`)")
    } else {
        refusal
    }
}

pub(super) fn service_name(text: &str) -> Result<ServiceName, Refusal> {
    ServiceName::new(text).map_err(Refusal::bad_request)
}

/// The whole body; refused before it is read where its length says that it is too large.
pub(super) async fn bytes(body: Body) -> Result<axum::body::Bytes, Refusal> {
    let too_large = || {
        let error = format!("the request's body has more than {MAX_BODY_BYTES} bytes, or it broke off");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error)
    };
    if usize::try_from(body.size_hint().lower()).map_or(true, |length| length > MAX_BODY_BYTES) {
        return Err(too_large());
    }
    axum::body::to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| too_large())
}

/// The body as the JSON that is expected.
pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let bytes = bytes(request.into_body()).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::bad_request(format!("the request's body is not what is expected: {error}")))
}
