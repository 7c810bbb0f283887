//! The wanted ports of virtual addresses, by service and by port.

use std::collections::{BTreeMap, HashMap};

use nerve::model::ServiceName;

use super::desired::{Holder, Port};
use super::slots::SlotKey;

/// The wanted ports of virtual addresses.
#[derive(Debug, Default)]
pub(super) struct Virtuals {
    of_service: HashMap<ServiceName, BTreeMap<SlotKey, Holder>>,
    pub(super) by_port: HashMap<Port, BTreeMap<SlotKey, Holder>>,
}

impl Virtuals {
    /// Takes over what a service wants; returns what it wanted before.
    pub(super) fn set(
        &mut self,
        service: &ServiceName,
        wanted: BTreeMap<SlotKey, Holder>,
    ) -> BTreeMap<SlotKey, Holder> {
        let before = self.of_service.remove(service).unwrap_or_default();
        for key in before.keys() {
            if let Some(port) = port_of(key)
                && let Some(keys) = self.by_port.get_mut(&port)
            {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_port.remove(&port);
                }
            }
        }
        for (key, holder) in &wanted {
            if let Some(port) = port_of(key) {
                self.by_port.entry(port).or_default().insert(key.clone(), holder.clone());
            }
        }
        if !wanted.is_empty() {
            self.of_service.insert(service.clone(), wanted);
        }
        before
    }
}

/// The port that a slot is for.
pub(super) fn port_of(key: &SlotKey) -> Option<Port> {
    Some(Port { protocol: key.protocol, port: key.port()? })
}
