//! Deterministic subsets: one node uses some endpoints of a large service, and the nodes of the fleet together use all
//! of them equally.
//!
//! The endpoints stand in a circle, in the same scattered order on every node, and are dealt out in the order of the
//! nodes' names, each node's hand after the one before it. Every endpoint is thus used by as many nodes as any other, or
//! by one more. («Site Reliability Engineering», chapter 20, shuffles anew for each round of nodes, and has nobody use
//! what a round leaves over; here all are used.)

use super::hash;

/// Which of the endpoints (by the hashes of their ids) the node uses that is the `rank`th by name: `size` of them.
pub(super) fn subset(endpoints: &[u64], rank: usize, size: usize) -> Vec<bool> {
    let count = endpoints.len();
    if size >= count {
        return vec![true; count];
    }
    let mut circle: Vec<usize> = (0..count).collect();
    // Hashed once more: ids that a hash policy has side by side are not to be in one hand.
    circle.sort_by_key(|at| (hash::mix(endpoints[*at] ^ 0x0073_7562_7365_7400), *at));
    let mut used = vec![false; count];
    for place in 0..size {
        used[circle[(rank * size + place) % count]] = true;
    }
    used
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints(count: usize) -> Vec<u64> {
        (0..count as u64).map(|at| hash::bytes(&at.to_be_bytes(), 7)).collect()
    }

    fn uses(endpoints: &[u64], nodes: usize, size: usize) -> Vec<usize> {
        let mut uses = vec![0; endpoints.len()];
        for rank in 0..nodes {
            let used = subset(endpoints, rank, size);
            assert_eq!(used.iter().filter(|used| **used).count(), size.min(endpoints.len()));
            uses.iter_mut().zip(used).for_each(|(uses, used)| *uses += usize::from(used));
        }
        uses
    }

    #[test]
    fn a_round_of_nodes_covers_every_endpoint_once() {
        assert_eq!(uses(&endpoints(100), 10, 10), [1; 100]);
        assert_eq!(uses(&endpoints(100), 30, 10), [3; 100]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nodes_cover_endpoints_evenly(count in 1..120usize, nodes in 1..60usize, size in 1..40usize) {
            let uses = uses(&endpoints(count), nodes, size);
            let (least, most) = (uses.iter().min().unwrap(), uses.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{uses:?}");
        }

        #[test]
        fn one_endpoint_more_changes_little_of_a_subset(count in 20..200usize, rank in 0..5usize) {
            let all = endpoints(count);
            let (before, after) = (subset(&all[..count - 1], rank, 4), subset(&all, rank, 4));
            let kept = before.iter().zip(&after).filter(|(before, after)| **before && **after).count();
            // One place further for each time that the circle was gone round.
            prop_assert!(kept + 1 + (rank * 4 + 4) / (count - 1) >= 4, "{kept} of 4 kept");
        }
    }
}
