//! What the follower decides; that it becomes true is shown against the real registries.

use std::num::NonZeroU32;
use std::time::SystemTime;

use super::*;
use crate::check::{Advice, Report};
use crate::model::Health;
use crate::source::{Definition, Limit, Located, NodeMode, Origin};

fn instance(health: Health, limit: Limit) -> LocalInstance {
    let mode = NodeMode { ephemeral: true, sequential: true };
    let (ensemble, path) = ("z1:2181".to_owned(), "/x".to_owned());
    let registry = Registry::ZooKeeper { ensemble, path, mode, encoded: false, renewed: None };
    let announcement = Announcement { registry, name: "a".to_owned(), data: "{}".to_owned(), limit };
    let local = crate::source::Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() };
    let draft = crate::source::Draft::new("web".parse().unwrap(), std::num::NonZeroU16::MIN);
    let definition = Definition { announced: Some(Arc::new(announcement)), ..draft.resolve(&local).unwrap() };
    LocalInstance {
        located: Arc::new(Located { definition, origin: Origin::Api }),
        report: Report { health, reason: String::new(), advice: Advice::NONE, checks: Vec::new() },
        draining: false,
        registration: Registration::Pending { since: SystemTime::UNIX_EPOCH, reason: String::new() },
    }
}

fn follower() -> Follower {
    Follower {
        handle: Handle::default(),
        session_ttl: Duration::from_secs(10),
        metrics: Metrics::register(&prometheus::Registry::new()).unwrap(),
        writers: Tasks::new(),
        known: BTreeMap::new(),
    }
}

fn standing(follower: &Follower) -> usize {
    follower.known.values().filter(|known| known.stands).count()
}

#[test]
fn what_serves_is_announced_and_what_drains_leaves_or_fails_is_not() {
    let (mut follower, now) = (follower(), Instant::now());
    let well = instance(Health::Passing, Limit::default());
    for (instance, expected) in [
        (well.clone(), 1),
        (instance(Health::Warning, Limit::default()), 1),
        (instance(Health::Critical, Limit::default()), 0),
        (instance(Health::Starting, Limit::default()), 0),
        (LocalInstance { draining: true, ..well.clone() }, 0),
        (LocalInstance { registration: Registration::Withdrawn, ..well.clone() }, 0),
        (well.clone(), 1),
    ] {
        assert_eq!(follower.look(std::slice::from_ref(&instance), now), None);
        assert_eq!(standing(&follower), expected, "{instance:?}");
    }
    assert_eq!(follower.look(&[], now), None);
    assert!(follower.known.is_empty());
}

#[test]
fn changes_beyond_the_limit_wait_and_the_newest_state_wins() {
    let limit = |only_counted| Limit { only_counted, average_rate: Some(1.0), max_burst: NonZeroU32::new(1) };
    let (mut follower, begun) = (follower(), Instant::now());
    let (well, failing) = (instance(Health::Passing, limit(false)), instance(Health::Critical, limit(false)));
    assert_eq!(follower.look(std::slice::from_ref(&well), begun), None);
    let again = follower.look(std::slice::from_ref(&failing), begun).unwrap();
    assert_eq!((standing(&follower), again - begun), (1, Duration::from_secs(1)));
    // It was well again before its turn came: nothing has happened.
    assert_eq!(follower.look(&[well], begun), None);
    assert!(follower.look(std::slice::from_ref(&failing), begun).is_some());
    assert_eq!(follower.look(&[failing], again + Duration::from_millis(1)), None);
    assert_eq!(standing(&follower), 0);
    assert_eq!(follower.metrics.throttled.with_label_values(&["delayed"]).get(), 2);

    let (well, failing) = (instance(Health::Passing, limit(true)), instance(Health::Critical, limit(true)));
    let mut follower = self::follower();
    for instance in [&well, &failing, &well] {
        assert_eq!(follower.look(std::slice::from_ref(instance), begun), None);
    }
    assert_eq!(standing(&follower), 1);
    assert_eq!(follower.metrics.throttled.with_label_values(&["counted"]).get(), 2);
}
