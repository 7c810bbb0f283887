//! Which address a service is given (pure).
//!
//! The first choice follows from the service's name alone, so that agents that race for a service mostly try the same
//! address, and a service that comes back after its address was freed mostly gets it again. From there on it is the next
//! one that is free. The first and last address of an IPv4 range are left out: programs take them for the network's own
//! and its broadcast.

use std::net::IpAddr;

use nerve::hash;
use nerve::model::{NodeName, Prefix, ServiceName};

/// The address that `service` is to try for: the first that is free, from its own place on. `None` when all are taken.
/// `ranges` are of one family.
pub(super) fn choose(
    service: &ServiceName,
    ranges: &[Prefix],
    is_taken: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let size = ranges.iter().map(usable).fold(0_u64, u64::saturating_add);
    let first = hash::of(service.as_str()).checked_rem(size)?;
    // One more than are taken is always enough; in a range that nobody could fill the loop ends by itself as well.
    (0..size)
        .map(|step| place(ranges, first.wrapping_add(step) % size))
        .find_map(|ip| ip.filter(|ip| !is_taken(*ip)))
}

/// How many addresses of a range services may have.
fn usable(range: &Prefix) -> u64 {
    if range.is_ipv4() && range.length() <= 30 { range.size() - 2 } else { range.size() }
}

/// The address at a place of the ranges one after the other.
fn place(ranges: &[Prefix], mut at: u64) -> Option<IpAddr> {
    for range in ranges {
        if at < usable(range) {
            let skipped = u64::from(usable(range) < range.size());
            return range.nth(at.saturating_add(skipped));
        }
        at -= usable(range);
    }
    None
}

/// From 0 to 1, another number for each node and service: when they do the same, they need not do it at the same moment.
pub(super) fn moment(node: &NodeName, service: &ServiceName) -> f64 {
    const STEPS: u64 = 1 << 20;
    let step = hash::of(&format!("{node}/{service}")) % STEPS;
    #[allow(clippy::cast_precision_loss, reason = "both have at most 21 bits")]
    let (step, steps) = (step as f64, STEPS as f64);
    step / steps
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    fn ranges(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_choice_never_changes() {
        let v4 = ranges(&["10.96.0.0/16"]);
        let v6 = ranges(&["fd00:96::/112"]);
        assert_eq!(choose(&name("web"), &v4, |_| false), Some("10.96.158.204".parse().unwrap()));
        assert_eq!(choose(&name("web"), &v6, |_| false), Some("fd00:96::75f3".parse().unwrap()));
    }

    #[test]
    fn a_range_is_used_to_its_last_address_and_not_beyond() {
        let v4 = ranges(&["192.0.2.0/30", "198.51.100.8/32"]);
        let mut taken = HashSet::new();
        for number in 0..3 {
            let ip = choose(&name(&format!("s{number}")), &v4, |ip| taken.contains(&ip)).unwrap();
            assert!(v4.iter().any(|range| range.contains(ip)) && taken.insert(ip), "{ip}");
        }
        assert!(
            !taken.contains(&"192.0.2.0".parse().unwrap()) && !taken.contains(&"192.0.2.3".parse().unwrap())
        );
        assert_eq!(choose(&name("late"), &v4, |ip| taken.contains(&ip)), None);
        assert_eq!(choose(&name("web"), &[], |_| false), None);
    }

    #[test]
    fn ten_thousand_services_find_their_places_quickly() {
        let v4 = ranges(&["10.96.0.0/16"]);
        let mut taken = HashSet::new();
        let mut first = 0;
        for number in 0..10_000 {
            let service = name(&format!("service-{number:05}"));
            let ip = choose(&service, &v4, |ip| taken.contains(&ip)).unwrap();
            first += usize::from(choose(&service, &v4, |_| false) == Some(ip));
            assert!(taken.insert(ip));
        }
        // Of a good hash 15 % of the places are taken at the end: more than nine in ten get their first choice.
        assert!(first > 9_000, "{first}");
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_free_and_in_the_ranges(
            service in "[a-z]{1,8}", length in 24..=32_u8, second in 120..=128_u8, v6: bool, taken in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let range = if v6 { Prefix::new("fd00::".parse().unwrap(), second) } else { Prefix::new("192.0.2.0".parse().unwrap(), length) };
            let ranges = [range.unwrap()];
            let taken: HashSet<IpAddr> = taken.iter().filter_map(|place| ranges[0].nth(u64::from(*place))).collect();
            match choose(&name(&service), &ranges, |ip| taken.contains(&ip)) {
                Some(ip) => prop_assert!(ranges[0].contains(ip) && !taken.contains(&ip)),
                None => prop_assert!(taken.len() as u64 >= usable(&ranges[0])),
            }
        }
    }
}
