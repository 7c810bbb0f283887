//! The docker check: what a container's own HEALTHCHECK says.
//!
//! Keys: `docker` (the container, by name or id), `engine` (Docker's socket; default `/var/run/docker.sock`). Docker runs the
//! check, at its interval; here its verdict is read. A container that is not running is critical, and so is one that is
//! starting yet: it is to get nothing before it is healthy.

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};

use super::connect::connect;
use super::means::Of;
use super::seen::Seen;
use super::{Judge, Level, Liberty};
use crate::document::{Reported, Section};
use crate::http::Connection;
use crate::model::{Address, UnixPath};

/// Where Docker is, unless said.
const ENGINE: &str = "/var/run/docker.sock";
/// The largest answer, in bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// The longest name of a container.
const MAX_NAME: usize = 255;
/// So much of what its check printed is kept, in bytes.
const MAX_OUTPUT: usize = 4096;

/// Reads a container's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Docker {
    docker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<UnixPath>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    state: State,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    health: Option<Health>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    status: String,
    #[serde(default)]
    log: Option<Vec<Probe>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Probe {
    #[serde(default)]
    output: String,
}

impl Docker {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (docker, engine) = (section.required::<String>("docker"), section.given("engine"));
        let (docker, engine) = (docker?, engine?);
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if !docker.starts_with(|c: char| c.is_ascii_alphanumeric())
            || docker.len() > MAX_NAME
            || !docker.chars().all(allowed)
        {
            return Err(section.invalid("docker", "it is no container", "a container's name or id"));
        }
        Ok(Self { docker, engine })
    }

    async fn inspect(&self) -> Result<State, String> {
        let socket = match &self.engine {
            Some(engine) => engine.clone(),
            None => UnixPath::new(ENGINE).map_err(|error| error.to_string())?,
        };
        let mut connection = Connection::one(connect(&Address::Unix(socket)).await?.boxed()).await?;
        let path = format!("/containers/{}/json", self.docker);
        let request = Request::get(path).header(HOST, "docker").body(Full::default());
        let response = connection.send(request.map_err(|error| error.to_string())?).await?;
        let status = response.status();
        let body = connection.run(Limited::new(response.into_body(), MAX_ANSWER).collect()).await;
        let body = body.map_err(|error| format!("Docker's answer breaks off: {error}"))?.to_bytes();
        match status {
            StatusCode::OK => serde_json::from_slice::<Inspected>(&body)
                .map(|inspected| inspected.state)
                .map_err(|error| format!("Docker's answer cannot be read: {error}")),
            StatusCode::NOT_FOUND => Err("Docker has no such container".to_owned()),
            status => Err(format!("Docker answers with status {status}")),
        }
    }
}

#[async_trait]
impl Judge for Docker {
    fn liberty(&self) -> Option<Liberty> {
        self.engine.is_some().then_some(Liberty::Sockets)
    }

    fn describe(&self) -> String {
        format!("docker {}", self.docker)
    }

    async fn judge(&self, _of: &Of<'_>) -> Seen {
        match self.inspect().await {
            Ok(state) => judged(&state),
            Err(error) => Seen::critical(error),
        }
    }
}

fn judged(state: &State) -> Seen {
    if state.status != "running" {
        return Seen::critical(format!("the container is {}", state.status));
    }
    let health = match &state.health {
        Some(health) if health.status != "none" => health,
        _ => {
            return Seen::critical(
                "the container has no HEALTHCHECK; give it one, or check it in another way",
            );
        }
    };
    let level = if health.status == "healthy" { Level::Passing } else { Level::Critical };
    let last = health.log.iter().flatten().last().map_or("", |probe| probe.output.as_str());
    let line = last.lines().map(str::trim).find(|line| !line.is_empty());
    let text = line.map_or_else(|| health.status.clone(), |line| format!("{}: {line}", health.status));
    let output = last.chars().take(MAX_OUTPUT / 4).collect();
    Seen { output, ..Seen::new(level, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> (Level, String) {
        let state: Inspected = serde_json::from_str(json).unwrap();
        let seen = judged(&state.state);
        (seen.level, seen.text)
    }

    #[test]
    fn docker_s_words_are_understood() {
        let health = |health: &str| format!(r#"{{"State":{{"Status":"running","Health":{health}}}}}"#);
        let healthy =
            health(r#"{"Status":"healthy","FailingStreak":0,"Log":[{"ExitCode":0,"Output":"\nok\n"}]}"#);
        assert_eq!(read(&healthy), (Level::Passing, "healthy: ok".to_owned()));
        let unhealthy = health(r#"{"Status":"unhealthy","Log":null}"#);
        assert_eq!(read(&unhealthy), (Level::Critical, "unhealthy".to_owned()));
        assert_eq!(read(&health(r#"{"Status":"starting"}"#)), (Level::Critical, "starting".to_owned()));
        assert!(read(r#"{"State":{"Status":"running"}}"#).1.contains("no HEALTHCHECK"));
        assert!(read(&health(r#"{"Status":"none"}"#)).1.contains("no HEALTHCHECK"));
        assert_eq!(read(r#"{"State":{"Status":"paused"}}"#).1, "the container is paused");
    }
}
