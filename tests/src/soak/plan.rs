//! What is to go wrong, and when: drawn from a seed before anything starts, so that a run can be had again.
//!
//! Faults overlap, but not where nobody could say any more which of them an error comes from ([`Part`]), and never on
//! all nodes: somewhere there is an agent with its link and an endpoint that nothing happens to.

use std::fmt;
use std::time::Duration;

use super::random::Random;

/// How many nodes there are.
pub const NODES: usize = 3;
/// Endpoints on each of them.
pub const EACH: usize = 2;
/// How many endpoints there are.
pub const ENDPOINTS: usize = NODES * EACH;
/// The node whose agent lives from beginning to end: a leak takes time to be seen.
pub const STEADY: usize = 2;
/// Nothing breaks off or hangs for longer: retransmissions are back within twice that, and clients wait longer.
pub const LONGEST: Duration = Duration::from_secs(4);

/// One thing that goes wrong. Endpoints and nodes by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to an endpoint; later it is started again.
    KillEndpoint(usize),
    /// SIGSTOP to an endpoint: its kernel accepts, nothing answers; later it goes on.
    FreezeEndpoint(usize),
    /// An endpoint is drained; later no more.
    DrainEndpoint(usize),
    /// An endpoint is deregistered, though it is well; later it is registered again.
    DeregisterEndpoint(usize),
    /// SIGKILL to an agent; later it is started again.
    KillAgent(usize),
    /// SIGTERM to an agent; when it has left, it is started again.
    TerminateAgent(usize),
    /// Another agent takes over.
    TakeOver(usize),
    /// A node's packets are lost, and nobody is told.
    CutCable(usize),
    /// A node's interface has no carrier.
    LinkDown(usize),
    /// SIGSTOP to the store; later it goes on.
    FreezeStore,
    /// SIGKILL to the store; later it is started again, with its data.
    KillStore,
}

/// What a fault has for itself while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// An endpoint.
    Endpoint(usize),
    /// A node's agent and its link.
    Node(usize),
    /// The store.
    Store,
}

/// A fault and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// From the beginning of the load.
    pub at: Duration,
    /// How long it lasts.
    pub hold: Duration,
    /// What happens.
    pub fault: Fault,
}

impl Fault {
    /// Nothing else happens to these meanwhile. What goes through an agent to the store, or must be seen by a check, needs both
    /// of them well.
    #[must_use]
    pub fn parts(self) -> Vec<Part> {
        match self {
            Self::KillEndpoint(endpoint) => vec![Part::Endpoint(endpoint)],
            Self::FreezeEndpoint(endpoint)
            | Self::DrainEndpoint(endpoint)
            | Self::DeregisterEndpoint(endpoint) => {
                vec![Part::Endpoint(endpoint), Part::Node(node_of(endpoint)), Part::Store]
            }
            Self::KillAgent(node)
            | Self::TerminateAgent(node)
            | Self::TakeOver(node)
            | Self::CutCable(node)
            | Self::LinkDown(node) => vec![Part::Node(node)],
            Self::FreezeStore | Self::KillStore => vec![Part::Store],
        }
    }

    /// How long it takes, at most, until all is as before once it is over: only the plan depends on it.
    fn recovery(self) -> Duration {
        Duration::from_secs(match self {
            Self::KillEndpoint(_)
            | Self::FreezeEndpoint(_)
            | Self::DrainEndpoint(_)
            | Self::DeregisterEndpoint(_) => 2,
            Self::TakeOver(_) => 3,
            Self::FreezeStore | Self::KillStore => 4,
            Self::KillAgent(_) | Self::CutCable(_) | Self::LinkDown(_) => 6,
            Self::TerminateAgent(_) => 10,
        })
    }

    /// Is the node then no place to be sure of?
    fn spoils(self, node: usize) -> bool {
        matches!(
            self,
            Self::KillAgent(of) | Self::TerminateAgent(of) | Self::CutCable(of) | Self::LinkDown(of) if of == node
        )
    }

    /// Chances out of their sum.
    fn draw(random: &mut Random) -> Self {
        let endpoint = random.below(ENDPOINTS);
        let node = random.below(NODES);
        // Only these live less than the whole time.
        let mortal = random.below(STEADY);
        let registered = node * EACH + 1;
        match random.below(20) {
            0..4 => Self::KillEndpoint(endpoint),
            4..7 => Self::FreezeEndpoint(endpoint),
            7..9 => Self::DrainEndpoint(endpoint),
            9..11 => Self::DeregisterEndpoint(registered),
            11..13 => Self::KillAgent(mortal),
            13..14 => Self::TerminateAgent(mortal),
            14..16 => Self::TakeOver(mortal),
            16..17 => Self::CutCable(node),
            17..18 => Self::LinkDown(node),
            18..19 => Self::FreezeStore,
            _ => Self::KillStore,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillEndpoint(endpoint) => write!(f, "endpoint {} killed", id_of(*endpoint)),
            Self::FreezeEndpoint(endpoint) => write!(f, "endpoint {} stopped", id_of(*endpoint)),
            Self::DrainEndpoint(endpoint) => write!(f, "endpoint {} drained", id_of(*endpoint)),
            Self::DeregisterEndpoint(endpoint) => write!(f, "endpoint {} deregistered", id_of(*endpoint)),
            Self::KillAgent(node) => write!(f, "agent of {} killed", name_of(*node)),
            Self::TerminateAgent(node) => write!(f, "agent of {} terminated", name_of(*node)),
            Self::TakeOver(node) => write!(f, "agent of {} taken over from", name_of(*node)),
            Self::CutCable(node) => write!(f, "cable of {} pulled", name_of(*node)),
            Self::LinkDown(node) => write!(f, "link of {} down", name_of(*node)),
            Self::FreezeStore => f.write_str("store stopped"),
            Self::KillStore => f.write_str("store killed"),
        }
    }
}

