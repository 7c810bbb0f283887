//! A service's servers over time: their numbers, their order, and those that were there (pure).
//!
//! A server keeps its number for as long as it is remembered, since HAProxy's hashes and statistics go by it. One that has gone is
//! remembered for [`Terms::remembered_for`]; with a state file it also stays in the configuration, disabled, so that HAProxy knows it
//! when it comes back. Until the catalog has named an endpoint of the service, its servers are those that HAProxy's file has: an agent
//! that has just started knows less than the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use nerve::hash;

use super::config::{Order, ServiceConfig};
use super::server::{
    self, Candidate, Reason, Refused, Server, State, candidate, expand, own_id, scaled, without_weight,
};
use crate::catalog::Service;

/// What holds for the servers of every service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// Do servers have the weights of instances, unless a service says otherwise?
    pub(super) weights: bool,
    pub(super) max_id: u32,
    /// What the order is made from.
    pub(super) seed: u64,
    pub(super) remembered_for: Duration,
    /// Do servers that have gone stay in the configuration?
    pub(super) keeps: bool,
    /// Has the store confirmed the catalog since the agent started? Its memory may be older than HAProxy's file.
    pub(super) confirmed: bool,
}

/// One service's servers that are there or were.
#[derive(Debug, Clone, Default)]
pub(super) struct Roster {
    pub(super) servers: BTreeMap<String, Known>,
    /// Has the catalog named an endpoint since the agent started?
    heard: bool,
}

/// What is remembered of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) name: Option<String>,
    pub(super) address: SocketAddr,
    pub(super) id: Option<u32>,
    /// Its own options; `None`: not known.
    pub(super) options: Option<String>,
    pub(super) weight: Option<u16>,
    pub(super) labels: BTreeMap<String, String>,
    /// Since when it is not there; `None`: it is.
    pub(super) gone: Option<SystemTime>,
    pub(super) state: State,
}

/// The servers of a service as they are to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Built {
    pub(super) servers: Vec<Server>,
    pub(super) refused: Vec<Refused>,
    /// A server that HAProxy may know has other options of its own than before.
    pub(super) options_changed: bool,
}

