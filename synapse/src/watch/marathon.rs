//! The place that is Marathon: the tasks of an app, asked for again when its events tell of something, and from time to time without any.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;
use nerve::document::{Reported, Section};
use nerve::http::{Client, Lines, Tls, Url};
use nerve::model::Health;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::place::{Place, Refused, Tell};
use super::server::Server;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(10);
/// It is asked so often without any event; where there are no events, too.
const TICK: Duration = Duration::from_secs(10);
/// Events come in bursts: it is asked so long after the first.
const DEBOUNCE: Duration = Duration::from_millis(100);
const EVENTS: &str = "/v2/events";

/// Which app of which Marathon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Marathon {
    /// The API of each of its servers: the next one is asked where one does not answer.
    #[serde(rename = "marathon")]
    pub urls: Vec<Url>,
    /// The app, by its path.
    pub app: String,
    /// Which of its ports, counted from 0.
    pub port_index: usize,
    #[serde(flatten)]
    tls: Tls,
}

impl Marathon {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>, usual: &str) -> Result<Self, Reported> {
        let urls = section.required::<Vec<Url>>("marathon");
        let app = section.or("app", usual.to_owned());
        let port_index = section.or("port_index", 0_u16);
        let tls = Tls::read(section);
        let (urls, tls) = (urls?, tls?);
        Self::new(urls, &app, port_index.into(), tls).map_err(|(key, why)| {
            section.invalid(key, why, "as Marathon has it: \"/shop/web\" at [\"http://marathon:8080\"]")
        })
    }

    /// Validates them; an error is of a key.
    ///
    /// # Errors
    /// The key of what is wrong, and why.
    pub fn new(
        urls: Vec<Url>,
        app: &str,
        port_index: usize,
        tls: Tls,
    ) -> Result<Self, (&'static str, String)> {
        // Its ids are paths of such names.
        let app = app.trim_matches('/');
        let is_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-./".contains(c);
        if app.is_empty()
            || app.len() > 512
            || !app.chars().all(is_id)
            || app.split('/').any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(("app", format!("{app:?} is no app")));
        }
        if urls.is_empty() {
            return Err(("marathon", "it names no server".to_owned()));
        }
        Ok(Self { urls, app: app.to_owned(), port_index, tls })
    }

    pub(super) fn place(&self) -> String {
        let urls: Vec<String> = self.urls.iter().map(ToString::to_string).collect();
        format!("{}/{}", urls.join(","), self.app)
    }
}

/// The app, and who is asked.
#[derive(Debug)]
pub(super) struct MarathonPlace {
    config: Marathon,
    clients: Vec<Client>,
}

#[async_trait]
impl Place for MarathonPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        let mut why = String::new();
        for client in &self.clients {
            let Err(error) = self.follow_one(client, told).await;
            why = format!("{}: {error}", client.url());
        }
        Err(why)
    }
}

impl MarathonPlace {
    pub(super) fn new(config: Marathon) -> Self {
        let clients = config.urls.iter().map(|url| Client::new(url.clone(), config.tls.clone())).collect();
        Self { config, clients }
    }

    /// Until it does not answer.
    async fn follow_one(&self, client: &Client, told: &dyn Tell) -> Result<Infallible, String> {
        let path = format!("/v2/apps/{}/tasks", self.config.app);
        // Before the first look, so that nothing happens between the two unheard.
        let mut events = events(client).await;
        loop {
            let begun = Instant::now();
            let answer = client.get(&path, &[], WITHIN).await?;
            let Tasks { tasks } = answer.json()?;
            let (servers, refused) = self.judged(tasks);
            told.found(servers, refused).await;
            match &mut events {
                Some(lines) => {
                    if let Ok(heard) = timeout_at(begun + TICK, next_event(lines)).await {
                        match heard {
                            Ok(()) => {
                                tokio::time::sleep(DEBOUNCE).await;
                                told.pace().before_another_look().await;
                            }
                            Err(_) => events = None,
                        }
                    }
                }
                None => {
                    tokio::time::sleep_until(begun + TICK).await;
                    events = self::events(client).await;
                }
            }
        }
    }

    fn judged(&self, tasks: Vec<Task>) -> (Vec<Server>, Vec<Refused>) {
        let (mut servers, mut refused) = (Vec::new(), Vec::new());
        for task in tasks {
            // One that has not started yet has no ports that are its own; one that is being killed serves nobody new.
            let runs = task.state.as_deref().is_none_or(|state| state == "TASK_RUNNING");
            if task.started_at.is_none() || !runs {
                continue;
            }
            let port = task.ports.as_ref().and_then(|ports| ports.get(self.config.port_index));
            let Some(port) = port.and_then(|port| NonZeroU16::new(*port)) else {
                refused.push((task.id, format!("it has no port of the index {}", self.config.port_index)));
                continue;
            };
            match task.host.parse() {
                Ok(host) => {
                    let (health, labels) =
                        (task.health(), BTreeMap::from([("task".to_owned(), task.id.clone())]));
                    servers.push(Server { name: Some(task.id), health, labels, ..Server::at(host, port) });
                }
                Err(why) => refused.push((task.id, why)),
            }
        }
        (servers, refused)
    }
}

