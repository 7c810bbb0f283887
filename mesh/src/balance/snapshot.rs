//! What is true of a balancer's endpoints at one moment: immutable, with every table ready, so that a pick only reads.
//!
//! Endpoints are in groups (of a traffic split; one without it), each with a set for each tier: the levels of nearness,
//! those outside of the node's subset, and those that only stand in. A connection is given a group and a level by share; the
//! others are where it goes when that one has nobody for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nerve::model::{Instance, Policy as Name};

use super::endpoint::{Endpoint, Excluded};
use super::hash;
use super::panic::Needed;
use super::policy::{self, Ask, Choice, Member, Policy};
use super::rng;
use super::settings::Settings;
use super::walk::Walk;

/// What is true of a pool at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) settings: Arc<Settings>,
    /// Every endpoint that the catalog has, in the order of their ids: what is known of one that is kept out for a while
    /// must be known still when it returns.
    pub(super) known: Arc<[Arc<Endpoint>]>,
    /// The same, with what the catalog says of each.
    pub(super) entries: Box<[Entry]>,
    pub(super) excluded: BTreeMap<Excluded, usize>,
    /// Endpoints that the catalog gives traffic to.
    pub(super) serving: u32,
    /// These, and those that it would give traffic to if they were well.
    pub(super) total: u32,
    /// Of what there must be enough.
    pub(super) needed: Needed,
    /// So few are well that the unwell get traffic too.
    pub(super) panic: bool,
    pub(super) groups: Box<[Group]>,
    pub(super) shares: Walk,
    pub(super) turn: AtomicU64,
}

/// An endpoint and what the catalog says of it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) instance: Arc<Instance>,
    pub(super) excluded: Option<Excluded>,
}

/// A group of a split.
#[derive(Debug)]
pub(super) struct Group {
    /// As the split names it; `None` for the endpoints of no group.
    pub(super) name: Option<String>,
    /// Its share as the split says, in percent.
    pub(super) share: u32,
    /// Where its share ends among the shares of the groups that have anybody.
    pub(super) ends: u32,
    /// The percentage that each level of nearness gets.
    pub(super) levels: [u32; Tier::LEVELS.len()],
    pub(super) turn: AtomicU64,
    pub(super) sets: [Arc<Set>; Tier::ALL.len()],
}

/// Which set of a group, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// As near as is preferred; all, where nothing is.
    Near,
    /// In the same region.
    Region,
    /// Elsewhere.
    Far,
    /// Of these, those outside of the node's subset.
    Outside,
    /// Those that are there for when there is nobody else.
    Backup,
}

impl Tier {
    pub(super) const ALL: [Self; 5] = [Self::Near, Self::Region, Self::Far, Self::Outside, Self::Backup];
    /// Those that get traffic by share.
    pub(super) const LEVELS: [Self; 3] = [Self::Near, Self::Region, Self::Far];
}

/// Endpoints that a policy chooses among.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) members: Box<[Member]>,
    name: Name,
    policy: Box<dyn Policy>,
}

/// What came of a choice over all sets.
pub(super) enum Found<'a> {
    /// A place of this endpoint was taken; elsewhere than it should have been, because that was full.
    Endpoint(&'a Arc<Endpoint>, bool),
    Full,
    Nobody,
}

impl Set {
    pub(super) fn new(name: Name, members: Vec<Member>, turn: u64) -> Self {
        let policy = policy::build(name, &members, turn);
        Self { members: members.into(), name, policy }
    }

    /// Is it what would be built of these? Its tables are good then, and need not be made again.
    pub(super) fn is_of(&self, name: Name, members: &[Member]) -> bool {
        let same = |(one, other): (&Member, &Member)| {
            one.weight == other.weight && Arc::ptr_eq(&one.endpoint, &other.endpoint)
        };
        self.name == name && self.members.len() == members.len() && self.members.iter().zip(members).all(same)
    }

    pub(super) fn turn(&self) -> u64 {
        self.policy.turn()
    }
}

/// The shares walked in steps of 1 %.
pub(super) const PERCENT: u64 = 100;

impl Snapshot {
    /// Takes a place for a connection; `spill`: also outside of where it should go when that is full.
    pub(super) fn choose(&self, ask: &Ask<'_>, spill: bool) -> Found<'_> {
        let Some(group) = self.group(ask.client) else { return Found::Nobody };
        let first = self.groups[group].tier(self.settings.policy.is_hash(), ask.client);
        let tiers = Tier::ALL.into_iter().filter(|tier| *tier != first);
        let here = std::iter::once(first).chain(tiers).map(|tier| (group, tier));
        // Groups that are to get nothing come last, and before nobody is served.
        let others = (0..self.groups.len()).filter(|other| *other != group);
        let (some, none): (u32, u32) = (1, 0);
        let wanted = [some, none]
            .into_iter()
            .flat_map(|wanted| others.clone().filter(move |at| self.groups[*at].share.min(1) == wanted));
        let elsewhere = wanted.flat_map(|at| Tier::ALL.map(|tier| (at, tier)));
        let mut full = false;
        for (group, tier) in here.chain(elsewhere) {
            if full && !spill {
                break;
            }
            let set = &self.groups[group].sets[tier as usize];
            if set.members.is_empty() {
                continue;
            }
            match set.policy.choose(&set.members, ask) {
                Choice::Taken(at) => return Found::Endpoint(&set.members[at].endpoint, full),
                Choice::Full => full = true,
                Choice::Nobody => {}
            }
        }
        if full { Found::Full } else { Found::Nobody }
    }

    /// The group that a connection belongs to.
    fn group(&self, client: u64) -> Option<usize> {
        if self.groups.len() <= 1 {
            return (!self.groups.is_empty()).then_some(0);
        }
        let total = self.shares.total();
        if total == 0 {
            return Some(0);
        }
        let position = if self.settings.policy.is_hash() {
            rng::scale(hash::mix(client ^ 0x73_706c_6974), total)
        } else {
            self.shares.at(self.turn.fetch_add(1, Ordering::Relaxed))
        };
        let at = self.groups.iter().position(|group| position < u64::from(group.ends));
        Some(at.unwrap_or(0))
    }
}

impl Group {
    /// The set that a connection belongs to.
    fn tier(&self, is_hash: bool, client: u64) -> Tier {
        if let Some(at) = self.levels.iter().position(|share| *share == 100) {
            return Tier::LEVELS[at];
        }
        let position = if is_hash {
            rng::scale(hash::mix(client ^ 0x7a_6f6e_6500), PERCENT)
        } else {
            Walk::percent().at(self.turn.fetch_add(1, Ordering::Relaxed))
        };
        let mut ends = 0;
        let is_in = |share: &u32| {
            ends += u64::from(*share);
            position < ends
        };
        self.levels.iter().position(is_in).map_or(Tier::Near, |at| Tier::LEVELS[at])
    }
}
