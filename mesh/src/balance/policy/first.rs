//! First: the heaviest endpoint until it is full, then the next one, as HAProxy's `first` has it. With
//! `limits.endpoint_connections` it keeps the rest idle, so that they can be switched off.
//!
//! Costs a look at each endpoint that is full: as many as the traffic needs.

use std::cmp::Reverse;

use super::{Ask, Choice, Member, Policy, Standing};

/// The members by weight, and as they are among equals.
#[derive(Debug)]
pub(super) struct First(Box<[usize]>);

impl First {
    pub(super) fn new(members: &[Member]) -> Self {
        let mut order: Box<[usize]> = (0..members.len()).collect();
        order.sort_by_key(|at| Reverse(members[*at].weight));
        Self(order)
    }
}

impl Policy for First {
    fn choose(&self, members: &[Member], ask: &Ask<'_>) -> Choice {
        let mut none = Choice::Nobody;
        for at in self.0.iter().copied().filter(|at| *at < members.len()) {
            let endpoint = &members[at].endpoint;
            match ask.standing(endpoint) {
                Standing::Free if ask.take(endpoint) => return Choice::Taken(at),
                Standing::Free | Standing::Out => {}
                Standing::Full => none = Choice::Full,
            }
        }
        none
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::World;
    use super::*;

    #[test]
    fn the_heaviest_is_filled_first() {
        let world = World::new(&[1, 9, 5]).limit(2);
        let policy = First::new(&world.members);
        let held: Vec<_> = (0..6).map(|_| world.hold(&policy, 0).unwrap()).collect();
        assert_eq!(held.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 1, 2, 2, 0, 0]);
        assert_eq!(world.hold(&policy, 0).unwrap_err(), Choice::Full);
        drop(held);
        assert_eq!(world.pick(&policy, 0), 1);
    }
}
