//! What requests are signed with.

use std::time::SystemTime;

use super::secret::Secret;

/// A key with its secret.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Of those that end.
    pub(super) token: Option<Secret>,
    pub(super) expires: Option<SystemTime>,
    /// Whose they are, in words.
    pub(super) source: String,
}

impl Credentials {
    /// Have they not ended by then?
    pub(super) fn hold_at(&self, time: SystemTime) -> bool {
        self.expires.is_none_or(|expires| time < expires)
    }
}
