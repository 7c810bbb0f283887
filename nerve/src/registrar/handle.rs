//! What the rest of the agent sees of the registrar: how things stand here, and the run-time API.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::board::Board;
use super::carried::Carried;
use super::status::{LocalInstance, Problem, Refusal, Registration, ReportError};
use super::writer::{Asked, Paused};
use super::{HandOverError, LeaveError};
use crate::check::{CheckSpec, SelfReport};
use crate::model::{Instance, InstanceId, ServiceName};
use crate::source::{ApiError, ApiSource, Definition, Draft, Drains, InstanceKey, Located, Origin, Trust};

/// What an agent that was killed has left stands for one time to live of its session, and is looked at again within another.
const LEFT_BEHIND: u32 = 3;
/// How long a change may take to be in force; a moment, while the control plane's thread is not busy.
const TAKEN_IN_WITHIN: Duration = Duration::from_secs(2);

/// The registrar, for whoever shows or commands it. Clones share it.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) board: Arc<Board>,
    pub(super) api: ApiSource,
    pub(super) ask: Arc<watch::Sender<Asked>>,
    pub(super) left: watch::Receiver<Option<Result<(), LeaveError>>>,
    pub(super) paused: watch::Receiver<Option<Paused>>,
}

impl Handle {
    /// Every instance defined on this node, in the order of service and id.
    #[must_use]
    pub fn instances(&self) -> Vec<LocalInstance> {
        self.board.instances()
    }

    /// What this node registers, or is about to: others may not know of it yet.
    #[must_use]
    pub fn records(&self) -> Vec<Instance> {
        self.board.records()
    }

    /// How the record of the node itself stands.
    #[must_use]
    pub fn node(&self) -> Registration {
        self.board.node()
    }

    /// Waits until it is known that this node's name is this agent's. The record of an agent that was killed stands for a while; of
    /// one that runs, it stays.
    ///
    /// # Errors
    /// Another agent has it, and has kept it for three times a session's time to live.
    pub async fn has_its_name(&self) -> Result<(), Refusal> {
        let mut changes = self.board.version();
        let mut until = None;
        loop {
            changes.mark_unchanged();
            match self.node() {
                Registration::Registered { .. } | Registration::Withdrawn => return Ok(()),
                Registration::Refused { refusal, .. } => {
                    let until = *until
                        .get_or_insert_with(|| Instant::now() + self.board.session_ttl().get() * LEFT_BEHIND);
                    if until <= Instant::now() {
                        return Err(refusal);
                    }
                }
                Registration::Pending { .. } => until = None,
            }
            let lasted = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = lasted => {}
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    /// Says where this node takes other nodes' tunnels from now on; `None`: nowhere, they are to come directly.
    pub fn offer_tunnel(&self, port: Option<u16>) {
        self.board.offer_tunnel(port);
    }

    /// Everything that is wrong and should be seen until it is mended.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.board.problems()
    }

    /// What is being drained.
    #[must_use]
    pub fn drains(&self) -> Arc<Drains> {
        Arc::clone(&self.api.drains().borrow())
    }

    /// Counts up whenever anything of the above has changed (single probes do not count).
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.board.version()
    }

    /// Registers an instance at run time; it stays over restarts of the agent.
    ///
    /// # Errors
    /// It is wrong in itself, defined elsewhere on this node, or cannot be kept.
    pub async fn register(&self, draft: Draft, trust: Trust) -> Result<Definition, ApiError> {
        let key = draft.resolve(self.api.local())?.key;
        self.only_here(&key)?;
        let definition = self.api.register(draft, trust).await?;
        self.in_force(&definition).await;
        Ok(definition)
    }

    async fn in_force(&self, definition: &Definition) {
        self.taken_in(|located| located.iter().any(|located| located.definition == *definition)).await;
    }