/// The node that an endpoint runs on.
#[must_use]
pub fn node_of(endpoint: usize) -> usize {
    endpoint / EACH
}

/// The name of a node.
#[must_use]
pub fn name_of(node: usize) -> &'static str {
    ["a", "b", "c"][node]
}

/// Is it registered, and does not stand in a file? The second endpoint of each node.
#[must_use]
pub fn is_registered(endpoint: usize) -> bool {
    endpoint % EACH == 1
}

/// The port of an endpoint.
#[must_use]
pub fn port_of(endpoint: usize) -> u16 {
    [9000, 9001][endpoint % EACH]
}

/// The id of an endpoint.
#[must_use]
pub fn id_of(endpoint: usize) -> String {
    format!("web-{}-{}", name_of(node_of(endpoint)), port_of(endpoint))
}

/// Everything that goes wrong in that time.
#[must_use]
pub fn plan(seed: u64, length: Duration) -> Vec<Planned> {
    let mut random = Random::new(seed);
    let mut plan: Vec<Planned> = Vec::new();
    let mut at = Duration::from_secs(2);
    loop {
        let (fault, hold) = (Fault::draw(&mut random), random.between(Duration::from_millis(500), LONGEST));
        let next = Planned { at, hold, fault };
        if next.end() > length {
            return plan;
        }
        if fits(&plan, next) {
            plan.push(next);
            at += random.between(Duration::from_millis(500), Duration::from_secs(4));
        } else {
            // Drawn again a little later: there is always some fault that fits in the end.
            at += Duration::from_millis(100);
        }
    }
}

impl Planned {
    fn end(&self) -> Duration {
        self.at + self.hold + self.fault.recovery()
    }
}

fn fits(plan: &[Planned], next: Planned) -> bool {
    let on: Vec<Fault> = plan.iter().filter(|other| other.end() > next.at).map(|other| other.fault).collect();
    let taken = next.fault.parts().iter().any(|part| on.iter().any(|other| other.parts().contains(part)));
    let is_safe = |node: usize| {
        let all = || on.iter().chain([&next.fault]);
        let hit = |endpoint| all().any(|fault| fault.parts().contains(&Part::Endpoint(endpoint)));
        !all().any(|fault| fault.spoils(node)) && (0..EACH).any(|which| !hit(node * EACH + which))
    };
    !taken && (0..NODES).any(is_safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(600);

    #[test]
    fn the_same_seed_gives_the_same_faults_and_another_one_others() {
        assert_eq!(plan(7, LENGTH), plan(7, LENGTH));
        assert_ne!(plan(7, LENGTH), plan(8, LENGTH));
    }

    #[test]
    fn ten_minutes_have_every_kind_of_fault_and_all_are_over_at_the_end() {
        for seed in 0..20 {
            let plan = plan(seed, LENGTH);
            assert!(plan.len() > 100, "{}", plan.len());
            let kinds: std::collections::HashSet<_> =
                plan.iter().map(|planned| std::mem::discriminant(&planned.fault)).collect();
            assert_eq!(kinds.len(), 11, "seed {seed}");
            assert!(plan.iter().all(|planned| planned.end() <= LENGTH && planned.hold <= LONGEST));
        }
    }

    #[test]
    fn nothing_has_two_faults_at_a_time_and_some_agent_has_none() {
        for seed in 0..20 {
            let plan = plan(seed, LENGTH);
            for planned in &plan {
                let end = |planned: &Planned| planned.at + planned.hold;
                let on: Vec<_> =
                    plan.iter().filter(|on| on.at <= planned.at && end(on) > planned.at).collect();
                let parts: Vec<Part> = on.iter().flat_map(|on| on.fault.parts()).collect();
                assert!(parts.iter().enumerate().all(|(at, part)| !parts[..at].contains(part)), "{on:?}");
                assert!((0..NODES).any(|node| !on.iter().any(|on| on.fault.spoils(node))), "{on:?}");
                assert!((0..ENDPOINTS).any(|endpoint| !parts.contains(&Part::Endpoint(endpoint))), "{on:?}");
            }
        }
    }

    #[test]
    fn the_steady_agent_is_neither_killed_nor_replaced() {
        for planned in (0..20).flat_map(|seed| plan(seed, LENGTH)) {
            assert!(!matches!(
                planned.fault,
                Fault::KillAgent(STEADY) | Fault::TerminateAgent(STEADY) | Fault::TakeOver(STEADY)
            ));
        }
    }
}
