//! What the checks of a node have in common: who may start programs, and those that answer for several checks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::program::Programs;
use crate::model::{InstanceId, ListensOn, ServiceName};
use crate::tasks::Tasks;

/// So many programs of `exec` checks run at a time.
const MAX_PROGRAMS: usize = 32;

/// The means of a node's checks. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Means {
    /// A permit a program that runs for one probe.
    pub(super) running: Arc<Semaphore>,
    /// Those that are asked many times.
    pub(super) programs: Programs,
}

/// What one probe is of.
#[derive(Debug)]
pub(super) struct Of<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) id: &'a InstanceId,
    pub(super) on: &'a ListensOn,
    /// How long it may take.
    pub(super) timeout: Duration,
    pub(super) means: &'a Means,
    /// What the application has reported, for the check that listens.
    pub(super) reports: &'a super::reports::Reports,
}

impl Means {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { running: Arc::new(Semaphore::new(MAX_PROGRAMS)), programs: Programs::new(tasks) }
    }
}