/// What happens there; `None`: it does not tell, as where a proxy stands before it.
async fn events(client: &Client) -> Option<Lines> {
    client.lines(EVENTS, &[("accept", "text/event-stream")], WITHIN).await.ok()
}

/// Waits for an event of the stream: a line of data, whatever it says.
async fn next_event(lines: &mut Lines) -> Result<(), String> {
    while !lines.next().await?.starts_with(b"data:") {}
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Tasks {
    tasks: Vec<Task>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    id: String,
    host: String,
    ports: Option<Vec<u16>>,
    started_at: Option<String>,
    state: Option<String>,
    health_check_results: Option<Vec<Option<Checked>>>,
}

#[derive(Debug, Deserialize)]
struct Checked {
    #[serde(default)]
    alive: bool,
}

impl Task {
    /// By Marathon's own checks, where it has results of any.
    fn health(&self) -> Health {
        let mut results = self.health_check_results.iter().flatten().flatten();
        if results.all(|result| result.alive) { Health::Passing } else { Health::Critical }
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;
    use crate::watch::stub::{Written, api};

    fn read(text: &str) -> Result<Marathon, String> {
        let read = |section: &mut Section<'_>| Marathon::read(section, "web");
        Document::parse("x", text).unwrap().decode(read).map_err(|errors| errors.to_string())
    }

    const TASKS: &str = r#"{"tasks": [
        {"appId": "/shop/web", "id": "web.1", "host": "192.0.2.1", "ports": [31001, 31002], "startedAt": "2026-01-01T00:00:00.000Z", "state": "TASK_RUNNING",
         "healthCheckResults": [{"alive": true}, null]},
        {"appId": "/shop/web", "id": "web.2", "host": "192.0.2.2", "ports": [31001, 31002], "startedAt": "2026-01-01T00:00:00.000Z", "stagedAt": "2026-01-01T00:00:00.000Z",
         "healthCheckResults": [{"alive": false}]},
        {"appId": "/shop/web", "id": "web.3", "host": "192.0.2.3", "ports": [31001, 31002], "stagedAt": "2026-01-01T00:00:00.000Z", "state": "TASK_STAGING"},
        {"appId": "/shop/web", "id": "web.4", "host": "192.0.2.4", "ports": [31001], "startedAt": "2026-01-01T00:00:00.000Z", "state": "TASK_RUNNING"}
    ]}"#;

    #[test]
    fn tasks_that_run_are_servers_as_healthy_as_marathon_finds_them() {
        let url = "marathon = [\"http://a:8080\"]\napp = \"/shop/web\"\nport_index = 1";
        let place = MarathonPlace::new(read(url).unwrap());
        let Tasks { tasks } = serde_json::from_str(TASKS).unwrap();
        let (servers, refused) = place.judged(tasks);
        let shown: Vec<String> =
            servers.iter().map(|server| format!("{server} {:?}", server.health)).collect();
        assert_eq!(shown, ["192.0.2.1:31002 Passing", "192.0.2.2:31002 Critical"]);
        assert_eq!(refused, [("web.4".to_owned(), "it has no port of the index 1".to_owned())]);
    }

    #[tokio::test]
    async fn an_event_is_a_reason_to_ask_again_and_the_next_server_is_asked_where_one_does_not_answer() {
        let ok = || "200 OK\r\n".to_owned();
        let answers = vec![
            (ok(), "event: status_update_event\ndata: {}\n\n".to_owned()),
            (ok(), TASKS.to_owned()),
            (ok(), r#"{"tasks": []}"#.to_owned()),
        ];
        let (url, serve) = api(answers).await;
        let text = format!("marathon = [\"http://127.0.0.1:1\", \"{url}\"]\napp = \"/shop/web\"");
        let (place, written) = (MarathonPlace::new(read(&text).unwrap()), Written::default());
        let asked = tokio::select! {
            asked = serve => asked,
            ended = place.follow(&written) => panic!("{ended:?}"),
        };
        let first: Vec<&str> = asked.iter().map(|head| head.split(" HTTP").next().unwrap()).collect();
        assert_eq!(first, ["GET /v2/events", "GET /v2/apps/shop/web/tasks", "GET /v2/apps/shop/web/tasks"]);
        assert!(
            asked[0].contains("accept: text/event-stream\r\n") && !asked[0].contains("json"),
            "{}",
            asked[0]
        );
        assert_eq!(written.lines()[0], "192.0.2.1:31001 192.0.2.2:31001 192.0.2.4:31001 0");
    }

    #[test]
    fn an_app_is_a_path_of_marathon_s() {
        assert_eq!(read("marathon = [\"http://a\"]").unwrap().place(), "http://a:80/web");
        for bad in [
            "marathon = []",
            "marathon = [\"http://a\"]\napp = \"/a/../b\"",
            "marathon = [\"http://a\"]\napp = \"A b\"",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
