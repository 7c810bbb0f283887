//! Balance policies: one file each, behind one trait.

mod round_robin;

use std::sync::Arc;

use super::Endpoint;

pub(super) use round_robin::RoundRobin;

/// Chooses among endpoints. Called for every connection: takes no lock, allocates nothing.
pub(super) trait Policy {
    /// One of `endpoints` for which `eligible` holds, or `None` if it holds for none.
    fn choose<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        eligible: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<&'a Arc<Endpoint>>;
}
