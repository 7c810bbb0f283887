//! Maglev hashing: a table in which every endpoint has its share of the slots, filled so that a change of one endpoint
//! moves little more than its own.
//!
//! After «Maglev: A Fast and Reliable Software Network Load Balancer» (Eisenbud and others, NSDI 2016), section 3.4; weights
//! as Envoy has them: in each round an endpoint takes its turn when its weight has added up to that of the heaviest. The
//! table depends on the ids and weights of the endpoints alone: agents that know the same endpoints send a client to the
//! same one.

use super::{Ask, Choice, Member, Policy, propose};
use crate::balance::hash;

/// Slots of the usual table, a prime as all sizes must be, so that every offset and step is a permutation: the paper's
/// small table, Envoy's default.
const SLOTS: usize = 65_537;
/// Slots where there are more than a thousandth as many endpoints: shares are equal up to `endpoints / slots`.
const MANY_SLOTS: usize = 1_048_573;
/// So many endpoints are served by the usual table: shares are equal to 1.5 % then.
const USUAL: usize = 1000;

#[derive(Debug)]
pub(super) struct Maglev(Table);

/// The member of each slot; in half the memory where their numbers allow.
#[derive(Debug)]
enum Table {
    Narrow(Box<[u16]>),
    Wide(Box<[u32]>),
}

impl Maglev {
    pub(super) fn new(members: &[Member]) -> Self {
        let slots = if members.len() <= USUAL { SLOTS } else { MANY_SLOTS };
        let shares: Vec<(u64, u32)> = members.iter().map(|m| (m.endpoint.hash(), m.weight)).collect();
        let table = populate(&shares, slots);
        let narrow: Result<Box<[u16]>, _> = table.iter().map(|at| u16::try_from(*at)).collect();
        Self(narrow.map_or_else(|_| Table::Wide(table.into()), Table::Narrow))
    }

    fn at(&self, hash: u64) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of slots")]
        let slot = |slots: usize| (hash % slots as u64) as usize;
        match &self.0 {
            Table::Narrow(table) => table.get(slot(table.len().max(1))).map_or(0, |at| usize::from(*at)),
            Table::Wide(table) => table.get(slot(table.len().max(1))).map_or(0, |at| *at as usize),
        }
    }
}

/// The table for endpoints with these hashes and weights; empty for none.
fn populate(shares: &[(u64, u32)], slots: usize) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let Some(heaviest) = shares.iter().map(|(_, weight)| u64::from(*weight)).max() else { return Vec::new() };
    let size = slots as u64;
    // The next slot that each would have, its step, and how much weight it has used up.
    let mut turns: Vec<(u64, u64, u64)> = shares
        .iter()
        .map(|(hash, _)| (hash::mix(*hash) % size, hash::mix(hash.rotate_left(32) ^ 1) % (size - 1) + 1, 0))
        .collect();
    let mut table = vec![FREE; slots];
    let mut filled = 0;
    for round in 1u64.. {
        for (at, (next, step, used)) in (0u32..).zip(&mut turns) {
            let weight = u64::from(shares[at as usize].1);
            if round * weight < *used + heaviest {
                continue;
            }
            *used += heaviest;
            #[expect(clippy::cast_possible_truncation, reason = "less than the number of slots")]
            while table[*next as usize] != FREE {
                *next = (*next + *step) % size;
            }
            #[expect(clippy::cast_possible_truncation, reason = "less than the number of slots")]
            let slot = *next as usize;
            table[slot] = at;
            filled += 1;
            if filled == slots {
                return table;
            }
        }
    }
    table
}

