//! Balance policies: one file each, behind one trait.
//!
//! A policy is built, with whatever table it needs, for one set of endpoints; a change of the set builds another. What
//! holds for a single connection (ejected, full, tried already, warming up) is asked of [`Ask`] at the time of the pick.

mod first;
mod least_connections;
mod maglev;
mod p2c;
mod random;
mod ring;
mod round_robin;
mod weights;

use std::fmt;
use std::sync::Arc;

use nerve::model::Policy as Name;

use super::endpoint::Endpoint;
use super::outlier::Census;
use super::settings;
use super::tried::Tried;

/// How often a policy proposes an endpoint that cannot be had before all are looked at in turn.
const PROPOSALS: usize = 8;

/// An endpoint of a set, with its weight there.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    /// From 1 on.
    pub(super) weight: u32,
}

/// What came of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// A place of this member was taken.
    Taken(usize),
    /// There are members that would do, and all of them are at their limit.
    Full,
    /// There is no member that would do.
    Nobody,
}

/// Chooses among the members that it was built for. Called for every connection: takes no lock, allocates nothing.
pub(super) trait Policy: fmt::Debug + Send + Sync {
    /// Takes a place of one of `members`.
    fn choose(&self, members: &[Member], ask: &Ask<'_>) -> Choice;

    /// Where a successor for a changed set is to go on.
    fn turn(&self) -> u64 {
        0
    }
}

/// What one connection asks for.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    /// The client, hashed.
    pub(super) client: u64,
    pub(super) tried: &'a Tried,
    /// Only those that take datagrams.
    pub(super) datagrams: bool,
    /// Milliseconds on our clock.
    pub(super) now: u64,
    /// Connections that an endpoint may have; 0: any.
    pub(super) limit: u32,
    /// Milliseconds; 0: off.
    pub(super) slow_start: u64,
    /// Ejected ones too: there are no others, or too few.
    pub(super) ejected_too: bool,
    pub(super) outlier: &'a settings::Outlier,
    pub(super) census: &'a Census,
}

/// What stands against an endpoint for this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Free,
    Full,
    Out,
}

impl Ask<'_> {
    /// How it stands with an endpoint; changes nothing.
    fn standing(&self, endpoint: &Endpoint) -> Standing {
        let is_passed_over = !self.ejected_too && !endpoint.outlier.is_open(self.now);
        let is_of_no_use = self.datagrams && endpoint.datagram_address().is_none();
        if is_passed_over || is_of_no_use || self.tried.contains(endpoint) {
            Standing::Out
        } else if self.limit > 0 && endpoint.in_flight() >= self.limit {
            Standing::Full
        } else {
            Standing::Free
        }
    }

    /// Takes a place of an endpoint if it can be had now.
    pub(super) fn take(&self, endpoint: &Endpoint) -> bool {
        self.standing(endpoint) == Standing::Free
            && (self.ejected_too || endpoint.outlier.enter(self.now, self.outlier, self.census))
            && endpoint.take_place(self.limit)
    }

    /// Does an endpoint that may be new take what falls on it?
    fn is_warm(&self, endpoint: &Endpoint) -> bool {
        self.slow_start == 0 || endpoint.ramp.accepts(self.now, self.slow_start)
    }

    /// The same for a client that is to stay where it is.
    fn is_warm_for_client(&self, endpoint: &Endpoint) -> bool {
        // Another hash for each endpoint: not always the same clients are to be the first.
        let client = super::hash::mix(self.client ^ endpoint.hash());
        self.slow_start == 0 || endpoint.ramp.accepts_client(client, self.now, self.slow_start)
    }
}

/// The policy of this name for `members`, in their order; `turn` is where its predecessor was.
pub(super) fn build(name: Name, members: &[Member], turn: u64) -> Box<dyn Policy> {
    match name {
        // Smooth round robin honours weights by itself: with and without the word it is the same.
        Name::RoundRobin | Name::WeightedRoundRobin => Box::new(round_robin::RoundRobin::new(members, turn)),
        Name::LeastConnections => Box::new(least_connections::LeastConnections::new(members, turn)),
        Name::P2c => Box::new(p2c::P2c::new(members)),
        Name::Random => Box::new(random::Random::new(members)),
        Name::Maglev => Box::new(maglev::Maglev::new(members)),
        Name::Ring => Box::new(ring::Ring::new(members)),
        Name::First => Box::new(first::First::new(members)),
    }
}

/// Takes the first of some proposals that can be had and, where warming up matters, is warm; else any that can be had.
fn propose(
    members: &[Member],
    ask: &Ask<'_>,
    is_warm: impl Fn(&Endpoint) -> bool,
    mut proposal: impl FnMut(usize) -> usize,
) -> Choice {
    let mut last = 0;
    for attempt in 0..PROPOSALS.min(members.len() * 2) {
        last = proposal(attempt);
        let Some(member) = members.get(last) else { continue };
        if is_warm(&member.endpoint) && ask.take(&member.endpoint) {
            return Choice::Taken(last);
        }
    }
    any(members, ask, last)
}

/// Takes the first that can be had, from `start` on.
fn any(members: &[Member], ask: &Ask<'_>, start: usize) -> Choice {
    let mut none = Choice::Nobody;
    for at in (start..members.len()).chain(0..start.min(members.len())) {
        let endpoint = &members[at].endpoint;
        match ask.standing(endpoint) {
            Standing::Free if ask.take(endpoint) => return Choice::Taken(at),
            // Free and not to be had: somebody else was faster.
            Standing::Free | Standing::Out => {}
            Standing::Full => none = Choice::Full,
        }
    }
    none
}

#[cfg(test)]
mod tests;
