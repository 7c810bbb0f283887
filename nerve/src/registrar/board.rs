//! What should stand in the store, computed from sources × health × drains, and what is known to stand there.
//!
//! Sources and checks write here and mark what changed; the writer takes the marks and reads the newest state of each. States
//! in between are never written. The locks are held for a few map operations and never over a wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};

use super::carried::{CarriedInstance, CarriedRecord};
use super::settle::Record;
use super::status::{LocalInstance, Problem, Refusal, Registration, ReportError};
use super::{Config, Metrics};
use crate::check::{self, Beginning, Monitor, Runner, SelfReport, Subject};
use crate::model::{Health, Instance, Node};
use crate::period::Period;
use crate::source::{Definition, Drains, InstanceKey, Located, Merged, Origin, SourceProblem};
use crate::store::{Key, Path, Revision};

/// A record of this node. The node itself is the least: it goes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Node,
    Instance(InstanceKey),
}

impl Target {
    /// The instance that it is of; `None`: the node itself.
    pub(super) fn instance(&self) -> Option<InstanceKey> {
        match self {
            Self::Node => None,
            Self::Instance(key) => Some(key.clone()),
        }
    }

    /// Whose record another process has left.
    pub(super) fn of(record: &CarriedRecord) -> Self {
        record.instance.clone().map_or(Self::Node, Self::Instance)
    }
}

/// The state that sources, checks, writer and handle share.
#[derive(Debug)]
pub(super) struct Board {
    config: Config,
    metrics: Metrics,
    state: Mutex<State>,
    marked: Mutex<BTreeSet<Target>>,
    wake: Notify,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    node: Registration,
    /// See [`Config::tunnel_port`].
    tunnel_port: Option<u16>,
    instances: BTreeMap<InstanceKey, Local>,
    drains: Arc<Drains>,
    source_problems: Vec<SourceProblem>,
    store_problem: Option<String>,
    /// What the process before this one found out, until its instance is defined here.
    inherited: BTreeMap<InstanceKey, CarriedInstance>,
}

#[derive(Debug)]
struct Local {
    /// `None` once it is no longer defined, until its record is gone.
    defined: Option<(Arc<Located>, Monitor)>,
    registration: Registration,
    /// It was written in this life.
    written: bool,
    /// An earlier life left it passing, and its checks have not decided yet.
    adopted: bool,
}

impl Board {
    pub(super) fn new(config: Config, metrics: Metrics) -> Self {
        let tunnel_port = config.tunnel_port;
        Self {
            config,
            metrics,
            state: Mutex::new(State {
                node: waiting(),
                tunnel_port,
                instances: BTreeMap::new(),
                drains: Arc::default(),
                source_problems: Vec::new(),
                store_problem: None,
                inherited: BTreeMap::new(),
            }),
            marked: Mutex::new(BTreeSet::from([Target::Node])),
            wake: Notify::new(),
            version: watch::Sender::new(0),
        }
    }

    /// Takes over what the process before this one registered and found out. What it registered and is defined here no
    /// more is taken back.
    pub(super) fn inherit(&self, records: &[CarriedRecord], instances: Vec<CarriedInstance>) {
        let mut state = self.state();
        for key in records.iter().filter_map(|record| record.instance.clone()) {
            let local = Local { defined: None, registration: waiting(), written: true, adopted: false };
            state.instances.insert(key, local);
        }
        state.inherited = instances.into_iter().map(|instance| (instance.key.clone(), instance)).collect();
    }

    /// How the checks of every instance stand, for the process after this one.
    pub(super) fn carried(&self) -> Vec<CarriedInstance> {
        let state = self.state();
        let carried = |(key, local): (&InstanceKey, &Local)| {
            let (_, monitor) = local.defined.as_ref()?;
            Some(CarriedInstance { key: key.clone(), checks: monitor.carried(), adopted: local.adopted })
        };
        state.instances.iter().filter_map(carried).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in the locked sections is left half-done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn session_ttl(&self) -> Period {
        self.config.session_ttl
    }

    /// Counts up with every change of anything that the board shows.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Marks a record as perhaps not what stands in the store.
    pub(super) fn mark(&self, targets: impl IntoIterator<Item = Target>) {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner).extend(targets);
        self.wake.notify_one();
        self.changed();
    }

