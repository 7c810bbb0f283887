//! The world of a policy: some endpoints, and connections that ask for one.

use std::sync::Arc;

use nerve::model::{InstanceId, NodeName, Policy as Name};

use super::*;
use crate::balance::endpoint::{ConnectFailure, Lease};
use crate::balance::metrics::Metrics;
use crate::balance::shared::Shared;

pub(super) struct World {
    pub(super) members: Vec<Member>,
    pub(super) now: u64,
    limit: u32,
    settings: settings::Settings,
    census: Census,
}

impl World {
    pub(super) fn new(weights: &[u32]) -> Self {
        let shared = Arc::new(Shared::new(Metrics::new().unwrap().of_service("web")));
        let count = u32::try_from(weights.len()).unwrap();
        let mut settings = settings::Settings::default();
        settings.outlier.max_ejected_percent = 100;
        shared.settings.store(Arc::new(settings));
        shared.census.endpoints.store(count, std::sync::atomic::Ordering::Relaxed);
        let member = |(at, weight): (usize, &u32)| {
            let id = InstanceId::new(&format!("web-{at}")).unwrap();
            let address =
                std::net::SocketAddr::from(([192, 0, 2, 1], u16::try_from(at % 60_000).unwrap() + 1));
            let addresses = (address.into(), Some(address));
            let endpoint =
                Endpoint::new(id, (NodeName::new("a").unwrap(), true), addresses, Arc::clone(&shared));
            Member { endpoint: Arc::new(endpoint), weight: *weight }
        };
        Self {
            members: weights.iter().enumerate().map(member).collect(),
            now: Shared::now(),
            limit: 0,
            settings: settings::Settings::default(),
            census: Census::default(),
        }
    }

    pub(super) fn limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }

    /// Ejects a member, for longer than the test takes in its own time.
    pub(super) fn eject(&self, at: usize) {
        self.members[at].endpoint.note_connect_failure(ConnectFailure::Refused);
        assert!(self.members[at].endpoint.ejected().is_some());
    }

    pub(super) fn choose(&self, policy: &dyn Policy, client: u64, tried: &Tried) -> Choice {
        policy.choose(
            &self.members,
            &Ask {
                datagrams: false,
                client,
                tried,
                now: self.now,
                limit: self.limit,
                slow_start: 0,
                ejected_too: false,
                outlier: &self.settings.outlier,
                census: &self.census,
            },
        )
    }

    /// A connection that stays open.
    pub(super) fn hold(&self, policy: &dyn Policy, client: u64) -> Result<(usize, Lease), Choice> {
        match self.choose(policy, client, &Tried::none()) {
            Choice::Taken(at) => Ok((at, Lease::of(Arc::clone(&self.members[at].endpoint)))),
            none => Err(none),
        }
    }

    /// A connection that ends at once.
    pub(super) fn pick(&self, policy: &dyn Policy, client: u64) -> usize {
        self.hold(policy, client).unwrap().0
    }

    /// How many of the clients' connections each member gets.
    pub(super) fn count(&self, policy: &dyn Policy, clients: impl Iterator<Item = u64>) -> Vec<u32> {
        let mut hits = vec![0; self.members.len()];
        clients.for_each(|client| hits[self.pick(policy, client)] += 1);
        hits
    }
}

/// What `threads` threads get that pick `each` times at the same time.
pub(super) fn all_at_once(threads: usize, each: usize, pick: impl Fn() -> usize + Sync) -> Vec<u32> {
    let mut hits = Vec::new();
    std::thread::scope(|scope| {
        let picks = |_| scope.spawn(|| (0..each).map(|_| pick()).collect::<Vec<_>>());
        let running: Vec<_> = (0..threads).map(picks).collect();
        for at in running.into_iter().flat_map(|thread| thread.join().unwrap()) {
            hits.resize(hits.len().max(at + 1), 0);
            hits[at] += 1;
        }
    });
    hits
}

/// What every policy must do, whatever its taste.
mod battery {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::{Choice, ConnectFailure, Lease, Name, Tried, World, build};

    fn all() -> impl Strategy<Value = Name> {
        proptest::sample::select(Name::ALL)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn an_endpoint_is_found_as_long_as_one_can_be_had(name in all(), weights in proptest::collection::vec(1..200u32, 1..20), client: u64, out in proptest::collection::vec(any::<bool>(), 20)) {
            let world = World::new(&weights);
            let policy = build(name, &world.members, 0);
            let mut tried = Tried::none();
            (0..weights.len()).filter(|at| out[*at]).for_each(|at| world.eject(at));
            let mut left: Vec<usize> = (0..weights.len()).filter(|at| !out[*at]).collect();
            while let Choice::Taken(at) = world.choose(&*policy, client, &tried) {
                prop_assert!(left.contains(&at), "{name}: {at} is out or was tried");
                left.retain(|one| *one != at);
                tried.failed(&Lease::of(Arc::clone(&world.members[at].endpoint)), ConnectFailure::Local);
            }
            prop_assert_eq!(left, Vec::<usize>::new(), "{}", name);
            prop_assert_eq!(world.choose(&*policy, client, &tried), Choice::Nobody);
        }

        #[test]
        fn no_endpoint_gets_more_than_its_limit_and_all_get_as_much(name in all(), count in 1..10usize, limit in 1..4u32, clients in proptest::collection::vec(any::<u64>(), 1..60)) {
            let world = World::new(&vec![100; count]).limit(limit);
            let policy = build(name, &world.members, 0);
            let places = count * limit as usize;
            let mut held = Vec::new();
            for client in clients {
                match world.hold(&*policy, client) {
                    Ok(one) => held.push(one),
                    Err(none) => prop_assert_eq!((none, held.len()), (Choice::Full, places)),
                }
                prop_assert!(world.members.iter().all(|member| member.endpoint.in_flight() <= limit));
            }
            prop_assert!(held.len() <= places);
        }

        #[test]
        fn without_endpoints_there_is_nobody(name in all(), client: u64) {
            let world = World::new(&[]);
            prop_assert_eq!(world.choose(&*build(name, &[], 0), client, &Tried::none()), Choice::Nobody);
        }

        #[test]
        fn a_hash_policy_of_two_agents_sends_a_client_to_the_same_endpoint(weights in proptest::collection::vec(1..200u32, 1..20), client: u64) {
            let (one, other) = (World::new(&weights), World::new(&weights));
            for name in [Name::Maglev, Name::Ring] {
                let picks = [&one, &other].map(|world| world.pick(&*build(name, &world.members, 0), client));
                prop_assert_eq!(picks[0], picks[1]);
            }
        }
    }
}
