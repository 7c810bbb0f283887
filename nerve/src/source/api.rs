//! The source that is told at run time: registrations and drains, kept over restarts.
//!
//! They stand in the state directory as JSON, in the form of a configuration. A change is kept (`kept.rs`) before it is in
//! force. A file that cannot be read is set aside, and said so.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{Mutex, watch};

use super::kept::Kept;
use super::{
    Definition, Draft, DraftError, InstanceKey, Local, Located, Origin, Snapshot, Source, SourceProblem,
};
use crate::check::{CheckSpec, Liberty};
use crate::document::{Document, Errors, MAX_BYTES, Reported, Section};
use crate::model::{InstanceId, ServiceName};

/// Whom a registration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Anyone who reaches the interface: a program of this node, as a rule.
    Anyone,
    /// Somebody who has shown that it may operate this node.
    Operator,
}

/// Why a registration, deregistration or drain was refused.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The registration is wrong in itself.
    #[error("the registration is refused: {0}")]
    Draft(#[from] DraftError),
    /// Nothing of this id is here.
    #[error("this node has no instance {0}; `plexus endpoints SERVICE` shows where each runs")]
    Unknown(String),
    /// An id alone names several instances.
    #[error("{id} is an instance of several services ({services}); name the service")]
    Ambiguous {
        /// The id.
        id: InstanceId,
        /// The services that have one of this id here.
        services: String,
    },
    /// It stands in a file.
    #[error("instance {key} is defined in {place}; change it there")]
    DefinedElsewhere {
        /// The instance.
        key: InstanceKey,
        /// Where it is defined.
        place: String,
    },
    /// The file would become too large to be read back.
    #[error("the run-time registrations would exceed {MAX_BYTES} bytes; use files in services.d")]
    Full,
    /// Another process goes on with this node.
    #[error("the agent is being replaced, nothing was changed; ask again in a moment")]
    HandedOver,
    /// The file could not be written; nothing was changed.
    #[error("{path} cannot be written, nothing was changed: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is being drained on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drains {
    /// The whole node.
    pub node: bool,
    /// These instances.
    pub instances: BTreeSet<InstanceKey>,
}

impl Drains {
    /// Is this instance drained, by itself or with its node?
    #[must_use]
    pub fn covers(&self, key: &InstanceKey) -> bool {
        self.node || self.instances.contains(key)
    }
}

/// The registrations and drains of the run-time API. Clones share them.
#[derive(Debug, Clone)]
pub struct ApiSource(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    local: Local,
    /// Held over the write to disk: changes happen one after the other.
    state: Mutex<State>,
    kept: Option<Kept>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    drains: watch::Sender<Arc<Drains>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    services: Vec<(Draft, Definition)>,
    drains: Drains,
    /// How many changes there were.
    generation: u64,
    damaged: Option<SourceProblem>,
    /// Another process reads the file, and goes on with what is in it.
    handed_over: bool,
}

/// The file, as it is written.
#[derive(Serialize)]
struct Written<'a> {
    generation: u64,
    service: Vec<&'a Draft>,
    drain_node: bool,
    drain: Vec<Drained<'a>>,
}

#[derive(Serialize)]
struct Drained<'a> {
    service: &'a ServiceName,
    id: &'a InstanceId,
}

impl ApiSource {
    /// The registrations kept in `state_directory`; without one they last as long as the process.
    #[must_use]
    pub fn open(state_directory: Option<&Path>, local: Local) -> Self {
        let kept = state_directory.map(Kept::new);
        let state = kept.as_ref().map_or_else(State::default, |kept| load(kept, &local));
        let snapshots = watch::Sender::new(Arc::new(state.snapshot()));
        let drains = watch::Sender::new(Arc::new(state.drains.clone()));
        Self(Arc::new(Inner { local, state: Mutex::new(state), kept, snapshots, drains }))
    }

