//! Rules about who may talk to whom: listed, added, removed.

use axum::Json;
use axum::extract::{Path, Request, State};
use hyper::StatusCode;
use nerve::model::{Effect, Rule, RuleName, RuleSet, ServiceSelector};
use nerve::rules::{self, Added};

use super::read::stale;
use super::refusal::{Answer, Refusal, nearest};
use super::who_may::info;
use super::write::{body, store_refusal};
use super::{Handles, Shared};
use crate::api::{Changed, DefaultRequest, RuleList, RuleRequest};

pub(super) async fn list(State(handles): Shared) -> Json<RuleList> {
    let set = handles.catalog.rules();
    let rules = set.rules.iter().map(|(name, rule)| info(name, rule)).collect();
    Json(RuleList { stale: stale(&handles), default: set.default, rules })
}

pub(super) async fn add(State(handles): Shared, request: Request) -> Answer<Changed> {
    let RuleRequest { name, effect, from, to } = body(request).await?;
    let rule = Rule { effect, from, to };
    let Added { name, new } = rules::add(&*handles.store, name, &rule).await.map_err(refusal)?;
    let set = handles.catalog.rules();
    let message = match new {
        true => format!("rule {name} is added: {rule}"),
        false => format!("rule {name} says so already: {rule}"),
    };
    let mut notes = unknown_services(&handles, &rule);
    notes.extend(contradicted(&set, &rule));
    if new && rule.effect == Effect::Deny {
        notes.push("connections that are open may go on; new ones are refused".to_owned());
    }
    Ok(Json(Changed { message, changed: new, notes }))
}

pub(super) async fn remove(State(handles): Shared, Path(name): Path<String>) -> Answer<Changed> {
    let name = RuleName::new(&name).map_err(Refusal::bad_request)?;
    let changed = rules::remove(&*handles.store, &name).await.map_err(refusal)?;
    if changed {
        return Ok(Json(Changed { message: format!("rule {name} is removed"), changed, notes: Vec::new() }));
    }
    let set = handles.catalog.rules();
    let near = nearest(name.as_str(), set.rules.keys().map(RuleName::as_str));
    let notes = near.map(|near| format!("did you mean {near:?}?"));
    let message = format!("there is no rule {name}");
    Ok(Json(Changed { message, changed, notes: notes.into_iter().collect() }))
}

pub(super) async fn set_default(State(handles): Shared, request: Request) -> Answer<Changed> {
    let DefaultRequest { default } = body(request).await?;
    let changed = rules::set_default(&*handles.store, default).await.map_err(refusal)?;
    let message = match changed {
        true => format!("the default is {default}"),
        false => format!("the default is {default} already"),
    };
    let allows = handles.catalog.rules().rules.values().filter(|rule| rule.effect == Effect::Allow).count();
    let note = (changed && default == Effect::Deny).then(|| match allows {
        0 => "no rule allows anything: every new connection is refused".to_owned(),
        allows => format!("only what {allows} rules allow is connected from now on"),
    });
    Ok(Json(Changed { message, changed, notes: note.into_iter().collect() }))
}

/// Services that nobody knows may have been mistyped.
fn unknown_services(handles: &Handles, rule: &Rule) -> Vec<String> {
    let services = [&rule.from, &rule.to].into_iter().filter_map(|selector| match selector {
        ServiceSelector::Service(name) => Some(name),
        ServiceSelector::Everyone | ServiceSelector::Labels(_) => None,
    });
    let missing = services.filter(|name| handles.catalog.service(name.as_str()).is_none());
    let notes = missing.map(|name| {
        let known = handles.catalog.services();
        match nearest(name.as_str(), known.iter().map(|service| service.name.as_str())) {
            Some(near) => format!("there is no service {name} yet; did you mean {near:?}?"),
            None => format!("there is no service {name} yet"),
        }
    });
    notes.collect()
}

/// A rule that says the opposite of just the same.
fn contradicted(set: &RuleSet, rule: &Rule) -> Option<String> {
    let is_opposite =
        |other: &&Rule| other.effect != rule.effect && (&other.from, &other.to) == (&rule.from, &rule.to);
    let (name, _) = set.rules.iter().find(|(_, other)| is_opposite(other))?;
    Some(match rule.effect {
        Effect::Allow => {
            format!("rule {name} denies just this, and what is denied is denied: remove that one")
        }
        Effect::Deny => format!("rule {name} allows just this, which means nothing any more"),
    })
}

fn refusal(error: rules::Error) -> Refusal {
    match error {
        rules::Error::NameTaken { .. } | rules::Error::TooMany | rules::Error::Contended => {
            Refusal::conflict(error)
        }
        rules::Error::Unreadable { .. } => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error),
        rules::Error::Store(error) => store_refusal("rules", &error),
    }
}
