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
                    self.carry_out_one(planned, timeline);
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

    fn carry_out_one(&self, Planned { hold, fault, .. }: Planned, timeline: &Timeline) {
        let hold = || pause(hold);
        match fault {
            Fault::KillEndpoint(endpoint) => timeline.note(
                fault,
                || self.endpoint(endpoint).kill(),
                || {
                    hold();
                    let again = self.node_of(endpoint).backend("web", port_of(endpoint));
                    *self.endpoint(endpoint) = again;
                },
            ),
            Fault::FreezeEndpoint(endpoint) => timeline.note(
                fault,
                || self.endpoint(endpoint).freeze(),
                || {
                    hold();
                    self.endpoint(endpoint).thaw();
                },
            ),
            Fault::DrainEndpoint(endpoint) => {
                let node = self.node_of(endpoint);
                timeline.note(
                    fault,
                    || insist(|| node.plexus(["drain", &id_of(endpoint)])),
                    || {
                        hold();
                        insist(|| node.plexus(["undrain", &id_of(endpoint)]));
                    },
                );
            }
            Fault::DeregisterEndpoint(endpoint) => {
                let node = self.node_of(endpoint);
                timeline.note(
                    fault,
                    || insist(|| node.plexus(["deregister", &id_of(endpoint)])),
                    || {
                        hold();
                        insist(|| register(node, endpoint));
                    },
                );
            }
            Fault::KillAgent(node) => {
                let node = self.nodes[node];
                timeline.note(
                    fault,
                    || node.kill_agent(),
                    || {
                        hold();
                        node.start_agent();
                        node.wait_ready(SOON);
                    },
                );
            }
            Fault::TerminateAgent(node) => {
                let node = self.nodes[node];
                timeline.note(
                    fault,
                    || node.terminate_agent(),
                    || {
                        // What its store may take to answer is on top.
                        let _ = node.wait_agent_end(NOTICE + DRAIN + SOON);
                        hold();
                        node.start_agent();
                        node.wait_ready(SOON);
                    },
                );
            }
            Fault::TakeOver(node) => {
                let node = self.nodes[node];
                timeline.note(fault, || lock(&self.replaced).push(node.take_over()), || {});
            }
            Fault::CutCable(node) => {
                let node = self.nodes[node];
                timeline.note(
                    fault,
                    || self.cluster.cut(node),
                    || {
                        hold();
                        self.cluster.heal(node);
                    },
                );
            }
            Fault::LinkDown(node) => {
                let node = self.nodes[node];
                timeline.note(
                    fault,
                    || self.cluster.link_down(node),
                    || {
                        hold();
                        self.cluster.link_up(node);
                    },
                );
            }
            Fault::FreezeStore => {
                let member = &self.cluster.etcd().members()[0];
                timeline.note(
                    fault,
                    || member.freeze(),
                    || {
                        hold();
                        member.thaw();
                        self.cluster.etcd().wait_ready();
                    },
                );
            }
            Fault::KillStore => {
                let member = &self.cluster.etcd().members()[0];
                timeline.note(
                    fault,
                    || member.kill(),
                    || {
                        hold();
                        self.cluster.etcd().start_again();
                    },
                );
            }
        }
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