    /// Waits until what was changed is in force: whoever asks next, or reports to a check, is to find it.
    async fn taken_in(&self, is_in: impl Fn(&[Arc<Located>]) -> bool) {
        let mut changes = self.board.version();
        let seen = async {
            loop {
                changes.mark_unchanged();
                if is_in(&self.board.located()) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Kept it is in any case.
        let _ = tokio::time::timeout(TAKEN_IN_WITHIN, seen).await;
    }

    /// Takes back a registration made at run time. An id is enough unless several services have one of that id.
    ///
    /// # Errors
    /// There is none, it is defined in a file, or the change cannot be kept.
    pub async fn deregister(
        &self,
        id: &InstanceId,
        service: Option<&ServiceName>,
    ) -> Result<InstanceKey, ApiError> {
        let key = self.find(id, service)?;
        self.only_here(&key)?;
        self.api.deregister(&key).await?;
        self.taken_in(|located| located.iter().all(|located| located.definition.key != key)).await;
        Ok(key)
    }

    /// Adds a check to an instance that was registered at run time.
    ///
    /// # Errors
    /// It is defined in a file, the check is wrong, or the change cannot be kept.
    pub async fn add_check(&self, key: &InstanceKey, check: CheckSpec, trust: Trust) -> Result<(), ApiError> {
        self.only_here(key)?;
        self.in_force(&self.api.add_check(key, check, trust).await?).await;
        Ok(())
    }

    /// Removes the check at this place of an instance that was registered at run time.
    ///
    /// # Errors
    /// It is defined in a file, or the change cannot be kept.
    pub async fn remove_check(&self, key: &InstanceKey, place: usize) -> Result<(), ApiError> {
        self.only_here(key)?;
        self.in_force(&self.api.remove_check(key, place).await?).await;
        Ok(())
    }

    /// Takes in what an application reports to its `ttl` check; answers with the instance.
    ///
    /// # Errors
    /// There is no such check here, or several.
    pub fn report(&self, check: &str, report: SelfReport) -> Result<InstanceKey, ReportError> {
        self.board.tell(check, report)
    }

    /// Drains an instance (`true`) or ends its drain. It stays over restarts of the agent.
    ///
    /// # Errors
    /// There is no such instance here, or the change cannot be kept.
    pub async fn set_drain(
        &self,
        id: &InstanceId,
        service: Option<&ServiceName>,
        drain: bool,
    ) -> Result<InstanceKey, ApiError> {
        let key = self.find(id, service)?;
        self.api.set_drain(&key, drain).await?;
        Ok(key)
    }

    /// Drains the whole node (`true`) or ends its drain. It stays over restarts of the agent.
    ///
    /// # Errors
    /// The change cannot be kept.
    pub async fn set_node_drain(&self, drain: bool) -> Result<(), ApiError> {
        self.api.set_node_drain(drain).await
    }

    /// Takes back everything of this node, and ends registering for good. Returns when the store has confirmed it.
    ///
    /// # Errors
    /// The store did not confirm it within `timeout`; the records end with the session's time to live.
    pub async fn deregister_all(&self, timeout: Duration) -> Result<(), LeaveError> {
        let by = Instant::now() + timeout;
        self.ask.send_if_modified(|asked| {
            let first = !matches!(asked, Asked::Leave(_));
            if first {
                *asked = Asked::Leave(by);
            }
            first
        });
        let mut left = self.left.clone();
        match left.wait_for(Option::is_some).await.map(|done| done.clone()) {
            Ok(Some(done)) => done,
            // The registrar was stopped before it could answer.
            _ => Err(LeaveError {
                ttl: self.board.session_ttl(),
                reason: "the agent stopped first".to_owned(),
            }),
        }
    }

    /// Stops writing and tells what a process that goes on needs to know. The session is kept alive until the registrar
    /// is stopped. Registrations and drains are refused until [`Handle::take_back`].
    ///
    /// # Errors
    /// It was not done within `timeout`, or the agent leaves; nothing has changed.
    pub async fn hand_over(&self, timeout: Duration) -> Result<Carried, HandOverError> {
        self.ask.send_if_modified(|asked| {
            let serves = *asked == Asked::Serve;
            if serves {
                *asked = Asked::Pause;
            }
            serves
        });
        let mut paused = self.paused.clone();
        let waited = tokio::time::timeout(timeout, paused.wait_for(Option::is_some)).await;
        let Ok(Ok(Some(Paused { session, records }))) = waited.map(|paused| paused.map(|p| p.clone())) else {
            self.take_back().await;
            return Err(HandOverError { within: timeout });
        };
        self.api.set_handed_over(true).await;
        Ok(Carried { session, records, instances: self.board.carried() })
    }

    /// Ends [`Handle::hand_over`]: nobody else went on, this process does.
    pub async fn take_back(&self) {
        self.api.set_handed_over(false).await;
        self.ask.send_if_modified(|asked| {
            let paused = *asked == Asked::Pause;
            if paused {
                *asked = Asked::Serve;
            }
            paused
        });
    }

    fn find(&self, id: &InstanceId, service: Option<&ServiceName>) -> Result<InstanceKey, ApiError> {
        let matching: Vec<Arc<Located>> = self
            .board
            .located()
            .into_iter()
            .filter(|located| {
                let key = &located.definition.key;
                key.id == *id && service.is_none_or(|service| key.service == *service)
            })
            .collect();
        match matching.as_slice() {
            [one] => Ok(one.definition.key.clone()),
            [] => Err(ApiError::Unknown(
                service.map_or_else(|| id.to_string(), |service| format!("{service}/{id}")),
            )),
            several => {
                let services: Vec<_> =
                    several.iter().map(|located| located.definition.key.service.as_str()).collect();
                Err(ApiError::Ambiguous { id: id.clone(), services: services.join(", ") })
            }
        }
    }

    fn only_here(&self, key: &InstanceKey) -> Result<(), ApiError> {
        let located = self.board.located();
        match located.iter().find(|located| located.definition.key == *key).map(|located| &located.origin) {
            None | Some(Origin::Api) => Ok(()),
            Some(origin) => Err(ApiError::DefinedElsewhere { key: key.clone(), place: origin.to_string() }),
        }
    }
}
