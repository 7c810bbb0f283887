//! Power of two choices by peak EWMA: of two endpoints drawn by weight, the one where a connection is likely to be served
//! sooner. As in Finagle and Linkerd.
//!
//! The cost of an endpoint is `latency × (1 + connections × mean weight / weight)`: idle, endpoints get their weight's
//! share of the draws and the faster of two; under load, connections are spread by weight as well.

use super::random::Random;
use super::{Ask, Choice, Member, Policy, Standing};

#[derive(Debug)]
pub(super) struct P2c {
    draw: Random,
    mean_weight: f32,
}

impl P2c {
    pub(super) fn new(members: &[Member]) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a mean to 24 bits")]
        let mean = members.iter().map(|m| m.weight as f32).sum::<f32>() / members.len().max(1) as f32;
        Self { draw: Random::new(members), mean_weight: mean }
    }

    #[expect(clippy::cast_precision_loss, reason = "a cost to 24 bits")]
    fn cost(&self, member: &Member, now: u64) -> f32 {
        let connections = member.endpoint.in_flight() as f32;
        let load = 1.0 + connections * self.mean_weight / member.weight as f32;
        member.endpoint.latency.estimate(now) * load
    }

    /// Two different members, or one where there is one; the first as often as its weight says.
    fn draw(&self, count: usize) -> (usize, usize) {
        let first = self.draw.next();
        let second = (0..4).map(|_| self.draw.next()).find(|second| *second != first);
        (first, second.unwrap_or((first + 1) % count.max(1)))
    }
}

impl Policy for P2c {
    fn choose(&self, members: &[Member], ask: &Ask<'_>) -> Choice {
        let (first, second) = self.draw(members.len());
        if let (Some(one), Some(other)) = (members.get(first), members.get(second)) {
            let free = |member: &Member| ask.standing(&member.endpoint) == Standing::Free;
            let at = match (free(one), free(other)) {
                (true, true) if self.cost(other, ask.now) < self.cost(one, ask.now) => second,
                (true, _) => first,
                (false, _) => second,
            };
            if ask.is_warm(&members[at].endpoint) && ask.take(&members[at].endpoint) {
                return Choice::Taken(at);
            }
        }
        self.draw.choose(members, ask)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::World;
    use super::*;

    #[test]
    fn a_slow_endpoint_gets_little() {
        let world = World::new(&[100; 10]);
        let policy = P2c::new(&world.members);
        for (at, member) in world.members.iter().enumerate() {
            let latency = if at == 3 { 500 } else { 5 };
            member.endpoint.latency.answered(Duration::from_millis(latency), world.now);
        }
        let hits = world.count(&policy, (0..5000).map(|_| 0));
        // It loses every comparison.
        assert_eq!(hits[3], 0, "{hits:?}");
        assert!(hits.iter().enumerate().all(|(at, hits)| at == 3 || *hits > 350), "{hits:?}");
    }

    #[test]
    fn connections_are_spread_by_weight() {
        let world = World::new(&[100, 300]);
        let policy = P2c::new(&world.members);
        let _held: Vec<_> = (0..400).map(|_| world.hold(&policy, 0).unwrap()).collect();
        let [light, heavy] = [0, 1].map(|at: usize| world.members[at].endpoint.in_flight());
        assert!(light.abs_diff(100) <= 2 && heavy.abs_diff(300) <= 2, "{light} {heavy}");
    }

    #[test]
    fn draws_are_by_weight_where_nothing_else_tells_endpoints_apart() {
        let world = World::new(&[1, 3]);
        let policy = P2c::new(&world.members);
        let hits = world.count(&policy, (0..10_000).map(|_| 0));
        assert!(hits[0].abs_diff(2500) < 300, "{hits:?}");
    }
}