    /// Adds an instance, or replaces the one of the same service and id.
    ///
    /// # Errors
    /// It is wrong in itself, or cannot be kept.
    pub async fn register(&self, draft: Draft, trust: Trust) -> Result<Definition, ApiError> {
        draft.checks.iter().try_for_each(|check| allowed(check, trust))?;
        // Connections to a service are made by the agent, and may come from other nodes.
        if draft.socket.is_some() && trust == Trust::Anyone {
            let why = "connections there are made with the agent's rights, and only the node's own files, or whoever may \
                       operate it, say where to; define the instance in services.d";
            return Err(DraftError { key: "socket", message: why.to_owned() }.into());
        }
        self.take_in(draft).await
    }

    async fn take_in(&self, draft: Draft) -> Result<Definition, ApiError> {
        let definition = draft.resolve(&self.0.local)?;
        let registered = definition.clone();
        self.change(|state| {
            state.services.retain(|(_, known)| known.key != definition.key);
            state.services.push((draft, definition));
        })
        .await?;
        Ok(registered)
    }

    /// Adds a check to an instance that was registered here, and answers with what it is then.
    ///
    /// # Errors
    /// There is none, the check is wrong, or the change cannot be kept.
    pub async fn add_check(
        &self,
        key: &InstanceKey,
        check: CheckSpec,
        trust: Trust,
    ) -> Result<Definition, ApiError> {
        allowed(&check, trust)?;
        self.change_draft(key, |draft| draft.checks.push(check)).await
    }

    /// Removes the check at this place of an instance that was registered here, and answers with what it is then.
    ///
    /// # Errors
    /// There is none, or the change cannot be kept.
    pub async fn remove_check(&self, key: &InstanceKey, place: usize) -> Result<Definition, ApiError> {
        let remove = |draft: &mut Draft| {
            if place < draft.checks.len() {
                draft.checks.remove(place);
            }
        };
        self.change_draft(key, remove).await
    }

    async fn change_draft(
        &self,
        key: &InstanceKey,
        change: impl FnOnce(&mut Draft),
    ) -> Result<Definition, ApiError> {
        let known = self.0.state.lock().await.services.iter().find(|(_, known)| known.key == *key).cloned();
        let Some((mut draft, _)) = known else { return Err(ApiError::Unknown(key.to_string())) };
        change(&mut draft);
        self.take_in(draft).await
    }

    /// Removes an instance that was registered here; its drain goes with it.
    ///
    /// # Errors
    /// There is none, or the change cannot be kept.
    pub async fn deregister(&self, key: &InstanceKey) -> Result<(), ApiError> {
        if !self.0.state.lock().await.services.iter().any(|(_, known)| known.key == *key) {
            return Err(ApiError::Unknown(key.to_string()));
        }
        self.change(|state| {
            state.services.retain(|(_, known)| known.key != *key);
            state.drains.instances.remove(key);
        })
        .await
    }

    /// Drains an instance, or ends its drain.
    ///
    /// # Errors
    /// The change cannot be kept.
    pub async fn set_drain(&self, key: &InstanceKey, drain: bool) -> Result<(), ApiError> {
        self.change(|state| {
            if drain {
                state.drains.instances.insert(key.clone());
            } else {
                state.drains.instances.remove(key);
            }
        })
        .await
    }

    /// Drains the whole node, or ends its drain.
    ///
    /// # Errors
    /// The change cannot be kept.
    pub async fn set_node_drain(&self, drain: bool) -> Result<(), ApiError> {
        self.change(|state| state.drains.node = drain).await
    }

    /// What is being drained, and word of changes.
    #[must_use]
    pub fn drains(&self) -> watch::Receiver<Arc<Drains>> {
        self.0.drains.subscribe()
    }

    /// What this node gives to definitions that say nothing.
    #[must_use]
    pub fn local(&self) -> &Local {
        &self.0.local
    }

    /// Whether another process goes on with the file: then nothing is changed here. Waits for a change that is under way.
    pub async fn set_handed_over(&self, handed_over: bool) {
        self.0.state.lock().await.handed_over = handed_over;
    }

