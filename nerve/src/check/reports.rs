//! What an application reports of itself, on its way to the check that waits for it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::Level;

/// What an application reports of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfReport {
    /// How it is.
    pub level: Level,
    /// What it says.
    pub text: String,
}

/// The newest report that was not taken in yet.
#[derive(Debug, Default)]
pub(super) struct Reports {
    newest: Mutex<Option<SelfReport>>,
    told: Notify,
}

impl Reports {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn tell(&self, report: SelfReport) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        self.told.notify_one();
    }

    /// Waits for a report and takes it. Cancel-safe.
    pub(super) async fn next(&self) -> SelfReport {
        loop {
            if let Some(report) = self.newest.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return report;
            }
            self.told.notified().await;
        }
    }
}
