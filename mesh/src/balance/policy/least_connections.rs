//! Least connections: the endpoint with the fewest connections from here for its weight; among equals, each in turn.
//!
//! Up to 64 endpoints all are compared. Beyond that eight are, drawn by weight: the largest load of n endpoints is then
//! above the mean by ln ln n / ln 8 at most with high probability (Mitzenmacher, «The Power of Two Choices»), for a cost
//! that does not grow. An exact order of all would need a lock or a tree that every connection's end changes.

use super::round_robin::RoundRobin;
use super::{Ask, Choice, Member, Policy, Standing};

/// Up to so many endpoints are all compared.
const EXACT: usize = 64;
/// So many are where there are more.
const SAMPLE: usize = 8;

#[derive(Debug)]
pub(super) struct LeastConnections {
    /// Where equals take turns, and where the sample comes from.
    turns: RoundRobin,
}

impl LeastConnections {
    pub(super) fn new(members: &[Member], turn: u64) -> Self {
        Self { turns: RoundRobin::new(members, turn) }
    }

    fn least(&self, members: &[Member], ask: &Ask<'_>) -> Option<usize> {
        let start = self.turns.next();
        if members.len() <= EXACT {
            return best((start..members.len()).chain(0..start.min(members.len())), members, ask);
        }
        best((0..SAMPLE).map(|at| if at == 0 { start } else { self.turns.next() }), members, ask)
    }
}

/// The first of those with the least load.
fn best(candidates: impl Iterator<Item = usize>, members: &[Member], ask: &Ask<'_>) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for at in candidates {
        let Some(Member { endpoint, weight }) = members.get(at) else { continue };
        if ask.standing(endpoint) != Standing::Free {
            continue;
        }
        let load = f64::from(endpoint.in_flight()) / f64::from(*weight);
        if best.is_none_or(|(least, _)| load < least) {
            best = Some((load, at));
        }
    }
    best.map(|(_, at)| at)
}

impl Policy for LeastConnections {
    fn choose(&self, members: &[Member], ask: &Ask<'_>) -> Choice {
        if let Some(at) = self.least(members, ask)
            && ask.is_warm(&members[at].endpoint)
            && ask.take(&members[at].endpoint)
        {
            return Choice::Taken(at);
        }
        self.turns.choose(members, ask)
    }

    fn turn(&self) -> u64 {
        self.turns.turn()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::World;
    use super::*;

    #[test]
    fn equals_take_turns_by_weight() {
        let world = World::new(&[1, 3]);
        let policy = LeastConnections::new(&world.members, 0);
        assert_eq!(world.count(&policy, (0..400).map(|_| 0)), [100, 300]);
    }

    proptest! {
        #[test]
        fn none_has_a_connection_too_many_for_its_weight(weights in proptest::collection::vec(1..10u32, 1..30), connections in 1..300usize) {
            let world = World::new(&weights);
            let policy = LeastConnections::new(&world.members, 0);
            let _held: Vec<_> = (0..connections).map(|_| world.hold(&policy, 0).unwrap()).collect();
            let loads: Vec<f64> = world.members.iter().map(|m| f64::from(m.endpoint.in_flight()) / f64::from(m.weight)).collect();
            for (member, load) in world.members.iter().zip(&loads) {
                // Without its last connection it was no worse than any other is now.
                let before = f64::from(member.endpoint.in_flight().saturating_sub(1)) / f64::from(member.weight);
                prop_assert!(loads.iter().all(|other| before <= *other + 1e-9), "{load} of {loads:?}");
            }
        }

        #[test]
        fn a_busy_endpoint_gets_nothing_while_others_are_idle(count in 2..60usize, busy in 0..60usize) {
            let world = World::new(&vec![100; count]);
            let policy = LeastConnections::new(&world.members, 0);
            let busy = busy % count;
            prop_assert!(world.members[busy].endpoint.take_place(0));
            prop_assert_eq!(world.count(&policy, (0..200).map(|_| 0))[busy], 0);
        }
    }

    #[test]
    fn of_many_none_is_far_above_the_mean() {
        let world = World::new(&vec![100; 1000]);
        let policy = LeastConnections::new(&world.members, 0);
        let _held: Vec<_> = (0..10_000).map(|_| world.hold(&policy, 0).unwrap()).collect();
        let most = world.members.iter().map(|member| member.endpoint.in_flight()).max().unwrap();
        assert!(most <= 12, "{most} where the mean is 10");
    }
}