    async fn change(&self, apply: impl FnOnce(&mut State)) -> Result<(), ApiError> {
        let mut state = self.0.state.lock().await;
        if state.handed_over {
            return Err(ApiError::HandedOver);
        }
        let mut next = state.clone();
        apply(&mut next);
        next.generation += 1;
        if let Some(kept) = &self.0.kept {
            let text = next.written();
            if text.len() > MAX_BYTES {
                return Err(ApiError::Full);
            }
            kept.write(text).await.map_err(|(path, source)| ApiError::Write { path, source })?;
        }
        *state = next;
        self.0.snapshots.send_replace(Arc::new(state.snapshot()));
        self.0.drains.send_replace(Arc::new(state.drains.clone()));
        Ok(())
    }
}

/// Whoever reaches the interface can connect wherever this node can; running programs and reading files is another matter, and
/// so is what unix sockets let nobody else do: a container runtime's makes whoever speaks with it root.
fn allowed(check: &CheckSpec, trust: Trust) -> Result<(), DraftError> {
    match check.probe.liberty() {
        None | Some(Liberty::Addresses) => Ok(()),
        Some(Liberty::Sockets) if trust == Trust::Operator => Ok(()),
        Some(liberty) => {
            let message = format!("`{}` {liberty}; define the instance in services.d", check.probe.kind());
            Err(DraftError { key: "check", message })
        }
    }
}

impl Source for ApiSource {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.snapshots.subscribe()
    }
}

impl State {
    fn snapshot(&self) -> Snapshot {
        let located = |(_, definition): &(Draft, Definition)| Located {
            definition: definition.clone(),
            origin: Origin::Api,
        };
        Snapshot {
            definitions: self.services.iter().map(located).map(Arc::new).collect(),
            clients: Vec::new(),
            problems: self.damaged.iter().cloned().collect(),
        }
    }

    fn written(&self) -> String {
        let drain = self.drains.instances.iter().map(|key| Drained { service: &key.service, id: &key.id });
        let written = Written {
            generation: self.generation,
            service: self.services.iter().map(|(draft, _)| draft).collect(),
            drain_node: self.drains.node,
            drain: drain.collect(),
        };
        // Text keys and plain data only: there is nothing in it that JSON cannot say.
        serde_json::to_string_pretty(&written).unwrap_or_default()
    }

    fn read(root: &mut Section<'_>, local: &Local) -> Result<Self, Reported> {
        let generation = root.or("generation", 0);
        let services = root.list("service", |section| {
            let draft = Draft::read(section)?;
            let definition =
                draft.resolve(local).map_err(|error| section.invalid(error.key, error.message, ""))?;
            Ok((draft, definition))
        });
        let node = root.or("drain_node", false);
        let instances = root.list("drain", |section| {
            let (service, id) = (section.required("service"), section.required("id"));
            Ok(InstanceKey { service: service?, id: id? })
        });
        let drains = Drains { node, instances: instances.into_iter().collect::<Result<_, _>>()? };
        let services = services.into_iter().collect::<Result<_, _>>()?;
        Ok(Self { services, drains, generation, damaged: None, handed_over: false })
    }
}

/// What is kept. Of two files the later one counts; the recent one may be torn where the machine went down.
fn load(kept: &Kept, local: &Local) -> State {
    let recent = read(kept.recent(), local).unwrap_or_else(|reason| {
        tracing::warn!(reason, "the last changes before this machine went down are not known");
        None
    });
    match read(kept.durable(), local) {
        Ok(Some(durable)) => recent.filter(|r| r.generation > durable.generation).unwrap_or(durable),
        Ok(None) => recent.unwrap_or_default(),
        Err(reason) => {
            let damaged = Some(set_aside(kept.durable(), &reason));
            State { damaged, ..recent.unwrap_or_default() }
        }
    }
}

