//! What the admin interface asks of rooms that it does not know: their types turned into its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nerve::announce;
use nerve::model::{Address, InstanceId, ServiceName};
use synapse::output::{self, haproxy};
use synapse::watch::store::Handle as Watcher;
use synapse::watch::{self, Watchers};
use tokio::sync::Semaphore;

use super::synapse_conf::SynapseConf;
use crate::admin::{self, Counts, Resolver, Traffic};
use crate::api::{
    DnsInfo, DnsListener, DnsOthers, Finding, PlainFor, Problem, Resolution, TopEntry, TopList, UpstreamInfo,
    WatcherInfo, WhyBalance, WhyListener, WhyPick, WhyPlain,
};
use crate::balance::EndpointReport;
use crate::config::{Config, Recursion};
use crate::{dns, docker, doctor, identity, ingress, link_local, mtls, overlay, steer, vip};

impl Traffic for ingress::Handle {
    fn endpoint(&self, service: &ServiceName, endpoint: &InstanceId) -> Counts {
        let mut counts = Counts::default();
        for balancer in self.balancers(service) {
            for known in balancer.endpoints().iter().filter(|known| known.id() == endpoint) {
                counts.in_flight += u64::from(known.in_flight());
                counts.connections += known.connections();
                counts.connect_failures += known.connect_failures();
            }
        }
        counts
    }

    fn balance(&self, service: &ServiceName) -> Option<(WhyBalance, HashMap<InstanceId, WhyPick>)> {
        let balancers = self.balancers(service);
        // Listeners may lead to several ports of the instances; the main port speaks for the service.
        let balancer = balancers.iter().min_by_key(|balancer| balancer.target().cloned())?;
        let report = balancer.report();
        let picks = report.endpoints.into_iter().map(|endpoint| (endpoint.id.clone(), pick(&endpoint)));
        let whole = WhyBalance {
            policy: report.policy.to_string(),
            panic: report.panic,
            connections: report.connections.into(),
            queue: report.queue as u64,
            serving: report.serving.into(),
            ejected: report.ejected.into(),
        };
        Some((whole, picks.collect()))
    }

    fn listeners(&self, service: &ServiceName) -> Vec<WhyListener> {
        let own = self.listeners_of(service).into_iter();
        own.map(|listener| WhyListener {
            kind: listener.kind.to_string(),
            address: listener.address.to_string(),
            protocol: match listener.address {
                Address::Ip(_) => listener.protocol.to_string(),
                Address::Unix(_) => "unix".to_owned(),
            },
            target: listener.target,
            this_node_only: listener.local,
            listening: matches!(listener.state, ingress::ListenerState::Open { .. }),
            held: matches!(listener.state, ingress::ListenerState::Held { .. }),
            problem: match listener.state {
                ingress::ListenerState::Open { .. } => None,
                ingress::ListenerState::Held { by } => Some(by),
                ingress::ListenerState::Failed { error } => Some(error),
            },
        })
        .collect()
    }
}

