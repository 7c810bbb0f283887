//! Which service is to get an address, and which address is to be freed (pure: the caller says what time it is).
//!
//! A service that lacks one is claimed for by the nodes that run an instance of it, at once; by the others a moment later
//! if that did not happen, each at its own moment. An address is freed when its service has been gone, or has wanted
//! none, or has had another one, for the whole of the grace period as seen by one agent without a break: while the
//! catalog is not confirmed by the store, nothing is gone.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use nerve::model::{NodeName, Prefix, ServiceName};
use synapse::catalog::Service;
use tokio::time::Instant;

use super::choice::moment;
use super::plan::families;

/// Nodes without an instance of a service wait for at least this, and at most twice as long.
const OTHERS_WAIT: Duration = Duration::from_millis(750);
/// Nobody waits longer for a second address to be freed: every node uses the same one of them, and names that were
/// answered with the other before that was settled are forgotten by then.
const SURPLUS_AFTER: Duration = Duration::from_secs(30);
/// Agents free addresses at moments spread over this part of the grace period.
const SPREAD: f64 = 0.1;

/// Why an address is to be freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// The service has neither instances nor settings.
    Gone,
    /// Its settings say that it has none, or that it is outside the mesh.
    Off,
    /// It has another of the same family, after a race or a change of the ranges.
    Surplus,
}

impl Why {
    /// The word for it, as in metric labels.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Off => "off",
            Self::Surplus => "surplus",
        }
    }
}

/// What is open.
#[derive(Debug)]
pub(super) struct Ledger {
    node: NodeName,
    release_after: Duration,
    v4: Vec<Prefix>,
    v6: Vec<Prefix>,
    lacking: BTreeMap<ServiceName, Instant>,
    unneeded: HashMap<IpAddr, Unneeded>,
}

#[derive(Debug)]
struct Unneeded {
    service: ServiceName,
    why: Why,
    until: Instant,
}

impl Ledger {
    pub(super) fn new(node: NodeName, release_after: Duration) -> Self {
        let (v4, v6) = (Vec::new(), Vec::new());
        Self { node, release_after, v4, v6, lacking: BTreeMap::new(), unneeded: HashMap::new() }
    }

    /// These ranges can be used here from now on. Every service is to be looked at again.
    pub(super) fn set_ranges(&mut self, ranges: &[Prefix]) {
        (self.v4, self.v6) = families(ranges);
        self.lacking.clear();
    }

    /// The ranges of each family that a service of these addresses has none of yet.
    pub(super) fn lacks(&self, has: impl Fn(&Prefix) -> bool) -> impl Iterator<Item = &[Prefix]> {
        let without = move |ranges: &&[Prefix]| !ranges.is_empty() && !ranges.iter().any(&has);
        [&self.v4[..], &self.v6[..]].into_iter().filter(without)
    }

    /// A service changed; `None`: it is gone.
    pub(super) fn look_at(&mut self, name: &ServiceName, service: Option<&Service>, now: Instant) {
        let wants = service.filter(|service| service.settings.wants_vip());
        let lacks = wants.is_some_and(|service| {
            self.lacks(|range| service.vips.iter().any(|ip| range.contains(*ip))).next().is_some()
        });
        if !lacks {
            self.lacking.remove(name);
            return;
        }
        let is_here = service.is_some_and(|s| s.endpoints.iter().any(|e| e.instance.node == self.node));
        let wait = if is_here { Duration::ZERO } else { OTHERS_WAIT.mul_f64(1.0 + moment(&self.node, name)) };
        let due = self.lacking.entry(name.clone()).or_insert(now + wait);
        *due = (*due).min(now + wait);
    }

    /// Services that it is time to claim for, at most so many. They stay open until [`Ledger::look_at`] finds that they
    /// have what they need, and are due again after `patience`.
    pub(super) fn due(&mut self, now: Instant, most: usize, patience: Duration) -> Vec<ServiceName> {
        let due = self.lacking.iter_mut().filter(|(_, due)| **due <= now).take(most);
        due.map(|(name, due)| {
            *due = now + patience;
            name.clone()
        })
        .collect()
    }

    /// This one is due again at that moment.
    pub(super) fn again(&mut self, name: &ServiceName, moment: Instant) {
        if let Some(due) = self.lacking.get_mut(name) {
            *due = moment;
        }
    }