fn read(file: &Path, local: &Local) -> Result<Option<State>, String> {
    match std::fs::read_to_string(file) {
        Ok(text) => Document::parse_json(&file.display().to_string(), &text)
            .and_then(|document| document.decode(|root| State::read(root, local)))
            .map(Some)
            .map_err(|errors: Errors| errors.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: it cannot be read: {error}", file.display())),
    }
}

fn set_aside(file: &Path, reason: &str) -> SourceProblem {
    let aside = file.with_extension("json.damaged");
    let kept = match std::fs::rename(file, &aside) {
        Ok(()) => format!("it was set aside as {}", aside.display()),
        Err(error) => format!("it could not be set aside either: {error}"),
    };
    tracing::error!(reason, kept, "run-time registrations are lost; register them again");
    let message = format!("{reason}; {kept}; what was registered at run time must be registered again");
    SourceProblem { place: file.display().to_string(), message }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn local() -> Local {
        Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() }
    }

    fn draft(port: u16) -> Draft {
        Draft::new("web".parse().unwrap(), NonZeroU16::new(port).unwrap())
    }

    fn keys(source: &ApiSource) -> Vec<String> {
        let snapshot = source.snapshots().borrow().clone();
        snapshot.definitions.iter().map(|located| located.definition.key.to_string()).collect()
    }

    #[tokio::test]
    async fn registrations_and_drains_survive_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("state");
        let source = ApiSource::open(Some(&state), local());
        let first = source.register(draft(1), Trust::Anyone).await.unwrap();
        let second = source.register(draft(2), Trust::Anyone).await.unwrap();
        source.set_drain(&first.key, true).await.unwrap();
        source.set_drain(&second.key, true).await.unwrap();
        source.set_node_drain(true).await.unwrap();
        source.deregister(&second.key).await.unwrap();
        assert!(matches!(source.deregister(&second.key).await, Err(ApiError::Unknown(_))));

        let again = ApiSource::open(Some(&state), local());
        assert_eq!(keys(&again), ["web/web-a-1"]);
        let drains = again.drains().borrow().clone();
        assert!(drains.node && drains.instances.len() == 1 && drains.instances.contains(&first.key));
    }

    #[tokio::test]
    async fn a_torn_recent_file_costs_the_last_changes_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let source = ApiSource::open(Some(root.path()), local());
        source.register(draft(1), Trust::Anyone).await.unwrap();
        source.register(draft(2), Trust::Anyone).await.unwrap();
        assert_eq!(keys(&ApiSource::open(Some(root.path()), local())), ["web/web-a-1", "web/web-a-2"]);
        let recent = Kept::new(root.path()).recent().to_owned();
        let text = std::fs::read_to_string(&recent).unwrap();
        std::fs::write(&recent, &text[..text.len() / 2]).unwrap();
        assert_eq!(keys(&ApiSource::open(Some(root.path()), local())), ["web/web-a-1"]);
    }

    #[tokio::test]
    async fn the_same_id_again_replaces_and_a_wrong_one_changes_nothing() {
        let source = ApiSource::open(None, local());
        source.register(draft(1), Trust::Anyone).await.unwrap();
        source
            .register(Draft { weight: crate::model::Weight(NonZeroU16::MIN), ..draft(1) }, Trust::Anyone)
            .await
            .unwrap();
        let wrong = Draft { address: Some("0.0.0.0".parse().unwrap()), ..draft(2) };
        assert!(matches!(source.register(wrong, Trust::Anyone).await, Err(ApiError::Draft(_))));
        let socket = Draft { socket: Some("/run/app.sock".parse().unwrap()), ..draft(3) };
        let refused = source.register(socket.clone(), Trust::Anyone).await.unwrap_err().to_string();
        assert!(refused.contains("with the agent's rights"), "{refused}");
        let key = source.register(socket, Trust::Operator).await.unwrap().key;
        source.deregister(&key).await.unwrap();
        assert_eq!(keys(&source), ["web/web-a-1"]);
    }

    #[tokio::test]
    async fn a_damaged_file_is_set_aside_and_a_disk_that_refuses_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(Kept::new(root.path()).durable(), "{ \"service\": 3").unwrap();
        let source = ApiSource::open(Some(root.path()), local());
        let problem = source.snapshots().borrow().problems[0].message.clone();
        assert!(
            problem.contains("no JSON object") && problem.contains("registrations.json.damaged"),
            "{problem}"
        );
        assert!(root.path().join("registrations.json.damaged").exists());

        let blocked = root.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let source = ApiSource::open(Some(&blocked), local());
        let error = source.register(draft(1), Trust::Anyone).await.unwrap_err();
        assert!(matches!(error, ApiError::Write { .. }) && keys(&source).is_empty(), "{error}");
    }
}
