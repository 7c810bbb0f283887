//! The settings of a service: what holds, and changes of it.

use axum::Json;
use axum::extract::{Path, Request, State};
use nerve::model::{ServiceName, SettingKey, Split};
use nerve::settings::{self, Changed as Difference};

use super::read::{find, stale};
use super::refusal::{Answer, Refusal};
use super::write::{body, service_name, settings_refusal, unknown_service};
use super::{Handles, Shared};
use crate::api::{Changed, Setting, Settings, SettingsRequest};

pub(super) async fn read(State(handles): Shared, Path(name): Path<String>) -> Answer<Settings> {
    let service = find(&handles, &name)?;
    let settings = SettingKey::all().map(|key| {
        let set = key.get(&service.settings);
        Setting {
            name: key.name.to_owned(),
            default: set.is_none(),
            value: set.unwrap_or_else(|| key.default.to_owned()),
            meaning: key.meaning.to_owned(),
            expects: key.expects(),
        }
    });
    Ok(Json(Settings {
        stale: stale(&handles),
        service: service.name.clone(),
        of_node: service.has_node_settings(),
        settings: settings.collect(),
    }))
}

pub(super) async fn write(
    State(handles): Shared,
    Path(service): Path<String>,
    request: Request,
) -> Answer<Changed> {
    let service = service_name(&service)?;
    let SettingsRequest { set, unset } = body(request).await?;
    if let Some(both) = unset.iter().find(|name| set.contains_key(*name)) {
        return Err(Refusal::bad_request(format!("{both} is to be set and unset")));
    }
    let set = set.into_iter().map(|(name, value)| (name, Some(value)));
    let changes: Vec<_> = set.chain(unset.into_iter().map(|name| (name, None))).collect();
    let done = settings::change(&*handles.store, &service, &changes).await.map_err(settings_refusal)?;
    let mut notes: Vec<String> = unknown_service(&handles, &service).into_iter().collect();
    for difference in done.iter().filter(|difference| difference.name == "split") {
        notes.extend(split_notes(&handles, &service, difference.after.as_deref()));
    }
    let message = match &done[..] {
        [] => format!("{service} has these settings already"),
        done => done.iter().map(|one| sentence(&service, one)).collect::<Vec<_>>().join("; "),
    };
    Ok(Json(Changed { message, changed: !done.is_empty(), notes }))
}

fn sentence(service: &ServiceName, difference: &Difference) -> String {
    let default = || match SettingKey::find(difference.name).map_or("", |key| key.default) {
        "" => "off".to_owned(),
        default => format!("{default}, the default"),
    };
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(default);
    let Difference { name, before, after } = difference;
    format!("{name} of {service} is {}; it was {}", shown(after), shown(before))
}

/// A share for endpoints that do not exist goes to the others: the user should know.
fn split_notes(handles: &Handles, service: &ServiceName, split: Option<&str>) -> Vec<String> {
    let Some(split) = split.and_then(|split| split.parse::<Split>().ok()) else { return Vec::new() };
    let Some(known) = handles.catalog.service(service.as_str()) else { return Vec::new() };
    let has = |wanted: &dyn Fn(&nerve::model::Instance) -> bool| {
        known.endpoints.iter().any(|endpoint| wanted(&endpoint.instance))
    };
    let empty = split.shares().filter(|(selector, _)| !has(&|instance| selector.matches(instance)));
    let mut notes: Vec<String> = empty
        .map(|(selector, share)| {
            format!("no endpoint of {service} is {selector}: its {share} go to the others until one is")
        })
        .collect();
    let is_rest = |instance: &_| !split.shares().any(|(selector, _)| selector.matches(instance));
    if split.rest() == 0 && has(&is_rest) {
        notes.push(format!("endpoints of {service} that are in none of these groups get nothing"));
    }
    notes
}
