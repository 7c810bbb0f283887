//! The source that is this node's Docker: a container on a network of the mesh is an instance of what it is called there.
//!
//! Docker's API is asked for the containers that run (`engine`), and `container` says what each of them is. Events of Docker only say
//! *look again*: a look follows when they have ceased for a moment, and on a slow tick whether there were events or not. A look
//! asks for what is new, and for what an event has named. While Docker does not answer, what it last said stays in force: its
//! containers may well run on.

mod container;
mod engine;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Local, Located, Origin, Snapshot, Source, SourceProblem};
use crate::model::UnixPath;
use crate::tasks::Tasks;
use container::{Container, Instances};
use engine::{Engine, Event};

/// Quiet for so long after an event, Docker is asked.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// It is asked at the latest so long after an event, however many follow.
const LATEST: Duration = Duration::from_secs(1);
/// Every container is looked at so often without any event.
const TICK: Duration = Duration::from_secs(60);
/// The pause after Docker did not answer.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a start waits for what runs already: what is not said by then is deregistered until it is.
const FIRST_WITHIN: Duration = Duration::from_secs(3);
/// So many containers are looked at; further ones are left out, with a problem.
const MOST: usize = 4096;

/// Which Docker, and which of its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// The socket of its API.
    pub api: UnixPath,
    /// The driver of the networks that other nodes reach containers by.
    pub driver: String,
}

/// The containers of this node's Docker.
#[derive(Debug)]
pub struct DockerSource {
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl DockerSource {
    /// Asks Docker, and follows it from then on. It may be missing, and appear later.
    pub async fn start(config: DockerConfig, local: Local, tasks: &Tasks) -> Self {
        let (sender, snapshots) = watch::channel(Arc::default());
        let sender = Arc::new(sender);
        let mut first = snapshots.clone();
        tasks.spawn_until_stopped("docker source", move || {
            let follower = Follower {
                engine: Engine::new(config.api.clone()),
                driver: config.driver.clone(),
                local: local.clone(),
                sender: Arc::clone(&sender),
                known: BTreeMap::new(),
                has_said: false,
            };
            follower.run()
        });
        // That there was none in time is said by the snapshot's problem.
        let _ = timeout(FIRST_WITHIN, first.changed()).await;
        Self { snapshots }
    }
}

impl Source for DockerSource {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }
}

struct Follower {
    engine: Engine,
    driver: String,
    local: Local,
    sender: Arc<watch::Sender<Arc<Snapshot>>>,
    /// By id, as Docker has said.
    known: BTreeMap<String, Container>,
    /// Something was published: that there is nothing is something to say, once.
    has_said: bool,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let Err(error) = self.follow().await;
            self.complain(&error);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&mut self) -> Result<std::convert::Infallible, String> {
        // First, so that nothing happens unseen between the look and the events.
        let mut events = self.engine.events().await?;
        self.known.clear();
        loop {
            self.look().await?;
            let tick = Instant::now() + TICK;
            match timeout_at(tick, events.next()).await {
                Ok(event) => self.forget(event?),
                Err(_) => self.known.clear(),
            }
            let latest = Instant::now() + LATEST;
            while let Ok(event) = timeout_at(latest.min(Instant::now() + DEBOUNCE), events.next()).await {
                self.forget(event?);
            }
        }
    }

    /// What an event names is to be asked for again.
    fn forget(&mut self, event: Event) {
        if let Some(container) = event.container() {
            self.known.remove(container);
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let networks: BTreeSet<String> = self.engine.networks(&self.driver).await?;
        let mut running = self.engine.containers().await?;
        let left_out = running.len().saturating_sub(MOST);
        running.truncate(MOST);
        let mut known = BTreeMap::new();
        for id in running {
            let container = match self.known.remove(&id) {
                Some(container) => Some(container),
                None => self.engine.container(&id).await?,
            };
            known.extend(container.map(|container| (id, container)));
        }
        self.known = known;
        let place = || "Docker".to_owned();
        let mut snapshot = Snapshot::default();
        for container in self.known.values() {
            let Instances { definitions, problem } = container.instances(&networks, &self.local);
            let origin = || Origin::Docker { container: container.name().into() };
            snapshot
                .problems
                .extend(problem.map(|message| SourceProblem { place: origin().to_string(), message }));
            let located = definitions.into_iter().map(|definition| Located { definition, origin: origin() });
            snapshot.definitions.extend(located.map(Arc::new));
        }
        if left_out > 0 {
            let message = format!("it has {left_out} containers more than the {MOST} that are looked at");
            snapshot.problems.push(SourceProblem { place: place(), message });
        }
        self.publish(snapshot);
        Ok(())
    }

    fn complain(&mut self, error: &str) {
        let message = format!("{error}; the containers that it last had stay in force");
        tracing::debug!(error, "Docker is asked again later");
        let definitions = self.sender.borrow().definitions.clone();
        let problems = vec![SourceProblem { place: self.engine.place(), message }];
        self.publish(Snapshot { definitions, problems });
    }

    fn publish(&mut self, snapshot: Snapshot) {
        let is_first = !std::mem::replace(&mut self.has_said, true);
        self.sender.send_if_modified(|current| {
            let is_new = is_first || **current != snapshot;
            if is_new {
                *current = Arc::new(snapshot);
            }
            is_new
        });
    }
}
