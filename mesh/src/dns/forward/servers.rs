//! Who is asked for which names: the routes, and for all other names the upstreams.
//!
//! Replaced as a whole when resolv.conf changes; an upstream that is in the new lists as well goes on with its connections and with
//! what is known of it. The longest domain that covers a name decides; a route decides before what is special by itself.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::resolv_conf::Lists;
use super::special::{self, Special};
use super::upstream::{Means, Upstream};
use crate::dns::address::UpstreamAddress;
use crate::dns::metrics::Asked;
use crate::dns::suffix::{self, Suffix};

/// Who is asked. Shared by all who ask and by those who look.
#[derive(Debug)]
pub(in crate::dns) struct Servers {
    now: ArcSwap<Table>,
    means: Arc<Means>,
    special_names: bool,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    lists: Lists,
    others: Arc<Group>,
    routes: HashMap<Suffix, Arc<Group>>,
    special_names: bool,
}

/// Some who are asked for the same names, in the order of preference.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// The route's domain.
    domain: Option<Suffix>,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    /// The route says that nobody has such names.
    is_blocked: bool,
}

/// Where a name goes.
#[derive(Debug)]
pub(super) enum Way {
    Ask(Arc<Group>),
    /// It is answered here; the zone's name begins at this octet of the name.
    Here(Special, usize),
}

/// How an upstream does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamReport {
    /// As it is written.
    pub upstream: String,
    /// The domain of the route that it is asked for; none: all other names.
    pub domain: Option<String>,
    /// How long it takes to answer, smoothed, if that was measured lately.
    pub time: Option<std::time::Duration>,
    /// Questions that it answered.
    pub answered: u64,
    /// Questions that it answered with a failure of its own.
    pub failed: u64,
    /// Questions that it did not answer.
    pub unanswered: u64,
    /// How many of these came last, without an answer since.
    pub failures_in_a_row: u32,
    /// How long it is passed over now.
    pub passed_over_for: Option<std::time::Duration>,
    /// Why it did not answer last.
    pub problem: Option<String>,
    /// It gives back the letters of questions as they are sent, as far as is known.
    pub keeps_case: bool,
}

impl Servers {
    pub(in crate::dns) fn new(means: Means, special_names: bool) -> Self {
        Self { now: ArcSwap::default(), means: Arc::new(means), special_names }
    }

    pub(super) fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.now.load()
    }

    /// Tells whether they are others than before.
    pub(in crate::dns) fn replace(&self, lists: Lists) -> bool {
        let before = self.now.load();
        if before.lists == lists {
            return false;
        }
        let mut known: HashMap<_, _> =
            before.upstreams().map(|upstream| (upstream.address.clone(), Arc::clone(upstream))).collect();
        let mut group = |domain: Option<&Suffix>, all: &[UpstreamAddress], is_blocked| {
            let upstreams = all.iter().map(|address| {
                let make = || Arc::new(Upstream::new(address.clone(), &self.means));
                Arc::clone(known.entry(address.clone()).or_insert_with(make))
            });
            Arc::new(Group { domain: domain.cloned(), upstreams: upstreams.collect(), is_blocked })
        };
        let others = group(None, &lists.upstreams, false);
        let routes = lists.routes.iter().map(|routed| {
            let (domain, is_blocked) = (&routed.route.domain, routed.route.upstreams.is_empty());
            (domain.clone(), group(Some(domain), &routed.upstreams, is_blocked))
        });
        let routes = routes.collect();
        self.now.store(Arc::new(Table { lists, others, routes, special_names: self.special_names }));
        true
    }

    /// Everyone who is asked for names that no route covers.
    pub(in crate::dns) fn names(&self) -> Vec<String> {
        self.now.load().others.upstreams.iter().map(|upstream| upstream.address.to_string()).collect()
    }

    /// How everyone does, those of the routes behind the others.
    pub(in crate::dns) fn reports(&self) -> Vec<UpstreamReport> {
        self.now.load().groups().flat_map(|group| group.reports()).collect()
    }

    /// What of the lists cannot be as it was meant.
    pub(in crate::dns) fn problems(&self) -> Vec<String> {
        let table = self.now.load();
        let own: Vec<String> = table.lists.ourselves.iter().map(ToString::to_string).collect();
        let lost = table.groups().filter(|group| group.upstreams.is_empty() && !group.is_blocked);
        lost.filter(|_| !own.is_empty())
            .map(|group| {
                format!(
                    "{} would go to this agent itself ({}) and to nobody else, and are refused: name another server",
                    group.what(),
                    own.join(", ")
                )
            })
            .collect()
    }

    /// Where a name goes, in words; and whether it is asked of somebody.
    pub(in crate::dns) fn explain(&self, name: &str) -> (Destination, String) {
        let table = self.now.load();
        let way = match name.parse::<Suffix>() {
            Ok(name) => table.way(name.as_bytes()),
            Err(_) => Way::Ask(Arc::clone(&table.others)),
        };
        match way {
            Way::Here(Special::Missing, _) => {
                (Destination::Missing, "a route without upstreams says that nobody has such names".to_owned())
            }
            Way::Here(..) => (
                Destination::Here,
                "answered here: such a name means nothing elsewhere (a route, or dns.forward_special_names, sends \
                 it on all the same)"
                    .to_owned(),
            ),
            Way::Ask(group) => match group.upstreams.as_slice() {
                [] => (Destination::Nobody, "refused, since there is no upstream".to_owned()),
                [first, rest @ ..] => {
                    let more =
                        if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
                    let route = group.domain.as_ref();
                    let route = route.map_or_else(String::new, |domain| format!(" by the route for {domain}"));
                    (Destination::Upstream, format!("forwarded to {}{more}{route}", first.address))
                }
            },
        }
    }
}