    /// Waits for marks and takes them. Cancel-safe.
    pub(super) async fn take_marked(&self) -> BTreeSet<Target> {
        loop {
            let taken = std::mem::take(&mut *self.marked.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.wake.notified().await;
        }
    }

    /// Every record that is ours, or is to be removed.
    pub(super) fn targets(&self) -> BTreeSet<Target> {
        let state = self.state();
        std::iter::once(Target::Node).chain(state.instances.keys().cloned().map(Target::Instance)).collect()
    }

    /// Puts new definitions in force: starts and stops checks, marks what changed.
    pub(super) fn define(self: &Arc<Self>, merged: Merged, runner: &Runner) {
        self.metrics.sources.refused.set(i64::try_from(merged.refused.len()).unwrap_or(i64::MAX));
        let mut marks = Vec::new();
        let mut state = self.state();
        for (key, local) in &mut state.instances {
            if local.defined.is_some() && !merged.definitions.contains_key(key) {
                tracing::info!(instance = %key, "instance is no longer defined");
                local.defined = None;
                marks.push(Target::Instance(key.clone()));
            }
        }
        for (key, located) in merged.definitions {
            let inherited = state.inherited.remove(&key);
            let local = state.instances.entry(key.clone()).or_insert_with(|| Local {
                defined: None,
                registration: waiting(),
                written: false,
                adopted: false,
            });
            match &local.defined {
                Some((known, _)) if *known == located => continue,
                Some((known, _)) => tell_of_change(known, &located),
                None => tracing::info!(instance = %key, origin = %located.origin, "instance defined"),
            }
            local.adopted |= inherited.as_ref().is_some_and(|inherited| inherited.adopted);
            let inherited = inherited.map(|inherited| inherited.checks);
            let monitor = self.monitor(runner, local.defined.take(), inherited, &located.definition);
            local.defined = Some((located, monitor));
            marks.push(Target::Instance(key));
        }
        // Whatever is defined later is another.
        state.inherited.clear();
        for new in merged.refused.iter().filter(|refused| !state.source_problems.contains(refused)) {
            tracing::error!(origin = %new.place, reason = %new.message, "definition refused");
        }
        state.source_problems = merged.problems;
        state.source_problems.extend(merged.refused);
        drop(state);
        self.mark(marks);
    }

    /// The checks of a definition: those that run already if nothing of them changed. Changed checks of an instance at the
    /// same address begin with the verdict of the old ones; at another address it is another instance, and starts.
    fn monitor(
        self: &Arc<Self>,
        runner: &Runner,
        running: Option<(Arc<Located>, Monitor)>,
        inherited: Option<check::Carried>,
        definition: &Definition,
    ) -> Monitor {
        let mut beginning = match inherited {
            Some(carried) if carried.is_of(&definition.listens_on()) => Beginning::Carried(carried),
            _ => Beginning::With(Health::Starting),
        };
        if let Some((old, monitor)) = running
            && old.definition.listens_on() == definition.listens_on()
        {
            let same_mode = old.definition.check_mode == definition.check_mode;
            if same_mode && old.definition.checks == definition.checks {
                return monitor;
            }
            beginning = Beginning::With(monitor.verdict().0);
        }
        let subject = Subject {
            service: definition.key.service.clone(),
            id: definition.key.id.clone(),
            on: definition.listens_on(),
            checks: definition.checks.clone(),
            mode: definition.check_mode,
        };
        // Weak: the board owns the monitor, which owns this.
        let (board, key) = (Arc::downgrade(self), definition.key.clone());
        runner.start(subject, beginning, move || {
            if let Some(board) = Weak::upgrade(&board) {
                board.mark([Target::Instance(key.clone())]);
            }
        })
    }

    /// Puts drains in force.
    pub(super) fn drain(&self, drains: Arc<Drains>) {
        let mut state = self.state();
        let old = std::mem::replace(&mut state.drains, Arc::clone(&drains));
        let mut marks: Vec<Target> = old
            .instances
            .symmetric_difference(&drains.instances)
            .filter(|key| state.instances.contains_key(*key))
            .cloned()
            .map(Target::Instance)
            .collect();
        if old.node != drains.node {
            marks.push(Target::Node);
            marks.extend(state.instances.keys().cloned().map(Target::Instance));
        }
        drop(state);
        if !marks.is_empty() {
            self.mark(marks);
        }
    }

    /// What is to be registered, whether it stands already or not.
    pub(super) fn records(&self) -> Vec<Instance> {
        let state = self.state();
        state.instances.values().filter_map(|local| local.record(&self.config, &state.drains)).collect()
    }

    /// Says where this node takes other nodes' tunnels from now on, if it does.
    pub(super) fn offer_tunnel(&self, port: Option<u16>) {
        let before = std::mem::replace(&mut self.state().tunnel_port, port);
        if before != port {
            self.mark([Target::Node]);
        }
    }

    /// What a record should be, where it stands, and whether it has never been written in this life.
    pub(super) fn desired(&self, target: &Target) -> (Path, Record, bool) {
        let state = self.state();
        let config = &self.config;
        match target {
            Target::Node => {
                let node = Node {
                    name: config.node.clone(),
                    address: config.address,
                    region: config.region.clone(),
                    zone: config.zone.clone(),
                    signer_port: config.signer_port,
                    tunnel_port: state.tunnel_port,
                    version: config.version.clone(),
                    draining: state.drains.node,
                };
                (Key::Node(config.node.clone()).path(), Record::Node(node), false)
            }
            Target::Instance(key) => {
                let path = Key::Instance(key.service.clone(), key.id.clone()).path();
                let local = state.instances.get(key);
                let written = local.is_some_and(|local| local.written);
                match local.and_then(|local| local.record(config, &state.drains)) {
                    Some(instance) => (path, Record::Instance(Box::new(instance)), !written),
                    None => (path, Record::NoInstance(key.clone()), false),
                }
            }
        }
    }

    /// The store has confirmed a record.
    pub(super) fn stands(&self, target: &Target, revision: Revision, adopted: bool) {
        let now = SystemTime::now();
        self.set(target, |old| {
            let since = match old {
                Registration::Registered { since, .. } => *since,
                _ => now,
            };
            Registration::Registered { revision, since }
        });
        if let Target::Instance(key) = target
            && let Some(local) = self.state().instances.get_mut(key)
        {
            local.written = true;
            local.adopted |= adopted;
        }
    }

    /// Nothing of ours stands there: forgets the instance if it is no longer defined.
    pub(super) fn gone(&self, target: &Target) {
        let Target::Instance(key) = target else { return };
        // Also takes it out of the gauges.
        self.set(target, |_| waiting());
        let mut state = self.state();
        if state.instances.get(key).is_some_and(|local| local.defined.is_none()) {
            state.instances.remove(key);
            tracing::info!(instance = %key, "instance deregistered");
        }
        drop(state);
        self.changed();
    }

    /// The store did not take it.
    pub(super) fn failed(&self, target: &Target, reason: &str) {
        let now = SystemTime::now();
        self.set(target, |old| {
            let since = match old {
                Registration::Pending { since, .. } => *since,
                _ => now,
            };
            Registration::Pending { since, reason: reason.to_owned() }
        });
    }

    /// It is another's.
    pub(super) fn refused(&self, target: &Target, refusal: Refusal) {
        let now = SystemTime::now();
        self.set(target, |old| match old {
            Registration::Refused { since, refusal: old } if *old == refusal => {
                Registration::Refused { since: *since, refusal }
            }
            _ => {
                tracing::error!(%refusal, "registration refused");
                Registration::Refused { since: now, refusal }
            }
        });
    }

    /// Nothing of this node stands in the store any more, for this reason.
    pub(super) fn all_pending(&self, reason: &str) {
        for target in self.targets() {
            self.failed(&target, reason);
        }
    }

    /// The node itself is another's: what is on it is not registered before that is settled.
    pub(super) fn node_refused(&self, refusal: Refusal) {
        for target in self.targets().into_iter().filter(|target| *target != Target::Node) {
            self.failed(&target, "it waits until the node itself can be registered");
        }
        self.refused(&Target::Node, refusal);
    }

    /// The agent leaves and the store has confirmed it.
    pub(super) fn all_withdrawn(&self) {
        for target in self.targets() {
            self.set(&target, |_| Registration::Withdrawn);
        }
    }

    /// Why the store is out of reach, or that it is not.
    pub(super) fn store_problem(&self, problem: Option<String>) {
        self.state().store_problem = problem;
        self.changed();
    }

    fn set(&self, target: &Target, make: impl FnOnce(&Registration) -> Registration) {
        let mut state = self.state();
        let registration = match target {
            Target::Node => Some(&mut state.node),
            Target::Instance(key) => state.instances.get_mut(key).map(|local| &mut local.registration),
        };
        let Some(registration) = registration else { return };
        let new = make(registration);
        if *registration == new {
            return;
        }
        let is_instance = matches!(target, Target::Instance(_));
        for (state, by) in [(&*registration, -1), (&new, 1)] {
            match state {
                Registration::Registered { .. } if is_instance => self.metrics.registered.add(by),
                Registration::Refused { refusal, .. } => {
                    self.metrics.refused.with_label_values(&[refusal.as_str()]).add(by);
                }
                _ => {}
            }
        }
        let was_registered = matches!(registration, Registration::Registered { .. });
        if matches!(new, Registration::Registered { .. }) && !was_registered {
            match target {
                Target::Node => tracing::info!(node = %self.config.node, "node registered"),
                Target::Instance(key) => tracing::info!(instance = %key, "instance registered"),
            }
        }
        *registration = new;
        drop(state);
        self.changed();
    }

    /// How the node's own record stands.
    pub(super) fn node(&self) -> Registration {
        self.state().node.clone()
    }

    /// Every instance that is defined, in the order of service and id.
    pub(super) fn instances(&self) -> Vec<LocalInstance> {
        let state = self.state();
        let shown = |(key, local): (&InstanceKey, &Local)| {
            let (located, monitor) = local.defined.as_ref()?;
            let mut report = monitor.report();
            if local.adopted && report.health == Health::Starting {
                (report.health, report.reason) = (Health::Passing, String::new());
            }
            let advises_drain = report.advice.drains();
            Some(LocalInstance {
                located: Arc::clone(located),
                report,
                draining: state.drains.covers(key) || advises_drain || located.definition.is_stopping,
                registration: local.registration.clone(),
            })
        };
        state.instances.iter().filter_map(shown).collect()
    }

    /// Hands what an application reports to its check.
    pub(super) fn tell(&self, check: &str, report: SelfReport) -> Result<InstanceKey, ReportError> {
        let state = self.state();
        let defined = state.instances.values().filter_map(|local| local.defined.as_ref());
        let mut found = defined.flat_map(|(located, monitor)| {
            let Definition { key, checks, .. } = &located.definition;
            let ids = checks.iter().enumerate().filter_map(move |(place, spec)| {
                spec.report_id(key.id.as_str(), place, checks.len()).map(|id| (place, id))
            });
            ids.filter(|(_, id)| id == check).map(move |(place, _)| (key, place, monitor))
        });
        match (found.next(), found.next()) {
            (Some((key, place, monitor)), None) => {
                monitor.tell(place, report);
                Ok(key.clone())
            }
            (Some((one, ..)), Some((other, ..))) => {
                Err(ReportError::Ambiguous { check: check.to_owned(), instances: format!("{one}, {other}") })
            }
            (None, _) => Err(ReportError::Unknown(check.to_owned())),
        }
    }

    /// What was registered at run time to be deregistered once it has not been well for so long, and is not well.
    pub(super) fn lapsing(&self) -> Vec<(InstanceKey, Duration)> {
        let state = self.state();
        let lapsing = |(key, local): (&InstanceKey, &Local)| {
            let (located, monitor) = local.defined.as_ref()?;
            let after = located.definition.deregister_critical_after?;
            let is_well = match monitor.verdict().0 {
                Health::Passing | Health::Warning => true,
                Health::Starting => local.adopted,
                Health::Critical => false,
            };
            (!is_well && located.origin == Origin::Api).then(|| (key.clone(), after.get()))
        };
        state.instances.iter().filter_map(lapsing).collect()
    }

    /// Where each defined instance is defined.
    pub(super) fn located(&self) -> Vec<Arc<Located>> {
        let state = self.state();
        state.instances.values().filter_map(|local| Some(Arc::clone(&local.defined.as_ref()?.0))).collect()
    }

    /// Everything that is wrong.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let state = self.state();
        let problem = |subject: String, message: String| Problem { subject, message };
        let mut problems: Vec<Problem> = state
            .source_problems
            .iter()
            .map(|found| problem(found.place.clone(), found.message.clone()))
            .collect();
        problems
            .extend(state.store_problem.iter().map(|message| problem("store".to_owned(), message.clone())));
        if let Registration::Refused { refusal, .. } = &state.node {
            problems.push(problem(format!("node {}", self.config.node), refusal.to_string()));
        }
        for (key, local) in &state.instances {
            if let Registration::Refused { refusal, .. } = &local.registration {
                problems.push(problem(format!("instance {key}"), refusal.to_string()));
            }
        }
        problems
    }
}

