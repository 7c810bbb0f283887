//! Changes that a user asks for: published ports, instances of this node, drains.

use axum::Json;
use axum::body::{Body, HttpBody};
use axum::extract::{Path, Request, State};
use hyper::StatusCode;
use nerve::model::{PortRange, Protocol, PublishMode, PublishedPort, ServiceName, SettingKey, VirtualIp};
use nerve::publish::{self, Published, Unpublished};
use nerve::settings;
use nerve::store::ErrorKind;
use serde::de::DeserializeOwned;

use super::refusal::{Answer, Refusal, nearest};
use super::{Handles, Shared};
use crate::api::{Changed, PublishRequest, VipRequest};

/// The largest request body. The longest that is meant is one definition of an instance.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// What is in the store that most requests are about.
const SETTINGS: &str = "the settings of services";

pub(super) async fn publish(
    State(handles): Shared,
    Path(service): Path<String>,
    request: Request,
) -> Answer<Changed> {
    let service = service_name(&service)?;
    let PublishRequest { port } = body(request).await?;
    let done = publish::publish(&*handles.store, &service, port.clone()).await.map_err(publish_refusal)?;
    let message = match &done {
        Published::Added => format!("{port} is published for {service}: {}", opens_where(&port)),
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
    let port: PortRange = port.parse().map_err(Refusal::bad_request)?;
    let protocol: Protocol = protocol.parse().map_err(Refusal::bad_request)?;
    let done =
        publish::unpublish(&*handles.store, &service, port, protocol).await.map_err(publish_refusal)?;
    let mut notes = Vec::new();
    let (message, changed) = match &done {
        Unpublished::Removed(port) => {
            (format!("{port} is no longer published for {service}: nodes close it"), true)
        }
        Unpublished::Unchanged => {
            notes.extend(unknown_service(&handles, &service));
            notes.extend(part_of_another(&handles, &service, port, protocol));
            (format!("{port}/{protocol} was not published for {service}"), false)
        }
    };
    Ok(Json(Changed { message, changed, notes }))
}

pub(super) async fn set_vip(
    State(handles): Shared,
    Path(service): Path<String>,
    request: Request,
) -> Answer<Changed> {
    let service = service_name(&service)?;
    let VipRequest { vip } = body(request).await?;
    let changed = publish::set_vip(&*handles.store, &service, vip).await.map_err(publish_refusal)?;
    let message = match vip {
        VirtualIp::On => {
            format!("{service} gets a virtual address, on nodes that are configured with a range")
        }
        VirtualIp::Off => {
            format!("{service} has no virtual address: its name is answered with its endpoints")
        }
    };
    Ok(Json(Changed { message, changed, notes: unknown_service(&handles, &service).into_iter().collect() }))
}

fn opens_where(port: &PublishedPort) -> String {
    let nodes = match port.mode {
        PublishMode::Ingress => "every node",
        PublishMode::Host => "each node that runs an instance",
    };
    if port.addresses.is_empty() {
        return format!("{nodes} opens it");
    }
    let addresses: Vec<String> = port.addresses.iter().map(ToString::to_string).collect();
    format!("{nodes} with an address in {} opens it", addresses.join(" or "))
}

/// A range is withdrawn as a whole: of whoever names a part of one the rest may be needed.
fn part_of_another(
    handles: &Handles,
    service: &ServiceName,
    ports: PortRange,
    protocol: Protocol,
) -> Option<String> {
    let known = handles.catalog.service(service.as_str())?;
    let overlaps = |p: &&PublishedPort| p.protocol == protocol && p.range().overlaps(ports);
    let held = known.settings.published.iter().find(overlaps)?;
    Some(format!(
        "{service} publishes {held}: `plexus unpublish {service} {}/{protocol}` withdraws that",
        held.range()
    ))
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
    if known.endpoints.iter().any(|e| e.instance.port_number(target).is_some()) {
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
        publish::Error::Taken { .. } | publish::Error::Overlaps { .. } => Refusal::conflict(error),
        publish::Error::Settings(error) => settings_refusal(error),
        publish::Error::Store(error) => store_refusal(SETTINGS, &error),
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
        settings::Error::Store(error) => store_refusal(SETTINGS, &error),
    }
}

/// `kept` is what the store has.
pub(super) fn store_refusal(kept: &str, error: &nerve::store::Error) -> Refusal {
    let status = match error.kind {
        ErrorKind::Unavailable | ErrorKind::SessionLost => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Corrupt => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let refusal = Refusal::new(status, error);
    if error.is_retryable() {
        refusal
            .hint(format!("{kept} are kept in the store: try again when it is reachable (`plexus status`)"))
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