/// What becomes of a name outside the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dns) enum Destination {
    Upstream,
    Here,
    Missing,
    Nobody,
}

impl Table {
    /// Where a name goes; its octets are lower case.
    pub(super) fn way(&self, name: &[u8]) -> Way {
        let mut here = None;
        for end in suffix::ends(name) {
            let at = name.len() - end.len();
            match self.routes.get(end) {
                Some(group) if group.is_blocked => return Way::Here(Special::Missing, at),
                Some(group) => return Way::Ask(Arc::clone(group)),
                None if self.special_names && here.is_none() => {
                    here = special::zone(end).map(|special| Way::Here(special, at));
                }
                None => {}
            }
        }
        here.unwrap_or_else(|| Way::Ask(Arc::clone(&self.others)))
    }

    fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        let of_route = |routed: &super::resolv_conf::Routed| self.routes.get(routed.route.domain.as_bytes());
        std::iter::once(&self.others).chain(self.lists.routes.iter().filter_map(of_route))
    }

    fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.groups().flat_map(|group| &group.upstreams)
    }
}

impl Group {
    fn what(&self) -> String {
        match &self.domain {
            Some(domain) => format!("names under {domain}"),
            None => "names outside the domain".to_owned(),
        }
    }

    fn reports(&self) -> Vec<UpstreamReport> {
        let now = Instant::now();
        let report = |upstream: &Arc<Upstream>| {
            let (health, counts) = (upstream.health().clone(), &upstream.counts);
            UpstreamReport {
                upstream: upstream.address.to_string(),
                domain: self.domain.as_ref().map(ToString::to_string),
                time: health.recent(now),
                answered: counts.get(Asked::Answered),
                failed: counts.get(Asked::Failed),
                unanswered: counts.get(Asked::Timeout) + counts.get(Asked::Unreachable),
                failures_in_a_row: health.failures(),
                passed_over_for: health
                    .passed_over_until(now)
                    .map(|until| until.saturating_duration_since(now)),
                problem: health.problem().map(str::to_owned),
                keeps_case: health.keeps_case(),
            }
        };
        self.upstreams.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use nerve::tasks::Tasks;
    use proptest::prelude::*;

    use super::super::resolv_conf::Source;
    use super::*;
    use crate::dns::config::{Config, Route, Upstreams};
    use crate::dns::metrics::Metrics;

    fn servers(config: &Config) -> Servers {
        let means = Means::new(config, Tasks::new(), Arc::new(Metrics::default()));
        let servers = Servers::new(means, !config.forward_special_names);
        assert!(servers.replace(Source { config, listen: &config.listen }.read().unwrap()));
        servers
    }

    fn route(domain: &str, upstreams: &[&str]) -> Route {
        let upstreams = upstreams.iter().map(|text| text.parse().unwrap()).collect();
        Route { domain: domain.parse().unwrap(), upstreams }
    }

    fn config(routes: Vec<Route>) -> Config {
        let upstreams = Upstreams::List(vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()]);
        Config { upstreams, routes, ..Config::default() }
    }

