//! The API of Docker: a few questions over its unix socket, and its events. What it answers is bounded.
//!
//! Paths have no version: Docker takes them in its newest one, and everything that is read here is the same in all of them.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::inspected::Container;
use crate::model::UnixPath;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);
/// The largest answer, in bytes: a list of thousands of containers.
const MOST: usize = 32 * 1024 * 1024;
/// The largest event.
const MOST_EVENT: usize = 256 * 1024;
/// Of containers, and of what connects them: `{"type": ["container", "network"]}`.
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";

type Connection = hyper::client::conn::http1::Connection<TokioIo<UnixStream>, Empty<Bytes>>;

/// A Docker.
#[derive(Debug, Clone)]
pub(super) struct Engine(UnixPath);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    driver: String,
}

impl Engine {
    pub(super) fn new(api: UnixPath) -> Self {
        Self(api)
    }

    /// Where it is, in words.
    pub(super) fn place(&self) -> String {
        format!("Docker at {}", self.0)
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
        let open = async {
            let (request, mut connection) = self.ask(EVENTS).await?;
            let response = match select(request, &mut connection).await {
                Either::Left((response, _)) => response?,
                Either::Right((_, request)) => request.await?,
            };
            if response.status() != StatusCode::OK {
                return Err(format!("it refuses to tell what happens: status {}", response.status()));
            }
            Ok(Events { connection: Some(connection), body: response.into_body(), read: Vec::new() })
        };
        timeout(WITHIN, open).await.unwrap_or_else(|_| Err(late(EVENTS)))
    }

    /// `None`: there is no such thing.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, String> {
        let exchange = async {
            let (request, connection) = self.ask(path).await?;
            let answer = Box::pin(async move {
                let response = request.await?;
                let status = response.status();
                let body = Limited::new(response.into_body(), MOST).collect().await;
                let body = body.map_err(|error| format!("its answer to {path} breaks off: {error}"))?;
                Ok::<_, String>((status, body.to_bytes()))
            });
            let (status, body) = match select(answer, connection).await {
                Either::Left((answer, _)) => answer?,
                // What was delivered before the end is still to be read.
                Either::Right((_, answer)) => answer.await?,
            };
            match status {
                StatusCode::NOT_FOUND => Ok(None),
                StatusCode::OK => serde_json::from_slice(&body)
                    .map(Some)
                    .map_err(|error| format!("its answer to {path} cannot be read: {error}")),
                status => Err(format!("it answers {path} with status {status}")),
            }
        };
        timeout(WITHIN, exchange).await.unwrap_or_else(|_| Err(late(path)))
    }

    async fn ask(
        &self,
        path: &str,
    ) -> Result<
        (Pin<Box<impl Future<Output = Result<Response<Incoming>, String>> + use<>>>, Connection),
        String,
    > {
        let stream = UnixStream::connect(self.0.as_path()).await;
        let stream = stream.map_err(|error| format!("it cannot be asked: {error}"))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let request = Request::get(path).header(HOST, "docker").body(Empty::<Bytes>::new());
        let request = request.map_err(|error| error.to_string())?;
        let response = async move { sender.send_request(request).await.map_err(|error| error.to_string()) };
        Ok((Box::pin(response), connection))
    }
}

fn late(path: &str) -> String {
    format!("it did not answer {path} within {WITHIN:?}")
}

/// What happens, as Docker tells it: a JSON object a line.
pub(super) struct Events {
    /// It moves while the body is read. `None` once it has ended.
    connection: Option<Connection>,
    body: Incoming,
    read: Vec<u8>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("read", &self.read.len()).finish_non_exhaustive()
    }
}

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
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                // One that cannot be read is a reason to look, too.
                let event: Event = serde_json::from_slice(&line).unwrap_or_default();
                if event.matters() {
                    return Ok(event);
                }
                continue;
            }
            if self.read.len() > MOST_EVENT {
                return Err(format!("it tells an event of more than {MOST_EVENT} bytes"));
            }
            let frame = match &mut self.connection {
                Some(connection) => match select(Box::pin(self.body.frame()), connection).await {
                    Either::Left((frame, _)) => frame,
                    Either::Right(_) => {
                        self.connection = None;
                        continue;
                    }
                },
                None => self.body.frame().await,
            };
            match frame {
                Some(Ok(frame)) => self.read.extend(frame.data_ref().into_iter().flatten()),
                Some(Err(error)) => return Err(format!("it no longer tells what happens: {error}")),
                None => return Err("it no longer tells what happens".to_owned()),
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
