//! What a balancer is up to, for `plexus why`: the same numbers that a pick looks at, put into words.

use std::time::Duration;

use nerve::model::{InstanceId, Policy};

use super::outlier::Ejection;
use super::shared::Shared;
use super::snapshot::{Group, Snapshot, Tier};
use super::{Balancer, Endpoint, is_panic};

/// How it stands with a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which endpoint gets the next connection.
    pub policy: Policy,
    /// All are balanced over, the unwell too.
    pub panic: bool,
    /// Connections that are open.
    pub connections: u32,
    /// Connections that wait for a place.
    pub queue: usize,
    /// Endpoints that get traffic as far as the catalog goes.
    pub serving: u32,
    /// Of these, those that are ejected.
    pub ejected: u32,
    /// In the order of their ids.
    pub endpoints: Vec<EndpointReport>,
}

/// How it stands with an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointReport {
    /// Which.
    pub id: InstanceId,
    /// Connections that are being made or are open.
    pub in_flight: u32,
    /// Connections so far.
    pub connections: u64,
    /// Attempts that failed.
    pub connect_failures: u64,
    /// The share of the service's new connections that its weight comes to now, from 0 to 1. What a policy makes of load
    /// and latency comes on top.
    pub share: f64,
    /// How much of its weight counts, in percent, while it is new.
    pub slow_start: Option<u8>,
    /// Why it is passed over for what was seen of it, and for how long still.
    pub ejected: Option<(Ejection, Duration)>,
    /// It has as many connections as it may have.
    pub at_limit: bool,
    /// The group of the split that it is in.
    pub group: Option<String>,
    /// It is in another zone of this node's region, and the own zone is preferred.
    pub other_zone: bool,
    /// It is in another region than this node, and what is nearer is preferred.
    pub other_region: bool,
    /// It gets traffic only while none of the others can be had.
    pub backup: bool,
    /// It is not in this node's subset.
    pub outside_subset: bool,
    /// As peak EWMA has it.
    pub latency: Option<Duration>,
}

impl Balancer {
    /// How it stands now.
    #[must_use]
    pub fn report(&self) -> Report {
        let snapshot = self.pool.load();
        let ejected = self.shared.census.ejected.load(std::sync::atomic::Ordering::Relaxed);
        let panic = is_panic(&snapshot, ejected);
        let mut endpoints: Vec<EndpointReport> =
            snapshot.known.iter().map(|endpoint| plain(endpoint, &snapshot)).collect();
        for group in &snapshot.groups {
            let of_group = f64::from(own_share(group)) / f64::from(total_share(&snapshot).max(1));
            for tier in Tier::ALL {
                fill(&mut endpoints, group, tier, of_group, &snapshot, panic);
            }
        }
        Report {
            policy: snapshot.settings.policy,
            panic,
            connections: self.shared.gate.open(),
            queue: self.shared.queue.len(),
            serving: snapshot.serving,
            ejected,
            endpoints,
        }
    }
}

fn plain(endpoint: &Endpoint, snapshot: &Snapshot) -> EndpointReport {
    let limit = snapshot.settings.limits.endpoint;
    EndpointReport {
        id: endpoint.id().clone(),
        in_flight: endpoint.in_flight(),
        connections: endpoint.connections(),
        connect_failures: endpoint.connect_failures(),
        share: 0.0,
        slow_start: ramp(endpoint, snapshot),
        ejected: endpoint.ejected(),
        at_limit: limit > 0 && endpoint.in_flight() >= limit,
        group: None,
        other_zone: false,
        other_region: false,
        backup: false,
        outside_subset: false,
        latency: endpoint.latency(),
    }
}

fn ramp(endpoint: &Endpoint, snapshot: &Snapshot) -> Option<u8> {
    let length = snapshot.settings.slow_start;
    if length == 0 { None } else { endpoint.ramp.percent(Shared::now(), length) }
}

/// Its share where it has anybody.
fn own_share(group: &Group) -> u32 {
    if group.sets.iter().all(|set| set.members.is_empty()) { 0 } else { group.share }
}

fn total_share(snapshot: &Snapshot) -> u32 {
    snapshot.groups.iter().map(own_share).sum()
}

/// Adds what a set says of its members.
fn fill(
    reports: &mut [EndpointReport],
    group: &Group,
    tier: Tier,
    of_group: f64,
    snapshot: &Snapshot,
    panic: bool,
) {
    let counts = |endpoint: &Endpoint, weight: u32| {
        let passed_over = !panic && endpoint.outlier.is_ejected();
        let warm = ramp(endpoint, snapshot).map_or(1.0, |percent| f64::from(percent) / 100.0);
        if passed_over { 0.0 } else { f64::from(weight) * warm }
    };
    let mut regular = group.sets[..Tier::Backup as usize].iter().flat_map(|set| set.members.iter());
    let of_tier = match group.levels.get(tier as usize) {
        Some(percent) => f64::from(*percent) / 100.0,
        None if tier == Tier::Backup && !regular.any(|m| counts(&m.endpoint, m.weight) > 0.0) => 1.0,
        None => 0.0,
    };
    let members = &group.sets[tier as usize].members;
    let sum: f64 = members.iter().map(|member| counts(&member.endpoint, member.weight)).sum();
    for member in members {
        let Ok(at) = reports.binary_search_by(|report| report.id.cmp(member.endpoint.id())) else { continue };
        let report = &mut reports[at];
        if sum > 0.0 {
            report.share = of_group * of_tier * counts(&member.endpoint, member.weight) / sum;
        }
        report.group.clone_from(&group.name);
        report.other_zone = tier == Tier::Region;
        report.other_region = tier == Tier::Far;
        report.backup = tier == Tier::Backup;
        report.outside_subset = tier == Tier::Outside;
    }
}
