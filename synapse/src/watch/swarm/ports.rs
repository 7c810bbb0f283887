//! Which of its ports a service of a swarm is reached by (pure): the main one, and the others by names of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use nerve::model::{PortName, Protocol, PublishedPort};

use super::api::{Port, Task};

/// So many ports of a service are looked at.
const MOST: usize = 64;

/// The ports of a service, the main one first.
#[derive(Debug, Default)]
pub(super) struct Ports<'a>(Vec<(&'a Port, Protocol, Role)>);

/// What a port of the service is to its instances.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Main,
    Named(PortName),
}

/// Where a task is reached on its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) main: NonZeroU16,
    pub(super) named: BTreeMap<PortName, NonZeroU16>,
}

impl<'a> Ports<'a> {
    /// Of `ports`, which lead to what a service listens on, `main` is the one that clients mean, or else the lowest: of TCP, where there
    /// is one.
    pub(super) fn of(ports: impl Iterator<Item = &'a Port>, main: Option<NonZeroU16>) -> Self {
        let known = ports.filter_map(|port| Some((port, port.protocol()?))).take(MOST);
        let mut known: Vec<(&Port, Protocol)> = known.collect();
        let is_other = |port: &Port| main.is_some_and(|main| port.target_port != main.get());
        known.sort_by_key(|(port, protocol)| {
            (is_other(port), *protocol, port.target_port, port.published_port)
        });
        let has_main = known.first().is_some_and(|(port, _)| !is_other(port));
        let mut taken = BTreeSet::new();
        let roles = known.into_iter().enumerate().filter_map(|(at, (port, protocol))| {
            if at == 0 && has_main {
                return Some((port, protocol, Role::Main));
            }
            let name = name(port, protocol).into_iter().find(|name| taken.insert(name.clone()))?;
            Some((port, protocol, Role::Named(name)))
        });
        Self(roles.collect())
    }

    /// Does it have the one that clients mean?
    pub(super) fn has_main(&self) -> bool {
        matches!(self.0.first(), Some((_, _, Role::Main)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a task of it is reached; `None`: its main port is nowhere yet.
    pub(super) fn reached(&self, task: &Task) -> Option<Reached> {
        let (mut main, mut named) = (None, BTreeMap::new());
        for (port, protocol, role) in &self.0 {
            let Some(number) = NonZeroU16::new(number(port, *protocol, task)) else { continue };
            match role {
                Role::Main => main = Some(number),
                Role::Named(name) => drop(named.insert(name.clone(), number)),
            }
        }
        main.map(|main| Reached { main, named })
    }

    /// What of it is the same port on every node, as this node publishes it.
    pub(super) fn published(&self) -> impl Iterator<Item = PublishedPort> {
        self.0.iter().filter_map(|(port, protocol, role)| {
            let number = NonZeroU16::new(port.published_port)?;
            let target = match role {
                Role::Main => None,
                Role::Named(name) => Some(name.clone()),
            };
            Some(PublishedPort { target, ..PublishedPort::new(number.into(), *protocol) })
        })
    }
}

/// The port of its node that leads to a task's; 0: none does yet.
fn number(port: &Port, protocol: Protocol, task: &Task) -> u16 {
    if !port.is_of_host() {
        return port.published_port;
    }
    if task.is_on_host() {
        return port.target_port;
    }
    let same = |other: &&Port| other.protocol() == Some(protocol) && other.target_port == port.target_port;
    let of_task = || task.ports().iter().filter(same);
    // One that runs since before the service was changed has those of before.
    let exact = of_task().find(|other| other.published_port == port.published_port);
    match exact.or_else(|| of_task().next()) {
        Some(known) => known.published_port,
        None => port.published_port,
    }
}

/// What it is called: by the swarm, or else by what it leads to; then by both of its numbers.
fn name(port: &Port, protocol: Protocol) -> Vec<PortName> {
    let Port { name, target_port, published_port, .. } = port;
    let names = [
        name.clone().unwrap_or_default(),
        format!("{protocol}-{target_port}"),
        format!("{protocol}-{target_port}-{published_port}"),
    ];
    names.iter().filter_map(|name| PortName::new(name).ok()).collect()
}
