//! Carrying faults out on a cluster, each at its time, as many at a time as the plan says.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::blame::{DRAIN, NOTICE};
use super::plan::{ENDPOINTS, Fault, Planned, id_of, is_registered, node_of, port_of};
use super::timeline::Timeline;
use crate::cluster::Cluster;
use crate::node::{Node, ServiceFile};
use crate::process::{Process, Ran};
use crate::server::backend::Backend;
use crate::server::etcd::Member;
use crate::wait::{pause, wait_until};

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(30);

/// Endpoints that can be killed and started again, and what takes part in faults now.
pub(super) struct Faults<'a> {
    cluster: &'a Cluster,
    nodes: [&'a Node; 3],
    endpoints: [Mutex<Backend>; ENDPOINTS],
    busy: Mutex<BTreeSet<String>>,
    /// Agents that another one took over from: each is to end.
    replaced: Mutex<Vec<Process>>,
}

impl<'a> Faults<'a> {
    /// Starts the endpoints: the first of a node is defined in a file, the second registered.
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let nodes = cluster.nodes();
        let endpoints = std::array::from_fn(|endpoint| {
            let node: &Node = nodes[node_of(endpoint)];
            let backend = node.backend("web", port_of(endpoint));
            if is_registered(endpoint) {
                insist(|| register(node, endpoint));
            } else {
                node.define(&ServiceFile::new("web", port_of(endpoint)));
            }
            Mutex::new(backend)
        });
        Self { cluster, nodes, endpoints, busy: Mutex::default(), replaced: Mutex::default() }
    }

    /// Carries out what is planned, from `began` on; returns when all of it is over.
    pub(super) fn carry_out(&self, plan: &[Planned], timeline: &Timeline, began: Duration) {
        thread::scope(|scope| {
            for planned in plan {
                pause((began + planned.at).saturating_sub(timeline.now()));
                let parts: Vec<String> =
                    planned.fault.parts().iter().map(|part| format!("{part:?}")).collect();
                // What came before may take longer than planned.
                let free = wait_until(4 * SOON, || self.take(&parts), |taken| *taken);
                assert!(free.is_ok(), "what was before {} does not end", planned.fault);
                let planned = *planned;
                scope.spawn(move || {
                    let Planned { hold, fault, .. } = planned;
                    let mend = || {
                        // What is done at once and for good needs no time.
                        pause(if matches!(fault, Fault::TakeOver(_)) { Duration::ZERO } else { hold });
                        self.mend(fault);
                    };
                    timeline.note(fault, || self.act(fault), mend);
                    self.busy().retain(|part| !parts.contains(part));
                });
            }
        });
    }

    /// Waits until every agent that was taken over from has ended; the ids of those that have not.
    pub(super) fn wait_replaced(&self, within: Duration) -> Vec<u32> {
        let mut replaced = lock(&self.replaced);
        let running = || {
            replaced.retain_mut(|process| process.status().is_none());
            replaced.iter().map(Process::id).collect::<Vec<_>>()
        };
        wait_until(within, running, Vec::is_empty).unwrap_or_else(|running| running)
    }

    fn take(&self, parts: &[String]) -> bool {
        let mut busy = self.busy();
        let free = parts.iter().all(|part| !busy.contains(part));
        if free {
            busy.extend(parts.iter().cloned());
        }
        free
    }

    /// Brings a fault about.
    fn act(&self, fault: Fault) {
        match fault {
            Fault::KillEndpoint(endpoint) => self.endpoint(endpoint).kill(),
            Fault::FreezeEndpoint(endpoint) => self.endpoint(endpoint).freeze(),
            Fault::DrainEndpoint(endpoint) => {
                insist(|| self.node_of(endpoint).plexus(["drain", &id_of(endpoint)]));
            }
            Fault::DeregisterEndpoint(endpoint) => {
                insist(|| self.node_of(endpoint).plexus(["deregister", &id_of(endpoint)]));
            }
            Fault::KillAgent(node) => self.nodes[node].kill_agent(),
            Fault::TerminateAgent(node) => self.nodes[node].terminate_agent(),
            Fault::TakeOver(node) => lock(&self.replaced).push(self.nodes[node].take_over()),
            Fault::CutCable(node) => self.cluster.cut(self.nodes[node]),
            Fault::LinkDown(node) => self.cluster.link_down(self.nodes[node]),
            Fault::FreezeStore => self.store().freeze(),
            Fault::KillStore => self.store().kill(),
        }
    }

    /// Makes all as it was before.
    fn mend(&self, fault: Fault) {
        match fault {
            Fault::KillEndpoint(endpoint) => {
                let again = self.node_of(endpoint).backend("web", port_of(endpoint));
                *self.endpoint(endpoint) = again;
            }
            Fault::FreezeEndpoint(endpoint) => self.endpoint(endpoint).thaw(),
            Fault::DrainEndpoint(endpoint) => {
                insist(|| self.node_of(endpoint).plexus(["undrain", &id_of(endpoint)]));
            }
            Fault::DeregisterEndpoint(endpoint) => insist(|| register(self.node_of(endpoint), endpoint)),
            Fault::KillAgent(node) | Fault::TerminateAgent(node) => {
                // What one that leaves must wait for at its store is on top.
                let _ = self.nodes[node].wait_agent_end(NOTICE + DRAIN + SOON);
                self.nodes[node].start_agent();
                self.nodes[node].wait_ready(SOON);
            }
            Fault::TakeOver(_) => {}
            Fault::CutCable(node) => self.cluster.heal(self.nodes[node]),
            Fault::LinkDown(node) => self.cluster.link_up(self.nodes[node]),
            Fault::FreezeStore => {
                self.store().thaw();
                self.cluster.etcd().wait_ready();
            }
            Fault::KillStore => self.cluster.etcd().start_again(),
        }
    }

    fn store(&self) -> &Member {
        &self.cluster.etcd().members()[0]
    }

    fn node_of(&self, endpoint: usize) -> &Node {
        self.nodes[node_of(endpoint)]
    }

    fn endpoint(&self, endpoint: usize) -> MutexGuard<'_, Backend> {
        lock(&self.endpoints[endpoint])
    }

    fn busy(&self) -> MutexGuard<'_, BTreeSet<String>> {
        lock(&self.busy)
    }
}

fn register(node: &Node, endpoint: usize) -> Ran {
    node.plexus([
        "register",
        "web",
        "--port",
        &port_of(endpoint).to_string(),
        "--check",
        "http=/healthz",
        "--interval",
        "200ms",
        "--timeout",
        "200ms",
        "--rise",
        "1",
        "--fall",
        "3",
    ])
}

/// Until it succeeds: the store may be elsewhere with its thoughts for a moment.
fn insist(command: impl FnMut() -> Ran) {
    if let Err(ran) = wait_until(SOON, command, Ran::success) {
        panic!("{ran}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