impl Roster {
    /// The servers as the catalog has them now.
    pub(super) fn build(
        &mut self,
        service: Option<&Service>,
        config: &ServiceConfig,
        terms: &Terms,
        now: SystemTime,
    ) -> Built {
        let mut built = Built::default();
        let endpoints = service.map(|service| service.endpoints.as_slice()).unwrap_or_default();
        self.heard |= !endpoints.is_empty();
        if !self.heard {
            built.servers =
                self.servers.iter().map(|(name, known)| render(name, known, known.weight, config)).collect();
            order(&mut built.servers, config.backend_order, terms.seed);
            return built;
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for candidate in endpoints.iter().filter_map(|endpoint| candidate(endpoint, config)) {
            match candidate {
                Err(refused) => built.refused.push(refused),
                Ok(candidate) => match places.get(&candidate.server) {
                    // Found twice: the one that serves counts.
                    Some(&at) if candidate.state == State::Ready => candidates[at] = candidate,
                    Some(_) => {}
                    None => {
                        places.insert(candidate.server.clone(), candidates.len());
                        candidates.push(candidate);
                    }
                },
            }
        }
        let weights = config.use_nerve_weights.unwrap_or(terms.weights);
        let most = candidates.iter().map(|candidate| candidate.weight).max().unwrap_or(0);
        self.forget(&places, terms, now);
        for candidate in &candidates {
            let weight = weights.then(|| scaled(candidate.weight, most));
            built.options_changed |= self.note(candidate, weight);
        }
        built.refused.extend(self.number(&candidates, terms.max_id));
        for candidate in &candidates {
            if let Some(known) = self.servers.get(&candidate.server) {
                built.servers.push(render(&candidate.server, known, known.weight, config));
            }
        }
        for (name, known) in self.servers.iter_mut().filter(|(name, _)| !places.contains_key(*name)) {
            if !terms.confirmed && known.gone.is_none() {
                built.servers.push(render(name, known, known.weight.filter(|_| weights), config));
                continue;
            }
            known.state = State::Maint;
            known.gone.get_or_insert(now);
            if terms.keeps {
                built.servers.push(render(name, known, known.weight.filter(|_| weights), config));
            }
        }
        order(&mut built.servers, config.backend_order, terms.seed);
        built
    }

    /// Those that went too long ago, and the oldest where there are more than there are numbers.
    fn forget(&mut self, present: &BTreeMap<String, usize>, terms: &Terms, now: SystemTime) {
        self.servers.retain(|name, known| present.contains_key(name) || !known.is_over(terms, now));
        let gone = self.servers.keys().filter(|name| !present.contains_key(*name)).count();
        let room = usize::try_from(terms.max_id).unwrap_or(usize::MAX).saturating_sub(present.len());
        if gone > room {
            let mut absent: Vec<_> = (self.servers.iter().filter(|(name, _)| !present.contains_key(*name)))
                .map(|(name, known)| (known.gone.unwrap_or(now), name.clone()))
                .collect();
            absent.sort_unstable();
            for (_, name) in absent.into_iter().take(gone - room) {
                self.servers.remove(&name);
            }
        }
    }

    /// Is one remembered that went too long ago?
    pub(super) fn is_over(&self, terms: &Terms, now: SystemTime) -> bool {
        self.heard && self.servers.values().any(|known| known.is_over(terms, now))
    }

    /// Remembers it as it is now. Has it other options than before?
    fn note(&mut self, candidate: &Candidate, weight: Option<u16>) -> bool {
        let Candidate { server, name, address, options, labels, state, .. } = candidate;
        let before = self.servers.get(server);
        let changed = before.is_some_and(|known| known.options.as_ref().is_some_and(|own| own != options));
        let known = Known {
            name: name.clone(),
            address: *address,
            id: own_id(options).or_else(|| before?.id),
            options: Some(options.clone()),
            weight,
            labels: labels.clone(),
            gone: None,
            state: *state,
        };
        self.servers.insert(server.clone(), known);
        changed
    }

    /// Gives a number to each that has none: the lowest that is free.
    fn number(&mut self, candidates: &[Candidate], most: u32) -> Option<Refused> {
        let lacking = |roster: &Self, one: &Candidate| {
            roster.servers.get(&one.server).is_some_and(|known| known.id.is_none())
        };
        if !candidates.iter().any(|one| lacking(self, one)) {
            return None;
        }
        let taken: BTreeSet<u32> = self.servers.values().filter_map(|known| known.id).collect();
        let mut free = (1..=most).filter(|id| !taken.contains(id));
        let mut out_of_ids = None;
        for candidate in candidates {
            let Some(known) = self.servers.get_mut(&candidate.server) else { continue };
            if known.id.is_none() {
                known.id = free.next();
                if known.id.is_none() {
                    let what = candidate.server.clone();
                    out_of_ids.get_or_insert(Refused { what, reason: Reason::OutOfIds });
                }
            }
        }
        out_of_ids
    }
}

impl Known {
    fn is_over(&self, terms: &Terms, now: SystemTime) -> bool {
        let since = self.gone.and_then(|gone| now.duration_since(gone).ok());
        since.is_some_and(|since| since > terms.remembered_for)
    }
}

fn render(name: &str, known: &Known, weight: Option<u16>, config: &ServiceConfig) -> Server {
    let own = known.options.as_deref().unwrap_or_default();
    let template = expand(&config.server_options, name, known.address);
    let options = match (template.is_empty(), own.is_empty()) {
        (_, true) => template,
        (true, false) => own.to_owned(),
        (false, false) => format!("{template} {own}"),
    };
    let is_tcp = config.backend.iter().chain(&config.listen).any(|line| line == "mode tcp");
    Server {
        name: name.to_owned(),
        address: known.address,
        id: known.id.filter(|_| own_id(own).is_none()),
        cookie: (!is_tcp).then(|| server::cookie(name, config.cookie_value_method)),
        options: if weight.is_some() { without_weight(&options) } else { options },
        weight,
        state: known.state,
    }
}

fn order(servers: &mut [Server], order: Order, seed: u64) {
    match order {
        Order::Asc => servers.sort_by(|a, b| a.name.cmp(&b.name)),
        Order::Desc => servers.sort_by(|a, b| b.name.cmp(&a.name)),
        Order::NoShuffle => {}
        // Each by a number of its own: one that comes or goes moves no other.
        Order::Shuffle => servers.sort_by_cached_key(|server| hash::of(&format!("{seed} {}", server.name))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::server::tests::{config, endpoint};
    use super::*;
    use crate::catalog::{Catalog, Change};

    fn service(endpoints: &[(&str, serde_json::Value)]) -> Arc<Service> {
        let (catalog, mut writer) = Catalog::new();
        let put = |(address, more): &(&str, serde_json::Value)| {
            Change::PutInstance(Arc::clone(&endpoint(address, more.clone()).instance))
        };
        writer.apply(endpoints.iter().map(put));
        catalog.service("web").expect("a service")
    }

    fn of(addresses: &[&str]) -> Arc<Service> {
        service(&addresses.iter().map(|address| (*address, serde_json::json!({}))).collect::<Vec<_>>())
    }

    fn terms() -> Terms {
        Terms {
            weights: false,
            max_id: 65_535,
            seed: 7,
            remembered_for: Duration::from_secs(60),
            keeps: false,
            confirmed: true,
        }
    }

    fn lines(built: &Built) -> Vec<String> {
        let line = |server: &Server| {
            let mut text = String::new();
            server.write_to(&mut text);
            text.trim().to_owned()
        };
        built.servers.iter().map(line).collect()
    }

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn lines_are_those_of_synapse() {
        let asc = "{backend_order: asc, server_options: \"check inter 2s port %{port}\", listen: [mode tcp]}";
        let two = service(&[
            ("10.0.0.2:80", serde_json::json!({"labels": {"haproxy_server_options": "backup"}})),
            ("10.0.0.1:80", serde_json::json!({"health": "critical"})),
        ]);
        assert_eq!(
            lines(&Roster::default().build(Some(&two), &config(asc), &terms(), NOW)),
            [
                "server a_10.0.0.1:80 10.0.0.1:80 id 1 check inter 2s port 80 disabled",
                "server a_10.0.0.2:80 10.0.0.2:80 id 2 check inter 2s port 80 backup",
            ]
        );
        let weighted = "{use_nerve_weights: true, server_options: check weight 3, cookie_value_method: name}";
        let one = service(&[("10.0.0.1:80", serde_json::json!({"weight": 7}))]);
        assert_eq!(
            lines(&Roster::default().build(Some(&one), &config(weighted), &terms(), NOW)),
            ["server a_10.0.0.1:80 10.0.0.1:80 id 1 cookie a_10.0.0.1:80 check weight 7"]
        );
    }

    #[test]
    fn a_server_that_has_gone_is_kept_disabled_where_there_is_a_state_file_and_keeps_its_number() {
        let (mut roster, tcp) = (Roster::default(), config("{backend_order: asc, backend: [mode tcp]}"));
        let keeping = Terms { keeps: true, ..terms() };
        let _ = roster.build(Some(&of(&["10.0.0.1:80", "10.0.0.2:80"])), &tcp, &keeping, NOW);
        let without = roster.build(Some(&of(&["10.0.0.2:80", "10.0.0.3:80"])), &tcp, &keeping, NOW);
        assert_eq!(
            lines(&without),
            [
                "server a_10.0.0.1:80 10.0.0.1:80 id 1 disabled",
                "server a_10.0.0.2:80 10.0.0.2:80 id 2",
                "server a_10.0.0.3:80 10.0.0.3:80 id 3",
            ]
        );
        // Nobody else has its number for as long as it is remembered.
        let not_kept = roster.build(Some(&of(&["10.0.0.4:80"])), &tcp, &terms(), NOW);
        assert_eq!(lines(&not_kept), ["server a_10.0.0.4:80 10.0.0.4:80 id 4"]);
        let later = NOW + Duration::from_secs(61);
        assert!(roster.is_over(&keeping, later) && !roster.is_over(&keeping, NOW));
        let expired = roster.build(Some(&of(&["10.0.0.5:80"])), &tcp, &keeping, later);
        let four = "server a_10.0.0.4:80 10.0.0.4:80 id 4 disabled";
        assert_eq!(lines(&expired), [four, "server a_10.0.0.5:80 10.0.0.5:80 id 1"]);
    }

    #[test]
    fn a_service_of_which_nothing_was_heard_yet_keeps_the_servers_of_the_file() {
        let (mut roster, tcp) = (Roster::default(), config("{backend: [mode tcp]}"));
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let known = Known {
            name: None,
            address,
            id: Some(9),
            options: Some("backup".to_owned()),
            weight: None,
            labels: BTreeMap::new(),
            gone: None,
            state: State::Ready,
        };
        roster.servers.insert("x_10.0.0.1:80".to_owned(), known);
        let kept = ["server x_10.0.0.1:80 10.0.0.1:80 id 9 backup"];
        assert_eq!(lines(&roster.build(None, &tcp, &terms(), NOW)), kept);
        let unsure = Terms { confirmed: false, ..terms() };
        let both = roster.build(Some(&of(&["10.0.0.2:80"])), &tcp, &unsure, NOW);
        assert!(lines(&both).contains(&kept[0].to_owned()) && both.servers.len() == 2);
        let heard = roster.build(Some(&of(&["10.0.0.2:80"])), &tcp, &terms(), NOW);
        assert_eq!(lines(&heard), ["server a_10.0.0.2:80 10.0.0.2:80 id 1"]);
        assert_eq!(lines(&roster.build(None, &tcp, &terms(), NOW)), [""; 0], "emptiness is believed later");
    }

    #[test]
    fn other_options_of_a_known_server_are_noticed() {
        let (mut roster, plain) = (Roster::default(), config("{}"));
        let with = |options: &str| {
            service(&[("10.0.0.1:80", serde_json::json!({"labels": {"haproxy_server_options": options}}))])
        };
        assert!(!roster.build(Some(&with("backup")), &plain, &terms(), NOW).options_changed);
        assert!(!roster.build(Some(&with("backup")), &plain, &terms(), NOW).options_changed);
        let numbered = roster.build(Some(&with("id 70")), &plain, &terms(), NOW);
        assert!(numbered.options_changed);
        assert_eq!((numbered.servers[0].id, roster.servers["a_10.0.0.1:80"].id), (None, Some(70)));
    }

    #[test]
    fn a_seed_makes_an_order_that_others_coming_and_going_do_not_change() {
        let (plain, addresses) = (config("{}"), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"]);
        let names = |seed, addresses: &[&str]| -> Vec<String> {
            let built =
                Roster::default().build(Some(&of(addresses)), &plain, &Terms { seed, ..terms() }, NOW);
            built.servers.into_iter().map(|server| server.name).collect()
        };
        let all = names(7, &addresses);
        assert!((8..40).any(|seed| names(seed, &addresses) != all));
        let fewer: Vec<_> = all.iter().filter(|name| !name.contains("0.3")).cloned().collect();
        assert_eq!(names(7, &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"]), fewer);
    }

    proptest! {
        /// Whoever comes and goes: no number twice, none too high, and none that changes while its server is there.
        #[test]
        fn numbers_are_unique_and_stay(rounds in proptest::collection::vec(proptest::collection::btree_set(1_u8..12, 1..8), 1..12)) {
            let (mut roster, plain) = (Roster::default(), config("{}"));
            let terms = Terms { max_id: 9, ..terms() };
            let mut before: BTreeMap<String, u32> = BTreeMap::new();
            for round in rounds {
                let addresses: Vec<String> = round.iter().map(|host| format!("10.0.0.{host}:80")).collect();
                let service = of(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
                let built = roster.build(Some(&service), &plain, &terms, NOW);
                let ids: BTreeMap<String, u32> =
                    built.servers.iter().map(|server| (server.name.clone(), server.id.unwrap())).collect();
                prop_assert_eq!(ids.len(), round.len());
                prop_assert_eq!(ids.values().collect::<BTreeSet<_>>().len(), ids.len());
                prop_assert!(ids.values().all(|id| (1..=9).contains(id)));
                for (name, id) in &ids {
                    prop_assert!(before.get(name).is_none_or(|known| known == id));
                }
                before = ids;
            }
        }
    }
}