impl Policy for Maglev {
    fn choose(&self, members: &[Member], ask: &Ask<'_>) -> Choice {
        // A client whose endpoint cannot be had goes where its hash hashed again leads: the same place each time, and
        // others' clients to other places.
        propose(
            members,
            ask,
            |endpoint| ask.is_warm_for_client(endpoint),
            |attempt| {
                self.at(if attempt == 0 {
                    ask.client
                } else {
                    hash::mix(ask.client.wrapping_add(attempt as u64))
                })
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::World;
    use super::*;

    fn shares(count: usize) -> Vec<(u64, u32)> {
        (0..count).map(|at| (hash::bytes(format!("web-{at}").as_bytes(), 0), 100)).collect()
    }

    fn counts(table: &[u32], members: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        table.iter().for_each(|at| counts[*at as usize] += 1);
        counts
    }

    /// Slots that changed hands though neither their old nor their new holder did.
    fn disturbed(before: &[u32], after: &[u32], removed: u32) -> usize {
        let renamed = |at: u32| if at > removed { at - 1 } else { at };
        let changed = |(before, after): &(&u32, &u32)| **before != removed && renamed(**before) != **after;
        before.iter().zip(after).filter(changed).count()
    }

    #[test]
    fn the_balance_is_the_published_one() {
        // Section 5.3 of the paper: with a table of 65 537 and up to 1000 endpoints the largest is about 1 % above the
        // mean; that is `endpoints / slots`, since each gets one slot a round.
        for (count, slots, above) in [
            (10, SLOTS, 0.001),
            (100, SLOTS, 0.0016),
            (600, SLOTS, 0.01),
            (1000, SLOTS, 0.016),
            (10_000, MANY_SLOTS, 0.01),
        ] {
            let table = populate(&shares(count), slots);
            let most = counts(&table, count).into_iter().max().unwrap() as f64;
            let mean = slots as f64 / count as f64;
            assert!(most / mean - 1.0 <= above, "{count} in {slots}: {most} where the mean is {mean}");
        }
    }

    #[test]
    fn the_disruption_is_the_published_one() {
        // Figure 12 of the paper: with 1000 endpoints and one of them gone, about 2 % of a table of 65 537 change that
        // need not, and fewer in a larger one.
        let all = shares(1000);
        let mut worst = 0;
        for removed in [0, 250, 500, 999] {
            let mut left = all.clone();
            left.remove(removed);
            let (before, after) = (populate(&all, SLOTS), populate(&left, SLOTS));
            worst = worst.max(disturbed(&before, &after, u32::try_from(removed).unwrap()));
        }
        assert!((worst as f64) < 0.025 * SLOTS as f64, "{worst} of {SLOTS}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn weights_are_met(weights in proptest::collection::vec(1..100u32, 1..40)) {
            let shares: Vec<_> = shares(weights.len()).into_iter().zip(&weights).map(|((hash, _), weight)| (hash, *weight)).collect();
            let counts = counts(&populate(&shares, SLOTS), shares.len());
            let (sum, heaviest) = (f64::from(weights.iter().sum::<u32>()), f64::from(*weights.iter().max().unwrap()));
            // Of each, less than one turn is left over, which makes up to so many rounds more or less for all.
            let rounds = weights.len() as f64 * heaviest / sum;
            for (count, weight) in counts.iter().zip(&weights) {
                let due = SLOTS as f64 * f64::from(*weight) / sum;
                prop_assert!((*count as f64 - due).abs() <= 1.0 + rounds, "{count} of {due}");
            }
        }

        #[test]
        fn a_change_of_one_disturbs_little_more_than_its_share(count in 2..200usize, removed in 0..200usize) {
            let (all, removed) = (shares(count), removed % count);
            let mut left = all.clone();
            left.remove(removed);
            let (before, after) = (populate(&all, SLOTS), populate(&left, SLOTS));
            let disturbed = disturbed(&before, &after, u32::try_from(removed).unwrap());
            prop_assert!((disturbed as f64) < 0.05 * SLOTS as f64, "{disturbed} for {count}");
        }

        #[test]
        fn the_order_of_the_endpoints_matters_only_where_they_meet(count in 2..100usize) {
            // Agents hold endpoints in the order of their ids, so the tables are equal and not only alike.
            prop_assert_eq!(populate(&shares(count), SLOTS), populate(&shares(count), SLOTS));
        }
    }

    #[test]
    fn a_client_whose_endpoint_is_out_goes_to_one_other_and_comes_back() {
        let world = World::new(&[100; 5]);
        let policy = Maglev::new(&world.members);
        let before: Vec<usize> = (0..200).map(|client| world.pick(&policy, hash::mix(client))).collect();
        world.eject(2);
        let during: Vec<usize> = (0..200).map(|client| world.pick(&policy, hash::mix(client))).collect();
        let again: Vec<usize> = (0..200).map(|client| world.pick(&policy, hash::mix(client))).collect();
        assert_eq!(during, again);
        for (before, during) in before.iter().zip(&during) {
            assert!(*before == 2 && *during != 2 || before == during);
        }
    }
}
