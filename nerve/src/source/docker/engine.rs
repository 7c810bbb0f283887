//! The API of Docker: a few questions, and its events. What it answers is bounded.
//!
//! Paths have no version: Docker takes them in its newest one, and everything that is read here is the same in all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::inspected::Container;
use crate::http::{Client, Lines, Tls, Url};
use crate::model::UnixPath;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);
/// Of containers, and of what connects them: `{"type": ["container", "network"]}`.
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";

/// A Docker.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    client: Client,
    socket: UnixPath,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    driver: String,
}

impl Engine {
    pub(super) fn new(api: UnixPath) -> Self {
        Self { client: Client::new(Url::unix(api.clone()), Tls::default()), socket: api }
    }

    /// Where it is, in words.
    pub(super) fn place(&self) -> String {
        format!("Docker at {}", self.socket)
    }

    /// The ids of the containers that run.
    pub(super) async fn containers(&self) -> Result<Vec<String>, String> {
        let listed: Option<Vec<Listed>> = self.get("/containers/json").await?;
        Ok(listed.into_iter().flatten().map(|container| container.id).collect())
    }

    /// A container; `None`: it is gone.
    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>, String> {
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(format!("it names a container {:?}", id.chars().take(80).collect::<String>()));
        }
        self.get(&format!("/containers/{id}/json")).await
    }

    /// The ids of a driver's networks.
    pub(super) async fn networks(&self, driver: &str) -> Result<BTreeSet<String>, String> {
        let listed: Option<Vec<Listed>> = self.get("/networks").await?;
        let of_driver = listed.into_iter().flatten().filter(|network| network.driver == driver);
        Ok(of_driver.map(|network| network.id).collect())
    }

    /// What happens from now on.
    pub(super) async fn events(&self) -> Result<Events, String> {
        self.client.lines(EVENTS, &[], WITHIN).await.map(Events)
    }

    /// `None`: there is no such thing.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, String> {
        let answer = self.client.get(path, &[], WITHIN).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        answer.json().map(Some).map_err(|error| format!("its answer to {path}: {error}"))
    }
}

/// What happens, as Docker tells it: a JSON object a line.
#[derive(Debug)]
pub(super) struct Events(Lines);

/// Something that happened.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Event {
    #[serde(rename = "Type")]
    kind: String,
    action: String,
    actor: Actor,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: Attributes,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Attributes {
    /// Of a network: what was connected.
    container: String,
    /// Of a container that is sent one: its number.
    signal: String,
}

impl Event {
    /// The container that it is about.
    pub(super) fn container(&self) -> Option<&str> {
        let id = if self.kind == "container" { &self.actor.id } else { &self.actor.attributes.container };
        (!id.is_empty()).then_some(id)
    }

    /// The signal that its container was sent.
    pub(super) fn signal(&self) -> Option<i32> {
        if self.kind == "container" && self.action == "kill" {
            self.actor.attributes.signal.parse().ok()
        } else {
            None
        }
    }

    /// Its container begins to run, whatever it was doing before.
    pub(super) fn is_start(&self) -> bool {
        self.kind == "container" && self.action == "start"
    }

    /// Commands that are run in containers change nothing here, and health checks run many.
    fn matters(&self) -> bool {
        !["exec_", "top", "attach", "resize"].iter().any(|action| self.action.starts_with(action))
    }
}

impl Events {
    /// The next one that matters. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Event, String> {
        loop {
            let line = self.0.next().await?;
            // One that cannot be read is a reason to look, too.
            let event: Event = serde_json::from_slice(&line).unwrap_or_default();
            if event.matters() {
                return Ok(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_its_container() {
        let read = |text: &str| serde_json::from_str::<Event>(text).unwrap();
        let start =
            read(r#"{"Type":"container","Action":"start","Actor":{"ID":"c1","Attributes":{"image":"x"}}}"#);
        assert_eq!((start.container(), start.matters()), (Some("c1"), true));
        let connect = read(
            r#"{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"c2"}}}"#,
        );
        assert_eq!(connect.container(), Some("c2"));
        let create = read(r#"{"Type":"network","Action":"create","Actor":{"ID":"n","Attributes":{}}}"#);
        assert_eq!((create.container(), create.matters()), (None, true));
        let kill = r#"{"Type":"container","Action":"kill","Actor":{"ID":"c1","Attributes":{"signal":"15"}}}"#;
        assert_eq!((read(kill).signal(), start.signal(), start.is_start()), (Some(15), None, true));
        let check = read(r#"{"Type":"container","Action":"exec_start: /bin/sh","Actor":{"ID":"c1"}}"#);
        assert!(!check.matters());
    }
}