impl Local {
    fn record(&self, config: &Config, drains: &Drains) -> Option<Instance> {
        let (located, monitor) = self.defined.as_ref()?;
        let Definition { key, address, port, socket, ports, tags, labels, weight, backup, .. } =
            &located.definition;
        let (mut health, mut health_reason, advice) = monitor.verdict();
        if self.adopted && health == Health::Starting {
            (health, health_reason) = (Health::Passing, String::new());
        }
        Some(Instance {
            service: key.service.clone(),
            id: key.id.clone(),
            node: config.node.clone(),
            address: *address,
            port: *port,
            socket: socket.clone(),
            ports: ports.clone(),
            tags: tags.clone(),
            labels: labels.clone(),
            weight: advice.of(*weight),
            backup: *backup,
            region: config.region.clone(),
            zone: config.zone.clone(),
            health,
            health_reason,
            draining: drains.covers(key) || advice.drains() || located.definition.is_stopping,
        })
    }
}

fn tell_of_change(old: &Located, new: &Located) {
    let (instance, origin) = (&new.definition.key, &new.origin);
    match (old.definition.is_stopping, new.definition.is_stopping) {
        (false, true) => tracing::info!(%instance, %origin, "instance is being stopped, and drained"),
        _ => tracing::info!(%instance, %origin, "instance redefined"),
    }
}

fn waiting() -> Registration {
    Registration::Pending { since: SystemTime::now(), reason: "it is about to be written".to_owned() }
}
