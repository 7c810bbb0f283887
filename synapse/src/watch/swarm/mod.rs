//! The place that is a Docker swarm: its services and where their tasks run, as any of its managers tells.
//!
//! A manager has events of services and nodes, and none of tasks: those that are to run are asked for every second, more often for a while
//! after something has happened, and less often where that takes long. An answer that is the last one again costs no more than reading it.
//! A task that comes to a node is told before it runs, as one that starts: its port there is its own from then on.

mod api;
mod judge;
mod ports;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;
use nerve::document::{Reported, Section};
use nerve::http::{Answer, Client, Lines, Tls, Url};
use nerve::model::ServiceName;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::place::{Directory, Refused, TellAll};
use judge::Seen;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(10);
/// Quiet for so long after an event, it is looked again; at the latest so long after the first.
const DEBOUNCE: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(1);
/// Services and nodes are looked at so often without any event.
const TICK: Duration = Duration::from_secs(15);
/// Tasks are asked for so often.
const POLL: Duration = Duration::from_secs(1);
/// And so often while things happen, for so long after the last one: a task that is to have a port of this node starts soon after it was told.
const POLL_SOON: [(Duration, Duration); 2] = [
    (Duration::from_millis(50), Duration::from_secs(1)),
    (Duration::from_millis(250), Duration::from_secs(10)),
];
/// The share of the time that is spent on asking for tasks: one in so many.
const SHARE: u32 = 20;
/// Of services and nodes: `{"type": ["node", "service"]}`.
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22node%22%2C%22service%22%5D%7D";
/// Those that run, or are ready to when they are told: `{"desired-state": ["ready", "running"]}`.
const TASKS: &str = "/tasks?filters=%7B%22desired-state%22%3A%5B%22ready%22%2C%22running%22%5D%7D";
/// The same of one service, by its id: `"service": ["` and what ends it.
const TASKS_OF: &str =
    "/tasks?filters=%7B%22desired-state%22%3A%5B%22ready%22%2C%22running%22%5D%2C%22service%22%3A%5B%22";
const TASKS_OF_END: &str = "%22%5D%7D";
/// So many services and nodes, and tasks, are looked at.
const MOST: usize = 4096;
const MOST_TASKS: usize = 32_768;
/// So much that cannot be used is told.
const MOST_REFUSED: usize = 100;

/// Which services of which swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Swarm {
    /// The APIs of its managers: the next one is asked where one does not answer.
    #[serde(rename = "swarm")]
    pub managers: Vec<Url>,
    /// The one service that is filled; none: each has the name that it has there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// What that one is called there; the same unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swarm_service: Option<String>,
    /// Of all services, those that have these labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub service_labels: BTreeMap<String, String>,
    /// The port that the one service listens on; the lowest that is published unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swarm_port: Option<NonZeroU16>,
    /// Are ports of Swarm's own mesh used?
    pub ingress: bool,
    /// Are ports published here as the swarm publishes them?
    pub publish: bool,
    #[serde(flatten)]
    tls: Tls,
}

impl Swarm {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>, service: Option<ServiceName>) -> Result<Self, Reported> {
        let managers = section.required::<Vec<Url>>("swarm");
        let swarm_service = section.given::<String>("swarm_service");
        let service_labels = section.or("service_labels", BTreeMap::new());
        let swarm_port = section.given::<NonZeroU16>("swarm_port");
        let (ingress, publish) = (section.or("ingress", false), section.or("publish", true));
        let tls = Tls::read(section);
        let (managers, swarm_service, swarm_port, tls) = (managers?, swarm_service?, swarm_port?, tls?);
        if managers.is_empty() {
            return Err(section.invalid(
                "swarm",
                "it names no manager",
                "such as [\"unix:///run/docker.sock\"]",
            ));
        }
        if service.is_some() && !service_labels.is_empty() {
            let why = "it is for the choice among all services, and there is a `service`";
            return Err(section.invalid("service_labels", why, "one of them"));
        }
        for (key, is_said) in
            [("swarm_service", swarm_service.is_some()), ("swarm_port", swarm_port.is_some())]
        {
            if service.is_none() && is_said {
                return Err(section.invalid(key, "it is of one service", "a `service` beside it"));
            }
        }
        Ok(Self { managers, service, swarm_service, service_labels, swarm_port, ingress, publish, tls })
    }

    pub(super) fn place(&self) -> String {
        let managers: Vec<String> = self.managers.iter().map(ToString::to_string).collect();
        let managers = managers.join(",");
        match &self.swarm_service {
            Some(service) => format!("{managers} {service}"),
            None => managers,
        }
    }
}

/// The swarm, and who is asked.
pub(super) struct SwarmDirectory {
    config: Swarm,
    managers: Vec<Client>,
}

