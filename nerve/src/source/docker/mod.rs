//! The source that is this node's Docker: a container is an instance of what it is called, at its address on a network of the mesh or
//! at the ports that are published.
//!
//! Docker's API is asked for the containers that run (`engine`), and `container` says what each of them is. One that is sent the
//! signal by which it is stopped is drained at once, while it still serves. Other events of Docker only say
//! *look again*: a look follows when they have ceased for a moment, and on a slow tick whether there were events or not. A look
//! asks for what is new, and for what an event has named. While Docker does not answer, what it last said stays in force: its
//! containers may well run on.

mod container;
mod engine;
mod inspected;
mod reach;
mod registrator;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Definition, Local, Located, Origin, Snapshot, Source, SourceProblem};
use crate::model::UnixPath;
use crate::tasks::Tasks;
use container::{Instances, Rules};
use engine::{Engine, Event};
use inspected::Container;
pub use reach::DockerAddress;

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
/// One that was sent the signal by which it is stopped, and runs on for so long after it should have been killed, was not stopped.
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// So many containers are looked at; further ones are left out, with a problem.
const MOST: usize = 4096;

/// Which Docker, and which of its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// The socket of its API.
    pub api: UnixPath,
    /// The driver of the networks that other nodes reach containers by.
    pub driver: String,
    /// Which address of a container is registered, unless a label says otherwise.
    pub address: DockerAddress,
    /// Do Registrator's conventions hold for containers that say nothing by our labels?
    pub registrator: bool,
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
                config: config.clone(),
                local: local.clone(),
                sender: Arc::clone(&sender),
                networks: BTreeSet::new(),
                known: BTreeMap::new(),
                stopping: BTreeMap::new(),
                left_out: 0,
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
    config: DockerConfig,
    local: Local,
    sender: Arc<watch::Sender<Arc<Snapshot>>>,
    /// The ids of the mesh's, as Docker has said.
    networks: BTreeSet<String>,
    /// By id, as Docker has said.
    known: BTreeMap<String, Container>,
    /// Those that were told to stop, by id, and until when that is believed.
    stopping: BTreeMap<String, Instant>,
    /// How many are too many.
    left_out: usize,
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
            let tick = self.stopping.values().copied().chain([Instant::now() + TICK]).min();
            match timeout_at(tick.unwrap_or_else(Instant::now), events.next()).await {
                Ok(event) => self.take_in(&event?),
                Err(_) => self.known.clear(),
            }
            let latest = Instant::now() + LATEST;
            while let Ok(event) = timeout_at(latest.min(Instant::now() + DEBOUNCE), events.next()).await {
                self.take_in(&event?);
            }
        }
    }

    /// What an event names is to be asked for again. One that is told to stop is drained before it does, without asking.
    fn take_in(&mut self, event: &Event) {
        let Some(id) = event.container() else { return };
        if event.is_start() {
            self.stopping.remove(id);
        }
        if let (Some(signal), Some(container)) = (event.signal(), self.known.get(id))
            && container.is_stopped_by(signal)
        {
            self.stopping.insert(id.to_owned(), Instant::now() + container.stop_timeout() + STOPS_WITHIN);
            return self.tell();
        }
        self.known.remove(id);
    }

    async fn look(&mut self) -> Result<(), String> {
        self.networks = self.engine.networks(&self.config.driver).await?;
        let mut running = self.engine.containers().await?;
        self.left_out = running.len().saturating_sub(MOST);
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
        let (known, now) = (&self.known, Instant::now());
        self.stopping.retain(|id, until| *until > now && known.contains_key(id));
        self.tell();
        Ok(())
    }

    /// Tells what is known.
    fn tell(&mut self) {
        let rules = Rules {
            networks: &self.networks,
            address: self.config.address,
            registrator: self.config.registrator,
            local: &self.local,
        };
        let mut snapshot = Snapshot::default();
        for (id, container) in &self.known {
            let Instances { definitions, problem } = container.instances(rules);
            let origin = || Origin::Docker { container: container.name().into() };
            snapshot
                .problems
                .extend(problem.map(|message| SourceProblem { place: origin().to_string(), message }));
            snapshot.clients.extend(container.client(rules));
            let is_stopping = self.stopping.contains_key(id);
            let located = definitions.into_iter().map(|definition| Located {
                definition: Definition { is_stopping, ..definition },
                origin: origin(),
            });
            snapshot.definitions.extend(located.map(Arc::new));
        }
        if self.left_out > 0 {
            let message =
                format!("it has {} containers more than the {MOST} that are looked at", self.left_out);
            snapshot.problems.push(SourceProblem { place: "Docker".to_owned(), message });
        }
        self.publish(snapshot);
    }

    fn complain(&mut self, error: &str) {
        let message = format!("{error}; the containers that it last had stay in force");
        tracing::debug!(error, "Docker is asked again later");
        let (definitions, clients) = {
            let told = self.sender.borrow();
            (told.definitions.clone(), told.clients.clone())
        };
        let problems = vec![SourceProblem { place: self.engine.place(), message }];
        self.publish(Snapshot { definitions, clients, problems });
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
