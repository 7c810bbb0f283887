//! The wanted ports of virtual addresses, by service.

use std::collections::{BTreeMap, HashMap};

use nerve::model::ServiceName;

use super::desired::Holder;
use super::slots::SlotKey;

/// The wanted ports of virtual addresses.
#[derive(Debug, Default)]
pub(super) struct Virtuals(HashMap<ServiceName, BTreeMap<SlotKey, Holder>>);

impl Virtuals {
    /// Takes over what a service wants; returns what it wanted before.
    pub(super) fn set(
        &mut self,
        service: &ServiceName,
        wanted: BTreeMap<SlotKey, Holder>,
    ) -> BTreeMap<SlotKey, Holder> {
        let before = self.0.remove(service).unwrap_or_default();
        if !wanted.is_empty() {
            self.0.insert(service.clone(), wanted);
        }
        before
    }
}