    #[test]
    fn the_longest_route_decides_also_about_what_is_special() {
        let servers = servers(&config(vec![
            route("corp.example", &["192.0.2.10"]),
            route("lab.corp.example", &["192.0.2.11"]),
            route("secret.corp.example", &[]),
            route("10.in-addr.arpa", &["192.0.2.12"]),
            route("cluster.local", &["192.0.2.13"]),
        ]));
        for (name, where_to) in [
            ("www.example", "forwarded to 192.0.2.1:53 (and 1 more)"),
            ("corp.example", "forwarded to 192.0.2.10:53 by the route for corp.example"),
            ("a.b.Corp.Example.", "forwarded to 192.0.2.10:53"),
            ("a.lab.corp.example", "forwarded to 192.0.2.11:53"),
            ("xlab.corp.example", "forwarded to 192.0.2.10:53"),
            ("a.secret.corp.example", "nobody has such names"),
            ("3.2.1.10.in-addr.arpa", "forwarded to 192.0.2.12:53"),
            ("1.1.168.192.in-addr.arpa", "answered here"),
            ("web.default.svc.cluster.local", "forwarded to 192.0.2.13:53"),
            ("printer.local", "answered here"),
        ] {
            let (_, told) = servers.explain(name);
            assert!(told.contains(where_to), "{name}: {told}");
        }
    }

    #[test]
    fn special_names_are_sent_on_where_that_is_asked_for() {
        let servers = servers(&Config { forward_special_names: true, ..config(Vec::new()) });
        assert_eq!(servers.explain("printer.local").0, Destination::Upstream);
    }

    #[test]
    fn an_upstream_that_stays_in_the_lists_keeps_what_is_known_of_it() {
        let mut config = config(vec![route("corp.example", &["192.0.2.1"])]);
        let servers = servers(&config);
        let first = |servers: &Servers| Arc::clone(&servers.table().others.upstreams[0]);
        let before = first(&servers);
        assert_eq!(servers.reports().len(), 3);
        let read = |config: &Config| Source { config, listen: &[] }.read().unwrap();
        assert!(!servers.replace(read(&config)));
        config.routes.clear();
        assert!(servers.replace(read(&config)));
        assert!(Arc::ptr_eq(&before, &first(&servers)));
        assert_eq!(servers.reports().len(), 2);
    }

    #[test]
    fn names_that_would_go_to_ourselves_alone_are_a_problem() {
        let servers = servers(&Config {
            upstreams: Upstreams::List(vec!["127.0.0.1".parse().unwrap()]),
            ..config(vec![route("a.example", &["127.0.0.1"]), route("b.example", &[])])
        });
        let problems = servers.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[1].contains("names under a.example would go to this agent itself (127.0.0.1:53)"));
        assert_eq!(servers.explain("x.a.example").0, Destination::Nobody);
    }

    proptest! {
        /// Beside the definition: of the routes that cover a name, the longest.
        #[test]
        fn a_name_goes_by_the_longest_route_that_covers_it(
            routes in proptest::collection::btree_set("[ab](\\.[ab]){0,3}", 0..6), name in "[ab](\\.[ab]){0,4}",
        ) {
            let all: Vec<String> = routes.into_iter().collect();
            let address = |at: usize| format!("192.0.2.{}", at + 10);
            let routes = all.iter().enumerate().map(|(at, domain)| route(domain, &[&address(at)])).collect();
            let servers = servers(&config(routes));
            let covers = |domain: &String| name == *domain || name.ends_with(&format!(".{domain}"));
            let expected = (0..all.len()).filter(|at| covers(&all[*at])).max_by_key(|at| all[*at].len());
            let told = servers.explain(&name).1;
            let expected = expected.map_or("192.0.2.1:53 ".to_owned(), |at| format!("{}:53 ", address(at)));
            prop_assert!(told.contains(&expected), "{}: {} is not {}", name, told, expected);
        }
    }
}