#[async_trait]
impl Directory for SwarmDirectory {
    async fn follow(&self, told: &dyn TellAll) -> Result<Infallible, String> {
        let mut why = Vec::new();
        for manager in &self.managers {
            let Err(error) = (Following { config: &self.config, manager }).follow(told).await;
            why.push(format!("{}: {error}", manager.url()));
        }
        Err(why.join("; "))
    }
}

impl SwarmDirectory {
    pub(super) fn new(config: Swarm) -> Self {
        let managers =
            config.managers.iter().map(|url| Client::new(url.clone(), config.tls.clone())).collect();
        Self { config, managers }
    }
}

/// One manager, until it does not answer.
struct Following<'a> {
    config: &'a Swarm,
    manager: &'a Client,
}

impl Following<'_> {
    async fn follow(&self, told: &dyn TellAll) -> Result<Infallible, String> {
        // Before the first look, so that nothing happens between the two unheard.
        let mut events = self.manager.lines(EVENTS, &[], WITHIN).await?;
        let mut happened = Instant::now();
        loop {
            let mut refused = Vec::new();
            let services = api::each("service", self.list("/services").await?, MOST, &mut refused);
            let nodes = api::each("node", self.list("/nodes").await?, MOST, &mut refused);
            let seen = Seen { services, nodes, tasks: Vec::new() };
            if self.poll(seen, &refused, &mut events, &mut happened, told).await? {
                happened = Instant::now();
            }
        }
    }

    /// Looks at tasks again and again, until services and nodes are to be looked at. Tells whether anything has happened to those.
    async fn poll(
        &self,
        mut seen: Seen,
        wrong: &[Refused],
        events: &mut Lines,
        happened: &mut Instant,
        told: &dyn TellAll,
    ) -> Result<bool, String> {
        let tick = Instant::now() + TICK;
        let path = self.tasks(&seen);
        let mut last: Option<Answer> = None;
        loop {
            let asked = Instant::now();
            if let Some(path) = &path {
                let answer = self.ask(path).await?;
                if last.as_ref().is_none_or(|last| last.body != answer.body) {
                    let mut refused = wrong.to_vec();
                    seen.tasks = api::each("task", answer.json()?, MOST_TASKS, &mut refused);
                    if last.replace(answer).is_some() {
                        *happened = Instant::now();
                    }
                    self.tell(&seen, refused, told).await;
                }
            } else if last.is_none() {
                self.tell(&seen, wrong.to_vec(), told).await;
            }
            let took = asked.elapsed();
            let since = happened.elapsed();
            let soon = POLL_SOON.into_iter().find(|(_, long)| since < *long);
            let usual = soon.map_or(POLL, |(often, _)| often);
            let next = match path {
                Some(_) => asked + usual.max(took * SHARE),
                None => tick,
            };
            if let Ok(event) = timeout_at(next.min(tick), events.next()).await {
                event?;
                let latest = Instant::now() + LATEST;
                while let Ok(Ok(event)) = timeout_at(latest, timeout(DEBOUNCE, events.next())).await {
                    event?;
                }
                return Ok(true);
            }
            if Instant::now() >= tick {
                return Ok(false);
            }
        }
    }

    /// Where tasks are asked for; `None`: the one service that is sought is not there.
    fn tasks(&self, seen: &Seen) -> Option<String> {
        if self.config.service.is_none() {
            return Some(TASKS.to_owned());
        }
        let sought = self.config.sought(&seen.services, &mut Vec::new());
        let id = &sought.values().next()?.id;
        // It stands in a URL.
        let is_id = !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_id.then(|| format!("{TASKS_OF}{id}{TASKS_OF_END}"))
    }

    async fn tell(&self, seen: &Seen, mut refused: Vec<Refused>, told: &dyn TellAll) {
        let (found, more) = self.config.judged(seen, self.manager.url().host());
        refused.extend(more);
        if let Some(more) = refused.len().checked_sub(MOST_REFUSED).filter(|more| *more > 0) {
            refused.truncate(MOST_REFUSED - 1);
            refused.push(("others".to_owned(), format!("{} cannot be used either", more + 1)));
        }
        told.found(found, refused).await;
    }

    async fn list(&self, path: &str) -> Result<Vec<Value>, String> {
        self.ask(path).await?.json()
    }

    async fn ask(&self, path: &str) -> Result<Answer, String> {
        let answer = self.manager.get(path, &[], WITHIN).await?;
        let is_no_manager =
            || String::from_utf8_lossy(&answer.body).contains("This node is not a swarm manager");
        if answer.status == 503 && is_no_manager() {
            return Err(
                "it is no manager of a swarm; name managers alone, as `docker node ls` lists them".to_owned()
            );
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests;