fn whole(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn pick(endpoint: &EndpointReport) -> WhyPick {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is from 0 to 1")]
    let share_permille = (endpoint.share * 1000.0).round() as u32;
    WhyPick {
        share_permille,
        slow_start_percent: endpoint.slow_start,
        ejected: endpoint.ejected.map(|(reason, _)| reason.to_string()),
        ejected_for_ms: endpoint.ejected.map(|(_, left)| whole(left.as_millis())),
        at_limit: endpoint.at_limit,
        group: endpoint.group.clone(),
        other_zone: endpoint.other_zone,
        other_region: endpoint.other_region,
        backup: endpoint.backup,
        outside_subset: endpoint.outside_subset,
        latency_us: endpoint.latency.map(|latency| whole(latency.as_micros())),
    }
}

/// Of whom an endpoint sees this node's address.
pub(super) fn seen_instead(shown: steer::Shown) -> WhyPlain {
    match shown {
        steer::Shown::Nodes { reason, why } => {
            WhyPlain { plain: Some(why), plain_reason: Some(reason.to_string()), plain_for: Vec::new() }
        }
        steer::Shown::Clients { but } => {
            let but = but.into_iter();
            let plain_for = but.map(|(reason, clients)| PlainFor { reason: reason.to_string(), clients });
            WhyPlain { plain_for: plain_for.collect(), ..WhyPlain::default() }
        }
    }
}

impl Resolver for dns::Handle {
    fn explain(&self, name: &str, record_type: &str) -> Result<Resolution, String> {
        const TYPES: [&str; 8] = ["A", "AAAA", "CNAME", "SRV", "TXT", "PTR", "NS", "SOA"];
        let record_type = record_type.to_ascii_uppercase();
        if !TYPES.contains(&record_type.as_str()) {
            return Err(format!("{record_type:?} is no record type of the mesh: {}", TYPES.join(", ")));
        }
        let told = self.explain(name);
        if told.rule == dns::Rule::Invalid {
            return Err(told.why);
        }
        // `name ttl IN type data`, as in a zone file.
        let of_type = |record: &String| {
            record.split_whitespace().nth(3).is_some_and(|kind| kind == record_type || kind == "CNAME")
        };
        let answers = told.records.into_iter().filter(of_type).collect();
        let code = match told.outcome {
            dns::Outcome::Answer | dns::Outcome::NoData => "NOERROR",
            dns::Outcome::NxDomain => "NXDOMAIN",
            dns::Outcome::NotReady | dns::Outcome::AliasLoop => "SERVFAIL",
            dns::Outcome::Refused => "REFUSED",
            dns::Outcome::Forwarded => "",
        };
        let excluded = told.excluded.into_iter().map(|endpoint| {
            let dns::Excluded { instance, node, address, reason, detail } = endpoint;
            let detail = if detail.is_empty() { detail } else { format!(": {detail}") };
            format!("left out: {instance} on node {node} ({address}), {reason}{detail}")
        });
        let stale = told.stale.map(|reason| format!("this is the last known good: {reason}"));
        let why = std::iter::once(told.why).chain(excluded).chain(stale).collect();
        Ok(Resolution { name: told.name, record_type, code: code.to_owned(), answers, why })
    }

    fn upstreams(&self) -> Vec<UpstreamInfo> {
        let report = |report: dns::UpstreamReport| UpstreamInfo {
            upstream: report.upstream,
            domain: report.domain,
            time_us: report.time.map(|time| whole(time.as_micros())),
            answered: report.answered,
            failed: report.failed,
            unanswered: report.unanswered,
            failures_in_a_row: report.failures_in_a_row,
            passed_over_for_ms: report.passed_over_for.map(|left| whole(left.as_millis())),
            problem: report.problem,
            keeps_case: report.keeps_case,
        };
        Self::upstreams(self).into_iter().map(report).collect()
    }

    fn top(&self) -> TopList {
        let told = Self::top(self);
        // What has just begun is no rate yet.
        let seconds = told.window.as_secs_f64().max(1.0);
        let entry = |what: String, queries: u64, over| TopEntry {
            what,
            queries,
            over,
            per_second: queries as f64 / seconds,
        };
        TopList {
            window_seconds: told.window.as_secs_f64(),
            queries: told.queries,
            names: told.names.into_iter().map(|name| entry(name.what, name.queries, name.over)).collect(),
            clients: (told.clients.into_iter())
                .map(|client| entry(client.what.to_string(), client.queries, client.over))
                .collect(),
        }
    }
}

/// So many may look at once: each sends probes to every peer.
const EXAMINERS: usize = 4;

/// Looks at what overlay networks need.
pub(super) fn examiner(overlay: &overlay::Handle) -> admin::Examiner {
    let (overlay, turns) = (overlay.clone(), Arc::new(Semaphore::new(EXAMINERS)));
    Arc::new(move || {
        let (overlay, turns) = (overlay.clone(), Arc::clone(&turns));
        Box::pin(async move {
            // It is never closed.
            let _turn = turns.acquire().await;
            doctor::examine(&overlay).await.into_iter().map(finding).collect()
        })
    })
}

fn finding(found: doctor::Finding) -> Finding {
    let doctor::Finding { subject, state, message, advice } = found;
    let state = match state {
        doctor::State::Good => Finding::GOOD,
        doctor::State::Note => Finding::NOTE,
        doctor::State::Bad => Finding::BAD,
    };
    Finding { subject, state: state.to_owned(), message, advice }
}

/// The watchers of this node, that of the store first.
pub(super) fn watchers(store: Watcher, others: Watchers) -> admin::WatcherStates {
    let since = |at: SystemTime| at.elapsed().unwrap_or_default().as_secs();
    Arc::new(move || {
        let stands = store.status();
        let of_store = WatcherInfo {
            name: "store".to_owned(),
            kind: "store".to_owned(),
            service: None,
            place: store.store().to_owned(),
            connected: stands.connected,
            for_seconds: since(stands.since),
            changed_seconds_ago: stands.last_change.map(since),
            entries: stands.entries,
            instead: None,
            refused: stands.refused.into_iter().map(|(what, why)| format!("{what}: {why}")).collect(),
            last_error: stands.last_error,
        };
        let other = |stands: watch::Status| WatcherInfo {
            name: stands.watcher.to_string(),
            kind: stands.kind.to_owned(),
            service: stands.service,
            place: stands.place,
            connected: stands.connected,
            for_seconds: since(stands.since),
            changed_seconds_ago: stands.last_change.map(since),
            entries: stands.entries,
            instead: stands.instead.map(|instead| instead.to_string()),
            refused: stands.refused.into_iter().map(|(what, why)| format!("{what}: {why}")).collect(),
            last_error: stands.last_error,
        };
        std::iter::once(of_store).chain(others.statuses().into_iter().map(other)).collect()
    })
}

/// Where the name server answers, and what is to be asked of it.
pub(super) fn name_server(config: &Config, problems: &Problems) -> admin::NameServer {
    let (node, dns) = (&config.node, &config.dns);
    let others = match (&dns.recursion, dns.upstreams.is_empty()) {
        (Recursion::Off, _) => DnsOthers::Refused,
        (_, true) => DnsOthers::ResolvConf,
        (_, false) => DnsOthers::Configured,
    };
    let info = DnsInfo {
        probe: (format!("{}.node.{}", node.name, dns.domain), node.address),
        domains: [&dns.domain].into_iter().chain(&dns.alt_domains).map(ToString::to_string).collect(),
        ranges: config.vip.range.clone(),
        listeners: Vec::new(),
        others,
    };
    let (problems, link_local) = (problems.clone(), config.link_local());
    Arc::new(move || {
        let listeners = problems.dns.iter().flat_map(dns::Handle::listeners);
        let listeners = listeners.filter(|listener| listener.over == dns::Over::Plain);
        let listeners = listeners.map(|listener| {
            // Its sockets are there before the address is.
            let is_link_local = link_local.is_some_and(|own| IpAddr::from(own.ip()) == listener.wanted.ip());
            let problem = problems.link_local.problem().filter(|_| is_link_local);
            DnsListener {
                address: listener.state.clone().unwrap_or(listener.wanted),
                problem: listener.state.err().or(problem),
            }
        });
        DnsInfo { listeners: listeners.collect(), ..info.clone() }
    })
}

/// Everything that fails on this node and that only its rooms know.
#[derive(Debug, Clone)]
pub(super) struct Problems {
    pub(super) ingress: ingress::Handle,
    pub(super) vip: vip::Handle,
    pub(super) steer: steer::Handle,
    pub(super) overlay: overlay::Handle,
    pub(super) docker: docker::Handle,
    pub(super) link_local: link_local::Handle,
    pub(super) dns: Option<dns::Handle>,
    pub(super) watcher: Watcher,
    pub(super) watchers: Watchers,
    pub(super) announcements: announce::Handle,
    pub(super) synapse_conf: SynapseConf,
    pub(super) files: output::Files,
    pub(super) haproxy: haproxy::Handle,
    /// Empty while the agent starts.
    pub(super) identity: identity::Handle,
    pub(super) mtls: mtls::Handle,
    /// The unix socket of the admin interface.
    pub(super) admin: admin::SocketHandle,
    /// What of a reload could not be applied.
    pub(super) reload: Arc<Mutex<Option<String>>>,
    /// Why no other agent can take over.
    pub(super) door: Arc<Mutex<Option<String>>>,
}

impl Problems {
    pub(super) fn note_reload(&self, problem: Option<String>) {
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    pub(super) fn note_door(&self, problem: String) {
        *self.door.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }

    /// One entry each.
    pub(super) fn list(&self) -> Vec<Problem> {
        let problem = |what: &str, message: String| Problem { what: what.to_owned(), message };
        let listeners = self.ingress.failures().into_iter().filter_map(|listener| match listener.state {
            ingress::ListenerState::Failed { error } => {
                Some(problem("ingress", format!("{}: {error}", listener.service)))
            }
            ingress::ListenerState::Open { .. } | ingress::ListenerState::Held { .. } => None,
        });
        let virtuals = self.vip.problems().into_iter().map(|message| problem("vip", message));
        let steering = self.steer.problem().map(|message| problem("steering", message));
        let overlay = self.overlay.problems().into_iter().map(|message| problem("overlay", message));
        let docker = self.docker.problem().map(|message| problem("docker", message));
        let addresses = self.dns.iter().flat_map(dns::Handle::listeners);
        let addresses =
            addresses.filter_map(|listener| listener.state.err().map(|error| problem("dns", error)));
        let refused = self.watcher.status().refused.into_iter();
        let records = refused.map(|(path, reason)| problem("store", format!("the record {path}: {reason}")));
        let places = self.watchers.statuses().into_iter().filter(|stands| !stands.connected);
        let places = places.filter_map(|stands| {
            Some(problem("watcher", format!("{}: {}", stands.watcher, stands.last_error?)))
        });
        let upstreams = self.dns.iter().flat_map(dns::Handle::problems).chain(self.link_local.problem());
        let upstreams = upstreams.map(|message| problem("dns", message));
        let announcements = self.announcements.problems().into_iter();
        let announcements = announcements
            .map(|wrong| problem("announcements", format!("{}: {}", wrong.subject, wrong.message)));
        let synapse = self.synapse_conf.wrong().into_iter();
        let synapse = synapse.map(|wrong| problem("synapse", format!("{}: {}", wrong.place, wrong.message)));
        let files = self.files.failures().into_iter().map(|message| problem("output", message));
        let haproxy = self.haproxy.problems().into_iter().map(|message| problem("haproxy", message));
        let identity = self.identity.problem();
        let mtls = self.mtls.problems().into_iter().map(|message| problem("mtls", message));
        let admin = self.admin.problem().map(|message| problem("admin", message));
        let reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let door = self.door.lock().unwrap_or_else(PoisonError::into_inner).clone();
        listeners
            .chain(virtuals)
            .chain(steering)
            .chain(overlay)
            .chain(docker)
            .chain(addresses)
            .chain(upstreams)
            .chain(announcements)
            .chain(haproxy)
            .chain(places)
            .chain(synapse)
            .chain(files)
            .chain(admin)
            .chain(door.map(|message| problem("handover", message)))
            .chain(identity.map(|message| problem("identity", message)))
            .chain(mtls)
            .chain(records)
            .chain(reload.map(|message| problem("config", message)))
            .collect()
    }
}