    /// When [`Ledger::due`] has something next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lacking.values().min().copied()
    }

    /// How many services lack an address.
    pub(super) fn lacking(&self) -> usize {
        self.lacking.len()
    }

    /// Compares the claims that there are with what services need; with `None`, nothing can be said at the moment.
    /// Returns what is to be freed now.
    pub(super) fn unneeded<S: AsRef<Service>>(
        &mut self,
        claims: Option<Vec<(IpAddr, ServiceName)>>,
        service: impl Fn(&ServiceName) -> Option<S>,
        now: Instant,
    ) -> Vec<(IpAddr, ServiceName, Why)> {
        let mut before = std::mem::take(&mut self.unneeded);
        for (address, name) in claims.unwrap_or_default() {
            let Some(why) = self.why_unneeded(address, service(&name).as_ref().map(AsRef::as_ref)) else {
                continue;
            };
            let known = before.remove(&address).filter(|known| known.service == name && known.why == why);
            let until = known.map_or_else(
                || now + self.grace(why).mul_f64(1.0 + SPREAD * moment(&self.node, &name)),
                |known| known.until,
            );
            self.unneeded.insert(address, Unneeded { service: name, why, until });
        }
        let over = self.unneeded.iter().filter(|(_, unneeded)| unneeded.until <= now);
        over.map(|(address, Unneeded { service, why, .. })| (*address, service.clone(), *why)).collect()
    }

    fn grace(&self, why: Why) -> Duration {
        match why {
            Why::Gone | Why::Off => self.release_after,
            Why::Surplus => self.release_after.min(SURPLUS_AFTER),
        }
    }

    fn why_unneeded(&self, address: IpAddr, service: Option<&Service>) -> Option<Why> {
        let Some(service) = service else { return Some(Why::Gone) };
        if !service.settings.wants_vip() {
            return Some(Why::Off);
        }
        let ours = |ip: &IpAddr| self.v4.iter().chain(&self.v6).any(|range| range.contains(*ip));
        let first = service.vips.iter().find(|ip| ours(ip) && ip.is_ipv4() == address.is_ipv4())?;
        (ours(&address) && *first != address).then_some(Why::Surplus)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use synapse::catalog::{Catalog, Change};

    use super::*;

    const GRACE: Duration = Duration::from_secs(60);
    const LONG: Duration = Duration::from_secs(100);

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    fn ledger(node: &str) -> Ledger {
        let mut ledger = Ledger::new(NodeName::new(node).unwrap(), GRACE);
        ledger.set_ranges(&["10.96.0.0/16".parse().unwrap(), "fd00::/112".parse().unwrap()]);
        ledger
    }

    fn on(node: &str) -> Change {
        let json = serde_json::json!({"service": "web", "id": "1", "node": node, "address": "192.0.2.1", "port": 80});
        Change::PutInstance(Arc::new(serde_json::from_value(json).unwrap()))
    }

    fn settings(json: &str) -> Change {
        Change::PutSettings(name("web"), Arc::new(serde_json::from_str(json).unwrap()))
    }

    fn vip(address: &str, service: &str) -> Change {
        Change::PutVip(address.parse().unwrap(), name(service))
    }

    fn web(changes: impl IntoIterator<Item = Change>) -> (Catalog, Option<Arc<Service>>) {
        let (catalog, mut writer) = Catalog::new();
        writer.apply(changes);
        let web = catalog.service("web");
        (catalog, web)
    }

    #[tokio::test(start_paused = true)]
    async fn the_nodes_of_a_service_claim_first_and_the_others_wait_for_them() {
        let (now, (_, service)) = (Instant::now(), web([on("a")]));
        let (mut a, mut b) = (ledger("a"), ledger("b"));
        for ledger in [&mut a, &mut b] {
            ledger.look_at(&name("web"), service.as_deref(), now);
        }
        assert_eq!(a.due(now, 10, LONG), [name("web")]);
        assert_eq!((a.due(now, 10, LONG), a.lacking()), (vec![], 1));
        assert!(b.due(now, 10, LONG).is_empty() && b.next_due().unwrap() >= now + OTHERS_WAIT);
        assert_eq!(b.due(now + 2 * OTHERS_WAIT, 10, LONG), [name("web")]);
        let (_, service) = web([on("a"), vip("10.96.0.1", "web"), vip("fd00::1", "web")]);
        b.look_at(&name("web"), service.as_deref(), now);
        assert_eq!((b.lacking(), b.next_due()), (0, None));
    }

    #[test]
    fn what_is_lacked_goes_by_family_and_range() {
        let ledger = ledger("a");
        let lacks = |changes: Vec<Change>| {
            let service = web(changes).1.unwrap();
            let has = |range: &Prefix| service.vips.iter().any(|ip| range.contains(*ip));
            ledger.lacks(has).map(|ranges| ranges[0].is_ipv4()).collect::<Vec<_>>()
        };
        assert_eq!(lacks(vec![on("a")]), [true, false]);
        assert_eq!(lacks(vec![on("a"), vip("10.96.0.1", "web")]), [false]);
        assert_eq!(lacks(vec![on("a"), vip("10.97.0.1", "web"), vip("fd00::1", "web")]), [true]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_freed_when_its_service_was_gone_for_the_whole_grace() {
        let (mut ledger, start) = (ledger("a"), Instant::now());
        let (gone, _) = web([vip("10.96.0.1", "web")]);
        let (there, _) = web([vip("10.96.0.1", "web"), on("b")]);
        let look = |ledger: &mut Ledger, catalog: &Catalog, live: bool, at: Duration| {
            let claims = live.then(|| catalog.vips());
            ledger.unneeded(claims, |name| catalog.service(name.as_str()), start + at).len()
        };
        let late = GRACE.mul_f64(1.0 + SPREAD);
        assert_eq!(look(&mut ledger, &gone, true, Duration::ZERO), 0);
        assert_eq!(look(&mut ledger, &gone, true, GRACE / 2), 0);
        // It comes back for a moment, and once the store is out of reach: each time it starts over.
        assert_eq!(look(&mut ledger, &there, true, GRACE / 2), 0);
        assert_eq!(look(&mut ledger, &gone, true, late), 0);
        assert_eq!(look(&mut ledger, &gone, false, late), 0);
        assert_eq!(look(&mut ledger, &gone, true, 2 * late), 0);
        assert_eq!(look(&mut ledger, &gone, true, 3 * late), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_wants_none_and_a_second_address_are_told_apart() {
        let (mut ledger, start) = (ledger("a"), Instant::now());
        let mut freed = |changes: Vec<Change>| {
            let (catalog, _) = web(changes);
            let mut at =
                |at| ledger.unneeded(Some(catalog.vips()), |name| catalog.service(name.as_str()), at);
            at(start);
            at(start + 2 * GRACE)
        };
        for none in [r#"{"vip":false}"#, r#"{"external":"web.example.com"}"#] {
            let off = freed(vec![settings(none), vip("10.96.0.1", "web")]);
            assert_eq!(off, [("10.96.0.1".parse().unwrap(), name("web"), Why::Off)]);
        }
        let second =
            freed(vec![on("a"), vip("10.96.0.1", "web"), vip("10.96.0.2", "web"), vip("fd00::1", "web")]);
        assert_eq!(second, [("10.96.0.2".parse().unwrap(), name("web"), Why::Surplus)]);
        // Of a range that this node does not know it can say nothing.
        assert_eq!(freed(vec![on("a"), vip("10.96.0.1", "web"), vip("10.97.0.2", "web")]), []);
    }

    proptest! {
        #[test]
        fn a_service_is_never_left_without_the_address_that_counts(hosts in proptest::collection::btree_set(1..50_u8, 1..5)) {
            let mut ledger = ledger("a");
            let claims: Vec<Change> = hosts.iter().map(|host| vip(&format!("10.96.0.{host}"), "web")).collect();
            let (catalog, _) = web([on("a")].into_iter().chain(claims));
            let start = Instant::now();
            for at in [start, start + 2 * GRACE] {
                let freed = ledger.unneeded(Some(catalog.vips()), |name| catalog.service(name.as_str()), at);
                let lowest: IpAddr = format!("10.96.0.{}", hosts.first().unwrap()).parse().unwrap();
                prop_assert!(freed.iter().all(|(address, ..)| *address != lowest));
                prop_assert!(at == start || freed.len() == hosts.len() - 1);
            }
        }
    }
}
